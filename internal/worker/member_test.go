package worker

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestWorkerWaitsForACoordinatorAndForItsPool(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
		r.q.join = func() error { return fault.New(fault.Unavailable, "no coordinator has been there") }
		r.begin()
		r.wait(10 * time.Minute)
		if r.beats() < 1000 || r.joins() != 0 {
			t.Errorf("%d heartbeats, %d joins", r.beats(), r.joins())
		}
		r.q.set(func() { r.q.heartbeat = nil })
		r.wait(time.Minute)
		if r.joins() < 50 {
			t.Errorf("%d joins", r.joins())
		}
		select {
		case <-r.w.Ready():
			t.Error("it is ready")
		default:
		}
		r.q.set(func() { r.q.join = nil })
		<-r.w.Ready()
	})
}

func TestWorkerStopsWhileItWaits(t *testing.T) {
	for name, setUp := range map[string]func(q *fakeQueue){
		"for a coordinator": func(q *fakeQueue) {
			q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
		},
		"for its pool": func(q *fakeQueue) { q.join = func() error { return errAway } },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				setUp(r.q)
				r.begin()
				r.wait(time.Minute)
				if took := r.shutDown(); took != 0 || !errors.Is(r.err, ErrShutdown) {
					t.Errorf("after %v: %v", took, r.err)
				}
			})
		})
	}
}

func TestWorkerThatIsRefusedEnds(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
			return protocol.HeartbeatReply{Leader: "c", Refused: "another has the name"}, nil
		}
		r.begin()
		<-r.done
		if !fault.Is(r.err, fault.Invalid) || !strings.Contains(r.err.Error(), "the coordinator c refuses this worker: another has the name") {
			t.Errorf("%v", r.err)
		}
	})
}

// One that is refused later goes on: the next leader may know better.
func TestWorkerThatIsRefusedLaterWaits(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
				return protocol.HeartbeatReply{Refused: "another has the name"}, nil
			}
		})
		r.wait(2 * timing.Lease)
		r.deliver("j", 1, 1)
		r.wait(timing.Lease)
		r.outcomes()
		r.q.set(func() { r.q.heartbeat = nil })
		r.wait(timing.Lease)
		r.said("ack 101.1")
	})
}

func TestPokeBringsAHeartbeat(t *testing.T) {
	bubble(t, Config{Host: "here", Version: "1"}, func(r *rig) {
		r.start()
		n := r.beats()
		r.q.poke()
		r.wait(0)
		if r.beats() != n+1 {
			t.Errorf("%d heartbeats more", r.beats()-n)
		}
		if b := r.lastBeat(); b.Worker != "w" || b.Pool != "p" || b.Host != "here" || b.Version != "1" || b.Slots != 4 || b.Instance == "" || b.RSS == 0 || b.Wire != protocol.WireMajor {
			t.Errorf("%+v", b)
		}
	})
}

func TestHeartbeatsListWhatHangs(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		since := time.Now()
		r.x.mu.Lock()
		for range mostHung + 3 {
			r.x.hung = append(r.x.hung, engine.Operation{Job: "j", Doing: "copy", Path: "dir/a", Since: since})
		}
		r.x.mu.Unlock()
		r.wait(timing.Heartbeat)
		if b := r.lastBeat(); len(b.Hung) != mostHung || b.Hung[0].Path != "dir/a" || b.Hung[0].Job != "j" || !b.Hung[0].Since.Equal(since) {
			t.Errorf("%+v", b.Hung)
		}
		r.x.mu.Lock()
		r.x.hung = nil
		r.x.mu.Unlock()
		r.wait(timing.Heartbeat)
		if b := r.lastBeat(); len(b.Hung) != 0 {
			t.Errorf("%+v", b.Hung)
		}
	})
}

// A reason to be unfit is forgotten when it is old, and when the job's roots open.
func TestUnfitnessIsForgotten(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.x.open = func(spec engine.JobSpec) error {
			if spec.ID == "j" {
				return fault.New(fault.Unavailable, "not mounted")
			}
			return nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		if why := r.lastBeat().Unfit["j"]; why != "not mounted" {
			t.Errorf("%q", why)
		}
		r.wait(time.Minute)
		if b := r.lastBeat(); len(b.Unfit) != 0 {
			t.Errorf("%+v", b.Unfit)
		}
		r.deliver("j", 1, 2)
		r.wait(time.Second)
		r.x.mu.Lock()
		r.x.open = nil
		r.x.mu.Unlock()
		r.deliver("j", 1, 3)
		r.wait(timing.Heartbeat)
		if b := r.lastBeat(); len(b.Unfit) != 0 {
			t.Errorf("%+v", b.Unfit)
		}
	})
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Name: "a b", Pool: "", Slots: 5000})
	for _, want := range []string{"worker name", "pool", "slots", "--allow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: says nothing of %s", err, want)
		}
	}
	if _, err := New(Config{Name: "a", Pool: "p", Allow: []string{"/"}}); err != nil {
		t.Error(err)
	}
}

