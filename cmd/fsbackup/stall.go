package main

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// stallAlone is how long a job may be stalled where nobody looks on.
const stallAlone = 30 * time.Minute

// stallFlags say how long a stalled job is waited for.
type stallFlags struct {
	StallTimeout patience `help:"Give a job up that is stalled for so long, with exit code 75; 0 = never. Default: never on a terminal, else 30m." placeholder:"DURATION"`
}

// patience is how long something is waited for.
type patience struct {
	set bool
	d   time.Duration
}

// UnmarshalText parses a duration such as 30m, 12h or 7d.
func (p *patience) UnmarshalText(text []byte) error {
	d, err := parseAge(strings.TrimSpace(string(text)))
	if err != nil {
		return fault.New(fault.Invalid, "%q is no duration such as 90s, 30m or 12h", text)
	}
	*p = patience{true, d}
	return nil
}

// within returns a limit, 0 for none.
func (f stallFlags) within(p *progress) time.Duration {
	switch {
	case f.StallTimeout.set:
		return f.StallTimeout.d
	case p.tty:
		return 0
	}
	return stallAlone
}

// stallGuard ends a context once a job has been stalled for too long. Nothing may
// come of a stalled job that could be looked at, so it has a clock of its own.
type stallGuard struct {
	limit time.Duration
	end   context.CancelCauseFunc
	err   func(protocol.JobView) error

	mu    sync.Mutex // guards what follows
	since time.Time
	last  protocol.JobView
	timer *time.Timer // nil = the job is not stalled
}

// newStallGuard returns a guard; end is called with what err makes of the job.
func newStallGuard(limit time.Duration, end context.CancelCauseFunc, err func(protocol.JobView) error) *stallGuard {
	return &stallGuard{limit: limit, end: end, err: err}
}

// look takes a snapshot of the job. A job that waits for its turn is not stalled:
// somebody else's job goes on meanwhile.
func (g *stallGuard) look(v protocol.JobView) {
	if g.limit <= 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = v
	if v.Stalled == "" || v.StallCause == protocol.StallQueue || v.State.Final() {
		g.stopLocked()
		return
	}
	if g.timer != nil && v.StalledSince.Equal(g.since) {
		return
	}
	g.stopLocked()
	g.since = v.StalledSince
	// Clocks of two hosts may differ: it is not stalled for less than nothing.
	left := g.limit - max(0, now().Sub(v.StalledSince))
	g.timer = time.AfterFunc(max(0, left), g.expire)
}

func (g *stallGuard) expire() {
	g.mu.Lock()
	stalled, v := g.timer != nil, g.last
	g.mu.Unlock()
	if stalled {
		g.end(g.err(v))
	}
}

// stop ends the guard.
func (g *stallGuard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopLocked()
}

func (g *stallGuard) stopLocked() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}

// oneHost renders what a cluster of one says for somebody who knows of no cluster.
func oneHost(text string) string { return oneHostWords.Replace(text) }

var oneHostWords = strings.NewReplacer(
	"no worker can serve the job: local: ", "", " on worker local", "", " there: the job goes on", ": the job goes on",
	"; or stop that worker, and another takes over", "", "; make room, the job goes on by itself", "; it goes on by itself when that is mended",
	"the worker's user", "this user", "this worker's user", "this user", "undo that or restart this worker", "undo that and run it again",
	"put the job's mark in", "begin a run in", "look for the job's mark in", "go on with a run in",
)

// stuck is what stalls a job, without the promise that it goes on by itself.
func stuck(text string) string {
	for _, promise := range []string{"; it goes on by itself", "; see to the file systems", "; make room"} {
		text, _, _ = strings.Cut(text, promise)
	}
	return text
}
