package engine

import (
	"errors"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

const (
	defaultFileMode = 0o644 // of files whose metadata is not written
	defaultDirMode  = 0o755
)

// newFile is a regular file that has no final name yet.
type newFile struct {
	fd     int
	temp   string // "" = nameless
	method fsys.LinkMethod
	mode   uint32 // what it was made with, before the umask
}

// copyRegular copies the regular file behind the O_PATH descriptor src. The
// reader of the target sees the old file or the new one: the copy is nameless,
// or under a temporary name, until it is complete.
func (r *run) copyRegular(t *target, dir *fsys.Dir, name string, src int, st *unix.Stat_t, res *copied) error {
	in, err := r.openData(src)
	if err != nil {
		return sourceError("open source", t.e.Path, err)
	}
	defer func() { _ = fsys.Close(in) }()
	var a attrs
	if r.j.spec.WriteMeta {
		if a, err = r.fileAttrs(t, st, fsys.Node{FD: in}); err != nil {
			return err
		}
	}
	f, err := r.create(t, dir, &a)
	if err != nil {
		return opError("create", t.path, err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = fsys.Close(f.fd)
		}
		if f.temp != "" { // whatever went wrong: ours alone, and of no use to anybody
			_ = fsys.Unlinkat(dir.FD, f.temp)
		}
	}()
	var sum *xxh3.Hasher
	if r.j.spec.Verify == VerifyChecksum {
		sum = xxh3.New()
	}
	if err := r.copyData(t, f.fd, in, st, res, sum); err != nil {
		return err
	}
	if err := r.stillSame(t, in, st); err != nil {
		return err
	}
	if sum != nil {
		// Before it gets its times, which reading would change.
		if err := r.readBack(t, f.fd, st, sum.Sum128()); err != nil {
			return err
		}
		res.verified = true
	}
	if r.j.spec.WriteMeta {
		n := fsys.Node{FD: f.fd}
		o := applyOpts{fresh: true, aclLeft: dir.HasDefaultACL(), modeSet: r.j.e.cfg.UmaskZero && f.mode == a.mode&0o777}
		if err := r.apply(t, n, &a, o); err != nil {
			return err
		}
	}
	if r.j.spec.Sync == SyncFile {
		if err := fsys.Fsync(f.fd); err != nil {
			return opError("sync", t.path, err)
		}
	}
	if f.temp == "" {
		if err := r.publishNameless(t, dir, name, f, &a); err != nil {
			return err
		}
	}
	// A file server may report a full disk only here, so a named file is closed
	// before it gets its final name.
	closed = true
	if err := fsys.Close(f.fd); err != nil {
		return opError("close", t.path, err)
	}
	if f.temp == "" {
		return nil
	}
	err = r.publishNamed(t, dir, f.temp, name)
	if err == nil {
		f.temp = ""
	}
	return err
}

// openData opens the regular file behind src for reading, without touching its
// access time where that is permitted.
func (r *run) openData(src int) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK
	if !r.j.noAtimeNo.Load() {
		fd, err := r.j.e.proc.Reopen(src, flags|unix.O_NOATIME)
		if fsys.Errno(err) != unix.EPERM {
			return fd, err
		}
		r.j.noAtimeNo.Store(true) // files of other owners: don't ask again
	}
	return r.j.e.proc.Reopen(src, flags)
}

// create makes the file that will become the target. With its final mode, if
// nothing can open it before it is complete and nothing will change the mode:
// that saves a call per file.
func (r *run) create(t *target, dir *fsys.Dir, a *attrs) (*newFile, error) {
	f := &newFile{mode: defaultFileMode, method: r.j.linkMethod(dir.Dev)}
	access := unix.O_WRONLY
	if r.j.spec.Verify == VerifyChecksum {
		access = unix.O_RDWR // it is read back
	}
	if f.method != fsys.LinkNone {
		if r.j.spec.WriteMeta {
			f.mode = 0o600
			if a.access == nil && len(a.xattrs) == 0 && !dir.HasDefaultACL() {
				f.mode = a.mode & 0o777
			}
		}
		err := r.changing(dir, func() (err error) {
			f.fd, err = fsys.Openat(dir.FD, ".", unix.O_TMPFILE|access, f.mode)
			return err
		})
		switch fsys.Errno(err) {
		case unix.ENOENT:
			if dir.Gone() {
				return nil, errParentGone
			}
		case unix.EOPNOTSUPP, unix.EISDIR, unix.EINVAL, unix.ENOSYS:
		default:
			return f, err
		}
		r.j.linkFailed(dir.Dev, fsys.LinkByProc) // NFS and old kernels: no nameless files at all
		f.method = fsys.LinkNone
	}
	if r.j.spec.WriteMeta {
		f.mode = 0o600 // it has a name that others may open
	}
	f.temp = r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.check(); err != nil {
		return nil, err
	}
	err := r.changing(dir, func() error {
		return withTemp(dir, f.temp, func() (err error) {
			f.fd, err = fsys.Openat(dir.FD, f.temp, unix.O_CREAT|unix.O_EXCL|access|unix.O_NOFOLLOW, f.mode)
			return err
		})
	})
	if fsys.Errno(err) == unix.ENOENT && dir.Gone() {
		return nil, errParentGone
	}
	return f, err
}

