package clustertest

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// frost stops the goroutines of a coordinator: whoever asks for the time waits.
type frost struct {
	mu     sync.Mutex
	thawed chan struct{} // nil: not frozen
	asleep chan struct{} // capacity 1: somebody waits
}

func newFrost() *frost { return &frost{asleep: make(chan struct{}, 1)} }

func (f *frost) wait() {
	f.mu.Lock()
	thawed := f.thawed
	f.mu.Unlock()
	if thawed != nil {
		select {
		case f.asleep <- struct{}{}:
		default:
		}
		<-thawed
	}
}

func (f *frost) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.thawed = make(chan struct{})
}

func (f *frost) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.thawed != nil {
		close(f.thawed)
		f.thawed = nil
	}
}

// apply has a coordinator's clocks stop with it. They have gone on when it wakes.
func (f *frost) apply(cfg *coordinator.Config) {
	began := time.Now()
	cfg.Now = func() time.Time { f.wait(); return time.Now() }
	cfg.Boot = func() time.Duration { f.wait(); return time.Since(began) }
}

// waitsFor waits until the coordinator has seen who leads.
func (s *Standby) waitsFor(t *testing.T, leader string) {
	t.Helper()
	for {
		_, err := s.Coordinator.Jobs(t.Context(), protocol.JobsRequest{})
		if err != nil && err.Error() == "coordinator "+s.Name+" is not leader, "+leader+" is" {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("it never says who leads: %v", err)
		}
		runtime.Gosched()
	}
}

// get asks a coordinator over HTTP and returns the status and the error's text.
func get(t *testing.T, co *coordinator.Coordinator, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	api.Handler(co).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	var e protocol.ErrorReply
	_ = json.Unmarshal(w.Body.Bytes(), &e) // an answer has none
	return w.Code, e.Text
}

func TestAStandbyNamesTheLeaderAndTakesItsPlace(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 30, 800)
	c.StartWorker("w")
	standby := c.StartStandby("spare", nil)
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	standby.waitsFor(t, "c1")
	for _, path := range []string{"/healthz", "/api/v1/jobs", "/api/v1/workers", "/api/v1/jobs/" + string(id)} {
		if code, text := get(t, standby.Coordinator, path); code != http.StatusServiceUnavailable || !strings.Contains(text, "not leader, c1 is") {
			t.Errorf("%s of a standby: %d %q", path, code, text)
		}
	}
	c.KillCoordinator() // cut off first: the lease is not given back
	<-standby.Coordinator.Led()
	// People's commands go to the leader without being told who that is.
	v, err := c.Workers(t.Context())
	for err != nil { // until its service is there
		v, err = c.Workers(t.Context())
	}
	if v.Leader != "spare" {
		t.Errorf("the command is answered by %q", v.Leader)
	}
	whole(t, c.Wait(id), src, dst)
	if code, text := get(t, standby.Coordinator, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz of the new leader: %d %q", code, text)
	}
}

// takeover is the results that a standby reads as it takes over, and the timing of
// the cluster; FSBACKUP_TAKEOVER asks for so many with the timing of real ones.
func takeover(t *testing.T) (results int, timing protocol.Timing) {
	t.Helper()
	s := os.Getenv("FSBACKUP_TAKEOVER")
	if s == "" {
		return 1000, Timing()
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("FSBACKUP_TAKEOVER: %v", err)
	}
	return n, protocol.DefaultTiming()
}

// A leader dies after very many results: the standby has the job go on, and every
// shard is counted once.
func TestAStandbyTakesOverAJobOfManyResults(t *testing.T) {
	t.Parallel()
	n, timing := takeover(t)
	c := New(t, timing)
	hold, arrived := make(chan struct{}), make(chan struct{}, 1)
	var answered atomic.Int64
	c.simulate(t, &Sim{Name: "sim", Slots: 8, Before: func(Shard) {
		if answered.Add(1) > int64(n) {
			select {
			case arrived <- struct{}{}:
			default:
			}
			<-hold
		}
	}})
	id := c.submitFiles(deletes(t, 1, n+100), nil)
	<-arrived
	spare := c.StartStandby("spare", nil)
	spare.waitsFor(t, "c1")
	began := time.Now()
	c.KillCoordinator()
	<-spare.Coordinator.Led()
	t.Logf("%d results: another leads after %.1f s, of which the lease of the one before may take %s", n, time.Since(began).Seconds(), timing.Leader)
	close(hold)
	allDeleted(t, c.Wait(id), uint64(n)+100)
}

// The leader stops in the middle of its job, holding batches that it was about
// to publish. When it wakes, another has led the job to its end, or is still at
// it: nothing of what it held reaches the queue.
func TestAFrozenLeaderPublishesNothingWhenItWakes(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	cold := newFrost()
	c.KillCoordinator()
	leader := c.StartStandby("frozen", cold.apply)
	<-leader.Coordinator.Led()
	src, dst := roots(t, 31, 800)
	id := c.Submit(src, dst, small)
	c.StartWorker("w")
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 5 })
	spare := c.StartStandby("spare", nil)
	spare.waitsFor(t, "frozen")
	cold.freeze()
	<-cold.asleep
	<-spare.Coordinator.Led()
	v := c.Wait(id)
	whole(t, v, src, dst)

	b := c.connect("raw")
	defer b.Close()
	before, err := b.StreamState(t.Context(), protocol.StreamShards)
	if err != nil {
		t.Fatal(err)
	}
	cold.thaw()
	<-leader.done
	if !fault.Is(leader.err, fault.Stale) {
		t.Errorf("the old leader ended with %v, want that it leads no more", leader.err)
	}
	after, err := b.StreamState(t.Context(), protocol.StreamShards)
	if err != nil || after != before {
		t.Errorf("the old leader published when it woke: %+v, then %+v, %v", before, after, err)
	}
	if now, err := c.Job(t.Context(), id); err != nil || now.Stats != v.Stats || now.State != v.State {
		t.Errorf("the record changed: %+v, then %+v, %v", v.Stats, now.Stats, err)
	}
	if code, text := get(t, leader.Coordinator, "/api/v1/jobs"); code != http.StatusServiceUnavailable || !strings.Contains(text, "not leader") {
		t.Errorf("the old leader answers: %d %q", code, text)
	}
}

// A second coordinator of the leader's process takes the lease at once, as if the
// first had ended; that one then has lost it, and does not renew the other's.
func TestTwoCoordinatorsOfOneNameDoNotShareALease(t *testing.T) {
	t.Parallel()
	timing := Timing()
	timing.Leader = time.Minute // nothing ends by itself
	c := New(t, timing)
	twin := c.StartStandby("c1", nil)
	<-twin.Coordinator.Led()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c.mu.Lock()
	first := c.coord
	c.mu.Unlock()
	select {
	case <-first.done:
	case <-ctx.Done():
		t.Fatal("both lead")
	}
	if !fault.Is(first.err, fault.Stale) {
		t.Errorf("the first ended with %v, want that it leads no more", first.err)
	}
}
