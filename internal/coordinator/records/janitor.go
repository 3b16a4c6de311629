package records

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// sweepEvery is the time between two looks at what can go.
const sweepEvery = 10 * time.Minute

// Clean forgets jobs that ended long ago, whole: record, results, failures and
// objects go together, so that a job that can be asked for can tell all of
// itself. It ends with ctx.
func (r *Records) Clean(ctx context.Context) error {
	for {
		for _, id := range r.outdated() {
			if err := r.Erase(ctx, id); err != nil {
				if ctx.Err() == nil {
					r.log.Warn("an old job cannot be removed, trying again later", "job", id, "error", err)
				}
				break
			}
			r.log.Info("job forgotten: it has been kept for as long as ended jobs are", "job", id)
		}
		if err := r.SweepObjects(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("objects that no job needs cannot be removed, trying again later", "error", err)
		}
		if !bus.Sleep(ctx, min(sweepEvery, r.cfg.Keep)) {
			return context.Cause(ctx)
		}
	}
}

// outdated returns the ended jobs that are older than those that are kept, or
// too many, oldest first.
func (r *Records) outdated() []protocol.JobID {
	now := r.cfg.Now()
	var ended []protocol.JobRecord
	r.View(func(t state.Tx) {
		for j := range t.Jobs() {
			if j.Record.State.Final() {
				ended = append(ended, j.Record)
			}
		}
	})
	slices.SortFunc(ended, func(a, b protocol.JobRecord) int {
		return cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.ID, b.ID))
	})
	var out []protocol.JobID
	for i, rec := range ended {
		if len(ended)-i > r.cfg.KeepJobs || now.Sub(rec.Ended) > r.cfg.Keep {
			out = append(out, rec.ID)
		}
	}
	return out
}

// Erase removes all that is stored of an ended job. The record goes last: what an
// interrupted removal leaves is removed by the next.
func (r *Records) Erase(ctx context.Context, id protocol.JobID) error {
	for subject, stream := range map[string]string{
		protocol.JobResults(id):    protocol.StreamResults,
		protocol.JobFailures(id):   protocol.StreamFailures,
		protocol.JobShards(id):     protocol.StreamShards,
		protocol.CursorSubject(id): protocol.StreamShards,
	} {
		if err := r.cfg.Bus.Purge(ctx, stream, subject, 0); err != nil {
			return err
		}
	}
	if err := r.Dismantle(ctx, id); err != nil {
		return err
	}
	if err := r.dropKeys(ctx, protocol.FileKeys(id)); err != nil {
		return err
	}
	if err := r.jobs.Delete(ctx, protocol.JobKey(id)); err != nil {
		return err
	}
	r.Update(func(t state.Tx) { t.DropJob(id) })
	return nil
}

// Dismantle removes what only a job that runs needs: checkpoint, marks, and copies
// of uploaded files. The cursor stays with the record: a coordinator that was
// asleep and takes the job for one that runs is refused by it.
func (r *Records) Dismantle(ctx context.Context, id protocol.JobID) error {
	r.DropCheckpoint(ctx, id)
	err := r.dropKeys(ctx, protocol.MarkKeys(id))
	if rerr := os.RemoveAll(r.dir(id)); rerr != nil {
		err = errors.Join(err, fmt.Errorf("remove the files of job %s: %w", id, rerr))
	}
	return err
}