// copyData copies the contents and gives them to sum, which may be nil.
func (r *run) copyData(t *target, out, in int, st *unix.Stat_t, res *copied, sum *xxh3.Hasher) error {
	if st.Size == 0 {
		return nil
	}
	buf, release, err := r.buffer(t)
	if err != nil {
		return err
	}
	defer release()
	c := fsys.Copier{Buf: buf, Clone: !r.j.noClone.Load(), Range: !r.j.noRange.Load(),
		Writeback: r.j.spec.Sync != SyncNone, Check: r.check, Hash: sum}
	err = c.Copy(out, in, st.Size, st.Blocks*512 < st.Size)
	if c.NoClone {
		r.j.noClone.Store(true)
	}
	if c.NoRange {
		r.j.noRange.Store(true)
	}
	res.holes, res.clone = c.Holes, c.Cloned
	var data *fsys.DataError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fsys.ErrShort):
		return errChanged
	case errors.As(err, &data) && data.Write:
		return opError("write", t.path, data.Err)
	case errors.As(err, &data):
		return sourceError("read source", t.e.Path, data.Err)
	}
	return err
}

// buffer waits for a buffer within the limits of job and engine.
func (r *run) buffer(t *target) (buf []byte, release func(), err error) {
	r.task.waits()
	if err := r.j.memory.acquire(r.ctx); err != nil {
		return nil, nil, &fault.Error{Kind: fault.Canceled, Op: "copy", Path: t.e.Path, Err: err}
	}
	buf, err = r.j.e.bufs.get(r.ctx)
	if err != nil {
		r.j.memory.release()
		return nil, nil, &fault.Error{Kind: fault.Canceled, Op: "copy", Path: t.e.Path, Err: err}
	}
	r.task.took()
	r.task.progress(r.j.e)
	return buf, func() {
		if r.task.gave() { // else another was made in its place while a call hung
			r.j.e.bufs.put(buf)
		}
		r.j.memory.release()
	}, nil
}

// stillSame reports errChanged if the source is not as it was before it was read.
func (r *run) stillSame(t *target, in int, st *unix.Stat_t) error {
	var now unix.Stat_t
	if err := fsys.Fstat(in, &now); err != nil {
		return sourceError("stat source", t.e.Path, err)
	}
	if now.Size != st.Size || now.Mtim != st.Mtim || now.Ctim != st.Ctim {
		return errChanged
	}
	return nil
}

// errNoLink means that nameless files can't be named here: copy again to a
// temporary name.
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
		if r.j.spec.Replace == ReplaceNever {
			return errKept // it was not there a moment ago
		}
		var st unix.Stat_t
		if err := fsys.Lstatat(dir.FD, name, &st); fsys.Errno(err) == unix.ENOENT {
			continue
		} else if err != nil {
			return opError("stat target", t.path, err)
		}
		switch {
		case fsys.Type(st.Mode) == unix.S_IFDIR:
			if err := r.removeDirInWay(t, dir, name); err != nil {
				return err
			}
			continue
		case r.twin(f.fd, &st):
			return nil
		}
		return r.linkOver(t, dir, name, f)
	}
	return opError("link", t.path, unix.EEXIST)
}

// linkOver replaces an existing target by a nameless file: it needs a temporary
// name, because there is no link that replaces.
func (r *run) linkOver(t *target, dir *fsys.Dir, name string, f *newFile) error {
	temp := r.tempName(r.b.Attempt, uint32(t.index))
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

// twin reports whether the target is the copy that a concurrent attempt at this
// entry has put there: the same size, times and owner, and younger than our own
// nameless file. A target that merely looks the same but was there before is
// not trusted: its contents may differ.
func (r *run) twin(fd int, st *unix.Stat_t) bool {
	var own unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &own)
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
	for range 8 {
		if err := r.check(); err != nil {
			return err
		}
		var err error
		if r.j.spec.Replace == ReplaceNever {
			err = r.linkTemp(dir, temp, name)
		} else {
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
		if errors.Is(err, errKept) {
			return err
		}
		return opError("rename to", t.path, err)
	}
	return opError("rename to", t.path, unix.EISDIR)
}

// linkTemp is renameTemp that never replaces.
func (r *run) linkTemp(dir *fsys.Dir, temp, name string) error {
	err := fsys.Linkat(dir.FD, temp, dir.FD, name)
	switch fsys.Errno(err) {
	case 0:
		return fsys.Unlinkat(dir.FD, temp)
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
