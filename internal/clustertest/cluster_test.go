package clustertest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// roots makes a random tree and names a destination that does not exist.
func roots(t *testing.T, seed uint64, n int) (src, dst string) {
	t.Helper()
	src, dst = filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	treetest.Random(t, src, seed, n)
	return src, dst
}

// small makes a job of many shards.
func small(s *protocol.JobSpec) { s.Limits.Entries = 7 }

// whole fails the test unless a job copied its tree and counted it exactly.
func whole(t *testing.T, v protocol.JobView, src, dst string) {
	t.Helper()
	wholeBut(t, v, src, dst, 0)
}

// wholeBut is whole of a job whose control files name so many directories again.
func wholeBut(t *testing.T, v protocol.JobView, src, dst string, again uint64) {
	t.Helper()
	if v.State != protocol.StateCompleted {
		t.Fatalf("job ended as %s: %s", v.State, v.Reason)
	}
	treetest.Same(t, src, dst)
	f, s := treetest.Count(treetest.Listing(t, src)), v.Stats
	want := protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsCopied: f.Dirs, FilesCopied: f.Files, BytesCopied: f.Bytes, Links: f.Links, Skipped: again,
		BytesPerSec: s.BytesPerSec, HoleBytes: s.HoleBytes, ReflinkBytes: s.ReflinkBytes, ShardsRepeated: s.ShardsRepeated,
	}
	if s != want {
		t.Errorf("statistics\n got %+v\nwant %+v", s, want)
	}
}

func done(v protocol.JobView) (n uint64) {
	for _, p := range v.Phases {
		n += p.Done
	}
	return n
}

func TestWorkersJoinAndLeaveWhileAJobRuns(t *testing.T) {
	timing := Timing()
	timing.Lease, timing.AckWait = time.Hour/2, time.Hour // a shard that is not handed back would hang the job
	c := New(t, timing)
	src, dst := roots(t, 1, 1500)
	job := c.Hold("", src, dst, small)
	id := job.ID
	v := c.Until(id, func(v protocol.JobView) bool { return v.Stalled != "" })
	if v.Stalled == "" || v.State != protocol.StateRunning {
		t.Fatalf("a job without workers is %s, stalled %q", v.State, v.Stalled)
	}
	first := c.StartWorker("first")
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	job.More()
	c.StartWorker("second")
	first.Stop()
	job.Release()
	v = c.Wait(id)
	wholeBut(t, v, src, dst, job.Again)
	if v.Workers["first"] == 0 || v.Workers["second"] == 0 {
		t.Errorf("shards by worker: %v", v.Workers)
	}
}

func TestKilledWorkersShardsAreDoneByAnother(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 2, 1500)
	first := c.StartWorker("first")
	job := c.Hold("", src, dst, small)
	id := job.ID
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	job.More()
	first.Kill()
	c.StartWorker("second")
	job.Release()
	wholeBut(t, c.Wait(id), src, dst, job.Again)
}

func TestCoordinatorThatIsKilledGoesOnWhereItWas(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 3, 1500)
	c.StartWorker("w")
	job := c.Hold("", src, dst, small)
	id := job.ID
	for range 2 {
		before := done(c.Until(id, func(v protocol.JobView) bool { return done(v) > 0 }))
		job.More()
		c.KillCoordinator()
		c.StartCoordinator()
		job.More()
		c.Until(id, func(v protocol.JobView) bool { return done(v) > before })
	}
	job.Release()
	wholeBut(t, c.Wait(id), src, dst, job.Again)
}

func TestPausedJobPublishesNothingAndGoesOn(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 4, 1500)
	c.StartWorker("w")
	id := c.Submit(src, dst, small)
	if _, err := c.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	quiet := c.Until(id, func(v protocol.JobView) bool { return v.State == protocol.StatePaused && open(v) == 0 })
	// Another job runs from its beginning to its end meanwhile.
	src2, dst2 := roots(t, 5, 50)
	whole(t, c.Wait(c.Submit(src2, dst2, nil)), src2, dst2)
	v, err := c.Job(t.Context(), id)
	if err != nil || v.State != protocol.StatePaused || done(v) != done(quiet) {
		t.Fatalf("the paused job went on: %d shards, then %d, %v", done(quiet), done(v), err)
	}
	if _, err := c.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	whole(t, c.Wait(id), src, dst)
}

func open(v protocol.JobView) (n uint64) {
	for _, p := range v.Phases {
		n += p.Open
	}
	return n
}

func TestNothingOfACancelledJobRunsOnceItIsFinal(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 6, 2500)
	c.StartWorker("a")
	c.StartWorker("b")
	job := c.Hold("", src, dst, small)
	id := job.ID
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 10 })
	job.More()
	if _, err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	v := c.Wait(id)
	if v.State != protocol.StateCancelled {
		t.Fatalf("the job is %s", v.State)
	}
	before := treetest.Listing(t, dst)
	for _, e := range before {
		if filepath.Base(e.Path)[:1] == "." && e.Path != "" {
			t.Errorf("left behind: %q", e.Path)
		}
	}
	src2, dst2 := roots(t, 7, 200)
	whole(t, c.Wait(c.Submit(src2, dst2, small)), src2, dst2)
	if d := treetest.Diff(before, treetest.Listing(t, dst)); len(d) > 0 {
		t.Errorf("the destination of the cancelled job changed: %v", d)
	}
	if _, err := c.Cancel(t.Context(), id); err == nil {
		t.Error("a second cancel was taken")
	}
}

