package engine

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// remove executes OpUnlink and OpRemoveTree.
func (r *run) remove(t *target, c *Counts) error {
	if t.path == "" {
		return &fault.Error{Kind: fault.Denied, Op: "delete", Path: "/",
			Err: errors.New("the destination root itself is never deleted")}
	}
	wantDir := t.e.Op == OpRemoveTree
	parent, name := split(t.path)
	dir, err := r.existing(parent)
	if fsys.Errno(err) == unix.ENOENT {
		c.deleted(wantDir)
		return nil
	}
	if err != nil {
		return opError("open destination directory", parent, err)
	}
	defer dir.Release()
	var st unix.Stat_t
	err = r.changing(dir, func() error { return fsys.Lstatat(dir.FD, name, &st) })
	switch {
	case fsys.Errno(err) == unix.ENOENT:
		c.deleted(wantDir)
		return nil
	case err != nil:
		return opError("stat target", t.path, err)
	case (fsys.Type(st.Mode) == unix.S_IFDIR) != wantDir:
		// Something else has the name: it stays, and what the line is about is
		// gone. It can't be counted as anything else than a missing target: the
		// line of a directory above may remove it before or after this one.
		c.deleted(wantDir)
		return nil
	}
	has, err := r.sourceHas(t.e.Path, wantDir)
	if err != nil {
		return err
	}
	if has {
		c.Skipped++
		return nil
	}
	if err := r.check(); err != nil {
		return err
	}
	if wantDir {
		err = r.removeTree(dir, name, t.path)
	} else {
		err = r.changing(dir, func() error { return fsys.Unlinkat(dir.FD, name) })
		if fsys.Errno(err) == unix.ENOENT || fsys.Errno(err) == unix.EISDIR {
			err = nil
		}
		err = opError("delete", t.path, err)
	}
	if err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	c.deleted(wantDir)
	return nil
}

// deleted counts a delete line whose target is gone.
func (c *Counts) deleted(dir bool) {
	c.Deleted++
	if dir {
		c.DirsDeleted++
	}
}

// sourceHas reports whether the source has an object of the same kind at path,
// beneath its root and through no link: then the delete line is out of date,
// and what copy just made must stay.
func (r *run) sourceHas(path string, wantDir bool) (bool, error) {
	if r.j.spec.DeleteUnchecked {
		return false, nil
	}
	var st unix.Stat_t
	err := r.sourceStat(path, &st)
	switch fsys.Errno(err) {
	case 0:
		return (fsys.Type(st.Mode) == unix.S_IFDIR) == wantDir, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return false, nil
	}
	return false, sourceError("look for in source", path, err)
}

// removeDirInWay removes the directory that stands where a file belongs.
func (r *run) removeDirInWay(t *target, dir *fsys.Dir, name string) error {
	if r.j.spec.Replace == ReplaceNever {
		return errKept
	}
	err := r.removeTree(dir, name, t.path)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // it has become a file meanwhile: the caller goes round again
	}
	return err
}

// removeTree removes the directory tree name in dir. It crosses no mount and
// follows no link; what can't be removed does not keep the rest.
func (r *run) removeTree(dir *fsys.Dir, name, path string) error {
	x := fsys.Remover{Resolver: r.j.e.resolver, Check: r.check, OpenUp: !r.j.e.override}
	err := x.Tree(dir.FD, name)
	r.dst.DropAll() // descriptors of what is gone
	if tree, ok := errors.AsType[*fsys.TreeError](err); ok {
		full := strings.TrimSuffix(path+"/"+tree.Path, "/")
		return opError("delete", full, tree.Err)
	}
	if errors.Is(err, fsys.ErrMoved) {
		return &fault.Error{Kind: fault.Denied, Op: "delete", Path: path, Err: err, Hint: "something else works in the destination"}
	}
	return err
}
