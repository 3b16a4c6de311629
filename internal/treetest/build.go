package treetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Root reports whether the test may do what only root may: owners, devices,
// trusted xattrs.
func Root() bool { return os.Geteuid() == 0 }

// Builder makes objects below a directory and fails the test where it cannot.
type Builder struct {
	t   testing.TB
	dir string
}

// At returns a builder for dir, which is made.
func At(t testing.TB, dir string) Builder {
	t.Helper()
	b := Builder{t, dir}
	b.must(os.MkdirAll(dir, 0o755))
	return b
}

// Path returns the full path of a name.
func (b Builder) Path(name string) string { return filepath.Join(b.dir, name) }

func (b Builder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// File makes a regular file with its parents.
func (b Builder) File(name, content string) {
	b.t.Helper()
	b.must(os.MkdirAll(filepath.Dir(b.Path(name)), 0o755))
	b.must(os.WriteFile(b.Path(name), []byte(content), 0o644))
}

// Dir makes a directory with its parents.
func (b Builder) Dir(name string) {
	b.t.Helper()
	b.must(os.MkdirAll(b.Path(name), 0o755))
}

// Times sets the modification time of an object, not following links.
func (b Builder) Times(name string, mtime time.Time) {
	b.t.Helper()
	ts := unix.NsecToTimespec(mtime.UnixNano())
	b.must(unix.UtimesNanoAt(unix.AT_FDCWD, b.Path(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// Nasty makes a tree with everything in it that a file system can hold: what
// the names, types, modes and times of real trees have broken other tools with.
func Nasty(t testing.TB, dir string) {
	t.Helper()
	b := At(t, dir)
	long := strings.Repeat("L", 255)
	for _, name := range []string{
		"new\nline", "comma,name,,", "latin\xe9raw", long, "d\nir/two\n\nbreaks", "c,d/,", " leading", "trailing ", "-rf", "cr\r", "tab\t",
		"x\nf,nn,0,evil,0,78,120,0", "f,bm,0,evil,0,78,120,0", "d,bm,0,", "i,2,77", "back\\slash", "quote\"'", "ünï/文件", "...", "~", "#", "*?[",
	} {
		b.File(name, "content of "+name)
	}
	b.File(strings.Repeat("deep/", 40)+"leaf", "deep")
	b.File("sub/"+strings.Repeat("d", 255)+"/"+long, "long")
	b.must(unix.Mkfifo(b.Path("fifo"), 0o640))
	b.must(unix.Mknod(b.Path("sock"), syscall.S_IFSOCK|0o755, 0))
	b.must(os.Symlink("nowhere", b.Path("dangling")))
	b.must(os.Symlink(".", b.Path("loop")))
	b.must(os.Symlink(strings.Repeat("x", 1000), b.Path("longlink")))
	b.must(os.Symlink("a\nb,c", b.Path("link\n,")))
	b.Times("dangling", time.Unix(915148800, 500000000))
	b.File("past", "1960")
	b.Times("past", time.Date(1960, 5, 5, 1, 2, 3, 123456789, time.UTC))
	b.File("future", "2040")
	b.Times("future", time.Date(2040, 5, 5, 1, 2, 3, 987654321, time.UTC))
	b.File("mode000", "n")
	b.File("dir000/f", "in")
	b.Dir("sticky")
	b.Dir("setgid/inner")
	b.File("suid", "s")
	b.File("empty", "")
	b.Dir("emptydir")
	b.sparse("sparse", 20<<20, 7<<20)
	b.sparse("onlyhole", 3<<20, -1)
	b.sparse("tailhole", 4<<20, 0)
	b.File("big", strings.Repeat("0123456789abcdef", 200_000))
	b.File("links/a", "hard")
	b.must(os.Link(b.Path("links/a"), b.Path("links/b")))
	b.must(os.Link(b.Path("links/a"), b.Path("hard,\nlink")))
	b.must(os.Symlink("t", b.Path("links/sym")))
	b.must(os.Link(b.Path("links/sym"), b.Path("links/sym2")))
	b.xattrs()
	if Root() {
		b.privileged()
	}
	b.must(os.Chmod(b.Path("sticky"), 0o777|os.ModeSticky))
	b.must(os.Chmod(b.Path("setgid"), 0o755|os.ModeSetgid))
	b.must(os.Chmod(b.Path("suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	if Root() { // nobody else can read them
		b.must(os.Chmod(b.Path("mode000"), 0))
		b.must(os.Chmod(b.Path("dir000"), 0))
	}
	for i, name := range []string{"emptydir", "c,d", "setgid", "links", "deep", ""} {
		b.Times(name, time.Date(2001, 2, 3, 4, 5, i, 700000001, time.UTC))
	}
}

// sparse makes a file of size bytes with a little data at off, none if negative.
func (b Builder) sparse(name string, size, off int64) {
	b.t.Helper()
	f, err := os.Create(b.Path(name))
	b.must(err)
	defer f.Close()
	b.must(f.Truncate(size))
	if off >= 0 {
		_, err = f.WriteAt([]byte("data"), off)
		b.must(err)
	}
}

// xattrs sets attributes and ACLs where the file system has them.
func (b Builder) xattrs() {
	b.t.Helper()
	set := func(name, key, value string) {
		if err := unix.Lsetxattr(b.Path(name), key, []byte(value), 0); err != nil && err != unix.ENOTSUP {
			b.t.Fatalf("set %s of %q: %v", key, name, err)
		}
	}
	set("links/a", "user.text", "v\"al&ue 5&")
	set("big", "user.binary", "\x00\xff\x00")
	set("empty", "user.empty", "")
	set("emptydir", "user.on,dir", "x\ny")
	// u::rw- u:1000:rw- g::r-- m::rw- o::---
	set("big", "system.posix_acl_access", acl(0x01, 6, -1, 0x02, 6, 1000, 0x04, 4, -1, 0x10, 6, -1, 0x20, 0, -1))
	// u::rwx u:7:r-x g::r-x m::r-x o::---, inherited by what is made in it
	def := acl(0x01, 7, -1, 0x02, 5, 7, 0x04, 5, -1, 0x10, 5, -1, 0x20, 0, -1)
	set("sticky", "system.posix_acl_default", def)
	b.File("sticky/inherits", "i")
	b.Dir("sticky/inheritsdir")
}

// acl renders (tag, permissions, id) triples as version 2 of the xattr format.
func acl(v ...int) string {
	out := []byte{2, 0, 0, 0}
	for i := 0; i < len(v); i += 3 {
		id := uint32(v[i+2])
		out = append(out, byte(v[i]), 0, byte(v[i+1]), 0, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	return string(out)
}

func (b Builder) privileged() {
	b.t.Helper()
	b.must(os.Lchown(b.Path("suid"), 12, 34))
	b.must(os.Lchown(b.Path("dangling"), 5, 6))
	b.must(os.Lchown(b.Path("emptydir"), 1000, 1001))
	b.must(os.Lchown(b.Path("fifo"), 1, 2))
	for name, mode := range map[string]uint32{"chr": syscall.S_IFCHR | 0o600, "blk": syscall.S_IFBLK | 0o660} {
		if err := unix.Mknod(b.Path(name), mode, int(unix.Mkdev(7, 3))); err != nil && err != unix.EPERM {
			b.t.Fatal(err)
		}
	}
	if err := unix.Lsetxattr(b.Path("suid"), "trusted.t", []byte("x"), 0); err != nil && err != unix.ENOTSUP && err != unix.EPERM {
		b.t.Fatal(err)
	}
}

// Random makes a tree of about n entries of all types that need no privilege,
// the same for the same seed.
func Random(t testing.TB, dir string, seed uint64, n int) {
	t.Helper()
	b := At(t, dir)
	r := rand.New(rand.NewPCG(seed, 1))
	dirs := []string{""}
	var files []string
	for i := range n {
		parent := dirs[r.IntN(len(dirs))]
		name := filepath.Join(parent, fmt.Sprintf("%s%d", []string{"e", "n,", "nl\n", "\xff", " "}[r.IntN(5)], i))
		switch k := r.IntN(20); {
		case k < 3 && strings.Count(name, "/") < 12:
			b.Dir(name)
			dirs = append(dirs, name)
			continue
		case k == 3:
			b.must(os.Symlink(fmt.Sprint("target", i), b.Path(name)))
			b.Times(name, time.Unix(1_500_000_000+int64(i), int64(r.IntN(1e9))))
			continue
		case k == 4 && len(files) > 0:
			b.must(os.Link(b.Path(files[r.IntN(len(files))]), b.Path(name)))
		case k == 5:
			b.must(unix.Mkfifo(b.Path(name), 0o644))
		case k == 6:
			b.sparse(name, int64(r.IntN(1<<20)), int64(r.IntN(3)-1)*4096)
		default:
			b.must(os.WriteFile(b.Path(name), randomBytes(r, r.IntN(1<<uint(r.IntN(17)))), 0o644))
			files = append(files, name)
		}
		b.Times(name, time.Unix(1_500_000_000+int64(i), int64(r.IntN(1e9))))
		if r.IntN(6) == 0 {
			b.must(unix.Fchmodat(unix.AT_FDCWD, b.Path(name), uint32(0o400|r.IntN(0o400)), 0))
		}
	}
	for i, d := range dirs {
		b.Times(d, time.Unix(1_400_000_000+int64(i), int64(r.IntN(1e9))))
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}
