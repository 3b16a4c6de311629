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
	var batch []answered
	return c.cfg.Bus.Tail(ctx, protocol.StreamResults, protocol.SubjectsResults, from+1, func(m bus.Stored) error {
		batch = append(batch, c.decode(m))
		// Only of what was there at the start is it known that more will come: what
		// follows later can be removed before it is read.
		if waiting && m.Pending > 0 && m.Sequence < at.LastSeq && len(batch) < foldMost {
			return nil
		}
		c.fold(ctx, batch)
		batch = batch[:0]
		if waiting && (m.Pending == 0 || m.Sequence >= at.LastSeq) {
			waiting = false
			close(caughtUp)
		}
		return nil
	})
}

// foldMost is how many results are added to the view in one transaction at a
// start: with one each, that would take most of the time.
const foldMost = 256

// answered is a result as the stream has it.
type answered struct {
	r        *protocol.ResultMsg // nil = of no shard
	sequence uint64
	folded   bool // it was its shard's first
}

func (c *Coordinator) decode(m bus.Stored) answered {
	a := answered{sequence: m.Sequence}
	id, p, n, ok := protocol.ParseResultSubject(m.Subject)
	if !ok {
		c.log.Warn("result with an unknown subject ignored", "subject", m.Subject)
		return a
	}
	a.r = &protocol.ResultMsg{}
	if err := protocol.Decode(m.Data, protocol.TypeResult, a.r); err != nil {
		// It cannot be replaced, so it counts: as a failed shard of which no more
		// is known.
		c.log.Error("result cannot be read, its shard counts as failed", "job", id, "phase", p, "shard", n, "error", err)
		a.r = &protocol.ResultMsg{Failures: 1, Counts: &protocol.CountsMsg{FilesFailed: 1}}
	}
	a.r.Job, a.r.Phase, a.r.N = string(id), uint32(p), n
	return a
}

// fold adds results, in the order of the stream, to their jobs.
func (c *Coordinator) fold(ctx context.Context, batch []answered) {
	c.addAll(batch)
	runs := map[protocol.JobID]*runner{}
	for _, a := range batch {
		if !a.folded {
			continue
		}
		id := protocol.JobID(a.r.GetJob())
		c.tel.folded(ctx, protocol.Phase(a.r.GetPhase()), a.r)
		runs[id] = c.runner(id)
	}
	for id, run := range runs {
		if run != nil {
			run.poke()
			c.checkFailFast(ctx, run)
		}
		c.publishEvent(id, false)
	}
}

// addAll adds results to the view and notes the sequence of the last, all in one
// step for whoever makes a checkpoint.
func (c *Coordinator) addAll(batch []answered) {
	c.folding.Lock()
	defer c.folding.Unlock()
	c.update(func(t state.Tx) {
		for i := range batch {
			a := &batch[i]
			if a.r == nil {
				continue
			}
			var open bool
			if a.folded, open = t.Fold(a.r); open {
				// Within the update, so that no shard is both counted by an account that
				// is just opened and answered before it.
				c.ledger.answered(protocol.JobID(a.r.GetJob()), 1)
			}
		}
	})
	c.folded = max(c.folded, batch[len(batch)-1].sequence)
	if c.sinceMany += len(batch); c.sinceMany >= c.cfg.CheckpointEvery {
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
