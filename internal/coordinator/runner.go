package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// runner drives one job from admission to its final status, in one goroutine;
// admission of its control files runs ahead in another.
type runner struct {
	c    *Coordinator
	id   protocol.JobID
	log  *slog.Logger
	work context.CancelCauseFunc // ends the work of the job, not its ending

	mu      sync.Mutex
	changed chan struct{} // closed when something of the job changes

	// storing is held while a batch of the job is published, and from before it is
	// decided what is in it until the view knows.
	storing   sync.Mutex
	cursor    protocol.Cursor // as stored; written by the goroutine of run, with storing held
	cursorSeq uint64          // guarded by storing

	large sync.Map // shardID: shards of which this leader made objects that still stand

	spanEvery atomic.Uint64 // one shard in so many gets a span; changes only between feeds
}

// errJobCancelled ends a runner's work so that it can end the job.
var errJobCancelled = errors.New("the job is being cancelled")

// poke tells everybody who waits for the job to look again.
func (r *runner) poke() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

// watch returns a channel that the next poke closes.
func (r *runner) watch() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// job returns the job's row.
func (r *runner) job() state.Job {
	var j state.Job
	r.c.view(func(t state.Tx) { j, _ = t.Job(r.id) })
	return j
}

// await returns once cond holds, or with the cause of ctx.
func (r *runner) await(ctx context.Context, cond func(state.Tx, state.Job) bool) error {
	for {
		changed := r.watch()
		ok := false
		r.c.view(func(t state.Tx) {
			j, _ := t.Job(r.id)
			ok = cond(t, j)
		})
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// run drives the job. An error that the job cannot survive fails the job; one
// that says that this coordinator no longer leads is returned.
func (r *runner) run(ctx context.Context) error {
	defer r.c.forget(r.id)
	work, stop := context.WithCancelCause(ctx)
	defer stop(context.Canceled)
	r.mu.Lock()
	r.work = stop
	r.mu.Unlock()
	var err error
	if r.job().Record.State != protocol.StateCancelling {
		err = r.driveOn(work)
	}
	if ctx.Err() == nil && r.job().Record.State == protocol.StateCancelling {
		err = r.finishCancel(ctx)
	}
	switch {
	case err == nil, ctx.Err() != nil:
		return nil // where the coordinator stops, the job goes on with the next one
	case fault.Is(err, fault.Stale):
		return err
	}
	r.log.Error("job cannot go on", "job", r.id, "error", err)
	if err := r.end(ctx, protocol.StateFailed, err.Error()); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// driveOn drives the job, again and again while NATS or a store cannot be used:
// what is durable does not change by that.
func (r *runner) driveOn(ctx context.Context) error {
	for {
		err := r.drive(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		r.c.stall(r.id, stallPublish, "the job cannot go on: "+err.Error())
		if !bus.Sleep(ctx, retryWait) {
			return context.Cause(ctx)
		}
	}
}

// passing reports whether waiting explains an error away.
func passing(err error) bool {
	return fault.Is(err, fault.Transient) || fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Exhausted)
}

func (r *runner) drive(ctx context.Context) error {
	if err := r.waitForTurn(ctx); err != nil {
		return err
	}
	if err := r.readCursor(ctx); err != nil {
		return err
	}
	r.recount()
	ctx, span := r.c.tel.startJob(ctx, r.job().Record)
	defer span.End()

	admit, stop := context.WithCancelCause(ctx)
	var admission sync.WaitGroup
	admission.Go(func() { r.admit(admit) })
	defer func() {
		stop(context.Canceled)
		admission.Wait()
	}()

	order := protocol.Order(r.job().Record.Spec.DeleteBefore)
	for i, p := range order {
		if r.passed(order, i) {
			continue
		}
		if err := r.phase(ctx, p); err != nil {
			return err
		}
	}
	return r.end(ctx, "", "")
}

// passed reports whether the cursor is beyond the i-th phase.
func (r *runner) passed(order []protocol.Phase, i int) bool {
	if slices.Contains(order[i+1:], r.cursor.Phase) {
		return true
	}
	return r.job().Record.Phases[order[i]].Complete
}

// phase publishes a phase's shards and waits for all their results.
func (r *runner) phase(ctx context.Context, p protocol.Phase) error {
	if err := r.await(ctx, func(t state.Tx, j state.Job) bool { return r.known(t, j, p) }); err != nil {
		return err
	}
	var wanted bool
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		wanted = r.wanted(t, j, p)
	})
	if !wanted {
		return nil
	}
	ctx, span := r.c.tel.startPhase(ctx, r.id, p)
	defer span.End()
	now := r.c.now()
	r.c.update(func(t state.Tx) {
		j, _ := t.Job(r.id)
		j.Phase = p
		t.PutJob(j)
		row := t.Phase(r.id, p)
		if row.Started.IsZero() {
			row.Started = now
		}
		t.PutPhase(row)
	})
	r.log.Info("phase begins", "job", r.id, "phase", p)
	if err := r.publish(ctx, p); err != nil {
		return err
	}
	if err := r.await(ctx, func(t state.Tx, _ state.Job) bool { return t.Phase(r.id, p).Complete() }); err != nil {
		return err
	}
	ended := r.c.now()
	var row state.Phase
	r.c.update(func(t state.Tx) {
		row = t.Phase(r.id, p)
		row.Ended = ended
		t.PutPhase(row)
	})
	r.log.Info("phase is complete", "job", r.id, "phase", p, "shards", row.Published, "seconds", ended.Sub(row.Started).Seconds())
	err := r.c.save(ctx, r.id, func(rec *protocol.JobRecord) {
		if rec.Phases == nil {
			rec.Phases = map[protocol.Phase]protocol.PhaseRecord{}
		}
		rec.Phases[p] = protocol.PhaseRecord{Shards: row.Published, Complete: true, Bytes: r.cursor.Bytes, Started: row.Started, Ended: row.Ended}
	})
	if err != nil {
		return err
	}
	r.sweepQueue(ctx, p)
	return nil
}

// known reports whether it is decided that p has something to do: a first file
// of it, or the end of the list.
func (r *runner) known(t state.Tx, j state.Job, p protocol.Phase) bool {
	if j.Record.Sealed {
		return true
	}
	if p != protocol.PhaseCopy || j.Record.Spec.DeleteBefore {
		return false // a later phase must not begin before the list of the first is complete
	}
	return r.wanted(t, j, p)
}

// wanted reports whether p has something to do.
func (r *runner) wanted(t state.Tx, j state.Job, p protocol.Phase) bool {
	switch {
	case p == protocol.PhaseCleanup:
		return j.Record.Nonce != ""
	case j.Record.Spec.VerifyOnly != (p == protocol.PhaseVerify), p == protocol.PhaseFinish && j.Record.Spec.KeepDirs:
		return false
	}
	for f := range t.Files(r.id) {
		if cutBy(j, f.Record.Ref.Phase, p) {
			return true
		}
	}
	return false
}

// cutBy reports whether the job's phase p goes over a control file of the phase
// kind. The directories of copy files need not be compared once more by the
// lines of times files, which say less.
func cutBy(j state.Job, kind, p protocol.Phase) bool {
	if p == protocol.PhaseVerify && kind == protocol.PhaseDir && j.HasCopy {
		return false
	}
	return p.Reads(kind)
}

// waitForTurn keeps the job queued while another with an overlapping destination runs.
func (r *runner) waitForTurn(ctx context.Context) error {
	queued := false
	err := r.await(ctx, func(t state.Tx, j state.Job) bool {
		other, wait := overlapping(t, j)
		if wait && !queued {
			queued = true
			r.log.Info("job waits for another with an overlapping destination", "job", r.id, "other", other)
		}
		return !wait
	})
	if err != nil {
		return err
	}
	if r.job().Record.State != protocol.StateQueued && !r.job().Record.Started.IsZero() {
		return nil
	}
	now := r.c.now()
	return r.c.save(ctx, r.id, func(rec *protocol.JobRecord) {
		if rec.State == protocol.StateQueued {
			rec.State = protocol.StateRunning
		}
		if rec.Started.IsZero() {
			rec.Started = now
		}
	})
}

// end gives the job its final status. state "" = decide by the failures.
func (r *runner) end(ctx context.Context, final protocol.State, reason string) error {
	now := r.c.now()
	var stats protocol.Stats
	var warnings []protocol.Warning
	var rec protocol.JobRecord
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		rec = j.Record
		stats = r.c.figures(t, j, now)
		warnings = sortedWarnings(j.Warnings)
	})
	if final == "" {
		final = protocol.StateCompleted
		if failures := stats.Failures(); failures > 0 && !tolerated(rec.Spec, stats) {
			final, reason = protocol.StateFailed, failureReason(stats)
		}
	}
	err := r.c.save(ctx, r.id, func(rec *protocol.JobRecord) {
		rec.State, rec.Reason, rec.Ended = final, reason, now
		rec.Stats, rec.Warnings = &stats, warnings
	})
	if err != nil {
		return err
	}
	r.c.dropCheckpoint(ctx, r.id)
	r.dropLarge(ctx)
	r.log.Info("job has ended", "job", r.id, "state", final, "reason", reason, "files", stats.FilesCopied, "bytes", stats.BytesCopied, "failures", stats.Failures())
	r.c.publishEvent(r.id, true)
	r.c.pokeAll() // a queued job may have waited for this one
	return nil
}

// tolerated reports whether failures leave the status at completed. Control
// files that cannot be used never do.
func tolerated(spec protocol.JobSpec, s protocol.Stats) bool {
	if s.FilesRefused > 0 {
		return false
	}
	return spec.MaxFailures < 0 || s.Failures() <= uint64(spec.MaxFailures)
}

// retryWait paces what is tried again until it works.
const retryWait = time.Second
