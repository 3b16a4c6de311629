package records

import (
	"bytes"
	"context"
	"errors"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// revision is a checkpoint as its bucket has it.
type revision struct {
	rev      uint64
	sequence uint64 // up to which results are in it
}

// Checkpoints calls f with all checkpoints that are stored.
func (r *Records) Checkpoints(ctx context.Context, f func(protocol.JobID, []byte)) error {
	r.checkpointMu.Lock()
	defer r.checkpointMu.Unlock()
	clear(r.checkpoints)
	return r.jobs.Each(ctx, protocol.CheckpointKey("*"), func(key string, value []byte, rev uint64) error {
		id, ok := protocol.JobFromCheckpointKey(key)
		if !ok {
			return nil
		}
		r.checkpoints[id] = revision{rev: rev}
		f(id, value)
		return nil
	})
}

// PutCheckpoint stores an encoded checkpoint in place of the one before, unless
// that is of the same sequence or the job has ended.
func (r *Records) PutCheckpoint(ctx context.Context, id protocol.JobID, sequence uint64, data []byte) error {
	r.checkpointMu.Lock()
	defer r.checkpointMu.Unlock()
	before := r.checkpoints[id]
	ended := false
	r.View(func(t state.Tx) {
		j, ok := t.Job(id)
		ended = !ok || j.Record.State.Final()
	})
	// Of a job that has ended meanwhile it is deleted, or about to be.
	if ended || (before.rev > 0 && before.sequence == sequence) {
		return nil
	}
	key := protocol.CheckpointKey(id)
	rev, err := r.jobs.Swap(ctx, key, data, before.rev)
	if errors.Is(err, bus.ErrConflict) {
		// Either the answer to the last one was lost, or another coordinator has
		// written it. Whoever leads, it is true: the next one replaces it.
		value, at, gerr := r.jobs.Get(ctx, key)
		switch {
		case errors.Is(gerr, bus.ErrNotFound):
			at = 0
		case gerr != nil:
			return gerr
		}
		r.checkpoints[id] = revision{rev: at}
		if !bytes.Equal(value, data) {
			return err
		}
		rev, err = at, nil
	}
	if err != nil {
		return err
	}
	r.checkpoints[id] = revision{rev: rev, sequence: sequence}
	return nil
}

// DropCheckpoint removes the checkpoint of a job that has ended. What it cannot
// remove is removed by the next leader, or with the job's results.
func (r *Records) DropCheckpoint(ctx context.Context, id protocol.JobID) {
	r.checkpointMu.Lock()
	defer r.checkpointMu.Unlock()
	if _, ok := r.checkpoints[id]; !ok {
		return
	}
	if err := r.jobs.Delete(ctx, protocol.CheckpointKey(id)); err != nil {
		r.log.Debug("remove the checkpoint of an ended job", "job", id, "error", err)
		return
	}
	delete(r.checkpoints, id)
}
