package worker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

type runFunc = func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error)

// failing returns a run that ends with err.
func failing(err error) runFunc {
	return func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error) { return nil, err }
}

func TestResultComesBeforeAck(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.publish = func(context.Context, publication) (bool, error) {
			if len(r.q.said) > 0 {
				t.Errorf("said before: %q", r.q.said)
			}
			return true, nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.said("ack 101.1")
		r.answered(1)
		r.outcomes("done 1")
		if n := r.x.syncs["j"]; n != 1 {
			t.Errorf("%d syncs", n)
		}
		if got := r.q.results[0]; got.GetCounts().GetFilesCopied() != 2 || got.GetSequence() != 101 || got.GetDelivery() != 1 || got.GetWorker() != "w" {
			t.Errorf("%v", got)
		}
	})
}

func TestFailuresArePublishedWithTheirResult(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.x.run = func(_ context.Context, _ string, b *engine.Batch, _ engine.Guard) (*engine.Outcome, error) {
			o := copied(b)
			o.Counts = entry.Counts{FilesCopied: 1, FilesFailed: 1}
			o.Failures = []engine.Failure{{Line: 2, Path: "dir/b", Op: "open source", Errno: 5, Kind: uint8(fault.Internal), Reason: "I/O error"}}
			o.Warnings = []engine.Warning{{Kind: "acl", Count: 1, Example: "dir/a"}}
			return o, nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.said("ack 101.1")
		r.outcomes("failed 1")
		if len(r.q.failures) != 1 || len(r.q.failures[0].GetFailures()) != 1 || r.q.failures[0].GetDelivery() != 1 || r.q.results[0].GetFailures() != 1 {
			t.Errorf("%v, %v", r.q.failures, r.q.results)
		}
	})
}

// A lease that lapses while the engine is at work: neither ack nor nak nor result.
func TestLapsedAttemptSaysNothing(t *testing.T) {
	away := func(context.Context, *bus.Delivery) error { return errAway }
	for name, tc := range map[string]struct {
		deliver uint32
		setUp   func(r *rig, end chan struct{})
	}{
		"in the engine": {1, func(r *rig, end chan struct{}) { r.x.run = until(end) }},
		"in the engine, which fails": {1, func(r *rig, end chan struct{}) {
			r.x.run = func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error) {
				<-end
				return nil, fault.New(fault.Exhausted, "no room")
			}
		}},
		"in the engine, which fails for the last time": {giveUpAfter, func(r *rig, end chan struct{}) {
			r.x.run = func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error) {
				<-end
				return nil, errors.New("broken")
			}
		}},
		"in its sync": {1, func(r *rig, end chan struct{}) { r.x.sync = func(string) error { <-end; return nil } }},
		"in its sync, which fails": {1, func(r *rig, end chan struct{}) {
			r.x.sync = func(string) error { <-end; return fault.New(fault.Transient, "EIO") }
		}},
		"while it publishes": {1, func(r *rig, _ chan struct{}) {
			r.q.publish = func(context.Context, publication) (bool, error) { return false, errAway }
		}},
		"while it publishes that all failed": {giveUpAfter, func(r *rig, _ chan struct{}) {
			r.x.run = failing(errors.New("broken"))
			r.q.publish = func(context.Context, publication) (bool, error) { return false, errAway }
		}},
		"while its job is cancelled": {1, func(r *rig, end chan struct{}) {
			r.x.run = func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error) {
				<-end
				return nil, &fault.Error{Kind: fault.Canceled, Op: "run batch", Err: errJobCancelled}
			}
			r.q.heartbeat = func(h protocol.Heartbeat) (protocol.HeartbeatReply, error) {
				reply := protocol.HeartbeatReply{Timing: timing}
				for _, x := range h.Running {
					if time.Since(x.Since) > 15*time.Second {
						reply.Cancelled = []protocol.JobID{"j"}
					}
				}
				return reply, nil
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				end := make(chan struct{})
				r.q.inProgress = away
				tc.setUp(r, end)
				r.start()
				r.deliver("j", 1, tc.deliver)
				r.wait(timing.Lease + time.Second)
				close(end)
				r.q.set(func() { r.q.publish = nil })
				r.wait(10 * timing.Lease)
				r.said()
				r.answered(0)
				r.outcomes("stale 1")
				if n := len(r.lastBeat().Running); n != 0 {
					t.Errorf("%d attempts still run", n)
				}
			})
		})
	}
}

