package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

var (
	errJobCancelled = fault.New(fault.Canceled, "the job was cancelled")
	errLapsed       = fault.New(fault.Stale, "the lease of the shard has ended")
)

const (
	// retryRoom is after how long a shard is offered again for which the
	// destination had no room.
	retryRoom = 5 * time.Second
	// giveUpAfter is how many deliveries of a shard may end with an error that
	// waiting does not explain before it counts as failed.
	giveUpAfter = 5
)

// attempt is one delivery of a shard in execution. It is the engine's guard.
type attempt struct {
	w      *Worker
	base   context.Context //nolint:containedctx // values for what outlives the attempt's own context
	d      *bus.Delivery
	run    protocol.Running
	cancel context.CancelCauseFunc
	span   *instrument.ShardSpan

	mu    sync.Mutex
	lease time.Duration // boot time until which it may act; guarded by mu
	stale bool          // once lapsed, a lease is never renewed; guarded by mu

	shard   *protocol.ShardMsg
	job     *openJob
	outcome *engine.Outcome
	took    time.Duration
	unfit   bool          // this worker could not serve the job
	settled chan struct{} // closed when the commit has dealt with it
}

// Check implements engine.Guard: it returns an error once the attempt must not
// act any more.
func (a *attempt) Check() error {
	now := bootTime()
	w := a.w
	w.mu.Lock()
	own, cancelled := w.lease, w.cancelled[a.run.Job] && a.run.Phase != protocol.PhaseCleanup
	w.mu.Unlock()
	if cancelled {
		return errJobCancelled
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if (a.stale || now >= a.lease || now >= own) && !mutant.Off(mutant.Lease) {
		a.stale = true
		return errLapsed
	}
	return nil
}

// extend renews the lease if it has not lapsed and the server confirms in time.
func (a *attempt) extend(ctx context.Context, t protocol.Timing) {
	if a.Check() != nil {
		return
	}
	sent := bootTime()
	// A confirmation that took longer could come from after a second delivery.
	ctx, cancel := context.WithTimeout(ctx, (t.AckWait-t.Lease)/2)
	defer cancel()
	if err := a.d.InProgress(ctx); err != nil {
		return // the lease runs on until its end; the next heartbeat tries again
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.stale && bootTime() < a.lease {
		a.lease = max(a.lease, sent+t.Lease)
	}
}

// extendAll renews the leases of all running attempts.
func (w *Worker) extendAll(ctx context.Context) {
	w.mu.Lock()
	t := w.timing
	running := make([]*attempt, 0, len(w.running))
	for a := range w.running {
		running = append(running, a)
	}
	w.mu.Unlock()
	var wg sync.WaitGroup
	for _, a := range running {
		wg.Go(func() { a.extend(ctx, t) })
	}
	wg.Wait()
}

// execute runs one delivery to its end: a result, or the shard handed back, or,
// where the lease has ended, nothing at all. It reports false where this worker
// cannot serve the job.
func (w *Worker) execute(ctx context.Context, d *bus.Delivery, lease time.Duration) bool {
	id, p, n, ok := parseShardSubject(d.Subject)
	if !ok {
		w.log.Error("message with an unknown subject taken out of the queue", "subject", d.Subject)
		w.logIf("term", d.Term("unknown subject"))
		return true
	}
	actx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(ErrShutdown) })
	defer stop()
	a := &attempt{w: w, base: context.WithoutCancel(ctx), d: d, cancel: cancel, lease: lease, settled: make(chan struct{}), run: protocol.Running{
		Job: id, Phase: p, N: n, Sequence: d.Sequence, Delivery: d.Delivered, Since: time.Now(),
	}}
	w.mu.Lock()
	w.running[a] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.running, a)
		told := w.cancelled[id]
		w.closeEnded(id, a)
		w.mu.Unlock()
		if told {
			w.beatNow()
		}
	}()
	w.announce(a, false, nil)
	sctx := instrument.Propagator().Extract(actx, protocol.Carrier(d.Header))
	sctx, a.span = instrument.StartShard(sctx, w.cfg.Record.Tracer(), instrument.ShardAttempt{
		Job: string(id), Phase: p.String(), Pool: w.cfg.Pool, Worker: w.cfg.Name, N: n,
		Sequence: d.Sequence, Delivery: uint64(d.Delivered), Every: headerUint(d.Header, protocol.HeaderEvery),
	}, a.run.Since)
	err := w.perform(sctx, a)
	if err == nil {
		// The commit settles it, also when it cannot publish.
		select {
		case w.commits <- a:
			<-a.settled
		case <-actx.Done():
			err = context.Cause(actx)
		}
	}
	if err != nil {
		w.giveBack(a, err)
	}
	return !a.unfit
}

