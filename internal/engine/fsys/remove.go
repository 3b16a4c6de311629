package fsys

import (
	"encoding/binary"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// openLevels bounds the descriptors of one tree removal; shallower levels
	// are closed and found again through "..".
	openLevels = 32
	direntBuf  = 16 << 10
)

// TreeError says what could not be removed, by its path beneath the tree.
type TreeError struct {
	Path string // "" = the tree itself
	Err  error
}

// Error implements error.
func (e *TreeError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *TreeError) Unwrap() error { return e.Err }

// Remover removes directory trees without recursion: depth costs memory for
// names, not descriptors or stack; width costs nothing.
type Remover struct {
	Resolver *Resolver
	Check    func() error // asked before each change; its error ends the removal
	OpenUp   bool         // add u+rwx to directories that refuse (ordinary users)

	buf    []byte
	levels []level
	first  *TreeError // the first thing that could not be removed
}

type level struct {
	name     string
	fd       int // -1 while closed
	dev, ino uint64
	subs     []string // directories found by the last read
	progress bool     // something was removed since the directory was last rewound
	failed   bool     // something in it stays
}

// Tree removes the directory name in dirfd and all beneath it. Mount points
// stay, with an error EXDEV. Whatever can't be removed does not keep the rest;
// the first such thing is returned as a *TreeError. An error of Check is
// returned as it is. If name is no directory the error is ENOTDIR.
func (x *Remover) Tree(dirfd int, name string) error {
	x.buf = make([]byte, direntBuf)
	defer func() {
		for _, l := range x.levels {
			closeIf(l.fd >= 0, l.fd)
		}
	}()
	if err := x.push(dirfd, name); err != nil {
		if Errno(err) == unix.ENOENT {
			return nil
		}
		if Errno(err) == unix.ELOOP {
			err = unix.ENOTDIR
		}
		return x.hard(err)
	}
	for len(x.levels) > 0 {
		if err := x.step(dirfd); err != nil {
			return x.hard(err)
		}
	}
	if x.first != nil {
		return x.first
	}
	return nil
}

// hard gives an errno that ends the removal its path.
func (x *Remover) hard(err error) error {
	if errno := Errno(err); errno != foreign {
		return &TreeError{Path: x.path(""), Err: errno}
	}
	return err
}

// path returns the path of name in the deepest level, beneath the tree.
func (x *Remover) path(name string) string {
	var parts []string
	for i, l := range x.levels {
		if i > 0 {
			parts = append(parts, l.name)
		}
	}
	if name != "" {
		parts = append(parts, name)
	}
	p := strings.Join(parts, "/")
	if len(p) > 512 {
		p = p[:512] + "..."
	}
	return p
}

// step does one thing: descend, read and unlink a piece of the deepest
// directory, or remove it. An error ends the removal.
func (x *Remover) step(dirfd int) error {
	l := &x.levels[len(x.levels)-1]
	if n := len(l.subs); n > 0 {
		sub := l.subs[n-1]
		l.subs = l.subs[:n-1]
		err := x.push(l.fd, sub)
		switch Errno(err) {
		case 0, unix.ENOENT:
			return nil
		case unix.ENOTDIR, unix.ELOOP: // exchanged meanwhile
			return x.unlink(l, sub)
		}
		return x.stays(l, sub, err)
	}
	n, err := x.read(l.fd)
	if err != nil {
		return err
	}
	if n > 0 {
		return x.clear(l, x.buf[:n])
	}
	if l.progress {
		// Removing while reading may skip names on some file systems.
		l.progress = false
		_, err := seek(l.fd, 0, unix.SEEK_SET)
		return err
	}
	return x.pop(dirfd)
}

func (x *Remover) read(fd int) (n int, err error) {
	err = retry(func() (err error) {
		n, err = unix.Getdents(fd, x.buf)
		return err //nolint:wrapcheck // bare errnos by contract
	})
	if Errno(err) == unix.ENOENT {
		return 0, nil
	}
	return n, err
}

// clear unlinks what is no directory of one piece of a listing and notes the rest.
func (x *Remover) clear(l *level, dirents []byte) error {
	const typeAt, nameAt = 18, 19 // of struct linux_dirent64, on every architecture
	for len(dirents) > nameAt {
		size := int(binary.NativeEndian.Uint16(dirents[16:]))
		rec := dirents[:size]
		dirents = dirents[size:]
		name := string(rec[nameAt:])
		if i := strings.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if name == "." || name == ".." {
			continue
		}
		if rec[typeAt] == unix.DT_DIR {
			l.subs = append(l.subs, name)
			continue
		}
		if err := x.unlink(l, name); err != nil {
			return err
		}
	}
	return nil
}

