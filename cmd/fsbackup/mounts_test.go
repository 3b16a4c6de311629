package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestWorkerThatSeesAnotherMountTakesNoShards(t *testing.T) {
	if !treetest.Root() {
		t.Skip("a mount namespace of its own for a worker needs root")
	}
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Random(t, src, 21, 600)
	if err := os.Mkdir(dst, 0o755); err != nil {
		t.Fatal(err)
	}
	flag := cluster(t, 1, filepath.Dir(src), filepath.Dir(dst))
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	v := withStray(t, flag, src, dst, scan)
	treetest.Same(t, src, dst)
	exact(t, v, treetest.Count(treetest.Listing(t, src)))
	if v.Workers["stray"] != 0 {
		t.Errorf("shards were answered by %v: the stray worker wrote to another mount", v.Workers)
	}
}

// withStray runs a job during which a worker joins that has another mount at dst,
// and returns how the job ended.
func withStray(t *testing.T, flag, src, dst, scan string, more ...string) protocol.JobView {
	t.Helper()
	// One shard at a time, and many of them, so that the pause comes before the end.
	args := []string{"submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "1", "--max-shards", "1"}
	fsb(t, append(args, more...)...).want(t, 0)
	// The first worker has proven its roots once it has answered a shard; the job
	// then waits until the stray one is there.
	until(t, func(r result) bool { return r.code == 0 && len(r.job(t).Workers) > 0 }, "status", flag, "last", "--json")
	fsb(t, "pause", flag, "last").want(t, 0)
	script := `mount -t tmpfs none "$1" && exec "$2" "$3" --name stray --allow /`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "sh", dst, filepath.Join(bin, "worker"), flag)
	if err := cmd.Start(); err != nil {
		t.Skipf("no mount namespace here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was told to stop
	})
	until(t, func(r result) bool { return strings.Contains(r.stdout, "stray") }, "workers", flag)
	fsb(t, "resume", flag, "last").want(t, 0)
	return fsb(t, "watch", flag, "last", "--json").want(t, 0).job(t)
}

func TestDeleteBeforeMakesRoomForTheCopy(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("d/old", strings.Repeat("o", 1<<20))
	b.File("stays", "s")
	p.backup().want(t, 0)
	if err := os.Remove(b.Path("d/old")); err != nil {
		t.Fatal(err)
	}
	b.File("d/new", strings.Repeat("n", 1<<20))
	v := p.backup("--delete-before", "--max-delete", "100%").want(t, 0).job(t)
	treetest.Same(t, p.src, p.dst)
	if len(v.Phases) < 3 || v.Phases[0].Phase != protocol.PhaseDelete || v.Phases[1].Phase != protocol.PhaseRmdir || v.Phases[2].Phase != protocol.PhaseCopy {
		t.Errorf("phases ran as %+v, want delete before copy", v.Phases)
	}
}

