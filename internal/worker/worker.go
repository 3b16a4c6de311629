// Package worker owns what a worker does with shards: it pulls them while it
// has slots, has the engine execute them under a lease, makes the data durable,
// and publishes each result before it acknowledges the shard.
//
// An attempt belongs to one slot from its beginning to its end. It ends once: see
// Worker.conclude. Slots share two things. member owns the heartbeats and what the
// coordinator answers; jobs owns the open roots and their syncs. Neither calls the other
// or waits while it holds its lock. The lock of a lease may be taken while member's is
// held.
package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// Config is what a worker is made of.
type Config struct {
	Name     string // unique among the live workers of a cluster
	Pool     string // workers of a pool see the same mounts
	Host     string // for people
	Version  string
	Allow    []string      // roots that jobs may use; a job outside them is refused
	Slots    int           // shards at once; 0 = 4
	Patience time.Duration // after how long without progress a file operation counts as hung; 0 = 30 s
	Grace    time.Duration // how long Run waits at its end for file operations that do not return; 0 = 5 s
	Bus      *bus.Bus
	Engine   *engine.Engine
	Logger   *slog.Logger
	Record   instrument.Providers
	BootTime func() time.Duration // the clock of leases; nil = CLOCK_BOOTTIME
	// Abilities are what the worker says that it may do; nil = what the engine finds.
	Abilities *protocol.Abilities
}

// ErrShutdown is the cause with which a worker stops its attempts at shutdown:
// their shards go back at once and do not count as failed attempts.
var ErrShutdown = fault.New(fault.Canceled, "the worker shuts down")

// Worker executes shards while Run runs.
type Worker struct {
	cfg     Config
	log     *slog.Logger
	queue   queue
	exec    executor
	now     clock
	metrics *instrument.Metrics
	member  *member
	jobs    *jobs
	ready   chan struct{} // closed once the worker has joined

	joining chan struct{} // capacity 1: full while a slot joins again
	joins   atomic.Uint64 // how often the worker has joined

	mu    sync.Mutex
	alike map[string]bool // subjects of shards all of whose entries failed alike here; guarded by mu
}

// New checks the configuration. All that is wrong with it is in the error.
func New(cfg Config) (*Worker, error) {
	return newWorker(cfg, newBusQueue(cfg.Bus, cfg.Pool), engineExecutor{cfg.Engine})
}

