package scanner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
)

// now is the time in the headers of all scans here.
var now = time.Date(2026, 11, 23, 10, 28, 19, 0, time.UTC)

// scanned is what the readers of control files make of a scan.
type scanned struct {
	entries map[string]*controlfile.Meta // copied or linked, by entry path
	groups  map[string][]string          // first path of a group: all of them
	times   map[string]*controlfile.Times
	parents int // d,dd lines
}

// scanTree runs a scan and reads everything back by way of admission.
func scanTree(t *testing.T, cfg Config) (*Result, *scanned) {
	t.Helper()
	if cfg.Out == "" {
		cfg.Out = filepath.Join(t.TempDir(), "out")
	}
	cfg.TaskID, cfg.Now = "test", now
	res, err := Scan(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res, readBack(t, res)
}

func readBack(t *testing.T, res *Result) *scanned {
	t.Helper()
	s := &scanned{entries: map[string]*controlfile.Meta{}, groups: map[string][]string{}, times: map[string]*controlfile.Times{}}
	md := controlfile.OpenMetaDir(res.MetaDir)
	defer md.Close()
	for _, f := range res.ControlFiles {
		sum, err := controlfile.Check(f.Path, f.Kind)
		if err != nil || sum.Bad() > 0 {
			t.Fatalf("%d bad, %v", sum.Bad(), err)
		}
		r, err := controlfile.Open(f.Path, f.Kind)
		if err != nil {
			t.Fatal(err)
		}
		group := ""
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Type == controlfile.TypeGroup:
				group = ""
				continue
			case e.Type == controlfile.TypeTimes:
				if s.times[e.Path] != nil {
					t.Errorf("two mtime lines of %q", e.Path)
				}
				s.times[e.Path] = e.Times
				continue
			case f.Kind == controlfile.Delete:
				continue
			case e.Mode == controlfile.ModeDeleted:
				s.parents++
				continue
			}
			m, err := md.Lookup(e.Meta, e)
			if err != nil {
				t.Fatalf("%s line %d: %v", f.Path, e.Line, err)
			}
			if s.entries[e.Path] != nil {
				t.Errorf("two lines of %q", e.Path)
			}
			s.entries[e.Path] = m
			if f.Kind == controlfile.Hardlink {
				if group == "" {
					group = e.Path
				}
				s.groups[group] = append(s.groups[group], e.Path)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// want renders what lstat says of all entries below root that keep accepts.
func lstatAll(t *testing.T, root string, keep func(path string) bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if rel == "." {
			rel = ""
		}
		if !keep(rel) {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		size, nlink := st.Size, st.Nlink
		if d.IsDir() {
			size, nlink = 0, 0 // no record has a directory's links; sizes vary
		}
		target := ""
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, _ = os.Readlink(path)
		}
		out[rel] = fmt.Sprintf("%o %d %d:%d %d %x m%d c%d ino%d %q", st.Mode, nlink, st.Uid, st.Gid, size, st.Rdev, st.Mtim.Sec, st.Ctim.Sec, st.Ino, target)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *scanned) stats() map[string]string {
	out := map[string]string{}
	for path, m := range s.entries {
		size := m.Size
		if m.Mode&modeFormat == modeDir {
			size = 0
		}
		out[path] = fmt.Sprintf("%o %d %d:%d %d %x m%d c%d ino%d %q", m.Mode, m.Nlink, m.UID, m.GID, size, m.Rdev, m.Mtime, m.Ctime, m.Inode, m.Symlink)
	}
	return out
}

func all(string) bool { return true }

// write makes a file with its parents.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: devices, owners, trusted attributes")
	}
}

// zoo makes a tree of all types of entries and all sorts of names.
func zoo(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "src")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"plain", "a,b,c", "new\nline", "two\n\nbreaks", "\n", "trailing\n", "cr\r", "inv\xff\xfealid", strings.Repeat("n", 255),
		"-rf", " space ", "f,bm,0,x,0,1,2,0x", "colon:", "percent%41", "😀", "d,", "f", "...",
	} {
		write(t, filepath.Join(root, name), "content of "+name)
		write(t, filepath.Join(root, "dir "+name[:min(len(name), 200)], name), name)
	}
	deep := root
	for i := range 40 {
		deep = filepath.Join(deep, fmt.Sprintf("level-%02d", i))
	}
	write(t, filepath.Join(deep, "bottom"), "x")
	must(os.Mkdir(filepath.Join(root, "empty"), 0o700))
	must(os.Symlink("nowhere\nat all", filepath.Join(root, "dangling")))
	must(os.Symlink("/", filepath.Join(root, "to-root")))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o640))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(err)
	wd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(err)
	must(unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/socket", wd)}))
	must(unix.Close(fd))
	must(unix.Close(wd))
	write(t, filepath.Join(root, "setid"), "x")
	must(os.Chmod(filepath.Join(root, "setid"), 0o755|os.ModeSetuid|os.ModeSetgid|os.ModeSticky))
	write(t, filepath.Join(root, "locked"), "x")
	must(os.Chmod(filepath.Join(root, "locked"), 0))
	for name, year := range map[string]int{"1960": 1960, "2040": 2040} {
		write(t, filepath.Join(root, name), "x")
		at := time.Date(year, 1, 2, 3, 4, 5, 678, time.UTC)
		must(os.Chtimes(filepath.Join(root, name), at, at))
	}
	for i := range 3 {
		for link := range 3 {
			dir := filepath.Join(root, "links", fmt.Sprint("d,", link))
			must(os.MkdirAll(dir, 0o755))
			if first := filepath.Join(root, "links", "d,0", fmt.Sprint("l\n", i)); link == 0 {
				write(t, first, "linked")
			} else {
				must(os.Link(first, filepath.Join(dir, fmt.Sprint("l\n", i))))
			}
		}
	}
	must(os.Link(filepath.Join(root, "fifo"), filepath.Join(root, "links", "fifo")))
	f, err := os.Create(filepath.Join(root, "sparse"))
	must(err)
	_, err = f.WriteAt([]byte("data"), 1<<20)
	must(err)
	must(f.Truncate(4 << 20))
	must(f.Close())
	if os.Geteuid() == 0 {
		must(unix.Mknod(filepath.Join(root, "char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		must(unix.Mknod(filepath.Join(root, "block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300))))
		must(os.Lchown(filepath.Join(root, "plain"), 1234, 5678))
		must(os.Lchown(filepath.Join(root, "dangling"), 1234, 5678))
	}
	return root
}
