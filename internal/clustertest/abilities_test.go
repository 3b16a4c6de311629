package clustertest

import (
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// What the first worker of a job may do counts, also after it and its leader are gone:
// one that may do less, or more, leaves the job to others.
func TestAWorkerOfOtherAbilitiesLeavesTheJobToOthers(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 45, 200)
	lacking := func(lacks ...string) WorkerOption {
		return func(cfg *worker.Config) { cfg.Abilities = &protocol.Abilities{Lacks: lacks} }
	}
	first := c.StartWorker("first", lacking(), func(cfg *worker.Config) { cfg.Slots = 1 })
	id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries, s.MaxWorkers = 1, 1 })
	c.Until(id, func(v protocol.JobView) bool { return v.Workers["first"] > 0 })
	if _, err := c.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	c.KillCoordinator()
	c.StartCoordinator()
	c.StartWorker("weak", lacking(engine.CanOwn, engine.CanDevices))
	if _, err := c.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == protocol.StallRoots })
	if want := "weak: serve job \"" + string(id) + "\": it may not set owners, make devices, the job's first worker may"; !strings.Contains(v.Stalled, want) {
		t.Errorf("stalled: %q, want %q", v.Stalled, want)
	}
	r, err := c.Workers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range r.Workers {
		if w.Name == "weak" && (w.Abilities == nil || len(w.Abilities.Lacks) != 2) {
			t.Errorf("shown as %+v", w.Abilities)
		}
	}
	c.StartWorker("strong", lacking())
	v = c.Wait(id)
	whole(t, v, src, dst)
	if v.Workers["weak"] != 0 {
		t.Errorf("shards were answered by %v", v.Workers)
	}
}
