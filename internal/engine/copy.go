package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// copyState is what became of a copied entry that did not fail.
type copyState uint8

const (
	stateDone     copyState = iota // the target is the entry's object
	stateKept                      // the replace policy keeps another object
	stateRefused                   // the target can't hold the object (a socket)
	stateVanished                  // the source is gone and the job skips such entries
)

// copied is the result of a copy.
type copied struct {
	state        copyState
	bytes        uint64 // st_size of a regular file that was read or is identical
	changedScan  bool   // the source is not what the record says
	verified     bool   // the data of a regular file was compared with the source's
	size         uint64 // st_size of a regular file
	taken        bool   // the source changed while it was read, and was taken all the same
	holes, clone uint64
}

// maxReread is how often a source that changed while it was read is read again.
const maxReread = 3

// errChanged means that the source changed while it was read.
var errChanged = errors.New("the source changed while it was read")

// errShorter is errChanged of a source that did not change, as far as can be seen.
var errShorter = fmt.Errorf("%w: it ends before its size says", errChanged)

// stayedChanging is the failure of a source that could not be read once as it was before.
func stayedChanging(t *target, err error) error {
	e := &fault.Error{Kind: fault.Changed, Op: "read source", Path: t.e.Path, Err: errChanged,
		Hint: "it did so each time; take the backup from a snapshot, or take it as it is with --changing take"}
	if errors.Is(err, errShorter) {
		e.Err = errors.New("it ends before its size says")
		e.Hint = "it did so each time: the size is not true; look after its file system, or take what is there with --changing take"
	}
	return e
}

// copyCounted executes OpCopy, or the copy of a group's leader, and counts it.
func (r *run) copyCounted(t *target, c *entry.Counts) (copyState, error) {
	res, err := r.copyObject(t)
	if r.j.spec.SkipVanished && errors.Is(err, errVanished) {
		res, err = copied{state: stateVanished}, nil
	}
	if t.changed && (err == nil || fault.Is(err, fault.Changed)) {
		c.ChangedWhileRead++
	}
	if err != nil {
		return 0, err
	}
	if res.state != stateDone {
		c.Skipped++
		return res.state, nil
	}
	c.FilesCopied++
	c.BytesCopied += res.bytes
	c.HoleBytes += res.holes
	c.ReflinkBytes += res.clone
	if res.verified {
		c.FilesVerified++
		c.BytesVerified += res.size
	}
	if res.changedScan {
		c.ChangedSinceScan++
	}
	if res.taken {
		c.ChangingTaken++
	}
	return stateDone, nil
}

// copyObject copies a non-directory of any type to its place.
func (r *run) copyObject(t *target) (copied, error) {
	dir, name, err := r.parent(t)
	if err != nil {
		return copied{}, err
	}
	defer dir.Release()
	if err := r.clearTemps(dir, t.index); err != nil {
		return copied{}, err
	}
	for try := 0; ; {
		res, err := r.copyOnce(t, dir, name)
		switch {
		case errors.Is(err, errKept):
			return copied{state: stateKept}, nil
		case errors.Is(err, errNoLink): // once: the job remembers it
			t.warnings = nil
			continue
		case !errors.Is(err, errChanged):
			return res, err
		case try == maxReread:
			return copied{}, stayedChanging(t, err)
		}
		try++
		t.changed = true
		t.warnings = nil
		t.take = try == maxReread && r.j.spec.TakeChanging
	}
}

// copyOnce looks at the source, decides, and copies.
func (r *run) copyOnce(t *target, dir *fsys.Dir, name string) (copied, error) {
	sdir, sname, err := r.sourceParent(t.e.Path)
	if err != nil {
		return copied{}, err
	}
	defer sdir.Release()
	var st unix.Stat_t
	src, protected, err := r.openSource(t, sdir.FD, sname, &st)
	if err != nil {
		return copied{}, err
	}
	defer func() { _ = fsys.Close(src.fd) }()
	if protected && r.j.spec.WriteMeta {
		t.lose(WarnFlags)
	}
	kind := fsys.Type(st.Mode)
	if kind == unix.S_IFDIR {
		return copied{}, &fault.Error{Kind: fault.Changed, Op: "open source", Path: t.e.Path, Err: unix.EISDIR,
			Hint: "it has become a directory since the scan"}
	}
	res := copied{changedScan: !agrees(t.e.Meta, &st)}
	r.j.lookAtSize(t, src.fd, &st)
	// Bytes are those of the size, also where it says nothing of the contents: what is
	// to be backed up was counted by it. A metadata-only line counts none, whichever way it
	// is executed: control files leave them out of their totals, and a second attempt
	// may go the other way.
	if kind == unix.S_IFREG {
		res.size = uint64(st.Size)
		if t.e.Mode != "mm" {
			res.bytes = res.size
		}
	}
	what, err := r.decide(t, dir, name, &st)
	if err != nil {
		return copied{}, err
	}
	if t.take && (what == metaInPlace || what == targetSame && !r.neverReplaces(t)) {
		what = copyFull // comparing needs a source that holds still, reading does not
	}
	switch what {
	case keepTarget:
		return copied{}, errKept
	case targetSame:
		if r.j.spec.Verify == VerifyChecksum {
			err = r.stays(t, dir, name, src.fd, &st, &res)
		}
		return res, err
	case metaInPlace:
		done, err := r.inPlace(t, dir, name, src.fd, &st)
		if done || err != nil {
			res.verified = r.j.spec.Verify == VerifyChecksum
			return res, err
		}
	}
	if kind == unix.S_IFREG {
		err = r.copyRegular(t, dir, name, src, &st, &res)
	} else {
		err = r.copySpecial(t, dir, name, src.fd, &st, &res)
	}
	return res, err
}

