package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// The store of the embedded NATS server runs full in the middle of a job, and
// nothing at all can be written there for a while: the job goes on once there is
// room, by itself, to its exact end.
func TestAJobOutlivesAFullStoreOfItsCoordinator(t *testing.T) {
	store, fill, empty := treetest.SmallFS(t, 96<<20)
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Random(t, src, 31, 1500)
	addr := freePort(t)
	coordinator := daemon(t, "coordinator", "--name", "c1", "--store", store, "--nats-listen", addr, "--queue-bytes", "16777216", "--lease", "2s", "--ack-wait", "3s", "--leader-lease", "3s", "--heartbeat", "300ms")
	waitListen(t, addr)
	daemon(t, "worker", "--nats", "nats://"+addr, "--name", "w1", "--allow", filepath.Dir(src), "--allow", filepath.Dir(dst))
	flag := "--nats=nats://" + addr
	until(t, func(r result) bool { return strings.Contains(r.stdout, " live ") }, "workers", flag)
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "1", "--max-shards", "1").want(t, 0)
	until(t, func(r result) bool { return r.code == 0 && len(r.job(t).Workers) > 0 }, "status", flag, "last", "--json")
	fill()
	coordinator.says(t, "started again as soon as its store can be written")
	empty()
	until(t, func(r result) bool { return r.code == 0 }, "status", flag, "last")
	v := fsb(t, "watch", flag, "last", "--json").want(t, 0).job(t)
	treetest.Same(t, src, dst)
	exact(t, v, treetest.Count(treetest.Listing(t, src)))
}
