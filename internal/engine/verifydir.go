package engine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// mostExtras and mostExtrasTold bound how many extra names of one directory, and
// of one batch, are told one by one; they are all counted. What is told of a
// batch travels as one message.
const (
	mostExtras     = 1000
	mostExtrasTold = 10 * mostExtras
)

// extra are names of a directory that the source does not have.
type extra struct {
	count uint64
	names []extraName // the first mostExtras that were met, sorted
}

type extraName struct {
	name string
	kind uint32
}

// verifyDir compares a directory with its source: what finishing gives it, and
// that it has no names that the source has not. What is excluded from a scan is
// in the source and so no extra name.
func (r *run) verifyDir(t *target, c *entry.Counts) error {
	sdir, err := r.src.Get(t.e.Path)
	if err != nil {
		err = sourceError("open source directory", t.e.Path, err)
		if r.j.spec.SkipVanished && errors.Is(err, errVanished) {
			c.Skipped++
			return nil
		}
		return err
	}
	defer sdir.Release()
	dir, err := r.targetDir(t)
	if err != nil {
		return err
	}
	defer dir.Release()
	var d differs
	if r.j.spec.WriteMeta {
		if err := r.compareDirAttrs(t, &d, sdir, dir); err != nil {
			return err
		}
	}
	x, err := r.listExtra(t, sdir, dir)
	if err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err // before anything is counted
	}
	r.failExtra(t, x, c)
	if err := d.err(); err != nil {
		return err
	}
	c.DirsVerified++
	return nil
}

// verifyTimes compares a directory with an mtime line: owner, mode and time.
func (r *run) verifyTimes(t *target, c *entry.Counts) error {
	dir, err := r.targetDir(t)
	if err != nil {
		return err
	}
	defer dir.Release()
	if r.j.spec.WriteMeta {
		if t.e.Meta == nil {
			return &fault.Error{Kind: fault.Invalid, Op: verifyOp, Path: t.e.Path, Err: errors.New("the entry has no metadata")}
		}
		var st unix.Stat_t
		src := &st
		switch err := r.sourceStat(t.e.Path, &st); fsys.Errno(err) {
		case 0:
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES:
			src = nil // the record has everything but nanoseconds
		default:
			return sourceError("stat source", t.e.Path, err)
		}
		var d differs
		var have unix.Stat_t
		if err := fsys.Fstat(dir.FD, &have); err != nil {
			return opError("stat target", t.path, err)
		}
		a := attrsFromRecord(t.e.Meta, src)
		r.compareStat(t, &d, &a, &have, src != nil && agrees(t.e.Meta, src))
		if err := d.err(); err != nil {
			return err
		}
	}
	c.DirsVerified++
	return nil
}

// targetDir returns the destination directory of t.
func (r *run) targetDir(t *target) (*fsys.Dir, error) {
	dir, err := r.dstDir(t.path)
	switch fsys.Errno(err) {
	case 0:
		return dir, nil
	case unix.ENOENT:
		return nil, missing()
	case unix.ENOTDIR, unix.ELOOP:
		return nil, r.noDirectory(t)
	}
	return nil, opError("open destination directory", t.path, err)
}

// noDirectory says what stands in the place of a directory, or that it is missing
// because something else stands above it.
func (r *run) noDirectory(t *target) error {
	fd, err := r.openTarget(t)
	if err != nil {
		return err
	}
	defer func() { _ = fsys.Close(fd) }()
	var st unix.Stat_t
	if err := fsys.Fstat(fd, &st); err != nil {
		return opError("stat target", t.path, err)
	}
	var d differs
	d.add("is a %s, the source has a directory", kindName(fsys.Type(st.Mode)))
	return d.err()
}

