package clustertest

import (
	"fmt"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// gate holds every shard that simulated workers take until the test lets it go.
// What a slot gets next is decided when one comes free, so the order of what
// arrives is the order in which jobs are served.
type gate struct {
	t       *testing.T
	arrived chan held
	queue   []held // in the order of arrival
	jobs    map[protocol.JobID]int
	most    map[protocol.JobID]int
}

type held struct {
	job protocol.JobID
	let chan struct{}
}

// gated starts workers whose shards wait at a gate.
func (c *Cluster) gated(t *testing.T, workers, slots int) *gate {
	t.Helper()
	g := &gate{t: t, arrived: make(chan held), jobs: map[protocol.JobID]int{}, most: map[protocol.JobID]int{}}
	ended := make(chan struct{})
	for i := range workers {
		c.simulate(t, &Sim{Name: fmt.Sprintf("w%d", i), Slots: slots, Before: func(s Shard) {
			h := held{s.Job, make(chan struct{})}
			select {
			case g.arrived <- h:
			case <-ended:
				return
			}
			select {
			case <-h.let:
			case <-ended:
			}
		}})
	}
	t.Cleanup(func() { close(ended) }) // before the workers are stopped
	return g
}

// next waits for a shard to arrive and returns its job.
func (g *gate) next() protocol.JobID {
	g.t.Helper()
	select {
	case h := <-g.arrived:
		g.queue = append(g.queue, h)
		g.jobs[h.job]++
		g.most[h.job] = max(g.most[h.job], g.jobs[h.job])
		return h.job
	case <-time.After(time.Minute):
		g.t.Fatalf("no shard arrives while %v are held", g.jobs)
		return ""
	}
}

// let has the shard answered that has waited the longest.
func (g *gate) let() protocol.JobID {
	h := g.queue[0]
	g.queue = g.queue[1:]
	g.jobs[h.job]--
	close(h.let)
	return h.job
}

// served lets go so many shards, and returns how many of those that took their
// slots are of a job.
func (g *gate) served(n int, job protocol.JobID) (of int) {
	g.t.Helper()
	for range n {
		g.let()
		if g.next() == job {
			of++
		}
	}
	return of
}

// patient is a timing under which the test may hold shards as long as it likes.
func patient() protocol.Timing {
	t := Timing()
	t.AckWait, t.Lease = time.Hour, time.Hour/2
	return t
}

// A job of very many shards has all slots that one job may have.
func busy(t *testing.T, c *Cluster, g *gate, files client.Files, slots int, change func(*protocol.JobSpec)) protocol.JobID {
	t.Helper()
	large := c.submitFiles(files, change)
	for range slots {
		if got := g.next(); got != large {
			t.Fatalf("a shard of %s, want one of %s", got, large)
		}
	}
	return large
}

func TestTheFirstSlotThatComesFreeIsTheNewJobs(t *testing.T) {
	t.Parallel()
	c := New(t, patient())
	g := c.gated(t, 4, 1) // no slot can be kept: a worker has one
	files := deletes(t, 1, 100_000)
	for range 9 { // a million shards
		files.Control = append(files.Control, files.Control[0])
	}
	busy(t, c, g, files, 4, nil)
	small := c.submitFiles(deletes(t, 1, 40), nil)
	c.waitsForCredit(t, small)
	// One more may come free while the new job is about to ask.
	if n := g.served(2, small); n == 0 {
		t.Fatalf("the first slots that come free go to the large job, want the new one %s (held: %v)", small, g.jobs)
	}
	// From then on it has its half, until it has no more. On a busy machine its shards
	// are not always cut in time.
	if n := g.served(36, small); n < 9 || n > 27 {
		t.Errorf("of 36 slots that came free the small job got %d, want half", n)
	}
	for {
		v, err := c.Job(t.Context(), small)
		if err != nil {
			t.Fatal(err)
		}
		if v.State.Final() {
			break
		}
		g.let()
		g.next()
	}
	allDeleted(t, c.Wait(small), 40)
}

func TestANewJobFindsSlotsThatAreKeptForIt(t *testing.T) {
	t.Parallel()
	c := New(t, patient())
	g := c.gated(t, 2, 4)
	busy(t, c, g, deletes(t, 1, 20_000), 6, nil)
	small := c.submitFiles(deletes(t, 1, 60), nil)
	for range 2 { // nothing comes free
		if got := g.next(); got != small {
			t.Fatalf("a kept slot goes to %s, want the new job %s", got, small)
		}
	}
	if n := g.served(50, small); n < 20 || n > 30 {
		t.Errorf("of 50 slots that came free the small job got %d, want half", n)
	}
}

func TestSharesAreByPriority(t *testing.T) {
	t.Parallel()
	c := New(t, patient())
	g := c.gated(t, 10, 1)
	files := deletes(t, 1, 20_000)
	busy(t, c, g, files, 10, nil)
	urgent := c.submitFiles(files, func(s *protocol.JobSpec) { s.Priority = 2 }) // four times the weight
	c.waitsForCredit(t, urgent)
	g.served(20, urgent) // until both have their shares
	// On a busy machine its shards are not always cut in time; without a priority it
	// would get 50.
	if n := g.served(100, urgent); n < 57 || n > 90 {
		t.Errorf("of 100 slots that came free the urgent job got %d, want about 80", n)
	}
}

func TestAJobNeverHasMoreShardsAtOnceThanItsLimit(t *testing.T) {
	t.Parallel()
	c := New(t, patient())
	g := c.gated(t, 8, 1)
	files := deletes(t, 1, 20_000)
	limited := busy(t, c, g, files, 3, func(s *protocol.JobSpec) { s.MaxWorkers = 3 })
	other := busy(t, c, g, files, 5, nil)
	g.served(60, other)
	// What the limited job leaves for a moment the other may take.
	if g.most[limited] != 3 || g.most[other] < 5 {
		t.Errorf("at once: at most %v, now %v; want 3 of the limited job and the rest of the other", g.most, g.jobs)
	}
}

// waitsForCredit waits until a job has begun the phase that it has shards of: its
// first ones are cut, and what they lack is a slot.
func (c *Cluster) waitsForCredit(t *testing.T, id protocol.JobID) {
	t.Helper()
	c.Until(id, func(v protocol.JobView) bool { return v.Phase == protocol.PhaseDelete })
}
