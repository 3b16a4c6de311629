package clustertest

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// impatient is a worker that soon takes what shows no progress for hung.
func impatient(cfg *worker.Config) {
	cfg.Patience, cfg.Grace = 300*time.Millisecond, 300*time.Millisecond
}

// hangs submits a job, freezes its destination while it runs, and returns once
// the job says that it hangs.
func hangs(t *testing.T, c *Cluster, src, dst string, freeze func()) (protocol.JobID, protocol.JobView) {
	t.Helper()
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	freeze()
	return id, c.Until(id, func(v protocol.JobView) bool { return v.StallCause == "hung" })
}

// TestHungDestinationIsNamedAndKeepsNothingElseFromRunning freezes a job's
// destination under its only worker.
func TestHungDestinationIsNamedAndKeepsNothingElseFromRunning(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	c := New(t, Timing())
	src, _ := roots(t, 21, 1500)
	dst := filepath.Join(dir, "dst")
	w := c.StartWorker("w", impatient)
	id, v := hangs(t, c, src, dst, freeze)
	if v.State != protocol.StateRunning || !strings.Contains(v.Stalled, "hangs on worker w: ") || !strings.Contains(v.Stalled, "no progress since ") {
		t.Fatalf("job is %s, stalled: %q", v.State, v.Stalled)
	}
	r, err := c.Workers(t.Context())
	if err != nil || len(r.Workers) != 1 || r.Workers[0].State != "live" || len(r.Workers[0].Hung) == 0 {
		t.Fatalf("workers: %+v, %v", r, err)
	}
	for _, h := range r.Workers[0].Hung {
		if h.Job != id || h.Doing == "" || h.Path == "" || h.Since.IsZero() {
			t.Errorf("hung: %+v", h)
		}
	}

	src2, dst2 := roots(t, 22, 300)
	whole(t, c.Wait(c.Submit(src2, dst2, small)), src2, dst2)

	w.Stop() // returns, though nothing wakes the system calls
	thaw()
	c.StartWorker("second")
	whole(t, c.Wait(id), src, dst)
}

// TestHungSyncIsNamedAndKeepsNothingElseFromRunning has the disk below a job's
// destination hang whenever something is to be made durable.
func TestHungSyncIsNamedAndKeepsNothingElseFromRunning(t *testing.T) {
	dir, disk := treetest.OnFaultyDisk(t)
	c := New(t, Timing())
	src, _ := roots(t, 28, 1500)
	dst := filepath.Join(dir, "dst")
	c.StartWorker("w", impatient)
	id, _ := hangs(t, c, src, dst, func() {
		disk.Inject(func(c treetest.Call) treetest.Fault { return treetest.Fault{Hang: c.Op == "fsync"} })
	})
	sync := func(v protocol.JobView) bool {
		r, err := c.Workers(t.Context())
		if err != nil || len(r.Workers) != 1 || r.Workers[0].State != "live" {
			t.Fatalf("workers: %+v, %v", r, err)
		}
		return slices.ContainsFunc(r.Workers[0].Hung, func(h protocol.HungOp) bool {
			return h.Job == id && h.Doing == "sync" && h.Path == dst && !h.Since.IsZero()
		})
	}
	if v := c.Until(id, sync); v.State != protocol.StateRunning || !strings.Contains(v.Stalled, "hangs on worker w: ") {
		t.Errorf("job is %s, stalled: %q", v.State, v.Stalled)
	}

	src2, dst2 := roots(t, 29, 300)
	whole(t, c.Wait(c.Submit(src2, dst2, small)), src2, dst2)

	disk.Thaw()
	whole(t, c.Wait(id), src, dst)
}

// TestWorkerWithAHungJobHandsTheOthersBack stops a worker that runs two jobs, one
// of which hangs. Leases are so long that what is not handed back would never
// run again.
func TestWorkerWithAHungJobHandsTheOthersBack(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	timing := Timing()
	timing.Lease, timing.AckWait = time.Hour/2, time.Hour
	c := New(t, timing)
	src, _ := roots(t, 23, 1500)
	first := c.StartWorker("first", impatient)
	hangs(t, c, src, filepath.Join(dir, "dst"), freeze)
	src2, dst2 := roots(t, 24, 1000)
	id := c.Submit(src2, dst2, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	first.Stop()
	c.StartWorker("second", impatient)
	whole(t, c.Wait(id), src2, dst2)
	thaw()
}

// TestHungJobThatIsCancelledSaysWhatItWaitsFor, and ends when the call returns.
func TestHungJobThatIsCancelledSaysWhatItWaitsFor(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	c := New(t, Timing())
	src, _ := roots(t, 25, 1500)
	c.StartWorker("w", impatient)
	id, _ := hangs(t, c, src, filepath.Join(dir, "dst"), freeze)
	if _, err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	v := c.Until(id, func(v protocol.JobView) bool { return v.State == protocol.StateCancelling && v.StallCause == "hung" })
	if v.State != protocol.StateCancelling {
		t.Fatalf("the job is %s while it hangs: %q", v.State, v.Stalled)
	}
	thaw()
	if v := c.Wait(id); v.State != protocol.StateCancelled {
		t.Errorf("the job is %s: %s", v.State, v.Reason)
	}
}

// TestDrainedWorkerFinishesWhatItHas drains a worker while its shards hang: it
// stays until they are done, and takes none of the many that are left.
func TestDrainedWorkerFinishesWhatItHas(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	c := New(t, Timing())
	src, _ := roots(t, 26, 1500)
	dst := filepath.Join(dir, "dst")
	first := c.StartWorker("first", impatient)
	id, v := hangs(t, c, src, dst, freeze)
	had := v.Workers["first"]
	r, err := c.Drain(t.Context(), "first")
	if err != nil || len(r.Workers) != 1 || r.Workers[0].State != "drained" {
		t.Fatalf("%+v, %v", r, err)
	}
	running := uint64(len(r.Workers[0].Running))
	select {
	case <-first.done:
		t.Fatal("it left what it had")
	default:
	}
	thaw()
	if err := first.Wait(); err != nil {
		t.Errorf("a drained worker ends with %v", err)
	}
	c.StartWorker("second")
	v = c.Wait(id)
	whole(t, v, src, dst)
	if v.Workers["first"] != had+running || v.Workers["second"] == 0 {
		t.Errorf("it had done %d and ran %d; then %v", had, running, v.Workers)
	}
}

// TestDrainIsForLiveWorkers: a name that is started anew is not drained.
func TestDrainIsForLiveWorkers(t *testing.T) {
	c := New(t, Timing())
	if _, err := c.Drain(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), `no live worker "nobody"`) {
		t.Errorf("%v", err)
	}
	first := c.StartWorker("w")
	if _, err := c.Drain(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Fatal(err)
	}
	c.StartWorker("w")
	src, dst := roots(t, 27, 100)
	whole(t, c.Wait(c.Submit(src, dst, small)), src, dst)
}
