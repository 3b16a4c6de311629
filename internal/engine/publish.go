package engine

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// errNoLink means that nameless files can't be named here, or can't be given their
// metadata: copy again to a temporary name.
var errNoLink = errors.New("nameless files can't be linked")

// publishNameless gives a nameless file its name.
func (r *run) publishNameless(t *target, dir *fsys.Dir, name string, f *newFile, a *attrs) error {
	for range 8 {
		if err := r.check(); err != nil {
			return err
		}
		err := r.changing(dir, func() error { return f.method.Link(r.j.e.proc, f.fd, dir.FD, name) })
		switch fsys.Errno(err) {
		case 0:
			return nil
		case unix.EEXIST:
		case unix.ENOENT, unix.EPERM, unix.EINVAL, unix.EXDEV, unix.EOPNOTSUPP:
			if fsys.Errno(err) == unix.ENOENT && dir.Gone() {
				return errParentGone
			}
			// Older kernels want a capability for the first way; some file
			// systems (seen on FUSE) make nameless files and can't link them.
			if f.method = r.j.linkFailed(dir.Dev, f.method); f.method == fsys.LinkNone {
				return errNoLink
			}
			continue
		default:
			return opError("link", t.path, err)
		}
		var st unix.Stat_t
		if err := fsys.Lstatat(dir.FD, name, &st); fsys.Errno(err) == unix.ENOENT {
			continue
		} else if err != nil {
			return opError("stat target", t.path, err)
		}
		gone, err := r.giveWay(t, dir, name, &st)
		if err != nil {
			return err
		}
		if r.neverReplaces(t) {
			return errKept // it was not there a moment ago
		}
		switch {
		case gone:
			continue
		case fsys.Type(st.Mode) == unix.S_IFDIR:
			if err := r.removeDirInWay(t, dir, name); err != nil {
				return err
			}
			continue
		case r.twin(f.fd, &st):
			return nil
		case dir.Protected:
			return r.linkOverProtected(t, dir, name, f)
		}
		return r.linkOver(t, dir, name, f)
	}
	return opError("link", t.path, unix.EEXIST)
}

// linkOver replaces an existing target by a nameless file: it needs a temporary
// name, because there is no link that replaces.
func (r *run) linkOver(t *target, dir *fsys.Dir, name string, f *newFile) error {
	temp := r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.mayRename(t, dir); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	err := withTemp(dir, temp, func() error { return f.method.Link(r.j.e.proc, f.fd, dir.FD, temp) })
	if err != nil {
		return opError("link", t.path, err)
	}
	if err := r.publishNamed(t, dir, temp, name); err != nil {
		_ = fsys.Unlinkat(dir.FD, temp)
		return err
	}
	return nil
}

// linkOverProtected is linkOver in a directory whose names stay. A target that is what
// it is to be, down to its contents, was made by a former attempt, which counted it.
func (r *run) linkOverProtected(t *target, dir *fsys.Dir, name string, f *newFile) error {
	refused := r.mayRename(t, dir)
	fd, err := fsys.OpenPath(dir.FD, name)
	if err != nil {
		return refused
	}
	defer func() { _ = fsys.Close(fd) }()
	var own, have unix.Stat_t
	if fsys.Fstat(f.fd, &own) != nil || fsys.Fstat(fd, &have) != nil || own.Mode != have.Mode || own.Size != have.Size ||
		own.Uid != have.Uid || own.Gid != have.Gid || r.j.spec.WriteMeta && own.Mtim != have.Mtim {
		return refused
	}
	a, err := r.openData(f.fd)
	if err != nil {
		return refused
	}
	defer func() { _ = fsys.Close(a) }()
	b, err := r.openData(fd)
	if err != nil {
		return refused
	}
	defer func() { _ = fsys.Close(b) }()
	buf, err := r.buffer(t)
	if err != nil {
		return err
	}
	defer r.giveBack(buf)
	same, err := fsys.SameData(a, b, own.Size, own.Blocks*512 < own.Size || have.Blocks*512 < have.Size, buf, r.check)
	switch {
	case stopsRun(err):
		return err
	case err != nil || !same:
		return refused
	}
	return nil
}

