package client

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// LocalConfig describes a cluster of one: NATS, coordinator and worker in this
// process, over the same code as on many hosts.
type LocalConfig struct {
	Dir     string // for JetStream and job files; must exist
	Memory  bool   // keep streams in memory
	Allow   []string
	Slots   int
	Engine  engine.Config
	Logger  *slog.Logger
	Record  instrument.Providers
	Version string
}

// Local is a cluster within the process.
type Local struct {
	*Client

	stop    context.CancelCauseFunc
	serving chan struct{} // closed when requests are answered
	done    chan struct{}
	err     error // of the cluster; set before done is closed
	once    sync.Once
	free    func()
}

// StartLocal starts a cluster of one. It lives until Close; ctx ending stops it
// too, but Close still must be called.
func StartLocal(ctx context.Context, cfg LocalConfig) (*Local, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var undo []func()
	free := func() {
		for _, u := range slices.Backward(undo) {
			u()
		}
	}
	server, err := bus.StartServer(bus.ServerConfig{StoreDir: filepath.Join(cfg.Dir, "nats"), Name: "local", Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	undo = append(undo, server.Stop)
	connect := func(name string) (*bus.Bus, error) {
		b, err := bus.Connect(ctx, bus.Config{Server: server, Name: name, Logger: cfg.Logger})
		if err == nil {
			undo = append(undo, b.Close)
		}
		return b, err
	}
	l := &Local{serving: make(chan struct{}), done: make(chan struct{}), free: free}
	parts, err := assemble(ctx, cfg, connect)
	if err != nil {
		free()
		return nil, err
	}
	undo = append(undo, func() { _ = parts.engine.Close() }) // holds no data
	l.free = free
	// No patience: who does not answer here is gone for good.
	l.Client = &Client{bus: parts.client, shared: true, silence: callTimeout}
	ctx, l.stop = context.WithCancelCause(ctx)
	go l.run(ctx, server, parts)
	for _, ready := range []<-chan struct{}{l.serving, parts.worker.Ready()} {
		select {
		case <-ready:
		case <-l.done:
			return nil, errors.Join(l.err, l.Close())
		}
	}
	return l, nil
}

// localTiming is that of a cluster without a network: a worker that is silent is
// dead, with all the rest, and the next process need not wait for it.
func localTiming() protocol.Timing {
	t := protocol.DefaultTiming()
	t.Heartbeat, t.Lease, t.AckWait = time.Second, 4*time.Second, 6*time.Second
	return t
}

type parts struct {
	client      *bus.Bus
	coordinator *coordinator.Coordinator
	coordBus    *bus.Bus
	worker      *worker.Worker
	engine      *engine.Engine
}

// assemble connects the parts without starting them.
func assemble(ctx context.Context, cfg LocalConfig, connect func(string) (*bus.Bus, error)) (p parts, err error) {
	if p.client, err = connect("client"); err != nil {
		return p, err
	}
	if p.coordBus, err = connect("coordinator"); err != nil {
		return p, err
	}
	workerBus, err := connect("worker")
	if err != nil {
		return p, err
	}
	p.coordinator, err = coordinator.New(ctx, coordinator.Config{
		Name: "local", Bus: p.coordBus, Layout: bus.Layout{Memory: cfg.Memory}, Dir: filepath.Join(cfg.Dir, "coordinator"),
		Timing: localTiming(), Logger: cfg.Logger, Tracer: cfg.Record.TracerProvider, Meter: cfg.Record.MeterProvider, Version: cfg.Version,
	})
	if err != nil {
		return p, err
	}
	if p.engine, err = engine.New(cfg.Engine); err != nil {
		return p, err
	}
	p.worker, err = worker.New(worker.Config{
		Name: "local", Pool: "default", Host: "localhost", Version: cfg.Version, Allow: cfg.Allow, Slots: cfg.Slots,
		Bus: workerBus, Engine: p.engine, Logger: cfg.Logger, Record: cfg.Record,
	})
	return p, err
}

// run runs the parts until one fails or ctx ends: the worker stops first, so
// that what it hands back is still received.
func (l *Local) run(ctx context.Context, server *bus.Server, p parts) {
	defer close(l.done)
	coord, stopCoord := context.WithCancelCause(context.WithoutCancel(ctx))
	work, stopWork := context.WithCancelCause(ctx)
	var g errgroup.Group
	g.Go(func() error {
		select {
		case <-server.Failed():
			stopWork(server.Err())
			stopCoord(server.Err())
			return server.Err()
		case <-work.Done():
			return nil
		}
	})
	g.Go(func() error {
		err := p.coordinator.Run(coord)
		stopWork(err)
		return unlessDone(coord, err)
	})
	g.Go(func() error {
		select {
		case <-p.coordinator.Led(): // so that the first heartbeat finds it
		case <-work.Done():
			return nil
		}
		err := p.worker.Run(work)
		stop := errors.New("the worker has stopped")
		stopCoord(stop)
		return unlessDone(ctx, err)
	})
	g.Go(func() error {
		select {
		case <-p.coordinator.Led():
		case <-coord.Done():
			return nil
		}
		stop, err := api.Serve(coord, p.coordBus, p.coordinator)
		if err != nil {
			stopWork(err)
			return err
		}
		close(l.serving)
		<-coord.Done()
		stop()
		return nil
	})
	l.err = g.Wait()
}

// unlessDone returns err, or nil where ctx has ended: then it was asked for.
func unlessDone(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// Failed is closed when the cluster has stopped, by Close or by itself; Err says why.
func (l *Local) Failed() <-chan struct{} { return l.done }

// Err returns why the cluster stopped by itself, once Failed is closed.
func (l *Local) Err() error {
	<-l.done
	return l.err
}

// Close stops the cluster: attempts are given up, nothing is left half-written.
func (l *Local) Close() error {
	l.once.Do(func() {
		l.stop(worker.ErrShutdown)
		<-l.done
		l.free()
	})
	return l.err
}

// DefaultPool is the pool of a cluster of one.
const DefaultPool = "default"

var _ api.Service = (*coordinator.Coordinator)(nil)
