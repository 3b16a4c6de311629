package folder

import (
	"context"
	"time"

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

// loadCheckpoints restores what is folded of the jobs that have not ended. It
// returns the sequence up to which no result is needed any more; last is that of
// the newest result. A checkpoint that cannot be used costs time only.
func (f *Folder) loadCheckpoints(ctx context.Context, last uint64) (uint64, error) {
	found := map[protocol.JobID]state.Checkpoint{}
	var ended []protocol.JobID
	err := f.rec.Checkpoints(ctx, func(id protocol.JobID, value []byte) {
		if j, known := f.rec.Job(id); !known || j.Record.State.Final() {
			ended = append(ended, id)
			return
		}
		p, err := state.DecodeCheckpoint(value)
		if err == nil && p.Job != id {
			err = fault.New(fault.Corrupt, "it is one of job %s", p.Job)
		}
		if err != nil {
			f.log.Warn("checkpoint cannot be used, the results are read again", "job", id, "error", err)
			return
		}
		if p.Sequence > last {
			// The stream was lost and made anew. What was folded stays true, and
			// nothing that is in the new one can be in it.
			f.log.Warn("the result stream is not the one that a checkpoint was made of, it is read from the start", "job", id, "checkpoint", p.Sequence, "last", last)
			p.Sequence = 0
		}
		found[id] = p
	})
	if err != nil {
		return 0, err
	}
	for _, id := range ended {
		f.rec.DropCheckpoint(ctx, id)
	}
	from := last
	f.rec.Update(func(t state.Tx) {
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
			if need > last || (ok && p.Sequence == 0) {
				need = 0 // the stream is not the one that it was submitted to
			}
			from = min(from, need)
		}
	})
	return from, nil
}

// KeepCheckpoints writes checkpoints until ctx ends, and then once more.
func (f *Folder) KeepCheckpoints(ctx context.Context) error {
	t := time.NewTicker(f.cfg.CheckpointQuiet)
	defer t.Stop()
	var seen, written uint64
	write := func(ctx context.Context) {
		at, err := f.writeCheckpoints(ctx)
		if err != nil {
			if ctx.Err() == nil {
				f.log.Warn("a checkpoint cannot be written, trying again later", "error", err)
			}
			return
		}
		written = at
	}
	for {
		select {
		case <-f.due:
			write(ctx)
		case <-t.C:
			at := f.FoldedUpTo()
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

// writeCheckpoints writes a checkpoint of each job that has not ended, also of
// those without news: a restart begins at the oldest. It returns what they hold.
func (f *Folder) writeCheckpoints(ctx context.Context) (uint64, error) {
	var all []state.Checkpoint
	// Between two results: figures, bits and sequence are of one moment.
	f.mu.Lock()
	at := f.folded
	f.rec.View(func(t state.Tx) {
		for j := range t.Jobs() {
			if j.Record.State.Final() {
				continue
			}
			if p, ok := t.Checkpoint(j.Record.ID, at); ok {
				all = append(all, p)
			}
		}
	})
	f.mu.Unlock()
	for _, p := range all {
		if err := f.writeCheckpoint(ctx, p); err != nil {
			return 0, err
		}
	}
	return at, nil
}

func (f *Folder) writeCheckpoint(ctx context.Context, p state.Checkpoint) error {
	data, err := p.Encode()
	if err == nil && len(data) > f.cfg.Bus.MaxPayload()-protocol.HeaderRoom {
		err = fault.New(fault.Invalid, "it has %d bytes, more than the server takes", len(data))
	}
	if err != nil {
		f.log.Debug("no checkpoint is made, a restart reads the results", "job", p.Job, "error", err)
		return nil
	}
	return f.rec.PutCheckpoint(ctx, p.Job, p.Sequence, data)
}
