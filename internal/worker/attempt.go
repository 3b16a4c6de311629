package worker

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

var (
	errJobCancelled = fault.New(fault.Canceled, "the job was cancelled")
	errLapsed       = fault.New(fault.Stale, "the lease of the shard has ended")
)

// attempt is one delivery of a shard in execution. It is the engine's guard. Where
// nothing else is said, its fields are its slot's.
type attempt struct {
	d      *bus.Delivery
	run    protocol.Running
	lease  *lease
	member *member
	cancel context.CancelCauseFunc
	span   *instrument.ShardSpan

	concluded atomic.Bool // see Worker.conclude
	executed  atomic.Bool // it has begun with the entries

	shard   *protocol.ShardMsg
	job     *openJob // held; nil = it touches no file system
	outcome *engine.Outcome
	// generation of what it writes: see syncGroup.
	generation uint64
	took       time.Duration
	unfit      bool // this worker could not serve the job
}

// lapsed reports whether the attempt's lease is over, or the worker's own.
func (a *attempt) lapsed() bool { return a.lease.hasLapsed(a.member.ownLease()) }

// cancelled reports whether the attempt's job was. Its cleanup goes on.
func (a *attempt) cancelled() bool {
	return a.run.Phase != protocol.PhaseCleanup && a.member.isCancelled(a.run.Job)
}

// Check implements engine.Guard: it returns an error once the attempt must not
// act any more.
func (a *attempt) Check() error {
	switch {
	case a.lapsed():
		return errLapsed
	case a.cancelled():
		return errJobCancelled
	}
	return nil
}

// execute runs one delivery to its end. It publishes a result, hands the shard back, or
// does neither because the lease has ended. It reports false if this worker cannot serve
// the job.
func (w *Worker) execute(ctx context.Context, d *bus.Delivery, until time.Duration) (served bool) {
	id, p, n, ok := parseShardSubject(d.Subject)
	if !ok {
		w.log.Error("message with an unknown subject taken out of the queue", "subject", d.Subject)
		w.logIf("term", w.queue.Term(d, "unknown subject"))
		return true
	}
	base := context.WithoutCancel(ctx)
	actx, cancel := context.WithCancelCause(base)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(ErrShutdown) })()
	a := &attempt{d: d, lease: newLease(w.now, until), member: w.member, cancel: cancel, run: protocol.Running{
		Job: id, Phase: p, N: n, Sequence: d.Sequence, Delivery: d.Delivered, Since: time.Now(),
	}}
	actx, a.span = instrument.StartShard(instrument.Propagator().Extract(actx, protocol.Carrier(d.Header)), w.cfg.Record.Tracer(), instrument.ShardAttempt{
		Job: string(id), Phase: p.String(), Pool: w.cfg.Pool, Worker: w.cfg.Name, N: n,
		Sequence: d.Sequence, Delivery: uint64(d.Delivered), Every: headerUint(d.Header, protocol.HeaderEvery),
	}, a.run.Since)
	w.member.begin(a)
	defer w.member.end(a)
	w.announce(a, false, nil)
	err := w.perform(actx, a)
	if err == nil {
		err = w.commit(actx, base, a)
	}
	if err != nil {
		w.giveBack(actx, base, a, err)
	}
	w.release(a)
	return !a.unfit
}

// release gives up the attempt's hold on its job, if it has one.
func (w *Worker) release(a *attempt) {
	if a.job != nil {
		w.jobs.release(a.job)
		a.job = nil
	}
}

// perform decodes the shard and has the engine execute it.
func (w *Worker) perform(ctx context.Context, a *attempt) error {
	if err := a.Check(); err != nil {
		return err
	}
	if len(a.d.Header[protocol.HeaderWire]) == 0 {
		return unreadable(fault.New(fault.Corrupt, "it does not say its wire version"))
	}
	if v := headerUint(a.d.Header, protocol.HeaderWire); v != protocol.WireMajor {
		return fault.New(fault.Transient, "shard is of wire version %d, this worker speaks %d; run the same major release on both", v, protocol.WireMajor)
	}
	data := a.d.Data
	if name := a.d.Header[protocol.HeaderObject]; len(name) > 0 {
		var err error
		if data, err = w.queue.Object(ctx, name[0]); err != nil {
			return err
		}
	}
	s := &protocol.ShardMsg{}
	err := protocol.Decode(data, protocol.TypeShard, s)
	if err == nil && (protocol.JobID(s.GetJob()) != a.run.Job || protocol.Phase(s.GetPhase()) != a.run.Phase || s.GetN() != a.run.N) {
		err = fault.New(fault.Corrupt, "shard says that it is %s/%d/%d", s.GetJob(), s.GetPhase(), s.GetN())
	}
	if err != nil {
		return unreadable(err)
	}
	a.shard = s
	a.job, err = w.openJob(ctx, a.run.Job, a.shard.GetOptions(), a.run.Phase == protocol.PhaseCleanup)
	if errors.Is(err, errNoMark) && a.run.Phase == protocol.PhaseCleanup && a.d.Delivered > 1 {
		// An earlier attempt removed the mark and published no result.
		a.outcome = &engine.Outcome{}
		return nil
	}
	if err != nil {
		return err
	}
	a.generation = w.jobs.generation(a.job)
	if err := a.job.roots.CheckRoots(); err != nil {
		return err
	}
	began := time.Now()
	a.executed.Store(true)
	if a.run.Phase == protocol.PhaseCleanup {
		a.outcome = &engine.Outcome{}
		return a.job.roots.RemoveNonce(a.job.nonce)
	}
	b, err := batch(a.shard, a.d)
	if err != nil {
		return unreadable(err)
	}
	before, err := a.job.checkMounts(b)
	if err != nil {
		return err
	}
	out, err := a.job.roots.Run(ctx, b, a)
	if err == nil {
		// What was mounted or unmounted meanwhile may have hidden what it looked for.
		err = a.job.stillMounted(b, before)
	}
	if err != nil {
		return err
	}
	a.took = time.Since(began)
	a.outcome = out
	if why, alike := failsAlike(b, out); alike && w.doubts(a) {
		a.unfit = true
		return fault.New(fault.Transient, "all %d entries failed alike, which may be this worker's mounts: %s", len(out.Failures), why)
	}
	return nil
}

