// Package clustertest owns clusters within the test process: real NATS, real
// coordinators and workers over real trees, which tests stop, kill and cut off.
package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// Timing is what test clusters run with unless told otherwise: that of real
// ones, a tenth to a twentieth as long.
func Timing() protocol.Timing {
	return protocol.Timing{Heartbeat: 100 * time.Millisecond, Lease: time.Second, AckWait: 1500 * time.Millisecond, Leader: 2 * time.Second}
}

// Cluster is NATS with at most one leading coordinator and any number of workers.
type Cluster struct {
	*client.Client

	t      testing.TB
	dir    string
	server *bus.Server
	nats   bus.ServerConfig
	timing protocol.Timing
	log    *slog.Logger

	mu    sync.Mutex
	coord *Part
	n     int
}

// Part is a coordinator or a worker that runs.
type Part struct {
	bus  *bus.Bus
	stop context.CancelCauseFunc
	done chan struct{}
	err  error
}

// New starts NATS and a coordinator. All is stopped with the test.
func New(t testing.TB, timing protocol.Timing) *Cluster {
	t.Helper()
	return NewOn(t, timing, bus.ServerConfig{})
}

// NewOn is New with a NATS server of other limits, or one that listens, which
// can be restarted.
func NewOn(t testing.TB, timing protocol.Timing, nats bus.ServerConfig) *Cluster {
	t.Helper()
	nats.StoreDir, nats.Name = storeDir(t), "test"
	c := &Cluster{t: t, nats: nats, dir: t.TempDir(), timing: timing, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))}
	var err error
	if c.server, err = bus.StartServer(c.nats); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.server.Stop() })
	b := c.connect("client")
	t.Cleanup(b.Close)
	c.Client = client.New(b)
	c.StartCoordinator()
	return c
}

// storeDir returns a directory in memory where there is one: NATS syncs each
// message, and what tests prove does not depend on what a disk takes for it.
func storeDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-nats-") //nolint:usetesting // in memory, where TempDir is not
	if err != nil {
		return filepath.Join(t.TempDir(), "nats")
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in memory, and the server is stopped
	return dir
}

func (c *Cluster) connect(name string) *bus.Bus {
	c.t.Helper()
	cfg := bus.Config{Server: c.server, Name: name, Logger: c.log}
	if url := c.server.URL(); url != "" {
		cfg = bus.Config{URL: url, Name: name, Logger: c.log}
	}
	b, err := bus.Connect(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// StartCoordinator starts a coordinator and waits until it leads.
func (c *Cluster) StartCoordinator() {
	c.t.Helper()
	c.mu.Lock()
	c.n++
	name := fmt.Sprintf("c%d", c.n)
	c.mu.Unlock()
	b := c.connect(name)
	co, err := coordinator.New(c.t.Context(), coordinator.Config{Name: name, Bus: b, Timing: c.timing, Dir: filepath.Join(c.dir, "coordinator"), Logger: c.log.With("part", name)})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(c.t.Context()))
	p := &Part{bus: b, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = co.Run(ctx)
	}()
	select {
	case <-co.Led():
	case <-p.done:
		c.t.Fatalf("coordinator ended: %v", p.err)
	}
	unserve, err := api.Serve(ctx, b, co)
	if err != nil {
		c.t.Fatal(err)
	}
	unserved := make(chan struct{})
	go func() { // one that has ended would swallow what is asked
		defer close(unserved)
		<-p.done
		unserve()
	}()
	c.mu.Lock()
	c.coord = p
	c.mu.Unlock()
	c.t.Cleanup(func() { p.Stop(); <-unserved; b.Close() })
}

// KillCoordinator cuts the coordinator off from NATS and ends it: it can say
// nothing more to anybody.
func (c *Cluster) KillCoordinator() {
	c.mu.Lock()
	p := c.coord
	c.mu.Unlock()
	p.Kill()
}

// WorkerOption changes how a worker is made.
type WorkerOption func(*worker.Config)

// StartWorker starts a worker that may use every root, and waits until it is ready.
func (c *Cluster) StartWorker(name string, opts ...WorkerOption) *Part {
	c.t.Helper()
	eng, err := engine.New(engine.Config{ReadThreads: 4, WriteThreads: 4, Logger: c.log})
	if err != nil {
		c.t.Fatal(err)
	}
	b := c.connect(name)
	cfg := worker.Config{Name: name, Pool: client.DefaultPool, Allow: []string{"/"}, Slots: 4, Bus: b, Engine: eng, Logger: c.log}
	for _, o := range opts {
		o(&cfg)
	}
	w, err := worker.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(c.t.Context()))
	p := &Part{bus: b, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = w.Run(ctx)
	}()
	select {
	case <-w.Ready():
	case <-p.done:
		c.t.Fatalf("worker %s ended: %v", name, p.err)
	}
	c.t.Cleanup(func() {
		p.Stop()
		b.Close()
		if err := eng.Close(); err != nil {
			c.t.Errorf("close engine of %s: %v", name, err)
		}
	})
	return p
}

