package clustertest

import (
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// A job is cancelled whose only worker is gone: its mark stays in the destination. The
// next job there removes it, also after another leader took over; a job elsewhere or
// one that changes nothing does not.
func TestTheMarkThatAJobHadToLeaveIsRemovedByTheNextOne(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 50, 200)
	slow := func(cfg *worker.Config) { cfg.Slots = 1 }
	for range 2 { // the second removes that of the first, and leaves its own
		w := c.StartWorker("w", slow)
		id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries, s.MaxWorkers = 1, 1 })
		c.Until(id, func(v protocol.JobView) bool { return v.Workers["w"] > 0 })
		w.Stop()
		if _, err := c.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if v := c.Wait(id); v.State != protocol.StateCancelled {
			t.Fatalf("the job is %s", v.State)
		}
		if m := marks(t, dst); len(m) != 1 {
			t.Fatalf("marks %v, want the one that nobody could take away", m)
		}
	}
	c.KillCoordinator()
	c.StartCoordinator()
	c.StartWorker("w2")
	v := c.Wait(c.Submit(src, dst, func(s *protocol.JobSpec) { s.VerifyOnly = true }))
	if m := marks(t, dst); len(m) != 1 || v.Stats.Extra > 0 {
		t.Errorf("after a job that changes nothing: marks %v, %d extra names", m, v.Stats.Extra)
	}
	elsewhere := t.TempDir()
	whole(t, c.Wait(c.Submit(src, elsewhere, nil)), src, elsewhere)
	if m := marks(t, dst); len(m) != 1 {
		t.Errorf("after a job with another destination: marks %v", m)
	}
	whole(t, c.Wait(c.Submit(src, dst, nil)), src, dst)
	if m := marks(t, dst); len(m) > 0 {
		t.Errorf("after the next job: marks %v", m)
	}
}
