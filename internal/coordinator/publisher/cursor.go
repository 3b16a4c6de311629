package publisher

import (
	"bytes"
	"context"
	"errors"

	"go.opentelemetry.io/otel/propagation"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Load restores in the view how far a job's phases are published.
func (p *Publisher) Load(ctx context.Context, id protocol.JobID) error {
	row, _ := p.rec.Job(id)
	phases := map[protocol.Phase]state.Phase{}
	for ph, rec := range row.Record.Phases {
		phases[ph] = state.Phase{Job: row.ID, Kind: ph, Published: rec.Shards, Sealed: rec.Complete, Started: rec.Started, Ended: rec.Ended}
	}
	m, err := p.cfg.Bus.Last(ctx, protocol.StreamShards, protocol.CursorSubject(id))
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	if err == nil {
		var cur protocol.Cursor
		if err := rawjson.Unmarshal(m.Data, &cur); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read the cursor of job", Path: row.ID, Err: err}
		}
		if cur.Phase != 0 { // else nothing is published
			ph := phases[cur.Phase]
			ph.Job, ph.Kind, ph.Published, ph.Sealed = row.ID, cur.Phase, cur.Next, cur.Done
			phases[cur.Phase] = ph
		}
		row.Phase, row.CutBytes = cur.Phase, cur.Bytes
	}
	p.rec.Update(func(t state.Tx) {
		t.PutJob(row)
		for _, ph := range phases {
			t.PutPhase(ph)
		}
	})
	return nil
}

// TakeOver reads the job's cursor, and makes it and the view this leader's.
func (j *Job) TakeOver(ctx context.Context) error {
	if err := j.readCursor(ctx); err != nil {
		return err
	}
	j.recount()
	return nil
}

// readCursor reads the job's cursor and stores it with a new epoch. From then on
// the server refuses every batch that the previous leader may still send. A job
// without a cursor gets one, for the same reason.
func (j *Job) readCursor(ctx context.Context) error {
	epoch := j.record().Epoch
	subject := protocol.CursorSubject(j.id)
	for {
		var cur protocol.Cursor
		m, err := j.p.cfg.Bus.Last(ctx, protocol.StreamShards, subject)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			if cur, err = j.beginAnew(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			if err := rawjson.Unmarshal(m.Data, &cur); err != nil {
				return &fault.Error{Kind: fault.Corrupt, Op: "read the cursor of job", Path: string(j.id), Err: err}
			}
		}
		if cur.Epoch > epoch {
			return j.superseded("take over the cursor of job")
		}
		cur.Epoch = epoch
		data, err := rawjson.Marshal(cur)
		if err != nil {
			return fault.New(fault.Internal, "encode cursor: %w", err)
		}
		j.storing.Lock()
		seq, err := j.p.cfg.Bus.PublishBatch(ctx, nil, bus.Message{Subject: subject, Data: data}, m.Sequence)
		if err == nil {
			j.cursor, j.cursorSeq = cur, seq
		}
		j.storing.Unlock()
		switch {
		case err == nil:
			j.p.rec.Stall(j.id, records.StallPublish, "")
			return nil
		case !errors.Is(err, bus.ErrConflict):
			return err
		case !j.p.cfg.Leads():
			return j.superseded("take over the cursor of job")
		}
		// The leader before has published one more batch, or this is the answer to
		// an attempt whose own was lost.
	}
}

func (j *Job) superseded(op string) error {
	return &fault.Error{Kind: fault.Stale, Op: op, Path: string(j.id), Err: errors.New("another coordinator has moved the cursor")}
}

// beginAnew returns the cursor for a job that has none. The job is new, or somebody
// removed its cursor from the stream. In that case the current phase is cut again
// from its start. Shards that have a result are not published again.
func (j *Job) beginAnew(ctx context.Context) (protocol.Cursor, error) {
	var cur protocol.Cursor
	begun := false
	j.p.rec.View(func(t state.Tx) {
		row, _ := t.Job(j.id)
		for _, p := range row.Record.Phases {
			begun = true
			cur.Bytes = max(cur.Bytes, p.Bytes)
		}
		for f := range t.Files(j.id) {
			begun = begun || len(f.Record.FirstN) > 0
		}
	})
	if !begun {
		return cur, nil
	}
	j.p.log.Warn("the job's cursor is gone from the stream, its phase is cut from the start again", "job", j.id)
	return cur, j.Purge(ctx)
}

