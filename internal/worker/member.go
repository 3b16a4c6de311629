package worker

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// member owns the worker's membership of the cluster: what its heartbeats say, what
// the coordinator answers, and the leases that depend on both. Safe for concurrent use.
type member struct {
	cfg      *Config
	log      *slog.Logger
	queue    queue
	exec     executor
	jobs     *jobs
	now      clock
	instance string
	process  protocol.Process // this one

	kick    chan struct{} // capacity 1: send a heartbeat now
	drained chan struct{} // closed when no more shards are to be taken
	drain   sync.Once

	mu        sync.Mutex // guards what follows
	timing    protocol.Timing
	lease     time.Duration // boot time until which the worker's own lease runs
	peers     int           // other workers that could take a shard in this one's place
	cancelled map[protocol.JobID]bool
	running   map[*attempt]struct{}
	unfit     map[protocol.JobID]unfitness
	unsent    map[protocol.JobID]string // jobs of which results cannot be published, and why
	done      uint64                    // shards answered
	ended     []protocol.AttemptEvent   // attempts without a result of which the coordinator may not know; the newest mostEnded
	missing   string                    // what it lacks in NATS to take shards
	hanging   int                       // file operations that hung at the last heartbeat
	draining  bool
	leaving   bool
	replaces  string // instance of this name whose process is dead
}

// unfitness is why a worker cannot serve a job, and until when it believes so.
type unfitness struct {
	reason string
	until  time.Time
}

func newMember(cfg *Config, log *slog.Logger, q queue, x executor, j *jobs, now clock, instance string) *member {
	return &member{
		cfg: cfg, log: log, queue: q, exec: x, jobs: j, now: now, instance: instance, process: protocol.Process(host.Self()),
		kick: make(chan struct{}, 1), drained: make(chan struct{}), timing: protocol.DefaultTiming(),
		cancelled: map[protocol.JobID]bool{}, running: map[*attempt]struct{}{},
		unfit: map[protocol.JobID]unfitness{}, unsent: map[protocol.JobID]string{},
	}
}

// heartbeats reports to the leader and renews leases until ctx ends. The first
// answer, or a refusal to join, goes to joined.
func (m *member) heartbeats(ctx context.Context, joined chan<- error) {
	first, silent := true, false
	var name claim
	for {
		m.renewAll(ctx)
		m.jobs.closeIdle()
		reply, err := m.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !silent {
				silent = true
				m.log.Warn("no coordinator answers, waiting for one", "error", err)
			}
		case reply.Refused != "" && first:
			if err := m.refused(&name, reply); err != nil {
				joined <- err
				return
			}
		case reply.Refused != "":
			m.log.Error("the coordinator refuses this worker", "leader", reply.Leader, "reason", reply.Refused)
		default:
			if silent {
				silent = false
				m.log.Info("a coordinator answers again", "leader", reply.Leader)
			}
			if first {
				first = false
				joined <- nil
			}
		}
		pause := m.times().Heartbeat
		if first {
			pause = min(pause, 500*time.Millisecond)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-m.kick:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// beatNow asks for a heartbeat without delay.
func (m *member) beatNow() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// beat sends one heartbeat and takes over what the answer says.
func (m *member) beat(ctx context.Context) (protocol.HeartbeatReply, error) {
	var reply protocol.HeartbeatReply
	h := m.report(m.hung())
	data, err := rawjson.Marshal(h)
	if err != nil {
		return reply, fault.New(fault.Internal, "encode heartbeat: %w", err)
	}
	sent := m.now()
	rctx, cancel := context.WithTimeout(ctx, max(m.times().Heartbeat, time.Second))
	defer cancel()
	out, err := m.queue.Request(rctx, protocol.SubjectHeartbeat, data)
	if err != nil {
		return reply, err
	}
	if err := rawjson.Unmarshal(out, &reply); err != nil {
		return reply, fault.New(fault.Transient, "answer to the heartbeat: %w", err)
	}
	if reply.Refused == "" {
		m.forgetEnded(h.Ended)
		m.obey(sent, reply)
	}
	return reply, nil
}

// Heartbeats tell of files of at least largeFile bytes that are being copied, the
// largest mostLarge of them.
const (
	largeFile = 64 << 20
	mostLarge = 16
)

// mostEnded bounds the ended attempts that heartbeats carry.
const mostEnded = 64

// noteEnded has heartbeats say that an attempt ended without a result, until one that
// said it was answered.
func (m *member) noteEnded(e protocol.AttemptEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = append(m.ended, e)
	m.ended = m.ended[max(0, len(m.ended)-mostEnded):]
}

// forgetEnded drops what the coordinator has heard.
func (m *member) forgetEnded(heard []protocol.AttemptEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = slices.DeleteFunc(m.ended, func(e protocol.AttemptEvent) bool { return slices.Contains(heard, e) })
}

// obey takes over what the coordinator says in answer to a heartbeat that was sent
// at the given boot time.
func (m *member) obey(sent time.Duration, reply protocol.HeartbeatReply) {
	if reply.Drain {
		m.takeNoMore()
	}
	for _, id := range reply.Cancelled {
		m.jobs.end(id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.timing, m.peers = reply.Timing, reply.Peers
	m.lease = sent + reply.Timing.Lease
	before := m.cancelled
	m.cancelled = map[protocol.JobID]bool{}
	for _, id := range reply.Cancelled {
		m.cancelled[id] = true
		if !before[id] {
			m.beatNow() // the coordinator waits to hear that it was heard
		}
	}
	for a := range m.running {
		if m.cancelled[a.run.Job] && a.run.Phase != protocol.PhaseCleanup {
			a.cancel(errJobCancelled)
		}
	}
}

// report describes the worker.
func (m *member) report(hung []protocol.HungOp) protocol.Heartbeat {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := protocol.Heartbeat{
		Wire: protocol.WireMajor, Worker: m.cfg.Name, Instance: m.instance, Process: m.process, Replaces: m.replaces, Pool: m.cfg.Pool, Slots: m.cfg.Slots,
		Allow: m.cfg.Allow, Version: m.cfg.Version, Host: m.cfg.Host, Drained: m.draining, Leaving: m.leaving, Done: m.done,
		RSS: residentBytes(), Threads: m.exec.Threads(), Hung: hung, Unsent: maps.Clone(m.unsent), Ended: slices.Clone(m.ended), Missing: m.missing,
		Abilities: m.cfg.Abilities,
	}
	for _, f := range m.exec.Copying(largeFile, mostLarge) {
		h.Large = append(h.Large, protocol.LargeFile{Job: protocol.JobID(f.Job), Path: f.Path, Done: f.Done, Size: f.Size, Seconds: time.Since(f.Since).Seconds()})
	}
	busy := map[protocol.JobID]bool{}
	for a := range m.running {
		h.Running = append(h.Running, a.run)
		busy[a.run.Job] = true
	}
	for id := range m.cancelled {
		if !busy[id] {
			h.Seen = append(h.Seen, id)
		}
	}
	for id, u := range m.unfit {
		if time.Now().After(u.until) {
			delete(m.unfit, id)
			continue
		}
		if h.Unfit == nil {
			h.Unfit = map[protocol.JobID]string{}
		}
		h.Unfit[id] = u.reason
	}
	return h
}

// renewAll renews the leases of all running attempts.
func (m *member) renewAll(ctx context.Context) {
	m.mu.Lock()
	running := make([]*attempt, 0, len(m.running))
	for a := range m.running {
		running = append(running, a)
	}
	m.mu.Unlock()
	var wg sync.WaitGroup
	for _, a := range running {
		wg.Go(func() { m.renew(ctx, a) })
	}
	wg.Wait()
}

// renew renews an attempt's lease if it has not lapsed and the server confirms in
// time. A confirmation that took longer could stem from after a second delivery.
func (m *member) renew(ctx context.Context, a *attempt) {
	if a.Check() != nil {
		return
	}
	t := m.times()
	within := (t.AckWait - t.Lease) / 2
	sent := m.now()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := m.queue.InProgress(ctx, a.d); err != nil {
		return // the lease runs on until its end; the next heartbeat tries again
	}
	// The context's clock stands still while the machine sleeps.
	if m.now()-sent <= within {
		a.lease.renew(sent + t.Lease)
	}
}

// times returns what the coordinator has last said of leases and heartbeats.
func (m *member) times() protocol.Timing {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.timing
}

// ownLease returns the boot time at which the worker's own lease ends.
func (m *member) ownLease() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lease
}

// begin has heartbeats report an attempt.
func (m *member) begin(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running[a] = struct{}{}
}

// end has heartbeats report the attempt no more. Nothing of it acts after that.
func (m *member) end(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, a)
	if m.cancelled[a.run.Job] {
		m.beatNow() // the coordinator waits to hear that nothing of it runs
	}
}

// isCancelled reports whether the coordinator has said that a job is cancelled.
func (m *member) isCancelled(id protocol.JobID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cancelled[id]
}

// hasPeers reports whether other workers could take a shard in this one's place.
func (m *member) hasPeers() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers > 0
}

// noteAnswered counts a shard that has its result.
func (m *member) noteAnswered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done++
}

