package worker

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// errHangs is why an attempt that a system call holds is left behind.
var errHangs = fault.New(fault.Canceled, "the worker shuts down while a file operation hangs; another takes the shard when its lease has ended")

// takeNoMore drains the worker: it finishes what it has, and Run returns.
func (m *member) takeNoMore() {
	m.drain.Do(func() {
		m.log.Info("worker is drained: it finishes what it has and leaves")
		m.mu.Lock()
		m.draining = true
		m.mu.Unlock()
		close(m.drained)
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
		w.abandon(context.WithoutCancel(ctx))
		return nil
	}
}

// abandon leaves the attempts behind that still run. Their leases end now: when their
// system calls return they change nothing more, neither in the destination nor in the
// cluster, and they close what they hold. Their shards are not handed back, since one
// system call may still be carried out. Other workers get them when the server's time
// for the delivery (AckWait) is over.
func (w *Worker) abandon(ctx context.Context) {
	for _, o := range w.exec.Hung(w.cfg.Grace) {
		w.log.Error("file operation hangs, its shard is left to others", "job", o.Job, "doing", o.Doing, "path", o.Path, "since", o.Since)
	}
	for _, a := range w.member.leftBehind() {
		w.conclude(ctx, a, instrument.Stale, errHangs, func() { w.announce(a, true, errHangs) })
	}
}

// leftBehind drops the leases of all attempts that still run, and returns them.
func (m *member) leftBehind() []*attempt {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*attempt, 0, len(m.running))
	for a := range m.running {
		a.lease.drop()
		out = append(out, a)
	}
	return out
}

// goodbye tells the leader that this worker takes no more.
func (m *member) goodbye(ctx context.Context) {
	m.mu.Lock()
	m.leaving = true
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := m.beat(ctx); err != nil {
		m.log.Debug("say goodbye", "error", err)
	}
}

// waitFor waits for f, which nothing can stop, for at most d.
func waitFor(d time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}
