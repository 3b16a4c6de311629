// Package treetest owns what tests know about trees: making ones with everything
// in them, changing them at random, and telling exactly how two differ.
package treetest

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// Entry is everything about one object that a backup must bring back.
type Entry struct {
	Path    string // relative; "" = the root
	Type    uint32 // S_IFMT bits
	Mode    uint32 // permission and set-id bits
	UID     uint32
	GID     uint32
	Size    int64  // regular files and links
	Nlink   uint64 // not of directories
	Rdev    uint64 // devices
	MtimeNS int64
	Target  string            // symbolic links
	Content string            // SHA-256 of regular files
	Xattrs  map[string]string // ACLs included
	Group   string            // first path of the hard-link group, where Nlink > 1
	Sparse  bool              // has holes

	Inode   uint64 // not compared
	CtimeNS int64  // not compared
}

// Listing returns the tree below dir, sorted by path.
func Listing(t testing.TB, dir string) []Entry {
	t.Helper()
	var out []Entry
	groups := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := look(p)
		if err != nil {
			return err
		}
		if e.Path, err = filepath.Rel(dir, p); err != nil {
			return fmt.Errorf("path of %q: %w", p, err)
		}
		if e.Path == "." {
			e.Path = ""
		}
		if e.Type != syscall.S_IFDIR && e.Nlink > 1 {
			if groups[e.Inode] == "" {
				groups[e.Inode] = e.Path
			}
			e.Group = groups[e.Inode]
		}
		out = append(out, e)
		return nil
	})
	if err != nil {
		t.Fatalf("list %s: %v", dir, err)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func look(p string) (Entry, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return Entry{}, fmt.Errorf("lstat %q: %w", p, err)
	}
	e := Entry{
		Type: st.Mode & syscall.S_IFMT, Mode: st.Mode &^ syscall.S_IFMT, UID: st.Uid, GID: st.Gid,
		MtimeNS: st.Mtim.Nano(), CtimeNS: st.Ctim.Nano(), Inode: st.Ino,
	}
	if e.Type != syscall.S_IFDIR {
		e.Nlink = st.Nlink
	}
	var err error
	switch e.Type {
	case syscall.S_IFREG:
		e.Size = st.Size
		e.Sparse = st.Blocks*512 < st.Size
		e.Content, err = digest(p)
	case syscall.S_IFLNK:
		e.Target, err = os.Readlink(p)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		e.Rdev = st.Rdev
	}
	if err != nil {
		return e, fmt.Errorf("read %q: %w", p, err)
	}
	e.Xattrs, err = xattrs(p)
	return e, err
}

func digest(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", fmt.Errorf("open: %w", err)
	}
	defer f.Close()
	h := xxh3.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	sum := h.Sum128().Bytes()
	return hex.EncodeToString(sum[:]), nil
}

func xattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err == unix.ENOTSUP || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %q: %w", p, err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		val := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(p, name, val)
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %q: %w", name, p, err)
		}
		out[name] = string(val[:k])
	}
	return out, nil
}

// String renders what is compared, on one line.
func (e Entry) String() string {
	return fmt.Sprintf("%q type %o mode %o owner %d:%d size %d links %d rdev %d mtime %d target %q content %.12s xattrs %q group %q sparse %v",
		e.Path, e.Type>>12, e.Mode, e.UID, e.GID, e.Size, e.Nlink, e.Rdev, e.MtimeNS, e.Target, e.Content, e.Xattrs, e.Group, e.Sparse)
}

// Diff returns how b differs from a, one line an entry.
func Diff(a, b []Entry) []string {
	var out []string
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || (len(a) > 0 && a[0].Path < b[0].Path):
			out = append(out, "missing: "+a[0].String())
			a = a[1:]
		case len(a) == 0 || b[0].Path < a[0].Path:
			out = append(out, "extra: "+b[0].String())
			b = b[1:]
		default:
			if x, y := a[0].String(), b[0].String(); x != y {
				out = append(out, "want "+x+"\n got "+y)
			}
			a, b = a[1:], b[1:]
		}
	}
	return out
}

// Same fails the test unless the trees below want and got are the same.
func Same(t testing.TB, want, got string) {
	t.Helper()
	if d := Diff(Listing(t, want), Listing(t, got)); len(d) > 0 {
		if len(d) > 20 {
			d = append(d[:20], fmt.Sprintf("... %d differences in all", len(d)))
		}
		t.Fatalf("%s differs from %s:\n%s", got, want, strings.Join(d, "\n"))
	}
}

// Figures are what statistics are held against.
type Figures struct {
	Dirs  uint64 // the root included
	Files uint64 // all other entries
	Bytes uint64 // st_size of regular files, a hard-link group once
	Links uint64 // members of hard-link groups within the tree, one of each left out
}

// Count returns the figures of a tree.
func Count(list []Entry) Figures {
	var f Figures
	for _, e := range list {
		if e.Type == syscall.S_IFDIR {
			f.Dirs++
			continue
		}
		f.Files++
		switch {
		case e.Group != "" && e.Group != e.Path:
			f.Links++
		case e.Type == syscall.S_IFREG:
			f.Bytes += uint64(e.Size)
		}
	}
	return f
}