// compareDirAttrs compares what finishing gives a directory.
func (r *run) compareDirAttrs(t *target, d *differs, sdir, dir *fsys.Dir) error {
	if t.e.Meta == nil {
		return &fault.Error{Kind: fault.Invalid, Op: verifyOp, Path: t.e.Path, Err: errors.New("the entry has no metadata")}
	}
	var st, have unix.Stat_t
	protected, err := fsys.FstatFlags(sdir.FD, &st)
	if err != nil {
		return sourceError("stat source", t.e.Path, err)
	}
	if protected {
		t.lose(WarnFlags)
	}
	if err := fsys.Fstat(dir.FD, &have); err != nil {
		return opError("stat target", t.path, err)
	}
	a := attrsFromRecord(t.e.Meta, &st)
	if err := r.extended(t, &a, &fsys.Node{FD: sdir.FD, Path: true}); err != nil {
		return err
	}
	r.compareStat(t, d, &a, &have, agrees(t.e.Meta, &st))
	return r.compareExtended(t, d, &a, fsys.Node{FD: dir.FD, Path: true})
}

// listExtra finds the names of a destination directory that the source directory
// does not have. Each is looked for in the source rather than both listed: memory
// stays bounded whatever the size of the directory.
func (r *run) listExtra(t *target, sdir, dir *fsys.Dir) (*extra, error) {
	fd, err := r.openList(dir.FD)
	if err != nil {
		return nil, opError("list", t.path, err)
	}
	defer func() { _ = fsys.Close(fd) }()
	buf, err := r.buffer(t)
	if err != nil {
		return nil, err
	}
	defer r.giveBack(buf)
	x := &extra{}
	n := 0
	err = fsys.EachName(fd, buf, func(name string) error {
		if n++; n%1024 == 0 {
			if err := r.check(); err != nil {
				return err
			}
		}
		if t.path == "" && entry.IsMark(name) {
			return nil // the mark of another job, or of one that was killed
		}
		var st unix.Stat_t
		switch err := fsys.Lstatat(sdir.FD, name, &st); fsys.Errno(err) {
		case 0:
			return nil
		case unix.ENOENT:
		default:
			return sourceError("look for in source", t.e.Path, err)
		}
		switch err := fsys.Lstatat(dir.FD, name, &st); fsys.Errno(err) {
		case 0:
		case unix.ENOENT:
			return nil // gone meanwhile
		default:
			return opError("stat target", t.path, err)
		}
		if x.count++; len(x.names) < mostExtras {
			x.names = append(x.names, extraName{name, fsys.Type(st.Mode)})
		}
		return nil
	})
	slices.SortFunc(x.names, func(a, b extraName) int { return cmp.Compare(a.name, b.name) })
	return x, opError("list", t.path, err)
}

// openList opens the directory behind the O_PATH descriptor fd for listing,
// without touching its access time where that is permitted.
func (r *run) openList(fd int) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	list, err := r.j.e.proc.Reopen(fd, flags|unix.O_NOATIME)
	if fsys.Errno(err) == unix.EPERM {
		list, err = r.j.e.proc.Reopen(fd, flags)
	}
	return list, err
}

// failExtra records names that the destination has and the source has not.
func (r *run) failExtra(t *target, x *extra, c *entry.Counts) {
	c.Extra += x.count
	if x.count == 0 {
		return
	}
	fail := func(path string, isDir bool, format string, args ...any) indexedFailure {
		return indexedFailure{t.index, Failure{
			File: t.e.File, Line: t.e.Line, Path: path, Op: verifyOp, Kind: uint8(fault.Corrupt), IsDir: isDir,
			Reason: verifyOp + ": extra: " + fmt.Sprintf(format, args...),
		}}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	names := x.names[:min(len(x.names), mostExtrasTold-r.extrasTold)]
	r.extrasTold += len(names)
	for _, n := range names {
		path := n.name
		if t.e.Path != "" {
			path = t.e.Path + "/" + path
		}
		r.failures = append(r.failures, fail(path, n.kind == unix.S_IFDIR, "a %s that the source does not have", kindName(n.kind)))
	}
	if more := x.count - uint64(len(names)); more > 0 {
		r.failures = append(r.failures, fail(t.e.Path, true, "%d further names in this directory that the source does not have", more))
	}
}