// perform decodes the shard and has the engine execute it.
func (w *Worker) perform(ctx context.Context, a *attempt) error {
	if err := a.Check(); err != nil {
		return err
	}
	if len(a.d.Header[protocol.HeaderWire]) == 0 {
		a.failWhole(fault.New(fault.Corrupt, "it does not say its wire version"))
		return nil
	}
	if v := headerUint(a.d.Header, protocol.HeaderWire); v != protocol.WireMajor {
		return fault.New(fault.Transient, "shard is of wire version %d, this worker speaks %d; run the same major release on both", v, protocol.WireMajor)
	}
	data := a.d.Data
	if name := a.d.Header[protocol.HeaderObject]; len(name) > 0 {
		objects, err := w.cfg.Bus.Objects(ctx, protocol.BucketObjects)
		if err != nil {
			return err
		}
		if data, err = objects.GetBytes(ctx, name[0], protocol.MaxRaw); err != nil {
			return err
		}
	}
	a.shard = &protocol.ShardMsg{}
	err := protocol.Decode(data, protocol.TypeShard, a.shard)
	if err == nil && (protocol.JobID(a.shard.GetJob()) != a.run.Job || protocol.Phase(a.shard.GetPhase()) != a.run.Phase || a.shard.GetN() != a.run.N) {
		err = fault.New(fault.Corrupt, "shard says that it is %s/%d/%d", a.shard.GetJob(), a.shard.GetPhase(), a.shard.GetN())
	}
	if err != nil {
		a.failWhole(err)
		return nil
	}
	a.job, err = w.openJob(ctx, a.run.Job, a.shard.GetOptions())
	if errors.Is(err, errNoMark) && a.run.Phase == protocol.PhaseCleanup && a.d.Delivered > 1 {
		// An attempt before has removed the mark and did not live to say so.
		a.outcome = &engine.Outcome{}
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.job.eng.CheckRoots(); err != nil {
		return err
	}
	began := time.Now()
	if a.run.Phase == protocol.PhaseCleanup {
		a.outcome = &engine.Outcome{}
		return a.job.eng.RemoveNonce(a.job.nonce)
	}
	b, err := batch(a.shard, a.d)
	if err != nil {
		a.outcome = unreadable(err)
		return nil
	}
	out, err := a.job.eng.Run(ctx, b, a)
	if err != nil {
		return err
	}
	a.took = time.Since(began)
	a.outcome = out
	if why := failsAlike(b, out); why != "" && w.doubts(a) {
		a.unfit = true
		return fault.New(fault.Transient, "all %d entries failed alike, which may be this worker's mounts: %s", len(out.Failures), why)
	}
	return nil
}

// alikeMost bounds what a worker remembers of shards that failed alike.
const alikeMost = 1000

// doubts reports whether a shard all of whose entries failed alike goes to another
// worker before that counts. One that fails fast gets it back before others do.
func (w *Worker) doubts(a *attempt) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	again := w.alike[a.d.Subject]
	if len(w.alike) >= alikeMost {
		clear(w.alike)
	}
	w.alike[a.d.Subject] = true
	return a.d.Delivered == 1 || (again && w.peers > 0 && a.d.Delivered <= giveUpAfter)
}

// failWhole is the outcome of a shard that cannot be read. Delivered again it
// would be the same bytes: it fails now.
func (a *attempt) failWhole(err error) {
	a.shard = &protocol.ShardMsg{Job: string(a.run.Job), Phase: uint32(a.run.Phase), N: a.run.N}
	a.outcome = unreadable(err)
}

// failsAlike returns the common reason if every entry of the batch failed with
// the same errno.
func failsAlike(b *engine.Batch, out *engine.Outcome) string {
	if len(out.Failures) == 0 || len(out.Failures) < len(b.Entries) {
		return ""
	}
	first := out.Failures[0]
	for _, f := range out.Failures {
		if f.Errno == 0 || f.Errno != first.Errno {
			return ""
		}
	}
	return first.Reason
}

