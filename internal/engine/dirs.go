package engine

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// mkdir executes OpMkdir.
func (r *run) mkdir(t *target, c *entry.Counts) error {
	if t.e.Mode == "fm" || t.e.Mode == "mm" {
		if d, err := r.dst.Get(t.path); err == nil {
			d.Release()
		} else {
			r.unexpected(t)
		}
	}
	d, err := r.makeDirs(t.path)
	if errors.Is(err, errKept) {
		c.Skipped++
		return nil
	}
	if err != nil {
		return err
	}
	d.Release()
	c.DirsCopied++
	return nil
}

// unexpected notes that the destination does not have what an entry takes it to have.
// Further attempts cannot tell: the first may have changed it.
func (r *run) unexpected(t *target) {
	if r.j.spec.ExpectTargets && len(r.b.Predecessors) == 0 {
		t.lose(WarnUnexpected)
	}
}

// errKept means that the replace policy keeps what stands in the way.
var errKept = errors.New("the target exists and the job replaces nothing")

// parent returns the destination directory that holds t, made if missing, with
// a reference for the caller, and t's name in it.
func (r *run) parent(t *target) (*fsys.Dir, string, error) {
	if t.path == "" {
		return nil, "", &fault.Error{Kind: fault.Denied, Op: "replace", Path: "/",
			Err: errors.New("the destination root itself can't be replaced, linked or removed")}
	}
	dir, name := split(t.path)
	d, err := r.makeDirs(dir)
	if errors.Is(err, errKept) {
		err = &fault.Error{Kind: fault.Denied, Op: "use parent directory", Path: dir, Err: unix.ENOTDIR,
			Hint: "something else stands there and the job replaces nothing"}
	}
	return d, name, err
}

// makeDirs returns the destination directory at path and makes what is missing
// of it, mode 0700 until it is finished. A non-directory in the way is removed:
// the control file says that a directory belongs there, and the shard with its
// own line may run later or elsewhere.
func (r *run) makeDirs(path string) (*fsys.Dir, error) {
	d, err := r.dst.Get(path)
	if err == nil {
		return r.madeDir(d, path)
	}
	if path == "" {
		return nil, opError("open destination root", path, err)
	}
	switch fsys.Errno(err) {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES:
	default:
		return nil, opError("open destination directory", path, err)
	}
	missing := fsys.Errno(err) == unix.ENOENT
	up, name := split(path)
	parent, err := r.makeDirs(up)
	if err != nil {
		return nil, err
	}
	defer parent.Release()
	fd, made, err := r.makeDir(parent, name, path, missing)
	if err != nil {
		return nil, err
	}
	if d, err = r.dst.Add(path, fd); err != nil {
		return nil, opError("open destination directory", path, err)
	}
	if made {
		d.SetSpelled() // it has no other spelling than the one that it was made with
	}
	return r.madeDir(d, path)
}

func (r *run) holdForSync(d *fsys.Dir) error {
	if d.Dev == r.j.dst.info.Dev { // held since the job was opened
		return nil
	}
	if err := r.j.holdForSync(d.Dev, d.FD); err != nil {
		d.Release()
		return err
	}
	return nil
}

// makeDir opens the directory name in parent, making it if need be, and first of all if
// it was seen to be missing. Other workers do the same at the same time, hence the
// rounds. made says that this process made it.
func (r *run) makeDir(parent *fsys.Dir, name, path string, missing bool) (fd int, made bool, err error) {
	for range 8 {
		fd, err = -1, unix.ENOENT
		if !missing {
			fd, err = fsys.OpenDirPath(parent.FD, name)
		}
		missing = false
		if err == nil {
			return fd, made, nil
		}
		op := "open destination directory"
		switch fsys.Errno(err) {
		case unix.ENOENT:
			if err := r.check(); err != nil {
				return -1, false, err
			}
			op = "make directory"
			mode := uint32(0o700)
			if !r.j.spec.WriteMeta {
				mode = defaultDirMode // nothing will finish it
			}
			err = r.changing(parent, func() error { return fsys.Mkdirat(parent.FD, name, mode) })
			made = err == nil
		case unix.ENOTDIR, unix.ELOOP:
			if r.j.spec.Replace == ReplaceNever {
				return -1, false, errKept
			}
			if err := r.check(); err != nil {
				return -1, false, err
			}
			op = "remove what stands where a directory belongs"
			var st unix.Stat_t
			if fsys.Lstatat(parent.FD, name, &st) == nil {
				if _, err := r.rival(path, parent, name, &st); err != nil && fsys.Errno(err) != unix.ENOENT {
					return -1, false, err
				}
			}
			err = r.changing(parent, func() error { return fsys.Unlinkat(parent.FD, name) })
		case unix.EACCES:
			err = r.openUp(parent, err)
		}
		switch fsys.Errno(err) {
		case 0, unix.EEXIST, unix.EISDIR:
			continue
		case unix.ENOENT:
			if parent.Gone() {
				return -1, false, errParentGone
			}
			continue
		}
		return -1, false, opError(op, path, err)
	}
	return -1, false, opError("make directory", path, err)
}

