package treetest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Mutate makes n random changes of all sorts below dir, the same for the same
// tree and the same source of chance. It returns a line about each.
func Mutate(t testing.TB, dir string, r *rand.Rand, n int) []string {
	t.Helper()
	m := &mutator{Builder: At(t, dir), r: r}
	m.know("")
	for len(m.log) < n {
		before := len(m.log)
		mutations[m.r.IntN(len(mutations))](m)
		if len(m.log) == before {
			m.spare++
			if m.spare > 1000 && m.spare > 100*n {
				m.t.Fatalf("%d changes tried and %d made: the tree has too little in it", m.spare, len(m.log))
			}
		}
	}
	return m.log
}

// mutator knows the tree; what has gone it finds out when it comes across it.
type mutator struct {
	Builder
	r           *rand.Rand
	files, dirs []string // may hold what is not there any more
	log         []string
	made, spare int
}

func (m *mutator) did(what, format string, args ...any) {
	m.log = append(m.log, what+" "+fmt.Sprintf(format, args...))
}

// know adds what is at and below a path.
func (m *mutator) know(path string) {
	m.t.Helper()
	m.must(filepath.WalkDir(m.Path(path), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(m.dir, p)
		switch {
		case d.IsDir() && rel != ".":
			m.dirs = append(m.dirs, rel)
		case !d.IsDir():
			m.files = append(m.files, rel)
		}
		return err //nolint:wrapcheck // it fails the test
	}))
}

// pick returns an entry of a list, which must be of a type, with its stat.
func (m *mutator) pick(list *[]string, types ...uint32) (string, *syscall.Stat_t) {
	for range 20 {
		if len(*list) == 0 {
			return "", nil
		}
		i := m.r.IntN(len(*list))
		path := (*list)[i]
		var st syscall.Stat_t
		err := syscall.Lstat(m.Path(path), &st)
		isDir := st.Mode&syscall.S_IFMT == syscall.S_IFDIR
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || err == nil && isDir != (list == &m.dirs) {
			*list = slices.Delete(*list, i, i+1)
			continue
		}
		m.must(err)
		if len(types) == 0 || slices.Contains(types, st.Mode&syscall.S_IFMT) {
			return path, &st
		}
	}
	return "", nil
}

func (m *mutator) file(types ...uint32) (string, *syscall.Stat_t) { return m.pick(&m.files, types...) }

// parent returns a directory, the root included.
func (m *mutator) parent() string {
	if m.r.IntN(8) == 0 {
		return ""
	}
	dir, _ := m.pick(&m.dirs)
	return dir
}

// name returns a path that is not taken.
func (m *mutator) name() string {
	m.made++
	return filepath.Join(m.parent(), fmt.Sprintf("%s%d-%d", []string{"m", "m,", "m\n", "\xfe", "a b"}[m.r.IntN(5)], m.made, m.r.IntN(1e6)))
}

var mutations = []func(*mutator){
	(*mutator).create, (*mutator).create, (*mutator).createOther, (*mutator).makeDir, (*mutator).modify, (*mutator).modify,
	(*mutator).extend, (*mutator).rewrite, (*mutator).modifyHidden, (*mutator).chmod, (*mutator).chmod, (*mutator).chown,
	(*mutator).touch, (*mutator).touchDir, (*mutator).rename, (*mutator).renameOver, (*mutator).renameDir, (*mutator).remove,
	(*mutator).remove, (*mutator).removeTree, (*mutator).fileToDir, (*mutator).dirToFile, (*mutator).retarget, (*mutator).link,
	(*mutator).linkOver, (*mutator).unlink, (*mutator).xattr, (*mutator).hole,
}

func (m *mutator) create() {
	name := m.name()
	m.must(os.WriteFile(m.Path(name), randomBytes(m.r, m.r.IntN(5000)), 0o644))
	m.files = append(m.files, name)
	m.did("create", "%q", name)
}

