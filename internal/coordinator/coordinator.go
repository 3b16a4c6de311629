// Package coordinator owns what a job becomes: it admits control files, cuts and
// publishes shards within a credit window, folds results exactly once, keeps the
// barriers between phases, and decides the final status.
package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Config is what a coordinator is made of.
type Config struct {
	Name    string // unique among coordinators
	Bus     *bus.Bus
	Layout  bus.Layout
	Timing  protocol.Timing
	Dir     string        // for uploaded control and meta files; made if missing
	Keep    time.Duration // how long results and failures of ended jobs stay; 0 = 24 h
	Logger  *slog.Logger
	Now     func() time.Time
	Boot    func() time.Duration // since some moment, also while the machine sleeps; nil = CLOCK_BOOTTIME
	Tracer  trace.TracerProvider
	Meter   metric.MeterProvider
	Version string

	// Checkpoints are written after so many results, and after so long without
	// one; 0 = the defaults.
	CheckpointEvery int
	CheckpointQuiet time.Duration
}

// Coordinator runs jobs while it leads. Its API methods may be called
// concurrently, from any goroutine, while Run runs.
type Coordinator struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	st      *state.Store
	jobs    *bus.KV
	objects *bus.Objects
	ledger  *ledger
	tel     *telemetry
	led     chan struct{} // closed once this coordinator leads and has recovered
	room    room

	leadsUntil atomic.Int64           // boot time at which the lease ends
	leader     atomic.Pointer[string] // who leads, as far as is known; nil or empty: it is not

	saving  sync.Mutex   // held while a job's record is written
	placing sync.RWMutex // held for reading from where an uploaded file is found until its job names it

	folding   sync.Mutex // guards what follows: held while a result is folded
	folded    uint64     // sequence of the last result folded
	sinceMany int        // results since foldedMany was told

	foldedMany    chan struct{} // capacity 1: checkpoints are due
	checkpointing sync.Mutex    // guards what follows: held while one is written
	checkpoints   map[protocol.JobID]held

	mu      sync.Mutex // guards what follows
	runners map[protocol.JobID]*runner
	roots   map[protocol.JobID]*rootsState
	events  map[protocol.JobID]time.Time // when the last snapshot went out
	group   *errgroup.Group
	ctx     context.Context //nolint:containedctx // the life of Run, which runners are started in
}

// New prepares a coordinator and makes the streams and buckets.
func New(ctx context.Context, cfg Config) (*Coordinator, error) {
	if cfg.Timing == (protocol.Timing{}) {
		cfg.Timing = protocol.DefaultTiming()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Boot == nil {
		cfg.Boot = bootTime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Keep == 0 {
		cfg.Keep = 24 * time.Hour
	}
	if cfg.CheckpointEvery == 0 {
		cfg.CheckpointEvery = checkpointEvery
	}
	if cfg.CheckpointQuiet == 0 {
		cfg.CheckpointQuiet = checkpointQuiet
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "make the coordinator's directory", Path: cfg.Dir, Err: err}
	}
	cfg.Layout.LeaseTTL = cfg.Timing.Leader
	if err := cfg.Bus.EnsureLayout(ctx, cfg.Layout); err != nil {
		return nil, err
	}
	tel, err := newTelemetry(cfg.Tracer, cfg.Meter)
	if err != nil {
		return nil, err
	}
	c := &Coordinator{
		cfg: cfg, log: cfg.Logger.With("component", "coordinator"), now: cfg.Now,
		st: state.New(), ledger: newLedger(), tel: tel, led: make(chan struct{}), foldedMany: make(chan struct{}, 1),
		runners: map[protocol.JobID]*runner{}, roots: map[protocol.JobID]*rootsState{}, events: map[protocol.JobID]time.Time{},
	}
	if c.jobs, err = cfg.Bus.KV(ctx, protocol.BucketJobs); err != nil {
		return nil, err
	}
	if c.objects, err = cfg.Bus.Objects(ctx, protocol.BucketObjects); err != nil {
		return nil, err
	}
	return c, nil
}

// Led is closed once this coordinator leads and takes requests.
func (c *Coordinator) Led() <-chan struct{} { return c.led }

// Run waits for the leader's lease, recovers, and runs jobs until ctx ends
// (returning its cause) or the lease is lost (fault.Stale).
func (c *Coordinator) Run(ctx context.Context) error {
	lease, err := c.acquireLease(ctx)
	if err != nil {
		return err
	}
	defer lease.release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, ctx := errgroup.WithContext(ctx)
	c.mu.Lock()
	c.group, c.ctx = g, ctx
	c.mu.Unlock()
	g.Go(func() error { return lease.keep(ctx) })

	stop, err := c.listen(ctx)
	if err != nil {
		cancel(err)
		return errors.Join(err, ignoreCanceled(g.Wait()))
	}
	defer stop()
	caughtUp := make(chan struct{})
	if err := c.loadJobs(ctx); err != nil {
		cancel(err)
		return errors.Join(err, ignoreCanceled(g.Wait()))
	}
	g.Go(func() error { return c.foldResults(ctx, caughtUp) })
	g.Go(func() error {
		select {
		case <-caughtUp:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c.startRunners()
		close(c.led)
		c.log.Info("leading", "name", c.cfg.Name)
		// What they do must not begin before all is known.
		g.Go(func() error { return c.janitor(ctx) })
		g.Go(func() error { return c.keepCheckpoints(ctx) })
		g.Go(func() error { return c.reconcile(ctx) })
		return c.tick(ctx)
	})
	return g.Wait()
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// listen subscribes to what workers say.
func (c *Coordinator) listen(ctx context.Context) (func(), error) {
	var stops []func()
	stop := func() {
		for _, s := range stops {
			s()
		}
	}
	for subject, f := range map[string]func(string, []byte) []byte{
		protocol.SubjectHeartbeat: func(_ string, b []byte) []byte { return c.heartbeat(b) },
		protocol.SubjectAttempt:   func(_ string, b []byte) []byte { c.attempt(b); return nil },
		protocol.SubjectRoots:     func(_ string, b []byte) []byte { return c.claimRoots(ctx, b) },
	} {
		s, err := c.cfg.Bus.Listen(subject, f)
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, s)
	}
	return stop, nil
}

// tick does what time does: workers get lost, jobs stall, snapshots go out.
func (c *Coordinator) tick(ctx context.Context) error {
	t := time.NewTicker(min(time.Second, c.cfg.Timing.Lease/4))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.expireWorkers()
			c.noteStalls()
			c.watchPoison(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// dir is where a job's uploaded files are kept.
func (c *Coordinator) dir(job protocol.JobID) string {
	return filepath.Join(c.cfg.Dir, "jobs", string(job))
}

func (c *Coordinator) view(f func(state.Tx)) {
	_ = c.st.View(func(t state.Tx) error { f(t); return nil }) // f has no error to give
}

func (c *Coordinator) update(f func(state.Tx)) {
	_ = c.st.Update(func(t state.Tx) error { f(t); return nil }) // f has no error to give
}