func (x *Remover) unlink(l *level, name string) error {
	if err := x.Check(); err != nil {
		return err
	}
	err := Unlinkat(l.fd, name)
	if Errno(err) == unix.EACCES && x.openUp(l.fd) {
		err = Unlinkat(l.fd, name)
	}
	switch Errno(err) {
	case 0:
		l.progress = true
		return nil
	case unix.ENOENT:
		return nil
	case unix.EISDIR:
		l.subs = append(l.subs, name) // the listing did not tell
		return nil
	}
	return x.stays(l, name, err)
}

// stays notes what can't be removed, or returns an error that ends everything.
func (x *Remover) stays(l *level, name string, err error) error {
	switch Errno(err) {
	case unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.ESTALE, unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return err
	}
	if Errno(err) == foreign {
		return err // of Check
	}
	l.failed = true
	if x.first == nil {
		x.first = &TreeError{Path: x.path(name), Err: err}
	}
	return nil
}

// openUp adds u+rwx to the directory fd.
func (x *Remover) openUp(fd int) bool {
	var st unix.Stat_t
	if !x.OpenUp || Fstat(fd, &st) != nil || st.Mode&0o700 == 0o700 {
		return false
	}
	return unix.Fchmod(fd, st.Mode&0o7777|0o700) == nil
}

// push opens the directory name in dirfd as the deepest level.
func (x *Remover) push(dirfd int, name string) error {
	fd, err := x.Resolver.OpenDirNoXdev(dirfd, name)
	if Errno(err) == unix.EACCES && x.OpenUp {
		if err := x.openUpName(dirfd, name); err != nil {
			return err
		}
		fd, err = x.Resolver.OpenDirNoXdev(dirfd, name)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := Fstat(fd, &st); err != nil {
		_ = Close(fd)
		return err
	}
	x.levels = append(x.levels, level{name: name, fd: fd, dev: st.Dev, ino: st.Ino})
	if n := len(x.levels) - 1 - openLevels; n >= 0 {
		_ = Close(x.levels[n].fd)
		x.levels[n].fd = -1
	}
	return nil
}

// openUpName adds u+rwx to a directory that can't be opened, or to its parent
// that can't be searched.
func (x *Remover) openUpName(dirfd int, name string) error {
	if err := x.Check(); err != nil {
		return err
	}
	fd, err := OpenDirPath(dirfd, name)
	if Errno(err) == unix.EACCES && x.openUp(dirfd) {
		fd, err = OpenDirPath(dirfd, name)
	}
	if err != nil {
		return err
	}
	defer func() { _ = Close(fd) }()
	var up, st unix.Stat_t
	if Fstat(dirfd, &up) != nil || Fstat(fd, &st) != nil || up.Dev != st.Dev {
		return unix.EACCES // perhaps a mount point: not ours to change
	}
	if (Node{FD: fd, Path: true}).Chmod(st.Mode&0o7777|0o700) != nil {
		return unix.EACCES
	}
	return nil
}

// pop removes the deepest directory, which is empty unless something in it stays.
func (x *Remover) pop(dirfd int) error {
	last := len(x.levels) - 1
	l := x.levels[last]
	up := dirfd
	if last > 0 {
		parent := &x.levels[last-1]
		if parent.fd < 0 {
			if err := x.reopen(l.fd, parent); err != nil {
				return err
			}
		}
		up = parent.fd
	}
	if err := x.Check(); err != nil {
		return err
	}
	x.levels = x.levels[:last]
	_ = Close(l.fd)
	parent := &level{} // of the tree itself
	if last > 0 {
		parent = &x.levels[last-1]
	}
	if l.failed {
		parent.failed = true
		return nil
	}
	err := Rmdirat(up, l.name)
	if Errno(err) == unix.EACCES && last > 0 && x.openUp(up) {
		err = Rmdirat(up, l.name)
	}
	switch Errno(err) {
	case 0:
		parent.progress = true
		return nil
	case unix.ENOENT:
		return nil
	}
	if last == 0 {
		x.levels = append(x.levels, level{name: l.name, fd: -1})
		defer func() { x.levels = x.levels[:0] }()
		return x.stays(parent, "", err)
	}
	return x.stays(parent, l.name, err)
}

// reopen opens a closed level again from its child. If it is not the directory
// that it was, the child has been moved and the removal must not go on there.
func (x *Remover) reopen(child int, parent *level) error {
	fd, err := Openat(child, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := Fstat(fd, &st); err != nil || st.Dev != parent.dev || st.Ino != parent.ino {
		_ = Close(fd)
		return errors.Join(ErrMoved, err)
	}
	parent.fd = fd
	return nil
}

// ErrMoved means that a directory was moved away while its tree was removed.
var ErrMoved = errors.New("the directory was moved while it was being removed")
