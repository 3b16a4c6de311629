package coordinator

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
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
		if err != nil || !found || !r.admitPatiently(ctx, f) {
			return
		}
	}
}

// admitPatiently admits or refuses a control file, trying again while waiting may
// help. It reports false where that is no use any more.
func (r *runner) admitPatiently(ctx context.Context, f state.File) bool {
	began := r.c.now()
	for {
		err := r.admitFile(ctx, f, true)
		if err == nil {
			r.c.rec.Stall(r.id, records.StallAdmit, "")
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		// What the leader before has read may come into sight a little later here.
		wait := fault.Passing(err) || fault.Is(err, fault.NotFound) && r.c.now().Sub(began) < r.c.cfg.Timing.Lease
		if !wait {
			r.c.cannotGoOn(ctx, r.id, err)
			return false
		}
		r.c.rec.Stall(r.id, records.StallAdmit, "a control file cannot be read, trying again: "+err.Error())
		if !bus.Sleep(ctx, records.RetryWait) {
			return false
		}
	}
}

// admitRest admits the control files that were not admitted when the job began to
// end, so that the statistics know all entries. It tries each file once, and takes
// no longer than a lease.
func (r *runner) admitRest(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, r.c.cfg.Timing.Lease)
	defer cancel()
	var files []state.File
	r.c.view(func(t state.Tx) { files = slices.Collect(t.Files(r.id)) })
	for _, f := range files {
		if f.Record.State == protocol.FileRefused || f.Path != "" || wait.Err() != nil {
			continue
		}
		if err := r.admitFile(wait, f, false); err != nil {
			r.log.Warn("a control file of an ending job is not admitted", "job", r.id, "file", f.Record.Ref.Path, "error", err)
		}
	}
	return nil
}

// admitFile admits or refuses one control file, because of what the file says. It
// returns an error if the file could not be read now, or if the decision could not
// be made durable. A file that was admitted before must still be the same.
//
// With metas it also returns an error where a meta file that the file's entries name is
// unusable: then the job has nothing to go by, and ends before it has done anything.
func (r *runner) admitFile(ctx context.Context, f state.File, metas bool) error {
	path, err := r.c.rec.LocalFile(ctx, r.id, f.Record.Ref, f.Record.Object, "ctrl")
	if f.Record.State != protocol.FilePending {
		if err == nil && f.Record.State == protocol.FileAdmitted {
			err = sameDigest(path, f.Record.Ref.Digest)
		}
		if err == nil {
			r.c.rec.ShowPath(r.id, f.Index, path)
		}
		return err
	}
	var sum controlfile.Summary
	if err == nil {
		sum, err = controlfile.Check(path, shard.KindOf(f.Record.Ref.Phase))
	}
	if err != nil && fault.Passing(err) {
		return err
	}
	digest := hex.EncodeToString(sum.Digest[:])
	if err == nil && f.Record.Ref.Digest != "" && digest != f.Record.Ref.Digest {
		err = &fault.Error{Kind: fault.Corrupt, Op: "admit control file", Path: f.Record.Ref.Path, Err: fmt.Errorf("its digest is %s, the submitter's was %s", digest, f.Record.Ref.Digest), Hint: "it changed after it was submitted"}
	}
	if err != nil {
		r.log.Warn("control file refused", "job", r.id, "file", f.Record.Ref.Path, "error", err)
	}
	if err == nil && metas {
		if err := r.checkMetas(ctx, f.Record.Ref, sum); err != nil {
			return err
		}
	}
	reason := err
	err = r.c.rec.ChangeFile(ctx, r.id, f.Index, path, func(rec *protocol.FileRecord) {
		switch {
		case rec.State != protocol.FilePending: // decided already
		case reason != nil:
			rec.State, rec.Refused = protocol.FileRefused, reason.Error()
		default:
			rec.State, rec.Ref.Digest, rec.Counts, rec.Pins = protocol.FileAdmitted, digest, fileCounts(rec.Ref.Phase, sum), sum.Pins.Encode()
		}
	})
	if err == nil {
		r.c.rec.Poke(r.id)
	}
	return err
}

// checkMetas opens each meta file that a control file names, and the xmeta file that
// the first record read from it names.
func (r *runner) checkMetas(ctx context.Context, ref protocol.FileRef, sum controlfile.Summary) error {
	if len(sum.Records) == 0 {
		return nil
	}
	dir, err := r.c.rec.MetaDir(ctx, r.id)
	if err != nil {
		return err
	}
	// A network file system may remember that a file was not there. It asks again for
	// who lists the directory.
	_, listed := os.ReadDir(dir)
	meta := controlfile.OpenMetaDir(dir)
	defer func() { _ = meta.Close() }() // read only
	for _, name := range slices.Sorted(maps.Keys(sum.Records)) {
		e := sum.Records[name]
		if _, err := meta.Lookup(e.Meta, e); controlfile.MetaUnusable(err) {
			kind := fault.KindOf(err)
			if kind == fault.NotFound && listed == nil {
				kind = fault.Invalid // it will not come into sight
			}
			return &fault.Error{Kind: kind, Op: "find the records of control file", Path: ref.Path, Err: err}
		}
	}
	return nil
}

func sameDigest(path, want string) error {
	got, err := records.Digest(path)
	if err == nil && got != want {
		err = &fault.Error{Kind: fault.Corrupt, Op: "read control file", Path: path, Err: fmt.Errorf("its digest is %s, at admission it was %s", got, want), Hint: "it changed while its job ran; put it back"}
	}
	return err
}

// Digest returns the hex SHA-256 of a file.
func Digest(path string) (string, error) { return records.Digest(path) }

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
