// Package folder owns what results become: it follows the result stream, adds
// each shard's one result to its job, keeps checkpoints of that, and tells a
// job's statistics.
package folder

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	mnoop "go.opentelemetry.io/otel/metric/noop"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Config is what a Folder is made of.
type Config struct {
	Records *records.Records
	Bus     *bus.Bus
	Logger  *slog.Logger
	Meter   metric.MeterProvider
	// CheckpointEvery is after how many results checkpoints are written, and
	// CheckpointQuiet after how long without one; 0 = the defaults.
	CheckpointEvery int
	CheckpointQuiet time.Duration
	// GiveBack gives the credit of an open shard back. It is called within an
	// update of the view, so that no shard is both counted by an account that is
	// just opened and answered before it.
	GiveBack func(id protocol.JobID, shards int)
	// Folded is called without a lock after results were added to a job.
	Folded func(ctx context.Context, id protocol.JobID)
}

// Folder adds results to jobs. Its methods may be called concurrently.
//
// Order of the locks: mu before the view's.
type Folder struct {
	cfg     Config
	rec     *records.Records
	log     *slog.Logger
	results metric.Int64Counter
	due     chan struct{} // capacity 1: so many results were added that checkpoints are due

	mu        sync.Mutex              // held while results are added, so that figures, bits and folded are of one moment
	folded    uint64                  // sequence of the last result added; guarded by mu
	sinceMany int                     // results since due was told; guarded by mu
	stopTail  context.CancelCauseFunc // of the stream that is followed; guarded by mu
}

// New returns a Folder that has added nothing.
func New(cfg Config) (*Folder, error) {
	if cfg.CheckpointEvery == 0 {
		cfg.CheckpointEvery = checkpointEvery
	}
	if cfg.CheckpointQuiet == 0 {
		cfg.CheckpointQuiet = checkpointQuiet
	}
	if cfg.Meter == nil {
		cfg.Meter = mnoop.NewMeterProvider()
	}
	results, err := cfg.Meter.Meter("github.com/fsbackup/fsbackup/internal/coordinator").
		Int64Counter("fsbackup.results.folded", metric.WithDescription("results added to their jobs"))
	if err != nil {
		return nil, fmt.Errorf("instrument fsbackup.results.folded: %w", err)
	}
	return &Folder{cfg: cfg, rec: cfg.Records, log: cfg.Logger, results: results, due: make(chan struct{}, 1)}, nil
}

// FoldedUpTo returns the sequence of the last result that was added.
func (f *Folder) FoldedUpTo() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.folded
}

// SinceDue returns how many results were added since checkpoints were due last.
func (f *Folder) SinceDue() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sinceMany
}

// CatchUp waits until all results of a job are added that are stored now.
func (f *Folder) CatchUp(ctx context.Context, id protocol.JobID) error {
	for {
		more, err := f.cfg.Bus.HasFrom(ctx, protocol.StreamResults, protocol.JobResults(id), f.FoldedUpTo()+1)
		if err != nil || !more {
			return err
		}
		if !bus.Sleep(ctx, catchUpPause) {
			return context.Cause(ctx)
		}
	}
}

// catchUpPause is the time between two looks at what is still to be read.
const catchUpPause = 20 * time.Millisecond

func (f *Folder) count(ctx context.Context, r *protocol.ResultMsg) {
	outcome := "done"
	if r.GetFailures() > 0 {
		outcome = "failures"
	}
	f.results.Add(ctx, 1, metric.WithAttributes(attribute.String("phase", protocol.Phase(r.GetPhase()).String()), attribute.String("outcome", outcome)))
}
