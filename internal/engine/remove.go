package engine

import (
	"errors"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// remove executes OpUnlink and OpRemoveTree.
func (r *run) remove(t *target, c *entry.Counts) error {
	if t.path == "" {
		return &fault.Error{Kind: fault.Denied, Op: "delete", Path: "/",
			Err: errors.New("the destination root itself is never deleted")}
	}
	wantDir := t.e.Op == entry.OpRemoveTree
	parent, name := split(t.path)
	dir, err := r.existing(parent)
	if fsys.Errno(err) == unix.ENOENT {
		r.unexpected(t)
		countDeleted(c, wantDir)
		return nil
	}
	if err != nil {
		return opError("open destination directory", parent, err)
	}
	defer dir.Release()
	if done, err := r.removeUnseen(t, dir, name, wantDir, c); done || err != nil {
		return err
	}
	var st unix.Stat_t
	err = r.changing(dir, func() error { return fsys.Lstatat(dir.FD, name, &st) })
	switch {
	case fsys.Errno(err) == unix.ENOENT:
		r.unexpected(t)
		countDeleted(c, wantDir)
		return nil
	case err != nil:
		return opError("stat target", t.path, err)
	case (fsys.Type(st.Mode) == unix.S_IFDIR) != wantDir:
		// Something else has the name: it stays, and what the line is about is
		// gone. It can't be counted as anything else than a missing target: the
		// line of a directory above may remove it before or after this one.
		countDeleted(c, wantDir)
		return nil
	}
	other, err := r.otherSpelling(dir, name, &st)
	if err != nil && fsys.Errno(err) != unix.ENOENT {
		return err
	}
	if err != nil || other != "" { // another entry's, which was renamed but for the case
		countDeleted(c, wantDir)
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
	switch {
	case wantDir && r.j.spec.DeleteEmpty:
		kept, err := r.removeIfEmpty(t, dir, name)
		if err == nil && !kept {
			countDeleted(c, true)
		} else if err == nil {
			r.keepDir(t, c)
		}
		return err
	case wantDir:
		err = r.removeTree(dir, name, t.path)
	default:
		err = r.changing(dir, func() error { return fsys.Unlinkat(dir.FD, name) })
		if fsys.Errno(err) == unix.ENOENT || fsys.Errno(err) == unix.EISDIR {
			err = nil
		}
		err = opError("delete", t.path, err)
	}
	if err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	countDeleted(c, wantDir)
	return nil
}

// removeUnseen removes the target of a delete line without a look at it: the call that
// removes is told what kind it may remove. It is not done where the source must be asked
// and has the object, where the name may be another's, and where the kernel says anything
// that a look explains better.
func (r *run) removeUnseen(t *target, dir *fsys.Dir, name string, wantDir bool, c *entry.Counts) (done bool, err error) {
	if folds, known := dir.Folds(); folds || !known && hasSpellings(name) {
		return false, nil
	}
	if has, err := r.sourceHas(t.e.Path, wantDir); has || err != nil {
		return false, nil //nolint:nilerr // it is asked again if there is a target at all
	}
	if err := r.check(); err != nil {
		return false, err
	}
	if wantDir {
		err = fsys.Rmdirat(dir.FD, name)
	} else {
		err = fsys.Unlinkat(dir.FD, name)
	}
	switch errno := fsys.Errno(err); {
	case err == nil && wantDir:
		r.dst.DropPath(t.path)
	case err == nil:
	case errno == unix.ENOENT:
		r.unexpected(t)
	case errno == unix.EISDIR && !wantDir, errno == unix.ENOTDIR && wantDir: // something else has the name
	case errno == unix.ENOTEMPTY && wantDir && r.j.spec.DeleteEmpty:
		r.keepDir(t, c)
		return true, nil
	default:
		return false, nil
	}
	countDeleted(c, wantDir)
	return true, nil
}

// keepDir counts a delete line whose directory stays.
func (r *run) keepDir(t *target, c *entry.Counts) {
	c.Skipped++
	c.DirsKept++
	t.lose(WarnDirKept)
}

// WarnDirKept is the warning's kind when a delete line's directory stays, since
// something is in it that no line names, or since it is a mount point.
const WarnDirKept = "directory-not-empty"

// removeIfEmpty removes the directory name in dir; kept says that it stays because
// it is not empty. Its names have lines of their own, which were executed before.
func (r *run) removeIfEmpty(t *target, dir *fsys.Dir, name string) (kept bool, err error) {
	err = r.rmdir(dir, name, t.path)
	switch fsys.Errno(err) {
	case 0, unix.ENOENT, unix.ENOTDIR: // gone, or something else has its name by now
		return false, nil
	case unix.ENOTEMPTY, unix.EEXIST, unix.EBUSY:
		return true, nil
	}
	return false, opError("delete", t.path, err)
}

// countDeleted counts a delete line whose target is gone.
func countDeleted(c *entry.Counts, dir bool) {
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
	parent, _ := split(path)
	if r.absent.has(parent) {
		return false, nil
	}
	var st unix.Stat_t
	err := r.sourceStat(path, &st)
	switch fsys.Errno(err) {
	case 0:
		return (fsys.Type(st.Mode) == unix.S_IFDIR) == wantDir, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		r.absent.note(r, parent)
		return false, nil
	}
	return false, sourceError("look for in source", path, err)
}

// absentDirs are directories that the source was seen not to have. Delete lines come
// by the thousand from a tree that is gone, and each would have its whole path looked
// up. What comes back within the batch may be missed: it was gone when the job looked
// first, as it may be gone when the next line is executed.
type absentDirs struct {
	mu sync.Mutex
	m  map[string]struct{} // guarded by mu; at most one for each entry of the batch
}

// has reports whether the source directory, or its parent, was seen to be missing.
func (a *absentDirs) has(dir string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.m[dir]; ok {
		return true
	}
	up, _ := split(dir)
	if _, ok := a.m[up]; !ok {
		return false
	}
	a.m[dir] = struct{}{}
	return true
}

// note notes the directory if the source has none there.
func (a *absentDirs) note(r *run, dir string) {
	d, err := r.src.Get(dir)
	switch fsys.Errno(err) {
	case 0:
		d.Release()
		return
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
	default:
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[string]struct{}{}
	}
	a.m[dir] = struct{}{}
}

// removeDirInWay removes the directory that stands where a file belongs: all of
// it, or with SpareDirs only an empty one.
func (r *run) removeDirInWay(t *target, dir *fsys.Dir, name string) error {
	if r.neverReplaces(t) {
		return errKept
	}
	if r.j.spec.SpareDirs {
		return r.removeEmptyInWay(t, dir, name)
	}
	err := r.removeTree(dir, name, t.path)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // it has become a file meanwhile: the caller goes round again
	}
	return err
}

// removeEmptyInWay removes the directory that stands where a file belongs if it is
// empty. The kernel decides that within the call that removes it, so what somebody
// puts there meanwhile is spared as well.
func (r *run) removeEmptyInWay(t *target, dir *fsys.Dir, name string) error {
	err := r.rmdir(dir, name, t.path)
	switch fsys.Errno(err) {
	case unix.ENOENT, unix.ENOTDIR:
		return nil // it is gone or has become a file: the caller goes round again
	case unix.ENOTEMPTY, unix.EEXIST: // file systems say the one or the other
		return &fault.Error{Kind: fault.Unsafe, Op: "replace directory", Path: t.path, Err: unix.ENOTEMPTY,
			Hint: "move it away, or replace it with --replace-dirs"}
	}
	return opError("replace directory", t.path, err)
}

// rmdir removes the empty directory name in dir.
func (r *run) rmdir(dir *fsys.Dir, name, path string) error {
	if err := r.check(); err != nil {
		return err
	}
	err := r.changing(dir, func() error { return fsys.Rmdirat(dir.FD, name) })
	if err == nil {
		r.dst.DropPath(path)
	}
	return err
}

// removeTree removes the directory tree name in dir. It crosses no mount and
// follows no link; what can't be removed does not keep the rest.
func (r *run) removeTree(dir *fsys.Dir, name, path string) error {
	remover := func() *fsys.Remover {
		return &fsys.Remover{Resolver: r.j.e.resolver, Check: r.check, OpenUp: !r.j.e.override}
	}
	err := remover().Tree(dir.FD, name)
	r.dst.DropAll() // descriptors of what is gone
	if tree, ok := errors.AsType[*fsys.TreeError](err); ok && tree.Path == "" &&
		fsys.Errno(tree.Err) == unix.EACCES && r.openUp(dir, tree.Err) == nil {
		err = remover().Tree(dir.FD, name) // its own name could not be removed
	}
	if tree, ok := errors.AsType[*fsys.TreeError](err); ok {
		full := strings.TrimSuffix(path+"/"+tree.Path, "/")
		return opError("delete", full, tree.Err)
	}
	if errors.Is(err, fsys.ErrMoved) {
		return &fault.Error{Kind: fault.Denied, Op: "delete", Path: path, Err: err, Hint: "something else works in the destination"}
	}
	return err
}