func (m *mutator) createOther() {
	name := m.name()
	switch m.r.IntN(3) {
	case 0:
		m.must(os.Symlink("to "+name, m.Path(name)))
	case 1:
		m.must(unix.Mkfifo(m.Path(name), 0o640))
	default:
		m.must(unix.Mknod(m.Path(name), syscall.S_IFSOCK|0o755, 0))
	}
	m.files = append(m.files, name)
	m.did("create special", "%q", name)
}

func (m *mutator) makeDir() {
	name := m.name()
	m.File(filepath.Join(name, "in", "side"), name)
	m.know(name)
	m.did("make directory", "%q", name)
}

// write writes to a file, whatever its mode.
func (m *mutator) write(name string, data []byte, at int64) {
	fd, err := os.OpenFile(m.Path(name), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrPermission) {
		return // not root
	}
	m.must(err)
	_, err = fd.WriteAt(data, at)
	m.must(errors.Join(err, fd.Close()))
}

func (m *mutator) modify() {
	if name, st := m.file(syscall.S_IFREG); st != nil {
		m.write(name, randomBytes(m.r, 1+m.r.IntN(100)), m.r.Int64N(st.Size+1))
		m.did("modify", "%q", name)
	}
}

func (m *mutator) extend() {
	if name, st := m.file(syscall.S_IFREG); st != nil {
		m.write(name, []byte("more"), st.Size)
		m.did("append to", "%q", name)
	}
}

func (m *mutator) rewrite() {
	if name, st := m.file(syscall.S_IFREG); st != nil && st.Size > 0 && st.Size < 1<<20 {
		m.write(name, randomBytes(m.r, int(st.Size)), 0)
		m.did("rewrite in the same size", "%q", name)
	}
}

func (m *mutator) modifyHidden() {
	if name, st := m.file(syscall.S_IFREG); st != nil && st.Size > 0 {
		m.write(name, randomBytes(m.r, 1), m.r.Int64N(st.Size))
		m.Times(name, time.Unix(st.Mtim.Unix()))
		m.did("modify and put the time back of", "%q", name)
	}
}

// other returns an entry whose metadata may change.
func (m *mutator) other() (string, *syscall.Stat_t) {
	name, st := m.file()
	if m.r.IntN(4) == 0 {
		name, st = m.pick(&m.dirs)
	}
	return name, st
}

func (m *mutator) chmod() {
	name, st := m.other()
	if st == nil || st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return
	}
	mode := uint32(m.r.IntN(0o1000))
	if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		mode |= 0o700
	}
	m.must(unix.Fchmodat(unix.AT_FDCWD, m.Path(name), mode|0o400, 0))
	m.did("chmod", "%q", name)
}

func (m *mutator) chown() {
	if !Root() {
		return
	}
	if name, st := m.other(); st != nil {
		m.must(os.Lchown(m.Path(name), m.r.IntN(5), m.r.IntN(5)))
		m.did("chown", "%q", name)
	}
}

func (m *mutator) touch() {
	if name, st := m.file(); st != nil {
		m.Times(name, time.Unix(1_600_000_000+m.r.Int64N(1e6), m.r.Int64N(1e9)))
		m.did("touch", "%q", name)
	}
}

func (m *mutator) touchDir() {
	if name, st := m.pick(&m.dirs); st != nil {
		m.Times(name, time.Unix(1_600_000_000+m.r.Int64N(1e6), m.r.Int64N(1e9)))
		m.did("touch directory", "%q", name)
	}
}

func (m *mutator) rename() {
	if name, st := m.file(); st != nil {
		to := m.name()
		m.must(os.Rename(m.Path(name), m.Path(to)))
		m.files = append(m.files, to)
		m.did("rename", "%q to %q", name, to)
	}
}

func (m *mutator) renameOver() {
	from, a := m.file()
	to, b := m.file()
	if a != nil && b != nil && a.Ino != b.Ino {
		m.must(os.Rename(m.Path(from), m.Path(to)))
		m.did("rename over", "%q to %q", from, to)
	}
}

