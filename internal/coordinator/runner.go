package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/publisher"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// runner takes one job from admission to its final record, in one goroutine;
// admission of its control files runs ahead in another.
type runner struct {
	c   *Coordinator
	id  protocol.JobID
	log *slog.Logger
	pub *publisher.Job

	stopWork atomic.Pointer[context.CancelCauseFunc] // ends the work of the job, not its ending
	tookOver bool                                    // the cursor is this leader's; used by the runner's goroutine only
}

// errEnding ends a runner's work so that it can end the job.
var errEnding = errors.New("the job is ending")

// record returns the job's record.
func (r *runner) record() protocol.JobRecord {
	j, _ := r.c.rec.Job(r.id)
	return j.Record
}

func (r *runner) await(ctx context.Context, cond func(state.Tx, state.Job) bool) error {
	return r.c.rec.Await(ctx, r.id, cond)
}

// run works on the job until all is done or something ends it. Then it ends the
// job. It returns an error only if this coordinator no longer leads. If the
// coordinator stops, run returns nil, and the next leader goes on with the job.
func (r *runner) run(ctx context.Context) error {
	defer r.c.forget(r)
	work, stop := context.WithCancelCause(ctx)
	defer stop(context.Canceled)
	r.stopWork.Store(&stop)
	ending := protocol.Ending{State: protocol.StateCompleted}
	if !r.record().State.Over() {
		err := r.workOn(work)
		switch {
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.Stale):
			return err
		case err != nil:
			ending = becauseOf(err)
		}
	}
	// No effect where something else has ended the job already.
	if err := r.c.beginEnding(ctx, r.id, ending); err != nil && !errors.Is(err, errOver) {
		return unlessStopped(ctx, err)
	}
	return unlessStopped(ctx, r.end(ctx))
}

func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end was asked for, and what it interrupts fails
	}
	return err
}

// workOn works on the job. While NATS or a store cannot be used it tries again: what
// is durable stays as it is.
func (r *runner) workOn(ctx context.Context) error {
	for {
		err := r.work(ctx)
		if err == nil || ctx.Err() != nil || !fault.Passing(err) {
			return err
		}
		r.c.rec.Stall(r.id, records.StallPublish, "the job cannot go on: "+err.Error())
		if !bus.Sleep(ctx, records.RetryWait) {
			return context.Cause(ctx)
		}
	}
}

