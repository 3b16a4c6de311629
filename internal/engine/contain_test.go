package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// bothResolvers runs f with openat2 and with the component walk.
func bothResolvers(t *testing.T, f func(t *testing.T, g *rig)) {
	t.Run("openat2", func(t *testing.T) { f(t, newRig(t)) })
	t.Run("walk", func(t *testing.T) {
		g := newRig(t)
		g.e.resolver = fsys.NewWalkResolver()
		f(t, g)
	})
}

func TestEverythingWorksWithBothResolvers(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		g.zoo()
		g.backup()
		g.same()
		copies, _ := g.scan()
		var gone []Entry
		for _, e := range copies[1:] {
			op := OpUnlink
			if e.Op == OpMkdir {
				op = OpRemoveTree
			}
			gone = append(gone, Entry{Op: op, Path: e.Path})
		}
		g.spec.DeleteUnchecked = true
		wantFailures(t, g.run(g.batch(2, gone...)))
		if l := listing(t, g.dst); len(l) != 1 {
			t.Errorf("left: %v", l)
		}
	})
}

// TestPlantedLinks puts symbolic links where source and destination parents
// are expected and runs every operation through them.
func TestPlantedLinks(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		outside := shm(t)
		put(t, filepath.Join(outside, "f"), "precious")
		put(t, filepath.Join(outside, "d/f"), "precious")
		before := listing(t, outside)
		for _, root := range []string{g.src, g.dst} {
			must(t, os.Symlink(outside, filepath.Join(root, "p")))
			must(t, os.Symlink("/", filepath.Join(root, "slash")))
			must(t, os.Symlink("../", filepath.Join(root, "up")))
		}
		m := &Meta{Mode: unix.S_IFREG | 0o777, UID: 1, GID: 1, Mtime: 1}
		dm := &Meta{Mode: unix.S_IFDIR | 0o777, UID: 1, GID: 1, Mtime: 1}
		var es []Entry
		for _, p := range []string{"p/f", "p/d/f", "slash" + outside + "/f", "up/" + filepath.Base(filepath.Dir(outside)) + "/f"} {
			dir, _ := split(p)
			es = append(es, file(p), tree(dir), Entry{Op: OpFinish, Path: dir, Meta: dm}, Entry{Op: OpTouch, Path: dir, Meta: dm},
				Entry{Op: OpCopy, Path: p, Meta: m}, Entry{Op: OpLink, Group: 1, Path: p, Meta: m})
		}
		g.run(g.batch(1, es...))
		if diff := cmp.Diff(before, listing(t, outside)); diff != "" {
			t.Errorf("changed outside the roots:\n%s", diff)
		}
	})
}

// TestSourceLinksAreNotFollowed plants a link to a secret in the source.
func TestSourceLinksAreNotFollowed(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		secret := shm(t)
		put(t, filepath.Join(secret, "f"), "secret")
		must(t, os.Symlink(secret, filepath.Join(g.src, "d")))
		o := g.run(g.batch(1, Entry{Op: OpCopy, Path: "d/f", Meta: metaOf(t, filepath.Join(secret, "f"))}))
		wantFailures(t, o, "d/f")
		if len(o.Failures) == 1 && o.Failures[0].Kind != uint8(fault.Denied) {
			t.Errorf("%+v", o.Failures[0])
		}
		if exists(filepath.Join(g.dst, "d/f")) {
			t.Error("copied through a link")
		}
	})
}

