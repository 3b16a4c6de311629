package clustertest

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// mountTable is a mount table that a test makes up.
type mountTable struct {
	mu         sync.Mutex
	mounts     []string
	generation uint64
	reads      int
	// after is how many times a worker may look at it before it is held up, until
	// hold is closed; nil = never. A worker looks twice a shard.
	after int
	hold  <-chan struct{}
	held  func() // called when it is held up; nil = nothing
}

func (m *mountTable) mount(paths ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts = append(m.mounts, paths...)
	m.generation++
}

func (m *mountTable) unmount() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts = nil
	m.generation++
}

// Read implements engine.MountTable.
func (m *mountTable) Read() ([]byte, uint64, error) {
	m.mu.Lock()
	if m.reads++; m.hold != nil && m.reads > m.after {
		m.mu.Unlock()
		if m.held != nil {
			m.held()
		}
		<-m.hold
		m.mu.Lock()
	}
	defer m.mu.Unlock()
	table := "1 0 0:1 / / rw - ext4 x rw\n"
	for i, p := range m.mounts {
		table += fmt.Sprintf("%d 1 0:1 / %s rw - ext4 x rw\n", i+2, p)
	}
	return []byte(table), m.generation + 1, nil
}

// Close implements engine.MountTable.
func (m *mountTable) Close() error { return nil }

// sees has a worker see a mount table.
func (c *Cluster) sees(m *mountTable) WorkerOption {
	c.t.Helper()
	eng, err := engine.New(engine.Config{ReadThreads: 4, WriteThreads: 4, Logger: c.log, Mounts: m})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := eng.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return func(cfg *worker.Config) { cfg.Engine = eng }
}

// A job's first worker has something mounted beneath its roots, or not. Of what is
// there one that sees something else does nothing, whenever it joins, and whoever leads.
func TestWorkersWithOtherMountsBeneathTheRootsLeaveWhatIsThereToOthers(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name       string
		of         string // root beneath which it is
		first, its bool
	}{
		{"missing in the source", "src", true, false}, {"too many in the source", "src", false, true},
		{"missing in the destination", "dst", true, false}, {"too many in the destination", "dst", false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := roots(t, 40, 20)
			b := treetest.At(t, src)
			for i := range 40 {
				b.File(fmt.Sprintf("home/data/%02d", i), "x")
			}
			at := filepath.Join(map[string]string{"src": src, "dst": dst}[row.of], "home/data")
			var first, other mountTable
			if row.first {
				first.mount(at)
			}
			if row.its {
				other.mount(at)
			}
			w := c.StartWorker("first", c.sees(&first), func(cfg *worker.Config) { cfg.Slots = 1 })
			id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries, s.MaxWorkers = 1, 1 })
			c.Until(id, func(v protocol.JobView) bool { return v.Workers["first"] > 0 })
			if _, err := c.Pause(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			w.Stop()
			c.KillCoordinator()
			c.StartCoordinator()
			c.StartWorker("other", c.sees(&other))
			if _, err := c.Resume(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == protocol.StallRoots })
			want := fmt.Sprintf("other: compare what is mounted beneath %q: mounted on the job's first worker, not here: home/data (ext4)", filepath.Dir(filepath.Dir(at)))
			if row.its {
				want = fmt.Sprintf("other: compare what is mounted beneath %q: mounted here, not on the job's first worker: home/data (ext4)", filepath.Dir(filepath.Dir(at)))
			}
			if v.State != protocol.StateRunning || !strings.Contains(v.Stalled, want) {
				t.Errorf("the job is %s, stalled: %q; want %q", v.State, v.Stalled, want)
			}
			c.StartWorker("third", c.sees(&first))
			whole(t, c.Wait(id), src, dst)
		})
	}
}

// Something is mounted beneath a root in the middle of a job, on its only worker: the
// job waits, says why, and goes on when it is as it was.
func TestAJobWaitsWhileSomethingIsMountedBeneathItsRoots(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 41, 20)
	b := treetest.At(t, src)
	for i := range 40 {
		b.File(fmt.Sprintf("home/data/%02d", i), "x")
	}
	var table mountTable
	id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries, s.MaxWorkers = 1, 1 })
	c.StartWorker("w", c.sees(&table), func(cfg *worker.Config) { cfg.Slots = 1 })
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 0 })
	table.mount(filepath.Join(src, "home/data"))
	v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == protocol.StallRoots })
	want := "mounted here, not on the job's first worker: home/data (ext4) (have the same mounted on all workers, as it was when the job began)"
	if v.State != protocol.StateRunning || !strings.Contains(v.Stalled, want) {
		t.Errorf("the job is %s, stalled: %q; want %q", v.State, v.Stalled, want)
	}
	table.unmount()
	whole(t, c.Wait(id), src, dst)
}

// What is mounted where the job has nothing to do is no concern of it: on a host things
// are mounted and unmounted all the time.
func TestAMountWhereAJobHasNothingToDoIsNoConcernOfIt(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 42, 60)
	var table mountTable
	c.StartWorker("w", c.sees(&table))
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 0 })
	table.mount(filepath.Join(src, "not-in-the-scan"), filepath.Join(dst, "nor-this"), "/elsewhere")
	whole(t, c.Wait(id), src, dst)
}
