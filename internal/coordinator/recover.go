package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// loadJobs fills the view from the buckets and takes over the jobs that have
// not ended.
func (c *Coordinator) loadJobs(ctx context.Context) error {
	var jobs []state.Job
	err := c.jobs.Each(ctx, "job.*", func(key string, value []byte, rev uint64) error {
		var rec protocol.JobRecord
		if err := json.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read job record", Path: key, Err: err}
		}
		jobs = append(jobs, newRow(rec, rev))
		return nil
	})
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if err := c.loadFiles(ctx, &j); err != nil {
			return err
		}
		c.update(func(t state.Tx) { t.PutJob(j) })
		if j.Record.State.Final() {
			continue
		}
		if err := c.loadCursor(ctx, j); err != nil {
			return err
		}
		if err := c.save(ctx, j.Record.ID, func(rec *protocol.JobRecord) { rec.Epoch++ }); err != nil {
			return err
		}
	}
	return nil
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

func (c *Coordinator) loadFiles(ctx context.Context, j *state.Job) error {
	if j.Record.State.Final() {
		return nil // read from the bucket when somebody asks
	}
	return c.jobs.Each(ctx, protocol.FileKeys(j.Record.ID), func(key string, value []byte, _ uint64) error {
		var rec protocol.FileRecord
		if err := json.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read control file record", Path: key, Err: err}
		}
		if rec.Index >= j.Record.Files {
			return nil // written by an append that was not completed
		}
		j.HasCopy = j.HasCopy || rec.Ref.Phase == protocol.PhaseCopy
		c.update(func(t state.Tx) { t.PutFile(state.File{Job: j.ID, Index: rec.Index, Record: rec}) })
		return nil
	})
}

// loadCursor restores how far a job's phases are published.
func (c *Coordinator) loadCursor(ctx context.Context, j state.Job) error {
	rows := map[protocol.Phase]state.Phase{}
	for p, rec := range j.Record.Phases {
		rows[p] = state.Phase{Job: j.ID, Kind: p, Published: rec.Shards, Sealed: rec.Complete, Started: rec.Started, Ended: rec.Ended}
	}
	m, err := c.cfg.Bus.Last(ctx, protocol.StreamShards, protocol.CursorSubject(j.Record.ID))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	if err == nil {
		var cur protocol.Cursor
		if err := json.Unmarshal(m.Data, &cur); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read the cursor of job", Path: j.ID, Err: err}
		}
		if cur.Phase != 0 { // else nothing is published
			row := rows[cur.Phase]
			row.Job, row.Kind, row.Published, row.Sealed = j.ID, cur.Phase, cur.Next, cur.Done
			rows[cur.Phase] = row
		}
		j.Phase, j.CutBytes = cur.Phase, cur.Bytes
	}
	c.update(func(t state.Tx) {
		t.PutJob(j)
		for _, row := range rows {
			t.PutPhase(row)
		}
	})
	return nil
}

// startRunners begins or resumes all jobs that have not ended.
func (c *Coordinator) startRunners() {
	var ids []protocol.JobID
	c.view(func(t state.Tx) {
		for j := range t.Jobs() {
			if !j.Record.State.Final() {
				ids = append(ids, j.Record.ID)
			}
		}
	})
	for _, id := range ids {
		c.startRunner(id)
	}
}

func (c *Coordinator) startRunner(id protocol.JobID) {
	r := &runner{c: c, id: id, log: c.log, changed: make(chan struct{})}
	c.openAccount(r.job())
	c.mu.Lock()
	c.runners[id] = r
	group, ctx := c.group, c.ctx
	c.mu.Unlock()
	group.Go(func() error { return r.run(ctx) })
}

// openAccount lists the shards that are published and have no result, and gives
// the job its credit for them. Results that come meanwhile wait for the update.
func (c *Coordinator) openAccount(j state.Job) {
	n := 0
	now := c.now()
	c.update(func(t state.Tx) {
		for _, p := range protocol.Order(false) {
			row := t.Phase(j.Record.ID, p)
			for i := range row.Published {
				if !row.Done.Has(i) {
					n++
					t.PutOpen(state.Open{Job: j.ID, Phase: p, N: i, Published: now})
				}
			}
		}
		c.ledger.add(j.Record.ID, j.Record.Spec.Pool, j.Record.Spec.Priority, j.Record.Spec.MaxWorkers, n)
	})
}