// alikeMost bounds what a worker remembers of shards that failed alike.
const alikeMost = 1000

// doubts reports whether another worker is to try a shard all of whose entries failed
// alike. A worker that fails fast may get the same shard again before others ask.
func (w *Worker) doubts(a *attempt) bool {
	peers := w.member.hasPeers()
	w.mu.Lock()
	defer w.mu.Unlock()
	again := w.alike[a.d.Subject]
	if len(w.alike) >= alikeMost {
		clear(w.alike)
	}
	w.alike[a.d.Subject] = true
	return a.d.Delivered == 1 || (again && peers && a.d.Delivered <= giveUpAfter)
}

// failsAlike reports whether every entry of the batch failed with the same errno,
// and returns the reason of the first.
func failsAlike(b *engine.Batch, out *engine.Outcome) (reason string, alike bool) {
	if len(out.Failures) == 0 || len(out.Failures) < len(b.Entries) {
		return "", false
	}
	first := out.Failures[0]
	for _, f := range out.Failures {
		if f.Errno == 0 || f.Errno != first.Errno {
			return "", false
		}
	}
	return first.Reason, true
}

// conclude ends an attempt. It calls tell, which answers the delivery, and records the
// attempt. With an err the attempt has no result, and heartbeats say so. Only the first
// call for an attempt does anything: an attempt that was left behind at shutdown may
// return hours later.
func (w *Worker) conclude(ctx context.Context, a *attempt, o instrument.Outcome, err error, tell func()) {
	if a.concluded.CompareAndSwap(false, true) {
		tell()
		w.record(ctx, a, o, err)
		if err != nil {
			w.member.noteEnded(w.event(a, true, err))
		}
	}
}

// giveBack concludes an attempt that has no result. ctx is that of the attempt; base
// outlives it.
func (w *Worker) giveBack(ctx, base context.Context, a *attempt, err error) {
	// The state of the attempt decides first: err may be a guard's, wrapped in what the
	// engine was doing.
	switch {
	case a.lapsed() || fault.Is(err, fault.Stale) || errors.Is(err, errLapsed):
		// Another worker may have the shard already: no ack, no nak, no result.
		w.conclude(base, a, instrument.Stale, err, func() {
			w.log.Warn("shard abandoned: its lease has ended", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "delivery", a.run.Delivery)
		})
	case a.cancelled() || errors.Is(err, errJobCancelled):
		w.conclude(base, a, instrument.Canceled, err, func() {
			w.logIf("term", w.queue.Term(a.d, "the job was cancelled"))
			w.announce(a, true, err)
		})
	case errors.Is(err, ErrShutdown) || fault.Is(err, fault.Canceled):
		w.handBack(base, a, 0, ErrShutdown)
	case a.hopeless(err):
		w.failAll(ctx, base, a, err)
	default:
		delay := w.judge(a, err)
		w.log.Warn("shard handed back", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "delivery", a.run.Delivery, "retry_in", delay, "error", err)
		w.handBack(base, a, delay, err)
	}
}

// handBack concludes an attempt whose shard is delivered again after delay.
func (w *Worker) handBack(ctx context.Context, a *attempt, delay time.Duration, err error) {
	w.conclude(ctx, a, instrument.Returned, err, func() {
		w.logIf("nak", w.queue.Nak(a.d, delay))
		w.announce(a, true, err)
	})
}

const (
	// retryRoom is after how long a shard is offered again for which the
	// destination had no room.
	retryRoom = 5 * time.Second
	// retryOther is the same for other reasons, from the second delivery on.
	retryOther = time.Second
	// giveUpAfter is how many deliveries of a shard may end with an error that
	// waiting does not explain before it counts as failed.
	giveUpAfter = 5
)

