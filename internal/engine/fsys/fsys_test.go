package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openRoot(t *testing.T, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	return fd
}

func TestResolversAgree(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "root/a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "root/f"), nil, 0o644))
	for link, to := range map[string]string{"in": "a", "out": "/", "up": "..", "a/self": "b"} {
		must(t, os.Symlink(to, filepath.Join(dir, "root", link)))
	}
	root := openRoot(t, filepath.Join(dir, "root"))
	for path, want := range map[string]error{
		"": nil, "a": nil, "a/b": nil,
		"missing": unix.ENOENT, "a/missing/x": unix.ENOENT,
		"f": unix.ENOTDIR, "f/x": unix.ENOTDIR,
		"in": unix.ELOOP, "in/b": unix.ELOOP, "out": unix.ELOOP, "out/etc": unix.ELOOP, "up/root": unix.ELOOP, "a/self": unix.ELOOP,
		"..": unix.EXDEV, "a/../../x": unix.EXDEV, "/": unix.EXDEV, "/etc": unix.EXDEV,
	} {
		for name, r := range map[string]*Resolver{"openat2": NewResolver(), "walk": NewWalkResolver()} {
			fd, err := r.OpenDir(root, path)
			if !errors.Is(err, want) {
				t.Errorf("%s %q: %v, want %v", name, path, err, want)
			}
			if err == nil {
				must(t, Close(fd))
			}
		}
	}
}

func TestMountPointsAreTold(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "m"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "other"), 0o755))
	if err := unix.Mount(filepath.Join(dir, "other"), filepath.Join(dir, "m"), "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	defer func() { must(t, unix.Unmount(filepath.Join(dir, "m"), unix.MNT_DETACH)) }()
	root := openRoot(t, dir)
	for name, r := range map[string]*Resolver{"openat2": NewResolver(), "walk": NewWalkResolver()} {
		if _, err := r.OpenDirNoXdev(root, "m"); !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %v, want EXDEV", name, err)
		}
		fd, err := r.OpenDirNoXdev(root, "other")
		must(t, err)
		must(t, Close(fd))
	}
}

func TestDirCacheKeepsWhatIsInUse(t *testing.T) {
	dir := t.TempDir()
	for i := range 10 {
		must(t, os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755))
	}
	root := openRoot(t, dir)
	r := NewResolver()
	opened := 0
	c := NewDirCache(2, func(p string) (int, error) { opened++; return r.OpenDir(root, p) })
	held, err := c.Get("0")
	must(t, err)
	for i := range 10 {
		d, err := c.Get(fmt.Sprint(i))
		must(t, err)
		d.Release()
	}
	if opened != 10 || len(c.m) != 2 || c.lru.Len() != 2 {
		t.Errorf("opened %d, cached %d", opened, len(c.m))
	}
	var st unix.Stat_t
	must(t, Fstat(held.FD, &st)) // evicted, and open as long as it is held
	if held.Gone() {
		t.Error("gone")
	}
	must(t, os.Remove(filepath.Join(dir, "0")))
	if !held.Gone() {
		t.Error("not gone")
	}
	fd := held.FD
	held.Release()
	if err := Fstat(fd, &st); !errors.Is(err, unix.EBADF) {
		t.Errorf("still open: %v", err)
	}
	if _, err := c.Get("missing"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
	c.DropAll()
	if len(c.m) != 0 || c.lru.Len() != 0 {
		t.Error("not empty")
	}
}

// TestParseACLAgreesWithSetfacl compares with what the tool makes the kernel store.
func TestParseACLAgreesWithSetfacl(t *testing.T) {
	if _, err := exec.LookPath("setfacl"); err != nil {
		t.Skip("needs setfacl")
	}
	f := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(f, nil, 0o640))
	for _, text := range []string{
		"user::rw-\nuser:1000:rwx\ngroup::r--\nmask::rw-\nother::---\n",
		"u::rwx,u:2:r--,u:1:-w-,g::---,g:5:--x,o::r",
		"user::rwx,group::r-x,group:7:rwx #effective:r-x\nmask:r-x,other:r--",
		"user::rwx\nuser:root:r--\ngroup::r-x\nother::---\n",
	} {
		out, err := exec.Command("setfacl", "-b", f).CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		cmd := exec.Command("setfacl", "-M", "-", f)
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(text, ",", "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		fd := openFile(t, f)
		want, err := Node{FD: fd}.Getxattr(XattrAccessACL)
		must(t, err)
		got, err := ParseACL(text)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%q:\n got %x\nwant %x", text, got, want)
		}
	}
}