// A mount of one worker goes bad in the middle of a job: another file system is
// mounted over a root, or within one. That fails fast, and must neither drain the
// queue nor fill what lies there, nor count what it hides as vanished: the other worker
// does what is there.
func TestWorkerWhoseMountGoesBadLeavesTheJobToOthers(t *testing.T) {
	if !treetest.Root() {
		t.Skip("a mount namespace of its own for a worker needs root")
	}
	for name, spoil := range map[string]string{
		"another destination":            `mount -t tmpfs none "$2"`,
		"another source":                 `mount -t tmpfs none "$1"`,
		"a directory of the source":      `mount -t tmpfs none "$1/first"`,
		"a directory of the destination": `mkdir -p "$2/first" && mount -t tmpfs none "$2/first"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
			treetest.Random(t, src, 22, 600)
			b := treetest.At(t, src)
			for i := range 40 {
				b.File(fmt.Sprintf("first/all/%02d", i), "x")
			}
			if err := os.Mkdir(dst, 0o755); err != nil {
				t.Fatal(err)
			}
			flag := cluster(t, 1, filepath.Dir(src), filepath.Dir(dst))
			fsb(t, "scan", src, "--out", scan).want(t, 0)
			stray := inNamespace(t, flag, "stray")
			until(t, func(r result) bool { return strings.Contains(r.stdout, "stray") }, "workers", flag)
			fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "1", "--max-shards", "2", "--vanished", "skip").want(t, 0)
			until(t, func(r result) bool { return r.code == 0 && r.job(t).Workers["stray"] > 0 }, "status", flag, "last", "--json")
			fsb(t, "pause", flag, "last").want(t, 0)
			until(t, func(r result) bool { return r.code == 0 && r.job(t).Phases[0].Open == 0 }, "status", flag, "last", "--json")
			out, err := exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", stray), "sh", "-c", spoil, "sh", src, dst).CombinedOutput()
			if err != nil {
				t.Skipf("cannot mount in another namespace: %v: %s", err, out)
			}
			before := until(t, func(r result) bool { return r.code == 0 }, "status", flag, "last", "--json").job(t)
			fsb(t, "resume", flag, "last").want(t, 0)
			v := fsb(t, "watch", flag, "last", "--json").want(t, 0).job(t)
			exact(t, v, treetest.Count(treetest.Listing(t, src)))
			treetest.Same(t, src, dst)
			// Where it sees the same it serves the job.
			if strings.HasPrefix(name, "another") && v.Workers["stray"] != before.Workers["stray"] {
				t.Errorf("it had answered %d shards, then %d", before.Workers["stray"], v.Workers["stray"])
			}
		})
	}
}

// inNamespace starts a worker that sees mounts of its own, and returns its process.
func inNamespace(t *testing.T, flag, name string) int {
	t.Helper()
	cmd := exec.Command("unshare", "-m", filepath.Join(bin, "worker"), flag, "--name", name, "--allow", "/")
	if err := cmd.Start(); err != nil {
		t.Skipf("no mount namespace here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was told to stop
	})
	return cmd.Process.Pid
}

// The destination is unmounted from all workers in the middle of a job: the job
// says so, nothing is written to the directory beneath, and it goes on when the
// file system is back.
func TestJobWaitsForADestinationThatWasUnmounted(t *testing.T) {
	if !treetest.Root() {
		t.Skip("mounting needs root")
	}
	src, at, scan := filepath.Join(t.TempDir(), "src"), t.TempDir(), filepath.Join(t.TempDir(), "scan")
	elsewhere := t.TempDir()
	treetest.Random(t, src, 23, 600)
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Skipf("mount %q: %v: %s", args, err, out)
		}
	}
	mount("-t", "tmpfs", "none", elsewhere)
	t.Cleanup(func() { _ = unix.Unmount(elsewhere, unix.MNT_DETACH) })
	mount("--bind", elsewhere, at)
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	flag := cluster(t, 2, filepath.Dir(src), at)
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	fsb(t, "submit", flag, "--source", src, "--destination", at, "--meta", scan, "--control", scan, "--shard-entries", "1", "--max-shards", "1").want(t, 0)
	until(t, func(r result) bool { return r.code == 0 && len(r.job(t).Workers) > 0 }, "status", flag, "last", "--json")
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	v := until(t, func(r result) bool { return r.code == 0 && r.job(t).StallCause == protocol.StallRoots }, "status", flag, "last", "--json").job(t)
	if !strings.Contains(v.Stalled, at) || !strings.Contains(v.Stalled, "unmounted") || v.State != protocol.StateRunning {
		t.Errorf("the job is %s, stalled: %q", v.State, v.Stalled)
	}
	if beneath, err := os.ReadDir(at); err != nil || len(beneath) > 0 {
		t.Errorf("the directory beneath the mount was filled: %v, %v", beneath, err)
	}
	mount("--bind", elsewhere, at)
	v = fsb(t, "watch", flag, "last", "--json").want(t, 0).job(t)
	treetest.Same(t, src, at)
	exact(t, v, treetest.Count(treetest.Listing(t, src)))
}
