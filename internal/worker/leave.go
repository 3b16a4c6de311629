package worker

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// errHangs is why an attempt that a system call holds is left behind.
var errHangs = fault.New(fault.Canceled, "the worker shuts down while a file operation hangs; another takes the shard when its lease has ended")

// takeNoMore drains the worker: it finishes what it has, and Run returns.
func (w *Worker) takeNoMore() {
	w.drain.Do(func() {
		w.log.Info("worker is drained: it finishes what it has and leaves")
		w.mu.Lock()
		w.draining = true
		w.mu.Unlock()
		close(w.drained)
	})
}

// finish waits for the slots. Once ctx has ended it waits for the grace: a file
// operation that has not returned by then is left to the kernel.
func (w *Worker) finish(ctx context.Context, g *errgroup.Group) error {
	ended := make(chan error, 1)
	go func() { ended <- g.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(w.cfg.Grace)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		w.abandon()
		return nil
	}
}

// waitFor waits for f, which nothing can stop, for at most d.
func waitFor(d time.Duration, f func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// abandon leaves the attempts that still run behind. They are stale from now on:
// when their system calls return they touch nothing more, neither in the
// destination nor in the cluster, and close what they hold. Their shards are not
// handed back, since one system call may yet be carried out: they go to others
// when their leases have ended.
func (w *Worker) abandon() {
	for _, o := range w.cfg.Engine.Hung(w.cfg.Grace) {
		w.log.Error("file operation hangs, its shard is left to others", "job", o.Job, "doing", o.Doing, "path", o.Path, "since", o.Since)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for a := range w.running {
		a.mu.Lock()
		a.stale = true
		a.mu.Unlock()
		if j := w.jobs[a.run.Job]; j != nil {
			j.ended = true // closed by the last that leaves it
		}
		w.announce(a, true, errHangs)
	}
}

// hung returns the file operations that show no progress, for the heartbeat.
func (w *Worker) hung() []protocol.HungOp {
	list := w.cfg.Engine.Hung(w.cfg.Patience)
	w.mu.Lock()
	before := w.hanging
	w.hanging = len(list)
	w.mu.Unlock()
	switch {
	case before == 0 && len(list) > 0:
		w.log.Warn("file operation hangs", "job", list[0].Job, "doing", list[0].Doing, "path", list[0].Path, "since", list[0].Since, "in_all", len(list))
	case before > 0 && len(list) == 0:
		w.log.Info("no file operation hangs any more")
	}
	out := make([]protocol.HungOp, 0, min(len(list), mostHung))
	for _, o := range list[:min(len(list), mostHung)] {
		out = append(out, hungOp(o))
	}
	return out
}

// mostHung is how many hung operations a heartbeat lists: the oldest.
const mostHung = 16

func hungOp(o engine.Operation) protocol.HungOp {
	return protocol.HungOp{Job: protocol.JobID(o.Job), Doing: o.Doing, Path: o.Path, Since: o.Since}
}
