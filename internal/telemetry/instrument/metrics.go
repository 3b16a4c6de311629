package instrument

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Outcome says how an attempt at a shard ended. The set is closed: it is an
// attribute of metrics.
type Outcome string

const (
	// Done is a result in which every entry was done or deliberately skipped.
	Done Outcome = "done"
	// Failed is a result with at least one failed entry.
	Failed Outcome = "failed"
	// Returned is a shard handed back: shutdown, pause, full destination.
	Returned Outcome = "returned"
	// Stale is an attempt whose lease was lost, or whose result came second.
	Stale Outcome = "stale"
	// Canceled is a shard of a job that was cancelled meanwhile.
	Canceled Outcome = "canceled"
)

// ShardRecord is one ended attempt at a shard, as a worker counts it.
type ShardRecord struct {
	Phase    string
	Pool     string
	Worker   string
	Outcome  Outcome
	Duration time.Duration

	FilesCopied, DirsCopied, BytesCopied uint64
	FilesFailed, DirsFailed              uint64
	Deleted, Links, Skipped              uint64
}

// SlotRecord is the state of one worker at a moment.
type SlotRecord struct {
	Pool, Worker string
	Busy, Limit  int    // slots
	Memory       uint64 // bytes of buffers held by the engine
}

// ClusterRecord is the state that a leading coordinator sees at a moment.
type ClusterRecord struct {
	Jobs       int // in progress
	Workers    int // with a valid lease
	OpenShards int // published and not yet answered
}

// Metrics is the set of instruments. Its methods are safe for concurrent use.
type Metrics struct {
	filesCopied, dirsCopied, bytesCopied metric.Int64Counter
	filesFailed, dirsFailed              metric.Int64Counter
	deleted, links, skipped              metric.Int64Counter
	shards, published                    metric.Int64Counter
	shardSeconds                         metric.Float64Histogram

	slotsBusy, slotsLimit, memory metric.Int64Gauge
	jobs, workers, openShards     metric.Int64Gauge
}

// NewMetrics makes the instruments. It fails only on a broken name or unit,
// which is a fault of this package.
func NewMetrics(meter metric.Meter) (*Metrics, error) {
	var errs []error
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return c
	}
	gauge := func(name, unit, what string) metric.Int64Gauge {
		g, err := meter.Int64Gauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = append(errs, err)
		return g
	}
	m := &Metrics{
		filesCopied: counter("fsbackup.files.copied", "{file}", "Non-directories copied, attempts that were repeated included."),
		dirsCopied:  counter("fsbackup.dirs.copied", "{dir}", "Directories made or found right."),
		bytesCopied: counter("fsbackup.copied", "By", "Sizes of the regular files copied."),
		filesFailed: counter("fsbackup.files.failed", "{file}", "Non-directories that could not be done."),
		dirsFailed:  counter("fsbackup.dirs.failed", "{dir}", "Directories that could not be done."),
		deleted:     counter("fsbackup.entries.deleted", "{entry}", "Delete lines whose target is gone."),
		links:       counter("fsbackup.links.made", "{link}", "Members of hard-link groups that are right links."),
		skipped:     counter("fsbackup.entries.skipped", "{entry}", "Entries deliberately not done."),
		shards:      counter("fsbackup.shards.ended", "{shard}", "Attempts at shards by outcome."),
		published:   counter("fsbackup.shards.published", "{shard}", "Shards put on the stream, republished ones included."),
		slotsBusy:   gauge("fsbackup.slots.busy", "{slot}", "Shards that the worker executes now."),
		slotsLimit:  gauge("fsbackup.slots.limit", "{slot}", "Shards that the worker may execute at once."),
		memory:      gauge("fsbackup.engine.memory", "By", "Buffers held by the worker's engine."),
		jobs:        gauge("fsbackup.jobs.running", "{job}", "Jobs in progress, as the leader sees them."),
		workers:     gauge("fsbackup.workers.live", "{worker}", "Workers with a valid lease."),
		openShards:  gauge("fsbackup.shards.open", "{shard}", "Shards published and not yet answered."),
	}
	var err error
	m.shardSeconds, err = meter.Float64Histogram("fsbackup.shard.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from a shard's receipt to its outcome."),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900))
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	return m, nil
}

// Shard records one ended attempt at a shard.
func (m *Metrics) Shard(ctx context.Context, r ShardRecord) {
	where := []attribute.KeyValue{
		attribute.String("phase", r.Phase), attribute.String("pool", r.Pool), attribute.String("worker", r.Worker),
	}
	at := metric.WithAttributeSet(attribute.NewSet(where...))
	for _, c := range []struct {
		counter metric.Int64Counter
		n       uint64
	}{
		{m.filesCopied, r.FilesCopied},
		{m.dirsCopied, r.DirsCopied},
		{m.bytesCopied, r.BytesCopied},
		{m.filesFailed, r.FilesFailed},
		{m.dirsFailed, r.DirsFailed},
		{m.deleted, r.Deleted},
		{m.links, r.Links},
		{m.skipped, r.Skipped},
	} {
		// Zeros are not recorded: a link shard needs no series of copied files.
		if c.n > 0 {
			c.counter.Add(ctx, clamp(c.n), at)
		}
	}
	m.shards.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(append(where, attribute.String("outcome", string(r.Outcome)))...)))
	m.shardSeconds.Record(ctx, r.Duration.Seconds(), at)
}

// Published records n shards put on the stream for a pool.
func (m *Metrics) Published(ctx context.Context, phase, pool string, n int) {
	m.published.Add(ctx, int64(n), metric.WithAttributes(attribute.String("phase", phase), attribute.String("pool", pool)))
}

// Slots records the state of one worker.
func (m *Metrics) Slots(ctx context.Context, r SlotRecord) {
	at := metric.WithAttributes(attribute.String("pool", r.Pool), attribute.String("worker", r.Worker))
	m.slotsBusy.Record(ctx, int64(r.Busy), at)
	m.slotsLimit.Record(ctx, int64(r.Limit), at)
	m.memory.Record(ctx, clamp(r.Memory), at)
}

// Cluster records what the leading coordinator sees.
func (m *Metrics) Cluster(ctx context.Context, r ClusterRecord) {
	m.jobs.Record(ctx, int64(r.Jobs))
	m.workers.Record(ctx, int64(r.Workers))
	m.openShards.Record(ctx, int64(r.OpenShards))
}

func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