// source is an open object of the source.
type source struct {
	fd   int
	data bool // a regular file, opened for reading; else a descriptor that only names the object
}

// openSource opens the source of t and fills st from it.
//
// Where it was scanned as a regular file, and is copied whatever its target is, it is
// opened at once for reading, which saves two calls. Whatever it has become since then
// is opened as well, before fstat can tell: what a device makes of that is its driver's,
// and only who may make device nodes can have put one there. Nobody waits for anything,
// nothing is read, and no link is followed. What proves to be no regular file is looked
// at anew, as everything else is from the start: by a descriptor that only names it.
func (r *run) openSource(t *target, dir int, name string, st *unix.Stat_t) (src source, protected bool, err error) {
	if m := t.e.Meta; m != nil && fsys.Type(m.Mode) == unix.S_IFREG && r.alwaysCopies(t) {
		if fd, err := r.openToRead(dir, name); err == nil {
			protected, err := fsys.FstatFlags(fd, st)
			if err == nil && fsys.Type(st.Mode) == unix.S_IFREG {
				return source{fd: fd, data: true}, protected, nil
			}
			_ = fsys.Close(fd)
		}
	}
	fd, err := fsys.OpenPath(dir, name)
	if err != nil {
		return src, false, sourceError("open source", t.e.Path, err)
	}
	if protected, err = fsys.FstatFlags(fd, st); err != nil {
		_ = fsys.Close(fd)
		return src, false, sourceError("stat source", t.e.Path, err)
	}
	return source{fd: fd}, protected, nil
}

// decision is what to do about a target.
type decision uint8

const (
	copyFull decision = iota
	keepTarget
	targetSame
	metaInPlace
)

// decide compares the existing target, if the entry's mode or the job's policy
// depends on it. Metadata alone is written only where the target's time is that
// of the source as it is now: the record's would also match where the source
// was written to after the scan.
//
// A target that a former attempt of the batch may have written is not trusted: that
// attempt's sync may have failed, or its host, and size and time would match all the
// same. Such a target is written again, where its time tells that it is one; see
// trusted for the rest.
func (r *run) decide(t *target, dir *fsys.Dir, name string, src *unix.Stat_t) (decision, error) {
	if r.alwaysCopies(t) {
		return copyFull, nil
	}
	spec := &r.j.spec
	meta := t.e.Mode == "mm" && spec.WriteMeta
	var dst unix.Stat_t
	err := r.changing(dir, func() error { return fsys.Lstatat(dir.FD, name, &dst) })
	if fsys.Errno(err) == unix.ENOENT {
		if meta {
			r.unexpected(t)
		}
		return copyFull, nil
	}
	if err != nil {
		return 0, opError("stat target", t.path, err)
	}
	other, err := r.rival(t.path, dir, name, &dst)
	if fsys.Errno(err) == unix.ENOENT {
		return copyFull, nil
	}
	if err != nil {
		return 0, err
	}
	if other != "" && spec.Replace != ReplaceNever {
		return copyFull, nil
	}
	want := src.Mtim
	if spec.Restore && t.e.Meta != nil {
		want = attrsFromRecord(t.e.Meta, src).mtime
	}
	sameKind := fsys.Type(dst.Mode) == fsys.Type(src.Mode)
	sameSize := sameKind && (fsys.Type(src.Mode) != unix.S_IFREG || t.toEnd || dst.Size == src.Size)
	same := sameSize && (sameTime(want, dst.Mtim) || !spec.WriteMeta)
	switch {
	case same && !r.trusted(t) && len(r.b.Predecessors) > 0:
		t.again = true
		return copyFull, nil
	case spec.Replace != ReplaceAlways && same && !meta:
		return targetSame, nil
	case spec.Replace == ReplaceNever && same:
		return targetSame, nil
	case spec.Replace == ReplaceNever:
		return keepTarget, nil
	case spec.Replace == ReplaceIfOlder && !same && !older(dst.Mtim, want):
		return keepTarget, nil
	}
	if meta && sameSize && !t.toEnd && fsys.Type(dst.Mode) == unix.S_IFREG && dst.Nlink == 1 &&
		(src.Mtim == dst.Mtim || sameTime(src.Mtim, dst.Mtim) && agrees(t.e.Meta, src)) {
		return metaInPlace, nil
	}
	if meta && !same && agrees(t.e.Meta, src) {
		r.unexpected(t)
	}
	return copyFull, nil
}

