// Command coordinator measures a coordinator that cuts and folds a job of very
// many entries. One control file of deletes is written and submitted under many
// names; workers that execute nothing answer at once. It prints what the
// coordinator's process takes over time, and fails if that is more than -limit,
// if the queue ever holds more than slots can have in it, or if the job's figures
// are not exact.
//
//	go run ./bench/coordinator -entries 100000000
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
	entries, perFile int
	shardEntries     int
	workers, slots   int
	every            time.Duration
	limit            int64
	within           bool
	dir              string
}

func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("coordinator", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var cfg config
	fs.IntVar(&cfg.entries, "entries", 100_000_000, "entries of the job")
	fs.IntVar(&cfg.perFile, "per-file", 100_000, "entries of a control file")
	fs.IntVar(&cfg.shardEntries, "shard-entries", 2000, "entries of a shard")
	fs.IntVar(&cfg.workers, "workers", 8, "workers that answer at once")
	fs.IntVar(&cfg.slots, "slots", 4, "slots of each")
	fs.DurationVar(&cfg.every, "every", 5*time.Second, "pause between two lines")
	fs.Int64Var(&cfg.limit, "limit", 300<<20, "resident bytes of the coordinator that are too many")
	fs.BoolVar(&cfg.within, "within", false, "all in this process: no memory is measured")
	fs.StringVar(&cfg.dir, "dir", "", "scratch directory; default: a temporary one in memory")
	if err := fs.Parse(args); err != nil {
		return 64
	}
	if err := measure(ctx, cfg, stdout); err != nil {
		fmt.Fprintln(stderr, "coordinator:", err)
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
	files, err := links(filepath.Join(dir, "control"), cfg)
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
	began := time.Now()
	spec := protocol.JobSpec{Source: "/s", Destination: "/d"}
	spec.Limits.Entries = cfg.shardEntries
	id := client.NewJobID(began)
	if err := c.Submit(ctx, id, spec, files, true); err != nil {
		return err
	}
	fmt.Fprintf(out, "submitted %d control files of %d entries in %.1f s\n", len(files.Control), cfg.perFile, time.Since(began).Seconds())
	m := &meter{cfg: cfg, r: r, b: b, out: out, began: time.Now()}
	stop, err := m.work(ctx)
	if err != nil {
		return err
	}
	v, err := m.follow(ctx, c, id)
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	return m.verdict(v)
}

// links writes one control file and gives it as many names as the job has files.
func links(dir string, cfg config) (client.Files, error) {
	var f client.Files
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, fmt.Errorf("control files: %w", err)
	}
	first, err := clustertest.DeleteFile(filepath.Join(dir, "file-0000000.txt"), cfg.perFile)
	if err != nil {
		return f, err
	}
	for i := range (cfg.entries + cfg.perFile - 1) / cfg.perFile {
		ref := first
		if i > 0 {
			ref.Path = filepath.Join(dir, fmt.Sprintf("file-%07d.txt", i))
			if err := os.Link(first.Path, ref.Path); err != nil {
				return f, fmt.Errorf("control files: %w", err)
			}
		}
		f.Control = append(f.Control, ref)
	}
	return f, nil
}

// meter follows a job.
type meter struct {
	cfg   config
	r     *rig.Rig
	b     *bus.Bus
	out   io.Writer
	began time.Time
	sims  []*clustertest.Sim
	most  atomic.Uint64 // messages in the queue
}

// work starts the workers and the watch on the queue; the returned function
// stops them.
func (m *meter) work(ctx context.Context) (func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	stop := func() error {
		cancel()
		wg.Wait()
		return errors.Join(errs...)
	}
	for i := range m.cfg.workers {
		b, err := m.r.Connect(ctx, fmt.Sprintf("w%d", i))
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		s := &clustertest.Sim{Name: fmt.Sprintf("w%d", i), Slots: m.cfg.slots, Bus: b}
		m.sims = append(m.sims, s)
		wg.Go(func() { defer b.Close(); note(s.Run(ctx, nil)) })
	}
	wg.Go(func() {
		for bus.Sleep(ctx, 20*time.Millisecond) {
			at, err := m.b.StreamState(ctx, protocol.StreamShards)
			if err != nil {
				continue // at the end of the run
			}
			m.most.Store(max(m.most.Load(), at.Messages))
		}
	})
	return stop, nil
}

// follow prints a line now and then until the job has ended.
func (m *meter) follow(ctx context.Context, c *client.Client, id protocol.JobID) (protocol.JobView, error) {
	fmt.Fprintln(m.out, "seconds  entries      entries/s  RSS MiB  peak MiB  CPU s  queued")
	var before uint64
	last := m.began
	for {
		ended := !bus.Sleep(ctx, m.cfg.every)
		v, err := c.Job(ctx, id)
		if ended || (err == nil && v.State.Final()) {
			return v, err
		}
		var entries uint64
		for _, s := range m.sims {
			_, n := s.Answered()
			entries += n
		}
		u, uerr := m.r.Coordinator()
		at, serr := m.b.StreamState(ctx, protocol.StreamShards)
		if err := errors.Join(err, uerr, serr); err != nil {
			return v, err
		}
		now := time.Now()
		fmt.Fprintf(m.out, "%7.0f  %11d  %9.0f  %7d  %8d  %5.1f  %d\n", now.Sub(m.began).Seconds(), entries,
			float64(entries-before)/now.Sub(last).Seconds(), u.RSS>>20, u.Peak>>20, u.CPU.Seconds(), at.Messages)
		before, last = entries, now
	}
}

// verdict holds the job that ended against what it had to be.
func (m *meter) verdict(v protocol.JobView) error {
	u, err := m.r.Coordinator()
	if err != nil {
		return err
	}
	total := uint64((m.cfg.entries + m.cfg.perFile - 1) / m.cfg.perFile * m.cfg.perFile)
	// Each slot has at most one shard that is not answered, and one that is and
	// whose ack is on its way. The cursor is a message too.
	window := 2*uint64(m.cfg.workers*m.cfg.slots) + 1
	sec := time.Since(m.began).Seconds()
	fmt.Fprintf(m.out, "job %s: %d entries in %.0f s, %.0f entries/s; coordinator: peak %d MiB, %.1f s of CPU; queue: at most %d messages of %d possible\n",
		v.State, v.Stats.Deleted, sec, float64(v.Stats.Deleted)/sec, u.Peak>>20, u.CPU.Seconds(), m.most.Load(), window)
	switch {
	case v.State != protocol.StateCompleted || v.Stats.Deleted != total || v.Stats.FilesToDelete != total || v.Failures != 0:
		return fmt.Errorf("job is %s (%s): %+v, want %d entries", v.State, v.Reason, v.Stats, total)
	case m.most.Load() > window:
		return fmt.Errorf("the queue held %d messages, at most %d can be in it", m.most.Load(), window)
	case u.Peak > m.cfg.limit:
		return fmt.Errorf("the coordinator took %d MiB, the limit is %d", u.Peak>>20, m.cfg.limit>>20)
	}
	return nil
}