// changing calls f, which changes names in dir, and once more after adding the
// permissions that an ordinary user lacks on a directory of its own.
func (r *run) changing(dir *fsys.Dir, f func() error) error {
	err := f()
	if fsys.Errno(err) != unix.EACCES || r.openUp(dir, err) != nil {
		return err
	}
	return f()
}

// openUp gives a process that permissions bind u+rwx on a destination directory of its own,
// for the time until the directory is finished. It returns cause if that is
// not what was missing.
func (r *run) openUp(dir *fsys.Dir, cause error) error {
	if r.j.e.override {
		return cause // nothing to gain
	}
	var st unix.Stat_t
	if fsys.Fstat(dir.FD, &st) != nil {
		return cause
	}
	if st.Mode&0o700 == 0o700 {
		return nil // another thread has opened it up since; if not, trying again says the same
	}
	if err := r.check(); err != nil {
		return err
	}
	dir.ForgetGives() // a set-group-id bit may be lost
	n := fsys.Node{FD: dir.FD, Path: true}
	if n.Chmod(st.Mode&0o7777|0o700) != nil {
		return cause // not the owner
	}
	return nil
}

// existing returns the destination directory at path, or unix.ENOENT if there
// is none: missing, or reached only through something that is no directory.
func (r *run) existing(path string) (*fsys.Dir, error) {
	d, err := r.dstDir(path)
	switch fsys.Errno(err) {
	case unix.ENOTDIR, unix.ELOOP:
		return nil, unix.ENOENT
	case unix.EACCES:
		return r.existingOpened(path, err)
	}
	return d, err
}

// existingOpened is existing for an ordinary user who must open up a directory
// of its own on the way.
func (r *run) existingOpened(path string, cause error) (*fsys.Dir, error) {
	if path == "" || r.j.e.override {
		return nil, cause
	}
	up, name := split(path)
	parent, err := r.existing(up)
	if err != nil {
		return nil, err
	}
	defer parent.Release()
	fd, err := fsys.OpenDirPath(parent.FD, name)
	if fsys.Errno(err) == unix.EACCES {
		if err = r.openUp(parent, err); err == nil {
			fd, err = fsys.OpenDirPath(parent.FD, name)
		}
	}
	switch fsys.Errno(err) {
	case 0:
		d, err := r.dst.Add(path, fd)
		if err != nil {
			return nil, err
		}
		return r.spelledDir(d, path)
	case unix.ENOTDIR, unix.ELOOP:
		return nil, unix.ENOENT
	}
	return nil, err
}

// sourceParent returns the source directory that holds the entry at path and
// the entry's name in it. The errors are those of reading the source.
func (r *run) sourceParent(path string) (*fsys.Dir, string, error) {
	dir, name := split(path)
	d, err := r.src.Get(dir)
	if err != nil {
		return nil, "", sourceError("open source directory", dir, err)
	}
	return d, name, nil
}

// sourceStat fills st from the source object at path, beneath the source root
// and following no link.
func (r *run) sourceStat(path string, st *unix.Stat_t) error {
	if path == "" {
		return fsys.Fstat(r.j.src.fd, st)
	}
	dir, name := split(path)
	d, err := r.src.Get(dir)
	if err != nil {
		return err
	}
	defer d.Release()
	return fsys.Lstatat(d.FD, name, st)
}