// Stop ends a part as a signal would, and waits for it.
func (p *Part) Stop() {
	p.stop(worker.ErrShutdown)
	<-p.done
}

// Wait waits until a part has ended by itself, and returns its error.
func (p *Part) Wait() error {
	<-p.done
	return p.err
}

// Kill cuts a part off from NATS before it ends.
func (p *Part) Kill() {
	p.bus.Close()
	p.stop(errors.New("killed"))
	<-p.done
}

// Scan returns the control files of a tree.
func (c *Cluster) Scan(source string) (client.Files, string) {
	c.t.Helper()
	res, err := scanner.Scan(c.t.Context(), scanner.Config{Source: source, Out: filepath.Join(c.t.TempDir(), "scan")})
	if err != nil {
		c.t.Fatal(err)
	}
	var files client.Files
	for _, f := range res.ControlFiles {
		files.Control = append(files.Control, protocol.FileRef{Path: f.Path, Phase: phaseOf[f.Kind]})
	}
	return files, res.MetaDir
}

// phaseOf never changes.
var phaseOf = map[controlfile.Kind]protocol.Phase{
	controlfile.Copy: protocol.PhaseCopy, controlfile.Delete: protocol.PhaseDelete,
	controlfile.Hardlink: protocol.PhaseHardlink, controlfile.Mtime: protocol.PhaseDir,
}

// Submit scans a tree and submits its backup, with change applied to the spec.
func (c *Cluster) Submit(source, destination string, change func(*protocol.JobSpec)) protocol.JobID {
	c.t.Helper()
	files, meta := c.Scan(source)
	spec := protocol.JobSpec{Source: source, Destination: destination, Meta: meta, WriteMeta: true}
	if change != nil {
		change(&spec)
	}
	id := client.NewJobID(time.Now())
	if err := c.Client.Submit(c.t.Context(), id, spec, files, true); err != nil {
		c.t.Fatal(err)
	}
	return id
}

// errReached ends a watch whose condition holds.
var errReached = errors.New("reached")

// Until follows a job until cond holds or the job ends, and returns its view.
func (c *Cluster) Until(id protocol.JobID, cond func(protocol.JobView) bool) protocol.JobView {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Minute)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var last protocol.JobView
	_, err := c.Watch(ctx, id, func(v protocol.JobView) {
		last = v
		if cond(v) {
			stop(errReached)
		}
	}, func(error) {})
	if err != nil && !errors.Is(err, errReached) {
		c.t.Fatalf("watch job %s: %v; last seen %+v", id, err, last)
	}
	return last
}

// Wait follows a job to its end.
func (c *Cluster) Wait(id protocol.JobID) protocol.JobView {
	c.t.Helper()
	v := c.Until(id, func(protocol.JobView) bool { return false })
	s := v.Stats
	done := s.DirsCopied + s.FilesCopied
	if v.Spec.VerifyOnly {
		done = s.DirsVerified + s.FilesVerified
	}
	if s.DirsToBackup+s.FilesToBackup != done+s.DirsFailed+s.FilesFailed+s.SkippedToBackup+s.NotAttempted ||
		s.DirsToDelete+s.FilesToDelete != s.Deleted+s.DeletesFailed+s.SkippedDeletes+s.DeletesNotAttempted {
		c.t.Errorf("statistics that leave entries out, or have some twice: %+v", s)
	}
	return v
}
