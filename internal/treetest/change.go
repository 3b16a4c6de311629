package treetest

import (
	"maps"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Change is what an incremental run must do, worked out from listings of the
// source before and after.
type Change struct {
	Files   map[string]bool // non-directories to copy or link
	Dirs    map[string]bool // directories to make, or to finish again
	Deletes map[string]bool // topmost entries that are gone

	Figures                   // what is to be backed up
	FilesDeleted, DirsDeleted uint64
}

// Changes works out what is to be done between two listings of a source.
func Changes(before, after []Entry) Change {
	was, is := index(before), index(after)
	c := Change{Files: map[string]bool{}, Dirs: map[string]bool{}, Deletes: map[string]bool{}}
	groups := map[string]bool{}
	for p, e := range is {
		old, known := was[p]
		switch {
		case e.IsDir():
			if !known || differs(old, e) {
				c.Dirs[p] = true
			}
		case !known || differs(old, e):
			c.Files[p] = true
			if e.Group != "" {
				groups[e.Group] = true
			}
		}
	}
	for p, e := range is {
		if e.Group != "" && groups[e.Group] {
			c.Files[p] = true
		}
	}
	for p, old := range was {
		now, there := is[p]
		if there && (!old.IsDir() || now.IsDir()) {
			continue // a directory in the way of something else is deleted as well
		}
		c.Deletes[p] = true
		if up, ok := is[parent(p)]; ok && up.IsDir() {
			c.Dirs[parent(p)] = true
		}
	}
	for p := range c.Files {
		c.Dirs[parent(p)] = true
	}
	c.count(was, is)
	return c
}

func (c *Change) count(was, is map[string]Entry) {
	c.Figures.Dirs, c.Figures.Files = uint64(len(c.Dirs)), uint64(len(c.Files))
	leaders := map[string]bool{}
	for p := range c.Files {
		e := is[p]
		old, known := was[p]
		switch {
		case e.Group != "" && leaders[e.Group]:
			c.Links++
			continue
		case e.Group != "":
			leaders[e.Group] = true
		case known && metaOnly(old, e):
			continue
		}
		if e.Type == syscall.S_IFREG {
			c.Bytes += uint64(e.Size)
		}
	}
	for p := range c.Deletes {
		if was[p].IsDir() {
			c.DirsDeleted++
		} else {
			c.FilesDeleted++
		}
	}
}

// Untouched fails the test if anything in the destination was touched, from one
// listing of it to the next, that the change does not explain.
func (c Change) Untouched(t testing.TB, before, after []Entry) {
	t.Helper()
	was := index(before)
	linked := map[uint64]bool{} // inodes whose link count changed with an allowed path
	for _, e := range before {
		if c.Files[e.Path] || c.Deletes[e.Path] {
			linked[e.Inode] = true
		}
	}
	for _, e := range after {
		old, known := was[e.Path]
		// The root is touched by the mark that proves the mount, its times are kept.
		if !known || e.Path == "" || c.Files[e.Path] || c.Dirs[e.Path] || linked[e.Inode] {
			continue
		}
		if old.Inode != e.Inode || old.CtimeNS != e.CtimeNS {
			t.Errorf("%q was touched: inode %d -> %d, ctime %d -> %d", e.Path, old.Inode, e.Inode, old.CtimeNS, e.CtimeNS)
		}
	}
}

// IsDir reports whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Type == syscall.S_IFDIR }

func index(list []Entry) map[string]Entry {
	out := map[string]Entry{}
	for _, e := range list {
		out[e.Path] = e
	}
	return out
}

func parent(p string) string {
	if d := path.Dir(p); d != "." {
		return d
	}
	return ""
}

func differs(a, b Entry) bool {
	return a.String() != b.String() || a.Inode != b.Inode || a.CtimeNS != b.CtimeNS
}

// metaOnly reports whether only what is beside the data has changed.
func metaOnly(a, b Entry) bool {
	return a.Type == b.Type && a.Size == b.Size && a.MtimeNS == b.MtimeNS && a.Inode == b.Inode && a.Rdev == b.Rdev && a.Group == "" &&
		(a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || !maps.Equal(a.Xattrs, b.Xattrs))
}

// Settle waits until the clock of file times has moved on by more than the tick
// that a scan allows for, so that nothing changed before it counts as unsure.
func Settle(t testing.TB) {
	t.Helper()
	probe := filepath.Join(t.TempDir(), "probe")
	ctime := func() int64 {
		if err := os.WriteFile(probe, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(probe, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ctim.Nano()
	}
	for begin := ctime(); ctime() < begin+25e6; {
		if err := os.Remove(probe); err != nil {
			t.Fatal(err)
		}
	}
}
