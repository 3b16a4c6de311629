package coordinator

import (
	"context"
	"errors"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/folder"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A job ends in one way, whatever ends it. First the ending is made durable. From
// then on nothing of the job is published, and its queue is purged. The leader waits
// until no attempt can act, and folds every result that came until then. It records
// which entries have a result. A worker removes the job's mark. Then the leader
// writes the final record. The history, exit codes and statistics go by that
// record, and not by the name of the job's state.

// errOver says that something else has ended the job already.
var errOver = errors.New("the job is over already")

// becauseOf is the ending of a job that an error keeps from going on.
func becauseOf(err error) protocol.Ending {
	return protocol.Ending{State: protocol.StateFailed, Reason: err.Error(), Kind: fault.KindOf(err).String()}
}

// beginEnding makes it durable that a job ends, and stops its work. The error
// wraps errOver where the job ends or has ended already.
func (c *Coordinator) beginEnding(ctx context.Context, id protocol.JobID, e protocol.Ending) error {
	e.Since = c.now()
	err := c.rec.Change(ctx, id, func(rec *protocol.JobRecord) error {
		if rec.State.Over() {
			return errors.Join(errOver, records.AlreadyEnded(*rec))
		}
		rec.State, rec.Reason, rec.Ending = protocol.StateEnding, e.Reason, &e
		return nil
	})
	if err != nil {
		return err
	}
	if e.State != protocol.StateCompleted {
		c.log.Info("job is ending", "job", id, "as", e.State, "reason", e.Reason)
	}
	if r := c.runner(id); r != nil {
		if stop := r.stopWork.Load(); stop != nil {
			(*stop)(errEnding)
		}
	}
	c.publishEvent(id, true)
	return nil
}

// endSoon is beginEnding for those who must not wait: it goes on in its own
// goroutine.
func (c *Coordinator) endSoon(ctx context.Context, id protocol.JobID, e protocol.Ending) {
	c.mu.Lock()
	group := c.group
	c.mu.Unlock()
	group.Go(func() error {
		if err := c.beginEnding(ctx, id, e); err != nil && !errors.Is(err, errOver) && ctx.Err() == nil {
			c.log.Warn("a job cannot be ended, it runs on", "job", id, "reason", e.Reason, "error", err)
		}
		return nil
	})
}

// cannotGoOn ends a job that can never be done.
func (c *Coordinator) cannotGoOn(ctx context.Context, id protocol.JobID, err error) {
	c.endSoon(ctx, id, becauseOf(err))
}

// checkFailFast ends a job that asked to stop at its first failure.
func (c *Coordinator) checkFailFast(ctx context.Context, id protocol.JobID) {
	j, _ := c.rec.Job(id)
	if !j.Record.Spec.FailFast || j.Record.State != protocol.StateRunning || folder.Tolerated(j.Record.Spec, j.Stats) {
		return
	}
	c.endSoon(ctx, id, protocol.Ending{State: protocol.StateFailed, Reason: "stopped at the first failure, as asked with fail_fast"})
}

// end takes an ending job to its final record. Each step may be repeated: a
// leader that takes the job over begins with the first.
func (r *runner) end(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		r.fence, r.stopPublishing, r.awaitQuiet, r.admitRest, r.settleFiles, r.cleanUp, r.writeEnd,
	} {
		if err := r.persist(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

// persist repeats a step while NATS or a store cannot be used.
func (r *runner) persist(ctx context.Context, step func(context.Context) error) error {
	for {
		err := step(ctx)
		if err == nil || ctx.Err() != nil || fault.Is(err, fault.Stale) {
			return err
		}
		r.c.rec.Stall(r.id, records.StallPublish, "the job cannot be ended: "+err.Error())
		if !bus.Sleep(ctx, records.RetryWait) {
			return context.Cause(ctx)
		}
	}
}

// fence has every batch refused that a leader before may have under way.
func (r *runner) fence(ctx context.Context) error {
	if r.tookOver {
		return nil
	}
	err := r.takeOver(ctx)
	if fault.Is(err, fault.Corrupt) {
		// Nobody can publish on top of it either.
		r.log.Error("the cursor of an ending job cannot be read, its control files count as not executed", "job", r.id, "error", err)
		return nil
	}
	return err
}

// isCleanedUp reports whether a leader before has come to the last shard of an
// ending job: then nothing else of it is queued or runs, and what has a result is
// written down.
func (r *runner) isCleanedUp() bool { return r.pub.Cursor().Phase == protocol.PhaseCleanup }

// stopPublishing removes what is queued.
func (r *runner) stopPublishing(ctx context.Context) error {
	if r.isCleanedUp() {
		return nil
	}
	return r.pub.Purge(ctx)
}

// awaitQuiet waits until no attempt can act. Then it waits until all results are
// folded.
func (r *runner) awaitQuiet(ctx context.Context) error {
	if r.isCleanedUp() {
		return nil
	}
	if err := r.c.roster.AwaitQuiet(ctx, r.id); err != nil {
		return err
	}
	return r.c.fold.CatchUp(ctx, r.id)
}

// cleanUp has a worker remove the job's mark from its destination. A job that has
// done everything waits for that. Any other job waits for two leases at most: its
// destination or its workers may be gone.
func (r *runner) cleanUp(ctx context.Context) error {
	if !r.isCleanedUp() {
		r.pub.GiveUpOpen()
	}
	rec := r.record()
	if rec.Nonce == "" {
		return nil
	}
	if !r.tookOver {
		return r.leaveMark(ctx, rec)
	}
	wait := ctx
	if rec.Ending == nil || rec.Ending.State != protocol.StateCompleted {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeoutCause(ctx, 2*r.c.cfg.Timing.Lease, errMarkLeft)
		defer cancel()
	}
	err := r.pub.Publish(wait, protocol.PhaseCleanup)
	if err == nil {
		err = r.await(wait, func(t state.Tx, _ state.Job) bool { return t.Phase(r.id, protocol.PhaseCleanup).Complete() })
	}
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(wait), errMarkLeft) {
		if err := r.pub.Purge(ctx); err != nil {
			return err
		}
		return r.leaveMark(ctx, rec)
	}
	return err
}

// leaveMark makes it durable that the job's mark may still be in its destination. The
// next job there has it removed.
func (r *runner) leaveMark(ctx context.Context, rec protocol.JobRecord) error {
	r.log.Warn("no worker took the job's mark out of its destination, the next job there has it removed", "job", r.id, "file", ".fsbackup-"+rec.Nonce)
	return r.c.rec.Save(ctx, r.id, func(rec *protocol.JobRecord) { rec.MarkLeft = true })
}

var errMarkLeft = errors.New("no worker took the job's mark out of its destination in time")

// writeEnd makes the job final.
func (r *runner) writeEnd(ctx context.Context) error {
	now := r.c.now()
	var stats protocol.Stats
	var warnings []protocol.Warning
	rec := r.record()
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		stats, warnings = folder.Figures(t, j, now), folder.Warnings(j.Warnings)
	})
	final, reason := protocol.StateFailed, rec.Reason
	if rec.Ending != nil {
		final = rec.Ending.State
	}
	if final == protocol.StateCompleted && !folder.Tolerated(rec.Spec, stats) {
		final = protocol.StateFailed
	}
	if final == protocol.StateCompleted && !rec.Answered {
		final, reason = protocol.StateFailed, "entries have no result"
	}
	if final == protocol.StateFailed && reason == "" {
		reason = folder.Reason(stats)
	}
	err := r.c.rec.Save(ctx, r.id, func(rec *protocol.JobRecord) {
		rec.State, rec.Reason, rec.Ended = final, reason, now
		rec.Stats, rec.Warnings = &stats, warnings
	})
	if err != nil {
		return err
	}
	r.pub.DropLarge(ctx)
	if err := r.c.rec.Dismantle(ctx, r.id); err != nil && ctx.Err() == nil {
		r.log.Debug("what an ended job does not need stays for now", "job", r.id, "error", err)
	}
	r.log.Info("job has ended", "job", r.id, "state", final, "reason", reason, "files", stats.FilesCopied, "bytes", stats.BytesCopied,
		"failures", stats.Failures(), "not_attempted", stats.Unattempted())
	r.c.publishEvent(r.id, true)
	r.c.rec.PokeAll() // a queued job may have waited for this one
	return nil
}
