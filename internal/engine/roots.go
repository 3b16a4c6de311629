package engine

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// CheckRoot reports why the directory at the absolute path p is not to be opened as a
// root: a symbolic link that belongs to somebody else, one that leads nowhere, or
// whatever keeps it from being opened at all (fault.NotFound if it is merely missing).
// OpenJob checks the same, as it opens the roots; this is for those who want to know
// before there is a job.
func CheckRoot(p string, followLinks bool) error {
	fd, err := openRootDir(p, followLinks)
	if err != nil {
		return err
	}
	return fsys.Close(fd)
}

// errDangling marks a root that is missing because a symbolic link leads nowhere. It is
// never made: the link says that something else, a mount mostly, belongs there.
var errDangling = errors.New("the symbolic link leads nowhere")

// mostLinks is how many links the kernel follows in one path.
const mostLinks = 40

// rootWalk is the way to a root, component by component.
type rootWalk struct {
	follow  bool
	fd      int      // of the directory reached
	at      string   // its path, for people
	pending []string // components to come
	links   int
	within  []rootLink // links whose own components are still to come
}

type rootLink struct {
	path, target string
	rest         int // components that come after the link's own
}

// openRootDir opens the directory at the absolute path p. Whoever may make links in a
// directory on the way could have a job that runs with more rights than he has read
// from, or write to, where he likes. So links are followed only if root or the
// process's own user made them, unless followLinks says that anybody may. The
// descriptor is the end of the walk: nothing can be swapped behind the check.
func openRootDir(p string, followLinks bool) (int, error) {
	w := &rootWalk{follow: followLinks, at: "/", pending: components(p)}
	var err error
	if w.fd, err = fsys.Openat(unix.AT_FDCWD, "/", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return -1, err
	}
	for len(w.pending) > 0 {
		if err := w.step(); err != nil {
			_ = fsys.Close(w.fd)
			return -1, err
		}
	}
	return w.fd, nil
}

func components(p string) []string {
	var out []string
	for name := range strings.SplitSeq(p, "/") {
		if name != "" && name != "." {
			out = append(out, name)
		}
	}
	return out
}

// step goes one component on.
func (w *rootWalk) step() error {
	name := w.pending[0]
	w.pending = w.pending[1:]
	for n := len(w.within); n > 0 && len(w.pending) < w.within[n-1].rest; n-- {
		w.within = w.within[:n-1]
	}
	next, err := fsys.OpenDirPath(w.fd, name)
	switch fsys.Errno(err) {
	case 0:
		w.enter(next, path.Join(w.at, name))
		return nil
	case unix.ENOTDIR, unix.ELOOP:
		return w.link(name)
	case unix.ENOENT:
		if n := len(w.within); n > 0 {
			l := w.within[n-1]
			return &fault.Error{Kind: fault.NotFound, Op: "follow symbolic link", Path: l.path,
				Err:  fmt.Errorf("%w: to %s: %w", errDangling, quote(l.target), unix.ENOENT),
				Hint: "mount or make what it leads to, or name another directory"}
		}
	}
	return err
}

// enter makes the directory behind fd the one that was reached.
func (w *rootWalk) enter(fd int, at string) {
	_ = fsys.Close(w.fd)
	w.fd, w.at = fd, at
}

// link follows the symbolic link name, if it is one and its owner is trusted.
func (w *rootWalk) link(name string) error {
	at := path.Join(w.at, name)
	fd, err := fsys.OpenPath(w.fd, name)
	if err != nil {
		return err
	}
	defer func() { _ = fsys.Close(fd) }()
	var st unix.Stat_t
	if err := fsys.Fstat(fd, &st); err != nil {
		return err
	}
	if fsys.Type(st.Mode) != unix.S_IFLNK {
		return unix.ENOTDIR
	}
	if w.links++; w.links > mostLinks {
		return unix.ELOOP
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() && !w.follow {
		return &fault.Error{Kind: fault.Denied, Op: "follow symbolic link", Path: at,
			Err:  fmt.Errorf("it belongs to user %d, who is neither root nor this process's user", st.Uid),
			Hint: "name the directory that it leads to, or follow links of anybody with --follow-root-links"}
	}
	var sf unix.Statfs_t
	if unix.Fstatfs(fd, &sf) == nil && uint32(sf.Type) == unix.PROC_SUPER_MAGIC {
		// The text of a link of proc is not where it leads.
		next, err := fsys.Openat(w.fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			w.enter(next, at)
		}
		return err
	}
	target, err := fsys.Readlink(fd)
	if err != nil {
		return err
	}
	w.within = append(w.within, rootLink{at, target, len(w.pending)})
	w.pending = append(components(target), w.pending...)
	if !strings.HasPrefix(target, "/") {
		return nil
	}
	top, err := fsys.Openat(unix.AT_FDCWD, "/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		w.enter(top, "/")
	}
	return err
}
