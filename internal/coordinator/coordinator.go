// Package coordinator owns the life of a job: it admits its control files, takes
// it through its phases, keeps the barriers between them, ends it in one way
// whatever ends it, and offers the control API.
//
// What it does that with are its four parts: records, publisher, folder, roster.
package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/folder"
	"github.com/fsbackup/fsbackup/internal/coordinator/publisher"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/coordinator/roster"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Config is what a coordinator is made of.
type Config struct {
	Name     string // unique among coordinators
	Bus      *bus.Bus
	Layout   bus.Layout
	Timing   protocol.Timing
	Dir      string        // for uploaded control and meta files; made if missing
	Keep     time.Duration // how long ended jobs are kept; 0 = 30 days
	KeepJobs int           // how many ended jobs are kept; 0 = 10,000
	Logger   *slog.Logger
	Now      func() time.Time
	Boot     func() time.Duration // since some moment, also while the machine sleeps; nil = CLOCK_BOOTTIME
	Tracer   trace.TracerProvider
	Meter    metric.MeterProvider
	Version  string

	// Checkpoints are written after so many results, and after so long without
	// one; 0 = the defaults.
	CheckpointEvery int
	CheckpointQuiet time.Duration
}

const (
	keepFor  = 30 * 24 * time.Hour
	keepJobs = 10_000
)

// Coordinator runs jobs while it leads. Its API methods may be called
// concurrently, from any goroutine, while Run runs.
//
// Its locks are held for moments only, and no part is called under them.
type Coordinator struct {
	cfg Config
	log *slog.Logger
	now func() time.Time
	led chan struct{} // closed once this coordinator leads and has recovered
	tel *telemetry

	rec    *records.Records
	pub    *publisher.Publisher
	fold   *folder.Folder
	roster *roster.Roster

	leadsUntil atomic.Int64           // boot time at which the lease ends
	leader     atomic.Pointer[string] // who leads, as far as is known; nil or empty: it is not

	mu      sync.Mutex // guards what follows
	runners map[protocol.JobID]*runner
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
		cfg.Boot = host.BootTime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Keep == 0 {
		cfg.Keep = keepFor
	}
	if cfg.KeepJobs == 0 {
		cfg.KeepJobs = keepJobs
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "make the coordinator's directory", Path: cfg.Dir, Err: err}
	}
	cfg.Layout.LeaseTTL = cfg.Timing.Leader
	if err := cfg.Bus.EnsureLayout(ctx, cfg.Layout); err != nil {
		return nil, err
	}
	c := &Coordinator{
		cfg: cfg, log: cfg.Logger.With("component", "coordinator"), now: cfg.Now, led: make(chan struct{}),
		tel: newTelemetry(cfg.Tracer), runners: map[protocol.JobID]*runner{}, events: map[protocol.JobID]time.Time{},
	}
	return c, c.assemble(ctx)
}

