package coordinator

import (
	"context"
	"errors"
	"slices"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// cancelJob makes a cancel durable and sets it going. failed says that the job
// ends as failed, not as cancelled.
func (c *Coordinator) cancelJob(ctx context.Context, id protocol.JobID, reason string, failed bool) error {
	err := c.transition(ctx, id, func(rec *protocol.JobRecord) error {
		if rec.State.Final() || rec.State == protocol.StateCancelling {
			return alreadyEnded(*rec)
		}
		rec.State, rec.Reason, rec.FailedFast = protocol.StateCancelling, reason, failed
		return nil
	})
	if err != nil {
		return err
	}
	c.log.Info("job is being cancelled", "job", id, "reason", reason)
	if r := c.runner(id); r != nil {
		r.mu.Lock()
		work := r.work
		r.mu.Unlock()
		if work != nil {
			work(errJobCancelled)
		}
		r.poke()
	}
	c.publishEvent(id, true)
	return nil
}

func alreadyEnded(rec protocol.JobRecord) error {
	if rec.State == protocol.StateCancelling {
		return fault.New(fault.Invalid, "job %s is being cancelled already", rec.ID)
	}
	return fault.New(fault.Invalid, "job %s has ended: %s", rec.ID, rec.State)
}

// finishCancel ends a job that is being cancelled: nothing of it is queued, then
// nothing of it runs, then it is final.
func (r *runner) finishCancel(ctx context.Context) error {
	if err := r.purgeShards(ctx); err != nil {
		return err
	}
	since := r.c.now()
	r.c.update(func(t state.Tx) {
		j, _ := t.Job(r.id)
		j.CancelledAt = since
		t.PutJob(j)
	})
	if err := r.c.cfg.Bus.Send(protocol.SubjectPoke, nil); err != nil {
		r.log.Debug("ask for heartbeats", "error", err) // they come by themselves, a little later
	}
	if err := r.await(ctx, func(t state.Tx, _ state.Job) bool { return r.idle(t) }); err != nil {
		return err
	}
	r.closeOpen()
	if err := r.cleanUp(ctx); err != nil {
		return err
	}
	rec := r.job().Record
	final := protocol.StateCancelled
	if rec.FailedFast {
		final = protocol.StateFailed
	}
	return r.end(ctx, final, rec.Reason)
}

// closeOpen gives the credit of purged shards back.
func (r *runner) closeOpen() {
	r.c.update(func(t state.Tx) {
		n := 0
		for o := range t.OpenOf(r.id) {
			if t.Close(r.id, o.Phase, o.N) {
				n++
			}
		}
		r.c.ledger.answered(r.id, n)
	})
}

// purgeShards removes what is queued; it tries until that is done.
func (r *runner) purgeShards(ctx context.Context) error {
	for {
		err := r.c.cfg.Bus.Purge(ctx, protocol.StreamShards, protocol.JobShards(r.id), 0)
		if err == nil {
			return nil
		}
		r.c.stall(r.id, stallPublish, "queued shards cannot be removed: "+err.Error())
		if !sleepOrDone(ctx) {
			return context.Cause(ctx)
		}
	}
}

// idle reports whether no live worker can still run anything of the job: each
// has said, after it was told, that it runs nothing of it, or has lost its lease.
func (r *runner) idle(t state.Tx) bool {
	for w := range t.Workers() {
		if w.Lost {
			continue
		}
		if !slices.Contains(w.Beat.Seen, r.id) {
			return false
		}
	}
	return true
}

// cleanUp takes the nonce of a cancelled job away, if a worker is there to do it.
func (r *runner) cleanUp(ctx context.Context) error {
	rec := r.job().Record
	if rec.Nonce == "" || r.c.ledger.pool(rec.Spec.Pool).slots == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.c.cfg.Timing.Lease, errCleanup)
	defer cancel()
	if err := r.readCursor(ctx); err != nil {
		return err
	}
	err := r.publish(ctx, protocol.PhaseCleanup)
	if err == nil {
		err = r.await(ctx, func(t state.Tx, _ state.Job) bool { return t.Phase(r.id, protocol.PhaseCleanup).Complete() })
	}
	if errors.Is(err, errCleanup) || errors.Is(err, context.DeadlineExceeded) {
		r.log.Warn("no worker took the job's mark out of its destination", "job", r.id, "file", ".fsbackup-"+rec.Nonce)
		return r.purgeShards(context.WithoutCancel(ctx))
	}
	return err
}

var errCleanup = errors.New("nobody cleaned up in time")
