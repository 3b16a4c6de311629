package engine

import (
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
)

// copySpecial makes a symbolic link, fifo, socket or device node like the one
// behind the O_PATH descriptor src, under a temporary name, and renames it.
// Nothing but the regular file is ever opened.
func (r *run) copySpecial(t *target, dir *fsys.Dir, name string, src int, st *unix.Stat_t, res *copied) (err error) {
	kind := fsys.Type(st.Mode)
	var link string
	if kind == unix.S_IFLNK {
		if link, err = fsys.Readlink(src); err != nil {
			return sourceError("read link", t.e.Path, err)
		}
	}
	if err := r.mayRename(t, dir); err != nil {
		return err
	}
	temp := r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.check(); err != nil {
		return err
	}
	err = r.changing(dir, func() error {
		return withTemp(dir, temp, func() error {
			if kind == unix.S_IFLNK {
				return fsys.Symlinkat(link, dir.FD, temp)
			}
			return fsys.Mknodat(dir.FD, temp, kind|0o600, st.Rdev)
		})
	})
	switch {
	case err == nil:
	case fsys.Errno(err) == unix.ENOENT && dir.Gone():
		return errParentGone
	case kind == unix.S_IFSOCK && (fsys.Errno(err) == unix.EPERM || fsys.Errno(err) == unix.EOPNOTSUPP || fsys.Errno(err) == unix.EINVAL || fsys.Errno(err) == unix.ENOSYS):
		t.lose(WarnSocket)
		res.state = stateRefused
		return nil
	default:
		return opError("make "+kindName(kind), t.path, err)
	}
	defer func() {
		if err != nil {
			_ = fsys.Unlinkat(dir.FD, temp)
		}
	}()
	if err := r.specialAttrs(t, dir, temp, src, st); err != nil {
		return err
	}
	return r.publishNamed(t, dir, temp, name)
}

func (r *run) specialAttrs(t *target, dir *fsys.Dir, temp string, src int, st *unix.Stat_t) error {
	kind := fsys.Type(st.Mode)
	if !r.j.spec.WriteMeta && kind == unix.S_IFLNK {
		return nil
	}
	fd, err := fsys.OpenPath(dir.FD, temp)
	if err != nil {
		return opError("open the temporary "+kindName(kind)+" for", t.path, err)
	}
	defer func() { _ = fsys.Close(fd) }()
	// Somebody who may write in the directory may have put another object there.
	var made unix.Stat_t
	if err := fsys.Fstat(fd, &made); err != nil {
		return opError("stat the temporary "+kindName(kind)+" for", t.path, err)
	}
	if fsys.Type(made.Mode) != kind || made.Nlink != 1 {
		return opError("use the temporary "+kindName(kind)+" for", t.path, unix.EEXIST)
	}
	n := fsys.Node{FD: fd, Path: true}
	if !r.j.spec.WriteMeta {
		return opError("set mode of", t.path, n.Chmod(defaultFileMode))
	}
	a, err := r.fileAttrs(t, st, fsys.Node{FD: src, Path: true})
	if err != nil {
		return err
	}
	return r.apply(t, n, &a, applyOpts{fresh: true, aclLeft: kind != unix.S_IFLNK && r.inheritsACL(dir, n), symlink: kind == unix.S_IFLNK})
}

func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return "object"
}