// TestSwappingComponents exchanges a destination directory and a link that
// leads out, in a tight loop, while every operation runs through it.
func TestSwappingComponents(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		outside := shm(t)
		put(t, filepath.Join(outside, "sub/f"), "precious")
		put(t, filepath.Join(outside, "f"), "precious")
		before := listing(t, outside)
		g.write("d/sub/f", "from the source")
		g.write("d/f", "from the source")
		g.target("d/sub/f", "x")
		must(t, os.Symlink(outside, filepath.Join(g.dst, "swap")))
		d, swap := filepath.Join(g.dst, "d"), filepath.Join(g.dst, "swap")
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, swap, unix.RENAME_EXCHANGE)
			}
		})
		fin := g.copyOf("d/sub")
		fin.Op = OpFinish
		touch := fin
		touch.Op = OpTouch
		link := g.group(1, "d/f", "d/sub/f")
		g.spec.DeleteUnchecked = true
		j, err := g.e.OpenJob(g.spec)
		must(t, err)
		defer func() { must(t, j.Close()) }()
		rounds := 300
		if long() {
			rounds = 10_000
		}
		for range rounds {
			b := g.batch(1, g.copyOf("d/sub/f"), g.copyOf("d/f"), fin, touch, file("d/sub/f"), link[0], link[1], tree("d/sub"), file("d/f"))
			if _, err := j.Run(ctx, b, nil); err != nil && !fault.Is(err, fault.Stale) {
				t.Fatal(err)
			}
			if !exists(d) { // the link was replaced or removed: put it back
				_ = os.Symlink(outside, d)
			}
			if !exists(swap) {
				_ = os.Symlink(outside, swap)
			}
		}
		stop()
		wg.Wait()
		if diff := cmp.Diff(before, listing(t, outside)); diff != "" {
			t.Errorf("changed outside the roots:\n%s", diff)
		}
	})
}

// TestFIFOAndDevicesAreNeverOpened replaces source files by a FIFO, whose open
// would block or wake its writer, and by a device.
func TestFIFOAndDevicesAreNeverOpened(t *testing.T) {
	g := newRig(t)
	g.write("fifo", "was a file")
	g.write("tty", "was a file")
	es := []Entry{g.copyOf("fifo"), g.copyOf("tty")}
	fifo := filepath.Join(g.src, "fifo")
	must(t, os.Remove(fifo))
	must(t, unix.Mkfifo(fifo, 0o600))
	want := Counts{FilesCopied: 2, BytesCopied: 10, ChangedSinceScan: 1}
	if os.Geteuid() == 0 {
		must(t, os.Remove(filepath.Join(g.src, "tty")))
		must(t, unix.Mknod(filepath.Join(g.src, "tty"), unix.S_IFCHR|0o600, int(unix.Mkdev(240, 250)))) // no driver: open gives ENXIO
		want = Counts{FilesCopied: 2, ChangedSinceScan: 2}
	}
	o := g.run(g.batch(1, es...))
	wantFailures(t, o)
	g.wantCounts(o, want)
	// A writer would have been woken, and succeed, had anybody opened to read.
	if fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		t.Error("the fifo has a reader")
		_ = unix.Close(fd)
	}
}

// TestSwappingAFileForAFIFO does so in a loop while the file is copied.
func TestSwappingAFileForAFIFO(t *testing.T) {
	g := newRig(t)
	f := g.write("f", "regular")
	other := filepath.Join(g.src, "other")
	must(t, unix.Mkfifo(other, 0o600))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
		}
	})
	e := Entry{Op: OpCopy, Path: "f", Meta: &Meta{Mode: unix.S_IFREG | 0o644, Size: 7}}
	rounds := 500
	if long() {
		rounds = 10_000
	}
	for range rounds {
		o := g.run(g.batch(1, e))
		for _, f := range o.Failures {
			if f.Kind != uint8(fault.Changed) && f.Kind != uint8(fault.NotFound) {
				t.Fatalf("%+v", f)
			}
		}
	}
	stop()
	wg.Wait()
	noTemps(t, g.dst)
}

func TestReasonsAreOneLine(t *testing.T) {
	g := newRig(t)
	o := g.run(g.batch(1, Entry{Op: OpCopy, Path: "no\nsuch/fi\nle", Meta: &Meta{}}))
	if len(o.Failures) != 1 || strings.Contains(o.Failures[0].Reason, "\n") || !strings.Contains(o.Failures[0].Reason, `no\nsuch`) {
		t.Errorf("%+v", o.Failures)
	}
}
