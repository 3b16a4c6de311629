package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

func file(p string) Entry { return Entry{Op: OpUnlink, Path: p} }
func tree(p string) Entry { return Entry{Op: OpRemoveTree, Path: p} }

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func TestDeleteIsTypeSafe(t *testing.T) {
	g := newRig(t)
	outside := put(t, filepath.Join(shm(t), "o/precious"), "keep")
	for _, p := range []string{"f", "fd/x", "df", "dd/a/b/c", "dd/x"} {
		g.target(p, "x")
	}
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(g.dst, "link")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(g.dst, "dd/link")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(g.dst, "dlink")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(g.dst, "plink")))
	must(t, unix.Mkfifo(filepath.Join(g.dst, "dd/fifo"), 0o600))
	b := g.batch(2, file("f"), file("fd"), tree("df"), tree("dd"), file("link"), tree("dlink"),
		file("plink/precious"), file("missing"), tree("missing/too"), file("f/below-a-file"))
	// Nothing of the line's kind is left at any of the paths, whether it was
	// removed, missing, not reachable or of another kind.
	want := Counts{Deleted: 10, DirsDeleted: 4}
	o := g.run(b)
	wantFailures(t, o)
	g.wantCounts(o, want)
	g.wantCounts(g.run(b), want)
	for p, left := range map[string]bool{"f": false, "fd/x": true, "df": true, "dd": false, "link": false, "dlink": true, "plink": true} {
		if exists(filepath.Join(g.dst, p)) != left {
			t.Errorf("%s exists: %v, want %v", p, !left, left)
		}
	}
	if read(t, outside) != "keep" {
		t.Error("deleted through a link")
	}
}

func TestDeleteKeepsWhatTheSourceHas(t *testing.T) {
	g := newRig(t)
	for _, p := range []string{"f", "d/x", "becamedir/x"} {
		g.write(p, "x")
	}
	must(t, os.Symlink("d", filepath.Join(g.src, "viaLink")))
	for _, p := range []string{"f", "d/x", "becamedir", "viaLink/x"} {
		g.target(p, "x")
	}
	es := []Entry{file("f"), tree("d"), file("becamedir"), file("viaLink/x")}
	o := g.run(g.batch(2, es...))
	wantFailures(t, o)
	g.wantCounts(o, Counts{Skipped: 2, Deleted: 2}) // f and d are in the source
	g.spec.DeleteUnchecked = true
	g.wantCounts(g.run(g.batch(2, es...)), Counts{Deleted: 4, DirsDeleted: 1})
	if got := len(listing(t, g.dst)); got != 2 { // the root and viaLink
		t.Errorf("%d objects left", got)
	}
}

func TestRootIsNeverDeleted(t *testing.T) {
	g := newRig(t)
	g.spec.DeleteUnchecked = true
	g.target("f", "x")
	o := g.run(g.batch(2, tree(""), file(""), tree("."), tree("/"), tree("..")))
	wantFailures(t, o, "", "", ".", "/", "..")
	for _, f := range o.Failures {
		if f.Kind != uint8(fault.Denied) {
			t.Errorf("%+v", f)
		}
	}
	if !exists(filepath.Join(g.dst, "f")) {
		t.Error("the root was emptied")
	}
}

func TestDeleteCrossesNoMount(t *testing.T) {
	for _, kind := range []string{"tmpfs", "bind"} {
		t.Run(kind, func(t *testing.T) {
			g := newRig(t)
			g.target("d/before", "x")
			g.target("d/z/after", "x")
			m := filepath.Join(g.dst, "d/m")
			if kind == "tmpfs" {
				mountTmpfs(t, m, "")
			} else {
				other := shm(t)
				must(t, os.MkdirAll(m, 0o755))
				mount(t, other, m, "", unix.MS_BIND, "")
			}
			put(t, filepath.Join(m, "precious"), "keep")
			o := g.run(g.batch(2, tree("d"), tree("d/m")))
			wantFailures(t, o, "d", "d/m")
			if !exists(filepath.Join(m, "precious")) {
				t.Fatal("a mount was emptied")
			}
			if exists(filepath.Join(g.dst, "d/z")) || exists(filepath.Join(g.dst, "d/before")) {
				t.Error("the rest was kept")
			}
			for _, f := range o.Failures {
				if f.Errno != int(unix.EXDEV) {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// TestDeleteOfADeepTree removes 1,200 levels, three times the longest path.
func TestDeleteOfADeepTree(t *testing.T) {
	g := newRig(t)
	fd, err := unix.Open(g.dst, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range 1200 {
		name := fmt.Sprintf("level%04d", i)
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
		for _, f := range []string{"a", "z"} {
			ffd, err := unix.Openat(fd, f, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			must(t, err)
			must(t, unix.Close(ffd))
		}
		must(t, unix.Mkdirat(fd, "side", 0o755))
	}
	must(t, unix.Close(fd))
	before := openFDs(t)
	most := 0
	guard := guardFunc(func() error {
		most = max(most, openFDs(t))
		return nil
	})
	o, err := g.try(g.batch(2, tree("level0000")), guard)
	must(t, err)
	wantFailures(t, o)
	g.wantCounts(o, Counts{Deleted: 1, DirsDeleted: 1})
	if exists(filepath.Join(g.dst, "level0000")) {
		t.Error("still there")
	}
	if most > before+60 {
		t.Errorf("%d descriptors open at once", most-before)
	}
}

func openFDs(t testing.TB) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(l)
}

func TestDeleteOfAWideDirectory(t *testing.T) {
	g := newRigIn(t, shm(t))
	const n = 30000
	must(t, os.Mkdir(filepath.Join(g.dst, "w"), 0o755))
	for i := range n {
		must(t, unix.Mknod(filepath.Join(g.dst, fmt.Sprintf("w/file-%06d", i)), unix.S_IFREG|0o600, 0))
	}
	for i := range 2000 {
		must(t, os.Mkdir(filepath.Join(g.dst, fmt.Sprintf("w/dir-%06d", i)), 0o700))
	}
	o := g.run(g.batch(2, tree("w")))
	wantFailures(t, o)
	if exists(filepath.Join(g.dst, "w")) {
		t.Error("still there")
	}
}

func TestWhatCantBeDeletedDoesNotKeepTheRest(t *testing.T) {
	g := newRig(t)
	g.target("d/a", "x")
	g.target("d/z", "x")
	stuck := g.target("d/m/stuck", "x")
	chattr(t, "+i", stuck)
	o := g.run(g.batch(2, tree("d")))
	wantFailures(t, o, "d")
	if len(o.Failures) == 1 && o.Failures[0].Errno != int(unix.EPERM) {
		t.Errorf("%+v", o.Failures[0])
	}
	if exists(filepath.Join(g.dst, "d/a")) || exists(filepath.Join(g.dst, "d/z")) || !exists(stuck) {
		t.Error("wrong things left")
	}
}
