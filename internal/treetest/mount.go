package treetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
// to hang: what is made durable on it waits for the disk. One whose journal cannot be
// made durable takes no more writes; without a journal (-O ^has_journal) it goes on.
func OnFaultyDisk(t testing.TB, mkfsArgs ...string) (string, *FaultyFS) {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4")
	}
	dir := inMemory(t, "disk")
	Builder{t, dir}.Dir("disk")
	disk := Faulty(t, filepath.Join(dir, "disk"))
	return loop(t, dir, filepath.Join(dir, "disk/img"), mkfs, append([]string{"-q"}, mkfsArgs...)), disk
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

// SmallFS returns a directory on a tmpfs of so many bytes. From fill on, which
// returns once it is full, all that is freed there is taken at once, until empty.
// Where it cannot be mounted the test is skipped.
func SmallFS(t testing.TB, size int64) (dir string, fill, empty func()) {
	t.Helper()
	if !Root() {
		t.Skip("needs root")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("needs tmpfs mounts: %v", err)
	}
	t.Cleanup(func() {
		// A server whose disk was full may keep files of it open.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	stop, stopped := make(chan struct{}), make(chan struct{})
	fill = func() {
		t.Helper()
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		var free unix.Statfs_t
		if err = unix.Fstatfs(int(f.Fd()), &free); err == nil && free.Bfree > 0 {
			// In one step; that it fits no more is what the loop below sees.
			_ = unix.Fallocate(int(f.Fd()), 0, 0, int64(free.Bfree)*free.Bsize)
		}
		full := make(chan error, 1)
		go func() {
			defer close(stopped)
			defer func() { _ = f.Close() }() // full, as wanted
			page := make([]byte, 4<<10)
			for {
				if _, err := f.Write(page); err != nil {
					select {
					case full <- err:
					default:
					}
				}
				select {
				case <-stop:
					return
				default:
					runtime.Gosched()
				}
			}
		}()
		if err := <-full; !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill %s: %v", dir, err)
		}
	}
	var once sync.Once
	empty = func() {
		once.Do(func() {
			close(stop)
			<-stopped
			if err := os.Remove(ballast); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		select {
		case <-stopped:
		default:
			close(stop)
		}
	})
	return dir, fill, empty
}
