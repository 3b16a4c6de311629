// Package worker owns what a worker does with shards: it pulls them while it
// has slots, has the engine execute them under a lease, makes the data durable,
// and publishes each result before it acknowledges the shard.
package worker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// Config is what a worker is made of.
type Config struct {
	Name     string // unique among the live workers of a cluster
	Pool     string // workers of a pool see the same mounts
	Host     string // for people
	Version  string
	Allow    []string      // roots that jobs may use; a job outside them is refused
	Slots    int           // shards at once; 0 = 4
	Patience time.Duration // after how long without progress a file operation counts as hung; 0 = 30 s
	Grace    time.Duration // how long Run waits at its end for file operations that do not return; 0 = 5 s
	Bus      *bus.Bus
	Engine   *engine.Engine
	Logger   *slog.Logger
	Record   instrument.Providers
}

// ErrShutdown is the cause with which a worker stops its attempts at shutdown:
// their shards go back at once and do not count as failed attempts.
var ErrShutdown = fault.New(fault.Canceled, "the worker shuts down")

// Worker executes shards while Run runs.
type Worker struct {
	cfg      Config
	log      *slog.Logger
	instance string
	metrics  *instrument.Metrics
	pool     *bus.Pool
	commits  chan *attempt
	kick     chan struct{} // capacity 1: send a heartbeat now
	ready    chan struct{} // closed with the first accepted heartbeat
	stopping atomic.Bool   // nothing is waited for any more
	drained  chan struct{} // closed when no more shards are to be taken
	drain    sync.Once

	mu        sync.Mutex // guards what follows
	timing    protocol.Timing
	lease     time.Duration // boot time until which the worker's lease runs
	running   map[*attempt]struct{}
	cancelled map[protocol.JobID]bool
	unfit     map[protocol.JobID]unfitness
	jobs      map[protocol.JobID]*openJob
	done      uint64
	peers     int                       // others that could take a shard in this one's place
	alike     map[string]bool           // subjects of shards all of whose entries failed alike here
	unsent    map[protocol.JobID]string // jobs of which results cannot be published, and why
	hanging   int                       // file operations that hung at the last heartbeat
	draining  bool
	leaving   bool
}

// unfitness is why a worker cannot serve a job, and until when it believes so.
type unfitness struct {
	reason string
	until  time.Time
}

