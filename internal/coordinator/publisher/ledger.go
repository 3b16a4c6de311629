package publisher

import (
	"context"
	"math"
	"sync"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// ledger gives out credit. One credit is the right to have one more shard
// published that has no result yet. A pool never has more shards queued than free
// slots. So a new job waits for a slot, and never behind a queue. Where workers
// have more than one slot, one of each is kept for jobs below their share.
type ledger struct {
	mu    sync.Mutex
	pools map[string]capacity
	jobs  map[protocol.JobID]*account
	turn  uint64 // credits given so far
}

// capacity is what the live workers of a pool can do at once.
type capacity struct{ slots, workers int }

// kept is how many slots only jobs below their share may use: one of each worker
// that has several. A worker's only slot is never kept: a pool of such workers
// would do one shard at a time.
func (c capacity) kept() int { return max(min(c.workers, c.slots-c.workers), 0) }

type account struct {
	pool    string
	weight  float64
	limit   int    // most open at once; 0 = none
	open    int    // published or granted, and not answered
	want    int    // credits that a runner waits for
	granted int    // of these, given
	turn    uint64 // when it was last given one
	closed  bool
	wake    chan struct{}
}

func newLedger() *ledger {
	return &ledger{pools: map[string]capacity{}, jobs: map[protocol.JobID]*account{}}
}

// add opens a job's account with open shards out already.
func (l *ledger) add(job protocol.JobID, pool string, priority, limit, open int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close(job)
	l.jobs[job] = &account{pool: pool, weight: math.Exp2(float64(priority)), limit: limit, open: open, wake: make(chan struct{}, 1)}
}

// drop closes a job's account and gives its credit to others.
func (l *ledger) drop(job protocol.JobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.close(job); a != nil {
		l.grant(a.pool)
	}
}

// close removes a job's account. A runner that waits for credit stops waiting. It
// is called with the lock held.
func (l *ledger) close(job protocol.JobID) *account {
	a := l.jobs[job]
	if a != nil {
		delete(l.jobs, job)
		a.closed = true
		a.poke()
	}
	return a
}

func (a *account) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// setPool says what a pool can do now.
func (l *ledger) setPool(pool string, c capacity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pools[pool] != c {
		l.pools[pool] = c
		l.grant(pool)
	}
}

// pool returns what a pool can do now.
func (l *ledger) pool(name string) capacity {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pools[name]
}

// giveBack returns n credits of a job.
func (l *ledger) giveBack(job protocol.JobID, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.jobs[job]; a != nil {
		a.open = max(a.open-n, 0)
		l.grant(a.pool)
	}
}

// take waits for 1 to n credits and returns how many it got. Only one goroutine
// waits for a job. Without an account, or if it is closed meanwhile, the error is
// context.Canceled.
func (l *ledger) take(ctx context.Context, job protocol.JobID, n int) (int, error) {
	l.mu.Lock()
	a := l.jobs[job]
	if a == nil {
		l.mu.Unlock()
		return 0, context.Canceled
	}
	a.want, a.granted = n, 0
	l.grant(a.pool)
	for a.granted == 0 {
		if a.closed {
			l.mu.Unlock()
			return 0, context.Canceled
		}
		l.mu.Unlock()
		select {
		case <-a.wake:
		case <-ctx.Done():
			l.mu.Lock()
			a.open -= a.granted
			a.want, a.granted = 0, 0
			l.grant(a.pool)
			l.mu.Unlock()
			return 0, context.Cause(ctx)
		}
		l.mu.Lock()
	}
	got := a.granted
	a.want, a.granted = 0, 0
	l.mu.Unlock()
	return got, nil
}

// grant gives free credit to jobs that wait. The job with the fewest shards per
// weight comes first. Of equal ones, the job whose last turn is the longest ago
// comes first. It is called with the lock held.
func (l *ledger) grant(pool string) {
	c := l.pools[pool]
	total, weights := 0, 0.0
	for _, a := range l.jobs {
		if a.pool == pool {
			total += a.open
			weights += a.weight
		}
	}
	for total < c.slots {
		var best *account
		for _, a := range l.jobs {
			if a.pool != pool || a.granted >= a.want || (a.limit > 0 && a.open >= a.limit) {
				continue
			}
			share := max(1, math.Floor(float64(c.slots)*a.weight/weights))
			if free := c.slots - c.kept(); total >= free && (weights == a.weight || float64(a.open) >= share) {
				continue
			}
			if best == nil || a.before(best) {
				best = a
			}
		}
		if best == nil {
			return
		}
		best.open++
		best.granted++
		l.turn++
		best.turn = l.turn
		total++
		best.poke()
	}
}

// before reports whether a is to get credit before b.
func (a *account) before(b *account) bool {
	x, y := float64(a.open)/a.weight, float64(b.open)/b.weight
	return x < y || (x == y && a.turn < b.turn)
}
