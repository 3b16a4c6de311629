// Package pace finds how many operations are worth having under way at once.
//
// On a local disk more threads than processors gain nothing. On a mount that takes
// milliseconds to answer, each further thread is a further answer in that time. Nobody
// knows beforehand which of the two a directory is on, so a Pace tries: it takes more
// places as long as more gets done, and gives them back when it does not.
package pace

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// window is the least time that a limit is tried for.
	window = 100 * time.Millisecond
	// gain is how much more must be done with twice the places for them to be kept.
	gain = 1.15
	// same is how much must be done with half the places for the rest to be given back.
	same = 0.97
	// saturated is the share of the processors' time from which on more places cannot
	// help: what is done then is bound by them.
	saturated = 0.8
	// idle is the share below which four times the places are tried at once.
	idle = 0.3
	// minHold and maxHold are for how long a limit is kept that has proved right. Each
	// trial that changes nothing doubles the time.
	minHold = time.Second
	maxHold = 30 * time.Second
)

// Config is what a Pace is made of.
type Config struct {
	Ceiling int // most operations at once; at least 1
	Start   int // operations at once to begin with; 0 = two a processor
	// CPU returns the processor time that this process has used; nil = the kernel's
	// figure.
	CPU func() time.Duration
}

// Pace bounds the operations under way and finds the bound. Safe for concurrent use.
type Pace struct {
	ceiling int
	cpu     func() time.Duration
	cores   float64
	begun   time.Time

	free  chan struct{} // a token for each place that nobody has
	debt  atomic.Int64  // places to be given back by those who have them
	limit atomic.Int64

	ops    atomic.Int64 // operations that have ended
	work   atomic.Int64 // and what they did, in units of the caller's
	due    atomic.Int64 // the number of ops from which on a look is worth the time
	scarce atomic.Bool  // somebody waited for a place since the last look

	mu      sync.Mutex    // guards what follows
	since   time.Duration // when the window began
	opsAt   int64         // figures then
	workAt  int64
	cpuAt   time.Duration
	rate    float64 // work a second with the limit that has proved right
	proved  int64   // that limit
	trying  bool    // limit is another one
	warming int64   // operations that say nothing of the limit: they began with another; 0 = none
	factor  int64   // of the trial upwards
	next    time.Duration
	hold    time.Duration
	downNow bool // the next trial is one downwards
}

// New returns a Pace.
func New(cfg Config) *Pace {
	p := &Pace{ceiling: max(1, cfg.Ceiling), cpu: cfg.CPU, cores: float64(runtime.GOMAXPROCS(0)), begun: time.Now(), hold: minHold}
	if p.cpu == nil {
		p.cpu = processTime
	}
	start := cfg.Start
	if start <= 0 {
		start = 2 * runtime.GOMAXPROCS(0)
	}
	start = min(start, p.ceiling)
	p.free = make(chan struct{}, p.ceiling)
	for range start {
		p.free <- struct{}{}
	}
	p.limit.Store(int64(start))
	p.proved = int64(start)
	p.restart(0)
	return p
}

// Limit returns how many operations may be under way now.
func (p *Pace) Limit() int { return int(p.limit.Load()) }

// Ceiling returns how many may ever be.
func (p *Pace) Ceiling() int { return p.ceiling }