// New checks the configuration.
func New(cfg Config) (*Worker, error) {
	if err := errors.Join(protocol.CheckToken("worker name", cfg.Name), protocol.CheckToken("pool", cfg.Pool)); err != nil {
		return nil, err
	}
	if cfg.Slots == 0 {
		cfg.Slots = 4
	}
	if cfg.Slots < 1 || cfg.Slots > 1024 {
		return nil, fault.New(fault.Invalid, "worker slots must be between 1 and 1024, not %d", cfg.Slots)
	}
	if len(cfg.Allow) == 0 {
		return nil, fault.Hinted(fault.Invalid, "name the roots of sources and destinations with --allow", "worker %s may touch nothing", cfg.Name)
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	metrics, err := instrument.NewMetrics(cfg.Record.Meter())
	if err != nil {
		return nil, err
	}
	return &Worker{
		cfg: cfg, log: cfg.Logger.With("component", "worker", "worker", cfg.Name), instance: rand.Text(), metrics: metrics,
		commits: make(chan *attempt), kick: make(chan struct{}, 1), ready: make(chan struct{}), drained: make(chan struct{}),
		timing: protocol.DefaultTiming(), running: map[*attempt]struct{}{}, cancelled: map[protocol.JobID]bool{},
		unfit: map[protocol.JobID]unfitness{}, alike: map[string]bool{}, unsent: map[protocol.JobID]string{}, jobs: map[protocol.JobID]*openJob{},
	}, nil
}

// bootTime is a clock that goes on while the machine sleeps and that nobody
// sets. Leases are measured with it: a frozen or suspended worker sees on waking
// how long it was away.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("worker: CLOCK_BOOTTIME: " + err.Error()) // exists since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Run joins the cluster and executes shards until ctx ends. Then it hands back
// what it has at once and says goodbye. A worker that is drained finishes what it
// has first, and Run returns nil. A cluster that is not there is waited for; a
// file operation that does not return is waited for no longer than the grace.
func (w *Worker) Run(ctx context.Context) error {
	stopPoke, err := w.cfg.Bus.Listen(protocol.SubjectPoke, func(string, []byte) []byte { w.beatNow(); return nil })
	if err != nil {
		return err
	}
	defer stopPoke()

	defer context.AfterFunc(ctx, func() { w.stopping.Store(true) })()

	// Heartbeats and commits go on while attempts are being handed back.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var sg errgroup.Group
	joined := make(chan error, 1)
	sg.Go(func() error { w.heartbeats(support, joined); return nil })
	sg.Go(func() error { w.commitLoop(support); return nil })
	stop := func() {
		stopSupport()
		waitFor(w.cfg.Grace, sg.Wait) // a commit may hang in its sync
		w.closeJobs()
	}
	select {
	case err := <-joined:
		if err != nil {
			stop()
			return err
		}
	case <-ctx.Done():
		stop()
		return context.Cause(ctx)
	}
	if err := w.join(ctx); err != nil {
		stop()
		return err
	}
	close(w.ready)
	w.log.Info("worker is ready", "pool", w.cfg.Pool, "slots", w.cfg.Slots, "allow", w.cfg.Allow)
	g, gctx := errgroup.WithContext(ctx)
	pull, stopPulls := context.WithCancel(gctx)
	defer stopPulls()
	g.Go(func() error {
		select {
		case <-w.drained:
			stopPulls()
		case <-gctx.Done():
		}
		return nil
	})
	for range w.cfg.Slots {
		g.Go(func() error { return w.slot(gctx, pull) })
	}
	err = w.finish(ctx, g)
	w.mu.Lock()
	w.leaving = true
	w.mu.Unlock()
	w.goodbye(support)
	stop()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Ready is closed once the worker has joined the cluster.
func (w *Worker) Ready() <-chan struct{} { return w.ready }

// join binds to the pool's consumer, waiting while there is none.
func (w *Worker) join(ctx context.Context) error {
	for {
		w.mu.Lock()
		ackWait := w.timing.AckWait
		w.mu.Unlock()
		err := w.cfg.Bus.EnsurePool(ctx, protocol.ClassStandard, w.cfg.Pool, ackWait)
		if err == nil {
			w.pool, err = w.cfg.Bus.Pool(ctx, protocol.ClassStandard, w.cfg.Pool)
		}
		if err == nil {
			return nil
		}
		w.log.Warn("cannot join the pool, trying again", "pool", w.cfg.Pool, "error", err)
		if !bus.Sleep(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
}

// backoff keeps a worker that cannot serve what it is given from taking it again
// and again: a bad mount that fails fast must not drain the queue.
type backoff struct{ pause time.Duration }

const (
	leastPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// after waits where the last shard could not be served; it reports false if ctx
// ended meanwhile.
func (b *backoff) after(ctx context.Context, served bool) bool {
	if served {
		b.pause = 0
		return true
	}
	b.pause = min(max(2*b.pause, leastPause), mostPause)
	return bus.Sleep(ctx, b.pause)
}

// slot executes one shard after the other while it may pull them.
func (w *Worker) slot(ctx, pull context.Context) error {
	var tired backoff
	said := ""
	for pull.Err() == nil {
		w.mu.Lock()
		wait, lease, lapsed := w.timing.Lease/4, w.timing.Lease, bootTime() >= w.lease
		w.mu.Unlock()
		if lapsed {
			// Without its own lease the worker may not act; heartbeats renew it.
			bus.Sleep(pull, 100*time.Millisecond)
			continue
		}
		// The lease of a shard runs from before it was asked for: the server
		// cannot have sent it, and so begun to count, any earlier.
		asked := bootTime()
		d, err := w.pool.Next(pull, wait)
		switch {
		case err != nil && pull.Err() != nil:
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				w.log.Warn("cannot pull shards, trying again", "error", err)
			}
			bus.Sleep(pull, time.Second)
			if fault.Is(err, fault.NotFound) {
				if err := w.join(ctx); err != nil {
					return err
				}
			}
		case d != nil:
			said = ""
			if served := w.execute(ctx, d, asked+lease); !tired.after(ctx, served) {
				return nil
			}
		}
	}
	return nil
}

// heartbeats reports to the leader and extends leases until ctx ends. The first
// answer, or a refusal to join, goes to joined.
func (w *Worker) heartbeats(ctx context.Context, joined chan<- error) {
	first, silent := true, false
	for {
		w.extendAll(ctx)
		w.closeUnused(bootTime())
		reply, err := w.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !silent {
				silent = true
				w.log.Warn("no coordinator answers, waiting for one", "error", err)
			}
		case reply.Refused != "" && first:
			joined <- fault.New(fault.Invalid, "the coordinator %s refuses this worker: %s", reply.Leader, reply.Refused)
			return
		case reply.Refused != "":
			w.log.Error("the coordinator refuses this worker", "leader", reply.Leader, "reason", reply.Refused)
		default:
			if silent {
				silent = false
				w.log.Info("a coordinator answers again", "leader", reply.Leader)
			}
			if first {
				first = false
				joined <- nil
			}
		}
		w.mu.Lock()
		pause := w.timing.Heartbeat
		w.mu.Unlock()
		if first {
			pause = min(pause, 500*time.Millisecond)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-w.kick:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// beatNow asks for a heartbeat without delay.
func (w *Worker) beatNow() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// beat sends one heartbeat and takes over what the answer says.
func (w *Worker) beat(ctx context.Context) (protocol.HeartbeatReply, error) {
	var reply protocol.HeartbeatReply
	hung := w.hung()
	w.mu.Lock()
	h := w.report()
	h.Hung = hung
	timeout := w.timing.Heartbeat
	w.mu.Unlock()
	data, err := json.Marshal(h)
	if err != nil {
		return reply, fault.New(fault.Internal, "encode heartbeat: %w", err)
	}
	sent := bootTime()
	rctx, cancel := context.WithTimeout(ctx, max(timeout, time.Second))
	defer cancel()
	out, err := w.cfg.Bus.Request(rctx, protocol.SubjectHeartbeat, data)
	if err != nil {
		return reply, err
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return reply, fault.New(fault.Transient, "answer to the heartbeat: %w", err)
	}
	if reply.Refused != "" {
		return reply, nil
	}
	if reply.Drain {
		w.takeNoMore()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timing, w.peers = reply.Timing, reply.Peers
	w.lease = sent + reply.Timing.Lease
	told := map[protocol.JobID]bool{}
	news := false
	for _, id := range reply.Cancelled {
		told[id] = true
		news = news || !w.cancelled[id]
		if j := w.jobs[id]; j != nil {
			j.ended = true // cleaning up opens it once more
			w.closeEnded(id, nil)
		}
	}
	w.cancelled = told
	for a := range w.running {
		if told[a.run.Job] && a.run.Phase != protocol.PhaseCleanup {
			a.cancel(errJobCancelled)
		}
	}
	if news {
		w.beatNow() // the coordinator waits to hear that it was heard
	}
	return reply, nil
}

// report describes the worker. It is called with the lock held.
func (w *Worker) report() protocol.Heartbeat {
	h := protocol.Heartbeat{
		Wire: protocol.WireMajor, Worker: w.cfg.Name, Instance: w.instance, Pool: w.cfg.Pool, Slots: w.cfg.Slots,
		Allow: w.cfg.Allow, Version: w.cfg.Version, Host: w.cfg.Host, Drained: w.draining, Leaving: w.leaving, Done: w.done, RSS: residentBytes(), Unsent: maps.Clone(w.unsent),
	}
	busy := map[protocol.JobID]bool{}
	for a := range w.running {
		h.Running = append(h.Running, a.run)
		busy[a.run.Job] = true
	}
	for id := range w.cancelled {
		if !busy[id] {
			h.Seen = append(h.Seen, id)
		}
	}
	for id, u := range w.unfit {
		if time.Now().After(u.until) {
			delete(w.unfit, id)
			continue
		}
		if h.Unfit == nil {
			h.Unfit = map[protocol.JobID]string{}
		}
		h.Unfit[id] = u.reason
	}
	return h
}

// goodbye tells the leader that this worker takes no more.
func (w *Worker) goodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := w.beat(ctx); err != nil {
		w.log.Debug("say goodbye", "error", err)
	}
}