func openFile(t *testing.T, p string) int {
	t.Helper()
	fd, err := unix.Open(p, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	return fd
}

func FuzzParseACL(f *testing.F) {
	for _, s := range []string{"", "u::rwx,g::r,o::-", "user:1000:rwx", "mask::r", "user::rwx,user::rwx", "d:u::r", "u:4294967296:r,:::", "A::OWNER@:rwx"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		acl, err := ParseACL(s)
		if err == nil && len(acl) > 0 && (len(acl)-4)%aclEntryLen != 0 {
			t.Errorf("%q: %x", s, acl)
		}
	})
}

func TestParseACLRefuses(t *testing.T) {
	for _, s := range []string{"user::rwx", "u::rwx,g::r,o::-,m::r,m::w", "u::rwx,g::r,o::-,u:1:r,u:1:w", "u::rwz,g::r,o::-",
		"u::rwx,g::r,o:5:-", "x::r", "u::rwx,g::r,o::-,u:nobody-of-that-name:r", "A::OWNER@:rwx"} {
		if acl, err := ParseACL(s); err == nil {
			t.Errorf("%q accepted: %x", s, acl)
		}
	}
}

// TestCopier runs each way of copying over a file of data and holes.
func TestCopier(t *testing.T) {
	dir := t.TempDir()
	src := openFile(t, touch(t, dir, "src"))
	const size = 24<<20 + 17
	for _, off := range []int64{0, 5 << 20, 16<<20 - 7} {
		must(t, pwrite(src, bytes.Repeat([]byte{byte(off>>20) + 1}, 1<<20), off))
	}
	must(t, unix.Ftruncate(src, size))
	want, err := os.ReadFile(filepath.Join(dir, "src"))
	must(t, err)
	for _, tc := range []struct {
		name             string
		c                Copier
		sparse, allHoles bool
	}{
		{name: "read and write"},
		{name: "early write-back", c: Copier{Writeback: true}},
		{name: "copy_file_range", c: Copier{Range: true}},
		{name: "copy_file_range, write-back", c: Copier{Range: true, Writeback: true}},
		{name: "clone", c: Copier{Clone: true, Range: true}},
		{name: "sparse", sparse: true, allHoles: true},
		{name: "sparse, copy_file_range", c: Copier{Range: true}, sparse: true, allHoles: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := touch(t, dir, "dst")
			must(t, os.Truncate(p, 0))
			dst := openFile(t, p)
			checks := 0
			tc.c.Buf, tc.c.Check = make([]byte, 64<<10), func() error { checks++; return nil }
			must(t, tc.c.Copy(dst, src, size, tc.sparse))
			got, err := os.ReadFile(p)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Error("contents differ")
			}
			if tc.allHoles && tc.c.Holes == 0 {
				t.Error("no holes")
			}
			if !tc.sparse && tc.c.Cloned == 0 && checks < 1 {
				t.Errorf("%d checks", checks)
			}
		})
	}
	t.Run("short source", func(t *testing.T) {
		c := Copier{Buf: make([]byte, 1<<20)}
		if err := c.Copy(openFile(t, touch(t, dir, "short")), src, size+1, false); !errors.Is(err, ErrShort) {
			t.Errorf("%v", err)
		}
	})
	t.Run("check stops it", func(t *testing.T) {
		stop := errors.New("stop")
		c := Copier{Buf: make([]byte, 1<<20), Check: func() error { return stop }}
		if err := c.Copy(openFile(t, touch(t, dir, "stopped")), src, size, false); !errors.Is(err, stop) {
			t.Errorf("%v", err)
		}
	})
}

func touch(t *testing.T, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.WriteFile(p, nil, 0o600))
	return p
}

// TestRemoverStopsWhenMoved moves a deep directory out of the tree while it is
// removed: what lies around its new place must stay.
func TestRemoverStopsWhenMoved(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "tree"+strings.Repeat("/d", openLevels+20))
	must(t, os.MkdirAll(deep, 0o755))
	must(t, os.WriteFile(filepath.Join(deep, "f"), nil, 0o644))
	half := filepath.Join(dir, "tree"+strings.Repeat("/d", 10))
	must(t, os.MkdirAll(filepath.Join(dir, "out"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "out/precious"), nil, 0o644))
	moved := false
	x := Remover{Resolver: NewResolver(), Check: func() error {
		if !moved {
			moved = true
			return os.Rename(half, filepath.Join(dir, "out/d"))
		}
		return nil
	}}
	err := x.Tree(openRoot(t, dir), "tree")
	if !errors.Is(err, ErrMoved) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "out/precious")); err != nil {
		t.Error(err)
	}
}

func TestRemoverRefusesWhatIsNoDirectory(t *testing.T) {
	dir := t.TempDir()
	touch(t, dir, "f")
	must(t, os.Symlink("/", filepath.Join(dir, "l")))
	x := Remover{Resolver: NewResolver(), Check: func() error { return nil }}
	root := openRoot(t, dir)
	for _, name := range []string{"f", "l"} {
		if err := x.Tree(root, name); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, x.Tree(root, "missing"))
}