func TestSmallJobDoesNotWaitForALargeOne(t *testing.T) {
	c := New(t, Timing())
	large, dst := roots(t, 8, 1200)
	little, dst2 := roots(t, 9, 60)
	c.StartWorker("w")
	first := c.Submit(large, dst, func(s *protocol.JobSpec) { s.Limits.Entries = 2 })
	c.Until(first, func(v protocol.JobView) bool { return done(v) > 2 })
	whole(t, c.Wait(c.Submit(little, dst2, small)), little, dst2)
	v, err := c.Job(t.Context(), first)
	if err != nil || v.State.Final() {
		t.Errorf("the large job is %s when the small one ends, %v: too small to show anything", v.State, err)
	}
	whole(t, c.Wait(first), large, dst)
}

func TestPoolsTakeTheirOwnJobs(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 10, 200)
	c.StartWorker("west", func(cfg *worker.Config) { cfg.Pool = "west" })
	c.StartWorker("east", func(cfg *worker.Config) { cfg.Pool = "east" })
	v := c.Wait(c.Submit(src, dst, func(s *protocol.JobSpec) { s.Pool = "east"; small(s) }))
	whole(t, v, src, dst)
	if len(v.Workers) != 1 || v.Workers["east"] == 0 {
		t.Errorf("shards by worker: %v", v.Workers)
	}
}

func TestJobsWithOverlappingDestinationsQueue(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 11, 1200)
	src2, _ := roots(t, 12, 100)
	c.StartWorker("w")
	first := c.Submit(src, dst, small)
	second := c.Submit(src2, filepath.Join(dst, "below"), small)
	v := c.Until(second, func(v protocol.JobView) bool { return v.State == protocol.StateRunning })
	if o, err := c.Job(t.Context(), first); err != nil || !o.State.Final() {
		t.Errorf("the second job is %s while the first is %s, %v", v.State, o.State, err)
	}
	if v := c.Wait(second); v.State != protocol.StateCompleted {
		t.Errorf("second job: %s %s", v.State, v.Reason)
	}
	treetest.Same(t, src2, filepath.Join(dst, "below"))
}

func TestWorkerWithoutTheMountTakesNoShards(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 13, 400)
	if err := os.Mkdir(dst, 0o755); err != nil {
		t.Fatal(err)
	}
	c.StartWorker("good")
	c.StartWorker("bad", func(cfg *worker.Config) { cfg.Allow = []string{src, "/somewhere/else"} })
	v := c.Wait(c.Submit(src, dst, small))
	whole(t, v, src, dst)
	if v.Workers["bad"] != 0 {
		t.Errorf("shards by worker: %v", v.Workers)
	}
}

// TestLinksLeadOutOfNothingThatIsAllowed has roots that lie in what a worker may
// touch by their names, and elsewhere by what they are.
func TestLinksLeadOutOfNothingThatIsAllowed(t *testing.T) {
	c := New(t, Timing())
	base, outside := t.TempDir(), t.TempDir()
	b := treetest.At(t, base)
	treetest.At(t, outside).File("there/secret", "x")
	b.File("src/f", "x")
	if err := os.Symlink(outside, b.Path("link")); err != nil {
		t.Fatal(err)
	}
	before := treetest.Listing(t, outside)
	c.StartWorker("w", func(cfg *worker.Config) { cfg.Allow = []string{base} })
	for src, dst := range map[string]string{"src": "link/new", "link/there": "dst"} {
		id := c.Submit(b.Path(src), b.Path(dst), small)
		v := c.Until(id, func(v protocol.JobView) bool { return v.Stalled != "" })
		t.Logf("%s to %s is %s: %s", src, dst, v.State, v.Stalled)
		if v.State != protocol.StateRunning || done(v) > 0 {
			t.Errorf("the job is %s: %+v", v.State, v.Stats)
		}
		if _, err := c.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c.Wait(id)
	}
	if d := treetest.Diff(before, treetest.Listing(t, outside)); len(d) > 0 {
		t.Errorf("changed outside:\n%s", strings.Join(d, "\n"))
	}
	c.Wait(c.Submit(b.Path("src"), b.Path("right"), small))
	treetest.Same(t, b.Path("src"), b.Path("right"))
}

func TestFailuresAreListedOnceAndTolerated(t *testing.T) {
	c := New(t, Timing())
	src, dst := roots(t, 14, 300)
	c.StartWorker("w")
	treetest.At(t, src).File("vanishes", "x")
	files, meta := c.Scan(src)
	if err := os.Remove(filepath.Join(src, "vanishes")); err != nil {
		t.Fatal(err)
	}
	for _, tolerate := range []int64{0, 1} {
		id := protocol.JobID([]string{"job-strict", "job-tolerant"}[tolerate])
		spec := protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true, MaxFailures: tolerate}
		if err := c.Client.Submit(t.Context(), id, spec, files, true); err != nil {
			t.Fatal(err)
		}
		v := c.Wait(id)
		if want := []protocol.State{protocol.StateFailed, protocol.StateCompleted}[tolerate]; v.State != want || v.Stats.FilesFailed != 1 {
			t.Errorf("with %d tolerated failures the job is %s, want %s: %+v", tolerate, v.State, want, v.Stats)
		}
		var got []protocol.FailureView
		if err := c.Failures(t.Context(), id, func(f protocol.FailureView) error { got = append(got, f); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].Path != "vanishes" || got[0].Errno == 0 || got[0].Line == 0 || got[0].ControlFile == "" {
			t.Errorf("failures: %+v", got)
		}
	}
}
