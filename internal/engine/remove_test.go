package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

func file(p string) Entry { return Entry{Op: entry.OpUnlink, Path: p} }
func tree(p string) Entry { return Entry{Op: entry.OpRemoveTree, Path: p} }

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
	want := entry.Counts{Deleted: 10, DirsDeleted: 4}
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
	g.wantCounts(o, entry.Counts{Skipped: 2, Deleted: 2}) // f and d are in the source
	g.spec.DeleteUnchecked = true
	g.wantCounts(g.run(g.batch(2, es...)), entry.Counts{Deleted: 4, DirsDeleted: 1})
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
			bothResolvers(t, func(t *testing.T, g *rig) {
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
		})
	}
}

// TestDeleteOfADeepTree removes 1,200 levels beneath one line: with names that
// long, some seventy times the longest path. Neither descriptors nor memory grow
// with the depth beyond the names on the way.
func TestDeleteOfADeepTree(t *testing.T) {
	g := newRig(t)
	name := func(i int) string { return fmt.Sprintf("level%04d%s", i, strings.Repeat("-", 240)) }
	fd, err := unix.Open(g.dst, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range 1200 {
		must(t, unix.Mkdirat(fd, name(i), 0o755))
		next, err := unix.Openat(fd, name(i), unix.O_PATH|unix.O_CLOEXEC, 0)
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
	most, checks := 0, 0
	m := newMemory(t)
	guard := guardFunc(func() error {
		if checks++; checks%10 == 0 {
			most = max(most, openFDs(t))
			m.sample()
		}
		return nil
	})
	o, err := g.try(g.batch(2, tree(name(0))), guard)
	must(t, err)
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{Deleted: 1, DirsDeleted: 1})
	if exists(filepath.Join(g.dst, name(0))) {
		t.Error("still there")
	}
	if most > before+60 {
		t.Errorf("%d descriptors open at once", most-before)
	}
	m.within(16 << 20)
}

func openFDs(t testing.TB) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(l)
}

// TestDeleteOfAWideDirectory removes a directory beneath one line that holds
// 32,000 names, in the long form five million. Memory does not grow with them.
func TestDeleteOfAWideDirectory(t *testing.T) {
	g := newRigIn(t, shm(t))
	files, dirs := 30_000, 2_000
	if long() {
		needMemory(t, 8<<30)
		mountTmpfs(t, g.dst, "size=100%,nr_inodes=0")
		files, dirs = 4_990_000, 10_000
	}
	w := filepath.Join(g.dst, "w")
	must(t, os.Mkdir(w, 0o755))
	fd, err := unix.Open(w, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range files {
		must(t, unix.Mknodat(fd, fmt.Sprintf("file-%07d", i), unix.S_IFREG|0o600, 0))
		if i%(files/dirs) == 0 {
			must(t, unix.Mkdirat(fd, fmt.Sprintf("dir-%07d", i), 0o700))
		}
	}
	must(t, unix.Close(fd))
	checks := 0
	m := newMemory(t)
	guard := guardFunc(func() error {
		if checks++; checks%1000 == 0 {
			m.sample()
		}
		return nil
	})
	o, err := g.try(g.batch(2, tree("w")), guard)
	must(t, err)
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{Deleted: 1, DirsDeleted: 1})
	if exists(w) {
		t.Error("still there")
	}
	if checks < files+dirs {
		t.Errorf("%d names were removed with %d checks", files+dirs, checks)
	}
	m.within(16 << 20)
}

// memory is how much of it the process has in use beyond what it had at first.
type memory struct {
	t           *testing.T
	heap0, rss0 uint64
	heap, rss   uint64 // the most that was seen
}

func newMemory(t *testing.T) *memory {
	runtime.GC()
	m := &memory{t: t}
	m.sample()
	m.heap0, m.rss0 = m.heap, m.rss
	return m
}

func (m *memory) sample() {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	m.heap = max(m.heap, s[0].Value.Uint64())
	statm, err := os.ReadFile("/proc/self/statm")
	must(m.t, err)
	var size, pages uint64
	_, err = fmt.Sscan(string(statm), &size, &pages)
	must(m.t, err)
	m.rss = max(m.rss, pages*uint64(os.Getpagesize()))
}

// within fails if the heap took more than the given bytes, or the process as a
// whole more than 64 MiB.
func (m *memory) within(heap uint64) {
	m.t.Helper()
	m.t.Logf("heap %d KiB more than before, resident memory %d KiB", (m.heap-m.heap0)>>10, (m.rss-m.rss0)>>10)
	if m.heap-m.heap0 > heap {
		m.t.Errorf("the heap took %d bytes", m.heap-m.heap0)
	}
	if m.rss-m.rss0 > 64<<20 {
		m.t.Errorf("the process took %d bytes", m.rss-m.rss0)
	}
}

// needMemory skips the test where fewer bytes can be had.
func needMemory(t *testing.T, want uint64) {
	t.Helper()
	info, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	_, rest, _ := strings.Cut(string(info), "MemAvailable:")
	var kib uint64
	_, err = fmt.Sscan(rest, &kib)
	must(t, err)
	if kib<<10 < want {
		t.Skipf("needs %d MiB of memory, there are %d", want>>20, kib>>10)
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