// An ack that would come after the lease is not sent: the result stands.
func TestLeaseThatLapsesDuringThePublishSendsNoAck(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.inProgress = func(context.Context, *bus.Delivery) error { return errAway }
		r.q.publish = func(context.Context, publication) (bool, error) {
			r.asleep.Add(int64(timing.Lease))
			return true, nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.said()
		r.answered(1)
		r.outcomes("done 1")
	})
}

func TestSecondResultOfAShardIsRecordedAsStale(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.publish = func(context.Context, publication) (bool, error) { return false, nil }
		r.start()
		r.deliver("j", 1, 2)
		r.said("ack 101.2")
		r.outcomes("stale 1")
	})
}

func TestPublishIsRetriedWhileTheLeaseLasts(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.publish = func(context.Context, publication) (bool, error) { return false, errAway }
		r.start()
		r.deliver("j", 1, 1)
		r.wait(5 * timing.Lease) // extended all the while
		r.said()
		if why := r.lastBeat().Unsent["j"]; !strings.Contains(why, "not connected") {
			t.Errorf("heartbeats say %q", why)
		}
		// The answer to an earlier try was lost: what is there may be our own.
		r.q.set(func() { r.q.publish = func(context.Context, publication) (bool, error) { return false, nil } })
		r.wait(timing.Heartbeat)
		r.said("ack 101.1")
		r.outcomes("done 1")
		if b := r.lastBeat(); len(b.Unsent) != 0 || b.Done != 1 {
			t.Errorf("%+v", b)
		}
	})
}

func TestCancelledJobIsTakenOut(t *testing.T) {
	for name, where := range map[string]func(r *rig, never chan struct{}){
		"in the engine": func(r *rig, never chan struct{}) { r.x.run = until(never) },
		"in its sync":   func(r *rig, never chan struct{}) { r.x.sync = func(string) error { <-never; return nil } },
		"while it publishes": func(r *rig, _ chan struct{}) {
			r.q.publish = func(context.Context, publication) (bool, error) { return false, errAway }
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				never := make(chan struct{})
				defer close(never)
				where(r, never)
				r.q.heartbeat = func(h protocol.Heartbeat) (protocol.HeartbeatReply, error) {
					reply := protocol.HeartbeatReply{Timing: timing}
					if len(h.Running) > 0 || len(h.Seen) > 0 {
						reply.Cancelled = []protocol.JobID{"j"}
					}
					return reply, nil
				}
				r.start()
				r.deliver("j", 1, 1)
				r.wait(timing.Heartbeat)
				r.said("term 101.1")
				r.answered(0)
				r.outcomes("canceled 1")
				if b := r.lastBeat(); len(b.Running) != 0 || len(b.Seen) != 1 {
					t.Errorf("%+v", b)
				}
				if e := r.ends(); len(e) != 1 || e[0].Kind != fault.Canceled.String() {
					t.Errorf("%+v", e)
				}
			})
		})
	}
}

// The cleanup of a cancelled job is executed: it takes the mark away.
func TestCleanupOfACancelledJobIsExecuted(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
			return protocol.HeartbeatReply{Timing: timing, Cancelled: []protocol.JobID{"j"}}, nil
		}
		r.q.publish = func(context.Context, publication) (bool, error) {
			if r.x.shut["j"] != r.x.opens["j"] {
				t.Error("the result is published while the roots are open")
			}
			return true, nil
		}
		r.start()
		r.deliver("j", 1, 1, cleanup)
		r.said("ack 101.1")
		r.outcomes("done 1")
		if r.x.marks["nonce"] {
			t.Error("the mark is still there")
		}
		// A second attempt at it finds no mark, and that is right.
		r.deliver("j", 1, 2, cleanup)
		r.said("ack 101.1", "ack 101.2")
	})
}

