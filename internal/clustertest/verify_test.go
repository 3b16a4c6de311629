package clustertest

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestVerifyJobIsExactWhateverIsKilled counts each entry and each difference once,
// though shards are executed again and another coordinator goes on.
func TestVerifyJobIsExactWhateverIsKilled(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 31, 1500)
	copier := c.StartWorker("copier")
	b := treetest.At(t, src)
	b.File("differs", "as it is")
	whole(t, c.Wait(c.Submit(src, dst, nil)), src, dst)
	f := treetest.Count(treetest.Listing(t, src))
	list := treetest.Listing(t, dst)
	d := treetest.At(t, dst)
	d.File("differs", "as it ys")
	d.File("extra", "x")
	for _, e := range list {
		if e.Path == "" || e.Path == "differs" {
			d.Times(e.Path, time.Unix(0, e.MtimeNS))
		}
	}
	copier.Stop()
	// The worker is held up before the job is done, however slow this test is.
	hold := make(chan struct{})
	open := sync.OnceFunc(func() { close(hold) })
	first := c.StartWorker("first", c.sees(&mountTable{after: 40, hold: hold}))
	t.Cleanup(open)
	id := c.Submit(src, dst, func(s *protocol.JobSpec) {
		small(s)
		s.VerifyOnly = true
	})
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	first.bus.Close()
	open()
	first.Kill()
	c.KillCoordinator()
	c.StartCoordinator()
	c.StartWorker("second")
	v := c.Wait(id)
	s := v.Stats
	want := protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsVerified: f.Dirs, FilesVerified: f.Files - 1, BytesVerified: f.Bytes - 8,
		FilesFailed: 1, FilesDiffer: 1, Extra: 1, BytesPerSec: s.BytesPerSec, ShardsRepeated: s.ShardsRepeated,
	}
	if s != want {
		t.Errorf("statistics\n got %+v\nwant %+v", s, want)
	}
	if v.State != protocol.StateFailed || v.Reason != "1 file differs, 1 extra name" {
		t.Errorf("job ended as %s: %s", v.State, v.Reason)
	}
	if v.Workers["second"] == 0 {
		t.Errorf("shards by worker: %v", v.Workers)
	}
	told := map[string]bool{}
	if err := c.Failures(t.Context(), id, func(f protocol.FailureView) error { told[f.Path] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(told) != 2 || !told["differs"] || !told["extra"] {
		t.Errorf("told are %v", told)
	}
	if left, err := filepath.Glob(filepath.Join(dst, ".fsbackup-*")); err != nil || len(left) > 0 {
		t.Errorf("left in the destination: %v %v", left, err)
	}
}

// TestVerifyJobsShareADestination with one another, and wait for jobs that write.
func TestVerifyJobsShareADestination(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 32, 600)
	verify := func(s *protocol.JobSpec) {
		small(s)
		s.VerifyOnly = true
	}
	copying := c.Submit(src, dst, small) // no worker yet
	first := c.Submit(src, dst, verify)
	if v := c.Until(first, func(v protocol.JobView) bool { return v.Stalled != "" }); v.State != protocol.StateQueued {
		t.Errorf("the verify job is %s while a job that writes has not ended", v.State)
	}
	if _, err := c.Pause(t.Context(), first); err != nil { // so that it has not ended when the other begins
		t.Fatal(err)
	}
	w := c.StartWorker("w")
	c.Wait(copying)
	second := c.Submit(src, dst, verify)
	if v := c.Until(second, func(v protocol.JobView) bool { return v.State != protocol.StateQueued || v.Stalled != "" }); v.State == protocol.StateQueued {
		t.Errorf("a second verify job %s", v.Stalled)
	}
	if _, err := c.Resume(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	for _, id := range []protocol.JobID{first, second} {
		if v := c.Wait(id); v.State != protocol.StateCompleted || v.Stats.FilesVerified != v.Stats.FilesToBackup || v.Stats.FilesVerified == 0 {
			t.Errorf("job %s ended as %s: %s %+v", id, v.State, v.Reason, v.Stats)
		}
	}
	w.Stop()
}