// assemble makes the four parts, each of which knows those before it only.
func (c *Coordinator) assemble(ctx context.Context) error {
	cfg := c.cfg
	var err error
	c.rec, err = records.New(ctx, records.Config{
		Bus: cfg.Bus, Dir: cfg.Dir, Keep: cfg.Keep, KeepJobs: cfg.KeepJobs, Leads: c.leads, Now: cfg.Now, Logger: c.log, Changed: c.publishEvent,
	})
	if err != nil {
		return err
	}
	c.pub, err = publisher.New(publisher.Config{
		Name: cfg.Name, Records: c.rec, Bus: cfg.Bus, QueueBytes: cfg.Layout.ShardBytes(), Grace: cfg.Timing.AckWait + cfg.Timing.Lease,
		Leads: c.leads, CannotGoOn: c.cannotGoOn, Now: cfg.Now, Logger: c.log, Tracer: cfg.Tracer, Meter: cfg.Meter,
	})
	if err != nil {
		return err
	}
	c.fold, err = folder.New(folder.Config{
		Records: c.rec, Bus: cfg.Bus, Logger: c.log, Meter: cfg.Meter, CheckpointEvery: cfg.CheckpointEvery, CheckpointQuiet: cfg.CheckpointQuiet,
		GiveBack: c.pub.GiveBack, Folded: c.folded,
	})
	if err != nil {
		return err
	}
	c.roster = roster.New(roster.Config{
		Name: cfg.Name, Records: c.rec, Bus: cfg.Bus, Timing: cfg.Timing, Leads: c.leads, Ready: c.ready, Now: cfg.Now, Boot: cfg.Boot, Logger: c.log,
		SetPool: c.pub.SetPool, GiveUp: c.pub.GiveUp,
	})
	return nil
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

	c.roster.Begin()
	stop, err := c.listen(ctx)
	if err != nil {
		cancel(err)
		return errors.Join(err, ignoreCanceled(g.Wait()))
	}
	defer stop()
	alive, err := c.load(ctx)
	if err != nil {
		cancel(err)
		return errors.Join(err, ignoreCanceled(g.Wait()))
	}
	caughtUp := make(chan struct{})
	g.Go(func() error { return c.fold.Follow(ctx, caughtUp) })
	g.Go(func() error {
		select {
		case <-caughtUp:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for _, id := range alive {
			c.startRunner(id)
		}
		close(c.led)
		c.log.Info("leading", "name", c.cfg.Name)
		// What they do must not begin before all is known.
		g.Go(func() error { return c.rec.Clean(ctx) })
		g.Go(func() error { return c.fold.KeepCheckpoints(ctx) })
		g.Go(func() error { return c.pub.Reconcile(ctx) })
		g.Go(func() error { return c.keepLayout(ctx) })
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

// load reads all jobs into the view and takes over those that have not ended.
func (c *Coordinator) load(ctx context.Context) ([]protocol.JobID, error) {
	alive, err := c.rec.Load(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range alive {
		if err := c.pub.Load(ctx, id); err != nil {
			return nil, err
		}
	}
	return alive, nil
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
		protocol.SubjectHeartbeat: func(_ string, b []byte) []byte { return c.roster.Heartbeat(b) },
		protocol.SubjectAttempt:   func(_ string, b []byte) []byte { c.roster.Attempt(b); return nil },
		protocol.SubjectRoots:     func(_ string, b []byte) []byte { return c.roster.ClaimRoots(ctx, b) },
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

// tick has the roster look at what time does.
func (c *Coordinator) tick(ctx context.Context) error {
	t := time.NewTicker(min(time.Second, c.cfg.Timing.Lease/4))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			c.roster.Look(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keepLayout makes streams and buckets again that somebody removed, with what this
// leader knows of their content. What was queued is published again, and results
// that are not known any more are in the figures already.
func (c *Coordinator) keepLayout(ctx context.Context) error {
	for {
		if !bus.Sleep(ctx, c.cfg.Timing.Lease) {
			return context.Cause(ctx)
		}
		if err := c.makeMissing(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("streams or buckets are gone from NATS and cannot be made, trying again", "error", err)
		}
	}
}

func (c *Coordinator) makeMissing(ctx context.Context) error {
	missing, err := c.cfg.Bus.MissingFromLayout(ctx)
	if err != nil || len(missing) == 0 || !c.leads() {
		return nil //nolint:nilerr // whoever needs NATS says that it is not there
	}
	c.log.Error("streams or buckets are gone from NATS, they are made anew", "missing", missing)
	if err := c.cfg.Bus.EnsureLayout(ctx, c.cfg.Layout); err != nil {
		return err
	}
	if slices.Contains(missing, "KV_"+protocol.BucketJobs) {
		if err := c.rec.WriteAgain(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(missing, protocol.StreamResults) {
		c.fold.FollowAnew()
	}
	return nil
}

// startRunner begins or resumes a job that has not ended.
func (c *Coordinator) startRunner(id protocol.JobID) {
	r := &runner{c: c, id: id, log: c.log, pub: c.pub.Open(id)}
	c.mu.Lock()
	c.runners[id] = r
	group, ctx := c.group, c.ctx
	c.mu.Unlock()
	group.Go(func() error { return r.run(ctx) })
}

func (c *Coordinator) runner(id protocol.JobID) *runner {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runners[id]
}

// forget drops the runner of a job that has ended, or that goes on elsewhere.
func (c *Coordinator) forget(r *runner) {
	r.pub.Close()
	c.roster.Forget(r.id)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.runners, r.id)
}

// folded is called after results were added to a job.
func (c *Coordinator) folded(ctx context.Context, id protocol.JobID) {
	c.checkFailFast(ctx, id)
	c.publishEvent(id, false)
}

func (c *Coordinator) view(f func(state.Tx)) { c.rec.View(f) }
