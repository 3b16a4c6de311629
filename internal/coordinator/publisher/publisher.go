// Package publisher owns what of a job is published: it cuts control files into
// shards, publishes them with the job's cursor within the job's credit, and
// publishes again what got lost in the queue.
package publisher

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Config is what a Publisher is made of.
type Config struct {
	Name    string // of the coordinator
	Records *records.Records
	Bus     *bus.Bus
	// QueueBytes is the bound of the shard stream.
	QueueBytes int64
	// Grace is how long nothing must have been heard of a shard before it is
	// looked for: what a worker has, or the queue delivers again, has been heard of
	// by then.
	Grace time.Duration
	Leads func() bool // no other coordinator can lead yet
	// CannotGoOn is told what keeps a job from ever going on, such as a control
	// file that is not what was admitted.
	CannotGoOn func(ctx context.Context, id protocol.JobID, err error)
	Now        func() time.Time
	Logger     *slog.Logger
	Tracer     trace.TracerProvider
	Meter      metric.MeterProvider
}

// Publisher publishes the shards of all jobs. Its methods may be called
// concurrently.
//
// Order of the locks: a job's storing, then room.mu, then mu and ledger.mu. The
// records may be read and changed under any of them.
type Publisher struct {
	cfg    Config
	rec    *records.Records
	log    *slog.Logger
	ledger *ledger
	room   room
	tel    *telemetry

	mu   sync.Mutex
	jobs map[protocol.JobID]*Job // that are open; guarded by mu
}

// New returns a Publisher without jobs.
func New(cfg Config) (*Publisher, error) {
	tel, err := newTelemetry(cfg.Tracer, cfg.Meter)
	if err != nil {
		return nil, err
	}
	return &Publisher{cfg: cfg, rec: cfg.Records, log: cfg.Logger, ledger: newLedger(), tel: tel, jobs: map[protocol.JobID]*Job{}}, nil
}

// SetPool says how many shards the live workers of a pool can execute at once.
func (p *Publisher) SetPool(pool string, slots, workers int) {
	p.ledger.setPool(pool, capacity{slots: slots, workers: workers})
}

// Pool returns what SetPool said last.
func (p *Publisher) Pool(pool string) (slots, workers int) {
	c := p.ledger.pool(pool)
	return c.slots, c.workers
}

// GiveBack gives n credits of a job back. It takes one short lock, so that it may
// be called within an update of the view.
func (p *Publisher) GiveBack(id protocol.JobID, n int) { p.ledger.giveBack(id, n) }

// Job is the publishing side of one job. TakeOver, Publish and Purge are called
// by one goroutine; the other methods may be called by any.
type Job struct {
	p  *Publisher
	id protocol.JobID

	// storing is held from the decision what a batch contains until the view shows
	// the batch, so that two batches of a job never mix.
	storing   sync.Mutex
	cursor    protocol.Cursor // as stored; written by the job's one goroutine, with storing held
	cursorSeq uint64          // guarded by storing

	large     sync.Map      // shardID: shards of which this leader made objects that still stand
	spanEvery atomic.Uint64 // one shard in so many gets a span; changes only between feeds
}

// Open lists the shards of a job that are published and have no result, and
// gives the job its credit for them.
func (p *Publisher) Open(id protocol.JobID) *Job {
	j := &Job{p: p, id: id}
	now := p.cfg.Now()
	// Results that come meanwhile wait for the update.
	p.rec.Update(func(t state.Tx) {
		row, _ := t.Job(id)
		n := 0
		for _, ph := range protocol.Order(false) {
			phase := t.Phase(id, ph)
			for i := range phase.Published {
				if !phase.Done.Has(i) {
					n++
					t.PutOpen(state.Open{Job: row.ID, Phase: ph, N: i, Published: now})
				}
			}
		}
		spec := row.Record.Spec
		p.ledger.add(id, spec.Pool, spec.Priority, spec.MaxWorkers, n)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobs[id] = j
	return j
}

// Close ends a job's account; its credit goes to others.
func (j *Job) Close() {
	j.p.ledger.drop(j.id)
	j.p.mu.Lock()
	defer j.p.mu.Unlock()
	delete(j.p.jobs, j.id)
}

// open returns the jobs that are open.
func (p *Publisher) open() []*Job {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*Job, 0, len(p.jobs))
	for _, j := range p.jobs {
		out = append(out, j)
	}
	return out
}

// record returns the job's record.
func (j *Job) record() protocol.JobRecord {
	row, _ := j.p.rec.Job(j.id)
	return row.Record
}

// Cursor returns how far the job is published. It is called by the job's one
// goroutine.
func (j *Job) Cursor() protocol.Cursor { return j.cursor }

// Purge removes all that is queued of the job, and gives its credit back; it
// tries until that is done. What workers have by then stays theirs until they
// answer or their leases end.
func (j *Job) Purge(ctx context.Context) error {
	for {
		err := j.p.cfg.Bus.Purge(ctx, protocol.StreamShards, protocol.JobShards(j.id), 0)
		if err == nil {
			j.p.rec.Stall(j.id, records.StallPublish, "")
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		j.p.rec.Stall(j.id, records.StallPublish, "queued shards cannot be removed: "+err.Error())
		if !bus.Sleep(ctx, records.RetryWait) {
			return context.Cause(ctx)
		}
	}
}

// GiveUpOpen takes the shards that have no result out of the view and gives
// their credit back: nothing of them can come any more.
func (j *Job) GiveUpOpen() {
	j.p.rec.Update(func(t state.Tx) {
		n := 0
		for o := range t.OpenOf(j.id) {
			if t.Close(j.id, o.Phase, o.N) {
				n++
			}
		}
		j.p.ledger.giveBack(j.id, n)
	})
}

// Sweep removes what is queued of a phase all of whose results are there: a
// shard that is delivered once more would be executed for nothing.
func (j *Job) Sweep(ctx context.Context, p protocol.Phase) {
	j.storing.Lock()
	defer j.storing.Unlock()
	subject := protocol.PhaseShards(protocol.ClassStandard, j.record().Spec.Pool, j.id, p)
	if err := j.p.cfg.Bus.Purge(ctx, protocol.StreamShards, subject, 0); err != nil {
		j.p.log.Debug("remove answered shards from the queue", "job", j.id, "phase", p, "error", err)
	}
}

// DropLarge removes the objects of answered shards. What cannot be removed now is
// tried again, at the latest when nothing needs it any more.
func (j *Job) DropLarge(ctx context.Context) {
	for key := range j.large.Range {
		id, _ := key.(shardID) // nothing else is put there
		answered := false
		j.p.rec.View(func(t state.Tx) {
			row, _ := t.Job(j.id)
			answered = row.Record.State.Final() || t.Phase(j.id, id.phase).Done.Has(id.n)
		})
		if !answered {
			continue
		}
		if err := j.p.rec.Objects().Delete(ctx, protocol.ShardObject(id.job, id.phase, id.n)); err != nil {
			j.p.log.Debug("object of an answered shard stays for now", "job", j.id, "phase", id.phase, "shard", id.n, "error", err)
			return
		}
		j.large.Delete(id)
	}
}
