package engine

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// finish executes OpFinish and OpTouch: a directory gets its metadata, after
// everything that changes names in it.
func (r *run) finish(t *target, c *entry.Counts) error {
	dir, err := r.existing(t.path)
	if err != nil {
		return opError("open destination directory", t.path, err)
	}
	defer dir.Release()
	if r.j.spec.WriteMeta {
		if err := r.finishDir(t, dir); err != nil {
			return err
		}
	}
	if t.e.Op == entry.OpTouch {
		c.DirsTouched++
	} else {
		c.DirsFinished++
	}
	return nil
}

func (r *run) finishDir(t *target, dir *fsys.Dir) error {
	if t.e.Meta == nil {
		return &fault.Error{Kind: fault.Invalid, Op: "finish directory", Path: t.e.Path, Err: errors.New("the entry has no metadata")}
	}
	var st *unix.Stat_t
	var src *fsys.Node
	sdir, err := r.src.Get(t.e.Path)
	switch fsys.Errno(err) {
	case 0:
		defer sdir.Release()
		src, st = &fsys.Node{FD: sdir.FD, Path: true}, &sdir.Stat
		if sdir.Protected && t.e.Op == entry.OpFinish {
			t.lose(WarnFlags)
		}
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES:
		// The record has everything but nanoseconds.
	default:
		return sourceError("open source directory", t.e.Path, err)
	}
	a := attrsFromRecord(t.e.Meta, st)
	if err := r.check(); err != nil {
		return err
	}
	n := fsys.Node{FD: dir.FD, Path: true}
	if t.e.Op == entry.OpFinish {
		if err := r.extended(t, &a, src); err != nil {
			return err
		}
		return r.apply(t, n, &a, applyOpts{})
	}
	mode := a.mode
	if err := n.Chown(a.uid, a.gid); err != nil {
		if mode, err = r.chownPartly(t, n, &a, err); err != nil {
			return err
		}
	}
	if err := n.Chmod(mode); err != nil {
		return opError("set mode of", t.path, err)
	}
	return r.setTimes(t, n, &a)
}
