package coordinator

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

const (
	// checkpointEvery is after how many results checkpoints are written, and so
	// how many a leader that was killed leaves to be read again.
	checkpointEvery = 10_000
	// checkpointQuiet is after how long without a result they are written.
	checkpointQuiet = 5 * time.Second
	// checkpointLast is how long the last ones may take, at the end of Run.
	checkpointLast = 2 * time.Second
)

// held is a checkpoint as its bucket has it.
type held struct {
	rev      uint64
	sequence uint64
}

// loadCheckpoints restores what is folded of the jobs that have not ended. It
// returns the sequence up to which no result is needed any more; last is that of
// the newest result. A checkpoint that cannot be used costs time only.
func (c *Coordinator) loadCheckpoints(ctx context.Context, last uint64) (uint64, error) {
	found := map[protocol.JobID]state.Checkpoint{}
	var ended []protocol.JobID
	c.checkpointing.Lock()
	c.checkpoints = map[protocol.JobID]held{}
	err := c.jobs.Each(ctx, protocol.CheckpointKey("*"), func(key string, value []byte, rev uint64) error {
		id, ok := protocol.JobFromCheckpointKey(key)
		if !ok {
			return nil
		}
		c.checkpoints[id] = held{rev: rev}
		var j state.Job
		var known bool
		c.view(func(t state.Tx) { j, known = t.Job(id) })
		if !known || j.Record.State.Final() {
			ended = append(ended, id)
			return nil
		}
		p, err := state.DecodeCheckpoint(value)
		switch {
		case err == nil && p.Job != id:
			err = fault.New(fault.Corrupt, "it is one of job %s", p.Job)
		case err == nil && p.Sequence > last:
			err = fault.New(fault.Corrupt, "it was made at result %d, the last one is %d", p.Sequence, last)
		}
		if err != nil {
			c.log.Warn("checkpoint cannot be used, the results are read again", "job", id, "error", err)
			return nil
		}
		found[id] = p
		c.checkpoints[id] = held{rev: rev, sequence: p.Sequence}
		return nil
	})
	c.checkpointing.Unlock()
	if err != nil {
		return 0, err
	}
	for _, id := range ended {
		c.dropCheckpoint(ctx, id)
	}
	from := last
	c.update(func(t state.Tx) {
		for j := range t.Jobs() {
			if j.Record.State.Final() {
				continue
			}
			p, ok := found[j.Record.ID]
			if ok {
				t.Restore(p)
			}
			// All results of a job come after what was folded when it was submitted.
			need := max(p.Sequence, j.Record.ResultsAfter)
			if need > last {
				need = 0 // the stream is not the one that it was submitted to
			}
			from = min(from, need)
		}
	})
	return from, nil
}

// keepCheckpoints writes checkpoints until ctx ends, and then once more.
func (c *Coordinator) keepCheckpoints(ctx context.Context) error {
	t := time.NewTicker(c.cfg.CheckpointQuiet)
	defer t.Stop()
	var seen, written uint64
	write := func(ctx context.Context) {
		at, err := c.writeCheckpoints(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Warn("a checkpoint cannot be written, trying again later", "error", err)
			}
			return
		}
		written = at
	}
	for {
		select {
		case <-c.foldedMany:
			write(ctx)
		case <-t.C:
			at := c.foldedUpTo()
			if at == seen && at != written {
				write(ctx)
			}
			seen = at
		case <-ctx.Done():
			if !fault.Is(context.Cause(ctx), fault.Stale) {
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkpointLast)
				defer cancel()
				write(last)
			}
			return context.Cause(ctx)
		}
	}
}

// foldedUpTo returns the sequence of the last result that was folded.
func (c *Coordinator) foldedUpTo() uint64 {
	c.folding.Lock()
	defer c.folding.Unlock()
	return c.folded
}

// writeCheckpoints writes a checkpoint of each job that has not ended, also of
// those without news: a restart begins at the oldest. It returns what they hold.
func (c *Coordinator) writeCheckpoints(ctx context.Context) (uint64, error) {
	var all []state.Checkpoint
	// Between two results: figures, bits and sequence are of one moment.
	c.folding.Lock()
	at := c.folded
	c.view(func(t state.Tx) {
		for j := range t.Jobs() {
			if j.Record.State.Final() {
				continue
			}
			if p, ok := t.Checkpoint(j.Record.ID, at); ok {
				all = append(all, p)
			}
		}
	})
	c.folding.Unlock()
	for _, p := range all {
		if err := c.writeCheckpoint(ctx, p); err != nil {
			return 0, err
		}
	}
	return at, nil
}

func (c *Coordinator) writeCheckpoint(ctx context.Context, p state.Checkpoint) error {
	c.checkpointing.Lock()
	defer c.checkpointing.Unlock()
	before := c.checkpoints[p.Job]
	ended := false
	c.view(func(t state.Tx) {
		j, ok := t.Job(p.Job)
		ended = !ok || j.Record.State.Final()
	})
	// Of a job that has ended meanwhile it is deleted, or about to be.
	if ended || (before.rev > 0 && before.sequence == p.Sequence) {
		return nil
	}
	data, err := p.Encode()
	if err == nil && len(data) > c.cfg.Bus.MaxPayload()-headerRoom {
		err = fault.New(fault.Invalid, "it has %d bytes, more than the server takes", len(data))
	}
	if err != nil {
		c.log.Debug("no checkpoint is made, a restart reads the results", "job", p.Job, "error", err)
		return nil
	}
	key := protocol.CheckpointKey(p.Job)
	rev, err := c.jobs.Swap(ctx, key, data, before.rev)
	if errors.Is(err, bus.ErrConflict) {
		// Either the answer to the last one was lost, or another coordinator has
		// written it. Whoever leads, it is true: the next one replaces it.
		value, at, gerr := c.jobs.Get(ctx, key)
		switch {
		case errors.Is(gerr, bus.ErrNotFound):
			at = 0
		case gerr != nil:
			return gerr
		}
		c.checkpoints[p.Job] = held{rev: at}
		if !bytes.Equal(value, data) {
			return err
		}
		rev, err = at, nil
	}
	if err != nil {
		return err
	}
	c.checkpoints[p.Job] = held{rev: rev, sequence: p.Sequence}
	return nil
}

// dropCheckpoint removes the checkpoint of a job that has ended. What it cannot
// remove is removed by the next leader, or with the job's results.
func (c *Coordinator) dropCheckpoint(ctx context.Context, id protocol.JobID) {
	c.checkpointing.Lock()
	defer c.checkpointing.Unlock()
	if _, ok := c.checkpoints[id]; !ok {
		return
	}
	if err := c.jobs.Delete(ctx, protocol.CheckpointKey(id)); err != nil {
		c.log.Debug("remove the checkpoint of an ended job", "job", id, "error", err)
		return
	}
	delete(c.checkpoints, id)
}