func (c *Coordinator) runner(id protocol.JobID) *runner {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runners[id]
}

func (c *Coordinator) forget(id protocol.JobID) {
	c.ledger.drop(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.runners, id)
	delete(c.roots, id)
}

func (c *Coordinator) allRunners() []*runner {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.runners))
}

// pokeAll makes every runner look again.
func (c *Coordinator) pokeAll() {
	for _, r := range c.allRunners() {
		r.poke()
	}
}

// save changes a job's record, durably and then visibly.
func (c *Coordinator) save(ctx context.Context, id protocol.JobID, f func(*protocol.JobRecord)) error {
	return c.transition(ctx, id, func(rec *protocol.JobRecord) error { f(rec); return nil })
}

// transition changes a job's record unless f refuses. Only the leader writes
// records, so a lost compare-and-swap means that it leads no longer.
func (c *Coordinator) transition(ctx context.Context, id protocol.JobID, f func(*protocol.JobRecord) error) error {
	c.saving.Lock()
	defer c.saving.Unlock()
	var j state.Job
	known := false
	c.view(func(t state.Tx) { j, known = t.Job(id) })
	if !known {
		return noSuchJob(id)
	}
	rec := j.Record
	rec.Phases = maps.Clone(rec.Phases)
	if err := f(&rec); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return fault.New(fault.Internal, "encode record of job %s: %w", id, err)
	}
	rev, err := c.swapRecord(ctx, id, rec, data, j.Revision)
	if err != nil {
		return err
	}
	c.update(func(t state.Tx) {
		j, ok := t.Job(id)
		if !ok {
			return
		}
		j.Record, j.Revision = rec, rev
		t.PutJob(j)
	})
	if r := c.runner(id); r != nil {
		r.poke()
	}
	return nil
}

// swapRecord writes a record, trying again while NATS cannot be reached.
func (c *Coordinator) swapRecord(ctx context.Context, id protocol.JobID, rec protocol.JobRecord, data []byte, rev uint64) (uint64, error) {
	for {
		next, err := c.jobs.Swap(ctx, protocol.JobKey(id), data, rev)
		if err == nil {
			return next, nil
		}
		if errors.Is(err, bus.ErrConflict) {
			held, at, gerr := c.jobs.Get(ctx, protocol.JobKey(id))
			var got protocol.JobRecord
			if gerr == nil && at > rev && json.Unmarshal(held, &got) == nil && sameRecord(got, rec) {
				return at, nil // ours: the answer was lost
			}
			if gerr == nil {
				return 0, &fault.Error{Kind: fault.Stale, Op: "write record of job", Path: string(id), Err: errors.New("another coordinator has written it")}
			}
			err = gerr
		}
		c.log.Warn("a job's record cannot be written, trying again", "job", id, "error", err)
		if !sleepOrDone(ctx) {
			return 0, context.Cause(ctx)
		}
	}
}

func sameRecord(a, b protocol.JobRecord) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && reflect.DeepEqual(x, y)
}

func sleepOrDone(ctx context.Context) bool { return bus.Sleep(ctx, retryWait) }

func noSuchJob(id protocol.JobID) error {
	return fault.Hinted(fault.NotFound, "list jobs with: fsbackup jobs", "there is no job %s", id)
}

// overlapping returns an earlier job of the same pool that has not ended and
// whose destination contains, or lies in, that of j.
func overlapping(t state.Tx, j state.Job) (protocol.JobID, bool) {
	if j.Record.Spec.AllowOverlap {
		return "", false
	}
	for o := range t.Jobs() {
		if o.Record.Spec.VerifyOnly && j.Record.Spec.VerifyOnly {
			continue // neither changes anything
		}
		if o.ID >= j.ID || o.Record.State.Final() || o.Record.Spec.AllowOverlap || o.Record.Spec.Pool != j.Record.Spec.Pool {
			continue
		}
		if contains(o.Record.Spec.Destination, j.Record.Spec.Destination) || contains(j.Record.Spec.Destination, o.Record.Spec.Destination) {
			return o.Record.ID, true
		}
	}
	return "", false
}

// contains reports whether path p is dir or lies in it.
func contains(dir, p string) bool {
	dir, p = path.Clean(dir), path.Clean(p)
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
