package clustertest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// A job is cancelled in every state that it can be in, also where what the cluster
// said of it got lost. It ends as cancelled, and from then on its destination does
// not change.
func TestCancelInEveryState(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]struct {
		workers int
		get     func(*cancelled)
	}{
		"queued behind another": {1, func(x *cancelled) {
			x.dst = filepath.Join(x.other, "below")
			first := x.c.Hold("", x.src, x.other, small).ID
			x.c.Until(first, func(v protocol.JobView) bool { return v.State == protocol.StateRunning })
			if _, err := x.c.Pause(x.t.Context(), first); err != nil {
				x.t.Fatal(err)
			}
			x.submit()
			x.c.Until(x.id, func(v protocol.JobView) bool { return v.StallCause == "queue" })
		}},
		"without a worker": {0, func(x *cancelled) {
			x.submit()
			x.c.Until(x.id, func(v protocol.JobView) bool { return v.StallCause == "workers" })
		}},
		"running": {2, func(x *cancelled) { x.submit(); x.runs() }},
		"paused": {2, func(x *cancelled) {
			x.submit()
			x.runs()
			if _, err := x.c.Pause(x.t.Context(), x.id); err != nil {
				x.t.Fatal(err)
			}
		}},
		"its list not complete": {1, func(x *cancelled) {
			x.submit()
			x.c.Until(x.id, func(v protocol.JobView) bool {
				return len(v.Phases) > 0 && v.Phases[0].Done > 0 && v.Phases[0].Open == 0
			})
		}},
		"a shard acknowledged without a result": {1, func(x *cancelled) { x.submit(); x.runs(); x.swallow() }},
		"its queue purged":                      {1, func(x *cancelled) { x.submit(); x.runs(); x.purge(protocol.SubjectsShards) }},
		"queue and cursor purged":               {1, func(x *cancelled) { x.submit(); x.runs(); x.purge(">") }},
		"its worker just killed":                {1, func(x *cancelled) { x.submit(); x.runs(); x.workers[0].Kill(); x.workers = nil }},
		"its coordinator just killed":           {2, func(x *cancelled) { x.submit(); x.runs(); x.c.KillCoordinator(); x.c.StartCoordinator() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newCancelled(t, state.workers)
			state.get(x)
			if _, err := x.c.Cancel(t.Context(), x.id); err != nil {
				t.Fatal(err)
			}
			x.ends()
		})
	}
}

// The leader dies as it has made a cancel durable: the next one carries it out.
func TestACancelOutlivesItsCoordinator(t *testing.T) {
	t.Parallel()
	x := newCancelled(t, 2)
	x.submit()
	x.runs()
	if _, err := x.c.Cancel(t.Context(), x.id); err != nil {
		t.Fatal(err)
	}
	x.c.KillCoordinator()
	x.c.StartCoordinator()
	x.ends()
}

// cancelled is a job that is to be cancelled.
type cancelled struct {
	t               *testing.T
	c               *Cluster
	src, dst, other string
	job             *Held
	id              protocol.JobID
	workers         []*Part
}

func newCancelled(t *testing.T, workers int) *cancelled {
	x := &cancelled{t: t, c: New(t, Timing()), other: filepath.Join(t.TempDir(), "other")}
	x.src, x.dst = roots(t, 60, 1200)
	for i := range workers {
		x.workers = append(x.workers, x.c.StartWorker([]string{"a", "b"}[i]))
	}
	return x
}

func (x *cancelled) submit() {
	x.t.Helper()
	x.job = x.c.Hold("", x.src, x.dst, small)
	x.id = x.job.ID
}

func (x *cancelled) runs() {
	x.t.Helper()
	x.c.Until(x.id, func(v protocol.JobView) bool { return done(v) > 10 })
	x.job.More()
}

func (x *cancelled) queue(f func(*bus.Bus) error) {
	x.t.Helper()
	b := x.c.connect("raw")
	defer b.Close()
	if err := f(b); err != nil {
		x.t.Fatal(err)
	}
}

func (x *cancelled) purge(subject string) {
	x.t.Helper()
	x.queue(func(b *bus.Bus) error { return b.Purge(x.t.Context(), protocol.StreamShards, subject, 0) })
}

// swallow has the worker compete for shards until one is lost.
func (x *cancelled) swallow() {
	x.t.Helper()
	x.queue(func(b *bus.Bus) error {
		lost := make(chan error, 1)
		go func() { lost <- swallowOne(x.t.Context(), b, 20*time.Second) }()
		for {
			select {
			case err := <-lost:
				return err
			default:
			}
			if !x.job.More() {
				return <-lost
			}
		}
	})
}

// ends waits for the end, and then has a worker do another job: by then whatever
// was still to come of the cancelled one would have come.
func (x *cancelled) ends() {
	t := x.t
	t.Helper()
	v := x.c.Wait(x.id)
	if v.State != protocol.StateCancelled {
		t.Fatalf("the job is %s: %s", v.State, v.Reason)
	}
	before := x.has()
	for _, e := range before {
		// Without a worker nobody can take the job's mark away.
		if strings.HasPrefix(filepath.Base(e.Path), ".fsb-") || (len(x.workers) > 0 && strings.HasPrefix(e.Path, ".fsbackup-")) {
			t.Errorf("left behind: %q", e.Path)
		}
	}
	x.c.StartWorker("late")
	src, dst := roots(t, 61, 200)
	whole(t, x.c.Wait(x.c.Submit(src, dst, small)), src, dst)
	if d := treetest.Diff(before, x.has()); len(d) > 0 {
		t.Errorf("the destination of the cancelled job changed: %v", d)
	}
	if now := x.c.Until(x.id, func(protocol.JobView) bool { return true }); now.State != v.State || now.Stats != v.Stats {
		t.Errorf("the record changed after the end: %+v, then %+v", v, now)
	}
	x.c.unqueued(x.id)
}

// has is what the destination holds: nothing where no worker came to make it.
func (x *cancelled) has() []treetest.Entry {
	x.t.Helper()
	if _, err := os.Lstat(x.dst); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return treetest.Listing(x.t, x.dst)
}
