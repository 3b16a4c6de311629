package roster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// poisonAfter is how many attempts may die, without an answer or an end, before
// their shard is given up.
const poisonAfter = 3

// watchPoison gives up shards that no worker can execute: those that kill their
// workers, and those that cannot be read.
func (r *Roster) watchPoison(ctx context.Context) {
	type verdict struct {
		open   state.Open
		kind   fault.Kind
		reason string
	}
	now := r.cfg.Now()
	var bad []verdict
	r.rec.View(func(t state.Tx) {
		for j := range t.JobsIn(protocol.StateRunning, protocol.StateEnding) {
			for o := range t.OpenOf(j.Record.ID) {
				if why, ok := unreadable(o); ok {
					bad = append(bad, verdict{o, fault.Corrupt, why})
				} else if n := r.deaths(t, o, now); n >= poisonAfter {
					bad = append(bad, verdict{o, fault.Internal, fmt.Sprintf(
						"given up: %d attempts ended neither with a result nor with an error, the last on worker %s", n, o.Attempts[len(o.Attempts)-1].Worker)})
				}
			}
		}
	})
	for _, v := range bad {
		if err := r.cfg.GiveUp(ctx, v.open, v.kind.String(), v.reason); err != nil && ctx.Err() == nil {
			r.log.Warn("a shard that no worker can execute cannot be given up, trying again", "job", v.open.Job, "phase", v.open.Phase, "shard", v.open.N, "error", err)
		}
	}
}

// unreadable reports whether a worker could not read the shard, and what it says.
// Whoever gets it gets the same bytes.
func unreadable(o state.Open) (reason string, ok bool) {
	for _, a := range o.Attempts {
		if a.Ended && a.Kind == fault.Corrupt.String() {
			return a.Reason, true
		}
	}
	return "", false
}

// deaths counts the attempts that died. The verdict is made of what is dead at one
// look: one that was only cut off says so with its next heartbeat.
func (r *Roster) deaths(t state.Tx, o state.Open, now time.Time) int {
	n := 0
	for _, a := range o.Attempts {
		if now.Sub(a.Started) > r.cfg.Timing.Lease && died(t, o, a) {
			n++
		}
	}
	return n
}

// died reports whether an attempt ended without a word, with its worker: that is gone,
// or lives without it. One that was only cut off says so with its next heartbeat, and
// until then its last attempt is the only one of it that counts.
func died(t state.Tx, o state.Open, a state.Attempt) bool {
	if a.Ended {
		return false
	}
	w, ok := t.Worker(a.Worker)
	if !ok || w.Lost || w.Beat.Leaving || (a.Instance != "" && a.Instance != w.Beat.Instance) {
		return true
	}
	if !w.LastSeen.After(a.Started) {
		return false // it has not spoken since
	}
	return !slices.ContainsFunc(w.Beat.Running, func(is protocol.Running) bool {
		return is.Job == protocol.JobID(o.Job) && is.Phase == o.Phase && is.N == o.N && is.Sequence == a.Sequence && is.Delivery == a.Delivery
	})
}