// alwaysCopies reports whether t is copied whatever stands in its place.
func (r *run) alwaysCopies(t *target) bool {
	return r.j.spec.Replace == ReplaceAlways && (t.e.Mode != "mm" || !r.j.spec.WriteMeta)
}

// trusted reports whether another attempt at an entry would take the target of this
// one for what it is to be, without writing it again: its time agrees and only metadata
// is due, or its time says nothing, or others are linked to it and would be kept as they
// are. Contents of such a target are made durable before it gets its name, so that no
// failed sync can have lost them.
func (r *run) trusted(t *target) bool {
	keeps := r.j.spec.Replace != ReplaceAlways
	if r.j.spec.WriteMeta {
		return t.e.Mode == "mm" || keeps && inGroup(t.e)
	}
	return keeps
}

// neverReplaces reports whether the replace policy keeps what stands in the place of a target.
func (r *run) neverReplaces(t *target) bool { return r.j.spec.Replace == ReplaceNever && !t.again }

// sameTime reports whether a target that was given time want has it. Some file
// systems keep whole seconds only.
func sameTime(want, got unix.Timespec) bool {
	return want.Sec == got.Sec && (want.Nsec == got.Nsec || got.Nsec == 0)
}

func older(a, b unix.Timespec) bool { return a.Sec < b.Sec || a.Sec == b.Sec && a.Nsec < b.Nsec }

// inPlace gives an existing target new metadata. It reports false if the target
// is not what decide saw any more, or if its contents are not the source's and
// the job wants that known.
func (r *run) inPlace(t *target, dir *fsys.Dir, name string, src int, st *unix.Stat_t) (bool, error) {
	fd, err := fsys.OpenPath(dir.FD, name)
	if fsys.Errno(err) == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, opError("open target", t.path, err)
	}
	defer func() { _ = fsys.Close(fd) }()
	var now unix.Stat_t
	if err := fsys.Fstat(fd, &now); err != nil {
		return false, opError("stat target", t.path, err)
	}
	if fsys.Type(now.Mode) != unix.S_IFREG || now.Nlink != 1 || now.Size != st.Size {
		return false, nil
	}
	a, err := r.fileAttrs(t, st, fsys.Node{FD: src, Path: true})
	if err != nil {
		return false, err
	}
	if a.privileged() && (int(now.Uid) != a.uid || int(now.Gid) != a.gid) {
		// Size and time can be imitated. Contents that somebody else put there
		// must not be given set-id bits or capabilities.
		return false, nil
	}
	if (r.j.spec.CheckContents || r.j.spec.Verify == VerifyChecksum) && st.Size > 0 {
		if same, err := r.sameContents(t, src, st, fd, &now); err != nil || !same {
			return false, err
		}
	}
	if err := r.check(); err != nil {
		return false, err
	}
	return true, r.apply(t, fsys.Node{FD: fd, Path: true}, &a, applyOpts{})
}

// sameContents compares the contents of source and target, both behind O_PATH
// descriptors.
func (r *run) sameContents(t *target, src int, st *unix.Stat_t, dst int, have *unix.Stat_t) (bool, error) {
	in, err := r.openData(src)
	if err != nil {
		return false, sourceError("open source", t.e.Path, err)
	}
	defer func() { _ = fsys.Close(in) }()
	out, err := r.openData(dst)
	if err != nil {
		return false, nil // a target that can't be read is replaced
	}
	defer func() { _ = fsys.Close(out) }()
	buf, err := r.buffer(t)
	if err != nil {
		return false, err
	}
	defer r.giveBack(buf)
	same, err := fsys.SameData(in, out, st.Size, st.Blocks*512 < st.Size || have.Blocks*512 < have.Size, buf, r.check)
	var data *fsys.DataError
	switch {
	case errors.As(err, &data) && data.Write:
		return false, nil // what can't be read is replaced
	case errors.As(err, &data):
		return false, sourceError("read source", t.e.Path, data.Err)
	case err != nil:
		return false, err
	}
	return same, r.stillSame(t, in, st)
}