// judge returns when the shard of an attempt that failed is to be offered again, and
// notes what it says of this worker.
func (w *Worker) judge(a *attempt, err error) time.Duration {
	firstTime := a.run.Delivery == 1
	switch kindOf(err) {
	case fault.Exhausted:
		// The worker serves other jobs as before. Its own mount may be to blame, so
		// another worker tries at once.
		a.unfit = true
		if firstTime && w.member.hasPeers() {
			return 0
		}
		return retryRoom
	case fault.Denied, fault.NotFound, fault.Unavailable, fault.Invalid:
		a.unfit = true
		w.member.noteUnfit(a.run.Job, err.Error(), 2*mostPause)
		return 0 // for another worker; this one waits before it asks again
	}
	if firstTime && fault.KindOf(err) != fault.Corrupt { // which another would find as well
		return 0
	}
	return retryOther
}

// hopeless reports whether trying again is no use: the shard fails again and again
// for a reason that waiting does not explain.
func (a *attempt) hopeless(err error) bool {
	switch kindOf(err) {
	case fault.Exhausted, fault.Denied, fault.NotFound, fault.Unavailable, fault.Invalid, fault.Transient, fault.Corrupt:
		return false
	}
	return a.run.Delivery >= giveUpAfter && a.shard != nil
}

// kindOf is what err says of an attempt: that a stream is gone is NATS's, not what
// this worker has mounted.
func kindOf(err error) fault.Kind {
	if errors.Is(err, bus.ErrNoStream) {
		return fault.Transient
	}
	return fault.KindOf(err)
}

// failAll concludes an attempt with a result that fails all entries of the shard.
func (w *Worker) failAll(ctx, base context.Context, a *attempt, cause error) {
	w.log.Error("shard fails again and again, its entries count as failed", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "error", cause)
	a.outcome = nil
	res, fails := protocol.FailWhole(a.shard, cause.Error())
	err := w.publish(ctx, base, a, answer{res, fails})
	switch {
	case err == nil:
	case a.lapsed() || a.cancelled():
		w.giveBack(ctx, base, a, err)
	default:
		w.handBack(base, a, retryOther, err)
	}
}

// event describes the beginning of an attempt, or its end without a result.
func (w *Worker) event(a *attempt, end bool, cause error) protocol.AttemptEvent {
	e := protocol.AttemptEvent{Running: a.run, Worker: w.cfg.Name, Instance: w.member.instance, End: end, Executed: end && a.executed.Load()}
	if cause != nil {
		e.Reason, e.Kind = cause.Error(), fault.KindOf(cause).String()
	}
	return e
}

// announce sends an event to the coordinator at once. Nobody confirms it, so
// heartbeats repeat each end. An attempt whose lease has lapsed announces nothing.
func (w *Worker) announce(a *attempt, end bool, cause error) {
	data, err := rawjson.Marshal(w.event(a, end, cause))
	if err == nil {
		err = w.queue.Send(protocol.SubjectAttempt, data)
	}
	w.logIf("announce attempt", err)
}

// logIf logs an error that nobody else handles: the cluster goes on without the message.
func (w *Worker) logIf(what string, err error) {
	if err != nil {
		w.log.Debug("message not sent", "what", what, "error", err)
	}
}

// record ends the attempt's span and counts it.
func (w *Worker) record(ctx context.Context, a *attempt, o instrument.Outcome, err error) {
	r := instrument.ShardRecord{Phase: a.run.Phase.String(), Pool: w.cfg.Pool, Worker: w.cfg.Name, Outcome: o, Duration: time.Since(a.run.Since)}
	// With any other outcome the slot may still be writing a.outcome.
	if (o == instrument.Done || o == instrument.Failed) && a.outcome != nil {
		c := a.outcome.Counts
		r.FilesCopied, r.DirsCopied, r.BytesCopied = c.FilesCopied, c.DirsCopied, c.BytesCopied
		r.FilesFailed, r.DirsFailed, r.Deleted, r.Links, r.Skipped = c.FilesFailed, c.DirsFailed, c.Deleted, c.Links, c.Skipped
	}
	w.metrics.Shard(ctx, r)
	a.span.End(time.Now(), r, err)
}

func headerUint(h map[string][]string, key string) uint64 {
	if v := h[key]; len(v) > 0 {
		if n, err := strconv.ParseUint(v[0], 10, 64); err == nil {
			return n
		}
	}
	return 0
}

// parseShardSubject is the inverse of protocol.ShardSubject.
func parseShardSubject(s string) (protocol.JobID, protocol.Phase, uint64, bool) {
	f := strings.Split(s, ".")
	if len(f) != 7 || f[0] != "fsb" || f[1] != "shard" {
		return "", 0, 0, false
	}
	p, err1 := strconv.ParseUint(f[5], 10, 8)
	n, err2 := strconv.ParseUint(f[6], 10, 64)
	return protocol.JobID(f[4]), protocol.Phase(p), n, err1 == nil && err2 == nil
}

// unreadable is the error of a shard that cannot be decoded. What it was to do only
// the coordinator knows: it hears of it, and answers the shard in the worker's place.
func unreadable(err error) error {
	return fault.New(fault.Corrupt, "the shard cannot be read: %w", err)
}
