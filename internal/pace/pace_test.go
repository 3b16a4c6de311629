package pace

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// mount is something that operations are done on, in the time of a synctest bubble.
type mount struct {
	latency time.Duration // of an operation, whatever else is under way
	server  time.Duration // time that each takes of a server that does one at a time
	cpu     time.Duration // processor time of each, of one of two processors
	used    atomic.Int64
	turn    chan struct{}
	cores   chan struct{}
}

func (m *mount) operate() {
	if m.cpu > 0 {
		m.cores <- struct{}{}
		time.Sleep(m.cpu)
		<-m.cores
		m.used.Add(int64(m.cpu))
	}
	if m.server > 0 {
		m.turn <- struct{}{}
		time.Sleep(m.server)
		<-m.turn
	}
	time.Sleep(m.latency)
}

// drive does operations for a time, with always more to do, and returns how many were
// done in the last half of it.
func drive(p *Pace, m *mount, d time.Duration) (late int64) {
	ctx, stop := context.WithTimeout(context.Background(), d)
	defer stop()
	var ops, half atomic.Int64
	time.AfterFunc(d/2, func() { half.Store(ops.Load()) })
	var wg sync.WaitGroup
	for range p.Ceiling() + 8 {
		wg.Go(func() {
			for ctx.Err() == nil && p.Acquire(ctx) == nil {
				m.operate()
				p.Release(1)
				ops.Add(1)
			}
		})
	}
	wg.Wait()
	return ops.Load() - half.Load()
}

func bubble(t *testing.T, ceiling int, m *mount, f func(p *Pace)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		m.cores, m.turn = make(chan struct{}, 2), make(chan struct{}, 1) // of the bubble
		p := New(Config{Ceiling: ceiling, Start: 4, CPU: func() time.Duration { return time.Duration(m.used.Load()) }})
		p.cores = 2
		f(p)
	})
}

func TestMountsThatAnswerSlowlyGetAllPlaces(t *testing.T) {
	for _, latency := range []time.Duration{8 * time.Millisecond, 30 * time.Millisecond, 150 * time.Millisecond} {
		m := &mount{latency: latency, cpu: 20 * time.Microsecond}
		bubble(t, 64, m, func(p *Pace) {
			drive(p, m, 5*time.Second)
			if p.proved != 64 {
				t.Errorf("%v: %d places after 5 s, want all 64", latency, p.proved)
			}
		})
	}
}

func TestPlacesThatGainNothingAreNotKept(t *testing.T) {
	for name, m := range map[string]*mount{
		"bound by the processors":               {cpu: 2 * time.Millisecond},
		"bound by a disk that does one at once": {server: 4 * time.Millisecond, cpu: 40 * time.Microsecond},
	} {
		bubble(t, 256, m, func(p *Pace) {
			for range 6 {
				drive(p, m, 5*time.Second)
				if p.proved > 8 {
					t.Errorf("%s: %d places", name, p.proved)
				}
			}
		})
	}
}

// TestServersAreUsedAsFarAsTheyGo: one that answers 400 times a second, after 50 ms
// each time, has 20 operations under way when it is busy.
func TestServersAreUsedAsFarAsTheyGo(t *testing.T) {
	m := &mount{latency: 50 * time.Millisecond, server: 2500 * time.Microsecond, cpu: 50 * time.Microsecond}
	bubble(t, 256, m, func(p *Pace) {
		if late := drive(p, m, 20*time.Second); late < 400*10*8/10 {
			t.Errorf("%d operations in 10 s of 4,000", late)
		}
		if p.proved < 16 || p.proved > 64 {
			t.Errorf("%d places", p.proved)
		}
	})
}

func TestAPlaceIsFollowedBothWays(t *testing.T) {
	m := &mount{latency: 100 * time.Millisecond, cpu: 20 * time.Microsecond}
	bubble(t, 128, m, func(p *Pace) {
		drive(p, m, 5*time.Second)
		if p.proved != 128 {
			t.Fatalf("%d places", p.proved)
		}
		m.latency, m.cpu = 0, 5*time.Millisecond // as if it were local now
		drive(p, m, 2*time.Minute)
		if p.proved > 16 {
			t.Errorf("%d places on what is fast", p.proved)
		}
		m.latency, m.cpu = 100*time.Millisecond, 20*time.Microsecond
		drive(p, m, 2*time.Minute)
		if p.proved != 128 {
			t.Errorf("%d places once it is slow again", p.proved)
		}
	})
}

// TestNeverMoreThanTheLimit holds, whatever is set while operations are under way.
func TestNeverMoreThanTheLimit(t *testing.T) {
	p := New(Config{Ceiling: 32, Start: 8})
	ctx, stop := context.WithCancelCause(t.Context())
	var under, most atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil && p.Acquire(ctx) == nil {
				n := under.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				under.Add(-1)
				p.Release(1)
			}
		})
	}
	for i := range 500 {
		p.mu.Lock()
		p.set(int64(i*7%32 + 1))
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.trying = false
	p.set(3)
	p.proved = 3
	p.next = 1 << 60 // it stays
	p.mu.Unlock()
	done := errors.New("done")
	stop(done)
	wg.Wait()
	if err := p.Acquire(ctx); err != nil && !errors.Is(err, done) {
		t.Error(err)
	}
	if most.Load() > 32 {
		t.Errorf("%d at once", most.Load())
	}
}