// TestHeartbeatsSayWhichAttemptsEnded until one that said so was answered: an attempt
// whose lease lapsed announces nothing, and announcements may be lost.
func TestHeartbeatsSayWhichAttemptsEnded(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		end := make(chan struct{})
		r.x.run = until(end)
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
		})
		r.wait(timing.Lease)
		close(end)
		r.said()
		for range 3 {
			r.wait(timing.Heartbeat)
			b := r.lastBeat()
			if len(b.Ended) != 1 || len(b.Running) != 0 {
				t.Fatalf("%+v", b)
			}
			if e := b.Ended[0]; e.Job != "j" || e.N != 1 || e.Delivery != 1 || !e.End || e.Worker != "w" || e.Instance != b.Instance || e.Kind != fault.Stale.String() {
				t.Errorf("%+v", e)
			}
		}
		r.q.set(func() { r.q.heartbeat = nil })
		r.wait(2 * timing.Heartbeat)
		if b := r.lastBeat(); len(b.Ended) != 0 {
			t.Errorf("%+v", b.Ended)
		}
	})
}

func TestOnlySoManyEndedAttemptsAreTold(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.x.run = failing(fault.New(fault.Transient, "try again"))
		r.start()
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) { return protocol.HeartbeatReply{}, errAway }
		})
		for n := range uint64(mostEnded + 5) {
			r.deliver("j", n, 1)
		}
		r.wait(timing.Heartbeat)
		if e := r.lastBeat().Ended; len(e) != mostEnded || e[0].N != 5 {
			t.Errorf("%d, from %d on", len(e), e[0].N)
		}
	})
}

// TestConsumerThatIsGoneIsMadeAnew once a lease is over, by one slot for all. The
// worker says meanwhile what it lacks.
func TestConsumerThatIsGoneIsMadeAnew(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		gone := fault.New(fault.Unavailable, "no such consumer: %w", errors.Join(bus.ErrNoStream, bus.ErrGone))
		pause := fault.New(fault.Unavailable, "no stream either")
		r.q.set(func() {
			r.q.next, r.q.bind = func() error { return gone }, func() error { return gone }
			r.q.join = func() error {
				if pause == nil {
					r.q.next, r.q.bind = nil, nil
				}
				return pause
			}
		})
		r.wait(timing.Lease)
		if b := r.lastBeat(); !strings.Contains(b.Missing, "no such consumer") || r.joins() != 1 {
			t.Errorf("missing %q, joined %d times", b.Missing, r.joins())
		}
		r.wait(timing.Lease)
		if b := r.lastBeat(); b.Missing != pause.Error() {
			t.Errorf("missing %q", b.Missing)
		}
		r.q.set(func() { pause = nil })
		r.wait(timing.Lease)
		n := r.joins()
		r.deliver("j", 1, 1)
		r.said("ack 101.1")
		r.wait(timing.Lease)
		if b := r.lastBeat(); b.Missing != "" || r.joins() != n {
			t.Errorf("missing %q, joined %d times after it was there", b.Missing, r.joins()-n)
		}
	})
}

// One that is there, though a pull did not find it, is bound to and not made anew.
func TestConsumerThatComesBackIsBoundTo(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		r.q.set(func() {
			r.q.next = func() error { return fault.New(fault.Unavailable, "nobody answers: %w", bus.ErrNoStream) }
		})
		r.wait(time.Minute)
		r.q.set(func() { r.q.next = nil })
		r.deliver("j", 1, 1)
		r.wait(2 * time.Second)
		r.said("ack 101.1")
		if r.joins() != 1 {
			t.Errorf("joined %d times", r.joins())
		}
	})
}

// A worker that is drained or stopped does not wait for a consumer.
func TestWorkerStopsWhileItsConsumerIsGone(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		gone := fault.New(fault.Unavailable, "no such consumer: %w", errors.Join(bus.ErrNoStream, bus.ErrGone))
		r.q.set(func() { r.q.next, r.q.bind = func() error { return gone }, func() error { return gone } })
		r.wait(timing.Lease / 2)
		if took := r.shutDown(); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}
