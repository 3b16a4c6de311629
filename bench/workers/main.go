// Command workers measures a coordinator that very many workers are connected
// to, each with a connection of its own: how long until all have joined, what
// their heartbeats cost while there is nothing to do, and a job that all share.
// What a worker has to try again is counted as an error.
//
//	go run ./bench/workers -workers 2000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/bench/rig"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/clustertest"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(start(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

type config struct {
	workers, slots int
	shards         int
	idle           time.Duration
	within         bool
	dir            string
}

func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("workers", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var cfg config
	fs.IntVar(&cfg.workers, "workers", 2000, "workers, each with its own connection")
	fs.IntVar(&cfg.slots, "slots", 4, "slots of each")
	fs.IntVar(&cfg.shards, "shards", 40_000, "shards of the job")
	fs.DurationVar(&cfg.idle, "idle", 30*time.Second, "how long they do nothing but report")
	fs.BoolVar(&cfg.within, "within", false, "all in this process: nothing is measured")
	fs.StringVar(&cfg.dir, "dir", "", "scratch directory; default: a temporary one in memory")
	if err := fs.Parse(args); err != nil {
		return 64
	}
	if err := measure(ctx, cfg, stdout); err != nil {
		fmt.Fprintln(stderr, "workers:", err)
		return 70
	}
	return 0
}

func measure(ctx context.Context, cfg config, out io.Writer) (err error) {
	parent := cfg.dir
	if _, serr := os.Stat("/dev/shm"); parent == "" && serr == nil {
		parent = "/dev/shm" // each message is synced: not the disk is measured
	}
	dir, err := os.MkdirTemp(parent, "fsbackup-bench-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ref, err := clustertest.DeleteFile(filepath.Join(dir, "control.txt"), cfg.shards)
	if err != nil {
		return err
	}
	var r *rig.Rig
	if cfg.within {
		r, err = rig.StartWithin(ctx, dir)
	} else {
		r, err = rig.Start(ctx, dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Stop()) }()
	c, b, err := r.Client(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	f := &fleet{cfg: cfg, r: r, out: out, began: time.Now()}
	defer func() { err = errors.Join(err, f.stop()) }()
	if err := f.join(ctx, c); err != nil {
		return err
	}
	if err := f.rest(ctx); err != nil {
		return err
	}
	return f.share(ctx, c, ref)
}

// fleet is all workers.
type fleet struct {
	cfg    config
	r      *rig.Rig
	out    io.Writer
	began  time.Time
	sims   []*clustertest.Sim
	joined atomic.Int64

	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

func (f *fleet) say(format string, args ...any) error {
	u, err := f.r.Coordinator()
	fmt.Fprintf(f.out, "%6.1f s  "+format+"; coordinator: %d MiB, peak %d MiB, %.1f s of CPU\n",
		append(append([]any{time.Since(f.began).Seconds()}, args...), u.RSS>>20, u.Peak>>20, u.CPU.Seconds())...)
	return err
}

// join starts all workers at once and waits until the coordinator lists them.
func (f *fleet) join(ctx context.Context, c *client.Client) error {
	ctx, f.cancel = context.WithCancel(ctx)
	for i := range f.cfg.workers {
		name := fmt.Sprintf("w%04d", i)
		b, err := f.r.Connect(ctx, name)
		if err != nil {
			return err
		}
		s := &clustertest.Sim{Name: name, Slots: f.cfg.slots, Bus: b}
		f.sims = append(f.sims, s)
		f.wg.Go(func() {
			defer b.Close()
			if err := s.Run(ctx, func() { f.joined.Add(1) }); err != nil {
				f.mu.Lock()
				f.errs = append(f.errs, fmt.Errorf("worker %s: %w", name, err))
				f.mu.Unlock()
			}
		})
	}
	for f.joined.Load() < int64(f.cfg.workers) {
		if err := f.failed(); err != nil {
			return err
		}
		if !bus.Sleep(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	v, err := c.Workers(ctx)
	if err != nil {
		return err
	}
	live := 0
	for _, w := range v.Workers {
		if w.State == "live" {
			live++
		}
	}
	if live != f.cfg.workers {
		return fmt.Errorf("%d of %d workers are live", live, f.cfg.workers)
	}
	return f.say("%d workers with %d slots have joined", live, live*f.cfg.slots)
}

// rest measures heartbeats alone.
func (f *fleet) rest(ctx context.Context) error {
	before, err := f.r.Coordinator()
	if err != nil {
		return err
	}
	if !bus.Sleep(ctx, f.cfg.idle) {
		return context.Cause(ctx)
	}
	after, err := f.r.Coordinator()
	if err := errors.Join(err, f.failed()); err != nil {
		return err
	}
	return f.say("idle for %.0f s: %.1f %% of one CPU", f.cfg.idle.Seconds(), 100*(after.CPU-before.CPU).Seconds()/f.cfg.idle.Seconds())
}

// share runs one job that all take part in.
func (f *fleet) share(ctx context.Context, c *client.Client, ref protocol.FileRef) error {
	before, err := f.r.Coordinator()
	if err != nil {
		return err
	}
	spec := protocol.JobSpec{Source: "/s", Destination: "/d"}
	spec.Limits.Entries = 1
	began := time.Now()
	id := client.NewJobID(began)
	if err := c.Submit(ctx, id, spec, client.Files{Control: []protocol.FileRef{ref}}, true); err != nil {
		return err
	}
	v, err := c.Watch(ctx, id, func(protocol.JobView) {}, func(error) {})
	if err := errors.Join(err, f.failed()); err != nil {
		return err
	}
	if v.State != protocol.StateCompleted || v.Stats.Deleted != uint64(f.cfg.shards) {
		return fmt.Errorf("job is %s (%s): %+v", v.State, v.Reason, v.Stats)
	}
	after, err := f.r.Coordinator()
	if err != nil {
		return err
	}
	busy := 0
	for _, s := range f.sims {
		if n, _ := s.Answered(); n > 0 {
			busy++
		}
	}
	sec := time.Since(began).Seconds()
	retries, last := f.retries()
	if last != nil {
		fmt.Fprintf(f.out, "something was tried again %d times, the last because of: %v\n", retries, last)
	}
	return f.say("%d shards in %.1f s, %.0f a second, %.0f µs of CPU each, answered by %d workers, %d repeated, %d errors",
		f.cfg.shards, sec, float64(f.cfg.shards)/sec, float64((after.CPU-before.CPU).Microseconds())/float64(f.cfg.shards), busy, v.Stats.ShardsRepeated, retries)
}

// retries sums up what workers had to try again.
func (f *fleet) retries() (sum uint64, last error) {
	for _, s := range f.sims {
		n, err := s.Errors()
		sum += n
		if err != nil {
			last = err
		}
	}
	return sum, last
}

func (f *fleet) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

func (f *fleet) stop() error {
	if f.cancel == nil {
		return nil
	}
	f.cancel()
	f.wg.Wait()
	return f.failed()
}
