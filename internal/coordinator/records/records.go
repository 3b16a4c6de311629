// Package records owns what is durable of jobs and their control files, and the
// view of it that a coordinator decides by. It is the only writer of FSB_JOBS
// and the only one that removes what a job leaves in the other stores.
//
// Every write replaces a known revision, so that one of a coordinator that leads
// no more is refused. Whoever waits for a change of a job waits here.
package records

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// RetryWait paces what is tried again until it works.
const RetryWait = time.Second

// Config is what Records are made of.
type Config struct {
	Bus *bus.Bus
	Dir string // for uploaded control and meta files
	// Keep is how long ended jobs are kept, and KeepJobs how many.
	Keep     time.Duration
	KeepJobs int
	Leads    func() bool // no other coordinator can lead yet
	Now      func() time.Time
	Logger   *slog.Logger
	// Changed is called, without any lock held, after what watchers see of a job
	// has changed; at once says that they must not miss it.
	Changed func(id protocol.JobID, atOnce bool)
}

// Records are the records of all jobs. Methods may be called concurrently.
//
// Order of the locks: a job's submission, placing, checkpointMu, writing. Under any
// of them the view may be read and changed, and submitMu and waitersMu are taken
// for a moment. None is held while another part of the coordinator is called.
type Records struct {
	cfg     Config
	log     *slog.Logger
	st      *state.Store
	jobs    *bus.KV
	objects *bus.Objects

	writing sync.Mutex   // held while a record is replaced
	placing sync.RWMutex // held for reading from where an uploaded file is found until its job names it

	waitersMu sync.Mutex
	waiters   map[protocol.JobID]chan struct{} // closed when something of the job changes; guarded by waitersMu

	submitMu sync.Mutex
	submits  map[protocol.JobID]chan struct{} // jobs that are created or extended now; guarded by submitMu

	checkpointMu sync.Mutex
	checkpoints  map[protocol.JobID]revision // as the bucket has them; guarded by checkpointMu
}

// New binds to the buckets, which must exist.
func New(ctx context.Context, cfg Config) (*Records, error) {
	r := &Records{cfg: cfg, log: cfg.Logger, st: state.New(), waiters: map[protocol.JobID]chan struct{}{}, submits: map[protocol.JobID]chan struct{}{}, checkpoints: map[protocol.JobID]revision{}}
	var err error
	if r.jobs, err = cfg.Bus.KV(ctx, protocol.BucketJobs); err != nil {
		return nil, err
	}
	r.objects, err = cfg.Bus.Objects(ctx, protocol.BucketObjects)
	return r, err
}

// Objects is the bucket of uploaded files and of messages that exceed the payload limit.
func (r *Records) Objects() *bus.Objects { return r.objects }

// View calls f with a consistent view.
func (r *Records) View(f func(state.Tx)) {
	_ = r.st.View(func(t state.Tx) error { f(t); return nil }) // f has no error to give
}

// Update calls f and makes its changes visible together. f must do no I/O. What
// f changes is not durable: it is rebuilt from the streams by the next leader.
func (r *Records) Update(f func(state.Tx)) {
	_ = r.st.Update(func(t state.Tx) error { f(t); return nil }) // f has no error to give
}

// Job returns a job's row; false where there is no such job.
func (r *Records) Job(id protocol.JobID) (j state.Job, ok bool) {
	r.View(func(t state.Tx) { j, ok = t.Job(id) })
	return j, ok
}

// Poke tells everybody who waits for the job to look again.
func (r *Records) Poke(id protocol.JobID) {
	r.waitersMu.Lock()
	defer r.waitersMu.Unlock()
	if c := r.waiters[id]; c != nil {
		close(c)
		delete(r.waiters, id)
	}
}

// PokeAll is Poke for all jobs.
func (r *Records) PokeAll() {
	r.waitersMu.Lock()
	defer r.waitersMu.Unlock()
	for _, c := range r.waiters {
		close(c)
	}
	clear(r.waiters)
}

// watch returns a channel that the next poke closes.
func (r *Records) watch(id protocol.JobID) <-chan struct{} {
	r.waitersMu.Lock()
	defer r.waitersMu.Unlock()
	c := r.waiters[id]
	if c == nil {
		c = make(chan struct{})
		r.waiters[id] = c
	}
	return c
}