func newWorker(cfg Config, q queue, x executor) (*Worker, error) {
	errs := []error{protocol.CheckToken("worker name", cfg.Name), protocol.CheckToken("pool", cfg.Pool)}
	if cfg.Slots == 0 {
		cfg.Slots = 4
	}
	if cfg.Slots < 1 || cfg.Slots > 1024 {
		errs = append(errs, fault.New(fault.Invalid, "worker slots must be between 1 and 1024, not %d", cfg.Slots))
	}
	if len(cfg.Allow) == 0 {
		errs = append(errs, fault.Hinted(fault.Invalid, "name the roots of sources and destinations with --allow", "worker %s may touch nothing", cfg.Name))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.BootTime == nil {
		cfg.BootTime = host.BootTime
	}
	if cfg.Abilities == nil {
		is := protocol.Abilities(x.Abilities())
		cfg.Abilities = &is
	}
	metrics, err := instrument.NewMetrics(cfg.Record.Meter())
	if err != nil {
		return nil, err
	}
	w := &Worker{
		cfg: cfg, log: cfg.Logger.With("component", "worker", "worker", cfg.Name), queue: q, exec: x, now: cfg.BootTime, metrics: metrics,
		ready: make(chan struct{}), joining: make(chan struct{}, 1), alike: map[string]bool{},
	}
	w.jobs = newJobs(w.now, w.log)
	w.member = newMember(&w.cfg, w.log, q, x, w.jobs, w.now, rand.Text())
	return w, nil
}

// Run joins the cluster and executes shards until ctx ends. Then it hands back
// what it has at once and says goodbye. A worker that is drained finishes what it
// has first, and Run returns nil. A cluster that is not there is waited for; a
// file operation that does not return is waited for no longer than the grace.
// Run is called once.
func (w *Worker) Run(ctx context.Context) error {
	stopPoke, err := w.queue.Listen(protocol.SubjectPoke, w.member.beatNow)
	if err != nil {
		return err
	}
	defer stopPoke()

	// Heartbeats go on while attempts are being handed back.
	support, stopSupport := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSupport()
	var beating sync.WaitGroup
	joined := make(chan error, 1)
	beating.Go(func() { w.member.heartbeats(support, joined) })
	stop := func() {
		stopSupport()
		w.jobs.noMoreSyncs()
		waitFor(w.cfg.Grace, func() { beating.Wait(); w.jobs.syncing.Wait() }) // a sync may hang
		w.jobs.closeAll()
	}
	defer stop()
	select {
	case err := <-joined:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := w.join(ctx); err != nil {
		return err
	}
	close(w.ready)
	w.log.Info("worker is ready", "pool", w.cfg.Pool, "slots", w.cfg.Slots, "allow", w.cfg.Allow)
	g, gctx := errgroup.WithContext(ctx)
	pull, stopPulls := context.WithCancel(gctx)
	defer stopPulls()
	g.Go(func() error {
		select {
		case <-w.member.drained:
			stopPulls()
		case <-gctx.Done():
		}
		return nil
	})
	for range w.cfg.Slots {
		g.Go(func() error { return w.slot(gctx, pull) })
	}
	err = w.finish(ctx, g)
	w.member.goodbye(support)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Ready is closed once the worker has joined the cluster.
func (w *Worker) Ready() <-chan struct{} { return w.ready }

// join binds to the pool's consumer, and makes it where there is none. It tries until
// ctx ends; meanwhile heartbeats say what is missing.
func (w *Worker) join(ctx context.Context) error {
	for {
		err := w.queue.Join(ctx, w.member.times().AckWait)
		if err == nil {
			w.member.noteMissing("")
			w.joins.Add(1)
			return nil
		}
		w.member.noteMissing(strings.ReplaceAll(err.Error(), "\n", ": "))
		w.log.Warn("cannot join the pool, trying again", "pool", w.cfg.Pool, "error", err)
		if !bus.Sleep(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
}

// rejoin joins again if the consumer is gone. joins is how often the worker had joined
// when a pull did not find the consumer: one slot joins for all of them.
//
// A new consumer counts deliveries from one again. Two attempts would then share a name,
// and with it their temporary names. So rejoin first waits for the length of a lease.
// Without the consumer no lease can be renewed, so every attempt of the old one, on any
// worker, has lapsed by then. (A worker that starts during that time knows of no older
// consumer, and makes one at once.)
func (w *Worker) rejoin(ctx context.Context, joins uint64) {
	select {
	case w.joining <- struct{}{}:
		defer func() { <-w.joining }()
	case <-ctx.Done():
		return
	}
	if w.joins.Load() != joins {
		return
	}
	err := w.queue.Bind(ctx)
	if err == nil {
		w.joins.Add(1)
	}
	if !errors.Is(err, bus.ErrGone) {
		return // NATS may be starting; the next pull tells
	}
	w.log.Warn("the pool's consumer is gone from NATS, it is made anew once no attempt of it can act", "pool", w.cfg.Pool, "error", err)
	w.member.noteMissing(strings.ReplaceAll(err.Error(), "\n", ": "))
	if bus.Sleep(ctx, w.member.times().Lease) && w.join(ctx) == nil {
		w.log.Info("joined the pool again", "pool", w.cfg.Pool)
	}
}

// backoff keeps a worker that cannot serve what it is given from taking it again
// and again: a bad mount that fails fast must not drain the queue.
type backoff struct{ pause time.Duration }

const (
	leastPause = 100 * time.Millisecond
	mostPause  = 5 * time.Second
)

// after waits where the last shard could not be served; it reports false if ctx
// ended meanwhile.
func (b *backoff) after(ctx context.Context, served bool) bool {
	if served {
		b.pause = 0
		return true
	}
	b.pause = min(max(2*b.pause, leastPause), mostPause)
	return bus.Sleep(ctx, b.pause)
}

// slot executes one shard after the other while it may pull them.
func (w *Worker) slot(ctx, pull context.Context) error {
	var tired backoff
	said := ""
	for pull.Err() == nil {
		length := w.member.times().Lease
		if w.now() >= w.member.ownLease() {
			// Without its own lease the worker may not act; heartbeats renew it.
			bus.Sleep(pull, 100*time.Millisecond)
			continue
		}
		// The lease of a shard runs from before it was asked for: the server
		// cannot have sent it, and so begun to count, any earlier.
		asked, joins := w.now(), w.joins.Load()
		d, err := w.queue.Next(pull, length/4)
		switch {
		case err != nil && pull.Err() != nil:
		case err != nil:
			if text := err.Error(); text != said {
				said = text
				w.log.Warn("cannot pull shards, trying again", "error", err)
			}
			bus.Sleep(pull, time.Second)
			if errors.Is(err, bus.ErrNoStream) {
				w.rejoin(pull, joins)
			}
		case d != nil:
			said = ""
			if served := w.execute(ctx, d, asked+length); !tired.after(ctx, served) {
				return nil
			}
		}
	}
	return nil
}
