package publisher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// book drives a ledger step by step and keeps its own account of who holds what.
// It runs in a bubble, so that each step ends when all that wait are waiting.
type book struct {
	t       *testing.T
	l       *ledger
	held    map[protocol.JobID]int
	waiting map[protocol.JobID]*waiter
}

type waiter struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	got    int
	err    error
}

var errStop = errors.New("stop")

func newBook(t *testing.T, pools map[string]capacity) *book {
	b := &book{t: t, l: newLedger(), held: map[protocol.JobID]int{}, waiting: map[protocol.JobID]*waiter{}}
	t.Cleanup(b.stop)
	for p, c := range pools {
		b.l.setPool(p, c)
	}
	return b
}

func (b *book) add(job protocol.JobID, pool string, priority, limit, open int) {
	b.l.add(job, pool, priority, limit, open)
	b.held[job] = open
}

// take lets a job wait for up to n credits.
func (b *book) take(job protocol.JobID, n int) {
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &waiter{cancel: cancel, done: make(chan struct{})}
	b.waiting[job] = w
	go func() {
		defer close(w.done)
		w.got, w.err = b.l.take(ctx, job, n)
	}()
	b.settle()
}

// settle notes what those who waited have got.
func (b *book) settle() {
	b.t.Helper()
	synctest.Wait()
	for job, w := range b.waiting {
		select {
		case <-w.done:
		default:
			continue
		}
		w.cancel(nil)
		delete(b.waiting, job)
		if (w.err == nil) != (w.got > 0) {
			b.t.Fatalf("%s got %d with the error %v", job, w.got, w.err)
		}
		b.held[job] += w.got
	}
}

func (b *book) answer(job protocol.JobID, n int) {
	b.l.giveBack(job, n)
	b.held[job] -= n
	b.settle()
}

// stop ends all that wait, as a bubble must not end before them.
func (b *book) stop() {
	for _, w := range b.waiting {
		w.cancel(errStop)
	}
	b.settle()
}

func (b *book) want(held map[protocol.JobID]int) {
	b.t.Helper()
	for job, n := range held {
		if b.held[job] != n {
			b.t.Fatalf("%s holds %d, want %d (all: %v)", job, b.held[job], n, b.held)
		}
	}
}

// fill takes for a job until it has to wait.
func (b *book) fill(job protocol.JobID) {
	for b.waiting[job] == nil {
		b.take(job, 1)
	}
}

func TestAJobAloneKeepsASlotPerWorkerFree(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ slots, workers, want int }{{8, 2, 6}, {4, 4, 4}, {6, 4, 4}, {1, 1, 1}, {2, 1, 1}, {3, 1, 2}, {0, 0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t, map[string]capacity{"p": {c.slots, c.workers}})
			b.add("a", "p", 0, 0, 0)
			b.fill("a")
			b.want(map[protocol.JobID]int{"a": c.want})
		})
	}
}

func TestATakeGetsAllThatIsFreeAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, map[string]capacity{"p": {8, 2}})
		b.add("a", "p", 0, 0, 0)
		b.take("a", 4)
		b.want(map[protocol.JobID]int{"a": 4})
		b.take("a", 4)
		b.want(map[protocol.JobID]int{"a": 6})
	})
}

func TestAJobThatComesLaterFindsTheKeptSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, map[string]capacity{"p": {8, 2}})
		b.add("a", "p", 0, 0, 0)
		b.fill("a")
		b.add("b", "p", 0, 0, 0)
		b.fill("b")
		b.want(map[protocol.JobID]int{"a": 6, "b": 2})
	})
}

// Where no slot can be kept, the one that comes free goes to the job that has
// had none, though the other waits for it too.
func TestAJobThatComesLaterGetsTheFirstAnswer(t *testing.T) {
	t.Parallel()
	for range 50 { // a tie must not be decided by the order of a map
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t, map[string]capacity{"p": {1, 1}})
			b.add("a", "p", 0, 0, 0)
			b.fill("a")
			b.add("b", "p", 0, 0, 0)
			b.fill("b")
			b.want(map[protocol.JobID]int{"a": 1, "b": 0})
			b.answer("a", 1)
			b.want(map[protocol.JobID]int{"a": 0, "b": 1})
		})
	}
}