func (m *mutator) renameDir() {
	from, st := m.pick(&m.dirs)
	to := m.name()
	if st == nil || strings.HasPrefix(to+"/", from+"/") {
		return
	}
	m.must(os.Rename(m.Path(from), m.Path(to)))
	m.know(to)
	m.did("rename directory", "%q to %q", from, to)
}

func (m *mutator) remove() {
	if name, st := m.file(); st != nil {
		m.must(os.Remove(m.Path(name)))
		m.did("remove", "%q", name)
	}
}

// small returns a directory that does not hold half the tree.
func (m *mutator) small() string {
	for range 5 {
		name, st := m.pick(&m.dirs)
		if st == nil {
			return ""
		}
		n := 0
		m.must(filepath.WalkDir(m.Path(name), func(string, fs.DirEntry, error) error { n++; return nil }))
		if n < 3+len(m.files)/20 {
			return name
		}
	}
	return ""
}

func (m *mutator) removeTree() {
	if name := m.small(); name != "" {
		m.must(os.RemoveAll(m.Path(name)))
		m.did("remove tree", "%q", name)
	}
}

func (m *mutator) fileToDir() {
	if name, st := m.file(); st != nil {
		m.must(os.Remove(m.Path(name)))
		m.File(filepath.Join(name, "was", "file"), name)
		m.know(name)
		m.did("make a directory of", "%q", name)
	}
}

func (m *mutator) dirToFile() {
	if name := m.small(); name != "" {
		m.must(os.RemoveAll(m.Path(name)))
		m.must(os.WriteFile(m.Path(name), []byte("was a directory"), 0o600))
		m.files = append(m.files, name)
		m.did("make a file of", "%q", name)
	}
}

func (m *mutator) retarget() {
	if name, st := m.file(syscall.S_IFLNK); st != nil {
		m.must(os.Remove(m.Path(name)))
		m.must(os.Symlink(fmt.Sprint("elsewhere", m.r.IntN(100)), m.Path(name)))
		m.did("retarget", "%q", name)
	}
}

func (m *mutator) link() {
	if name, st := m.file(); st != nil {
		to := m.name()
		m.must(os.Link(m.Path(name), m.Path(to)))
		m.files = append(m.files, to)
		m.did("link", "%q to %q", name, to)
	}
}

func (m *mutator) linkOver() {
	from, a := m.file()
	to, b := m.file()
	if a != nil && b != nil && a.Ino != b.Ino {
		m.must(os.Remove(m.Path(to)))
		m.must(os.Link(m.Path(from), m.Path(to)))
		m.did("link over", "%q to %q", from, to)
	}
}

// unlink gives one name of several a file of its own.
func (m *mutator) unlink() {
	for range 20 {
		if name, st := m.file(syscall.S_IFREG); st != nil && st.Nlink > 1 {
			b, err := os.ReadFile(m.Path(name))
			m.must(err)
			m.must(os.Remove(m.Path(name)))
			m.must(os.WriteFile(m.Path(name), b, 0o644))
			m.did("break the link of", "%q", name)
			return
		}
	}
}

func (m *mutator) xattr() {
	name, st := m.file(syscall.S_IFREG)
	if st == nil {
		return
	}
	var err error
	if m.r.IntN(2) == 0 {
		err = unix.Lsetxattr(m.Path(name), "user.mutated", randomBytes(m.r, m.r.IntN(50)), 0)
	} else if err = unix.Lremovexattr(m.Path(name), "user.mutated"); err == unix.ENODATA {
		return
	}
	if err == unix.ENOTSUP || err == unix.EACCES || err == unix.EPERM {
		return
	}
	m.must(err)
	m.did("change attributes of", "%q", name)
}

func (m *mutator) hole() {
	if name, st := m.file(syscall.S_IFREG); st != nil {
		if err := os.Truncate(m.Path(name), st.Size+int64(m.r.IntN(100_000))); !errors.Is(err, fs.ErrPermission) {
			m.must(err)
		}
		m.did("add a hole to", "%q", name)
	}
}