// giveBack ends an attempt that has no result.
func (w *Worker) giveBack(a *attempt, err error) {
	// A guard's error comes wrapped in what the engine was doing; the causes of
	// the attempt's own end decide.
	stale := fault.Is(err, fault.Stale) || errors.Is(err, errLapsed)
	if check := a.Check(); check != nil && fault.Is(check, fault.Stale) {
		stale = true
	}
	outcome := instrument.Returned
	switch {
	case stale:
		// Another worker may have it already: neither ack nor nak nor result.
		outcome = instrument.Stale
		w.log.Warn("shard abandoned: its lease has ended", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "delivery", a.run.Delivery)
	case a.run.Phase != protocol.PhaseCleanup && (w.isCancelled(a.run.Job) || errors.Is(err, errJobCancelled)):
		outcome = instrument.Canceled
		w.logIf("term", a.d.Term("the job was cancelled"))
		w.announce(a, true, err)
	case errors.Is(err, ErrShutdown) || fault.Is(err, fault.Canceled):
		w.logIf("nak", a.d.Nak(0))
		w.announce(a, true, ErrShutdown)
	default:
		outcome = w.postpone(a, err)
	}
	w.record(a, outcome, err)
}

// postpone hands a shard back, or fails it where trying again is no use.
func (w *Worker) postpone(a *attempt, err error) instrument.Outcome {
	delay := time.Second
	switch fault.KindOf(err) {
	case fault.Exhausted:
		// The announced end says why; the worker serves other jobs as before. It may
		// be its own mount: another tries at once.
		if w.hasPeers() && a.run.Delivery == 1 {
			delay = 0
		} else {
			delay = retryRoom
		}
		a.unfit = true
	case fault.Denied, fault.NotFound, fault.Unavailable, fault.Invalid:
		delay = 0 // for another worker; this one waits before it asks again
		a.unfit = true
		w.noteUnfit(a.run.Job, err.Error(), 2*mostPause)
	default:
		if a.run.Delivery >= giveUpAfter && a.shard != nil && !fault.Is(err, fault.Transient) {
			w.log.Error("shard fails again and again, its entries count as failed", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "error", err)
			a.outcome = nil
			w.settleFailed(a, err)
			return instrument.Failed
		}
		if a.run.Delivery == 1 {
			delay = 0
		}
	}
	w.log.Warn("shard handed back", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N, "delivery", a.run.Delivery, "retry_in", delay, "error", err)
	w.logIf("nak", a.d.Nak(delay))
	w.announce(a, true, err)
	return instrument.Returned
}

// hasPeers reports whether other workers could take a shard in this one's place.
func (w *Worker) hasPeers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peers > 0
}

func (w *Worker) isCancelled(id protocol.JobID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cancelled[id]
}

func (w *Worker) noteUnfit(id protocol.JobID, reason string, d time.Duration) {
	w.mu.Lock()
	_, known := w.unfit[id]
	w.unfit[id] = unfitness{reason: reason, until: time.Now().Add(d + w.timing.Heartbeat)}
	w.mu.Unlock()
	if !known {
		w.beatNow()
	}
}

func (w *Worker) noteFit(id protocol.JobID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.unfit, id)
}

// announce tells the coordinator that an attempt has begun, or ended without a result.
func (w *Worker) announce(a *attempt, end bool, cause error) {
	e := protocol.AttemptEvent{Running: a.run, Worker: w.cfg.Name, End: end}
	if cause != nil {
		e.Reason, e.Kind = cause.Error(), fault.KindOf(cause).String()
	}
	data, err := json.Marshal(e)
	if err == nil {
		err = w.cfg.Bus.Send(protocol.SubjectAttempt, data)
	}
	w.logIf("announce attempt", err)
}

// logIf logs what has no other consumer: the cluster goes on without it.
func (w *Worker) logIf(what string, err error) {
	if err != nil {
		w.log.Debug("the cluster was not told", "what", what, "error", err)
	}
}

// record ends the attempt's span and counts it.
func (w *Worker) record(a *attempt, o instrument.Outcome, err error) {
	r := instrument.ShardRecord{Phase: a.run.Phase.String(), Pool: w.cfg.Pool, Worker: w.cfg.Name, Outcome: o, Duration: time.Since(a.run.Since)}
	if a.outcome != nil && (o == instrument.Done || o == instrument.Failed) {
		c := a.outcome.Counts
		r.FilesCopied, r.DirsCopied, r.BytesCopied = c.FilesCopied, c.DirsCopied, c.BytesCopied
		r.FilesFailed, r.DirsFailed, r.Deleted, r.Links, r.Skipped = c.FilesFailed, c.DirsFailed, c.Deleted, c.Links, c.Skipped
	}
	w.metrics.Shard(a.base, r)
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

// unreadable is the outcome of a shard that cannot be decoded: one failure, since
// nothing is known of its entries.
func unreadable(err error) *engine.Outcome {
	return &engine.Outcome{
		Counts:   engine.Counts{FilesFailed: 1},
		Failures: []engine.Failure{{Op: "decode shard", Kind: uint8(fault.Corrupt), Reason: fmt.Sprintf("the shard cannot be read: %v", err)}},
	}
}