// recount makes the view agree with the cursor: what is published, what of it is
// open, and the job's credit for that.
func (j *Job) recount() {
	cur, now := j.cursor, j.p.cfg.Now()
	j.p.rec.Update(func(t state.Tx) {
		row, _ := t.Job(j.id)
		open := 0
		phase := t.Phase(j.id, cur.Phase)
		if cur.Phase != 0 {
			phase.Published, phase.Sealed = cur.Next, cur.Done
			t.PutPhase(phase)
		}
		row.CutBytes = cur.Bytes // also of a cursor made anew, whose phases may all be complete
		t.PutJob(row)
		for o := range t.OpenOf(j.id) {
			if o.Phase != cur.Phase || o.N >= cur.Next || phase.Done.Has(o.N) {
				t.Close(j.id, o.Phase, o.N)
			}
		}
		for n := range cur.Next {
			if phase.Done.Has(n) {
				continue
			}
			open++
			if _, ok := t.Open(j.id, cur.Phase, n); !ok {
				t.PutOpen(state.Open{Job: string(j.id), Phase: cur.Phase, N: n, Published: now})
			}
		}
		spec := row.Record.Spec
		j.p.ledger.add(j.id, spec.Pool, spec.Priority, spec.MaxWorkers, open)
	})
}

// store publishes a batch with its cursor, exactly once. It tries until the batch
// is stored, or until the cursor shows that another coordinator leads.
func (j *Job) store(ctx context.Context, batch []cutShard, cursor protocol.Cursor) error {
	data, err := rawjson.Marshal(cursor)
	if err != nil {
		return fault.New(fault.Internal, "encode cursor: %w", err)
	}
	ctx, span := j.p.tel.startBatch(ctx, j.id, cursor.Phase, len(batch))
	defer span.End()
	msgs, size := make([]bus.Message, len(batch)), 0
	for i, b := range batch {
		msgs[i] = b.msg
		size += sizeOf(b.msg)
		propagation.TraceContext{}.Inject(ctx, protocol.Carrier(msgs[i].Header))
	}
	j.registerOpen(batch, cursor)
	waited := j.p.cfg.Now()
	for {
		err := j.storeOnce(ctx, batch, msgs, size, cursor, data)
		if err == nil {
			j.p.rec.Stall(j.id, records.StallPublish, "")
			return nil
		}
		if fault.Is(err, fault.Stale) || ctx.Err() != nil {
			return err
		}
		pause := records.RetryWait
		if errors.Is(err, bus.ErrFull) {
			pause = roomWait // workers make room all the time
		}
		if j.p.cfg.Now().Sub(waited) >= records.RetryWait || pause == records.RetryWait {
			j.p.rec.Stall(j.id, records.StallPublish, "shards cannot be published: "+err.Error())
		}
		if !bus.Sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

func (j *Job) storeOnce(ctx context.Context, batch []cutShard, msgs []bus.Message, size int, cursor protocol.Cursor, data []byte) error {
	if len(msgs) > 0 {
		free, err := j.p.reserve(ctx, size)
		if err != nil {
			return err
		}
		defer free()
	}
	j.storing.Lock()
	defer j.storing.Unlock()
	seq, err := j.commit(ctx, msgs, data)
	if err != nil {
		return err
	}
	j.cursor = cursor
	j.noteSequences(batch, seq)
	return nil
}

// commit publishes messages with a cursor. After an error it may turn out later
// that they were stored after all: the next call finds that out. It is called with
// storing held.
func (j *Job) commit(ctx context.Context, msgs []bus.Message, data []byte) (uint64, error) {
	subject := protocol.CursorSubject(j.id)
	// A cancel must not leave it open whether the batch was stored.
	whole := context.WithoutCancel(ctx)
	seq, err := j.p.cfg.Bus.PublishBatch(whole, msgs, bus.Message{Subject: subject, Data: data}, j.cursorSeq)
	if err != nil {
		seq, err = j.stored(ctx, subject, data, err)
	}
	if err == nil {
		j.cursorSeq = seq
	}
	return seq, err
}

// stored finds out whether a batch whose publishing gave an error was stored.
func (j *Job) stored(ctx context.Context, subject string, data []byte, cause error) (uint64, error) {
	m, err := j.p.cfg.Bus.Last(context.WithoutCancel(ctx), protocol.StreamShards, subject)
	if errors.Is(err, bus.ErrNotFound) && j.cursorSeq > 0 {
		return 0, j.cursorGone(ctx)
	}
	if err != nil || m.Sequence == j.cursorSeq {
		return 0, cause
	}
	if bytes.Equal(m.Data, data) {
		return m.Sequence, nil
	}
	// Shards that were published again moved the cursor without changing it, and
	// the answer to that was lost: see republish.
	if was, err := rawjson.Marshal(j.cursor); err == nil && bytes.Equal(m.Data, was) {
		j.cursorSeq = m.Sequence
		return 0, fault.New(fault.Transient, "the cursor of job %s has moved to %d", j.id, m.Sequence)
	}
	return 0, j.superseded("publish shards of job")
}

// cursorGone is called when somebody removed the job's cursor from the stream. The
// next batch makes a new one. Without a cursor, only a write of the job's record
// proves that this coordinator still leads.
func (j *Job) cursorGone(ctx context.Context) error {
	if err := j.p.rec.Save(ctx, j.id, func(*protocol.JobRecord) {}); err != nil {
		return err
	}
	j.p.log.Warn("the job's cursor is gone from the stream and is written again", "job", j.id, "was", j.cursorSeq)
	j.cursorSeq = 0
	return fault.New(fault.Transient, "the cursor of job %s is gone", j.id)
}
