package worker

import (
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/mutant"
)

// clock gives the time since boot.
type clock func() time.Duration

// lease is how long an attempt may act. Once it has lapsed it is never renewed: the
// shard may be another worker's by then. Safe for concurrent use.
type lease struct {
	now clock

	mu     sync.Mutex
	until  time.Duration // guarded by mu
	lapsed bool          // guarded by mu
}

func newLease(now clock, until time.Duration) *lease { return &lease{now: now, until: until} }

// hasLapsed reports whether the lease is over: because its time is up, because that
// of the worker's own lease is (own is its end), or because drop was called.
func (l *lease) hasLapsed(own time.Duration) bool {
	if mutant.Off(mutant.Lease) {
		return false
	}
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapsed = l.lapsed || now >= l.until || now >= own
	return l.lapsed
}

// renew has the lease run until the given time, unless it has lapsed. It never
// becomes shorter.
func (l *lease) renew(until time.Duration) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapsed = l.lapsed || now >= l.until
	if !l.lapsed {
		l.until = max(l.until, until)
	}
}

// drop ends the lease now.
func (l *lease) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lapsed = true
}