// More jobs than slots take turns.
func TestJobsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, map[string]capacity{"p": {1, 1}})
		turns := map[protocol.JobID]int{}
		for i := range 5 {
			job := protocol.JobID(fmt.Sprint(i))
			b.add(job, "p", 0, 0, 0)
			b.fill(job)
		}
		for range 50 {
			for job, n := range b.held {
				if n > 0 {
					turns[job]++
					b.fill(job)
					b.answer(job, 1)
					break
				}
			}
		}
		for job, n := range turns {
			if n != 10 {
				t.Errorf("job %s had %d of 50 turns: %v", job, n, turns)
			}
		}
	})
}

func TestTwoJobsConvergeToTheirShares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ priority, wantA, wantB int }{{0, 8, 8}, {1, 11, 5}, {2, 13, 3}, {4, 15, 1}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t, map[string]capacity{"p": {16, 2}})
			b.add("a", "p", c.priority, 0, 0)
			b.add("b", "p", 0, 0, 0)
			b.fill("b") // has taken all it may before the other begins
			b.fill("a")
			for i := range 200 {
				job := []protocol.JobID{"a", "b"}[i%2]
				if b.held[job] > 0 {
					b.answer(job, 1)
				}
				b.fill("b")
				b.fill("a")
			}
			// A slot that is nobody's whole share stays among the kept ones.
			if d := b.held["a"] - c.wantA; d < -1 || d > 1 || b.held["a"]+b.held["b"] < 15 {
				t.Errorf("priority %d: %v, want about %d and %d", c.priority, b.held, c.wantA, c.wantB)
			}
		})
	}
}

func TestALimitOfAJobHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, map[string]capacity{"p": {16, 2}})
		b.add("a", "p", 0, 3, 0)
		b.take("a", 100)
		b.fill("a")
		b.want(map[protocol.JobID]int{"a": 3})
		b.answer("a", 1)
		b.want(map[protocol.JobID]int{"a": 3})
	})
}

func TestADroppedJobFreesItsCreditAndItsRunner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, map[string]capacity{"p": {4, 1}})
		b.add("a", "p", 0, 0, 0)
		b.fill("a")
		b.add("b", "p", 0, 0, 0)
		b.fill("b")
		b.want(map[protocol.JobID]int{"a": 3, "b": 1})
		w := b.waiting["a"]
		b.l.drop("a")
		b.settle()
		if !errors.Is(w.err, context.Canceled) {
			t.Errorf("the runner of a dropped job got %d, %v", w.got, w.err)
		}
		b.fill("b")
		b.want(map[protocol.JobID]int{"b": 3})
		if n, err := b.l.take(t.Context(), "a", 1); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("a dropped job got %d, %v", n, err)
		}
		b.l.giveBack("a", 1) // late: of nobody's credit
		b.l.drop("a")
		b.settle()
		b.want(map[protocol.JobID]int{"b": 3})
	})
}

func TestWorkersThatJoinWakeThoseWhoWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t, nil)
		b.add("a", "p", 0, 0, 0)
		b.take("a", 4)
		b.want(map[protocol.JobID]int{"a": 0})
		b.l.setPool("p", capacity{4, 1})
		b.settle()
		b.want(map[protocol.JobID]int{"a": 3})
		// They go again: nothing is taken back, nothing more is given.
		b.l.setPool("p", capacity{1, 1})
		b.fill("a")
		b.answer("a", 2)
		b.want(map[protocol.JobID]int{"a": 1})
		if got := b.l.pool("p"); got != (capacity{1, 1}) {
			t.Errorf("pool %v", got)
		}
	})
}

func TestAGrantThatMeetsACancelIsNotLost(t *testing.T) {
	t.Parallel()
	for range 200 { // either may win
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t, map[string]capacity{"p": {1, 1}})
			b.add("a", "p", 0, 0, 1)
			b.take("a", 1)
			w := b.waiting["a"]
			w.cancel(errStop)
			b.answer("a", 1)
			if w.err != nil && !errors.Is(w.err, errStop) {
				t.Errorf("error %v", w.err)
			}
			if open := b.l.jobs["a"].open; open != b.held["a"] || open != w.got {
				t.Errorf("%d open, the runner got %d", open, w.got)
			}
		})
	}
}

// step is one thing that happens; what does not apply is passed over.
type step struct {
	what          string
	job           protocol.JobID
	pool          string
	n, limit, pri int
	slots         int
}

