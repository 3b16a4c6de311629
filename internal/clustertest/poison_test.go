package clustertest

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// A shard that kills each worker that takes it is given up after three of them:
// its entries fail, with a reason that says so, and all others are done.
func TestAShardThatKillsItsWorkersIsGivenUp(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	var deaths atomic.Int64
	c.simulate(t, &Sim{Name: "sim", Slots: 2, Dies: func(s Shard) bool {
		if s.N != 3 {
			return false
		}
		deaths.Add(1)
		return true
	}})
	v := c.Wait(c.submitFiles(deletes(t, 1, 100), func(s *protocol.JobSpec) { s.Limits.Entries = 10 }))
	want := protocol.Stats{FilesToDelete: 100, Deleted: 90, DeletesFailed: 10, ShardsRepeated: v.Stats.ShardsRepeated}
	if v.State != protocol.StateFailed || v.Stats != want || v.Failures != 10 {
		t.Errorf("job is %s (%s), %d failures\n got %+v\nwant %+v", v.State, v.Reason, v.Failures, v.Stats, want)
	}
	if n := deaths.Load(); n < 3 || n > 4 { // one may be on its way when it is given up
		t.Errorf("%d workers died of it, want 3", n)
	}
	listed := 0
	err := c.Failures(t.Context(), v.ID, func(f protocol.FailureView) error {
		if listed++; !strings.Contains(f.Reason, "given up: 3 attempts") {
			t.Errorf("%s: %s", f.Path, f.Reason)
		}
		return nil
	})
	if err != nil || listed != 10 {
		t.Errorf("%d failures are listed, %v", listed, err)
	}
}

// One whose worker died of something else is done by the next.
func TestAShardWhoseWorkerDiedTwiceIsDoneByTheThird(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	c.simulate(t, &Sim{Name: "sim", Slots: 2, Dies: func(s Shard) bool { return s.N == 3 && s.Delivered < 3 }})
	v := c.Wait(c.submitFiles(deletes(t, 1, 100), func(s *protocol.JobSpec) { s.Limits.Entries = 10 }))
	allDeleted(t, v, 100)
	if v.Stats.ShardsRepeated != 2 {
		t.Errorf("%d executions besides the one that counts, want 2", v.Stats.ShardsRepeated)
	}
}
