package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// shutDown stops the worker and returns how long that took.
func (r *rig) shutDown() time.Duration {
	began := time.Now()
	r.stop(ErrShutdown)
	<-r.done
	return time.Since(began)
}

func TestShutdownHandsBackAtOnce(t *testing.T) {
	for name, where := range map[string]func(r *rig, never chan struct{}){
		"in the engine": func(r *rig, never chan struct{}) { r.x.run = until(never) },
		"while another opens the roots": func(r *rig, never chan struct{}) {
			r.q.claim = func(protocol.RootsClaim) (protocol.RootsReply, error) { return protocol.RootsReply{Wait: true}, nil }
		},
		"while it publishes": func(r *rig, _ chan struct{}) {
			r.q.publish = func(context.Context, publication) (bool, error) { return false, errAway }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Slots: 2}, func(r *rig) {
				never := make(chan struct{})
				defer close(never)
				where(r, never)
				r.start()
				r.deliver("j", 1, 1)
				r.deliver("j", 2, 9)
				r.wait(timing.Heartbeat)
				if took := r.shutDown(); took != 0 {
					t.Errorf("it took %v", took)
				}
				if !errors.Is(r.err, ErrShutdown) {
					t.Errorf("Run ends with %v", r.err)
				}
				r.said("nak 101.1 0s", "nak 102.9 0s")
				r.answered(0)
				r.outcomes("returned 2")
				for _, e := range r.ends() {
					if e.Reason != ErrShutdown.Error() {
						t.Errorf("%+v", e)
					}
				}
				if b := r.lastBeat(); !b.Leaving || len(b.Running) != 0 {
					t.Errorf("goodbye: %+v", b)
				}
				if r.x.opens["j"] != r.x.shut["j"] {
					t.Error("roots are left open")
				}
			})
		})
	}
}

// What waits for a sync that hangs is handed back at once; the sync is left after the
// grace, and what it holds is closed when it returns.
func TestShutdownLeavesASyncThatHangs(t *testing.T) {
	bubble(t, Config{Slots: 2}, func(r *rig) {
		never := make(chan struct{})
		r.x.sync = func(string) error { <-never; return nil }
		r.start()
		r.deliver("j", 1, 1)
		r.deliver("j", 2, 1)
		r.wait(timing.Heartbeat)
		began := time.Now()
		r.stop(ErrShutdown)
		r.said("nak 101.1 0s", "nak 102.1 0s")
		<-r.done
		if took := time.Since(began); took != r.w.cfg.Grace {
			t.Errorf("it took %v", took)
		}
		if r.x.shut["j"] != 0 {
			t.Error("the roots are closed beneath a sync")
		}
		close(never)
		r.wait(0)
		if r.x.shut["j"] != 1 {
			t.Error("the roots are left open")
		}
	})
}

// TestHungOperationIsLeftBehind: its shard is not handed back, and nothing is said of
// it when it returns.
func TestHungOperationIsLeftBehind(t *testing.T) {
	for name, outcome := range map[string]error{"it works": nil, "it fails": errors.New("broken")} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Slots: 2}, func(r *rig) {
				hangs := make(chan struct{})
				r.x.run = func(ctx context.Context, job string, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) {
					if job == "j" {
						return until(hangs)(ctx, job, b, g)
					}
					<-hangs
					if outcome == nil {
						return copied(b), nil
					}
					return nil, outcome
				}
				r.start()
				r.deliver("hangs", 1, giveUpAfter)
				r.deliver("j", 2, 1)
				r.wait(timing.Heartbeat)
				r.x.mu.Lock()
				r.x.hung = []engine.Operation{{Job: "hangs", Doing: "copy", Path: "dir/a", Since: time.Now()}}
				r.x.mu.Unlock()
				if took := r.shutDown(); took != r.w.cfg.Grace {
					t.Errorf("it took %v", took)
				}
				r.said("nak 102.1 0s")
				r.outcomes("returned 1", "stale 1")
				if e := r.ends(); len(e) != 2 || e[1].Reason != errHangs.Error() {
					t.Errorf("%+v", e)
				}
				if b := r.lastBeat(); !b.Leaving || len(b.Running) != 1 || len(b.Hung) != 1 {
					t.Errorf("goodbye: %+v", b)
				}
				if r.x.shut["hangs"] != 0 || r.x.shut["j"] != 1 {
					t.Errorf("closed: %v", r.x.shut)
				}
				close(hangs)
				r.said("nak 102.1 0s")
				r.answered(0)
				r.outcomes("returned 1", "stale 1")
				if r.x.shut["hangs"] != 1 {
					t.Error("the roots are left open")
				}
			})
		})
	}
}

func TestDrainedWorkerFinishesAndLeaves(t *testing.T) {
	bubble(t, Config{Slots: 2}, func(r *rig) {
		end := make(chan struct{})
		r.x.run = until(end)
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
				return protocol.HeartbeatReply{Timing: timing, Drain: true}, nil
			}
		})
		r.q.poke()
		r.wait(0)
		r.deliver("j", 2, 1)
		r.wait(time.Minute)
		if b := r.lastBeat(); !b.Drained || b.Leaving || len(b.Running) != 1 {
			t.Errorf("%+v", b)
		}
		close(end)
		<-r.done
		r.said("ack 101.1")
		if r.err != nil || len(r.q.shards) != 1 {
			t.Errorf("Run ends with %v; %d shards are left", r.err, len(r.q.shards))
		}
		if b := r.lastBeat(); !b.Leaving {
			t.Errorf("%+v", b)
		}
	})
}