// TestShardsThatFail shows how they come back, or do not.
func TestShardsThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		err      error
		delivery uint32
		peers    int
		want     string
		unfit    bool
	}{
		"no room, alone":                  {err: fault.New(fault.Exhausted, "full"), delivery: 1, want: "nak 101.1 5s"},
		"no room, with others":            {err: fault.New(fault.Exhausted, "full"), delivery: 1, peers: 1, want: "nak 101.1 0s"},
		"no room, with others, again":     {err: fault.New(fault.Exhausted, "full"), delivery: 2, peers: 1, want: "nak 101.2 5s"},
		"denied":                          {err: fault.New(fault.Denied, "no"), delivery: 9, want: "nak 101.9 0s", unfit: true},
		"transient":                       {err: fault.New(fault.Transient, "try again"), delivery: 1, want: "nak 101.1 0s"},
		"transient, again":                {err: fault.New(fault.Transient, "try again"), delivery: 9, want: "nak 101.9 1s"},
		"broken":                          {err: errors.New("broken"), delivery: giveUpAfter - 1, want: "nak 101.4 1s"},
		"broken, again and again":         {err: errors.New("broken"), delivery: giveUpAfter, want: "ack 101.5"},
		"stale, as the engine noticed":    {err: fault.New(fault.Stale, "a later attempt has taken over"), delivery: 1},
		"cancelled, nobody knows by whom": {err: fault.New(fault.Canceled, "stopped"), delivery: 1, want: "nak 101.1 0s"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Slots: 1}, func(r *rig) {
				r.x.run = failing(tc.err)
				r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
					return protocol.HeartbeatReply{Timing: timing, Peers: tc.peers}, nil
				}
				r.start()
				r.deliver("j", 1, tc.delivery)
				r.wait(time.Second)
				if tc.want == "" {
					r.said()
					r.outcomes("stale 1")
					return
				}
				r.said(tc.want)
				if strings.HasPrefix(tc.want, "ack") {
					r.outcomes("failed 1")
					if got := r.q.results[0]; !got.GetAbandoned() || got.GetFailures() != 2 || len(r.q.failures) != 1 {
						t.Errorf("%v", got)
					}
				} else {
					r.outcomes("returned 1")
				}
				r.wait(timing.Heartbeat)
				if _, unfit := r.lastBeat().Unfit["j"]; unfit != tc.unfit {
					t.Errorf("unfit: %v", unfit)
				}
			})
		})
	}
}

// A worker that serves nothing pauses longer and longer before it pulls again, and no
// longer once it has served.
func TestWorkerThatCannotServePauses(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.x.run = failing(fault.New(fault.Denied, "no"))
		r.start()
		for n := range uint64(9) {
			r.deliver("j", n, 1)
		}
		r.wait(time.Minute)
		var pauses []time.Duration
		for i := 1; i < 9; i++ {
			pauses = append(pauses, r.q.pulls[i].Sub(r.q.pulls[i-1]))
		}
		want := []int{100, 200, 400, 800, 1600, 3200, 5000, 5000} // milliseconds
		for i, p := range pauses {
			if p != time.Duration(want[i])*time.Millisecond {
				t.Fatalf("pauses of %v", pauses)
			}
		}
		r.x.mu.Lock()
		r.x.run = nil
		r.x.mu.Unlock()
		r.deliver("j", 20, 1)
		r.wait(time.Minute)
		r.deliver("j", 21, 1)
		r.deliver("j", 22, 1)
		r.wait(0)
		r.answered(3)
	})
}

