package coordinator

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

func TestObjectsThatNoJobNeedsAreRemoved(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	_, _, stop := lead(t, b, nil) // makes the buckets
	stop()
	putJob(t, b, waitingJob("runs"))
	ended := waitingJob("ended")
	ended.State, ended.Ended = protocol.StateFailed, time.Now()
	putJob(t, b, ended)
	var later atomic.Int64 // seconds
	c, _, stop := lead(t, b, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load()) * time.Second) }
	})
	c.update(func(t state.Tx) {
		t.PutFile(state.File{Job: "runs", Record: protocol.FileRecord{Object: "file/named"}})
	})
	for _, name := range []string{
		"file/named", "file/free", protocol.ShardObject("runs", 2, 0), protocol.ShardObject("ended", 2, 0), protocol.ShardObject("unknown", 2, 0),
		protocol.FailureObject("runs", 2, 0, 1, 1), protocol.FailureObject("ended", 2, 0, 1, 1), protocol.FailureObject("unknown", 2, 0, 1, 1),
	} {
		if err := c.objects.PutBytes(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	left := func(what string, want ...string) {
		t.Helper()
		if err := c.sweepObjects(t.Context()); err != nil {
			t.Fatal(err)
		}
		objects, err := c.objects.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range objects {
			got = append(got, o.Name)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", what, d)
		}
	}
	left("of jobs that nobody knows", "failure/ended/2/0/1-1", "failure/runs/2/0/1-1", "file/free", "file/named", "shard/ended/2/0", "shard/runs/2/0")
	later.Store(int64(25 * time.Hour / time.Second))
	c.placing.RLock()
	left("files while somebody submits", "failure/runs/2/0/1-1", "file/free", "file/named", "shard/runs/2/0")
	c.placing.RUnlock()
	left("files that nobody names", "failure/runs/2/0/1-1", "file/named", "shard/runs/2/0")
	stop() // nothing renews its lease any more
	c.leadsUntil.Store(0)
	c.update(func(t state.Tx) { t.DropJob("runs") })
	left("by one that leads no more", "failure/runs/2/0/1-1", "file/named", "shard/runs/2/0")
	at, err := b.StreamState(t.Context(), "OBJ_"+protocol.BucketObjects)
	if err != nil || at.Messages != 6 {
		t.Errorf("the bucket has %d messages, want two for each of three objects (%v)", at.Messages, err)
	}
}
