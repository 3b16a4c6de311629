package records

import (
	"context"
	"errors"
	"os"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A client may repeat a request, also while the first one is still under way. Such
// requests wait for each other. So a job is created once, each control file is
// recorded once, and no file that was admitted or refused becomes pending again.

// Create creates a job with its first control files. It reports false where the
// job exists already, and the paths of the files that this coordinator cannot
// read as the submitter described them; then nothing is created.
func (r *Records) Create(ctx context.Context, rec protocol.JobRecord, files, metas []protocol.FileRef) (created bool, missing []string, err error) {
	unlock, err := r.lockSubmit(ctx, rec.ID)
	if err != nil {
		return false, nil, err
	}
	defer unlock()
	if _, known := r.Job(rec.ID); known {
		return false, nil, nil
	}
	r.placing.RLock()
	defer r.placing.RUnlock()
	recs, missing, err := r.place(ctx, 0, files)
	if err != nil {
		return false, nil, err
	}
	uploaded, missingMetas, err := r.placeMetas(ctx, metas)
	if err != nil {
		return false, nil, err
	}
	if missing = append(missing, missingMetas...); len(missing) > 0 {
		return false, missing, nil
	}
	rec.Files, rec.Metas = uint32(len(recs)), uploaded
	rows, err := r.createFiles(ctx, rec.ID, recs)
	if err != nil {
		return false, nil, err
	}
	data, err := rawjson.Marshal(rec)
	if err != nil {
		return false, nil, fault.New(fault.Internal, "encode record of job %s: %w", rec.ID, err)
	}
	rev, err := r.swap(ctx, protocol.JobKey(rec.ID), data, 0)
	if err != nil {
		return false, nil, err
	}
	r.show(rows, newRow(rec, rev))
	return true, nil, nil
}

// Append adds control files to a job that is not sealed, from index from on, and
// seals it if asked to. What the job has already is left as it is.
func (r *Records) Append(ctx context.Context, q protocol.AppendRequest) (missing []string, err error) {
	unlock, err := r.lockSubmit(ctx, q.Job)
	if err != nil {
		return nil, err
	}
	defer unlock()
	j, known := r.Job(q.Job)
	rec := j.Record
	switch {
	case !known:
		return nil, NoSuchJob(q.Job)
	case rec.Files >= q.From+uint32(len(q.Files)) && (rec.Sealed || !q.Seal):
		return nil, nil // a repetition, also of a job that has ended meanwhile
	case rec.State.Over():
		return nil, AlreadyEnded(rec)
	case rec.Sealed:
		return nil, fault.New(fault.Invalid, "job %s is sealed: it takes no more control files", q.Job)
	case q.From > rec.Files:
		return nil, fault.New(fault.Invalid, "job %s has %d control files, the next cannot be number %d", q.Job, rec.Files, q.From)
	}
	files := q.Files[min(int(rec.Files-q.From), len(q.Files)):] // the rest of a repetition
	r.placing.RLock()
	defer r.placing.RUnlock()
	recs, missing, err := r.place(ctx, rec.Files, files)
	if err != nil || len(missing) > 0 {
		return missing, err
	}
	rows, err := r.createFiles(ctx, q.Job, recs)
	if err != nil {
		return nil, err
	}
	// The record first: a file that the view shows is the job's for good.
	err = r.change(ctx, q.Job, func(rec *protocol.JobRecord) error {
		if rec.State.Over() {
			return AlreadyEnded(*rec)
		}
		rec.Files += uint32(len(recs))
		rec.Sealed = rec.Sealed || q.Seal
		return nil
	})
	if err != nil {
		return nil, err
	}
	j, _ = r.Job(q.Job)
	r.show(rows, j)
	r.Poke(q.Job)
	return nil, nil
}

// AlreadyEnded is the error for a job that is ending or has ended.
func AlreadyEnded(rec protocol.JobRecord) error {
	if rec.State == protocol.StateEnding {
		return fault.New(fault.Invalid, "job %s is ending already", rec.ID)
	}
	return fault.New(fault.Invalid, "job %s has ended: %s", rec.ID, rec.State)
}

// lockSubmit waits for the other requests that create or extend a job.
func (r *Records) lockSubmit(ctx context.Context, id protocol.JobID) (func(), error) {
	for {
		r.submitMu.Lock()
		other := r.submits[id]
		if other == nil {
			mine := make(chan struct{})
			r.submits[id] = mine
			r.submitMu.Unlock()
			return func() {
				r.submitMu.Lock()
				defer r.submitMu.Unlock()
				delete(r.submits, id)
				close(mine)
			}, nil
		}
		r.submitMu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// createFiles records control files, each once. A coordinator that died before it
// could create the job may have left records: these are replaced.
func (r *Records) createFiles(ctx context.Context, job protocol.JobID, recs []protocol.FileRecord) ([]state.File, error) {
	rows := make([]state.File, 0, len(recs))
	for _, rec := range recs {
		data, err := rawjson.Marshal(rec)
		if err != nil {
			return nil, fault.New(fault.Internal, "encode record of %q: %w", rec.Ref.Path, err)
		}
		key := protocol.FileKey(job, rec.Index)
		rev, err := r.jobs.Swap(ctx, key, data, 0)
		if errors.Is(err, bus.ErrConflict) {
			var at uint64
			if _, at, err = r.jobs.Get(ctx, key); err == nil {
				rev, err = r.jobs.Swap(ctx, key, data, at)
			}
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows, state.File{Job: string(job), Index: rec.Index, Record: rec, Revision: rev})
	}
	return rows, nil
}

// show makes control files visible, together with their job's row.
func (r *Records) show(files []state.File, row state.Job) {
	r.Update(func(t state.Tx) {
		if cur, ok := t.Job(row.Record.ID); ok {
			row = cur
		}
		for _, f := range files {
			row.HasCopy = row.HasCopy || f.Record.Ref.Phase == protocol.PhaseCopy
			t.PutFile(f)
		}
		t.PutJob(row)
	})
}

// place finds where each submitted control file can be read.
func (r *Records) place(ctx context.Context, from uint32, files []protocol.FileRef) (recs []protocol.FileRecord, missing []string, err error) {
	for i, ref := range files {
		if err := ref.Check(); err != nil {
			return nil, nil, err
		}
		rec := protocol.FileRecord{Index: from + uint32(i), Ref: ref, State: protocol.FilePending}
		if ref.Digest != "" && !sees(ref) {
			if rec.Object = protocol.FileObject(ref.Digest); rec.Object != "" {
				has, err := r.objects.Has(ctx, rec.Object)
				if err != nil {
					return nil, nil, err
				}
				if !has {
					missing = append(missing, ref.Path)
				}
			}
		}
		recs = append(recs, rec)
	}
	return recs, missing, nil
}

// placeMetas returns the meta files that must be taken from the object bucket:
// none if all of them are here.
func (r *Records) placeMetas(ctx context.Context, metas []protocol.FileRef) (uploaded []protocol.FileRef, missing []string, err error) {
	here := true
	for _, ref := range metas {
		if err := ref.Check(); err != nil {
			return nil, nil, err
		}
		here = here && (ref.Digest == "" || sees(ref))
	}
	if here {
		return nil, nil, nil
	}
	for _, ref := range metas {
		has, err := r.objects.Has(ctx, protocol.FileObject(ref.Digest))
		if err != nil {
			return nil, nil, err
		}
		if !has {
			missing = append(missing, ref.Path)
		}
	}
	return metas, missing, nil
}

// sees reports whether this coordinator reads the same bytes at a file's path.
func sees(ref protocol.FileRef) bool {
	fi, err := os.Stat(ref.Path)
	if err != nil || fi.Size() != ref.Size {
		return false
	}
	got, err := Digest(ref.Path)
	return err == nil && got == ref.Digest
}
