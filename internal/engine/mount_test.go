package engine

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// mount mounts for the time of the test, or skips it.
func mount(t testing.TB, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func mountTmpfs(t testing.TB, target, options string) {
	t.Helper()
	must(t, os.MkdirAll(target, 0o755))
	mount(t, "tmpfs", target, "tmpfs", 0, options)
}

// shm returns a directory in memory.
func shm(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "fsbackup-engine-") //nolint:usetesting // in memory, wherever TMPDIR is
	if err != nil {
		t.Skipf("needs /dev/shm: %v", err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(d)) })
	return d
}

// fileSystems makes a directory on each kind.
func fileSystems() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{
		"tmpfs": shm,
		"ext4":  func(t testing.TB) string { return treetest.LoopFS(t, "ext4", "-q") },
		"xfs":   func(t testing.TB) string { return treetest.LoopFS(t, "xfs", "-q") },
		"btrfs": func(t testing.TB) string { return treetest.LoopFS(t, "btrfs", "-q") },
	}
}

// TestEveryFileSystem runs the whole backup on each kind, source and
// destination on the same one and, for tmpfs, across two.
func TestEveryFileSystem(t *testing.T) {
	for kind, dir := range fileSystems() {
		t.Run(kind, func(t *testing.T) {
			g := newRigIn(t, dir(t))
			g.spec.Sync = SyncBatch
			g.zoo()
			g.metaZoo(t)
			o, f := g.backup()
			if k := append(kindsOf(o), kindsOf(f)...); len(k) > 0 {
				t.Errorf("warnings %v", k)
			}
			g.same()
			g.backup()
			g.same()
			noTemps(t, g.dst)
		})
	}
}

func TestTimesThatTheTargetCantHoldAreWarnings(t *testing.T) {
	g := newRig(t)
	g.dst = treetest.LoopFS(t, "ext4", "-q", "-I", "128")
	g.spec.Destination = g.dst
	late := unix.Timespec{Sec: 4e9}
	setTimes(t, g.write("d/late", "x"), late, late)
	g.write("d/usual", "x")
	setTimes(t, filepath.Join(g.src, "d"), late, late)
	d := g.copyOf("d")
	d.Op = entry.OpFinish
	for _, o := range []*Outcome{g.run(g.batch(1, g.copyOf("d/late"), g.copyOf("d/usual"))), g.run(g.batch(6, d))} {
		wantFailures(t, o)
		if len(o.Warnings) != 1 || o.Warnings[0].Kind != WarnTime || o.Warnings[0].Count != 1 {
			t.Errorf("warnings %+v", o.Warnings)
		}
	}
}

// losses is what outcomes warn of: how many entries of each kind.
func losses(outs ...*Outcome) map[string]uint64 {
	sum := map[string]uint64{}
	for _, o := range outs {
		for _, w := range o.Warnings {
			sum[w.Kind] += w.Count
		}
	}
	return sum
}

// TestVerifyCountsTheLossesOfACopy as the copy did, whatever the destination can
// hold, and takes for a difference what a copy would mend.
func TestVerifyCountsTheLossesOfACopy(t *testing.T) {
	for name, c := range map[string]struct {
		dst  func(t *testing.T) string
		late int64 // a time that is kept, beyond which the destination's losses begin
	}{
		"ext4 with small inodes": {func(t *testing.T) string { return treetest.LoopFS(t, "ext4", "-q", "-I", "128") }, math.MaxInt32},
		"ext4":                   {func(t *testing.T) string { return treetest.LoopFS(t, "ext4", "-q") }, extMax},
		"xfs until 2038":         {func(t *testing.T) string { return treetest.LoopFS(t, "xfs", "-q", "-m", "bigtime=0") }, math.MaxInt32},
		"xfs":                    {func(t *testing.T) string { return treetest.LoopFS(t, "xfs", "-q") }, xfsMax},
		"tmpfs":                  {func(t *testing.T) string { return treetest.At(t, shm(t)).Path("") }, 5e10},
		"ramfs": {func(t *testing.T) string {
			needRoot(t)
			dir := t.TempDir()
			if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
				t.Skipf("cannot mount: %v", err)
			}
			t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			return dir
		}, 5e10},
	} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			g := newRigIn(t, shm(t))
			g.dst = filepath.Join(c.dst(t), "dst") // beside lost+found
			must(t, os.Mkdir(g.dst, 0o755))
			g.spec.Destination = g.dst
			at := func(sec, nsec int64) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: nsec} }
			for p, mtime := range map[string]unix.Timespec{
				"usual": at(1e9, 123456789), "2100": at(4102444800, 5), "2500": at(16725225600, 5), "2600": at(19880899200, 5), "1800": at(-5364662400, 5),
				"last": at(math.MaxInt32, 999999999), "first": at(math.MinInt32, 999999999), "edge": at(c.late, 7), "d/f": at(1e9, 0),
			} {
				setTimes(t, g.write(p, p), at(1e9, 0), mtime)
			}
			setTimes(t, g.write("read late", "x"), at(5e9, 0), at(1e9, 0))
			if err := unix.Setxattr(filepath.Join(g.src, "usual"), "user.large", bytes.Repeat([]byte("x"), 20000), 0); err != nil {
				t.Skipf("the source holds no such attribute: %v", err)
			}
			must(t, unix.Setxattr(filepath.Join(g.src, "usual"), "user.small", []byte("x"), 0))
			must(t, unix.Setxattr(filepath.Join(g.src, "d/f"), "user.small", []byte("x"), 0))
			setfacl(t, filepath.Join(g.src, "d"), "-m", "u:1000:rwx")
			must(t, unix.Setxattr(filepath.Join(g.src, "d"), "user.small", []byte("x"), 0))
			setTimes(t, filepath.Join(g.src, "d"), at(1e9, 0), at(4102444800, 0))
			copied, finished := g.backup()
			lost := losses(copied, finished)
			o := g.verify(g.verifying()...)
			wantFailures(t, o)
			if d := cmp.Diff(lost, losses(o)); d != "" {
				t.Errorf("verify counts otherwise than backup: %s", d)
			}
			t.Logf("lost: %v", lost)
			// A time that the destination can hold is none that it could not.
			setTimes(t, filepath.Join(g.dst, "usual"), at(1e9, 0), at(math.MaxInt32, 0))
			setTimes(t, filepath.Join(g.dst, "2600"), at(1e9, 0), at(1e9, 0))
			if c.late > math.MaxInt32 {
				setTimes(t, filepath.Join(g.dst, "2100"), at(1e9, 0), at(math.MaxInt32, 0))
				wantFailures(t, g.verify(g.verifying()...), "2100", "2600", "usual")
			} else {
				wantFailures(t, g.verify(g.verifying()...), "2600", "usual")
			}
		})
	}
}