// Await returns once cond holds, or with the cause of ctx. cond is asked again
// after each poke of the job.
func (r *Records) Await(ctx context.Context, id protocol.JobID, cond func(state.Tx, state.Job) bool) error {
	for {
		changed := r.watch(id)
		ok := false
		r.View(func(t state.Tx) {
			j, _ := t.Job(id)
			ok = cond(t, j)
		})
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Load fills the view from the bucket and takes the jobs over that have not
// ended: their epoch is raised. It returns these.
func (r *Records) Load(ctx context.Context) ([]protocol.JobID, error) {
	var rows []state.Job
	err := r.jobs.Each(ctx, "job.*", func(key string, value []byte, rev uint64) error {
		var rec protocol.JobRecord
		if err := rawjson.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read job record", Path: key, Err: err}
		}
		if rec.State == protocol.StateCancelling { // of a version before there was an ending
			rec.State = protocol.StateEnding
			rec.Ending = &protocol.Ending{State: protocol.StateCancelled, Reason: rec.Reason}
		}
		rows = append(rows, newRow(rec, rev))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var alive []protocol.JobID
	for _, j := range rows {
		if err := r.loadFiles(ctx, &j); err != nil {
			return nil, err
		}
		r.Update(func(t state.Tx) { t.PutJob(j) })
		if j.Record.State.Final() {
			continue
		}
		alive = append(alive, j.Record.ID)
		if err := r.Save(ctx, j.Record.ID, func(rec *protocol.JobRecord) { rec.Epoch++ }); err != nil {
			return nil, err
		}
	}
	return alive, nil
}

func newRow(rec protocol.JobRecord, rev uint64) state.Job {
	j := state.Job{ID: string(rec.ID), Record: rec, Revision: rev}
	if rec.Stats != nil {
		j.Stats = *rec.Stats
	}
	if len(rec.Warnings) > 0 {
		j.Warnings = map[string]protocol.Warning{}
		for _, w := range rec.Warnings {
			j.Warnings[w.Kind] = w
		}
	}
	return j
}

// Save changes a job's record, durably and then visibly.
func (r *Records) Save(ctx context.Context, id protocol.JobID, f func(*protocol.JobRecord)) error {
	return r.Change(ctx, id, func(rec *protocol.JobRecord) error { f(rec); return nil })
}

// Change is Save unless f refuses with an error, which is returned. Only the
// leader writes records, so a lost compare-and-swap means that this coordinator
// leads no more: the error is fault.Stale. While NATS cannot be reached it tries
// again, until ctx ends.
func (r *Records) Change(ctx context.Context, id protocol.JobID, f func(*protocol.JobRecord) error) error {
	if err := r.change(ctx, id, f); err != nil {
		return err
	}
	r.Poke(id)
	return nil
}

func (r *Records) change(ctx context.Context, id protocol.JobID, f func(*protocol.JobRecord) error) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	j, known := r.Job(id)
	if !known {
		return NoSuchJob(id)
	}
	rec := j.Record
	rec.Order = j.Order()
	rec.Phases = maps.Clone(rec.Phases)
	if err := f(&rec); err != nil {
		return err
	}
	data, err := rawjson.Marshal(rec)
	if err != nil {
		return fault.New(fault.Internal, "encode record of job %s: %w", id, err)
	}
	rev, err := r.swap(ctx, protocol.JobKey(id), data, j.Revision)
	if err != nil {
		return err
	}
	r.Update(func(t state.Tx) {
		j, ok := t.Job(id)
		if !ok {
			return
		}
		j.Record, j.Revision = rec, rev
		t.PutJob(j)
	})
	return nil
}

// swap replaces the value of a key at revision rev, 0 = there is none, trying
// again while NATS cannot be reached. A write whose answer was lost is found to
// be ours by its bytes.
func (r *Records) swap(ctx context.Context, key string, data []byte, rev uint64) (uint64, error) {
	for {
		next, err := r.jobs.Swap(ctx, key, data, rev)
		if err == nil {
			return next, nil
		}
		if errors.Is(err, bus.ErrConflict) {
			is, at, gerr := r.jobs.Get(ctx, key)
			if gerr == nil && at > rev && string(is) == string(data) {
				return at, nil
			}
			if errors.Is(gerr, bus.ErrNotFound) && r.cfg.Leads() {
				rev = 0 // the bucket was removed, and has been made anew
				continue
			}
			if gerr == nil || errors.Is(gerr, bus.ErrNotFound) {
				return 0, &fault.Error{Kind: fault.Stale, Op: "write record", Path: key, Err: errors.New("another coordinator has written it")}
			}
			err = gerr
		}
		r.log.Warn("a record cannot be written, trying again", "key", key, "error", err)
		if !bus.Sleep(ctx, RetryWait) {
			return 0, context.Cause(ctx)
		}
	}
}

// WriteAgain writes the records of all jobs and of their control files that are
// known into a bucket that somebody removed and that has been made anew. Marks and
// checkpoints cost time only.
func (r *Records) WriteAgain(ctx context.Context) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	var jobs []state.Job
	var files []state.File
	r.View(func(t state.Tx) {
		for j := range t.Jobs() {
			jobs = append(jobs, j)
			for f := range t.Files(j.Record.ID) {
				files = append(files, f)
			}
		}
	})
	write := func(key string, v any, rev uint64) (uint64, error) {
		if _, at, err := r.jobs.Get(ctx, key); err == nil && at == rev {
			return at, nil // written since
		}
		data, err := rawjson.Marshal(v)
		if err != nil {
			return 0, fault.New(fault.Internal, "encode %s: %w", key, err)
		}
		return r.swap(ctx, key, data, 0)
	}
	var err error
	for _, f := range files { // before the jobs that name them
		if f.Revision, err = write(protocol.FileKey(protocol.JobID(f.Job), f.Index), f.Record, f.Revision); err != nil {
			return err
		}
		r.Update(func(t state.Tx) { t.PutFile(f) })
	}
	for _, j := range jobs {
		j.Record.Order = j.Order()
		rev, err := write(protocol.JobKey(j.Record.ID), j.Record, j.Revision)
		if err != nil {
			return err
		}
		r.Update(func(t state.Tx) {
			if row, ok := t.Job(j.Record.ID); ok {
				row.Record.Order, row.Revision = j.Record.Order, rev
				t.PutJob(row)
			}
		})
	}
	return nil
}

// NoSuchJob is the error for a job that is not known.
func NoSuchJob(id protocol.JobID) error {
	return fault.Hinted(fault.NotFound, "list jobs with: fsbackup jobs", "there is no job %s", id)
}

// dir is where a job's uploaded files are kept.
func (r *Records) dir(job protocol.JobID) string {
	return filepath.Join(r.cfg.Dir, "jobs", string(job))
}
