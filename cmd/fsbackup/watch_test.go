package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// A watcher that starts while the cluster is away says so, and shows the job once
// the cluster is back; other commands give up.
func TestWatchWaitsForAClusterThatIsAway(t *testing.T) {
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.At(t, src).File("f", "x")
	addr, store := freePort(t), t.TempDir()
	flag := "--nats=nats://" + addr
	coordinator := func() *process {
		p := daemon(t, "coordinator", "--store", store, "--nats-listen", addr, "--leader-lease", "3s")
		waitListen(t, addr)
		return p
	}
	first := coordinator()
	daemon(t, "worker", "--nats", "nats://"+addr, "--name", "w1", "--allow", filepath.Dir(src), "--allow", filepath.Dir(dst))
	until(t, func(r result) bool { return strings.Contains(r.stdout, " live ") }, "workers", flag)
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--wait").want(t, 0)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // killed
	fsb(t, "status", flag, "last").want(t, 69)
	watch := daemon(t, "fsbackup", "watch", flag, "last")
	watch.says(t, "waiting for the cluster")
	coordinator()
	watch.says(t, "completed")
	if err := watch.Wait(); err != nil {
		t.Errorf("watch ended with %v", err)
	}
}
