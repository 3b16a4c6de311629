package fsys

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of the attributes that hold POSIX ACLs.
const (
	XattrAccessACL  = "system.posix_acl_access"
	XattrDefaultACL = "system.posix_acl_default"
)

// Node is an object that attributes are read from or written to. With Path set
// FD is an O_PATH descriptor and calls go through /proc/self/fd, which works
// for every type, also for a symbolic link, and never opens the object.
type Node struct {
	FD   int
	Path bool
}

// Chown sets owner and group; -1 leaves one as it is.
func (n Node) Chown(uid, gid int) error {
	return retry(func() error {
		if n.Path {
			return unix.Fchownat(n.FD, "", uid, gid, unix.AT_EMPTY_PATH)
		}
		return unix.Fchown(n.FD, uid, gid)
	})
}

// Chmod sets the permission bits. Symbolic links have none: EOPNOTSUPP.
func (n Node) Chmod(mode uint32) error {
	return retry(func() error {
		if n.Path {
			return unix.Fchmodat(unix.AT_FDCWD, ProcPath(n.FD), mode, 0)
		}
		return unix.Fchmod(n.FD, mode)
	})
}

// Utimens sets access and modification time.
func (n Node) Utimens(atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	return retry(func() error {
		if n.Path {
			return unix.UtimesNanoAt(unix.AT_FDCWD, ProcPath(n.FD), ts[:], 0)
		}
		return futimens(n.FD, &ts)
	})
}

// Setxattr sets one extended attribute.
func (n Node) Setxattr(name string, value []byte) error {
	return retry(func() error {
		if n.Path {
			return unix.Setxattr(ProcPath(n.FD), name, value, 0)
		}
		return unix.Fsetxattr(n.FD, name, value, 0)
	})
}

// Removexattr removes one extended attribute; ENODATA if there is none.
func (n Node) Removexattr(name string) error {
	return retry(func() error {
		if n.Path {
			return unix.Removexattr(ProcPath(n.FD), name)
		}
		return unix.Fremovexattr(n.FD, name)
	})
}

// Getxattr returns the value of one extended attribute.
func (n Node) Getxattr(name string) ([]byte, error) {
	return readGrowing(128, func(buf []byte) (int, error) {
		if n.Path {
			return unix.Getxattr(ProcPath(n.FD), name, buf)
		}
		return unix.Fgetxattr(n.FD, name, buf)
	})
}

// HasACL reports whether the object has an access ACL, or may have one.
func (n Node) HasACL() bool {
	err := retry(func() error {
		if n.Path {
			_, err := unix.Getxattr(ProcPath(n.FD), XattrAccessACL, nil)
			return err //nolint:wrapcheck // bare errnos by contract
		}
		return hasXattr(n.FD, XattrAccessACL)
	})
	return Errno(err) != unix.ENODATA && Errno(err) != unix.EOPNOTSUPP
}

// hasXattr gives ENODATA if the open file fd has no attribute of that name.
func hasXattr(fd int, name string) error {
	var buf nameBuf
	p, err := buf.end(name)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_FGETXATTR, uintptr(fd), uintptr(unsafe.Pointer(p)), 0, 0, 0, 0)
	if errno != 0 {
		return errno //nolint:wrapcheck // bare errnos by contract
	}
	return nil
}

// Listxattr returns the names of all extended attributes that the caller may see.
func (n Node) Listxattr() ([]string, error) {
	var few [256]byte // most objects have none
	size := 0
	err := retry(func() (err error) {
		size, err = n.list(few[:])
		return err
	})
	var raw []byte
	switch Errno(err) {
	case 0:
		raw = few[:size]
	case unix.ERANGE:
		if raw, err = readGrowing(1<<16, n.list); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	var names []string
	for len(raw) > 0 { // without an iterator, to which few would have to be on the heap
		end := bytes.IndexByte(raw, 0)
		if end < 0 {
			end = len(raw)
		}
		if end > 0 {
			names = append(names, string(raw[:end]))
		}
		raw = raw[min(end+1, len(raw)):]
	}
	return names, nil
}

func (n Node) list(buf []byte) (int, error) {
	if n.Path {
		return unix.Listxattr(ProcPath(n.FD), buf) //nolint:wrapcheck // bare errnos by contract
	}
	return unix.Flistxattr(n.FD, buf) //nolint:wrapcheck // bare errnos by contract
}

// readGrowing calls f with larger buffers until its answer fits. 64 KiB is the
// kernel's limit for a value and for a list of names.
func readGrowing(size int, f func([]byte) (int, error)) ([]byte, error) {
	for {
		buf := make([]byte, size)
		var n int
		err := retry(func() (err error) {
			n, err = f(buf)
			return err
		})
		if Errno(err) == unix.ERANGE && size < 1<<16 {
			size = 1 << 16
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
