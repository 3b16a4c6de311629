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

// copyRegular copies the regular file src. The reader of the target sees the old
// file or the new one: the copy is nameless, or under a temporary name, until it
// is complete.
func (r *run) copyRegular(t *target, dir *fsys.Dir, name string, src source, st *unix.Stat_t, res *copied) (err error) {
	in := src.fd
	if !src.data {
		if in, err = r.openData(in); err != nil {
			return sourceError("open source", t.e.Path, err)
		}
		defer func() { _ = fsys.Close(in) }()
	}
	var a attrs
	if r.j.spec.WriteMeta {
		if a, err = r.fileAttrs(t, st, fsys.Node{FD: in}); err != nil {
			return err
		}
	}
	f := &newFile{}
	if err := r.create(t, dir, &a, f); err != nil {
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
	size, err := r.copyData(t, f.fd, in, st, res, sum)
	if err != nil {
		return err
	}
	if err := r.unchanged(t, in, st, res); err != nil {
		return err
	}
	if sum != nil {
		// Before it gets its times, which reading would change.
		if err := r.readBack(t, f.fd, size, sum.Sum128()); err != nil {
			return err
		}
		res.verified = true
	}
	if r.j.spec.WriteMeta {
		t.refused = false
		n := fsys.Node{FD: f.fd}
		o := applyOpts{fresh: true, aclLeft: r.inheritsACL(dir, n), modeSet: r.j.e.cfg.UmaskZero && f.mode == a.mode&0o777}
		o.owned = f.temp == "" && r.madeFor(dir, f.fd, &a)
		err := r.apply(t, n, &a, o)
		if t.refused && f.temp == "" && r.j.tryNamed(dir.Dev) {
			t.named = true
			return errNoLink
		}
		if t.named && t.refused {
			r.j.namedRefused(dir.Dev)
		}
		if err != nil {
			return err
		}
		if t.named && !t.refused { // what has no name can't be given any: the named file could
			r.j.linkFailed(dir.Dev, fsys.LinkByProc)
		}
	}
	if r.j.spec.Sync == SyncFile || r.j.spec.Sync != SyncNone && r.trusted(t) {
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

// readFlags open a regular file, and whatever else it may turn out to be, for
// reading: no writer and no carrier is waited for, and no terminal becomes this
// process's own.
const readFlags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY

// openData opens the regular file behind src for reading, without touching its
// access time where that is permitted.
func (r *run) openData(src int) (int, error) {
	if !r.j.noAtimeNo.Load() {
		fd, err := r.j.e.proc.Reopen(src, readFlags|unix.O_NOATIME)
		if fsys.Errno(err) != unix.EPERM {
			return fd, err
		}
		r.j.noAtimeNo.Store(true) // files of other owners: don't ask again
	}
	return r.j.e.proc.Reopen(src, readFlags)
}

// openToRead is openData of the name in dir. A symbolic link gives an error.
func (r *run) openToRead(dir int, name string) (int, error) {
	const flags = readFlags | unix.O_NOFOLLOW
	if !r.j.noAtimeNo.Load() {
		fd, err := fsys.Openat(dir, name, flags|unix.O_NOATIME, 0)
		if fsys.Errno(err) != unix.EPERM {
			return fd, err
		}
		r.j.noAtimeNo.Store(true)
	}
	return fsys.Openat(dir, name, flags, 0)
}

// create makes f, the file that will become the target. With its final mode, if
// nothing can open it before it is complete and nothing will change the mode:
// that saves a call per file.
func (r *run) create(t *target, dir *fsys.Dir, a *attrs, f *newFile) error {
	*f = newFile{mode: defaultFileMode, method: r.j.linkMethod(dir.Dev)}
	access := unix.O_WRONLY
	if r.j.spec.Verify == VerifyChecksum {
		access = unix.O_RDWR // it is read back
	}
	if f.method != fsys.LinkNone && !t.named {
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
				return errParentGone
			}
		case unix.EOPNOTSUPP, unix.EISDIR, unix.EINVAL, unix.ENOSYS:
		default:
			return err
		}
		r.j.linkFailed(dir.Dev, fsys.LinkByProc) // NFS and old kernels: no nameless files at all
		f.method = fsys.LinkNone
	}
	if r.j.spec.WriteMeta {
		f.mode = 0o600 // it has a name that others may open
	}
	if err := r.mayRename(t, dir); err != nil {
		return err
	}
	f.temp = r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.check(); err != nil {
		return err
	}
	err := r.changing(dir, func() error {
		return withTemp(dir, f.temp, func() (err error) {
			f.fd, err = fsys.Openat(dir.FD, f.temp, unix.O_CREAT|unix.O_EXCL|access|unix.O_NOFOLLOW, f.mode)
			return err
		})
	})
	if fsys.Errno(err) == unix.ENOENT && dir.Gone() {
		return errParentGone
	}
	return err
}

// foreign reports whether somebody else may change, at any time, what new objects in dir
// get from it: its owner may.
func (r *run) foreign(dir *fsys.Dir) bool { return int64(dir.Stat.Uid) != int64(r.j.e.user.uid) }

// inheritsACL reports whether n, which was just made in dir, may have got an ACL from it.
func (r *run) inheritsACL(dir *fsys.Dir, n fsys.Node) bool {
	return dir.HasDefaultACL() || r.foreign(dir) && !dir.NoACLs() && n.HasACL()
}

// madeFor reports whether the nameless file fd, which was made in dir, belongs to owner
// and group of a already. The first file in a directory tells about the others, unless
// somebody else may give the directory another group, or the bit that hands it on. What
// is not known for sure is set.
func (r *run) madeFor(dir *fsys.Dir, fd int, a *attrs) bool {
	if r.foreign(dir) {
		return false
	}
	o, known := dir.Gives()
	if !known {
		var st unix.Stat_t
		if fsys.Fstat(fd, &st) != nil {
			return false
		}
		o = fsys.Owner{UID: st.Uid, GID: st.Gid}
		dir.SetGives(o)
	}
	return int64(o.UID) == int64(a.uid) && int64(o.GID) == int64(a.gid)
}

// copyData copies the contents, gives them to sum, which may be nil, and returns how
// many bytes they are.
func (r *run) copyData(t *target, out, in int, st *unix.Stat_t, res *copied, sum *xxh3.Hasher) (int64, error) {
	if st.Size == 0 && !t.toEnd {
		return 0, nil
	}
	buf, err := r.buffer(t)
	if err != nil {
		return 0, err
	}
	defer r.giveBack(buf)
	r.task.copies(r.j.e, st.Size)
	defer r.task.copies(r.j.e, 0)
	// What changes is not cloned: how much a clone holds is the file system's to say.
	c := fsys.Copier{Buf: buf, Clone: !t.take && !r.j.noClone.Load(), Range: !r.j.noRange.Load(),
		Writeback: r.j.spec.Sync != SyncNone, Check: r.ask, Hash: sum, At: &r.task.at}
	size := st.Size
	if t.toEnd {
		size, err = c.CopyToEnd(out, in)
	} else {
		err = c.Copy(out, in, size, st.Blocks*512 < st.Size)
	}
	if c.NoClone {
		r.j.noClone.Store(true)
	}
	if c.NoRange {
		r.j.noRange.Store(true)
	}
	res.holes, res.clone = c.Holes, c.Cloned
	switch {
	case err == nil:
		return size, nil
	case errors.Is(err, fsys.ErrShort) && t.take:
		return c.Short, r.takeShort(t, out, c.Short, res)
	}
	return 0, r.copyError(t, in, st, err)
}

// copyError is what an error of copying contents means.
func (r *run) copyError(t *target, in int, st *unix.Stat_t, err error) error {
	var data *fsys.DataError
	switch {
	case errors.Is(err, fsys.ErrShort):
		if err := r.stillSame(t, in, st); err != nil {
			return err
		}
		return errShorter
	case errors.As(err, &data) && data.Write:
		return opError("write", t.path, data.Err)
	case errors.As(err, &data):
		return sourceError("read source", t.e.Path, data.Err)
	}
	return err
}

// takeShort takes a source that lost its end while it was read for the last time.
func (r *run) takeShort(t *target, out int, size int64, res *copied) error {
	if err := fsys.Ftruncate(out, size); err != nil { // it may end in a hole
		return opError("write", t.path, err)
	}
	res.taken, res.size = true, uint64(size)
	if t.e.Mode != "mm" {
		res.bytes = res.size
	}
	return nil
}

// unchanged is stillSame that takes a source which did not hold still any of the times
// that it was read, if the job wants that. The target has the time that the source had
// before, so that it differs from the source and the next run copies it again.
func (r *run) unchanged(t *target, in int, st *unix.Stat_t, res *copied) error {
	err := r.stillSame(t, in, st)
	if errors.Is(err, errChanged) && t.take {
		res.taken, err = true, nil
	}
	if res.taken {
		t.lose(WarnTaken)
	}
	return err
}

// buffer waits for a buffer within the limits of job and engine, to be given back.
func (r *run) buffer(t *target) ([]byte, error) {
	r.task.waits()
	if err := r.j.memory.acquire(r.ctx); err != nil {
		return nil, &fault.Error{Kind: fault.Canceled, Op: "copy", Path: t.e.Path, Err: err}
	}
	buf, err := r.j.e.bufs.get(r.ctx)
	if err != nil {
		r.j.memory.release()
		return nil, &fault.Error{Kind: fault.Canceled, Op: "copy", Path: t.e.Path, Err: err}
	}
	r.task.took()
	r.task.progress(r.j.e)
	return buf, nil
}

// giveBack gives back what buffer returned.
func (r *run) giveBack(buf []byte) {
	if r.task.gave() { // else another was made in its place while a call hung
		r.j.e.bufs.put(buf)
	}
	r.j.memory.release()
}

// stillSame reports errChanged if the source is not as it was before it was read.
func (r *run) stillSame(t *target, in int, st *unix.Stat_t) error {
	if t.madeUp {
		return nil
	}
	var now unix.Stat_t
	if err := fsys.Fstat(in, &now); err != nil {
		return sourceError("stat source", t.e.Path, err)
	}
	if now.Size != st.Size || now.Mtim != st.Mtim || now.Ctim != st.Ctim {
		return errChanged
	}
	return nil
}
