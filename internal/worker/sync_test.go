package worker

import (
	"context"
	"testing"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// syncing counts the syncs of a job that have begun.
func (r *rig) syncing(job string) int {
	r.wait(0)
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	return r.x.syncs[job]
}

// TestAttemptsShareASync: those that are ready while one is under way share the next.
func TestAttemptsShareASync(t *testing.T) {
	bubble(t, Config{Slots: 4}, func(r *rig) {
		synced := make(chan error)
		r.x.sync = func(string) error { return <-synced }
		r.start()
		r.deliver("j", 0, 1)
		if n := r.syncing("j"); n != 1 {
			t.Fatalf("%d syncs", n)
		}
		for n := range uint64(3) {
			r.deliver("j", 1+n, 1)
		}
		r.said()
		synced <- nil
		r.wait(0)
		r.answered(1)
		synced <- nil
		r.wait(0)
		r.answered(4)
		if n := r.syncing("j"); n != 2 {
			t.Errorf("%d syncs of 4 attempts", n)
		}
	})
}

func TestJobsDoNotWaitForEachOthersSync(t *testing.T) {
	bubble(t, Config{Slots: 2}, func(r *rig) {
		hangs := make(chan struct{})
		r.x.sync = func(job string) error {
			if job == "hangs" {
				<-hangs
			}
			return nil
		}
		r.start()
		r.deliver("hangs", 1, 1)
		r.wait(0)
		for n := range uint64(5) {
			r.deliver("j", 10+n, 1)
		}
		r.answered(5)
		close(hangs)
		r.answered(6)
	})
}

// failOnce has the first sync of each job go on until the returned function is
// called, and then fail. All others work.
func (r *rig) failOnce() (fail func()) {
	end := make(chan struct{})
	failed := map[string]bool{}
	r.x.sync = func(job string) error {
		r.x.mu.Lock()
		first := !failed[job]
		failed[job] = true
		r.x.mu.Unlock()
		if !first {
			return nil
		}
		<-end
		return fault.New(fault.Transient, "EIO")
	}
	return func() { close(end) }
}

// TestFailedSyncFailsAllThatWroteBeforeItsEnd: the one that asked for it, those that
// wait for the next, and one that still executes, though its own sync works.
func TestFailedSyncFailsAllThatWroteBeforeItsEnd(t *testing.T) {
	bubble(t, Config{Slots: 5}, func(r *rig) {
		fail := r.failOnce()
		slow := make(chan struct{})
		r.x.run = func(ctx context.Context, job string, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) {
			if b.N == 4 && b.Attempt.Delivery == 1 {
				return until(slow)(ctx, job, b, g)
			}
			return copied(b), nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		for n := range uint64(3) {
			r.deliver("j", 2+n, 1)
		}
		r.deliver("other", 9, 1)
		r.wait(0)
		r.answered(0)
		fail()
		r.said("nak 101.1 0s", "nak 102.1 0s", "nak 103.1 0s", "nak 109.1 0s")
		if n := r.syncing("j"); n != 1 {
			t.Errorf("%d syncs: what cannot help need not be asked for", n)
		}
		close(slow)
		r.said("nak 101.1 0s", "nak 102.1 0s", "nak 103.1 0s", "nak 109.1 0s", "nak 104.1 0s")
		r.answered(0)
		for n := range uint64(4) {
			r.deliver("j", 1+n, 2)
		}
		r.wait(0)
		r.answered(4)
		r.outcomes("returned 5", "done 4")
		if e := r.ends(); len(e) != 5 || e[4].Reason != "EIO" {
			t.Errorf("%+v", e)
		}
	})
}

// One that began after the failed sync had ended is not concerned.
func TestFailedSyncLeavesLaterAttemptsAlone(t *testing.T) {
	bubble(t, Config{Slots: 2}, func(r *rig) {
		fail := r.failOnce()
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		fail()
		r.wait(0)
		r.deliver("j", 2, 1)
		r.said("nak 101.1 0s", "ack 102.1")
	})
}

// TestFailedSyncOfTheCleanup is no end of the job.
func TestFailedSyncOfTheCleanup(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.failOnce()()
		r.start()
		r.deliver("j", 1, 1, cleanup)
		r.said("nak 101.1 0s")
		r.deliver("j", 1, 2, cleanup)
		r.said("nak 101.1 0s", "ack 101.2")
	})
}

// A full destination may say so only in the sync.
func TestSyncWithoutRoomWaitsForRoom(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.x.sync = func(string) error { return fault.New(fault.Exhausted, "full") }
		r.start()
		r.deliver("j", 1, 1)
		r.said("nak 101.1 5s")
	})
}
