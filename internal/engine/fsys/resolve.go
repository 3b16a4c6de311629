package fsys

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Resolver opens paths beneath a root descriptor. No component of a path is
// followed if it is a symbolic link, and the result is never outside the root.
// It is immutable and safe for concurrent use.
type Resolver struct {
	walkOnly bool
}

// contained is what every openat2 asks for. "..", absolute paths and links
// that lead out are refused by the kernel while it walks, so that swapping
// components during the walk gains nothing.
const contained = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// NewResolver probes for openat2 once. Kernels before 5.6 and some seccomp
// profiles (which answer EPERM) lack it; then paths are walked component by
// component. Deciding once, rather than by each errno, means that a refusal of
// the kernel can never turn into a second, weaker attempt.
func NewResolver() *Resolver {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err != nil {
		return NewWalkResolver()
	}
	_ = Close(fd)
	return &Resolver{}
}

// NewWalkResolver returns a Resolver that never uses openat2.
func NewWalkResolver() *Resolver { return &Resolver{walkOnly: true} }

// OpenDir returns an O_PATH descriptor of the directory path beneath root; ""
// is the root itself. A symbolic link in the path gives ELOOP.
func (r *Resolver) OpenDir(root int, path string) (int, error) {
	return r.open(root, path, unix.O_PATH|unix.O_DIRECTORY, contained)
}

// OpenDirNoXdev opens the directory name directly beneath dirfd for reading,
// or gives EXDEV if it is a mount point (a bind mount of the same file system
// included where the kernel has openat2).
func (r *Resolver) OpenDirNoXdev(dirfd int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NONBLOCK
	if !r.walkOnly {
		return r.open(dirfd, name, flags, contained|unix.RESOLVE_NO_XDEV)
	}
	fd, err := Openat(dirfd, name, flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &stx); err == nil &&
		stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		if stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			_ = Close(fd)
			return -1, unix.EXDEV
		}
		return fd, nil
	}
	var up, down unix.Stat_t
	if Fstat(dirfd, &up) != nil || Fstat(fd, &down) != nil || up.Dev != down.Dev {
		_ = Close(fd)
		return -1, unix.EXDEV
	}
	return fd, nil
}

func (r *Resolver) open(root int, path string, flags int, resolve uint64) (int, error) {
	if path == "" {
		path = "."
	}
	if r.walkOnly {
		return walk(root, path, flags)
	}
	// Without O_NOFOLLOW, which would turn a link at the end into ENOTDIR: the
	// resolution itself refuses it, with ELOOP.
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	// EAGAIN means that a rename or mount raced with the resolution; it is
	// bounded only so that a hostile renamer can't hold a thread for ever.
	for range 1000 {
		fd, err := unix.Openat2(root, path, &how)
		switch Errno(err) {
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return fd, err //nolint:wrapcheck // bare errnos by contract
	}
	return -1, unix.EAGAIN
}

// walk is open without openat2: one O_PATH|O_NOFOLLOW descriptor per component.
func walk(root int, path string, flags int) (int, error) {
	if strings.HasPrefix(path, "/") {
		return -1, unix.EXDEV
	}
	cur, owned := root, false
	for {
		name, rest, more := strings.Cut(path, "/")
		switch name {
		case "..":
			closeIf(owned, cur)
			return -1, unix.EXDEV
		case "":
			closeIf(owned, cur)
			return -1, unix.EINVAL
		}
		var next int
		var err error
		if more {
			next, err = OpenDirPath(cur, name)
		} else {
			next, err = Openat(cur, name, flags|unix.O_NOFOLLOW, 0)
		}
		if Errno(err) == unix.ENOTDIR {
			// The same answer as openat2 for a link in the way.
			var st unix.Stat_t
			if Lstatat(cur, name, &st) == nil && Type(st.Mode) == unix.S_IFLNK {
				err = unix.ELOOP
			}
		}
		closeIf(owned, cur)
		if err != nil || !more {
			return next, err
		}
		cur, owned, path = next, true, rest
	}
}

func closeIf(owned bool, fd int) {
	if owned {
		_ = Close(fd)
	}
}
