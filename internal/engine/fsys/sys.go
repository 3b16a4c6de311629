// Package fsys is the engine's view of the kernel: descriptor-relative system
// calls that retry on EINTR, resolution of paths that cannot leave a root
// descriptor, a cache of directory descriptors, attributes, data copy and tree
// removal.
//
// It decides nothing about entries. Functions return bare errnos (unix.Errno),
// so that the caller names operation and path. Names given to the *at calls are
// single components; only Resolver takes paths.
package fsys

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// foreign is what Errno returns for an error that is no bare errno. No system
// has it.
const foreign = unix.Errno(1 << 15)

// Errno returns err as the bare errno that it is: 0 for nil, and a number that
// equals no errno for anything else. An error that merely wraps an errno, such
// as one of a guard, must not be taken for an answer of the kernel.
func Errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok { //nolint:errorlint // only a bare errno is meant
		return errno
	}
	return foreign
}

// retry repeats f while it is interrupted by a signal. SA_RESTART does not
// cover every call: FUSE and NFS return EINTR from most of them.
func retry(f func() error) error {
	for {
		if err := f(); Errno(err) != unix.EINTR {
			return err
		}
	}
}

// nameBuf has room for a name of the longest that file systems of Linux have, and its end.
type nameBuf [256]byte

// end puts name into b, with the NUL that the kernel wants at its end; what is longer
// goes to the heap. The functions of the unix package put each name there.
func (b *nameBuf) end(name string) (*byte, error) {
	if len(name) >= len(b) {
		return unix.BytePtrFromString(name) //nolint:wrapcheck // bare errnos by contract
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, unix.EINVAL
	}
	copy(b[:], name)
	b[len(name)] = 0
	return &b[0], nil
}

// Openat opens name beneath dirfd with O_CLOEXEC added.
func Openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	var buf nameBuf
	p, err := buf.end(name)
	if err != nil {
		return -1, err
	}
	for {
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)), uintptr(flags|unix.O_CLOEXEC|unix.O_LARGEFILE), uintptr(mode), 0, 0)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, errno //nolint:wrapcheck // bare errnos by contract
		}
	}
}

// byName is a system call of one name beneath a directory.
func byName(call uintptr, dir int, name string, a, b uintptr) error {
	var buf nameBuf
	p, err := buf.end(name)
	if err != nil {
		return err
	}
	for {
		_, _, errno := unix.Syscall6(call, uintptr(dir), uintptr(unsafe.Pointer(p)), a, b, 0, 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno //nolint:wrapcheck // bare errnos by contract
		}
	}
}

// linkat is byName of the one call with two names.
func linkat(oldDir int, oldName string, newDir int, newName string, flags int) error {
	var oldBuf, newBuf nameBuf
	from, err := oldBuf.end(oldName)
	if err != nil {
		return err
	}
	to, err := newBuf.end(newName)
	if err != nil {
		return err
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_LINKAT, uintptr(oldDir), uintptr(unsafe.Pointer(from)), uintptr(newDir), uintptr(unsafe.Pointer(to)), uintptr(flags), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno //nolint:wrapcheck // bare errnos by contract
		}
	}
}

// OpenPath returns an O_PATH descriptor of name itself, a symbolic link included.
func OpenPath(dirfd int, name string) (int, error) {
	return Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
}

// OpenDirPath returns an O_PATH descriptor of the directory name. A symbolic
// link gives ENOTDIR.
func OpenDirPath(dirfd int, name string) (int, error) {
	return Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
}

// Close closes fd. EINTR is success: Linux has released the descriptor.
func Close(fd int) error {
	if err := unix.Close(fd); err != nil && Errno(err) != unix.EINTR {
		return err //nolint:wrapcheck // bare errnos by contract
	}
	return nil
}

// Fstat fills st from fd, which may be an O_PATH descriptor.
func Fstat(fd int, st *unix.Stat_t) error {
	return retry(func() error { return unix.Fstat(fd, st) })
}

// FstatFlags is Fstat that also tells, for the price of one call, whether the
// object is immutable or may only be appended to (chattr +i, +a), where kernel
// and file system say so.
func FstatFlags(fd int, st *unix.Stat_t) (protected bool, err error) {
	const mask = unix.STATX_BASIC_STATS
	var x unix.Statx_t
	err = Statx(fd, mask, &x)
	if errno := Errno(err); errno == unix.ENOSYS || errno == unix.EPERM || err == nil && x.Mask&mask != mask {
		return false, Fstat(fd, st) // old kernels, and filters of system calls that don't know it
	}
	if err != nil {
		return false, err
	}
	*st = unix.Stat_t{
		Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Ino: x.Ino, Mode: uint32(x.Mode), Uid: x.Uid, Gid: x.Gid,
		Rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor), Size: int64(x.Size), Blocks: int64(x.Blocks),
		Atim: statxTime(x.Atime), Mtim: statxTime(x.Mtime), Ctim: statxTime(x.Ctime),
	}
	setTo(&st.Nlink, x.Nlink)
	setTo(&st.Blksize, x.Blksize)
	return x.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0, nil
}

// noName is the name of what a descriptor alone leads to.
var noName byte