func TestShardAllOfWhoseEntriesFailAlikeGoesToAnotherFirst(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		errno := 2
		r.x.run = func(_ context.Context, _ string, b *engine.Batch, _ engine.Guard) (*engine.Outcome, error) {
			o := &engine.Outcome{Counts: entry.Counts{FilesFailed: 2}}
			for i := range b.Entries {
				o.Failures = append(o.Failures, engine.Failure{Line: uint64(i), Errno: errno + i*(errno-2)})
			}
			return o, nil
		}
		r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
			return protocol.HeartbeatReply{Timing: timing, Peers: 1}, nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.wait(time.Second)
		r.deliver("j", 1, 2) // nobody else was quicker
		r.wait(time.Second)
		r.said("nak 101.1 0s", "nak 101.2 1s")
		r.deliver("j", 1, giveUpAfter+1)
		r.deliver("j", 2, 2) // failed elsewhere before
		r.wait(time.Second)
		r.said("nak 101.1 0s", "nak 101.2 1s", "ack 101.6", "ack 102.2")
		r.outcomes("returned 2", "failed 2")
		errno = 3 // no two alike
		r.deliver("j", 3, 1)
		r.wait(time.Second)
		r.answered(3)
	})
}

// TestShardsThatCannotBeRead come back, and the coordinator is told where nobody can
// read them: it alone knows which entries they have.
func TestShardsThatCannotBeRead(t *testing.T) {
	for name, tc := range map[string]struct {
		change shardOption
		want   string
		kind   fault.Kind
	}{
		"no wire version":          {func(_ *protocol.ShardMsg, d *bus.Delivery) { d.Header = nil }, "nak 101.1 1s", fault.Corrupt},
		"another wire version":     {func(_ *protocol.ShardMsg, d *bus.Delivery) { d.Header[protocol.HeaderWire] = []string{"99"} }, "nak 101.1 0s", fault.Transient},
		"garbage":                  {func(_ *protocol.ShardMsg, d *bus.Delivery) { d.Data = []byte("garbage") }, "nak 101.1 1s", fault.Corrupt},
		"another shard":            {func(m *protocol.ShardMsg, _ *bus.Delivery) { m.N = 77 }, "nak 101.1 1s", fault.Corrupt},
		"a directory that is none": {func(m *protocol.ShardMsg, _ *bus.Delivery) { m.Entries[0].Dir = 7 }, "nak 101.1 1s", fault.Corrupt},
		"an object that is gone":   {func(_ *protocol.ShardMsg, d *bus.Delivery) { d.Header[protocol.HeaderObject] = []string{"x"} }, "nak 101.1 0s", fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Slots: 1}, func(r *rig) {
				r.start()
				r.deliver("j", 1, 1, tc.change)
				r.wait(time.Second)
				r.said(tc.want)
				r.answered(0)
				ends := r.ends()
				if len(ends) != 1 || ends[0].Kind != tc.kind.String() || (tc.kind == fault.Corrupt && !strings.HasPrefix(ends[0].Reason, "the shard cannot be read: ")) {
					t.Errorf("the coordinator heard %+v", ends)
				}
			})
		})
	}
}

func TestUnknownSubjectIsTakenOut(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		r.deliver("j", 1, 1, func(_ *protocol.ShardMsg, d *bus.Delivery) { d.Subject = "fsb.shard.what.is.this" })
		r.said("term 101.1")
		r.outcomes()
	})
}

func TestShardThatIsStoredByReference(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		var data []byte
		r.q.object = func(name string) ([]byte, error) {
			if name != "large" {
				t.Errorf("object %q", name)
			}
			return data, nil
		}
		r.deliver("j", 1, 1)
		d := <-r.q.shards
		data, d.Data = d.Data, nil
		d.Header[protocol.HeaderObject] = []string{"large"}
		r.start()
		r.q.shards <- d
		r.said("ack 101.1")
	})
}