var steps = rapid.Custom(func(t *rapid.T) step {
	return step{
		what: rapid.SampledFrom([]string{"add", "take", "take", "take", "answer", "answer", "cancel", "drop", "pool"}).Draw(t, "what"),
		job:  rapid.SampledFrom([]protocol.JobID{"a", "b", "c", "d"}).Draw(t, "job"),
		pool: rapid.SampledFrom([]string{"p", "q"}).Draw(t, "pool"),
		n:    rapid.IntRange(1, 5).Draw(t, "n"), limit: rapid.IntRange(0, 4).Draw(t, "limit"),
		pri: rapid.IntRange(-4, 4).Draw(t, "priority"), slots: rapid.IntRange(0, 6).Draw(t, "slots"),
	}
})

// do takes a step and reports a wrong end of a cancelled wait.
func (b *book) do(s step) error {
	w, known := b.waiting[s.job], b.l.jobs[s.job] != nil
	switch s.what {
	case "add":
		if !known {
			b.add(s.job, s.pool, s.pri, s.limit, s.n-1)
		}
	case "take":
		if known && w == nil {
			b.take(s.job, s.n)
		}
	case "answer":
		if known && b.held[s.job] > 0 {
			b.answer(s.job, min(s.n, b.held[s.job]))
		}
	case "cancel":
		if w != nil {
			w.cancel(errStop)
			b.settle()
			if !errors.Is(w.err, errStop) {
				return fmt.Errorf("cancelled with %w", w.err)
			}
		}
	case "drop":
		b.l.drop(s.job)
		b.settle()
		delete(b.held, s.job)
	case "pool":
		b.l.setPool(s.pool, capacity{s.slots, min(s.n, s.slots)})
		b.settle()
	}
	return nil
}

// TestCreditIsNeitherLostNorInvented does random things to two pools and holds
// after each: what a job has open is what its runner got and has not answered;
// nothing is given beyond slots or limits; nobody waits for what is free.
func TestCreditIsNeitherLostNorInvented(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		plan := rapid.SliceOfN(steps, 0, 80).Draw(rt, "steps")
		var err error
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t, map[string]capacity{"p": {3, 1}, "q": {2, 2}})
			for _, job := range []protocol.JobID{"a", "b", "c"} {
				b.add(job, "p", 0, 0, 0)
			}
			for i, s := range plan {
				before := map[protocol.JobID]int{}
				for job, a := range b.l.jobs {
					before[job] = a.open
				}
				if err = b.do(s); err == nil {
					err = b.check(s, before)
				}
				if err != nil {
					err = fmt.Errorf("step %d, %+v: %w", i, s, err)
					return
				}
			}
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// check holds the ledger against what is known of it; before is what each job
// had open before step s.
func (b *book) check(s step, before map[protocol.JobID]int) error {
	for job := range b.waiting {
		if b.l.jobs[job] == nil {
			return fmt.Errorf("%s waits without an account", job)
		}
	}
	for _, pool := range []string{"p", "q"} {
		c, total, weights, jobs := b.l.pools[pool], 0, 0.0, 0
		given := ""
		for job, a := range b.l.jobs {
			if a.pool != pool {
				continue
			}
			if a.open != b.held[job] || a.granted != 0 {
				return fmt.Errorf("%s has %d open and %d granted, its runner holds %d", job, a.open, a.granted, b.held[job])
			}
			jobs++
			total += a.open
			weights += a.weight
			if was, ok := before[job]; ok && a.open > was {
				given = string(job)
				if a.limit > 0 && a.open > a.limit {
					return fmt.Errorf("%s has a limit of %d and was given %d", job, a.limit, a.open)
				}
			}
		}
		// Slots may have gone, and jobs may bring open shards with them: then a
		// pool is over its slots, and gives nothing.
		if given != "" && total > c.slots {
			return fmt.Errorf("%s was given credit, so that %d of %d slots are out", given, total, c.slots)
		}
		if given != "" && b.l.jobs[s.job] != nil && s.what != "pool" && b.l.jobs[s.job].pool != pool {
			return fmt.Errorf("%s of pool %s was given credit by what happened to another pool", given, pool)
		}
		for job := range b.waiting {
			a := b.l.jobs[job]
			if a.pool != pool || total >= c.slots || (a.limit > 0 && a.open >= a.limit) {
				continue
			}
			share := max(1, math.Floor(float64(c.slots)*a.weight/weights))
			if total < c.slots-c.kept() || (jobs > 1 && float64(a.open) < share) {
				return fmt.Errorf("%s waits with %d open, its share is %v, and %d of %d slots are out", job, a.open, share, total, c.slots)
			}
		}
	}
	return nil
}
