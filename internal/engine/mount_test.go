package engine

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

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
	d.Op = OpFinish
	for _, o := range []*Outcome{g.run(g.batch(1, g.copyOf("d/late"), g.copyOf("d/usual"))), g.run(g.batch(6, d))} {
		wantFailures(t, o)
		if len(o.Warnings) != 1 || o.Warnings[0].Kind != WarnTime || o.Warnings[0].Count != 1 {
			t.Errorf("warnings %+v", o.Warnings)
		}
	}
}
