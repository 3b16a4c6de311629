package treetest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// LoopFS returns a directory on a fresh file system of the given kind, which is
// made in a file in memory. Where that cannot be done the test is skipped.
func LoopFS(t testing.TB, kind string, mkfsArgs ...string) string {
	t.Helper()
	if !Root() {
		t.Skip("needs root")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("needs mkfs.%s", kind)
	}
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-loop-") //nolint:usetesting // in memory, wherever TMPDIR is
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is mounted in it makes this fail, and the unmount said so
	b := Builder{t, dir}
	b.must(os.Chmod(dir, 0o755)) // ordinary users get to the mount
	b.Dir("mnt")
	b.File("img", "")
	b.must(os.Truncate(b.Path("img"), 512<<20))
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), mkfs, append(mkfsArgs, b.Path("img"))...).CombinedOutput(); err != nil {
		t.Skipf("mkfs.%s: %v: %s", kind, err, out)
	}
	at := filepath.Join(dir, "mnt")
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "mount", "-o", "loop", b.Path("img"), at).CombinedOutput(); err != nil {
		t.Skipf("needs loop mounts: %v: %s", err, out)
	}
	t.Cleanup(func() { unmount(t, at) })
	return at
}

// unmount gives what was left behind a moment to close its files.
func unmount(t testing.TB, at string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for range 500 {
		if err = unix.Unmount(at, 0); err != unix.EBUSY {
			break
		}
		<-tick.C
	}
	if err != nil {
		t.Errorf("unmount %s: %v", at, err)
		_ = unix.Unmount(at, unix.MNT_DETACH)
	}
}

// Freezable returns a directory on a file system of its own. Between freeze and
// thaw whatever writes there hangs in the kernel, and no signal ends it. It is
// thawed with the test at the latest.
func Freezable(t testing.TB) (dir string, freeze, thaw func()) {
	t.Helper()
	if _, err := exec.LookPath("fsfreeze"); err != nil {
		t.Skip("needs fsfreeze")
	}
	dir = LoopFS(t, "ext4", "-q")
	do := func(how string) {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "fsfreeze", how, dir).CombinedOutput(); err != nil {
			t.Errorf("fsfreeze %s: %v: %s", how, err, out)
		}
	}
	var once sync.Once
	thaw = func() { once.Do(func() { do("--unfreeze") }) }
	return dir, func() { t.Cleanup(thaw); do("--freeze") }, thaw
}
