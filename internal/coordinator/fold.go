package coordinator

import (
	"context"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// foldResults follows the stream of results without end, from the checkpoints
// on. caughtUp is closed once all that was stored at its start is folded.
func (c *Coordinator) foldResults(ctx context.Context, caughtUp chan<- struct{}) error {
	at, err := c.cfg.Bus.StreamState(ctx, protocol.StreamResults)
	if err != nil {
		return err
	}
	from, err := c.loadCheckpoints(ctx, at.LastSeq)
	if err != nil {
		return err
	}
	c.folding.Lock()
	c.folded = from
	c.folding.Unlock()
	waiting, err := c.cfg.Bus.HasFrom(ctx, protocol.StreamResults, protocol.SubjectsResults, from+1)
	if err != nil {
		return err
	}
	c.log.Info("results are read", "after", from, "last", at.LastSeq)
	if !waiting {
		close(caughtUp)
	}
	return c.cfg.Bus.Tail(ctx, protocol.StreamResults, protocol.SubjectsResults, from+1, func(m bus.Stored) error {
		c.fold(ctx, m)
		if waiting && (m.Pending == 0 || m.Sequence >= at.LastSeq) {
			waiting = false
			close(caughtUp)
		}
		return nil
	})
}

// fold adds one stored result to its job.
func (c *Coordinator) fold(ctx context.Context, m bus.Stored) {
	id, p, n, ok := protocol.ParseResultSubject(m.Subject)
	if !ok {
		c.log.Warn("result with an unknown subject ignored", "subject", m.Subject)
		c.advance(m.Sequence, func() {})
		return
	}
	r := &protocol.ResultMsg{}
	if err := protocol.Decode(m.Data, protocol.TypeResult, r); err != nil {
		// It cannot be replaced, so it counts: as a failed shard of which no more
		// is known.
		c.log.Error("result cannot be read, its shard counts as failed", "job", id, "phase", p, "shard", n, "error", err)
		r = &protocol.ResultMsg{Failures: 1, Counts: &protocol.CountsMsg{FilesFailed: 1}}
	}
	r.Job, r.Phase, r.N = string(id), uint32(p), n
	folded := false
	c.advance(m.Sequence, func() {
		c.update(func(t state.Tx) {
			var open bool
			if folded, open = t.Fold(r); open {
				// Within the update, so that no shard is both counted by an account that
				// is just opened and answered before it.
				c.ledger.answered(id, 1)
			}
		})
	})
	if !folded {
		return
	}
	c.tel.folded(ctx, p, r)
	if run := c.runner(id); run != nil {
		run.poke()
		c.checkFailFast(ctx, run)
	}
	c.publishEvent(id, false)
}

// advance folds a result and notes its sequence, both in one step for whoever
// makes a checkpoint.
func (c *Coordinator) advance(sequence uint64, fold func()) {
	c.folding.Lock()
	defer c.folding.Unlock()
	fold()
	c.folded = max(c.folded, sequence)
	if c.sinceMany++; c.sinceMany >= c.cfg.CheckpointEvery {
		c.sinceMany = 0
		select {
		case c.foldedMany <- struct{}{}:
		default:
		}
	}
}

// checkFailFast cancels a job that asked to stop at its first failure.
func (c *Coordinator) checkFailFast(ctx context.Context, r *runner) {
	j := r.job()
	if !j.Record.Spec.FailFast || j.Record.State != protocol.StateRunning || tolerated(j.Record.Spec, j.Stats) {
		return
	}
	c.mu.Lock()
	group := c.group
	c.mu.Unlock()
	group.Go(func() error {
		if err := c.cancelJob(ctx, r.id, "stopped at the first failure, as asked with fail_fast", true); err != nil && !fault.Is(err, fault.Invalid) {
			c.log.Warn("fail_fast cannot stop the job, it runs on", "job", r.id, "error", err)
		}
		return nil
	})
}