func (r *runner) work(ctx context.Context) error {
	if err := r.waitForTurn(ctx); err != nil {
		return err
	}
	if err := r.takeOver(ctx); err != nil {
		return err
	}
	ctx, span := r.c.tel.startJob(ctx, r.record())
	defer span.End()

	admit, stop := context.WithCancelCause(ctx)
	var admission sync.WaitGroup
	admission.Go(func() { r.admit(admit) })
	defer func() {
		stop(context.Canceled)
		admission.Wait()
	}()

	order := protocol.Order(r.record().Spec.DeleteBefore)
	for i, p := range order {
		if p == protocol.PhaseCleanup || r.passed(order, i) {
			continue // the mark is taken away when the job ends, whatever ends it
		}
		if err := r.phase(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// takeOver makes the cursor this leader's. From then on the server stores nothing
// that another leader still sends.
func (r *runner) takeOver(ctx context.Context) error {
	if err := r.pub.TakeOver(ctx); err != nil {
		return err
	}
	r.tookOver = true
	return nil
}

// passed reports whether the cursor is beyond the i-th phase.
func (r *runner) passed(order []protocol.Phase, i int) bool {
	if slices.Contains(order[i+1:], r.pub.Cursor().Phase) {
		return true
	}
	return r.record().Phases[order[i]].Complete
}

// phase publishes a phase's shards and waits for all their results.
func (r *runner) phase(ctx context.Context, p protocol.Phase) error {
	if err := r.await(ctx, func(t state.Tx, j state.Job) bool { return decided(t, j, p) }); err != nil {
		return err
	}
	wanted := false
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		wanted = wants(t, j, p)
	})
	if !wanted {
		return nil
	}
	ctx, span := r.c.tel.startPhase(ctx, r.id, p)
	defer span.End()
	now := r.c.now()
	r.c.rec.Update(func(t state.Tx) {
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
	if err := r.pub.Publish(ctx, p); err != nil {
		return err
	}
	if err := r.await(ctx, func(t state.Tx, _ state.Job) bool { return t.Phase(r.id, p).Complete() }); err != nil {
		return err
	}
	ended := r.c.now()
	var row state.Phase
	r.c.rec.Update(func(t state.Tx) {
		row = t.Phase(r.id, p)
		row.Ended = ended
		t.PutPhase(row)
	})
	r.log.Info("phase is complete", "job", r.id, "phase", p, "shards", row.Published, "seconds", ended.Sub(row.Started).Seconds())
	err := r.c.rec.Save(ctx, r.id, func(rec *protocol.JobRecord) {
		if rec.Phases == nil {
			rec.Phases = map[protocol.Phase]protocol.PhaseRecord{}
		}
		rec.Phases[p] = protocol.PhaseRecord{Shards: row.Published, Complete: true, Bytes: r.pub.Cursor().Bytes, Started: row.Started, Ended: row.Ended}
	})
	if err != nil {
		return err
	}
	r.pub.Sweep(ctx, p)
	return nil
}

// decided reports whether it is certain if phase p has something to do: the job has
// a file for it, or the list of files is complete.
func decided(t state.Tx, j state.Job, p protocol.Phase) bool {
	if j.Record.Sealed {
		return true
	}
	if p != protocol.PhaseCopy || j.Record.Spec.DeleteBefore {
		return false // a later phase must not begin before the list of the first is complete
	}
	return wants(t, j, p)
}

// wants reports whether p has something to do in the job.
func wants(t state.Tx, j state.Job, p protocol.Phase) bool {
	if !hasPhase(j.Record.Spec, p) {
		return false
	}
	for f := range t.Files(j.Record.ID) {
		if j.Cuts(p, f.Record.Ref.Phase) {
			return true
		}
	}
	return false
}

// hasPhase reports whether a job with this spec executes control files in phase p.
// It may have none for that phase.
func hasPhase(spec protocol.JobSpec, p protocol.Phase) bool {
	switch p {
	case protocol.PhaseCleanup:
		return false
	case protocol.PhaseRmdir:
		return !spec.VerifyOnly && spec.DeleteEmpty
	case protocol.PhaseFinish:
		return !spec.VerifyOnly && !spec.KeepDirs
	}
	return spec.VerifyOnly == (p == protocol.PhaseVerify)
}

// waitForTurn keeps the job queued while an earlier job with an overlapping
// destination has not ended.
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
	if rec := r.record(); rec.State != protocol.StateQueued && !rec.Started.IsZero() {
		return nil
	}
	now := r.c.now()
	return r.c.rec.Save(ctx, r.id, func(rec *protocol.JobRecord) {
		if rec.State == protocol.StateQueued {
			rec.State = protocol.StateRunning
		}
		if rec.Started.IsZero() {
			rec.Started = now
		}
	})
}

// overlapping returns a job before j, of the same pool, that has not ended and
// whose destination contains, or lies in, that of j. The order is that in which
// the store took the jobs: ids come from clients, whose clocks differ.
func overlapping(t state.Tx, j state.Job) (protocol.JobID, bool) {
	if j.Record.Spec.AllowOverlap {
		return "", false
	}
	for o := range t.Jobs() {
		if o.Record.Spec.VerifyOnly && j.Record.Spec.VerifyOnly {
			continue // neither changes anything
		}
		if o.ID == j.ID || o.Order() >= j.Order() || o.Record.State.Final() || o.Record.Spec.AllowOverlap || o.Record.Spec.Pool != j.Record.Spec.Pool {
			continue
		}
		if entry.Within(o.Record.Spec.Destination, j.Record.Spec.Destination) || entry.Within(j.Record.Spec.Destination, o.Record.Spec.Destination) {
			return o.Record.ID, true
		}
	}
	return "", false
}