// noteUnfit notes why this worker cannot serve a job, for so long.
func (m *member) noteUnfit(id protocol.JobID, reason string, d time.Duration) {
	m.mu.Lock()
	_, known := m.unfit[id]
	m.unfit[id] = unfitness{reason: reason, until: time.Now().Add(d + m.timing.Heartbeat)}
	m.mu.Unlock()
	if !known {
		m.beatNow()
	}
}

// noteFit notes that this worker can serve a job.
func (m *member) noteFit(id protocol.JobID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.unfit, id)
}

// noteUnsent notes why results of a job cannot be published; nil: they can.
func (m *member) noteUnsent(id protocol.JobID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.unsent, id)
	} else {
		m.unsent[id] = strings.ReplaceAll(err.Error(), "\n", ": ")
	}
}

// noteMissing notes what the worker lacks in NATS to take shards; "" = nothing.
func (m *member) noteMissing(what string) {
	m.mu.Lock()
	news := m.missing != what
	m.missing = what
	m.mu.Unlock()
	if news {
		m.beatNow()
	}
}

// hung returns the file operations that show no progress, the oldest.
func (m *member) hung() []protocol.HungOp {
	list := m.exec.Hung(m.cfg.Patience)
	m.mu.Lock()
	before := m.hanging
	m.hanging = len(list)
	m.mu.Unlock()
	switch {
	case before == 0 && len(list) > 0:
		m.log.Warn("file operation hangs", "job", list[0].Job, "doing", list[0].Doing, "path", list[0].Path, "since", list[0].Since, "in_all", len(list))
	case before > 0 && len(list) == 0:
		m.log.Info("no file operation hangs any more")
	}
	out := make([]protocol.HungOp, 0, min(len(list), mostHung))
	for _, o := range list[:min(len(list), mostHung)] {
		out = append(out, protocol.HungOp{Job: protocol.JobID(o.Job), Doing: o.Doing, Path: o.Path, Since: o.Since})
	}
	return out
}

// mostHung is how many hung operations a heartbeat lists: the oldest.
const mostHung = 16
