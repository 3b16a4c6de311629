package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
	if len(v.Phases) < 2 || v.Phases[0].Phase.String() != "delete" || v.Phases[1].Phase.String() != "copy" {
		t.Errorf("phases ran as %+v, want delete before copy", v.Phases)
	}
}
