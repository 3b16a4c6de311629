// Package roster owns what is known of workers: who lives, what they can do and
// run, what they must stop, whether they see a job's mounts, which shards kill
// them, and what keeps jobs waiting for them.
package roster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Config is what a Roster is made of.
type Config struct {
	Name    string // of the coordinator
	Records *records.Records
	Bus     *bus.Bus
	Timing  protocol.Timing
	Leads   func() bool  // no other coordinator can lead yet
	Ready   func() error // nil once all jobs are known
	Now     func() time.Time
	Boot    func() time.Duration
	Logger  *slog.Logger
	// SetPool is told what the live workers of a pool can do.
	SetPool func(pool string, slots, workers int)
	// GiveUp answers a shard in the place of workers: all its entries failed.
	GiveUp func(ctx context.Context, o state.Open, kind, reason string) error
}

// Roster is the list of workers. Its methods may be called concurrently.
type Roster struct {
	cfg Config
	rec *records.Records
	log *slog.Logger

	mu    sync.Mutex
	roots map[protocol.JobID]*rootsState // mount proofs that are being made; guarded by mu
	pools map[string]int                 // live workers by pool; guarded by mu
	began time.Duration                  // boot time since which this coordinator answers heartbeats; guarded by mu
}

// New returns an empty roster.
func New(cfg Config) *Roster {
	return &Roster{cfg: cfg, rec: cfg.Records, log: cfg.Logger, roots: map[protocol.JobID]*rootsState{}, pools: map[string]int{}}
}

// Begin says that this coordinator leads from now on. Until a whole lease later
// there may be workers that it does not know, and that still act.
func (r *Roster) Begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = r.cfg.Boot()
}

// unknownUntil is the boot time until which there may be workers that act and
// have not reported to this coordinator.
func (r *Roster) unknownUntil() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began + r.cfg.Timing.Lease
}

// Forget drops what is known of an ended job.
func (r *Roster) Forget(id protocol.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.roots, id)
}

// Look does what time does: workers get lost, jobs stall, shards that kill their
// workers are given up. It is called every second or more often.
func (r *Roster) Look(ctx context.Context) {
	r.expire()
	r.noteStalls()
	r.watchPoison(ctx)
}

// askAll has every worker report at once.
func (r *Roster) askAll() {
	if err := r.cfg.Bus.Send(protocol.SubjectPoke, nil); err != nil {
		r.log.Debug("ask for heartbeats", "error", err) // they come by themselves, a little later
	}
}

// AwaitQuiet waits until no attempt at a shard of an ending job can act any more:
// each shard that was published has its result, or every worker has said, after it
// was told, that it runs nothing of the job, or its lease is over. A leader that
// has just taken over does not know who lives: it waits for a whole lease before
// it believes that there are no others.
func (r *Roster) AwaitQuiet(ctx context.Context, id protocol.JobID) error {
	answered := func(t state.Tx) bool {
		for range t.OpenOf(id) {
			return false
		}
		return true
	}
	if mutant.Off(mutant.Quiet) {
		return nil
	}
	r.askAll()
	early, cancel := context.WithTimeoutCause(ctx, max(0, r.unknownUntil()-r.cfg.Boot()), errAllKnown)
	defer cancel()
	err := r.rec.Await(early, id, func(t state.Tx, _ state.Job) bool { return answered(t) })
	if err == nil || ctx.Err() != nil {
		return err
	}
	return r.rec.Await(ctx, id, func(t state.Tx, _ state.Job) bool { return answered(t) || idle(t, id) })
}

var errAllKnown = fmt.Errorf("all workers that can act are known")

// idle reports whether no live worker can run anything of an ending job.
func idle(t state.Tx, id protocol.JobID) bool {
	for w := range t.Workers() {
		if !w.Lost && !slices.Contains(w.Beat.Seen, id) {
			return false
		}
	}
	return true
}