// Statx fills x from fd, which may be an O_PATH descriptor.
func Statx(fd, mask int, x *unix.Statx_t) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&noName)), unix.AT_EMPTY_PATH, uintptr(mask), uintptr(unsafe.Pointer(x)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno //nolint:wrapcheck // bare errnos by contract
		}
	}
}

func statxTime(t unix.StatxTimestamp) (ts unix.Timespec) {
	ts.Sec, ts.Nsec = t.Sec, int64(t.Nsec)
	return ts
}

// setTo sets a field whose width depends on the architecture.
func setTo[T ~int32 | ~int64 | ~uint32 | ~uint64](field *T, v uint32) { *field = T(v) }

// Lstatat fills st from name beneath dirfd without following a link.
func Lstatat(dirfd int, name string, st *unix.Stat_t) error {
	return retry(func() error { return unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// Mkdirat makes the directory name.
func Mkdirat(dirfd int, name string, mode uint32) error {
	return byName(unix.SYS_MKDIRAT, dirfd, name, uintptr(mode), 0)
}

// Unlinkat removes the non-directory name.
func Unlinkat(dirfd int, name string) error {
	return byName(unix.SYS_UNLINKAT, dirfd, name, 0, 0)
}

// Rmdirat removes the empty directory name.
func Rmdirat(dirfd int, name string) error {
	return byName(unix.SYS_UNLINKAT, dirfd, name, unix.AT_REMOVEDIR, 0)
}

// Linkat gives the object oldName, never followed, the further name newName.
func Linkat(oldDir int, oldName string, newDir int, newName string) error {
	return linkat(oldDir, oldName, newDir, newName, 0)
}

// Renameat renames within or between directories and replaces a target.
func Renameat(oldDir int, oldName string, newDir int, newName string) error {
	return retry(func() error { return unix.Renameat(oldDir, oldName, newDir, newName) })
}

// RenameNoReplace is Renameat that gives EEXIST where newName is taken. File systems
// that can't do that in one step give EINVAL; ENOSYS is of kernels before 3.15.
func RenameNoReplace(oldDir int, oldName string, newDir int, newName string) error {
	return retry(func() error { return unix.Renameat2(oldDir, oldName, newDir, newName, unix.RENAME_NOREPLACE) })
}

// Symlinkat makes the symbolic link name.
func Symlinkat(target string, dirfd int, name string) error {
	return retry(func() error { return unix.Symlinkat(target, dirfd, name) })
}

// Mknodat makes a fifo, socket or device node; mode includes the type.
func Mknodat(dirfd int, name string, mode uint32, rdev uint64) error {
	return retry(func() error { return unix.Mknodat(dirfd, name, mode, int(rdev)) })
}

// Readlink returns the text of the symbolic link that the O_PATH descriptor fd
// refers to.
func Readlink(fd int) (string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		var n int
		err := retry(func() (err error) {
			n, err = unix.Readlinkat(fd, "", buf)
			return err //nolint:wrapcheck // bare errnos by contract
		})
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

// Ftruncate sets the size of fd's file.
func Ftruncate(fd int, size int64) error {
	return retry(func() error { return unix.Ftruncate(fd, size) })
}

// Fsync makes fd's file durable.
func Fsync(fd int) error { return retry(func() error { return unix.Fsync(fd) }) }

// Syncfs makes everything on fd's file system durable.
func Syncfs(fd int) error { return retry(func() error { return unix.Syncfs(fd) }) }

// ProcPath returns the path by which calls that take only paths reach the
// object behind fd. The kernel goes to the object itself, not to a name.
func ProcPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// futimens is utimensat with no path, which the unix package does not offer:
// its AT_EMPTY_PATH form needs Linux 5.8.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno //nolint:wrapcheck // bare errnos by contract
	}
	return nil
}

// Proc is an open /proc/self/fd. Reopening an O_PATH descriptor beneath it is
// how a file is opened for reading without ever opening a device or a FIFO that
// was swapped in: the type is known from the O_PATH descriptor, which pins the
// object, before anything is opened. A second lookup by name after an lstat
// costs the same and can be raced. It is immutable and safe for concurrent use.
type Proc struct{ fd int }

// OpenProc opens /proc/self/fd; it fails where proc is not mounted.
func OpenProc() (*Proc, error) {
	fd, err := Openat(unix.AT_FDCWD, "/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Proc{fd: fd}, nil
}

// Reopen opens the object behind the O_PATH descriptor fd.
func (p *Proc) Reopen(fd, flags int) (int, error) {
	return Openat(p.fd, strconv.Itoa(fd), flags, 0)
}

// LinkFD gives the nameless file fd the name name in dirfd.
func (p *Proc) LinkFD(fd, dirfd int, name string) error {
	return linkat(p.fd, strconv.Itoa(fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
}

// Close closes the descriptor.
func (p *Proc) Close() error { return Close(p.fd) }

// LinkEmpty is LinkFD without /proc. Before Linux 6.10 it needs
// CAP_DAC_READ_SEARCH and gives ENOENT without it.
func LinkEmpty(fd, dirfd int, name string) error {
	return linkat(fd, "", dirfd, name, unix.AT_EMPTY_PATH)
}

// Type returns the file-type bits of a mode.
func Type(mode uint32) uint32 { return mode & unix.S_IFMT }
