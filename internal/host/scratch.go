package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// scratchPrefix begins the names of scratch directories, and of nothing else.
const scratchPrefix = "fsbackup-run-"

// scratchTries is how often a directory is made that others sweep before it is locked.
const scratchTries = 100

// Scratch is a directory for what a process needs while it runs. Its process holds a
// lock on it, which ends with the process however that ends.
type Scratch struct {
	Dir  string
	lock *os.File
}

// MakeScratch makes a scratch directory in base, for this user alone. Those that dead
// processes of the user have left there are removed first: one that was killed, or that
// ended by _exit, removes nothing itself.
func MakeScratch(base string) (*Scratch, error) {
	sweep(base)
	for try := 1; ; try++ {
		dir, err := os.MkdirTemp(base, scratchPrefix)
		if err != nil {
			if pe, ok := errors.AsType[*fs.PathError](err); ok {
				err = pe.Err
			}
			return nil, &fault.Error{Kind: fault.KindOf(err), Op: "make a directory in", Path: base, Err: err, Hint: "set TMPDIR to a directory that can be written"}
		}
		lock, err := lockDir(dir)
		switch {
		case try < scratchTries && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK)):
			continue // another process has just swept it: it was not locked yet
		case err != nil && lock == nil:
			return nil, errors.Join(err, os.Remove(dir))
		}
		// Where directories cannot be locked, as on NFS, nobody sweeps either.
		return &Scratch{Dir: dir, lock: lock}, nil
	}
}

// Remove removes the directory with all that is in it.
func (s *Scratch) Remove() error {
	return errors.Join(os.RemoveAll(s.Dir), s.lock.Close())
}

// lockDir opens a directory and locks it. Where only the lock fails, the error comes
// with the open directory; one that is no longer there under its name is ErrNotExist.
func lockDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "open", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		return f, &fault.Error{Kind: fault.KindOf(err), Op: "lock", Path: dir, Err: err}
	}
	var is, named unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &is), unix.Lstat(dir, &named)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if is.Dev != named.Dev || is.Ino != named.Ino {
		return nil, errors.Join(fs.ErrNotExist, f.Close())
	}
	return f, nil
}

// own reports whether an object belongs to this user.
func own(n fs.DirEntry) bool {
	fi, err := n.Info()
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Uid == uint32(os.Geteuid())
}

// sweep removes the scratch directories of this user in base that nobody holds. What
// cannot be removed stays: it is in nobody's way.
func sweep(base string) {
	names, err := os.ReadDir(base)
	if err != nil {
		return // making one says why
	}
	for _, n := range names {
		if !strings.HasPrefix(n.Name(), scratchPrefix) || !n.IsDir() || !own(n) {
			continue
		}
		dir := filepath.Join(base, n.Name())
		lock, err := lockDir(dir)
		if err == nil {
			_ = os.RemoveAll(dir)
		}
		if lock != nil {
			_ = lock.Close()
		}
	}
}
