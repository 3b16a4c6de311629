package records

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// loadFiles reads the records of a job's control files into the view.
func (r *Records) loadFiles(ctx context.Context, j *state.Job) error {
	if j.Record.State.Final() {
		return nil // read from the bucket when somebody asks
	}
	return r.jobs.Each(ctx, protocol.FileKeys(j.Record.ID), func(key string, value []byte, rev uint64) error {
		var rec protocol.FileRecord
		if err := rawjson.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read control file record", Path: key, Err: err}
		}
		if rec.Index >= j.Record.Files {
			return nil // written by an append that was not completed
		}
		j.HasCopy = j.HasCopy || rec.Ref.Phase == protocol.PhaseCopy
		r.Update(func(t state.Tx) { t.PutFile(state.File{Job: j.ID, Index: rec.Index, Record: rec, Revision: rev}) })
		return nil
	})
}

// ChangeFile changes the record of a control file, durably and then visibly;
// path, unless it is empty, is where this coordinator reads the file from now on.
// A write of a coordinator that leads no more is refused with fault.Stale.
func (r *Records) ChangeFile(ctx context.Context, job protocol.JobID, index uint32, path string, f func(*protocol.FileRecord)) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	var file state.File
	known := false
	r.View(func(t state.Tx) { file, known = t.File(job, index) })
	if !known {
		return fault.New(fault.Internal, "job %s has no control file %d", job, index)
	}
	file.Record.FirstN = maps.Clone(file.Record.FirstN)
	f(&file.Record)
	if path != "" {
		file.Path = path
	}
	data, err := rawjson.Marshal(file.Record)
	if err != nil {
		return fault.New(fault.Internal, "encode record of %q: %w", file.Record.Ref.Path, err)
	}
	if file.Revision, err = r.swap(ctx, protocol.FileKey(job, index), data, file.Revision); err != nil {
		return err
	}
	r.Update(func(t state.Tx) { t.PutFile(file) })
	return nil
}

// ShowPath says where this coordinator reads a control file that was admitted
// before. Nothing durable changes.
func (r *Records) ShowPath(job protocol.JobID, index uint32, path string) {
	r.Update(func(t state.Tx) {
		if f, ok := t.File(job, index); ok {
			f.Path = path
			t.PutFile(f)
		}
	})
	r.Poke(job)
}

// FileRecords reads the records of a job's control files from the bucket, by
// index. Jobs that have ended have none in the view.
func (r *Records) FileRecords(ctx context.Context, id protocol.JobID) ([]protocol.FileRecord, error) {
	var out []protocol.FileRecord
	err := r.jobs.Each(ctx, protocol.FileKeys(id), func(key string, value []byte, _ uint64) error {
		var rec protocol.FileRecord
		if err := rawjson.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read control file record", Path: key, Err: err}
		}
		out = append(out, rec)
		return nil
	})
	slices.SortFunc(out, func(a, b protocol.FileRecord) int { return int(a.Index) - int(b.Index) })
	return out, err
}

// LocalFile returns where this coordinator can read a submitted file: the
// submitter's path, or a copy of what was uploaded, in the directory sub of the
// job's.
func (r *Records) LocalFile(ctx context.Context, job protocol.JobID, ref protocol.FileRef, object, sub string) (string, error) {
	if object == "" {
		return ref.Path, nil
	}
	name := ref.Digest
	if sub == "meta" {
		name = filepath.Base(ref.Path) // records refer to meta files by name
	}
	path := filepath.Join(r.dir(job), sub, name)
	if fi, err := os.Stat(path); err == nil && fi.Size() == ref.Size {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "make directory", Path: filepath.Dir(path), Err: err}
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+name+".*")
	if err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "download to", Path: path, Err: err}
	}
	err = errors.Join(r.objects.Get(ctx, object, tmp), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", errors.Join(&fault.Error{Kind: fault.KindOf(err), Op: "download to", Path: path, Err: err}, os.Remove(tmp.Name()))
	}
	return path, nil
}

// MetaDir returns the directory of the job's meta files.
func (r *Records) MetaDir(ctx context.Context, id protocol.JobID) (string, error) {
	j, _ := r.Job(id)
	if len(j.Record.Metas) == 0 {
		return j.Record.Spec.Meta, nil
	}
	for _, ref := range j.Record.Metas {
		if _, err := r.LocalFile(ctx, id, ref, protocol.FileObject(ref.Digest), "meta"); err != nil {
			return "", err
		}
	}
	return filepath.Join(r.dir(id), "meta"), nil
}

// Digest returns the hex SHA-256 of a file.
func Digest(path string) (string, error) {
	f, err := controlfile.OpenRegular(path)
	if err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "read", Path: path, Err: err}
	}
	defer func() { _ = f.Close() }() // read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "read", Path: path, Err: err}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// PutMark stores a mark, unless it is there. Its bytes follow from the job and its
// number, so the stored one is the same.
func (r *Records) PutMark(ctx context.Context, id protocol.JobID, p protocol.Phase, m protocol.Mark) error {
	data, err := rawjson.Marshal(m)
	if err != nil {
		return fault.New(fault.Internal, "encode mark %d of job %s: %w", m.N, id, err)
	}
	_, err = r.jobs.Swap(ctx, protocol.MarkKey(id, p, m.N), data, 0)
	if errors.Is(err, bus.ErrConflict) {
		return nil
	}
	return err
}

// Mark returns the mark from which shard n of a phase is cut; false: there is none.
func (r *Records) Mark(ctx context.Context, id protocol.JobID, p protocol.Phase, n uint64) (m protocol.Mark, ok bool, err error) {
	data, _, err := r.jobs.Get(ctx, protocol.MarkKey(id, p, n))
	if errors.Is(err, bus.ErrNotFound) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	if err := rawjson.Unmarshal(data, &m); err != nil {
		return m, false, &fault.Error{Kind: fault.Corrupt, Op: "read a mark of job", Path: string(id), Err: err}
	}
	return m, true, nil
}

// dropKeys removes the keys that match filter.
func (r *Records) dropKeys(ctx context.Context, filter string) error {
	var keys []string
	err := r.jobs.Each(ctx, filter, func(key string, _ []byte, _ uint64) error {
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := r.jobs.Delete(ctx, k); err != nil {
			return err
		}
	}
	return nil
}
