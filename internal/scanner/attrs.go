package scanner

import (
	"bytes"
	"errors"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	// maxExtents bounds the list of a sparse file's data. A file in more pieces
	// than that is copied by asking the file system again.
	maxExtents = 4096
)

// attrReader reads extended attributes. Calls that take a path and follow no
// symlink work for entries of every type without opening them, which for a fifo
// or a device would do something; kernels before 6.13 have no such call relative
// to a descriptor, so the path leads through /proc.
type attrReader struct {
	names, value []byte
	dir          int    // the descriptor of readAt ...
	name         []byte // ... and the name below it, with a NUL
}

// noListxattrat is set once the kernel is known to lack the call.
var noListxattrat atomic.Bool

// readAt is read for a name in the directory behind fd, which may be an O_PATH
// descriptor.
func (a *attrReader) readAt(fd int, name string, rec *Record) {
	a.dir, a.name = fd, append(append(a.name[:0], name...), 0)
	a.read("", rec)
}

// path returns what leads to the entry for calls that take a path only.
func (a *attrReader) path(path string) string {
	if path == "" {
		return procPath(a.dir) + string(a.name[:len(a.name)-1])
	}
	return path
}

// listAt is listxattrat(2), which kernels have since 6.13. It spares the way through
// /proc, which costs more than the call.
func (a *attrReader) listAt() (int, error) {
	for {
		n, _, errno := syscall.Syscall6(unix.SYS_LISTXATTRAT, uintptr(a.dir), uintptr(unsafe.Pointer(&a.name[0])), unix.AT_SYMLINK_NOFOLLOW,
			uintptr(unsafe.Pointer(&a.names[0])), uintptr(len(a.names)), 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno //nolint:wrapcheck // only its errno is looked at
		}
	}
}

// read sets ACLs and extended attributes of rec; one that cannot be read marks
// the record.
func (a *attrReader) read(path string, rec *Record) {
	if a.names == nil {
		a.names, a.value = make([]byte, 1<<10), make([]byte, 1<<10)
	}
	list, err := a.list(path)
	if err != nil {
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOENT) {
			rec.Flags |= FlagAttrsPartial
		}
		return
	}
	for len(list) > 0 {
		end := bytes.IndexByte(list, 0)
		if end < 0 {
			return
		}
		name := string(list[:end])
		list = list[end+1:]
		value, err := a.get(path, name)
		switch {
		case errors.Is(err, unix.ENODATA):
			continue // removed meanwhile
		case err != nil:
			rec.Flags |= FlagAttrsPartial
			continue
		}
		switch name {
		case aclAccess:
			rec.AccessACL, err = controlfile.ACLFromXattr(value)
		case aclDefault:
			rec.DefaultACL, err = controlfile.ACLFromXattr(value)
		default:
			rec.Xattrs = append(rec.Xattrs, entry.Xattr{Name: name, Value: bytes.Clone(value)})
		}
		if err != nil {
			rec.Flags |= FlagAttrsPartial
		}
	}
}

func (a *attrReader) list(path string) ([]byte, error) {
	for {
		n, err := 0, error(unix.ENOSYS)
		if path == "" && !noListxattrat.Load() {
			if n, err = a.listAt(); errors.Is(err, unix.ENOSYS) {
				noListxattrat.Store(true)
			}
		}
		if errors.Is(err, unix.ENOSYS) {
			n, err = unix.Llistxattr(a.path(path), a.names)
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(a.names) < 1<<20:
			a.names = make([]byte, 4*len(a.names))
		case err != nil:
			return nil, err //nolint:wrapcheck // only its errno is looked at
		default:
			return a.names[:n], nil
		}
	}
}

func (a *attrReader) get(path, name string) ([]byte, error) {
	for {
		n, err := unix.Lgetxattr(a.path(path), name, a.value)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(a.value) < 4<<20:
			a.value = make([]byte, 4*len(a.value))
		case err != nil:
			return nil, err //nolint:wrapcheck // only its errno is looked at
		default:
			return a.value[:n], nil
		}
	}
}

// extents returns where a file has data; nil if that is not known or everywhere.
// The file is opened without waiting and without a change of its access time.
func extents(dirfd int, name string, size uint64) []entry.Extent {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var list []entry.Extent
	for off := int64(0); uint64(off) < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err != nil {
			if errors.Is(err, unix.ENXIO) {
				break // only a hole follows
			}
			return nil
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil || hole <= data || len(list) == maxExtents {
			return nil
		}
		list = append(list, entry.Extent{Offset: uint64(data), Length: uint64(hole - data)})
		off = hole
	}
	return list
}
