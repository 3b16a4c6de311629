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
	dir := inMemory(t, "loop")
	return loop(t, dir, filepath.Join(dir, "img"), mkfs, mkfsArgs)
}

// inMemory returns a directory for mounts that ordinary users get to.
func inMemory(t testing.TB, what string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-"+what+"-") //nolint:usetesting // in memory, wherever TMPDIR is
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is mounted in it makes this fail, and the unmount said so
	Builder{t, dir}.must(os.Chmod(dir, 0o755))
	return dir
}

// loop makes a file system in the file img and mounts it beneath dir.
func loop(t testing.TB, dir, img, mkfs string, mkfsArgs []string) string {
	t.Helper()
	b := Builder{t, dir}
	b.Dir("mnt")
	b.must(os.WriteFile(img, nil, 0o600))
	b.must(os.Truncate(img, 512<<20))
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), mkfs, append(mkfsArgs, img)...).CombinedOutput(); err != nil {
		t.Skipf("%s: %v: %s", mkfs, err, out)
	}
	at := b.Path("mnt")
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "mount", "-o", "loop", img, at).CombinedOutput(); err != nil {
		t.Skipf("needs loop mounts: %v: %s", err, out)
	}
	t.Cleanup(func() { unmount(t, at) })
	return at
}

// OnFaultyDisk returns a directory on an ext4 whose disk can be made to fail and
// to hang: what is made durable on it waits for the disk.
func OnFaultyDisk(t testing.TB) (string, *FaultyFS) {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4")
	}
	dir := inMemory(t, "disk")
	Builder{t, dir}.Dir("disk")
	disk := Faulty(t, filepath.Join(dir, "disk"))
	return loop(t, dir, filepath.Join(dir, "disk/img"), mkfs, []string{"-q"}), disk
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
