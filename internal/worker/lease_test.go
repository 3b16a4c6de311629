package worker

import (
	"context"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// guarded is a run that hands its guard out and goes on until end is closed.
func guarded(guards chan<- engine.Guard, end <-chan struct{}) runFunc {
	return func(ctx context.Context, job string, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) {
		guards <- g
		return until(end)(ctx, job, b, g)
	}
}

func TestLeaseIsRenewedWhileTheServerConfirms(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		guards, end := make(chan engine.Guard, 1), make(chan struct{})
		r.x.run = guarded(guards, end)
		r.start()
		r.deliver("j", 1, 1)
		g := <-guards
		for range 100 {
			r.wait(timing.Lease / 2)
			if err := g.Check(); err != nil {
				t.Fatal(err)
			}
		}
		close(end)
		r.said("ack 101.1")
	})
}

// TestLapsedLeaseIsNeverRenewed: not even asked for, however well the queue is.
func TestLapsedLeaseIsNeverRenewed(t *testing.T) {
	for name, lapse := range map[string]func(r *rig){
		"the queue was away": func(r *rig) {
			r.q.set(func() { r.q.inProgress = func(context.Context, *bus.Delivery) error { return errAway } })
			r.wait(timing.Lease + time.Second)
			r.q.set(func() { r.q.inProgress = nil })
		},
		"the machine slept": func(r *rig) { r.asleep.Add(int64(timing.Lease)) },
		"the coordinator was away": func(r *rig) { // the worker's own lease
			r.q.set(func() {
				r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
			})
			r.wait(timing.Lease + timing.Heartbeat)
			r.q.set(func() { r.q.heartbeat = nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				guards, end := make(chan engine.Guard, 1), make(chan struct{})
				r.x.run = guarded(guards, end)
				r.start()
				r.deliver("j", 1, 1)
				g := <-guards
				r.wait(timing.Heartbeat)
				lapse(r)
				if g.Check() == nil {
					t.Fatal("the lease has not lapsed")
				}
				confirmed := r.confirmations("101.1")
				r.wait(5 * timing.Lease)
				if g.Check() == nil || r.confirmations("101.1") != confirmed {
					t.Error("it was renewed")
				}
				close(end)
				r.said()
				r.outcomes("stale 1")
				// The worker goes on.
				r.x.mu.Lock()
				r.x.run = nil
				r.x.mu.Unlock()
				r.deliver("j", 1, 2)
				r.wait(timing.Heartbeat)
				r.said("ack 101.2")
			})
		})
	}
}

// A confirmation that takes longer than half of what AckWait has over the lease may
// stem from after a second delivery.
func TestSlowConfirmationRenewsNothing(t *testing.T) {
	const slow = 6 * time.Second // (30 s - 20 s) / 2 = 5 s
	for name, f := range map[string]func(r *rig) func(context.Context, *bus.Delivery) error{
		"the server is slow": func(*rig) func(context.Context, *bus.Delivery) error {
			return func(ctx context.Context, _ *bus.Delivery) error {
				select {
				case <-time.After(slow):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		},
		"it ignores that nobody waits": func(*rig) func(context.Context, *bus.Delivery) error {
			return func(context.Context, *bus.Delivery) error { time.Sleep(slow); return nil }
		},
		"the machine slept meanwhile": func(r *rig) func(context.Context, *bus.Delivery) error {
			return func(context.Context, *bus.Delivery) error { r.asleep.Add(int64(slow)); return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				guards, end := make(chan engine.Guard, 1), make(chan struct{})
				r.x.run = guarded(guards, end)
				r.q.inProgress = f(r)
				r.start()
				began := r.w.now()
				r.deliver("j", 1, 1)
				g := <-guards
				for r.w.now()-began < timing.Lease-time.Second {
					if err := g.Check(); err != nil {
						t.Fatal(err)
					}
					r.wait(time.Second)
				}
				r.wait(2 * time.Second)
				if g.Check() == nil {
					t.Error("it was renewed")
				}
				close(end)
				r.said()
			})
		})
	}
}

func TestLeaseOfAShardRunsFromBeforeItWasAskedFor(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		guards, end := make(chan engine.Guard, 1), make(chan struct{})
		r.x.run = guarded(guards, end)
		r.q.inProgress = func(context.Context, *bus.Delivery) error { return errAway }
		r.start()
		r.wait(4 * time.Second) // a pull stands for up to 5 s
		r.deliver("j", 1, 1)
		g := <-guards
		r.wait(timing.Lease - 4*time.Second - time.Millisecond)
		if err := g.Check(); err != nil {
			t.Error(err)
		}
		r.wait(time.Millisecond)
		if g.Check() == nil {
			t.Error("it runs longer")
		}
		close(end)
	})
}

func TestWorkerWithoutItsOwnLeasePullsNothing(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
		})
		r.wait(2 * timing.Lease)
		r.deliver("j", 1, 1)
		r.wait(timing.Lease)
		r.outcomes()
		r.q.set(func() { r.q.heartbeat = nil })
		r.wait(2 * timing.Heartbeat)
		r.said("ack 101.1")
	})
}

func TestRenewNeverShortensALease(t *testing.T) {
	t.Parallel()
	now := time.Duration(0)
	l := newLease(func() time.Duration { return now }, 10)
	l.renew(5)
	if now = 9; l.hasLapsed(20) {
		t.Error("it was shortened")
	}
	if now = 10; !l.hasLapsed(20) {
		t.Error("it has no end")
	}
	l.renew(30)
	if now = 11; !l.hasLapsed(20) {
		t.Error("it was renewed after its end")
	}
}

func TestBootTimeGoesForward(t *testing.T) {
	t.Parallel()
	if a, b := host.BootTime(), host.BootTime(); a <= 0 || b < a {
		t.Errorf("%v, then %v", a, b)
	}
}