// Acquire takes a place, which Release gives back. Its error is the cause of ctx's end.
func (p *Pace) Acquire(ctx context.Context) error {
	select {
	case <-p.free:
		return nil
	default:
	}
	p.scarce.Store(true)
	select {
	case <-p.free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Release gives a place back after an operation that did so much work, in any unit that
// makes operations comparable.
func (p *Pace) Release(work int64) {
	p.work.Add(work)
	n := p.ops.Add(1)
	if !p.pay() {
		p.free <- struct{}{}
	}
	if n >= p.due.Load() {
		p.look()
	}
}

// pay uses a place that was given back to make the limit what it is to be.
func (p *Pace) pay() bool {
	for {
		d := p.debt.Load()
		if d <= 0 {
			return false
		}
		if p.debt.CompareAndSwap(d, d-1) {
			return true
		}
	}
}

// set makes n the limit.
func (p *Pace) set(n int64) {
	n = max(1, min(n, int64(p.ceiling)))
	old := p.limit.Swap(n)
	p.warming = max(old, n)
	for more := n - old; more != 0; {
		switch {
		case more < 0:
			select {
			case <-p.free:
			default:
				p.debt.Add(1)
			}
			more++
		case p.pay(): // one that was to be given back is kept
			more--
		default:
			p.free <- struct{}{}
			more--
		}
	}
}

// look ends the window if it has lasted, and draws the conclusion.
func (p *Pace) look() {
	if !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	now := time.Since(p.begun)
	took := now - p.since
	if p.warming > 0 {
		p.warming = 0
		p.restart(now)
		return
	}
	if took < window {
		// Looking again with each operation would cost more than it tells.
		ops := p.ops.Load()
		if took > 0 {
			p.due.Store(ops + (ops-p.opsAt)*int64(window-took)/int64(took) + 1)
		}
		return
	}
	cpu := p.cpu()
	rate := float64(p.work.Load()-p.workAt) / took.Seconds()
	busy := (cpu - p.cpuAt).Seconds() / took.Seconds() / p.cores
	p.conclude(now, rate, busy, p.scarce.Load())
	p.restart(now)
}

// restart begins a window. It lasts until as much has ended as can be under way, and as
// much again. Before it comes what began with another limit.
func (p *Pace) restart(now time.Duration) {
	p.since, p.opsAt, p.workAt, p.cpuAt = now, p.ops.Load(), p.work.Load(), p.cpu()
	p.scarce.Store(false)
	n := 2 * p.limit.Load()
	if p.warming > 0 {
		n = p.warming
	}
	p.due.Store(p.opsAt + n)
}

// conclude decides about the limit by what was done in a window.
func (p *Pace) conclude(now time.Duration, rate, busy float64, scarce bool) {
	limit := p.limit.Load()
	switch {
	case p.trying && limit > p.proved:
		if rate >= p.rate*gain {
			p.keep(limit, rate)
			if scarce {
				p.try(now, busy) // and on
			}
			break
		}
		p.back()
		if p.factor > 2 {
			p.factor = 2 // too far at once
			break
		}
		p.settle(now)
	case p.trying:
		if rate >= p.rate*same {
			p.keep(limit, rate)
			p.next, p.downNow = now, true
			break
		}
		p.back()
		p.settle(now)
	case !scarce: // there was not enough to do to tell anything
	default:
		p.rate = rate
		if now >= p.next {
			p.try(now, busy)
		}
	}
}

// try sets another limit for the next window.
func (p *Pace) try(now time.Duration, busy float64) {
	limit := p.proved
	switch up := busy < saturated && limit < int64(p.ceiling); {
	case up && !p.downNow:
		if p.factor == 0 {
			p.factor = 2
			if busy < idle {
				p.factor = 4
			}
		}
		p.set(limit * p.factor)
	case limit > 1:
		p.set(limit / 2)
	default:
		p.downNow = false
		p.settle(now)
		return
	}
	p.trying = true
}

// keep makes the limit that was tried the one that has proved right.
func (p *Pace) keep(limit int64, rate float64) {
	p.proved, p.rate, p.trying, p.factor = limit, rate, false, 0
	p.hold = minHold
}

// back ends a trial.
func (p *Pace) back() {
	if p.trying {
		p.set(p.proved)
	}
	p.trying = false
}

// settle keeps what has proved right for a while, and longer each time. Then the other
// direction is tried.
func (p *Pace) settle(now time.Duration) {
	p.next = now + p.hold
	p.hold = min(2*p.hold, maxHold)
	p.factor, p.downNow = 0, !p.downNow
}

// processTime returns the processor time of this process.
func processTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