// twin reports whether the target is the copy that a concurrent attempt at this
// entry has put there: the same size, times and owner, and younger than our own
// nameless file. A target that merely looks the same but was there before is
// not trusted: its contents may differ.
func (r *run) twin(fd int, st *unix.Stat_t) bool {
	var own unix.Statx_t
	err := fsys.Statx(fd, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &own)
	if err != nil || own.Mask&unix.STATX_BTIME == 0 {
		return false
	}
	return r.j.spec.WriteMeta && st.Mode == uint32(own.Mode) && st.Size == int64(own.Size) &&
		st.Uid == own.Uid && st.Gid == own.Gid &&
		st.Mtim.Sec == own.Mtime.Sec && st.Mtim.Nsec == int64(own.Mtime.Nsec) &&
		older(timespec(own.Btime.Sec, int64(own.Btime.Nsec)), st.Ctim)
}

// publishNamed gives the temporary object its final name, in place of whatever
// is there.
func (r *run) publishNamed(t *target, dir *fsys.Dir, temp, name string) error {
	folds, err := r.folds(dir, temp)
	if err != nil {
		return err
	}
	for range 8 {
		if err := r.check(); err != nil {
			return err
		}
		switch {
		case folds:
			err = r.renameFolding(t, dir, temp, name)
		case r.neverReplaces(t):
			err = r.linkTemp(dir, temp, name)
		default:
			err = r.renameTemp(dir, temp, name)
		}
		switch fsys.Errno(err) {
		case 0:
			return nil
		case unix.EISDIR, unix.EEXIST, unix.ENOTEMPTY:
			if err := r.removeDirInWay(t, dir, name); err != nil {
				return err
			}
			continue
		}
		switch {
		case errors.Is(err, errGone):
			continue
		case errors.Is(err, errKept):
			return err
		}
		return opError("rename to", t.path, err)
	}
	return opError("rename to", t.path, unix.EISDIR)
}

// errGone means that what had the name has given way: rename again.
var errGone = errors.New("the name is free now")

// renameFolding is renameTemp in a directory that folds names: what is there may be
// another entry's, so nothing is replaced before it was looked at.
func (r *run) renameFolding(t *target, dir *fsys.Dir, temp, name string) error {
	err := r.renameNew(dir, temp, name)
	switch fsys.Errno(err) {
	case unix.EEXIST:
	case unix.ENOENT:
		return r.renameTemp(dir, temp, name) // says what is gone
	default:
		return err
	}
	var st unix.Stat_t
	if err := fsys.Lstatat(dir.FD, name, &st); fsys.Errno(err) == unix.ENOENT {
		return errGone
	} else if err != nil {
		return err
	}
	gone, err := r.giveWay(t, dir, name, &st)
	switch {
	case err != nil:
		return err
	case gone:
		return errGone
	case r.neverReplaces(t):
		return errKept
	}
	return r.renameTemp(dir, temp, name)
}

// linkTemp is renameTemp that never replaces.
func (r *run) linkTemp(dir *fsys.Dir, temp, name string) error {
	err := fsys.Linkat(dir.FD, temp, dir.FD, name)
	switch fsys.Errno(err) {
	case 0:
		return fsys.Unlinkat(dir.FD, temp)
	case unix.EPERM, unix.EMLINK, unix.EOPNOTSUPP, unix.ENOSYS: // no hard links here
		err = r.renameNew(dir, temp, name)
	}
	switch fsys.Errno(err) {
	case 0:
		return nil
	case unix.EEXIST:
		return errKept
	case unix.ENOENT:
		if dir.Gone() {
			return errParentGone
		}
		return fault.New(fault.Stale, "the temporary file of this attempt was removed: a later attempt has taken over")
	}
	return err
}

// renameNew renames where nothing has the name. Not all file systems can do that in
// one step; there a target that appears between two looks is replaced.
func (r *run) renameNew(dir *fsys.Dir, temp, name string) error {
	err := fsys.RenameNoReplace(dir.FD, temp, dir.FD, name)
	switch fsys.Errno(err) {
	case unix.EINVAL, unix.ENOSYS:
	default:
		return err
	}
	var st unix.Stat_t
	switch err := fsys.Lstatat(dir.FD, name, &st); fsys.Errno(err) {
	case 0:
		return unix.EEXIST
	case unix.ENOENT:
		return fsys.Renameat(dir.FD, temp, dir.FD, name)
	default:
		return err
	}
}
