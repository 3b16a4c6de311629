package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// admit reads each control file of the job once, before its first shard. It
// runs until the list is sealed and all of it is read, or ctx ends.
func (r *runner) admit(ctx context.Context) {
	for i := uint32(0); ; i++ {
		var f state.File
		found := false
		err := r.await(ctx, func(t state.Tx, j state.Job) bool {
			f, found = t.File(r.id, i)
			return found || j.Record.Sealed && i >= j.Record.Files
		})
		if err != nil || !found {
			return
		}
		for {
			err := r.admitFile(ctx, f)
			if err == nil || ctx.Err() != nil {
				break
			}
			r.c.stall(r.id, stallAdmit, "a control file cannot be admitted: "+err.Error())
			if !bus.Sleep(ctx, retryWait) {
				return
			}
		}
		r.c.stall(r.id, stallAdmit, "")
	}
}

// admitFile admits or refuses one control file. An error says that neither
// could be made durable.
func (r *runner) admitFile(ctx context.Context, f state.File) error {
	path, err := r.c.localFile(ctx, r.id, f.Record.Ref, f.Record.Object, "ctrl")
	if err != nil && fault.Is(err, fault.Transient) {
		return err
	}
	if f.Record.State != protocol.FilePending {
		// Admitted by the leader before: what is here must be the same bytes.
		if err == nil && f.Record.State == protocol.FileAdmitted {
			err = sameDigest(path, f.Record.Ref.Digest)
		}
		if err != nil {
			return err
		}
		f.Path = path
		r.c.update(func(t state.Tx) { t.PutFile(f) })
		r.poke()
		return nil
	}
	var sum controlfile.Summary
	if err == nil {
		sum, err = controlfile.Check(path, shard.KindOf(f.Record.Ref.Phase))
	}
	digest := hex.EncodeToString(sum.Digest[:])
	if err == nil && f.Record.Ref.Digest != "" && digest != f.Record.Ref.Digest {
		err = &fault.Error{Kind: fault.Corrupt, Op: "admit control file", Path: f.Record.Ref.Path, Err: fmt.Errorf("its digest is %s, the submitter's was %s", digest, f.Record.Ref.Digest), Hint: "it changed after it was submitted"}
	}
	if err != nil {
		f.Record.State, f.Record.Refused = protocol.FileRefused, err.Error()
		r.log.Warn("control file refused", "job", r.id, "file", f.Record.Ref.Path, "error", err)
	} else {
		f.Record.State = protocol.FileAdmitted
		f.Record.Ref.Digest = digest
		f.Record.Counts = fileCounts(f.Record.Ref.Phase, sum)
		f.Path = path
	}
	if err := r.c.saveFile(ctx, f); err != nil {
		return err
	}
	r.poke()
	return nil
}

// localFile returns where this coordinator can read a submitted file: the
// submitter's path, or a copy of what was uploaded.
func (c *Coordinator) localFile(ctx context.Context, job protocol.JobID, ref protocol.FileRef, object, sub string) (string, error) {
	if object == "" {
		return ref.Path, nil
	}
	name := ref.Digest
	if sub == "meta" {
		name = filepath.Base(ref.Path) // records refer to meta files by name
	}
	path := filepath.Join(c.dir(job), sub, name)
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
	err = errors.Join(c.objects.Get(ctx, object, tmp), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return "", errors.Join(&fault.Error{Kind: fault.KindOf(err), Op: "download to", Path: path, Err: err}, os.Remove(tmp.Name()))
	}
	return path, nil
}

// metaPath returns the directory of the job's meta files.
func (r *runner) metaPath(ctx context.Context) (string, error) {
	rec := r.job().Record
	if len(rec.Metas) == 0 {
		return rec.Spec.Meta, nil
	}
	for _, ref := range rec.Metas {
		if _, err := r.c.localFile(ctx, r.id, ref, protocol.FileObject(ref.Digest), "meta"); err != nil {
			return "", err
		}
	}
	return filepath.Join(r.c.dir(r.id), "meta"), nil
}

func sameDigest(path, want string) error {
	got, err := Digest(path)
	if err == nil && got != want {
		err = &fault.Error{Kind: fault.Corrupt, Op: "read control file", Path: path, Err: fmt.Errorf("its digest is %s, at admission it was %s", got, want), Hint: "it changed while its job ran; put it back"}
	}
	return err
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

// saveFile makes a control file's record durable and then visible.
func (c *Coordinator) saveFile(ctx context.Context, f state.File) error {
	data, err := json.Marshal(f.Record)
	if err != nil {
		return fault.New(fault.Internal, "encode record of %q: %w", f.Record.Ref.Path, err)
	}
	if err := c.jobs.Put(ctx, protocol.FileKey(protocol.JobID(f.Job), f.Index), data); err != nil {
		return err
	}
	c.update(func(t state.Tx) { t.PutFile(f) })
	return nil
}

func fileCounts(p protocol.Phase, s controlfile.Summary) protocol.FileCounts {
	out := protocol.FileCounts{Bytes: s.Header.Bytes, Skipped: s.DeletedDirs + s.DeletedFiles}
	switch p {
	case protocol.PhaseHardlink:
		out.Files = s.Files + s.BadFiles + s.BadDirs
	default:
		out.Dirs = s.Dirs + s.RemoveDirs + s.BadDirs
		out.Files = s.Files + s.BadFiles
	}
	return out
}
