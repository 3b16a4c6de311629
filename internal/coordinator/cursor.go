package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"go.opentelemetry.io/otel/propagation"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// readCursor takes the job's cursor over: a new epoch in it refuses every batch
// that the leader before may still have under way. Where there is none it makes
// one, for the same reason.
func (r *runner) readCursor(ctx context.Context) error {
	epoch := r.job().Record.Epoch
	subject := protocol.CursorSubject(r.id)
	for {
		var cur protocol.Cursor
		m, err := r.c.cfg.Bus.Last(ctx, protocol.StreamShards, subject)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			if cur, err = r.beginAnew(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			if err := json.Unmarshal(m.Data, &cur); err != nil {
				return &fault.Error{Kind: fault.Corrupt, Op: "read the cursor of job", Path: string(r.id), Err: err}
			}
		}
		if cur.Epoch > epoch {
			return r.superseded("take over the cursor of job")
		}
		cur.Epoch = epoch
		data, err := json.Marshal(cur)
		if err != nil {
			return fault.New(fault.Internal, "encode cursor: %w", err)
		}
		r.storing.Lock()
		seq, err := r.c.cfg.Bus.PublishBatch(ctx, nil, bus.Message{Subject: subject, Data: data}, m.Sequence)
		if err == nil {
			r.cursor, r.cursorSeq = cur, seq
		}
		r.storing.Unlock()
		switch {
		case err == nil:
			r.c.stall(r.id, stallPublish, "")
			return nil
		case !errors.Is(err, bus.ErrConflict):
			return err
		case !r.c.leads():
			return r.superseded("take over the cursor of job")
		}
		// The leader before has published one more batch, or this is the answer to
		// an attempt whose own was lost.
	}
}

func (r *runner) superseded(op string) error {
	return &fault.Error{Kind: fault.Stale, Op: op, Path: string(r.id), Err: errors.New("another coordinator has moved the cursor")}
}

// beginAnew gives the cursor of a job that has none: a new one, or one whose
// cursor somebody took out of the stream. Then its current phase is cut from its
// start, and what has its result is not published a second time.
func (r *runner) beginAnew(ctx context.Context) (protocol.Cursor, error) {
	var cur protocol.Cursor
	begun := false
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		for _, p := range j.Record.Phases {
			begun = true
			cur.Bytes = max(cur.Bytes, p.Bytes)
		}
		for f := range t.Files(r.id) {
			begun = begun || len(f.Record.FirstN) > 0
		}
	})
	if !begun {
		return cur, nil
	}
	r.log.Warn("the job's cursor is gone from the stream, its phase is cut from the start again", "job", r.id)
	return cur, r.purgeShards(ctx)
}

// recount makes the view agree with the cursor: what is published, what of it is
// open, and the job's credit for that.
func (r *runner) recount() {
	cur, now := r.cursor, r.c.now()
	r.c.update(func(t state.Tx) {
		j, _ := t.Job(r.id)
		open := 0
		row := t.Phase(r.id, cur.Phase)
		if cur.Phase != 0 {
			row.Published, row.Sealed = cur.Next, cur.Done
			t.PutPhase(row)
		}
		j.CutBytes = cur.Bytes // also of a cursor made anew, whose phases may all be complete
		t.PutJob(j)
		for o := range t.OpenOf(r.id) {
			if o.Phase != cur.Phase || o.N >= cur.Next || row.Done.Has(o.N) {
				t.Close(r.id, o.Phase, o.N)
			}
		}
		for n := range cur.Next {
			if row.Done.Has(n) {
				continue
			}
			open++
			if _, ok := t.Open(r.id, cur.Phase, n); !ok {
				t.PutOpen(state.Open{Job: string(r.id), Phase: cur.Phase, N: n, Published: now})
			}
		}
		spec := j.Record.Spec
		r.c.ledger.add(r.id, spec.Pool, spec.Priority, spec.MaxWorkers, open)
	})
}

// store publishes a batch with its cursor, exactly once: it tries again until
// it is stored, or until the cursor shows that another coordinator leads.
func (r *runner) store(ctx context.Context, batch []ready, cursor protocol.Cursor) error {
	data, err := json.Marshal(cursor)
	if err != nil {
		return fault.New(fault.Internal, "encode cursor: %w", err)
	}
	ctx, span := r.c.tel.startBatch(ctx, r.id, cursor.Phase, len(batch))
	defer span.End()
	msgs, size := make([]bus.Message, len(batch)), 0
	for i, b := range batch {
		msgs[i] = b.msg
		size += sizeOf(b.msg)
		propagation.TraceContext{}.Inject(ctx, protocol.Carrier(msgs[i].Header))
	}
	r.registerOpen(batch, cursor)
	waited := r.c.now()
	for {
		err := r.storeOnce(ctx, batch, msgs, size, cursor, data)
		if err == nil {
			r.c.stall(r.id, stallPublish, "")
			return nil
		}
		if fault.Is(err, fault.Stale) || ctx.Err() != nil {
			return err
		}
		pause := retryWait
		if errors.Is(err, bus.ErrFull) {
			pause = roomWait // workers make room all the time
		}
		if r.c.now().Sub(waited) >= retryWait || pause == retryWait {
			r.c.stall(r.id, stallPublish, "shards cannot be published: "+err.Error())
		}
		if !bus.Sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

func (r *runner) storeOnce(ctx context.Context, batch []ready, msgs []bus.Message, size int, cursor protocol.Cursor, data []byte) error {
	if len(msgs) > 0 {
		free, err := r.c.reserve(ctx, size)
		if err != nil {
			return err
		}
		defer free()
	}
	r.storing.Lock()
	defer r.storing.Unlock()
	seq, err := r.commit(ctx, msgs, data)
	if err != nil {
		return err
	}
	r.cursor = cursor
	r.noteSequences(batch, seq)
	return nil
}

// commit publishes messages with a cursor. After an error they are not stored,
// or it will show later that they were. It is called with storing held.
func (r *runner) commit(ctx context.Context, msgs []bus.Message, data []byte) (uint64, error) {
	subject := protocol.CursorSubject(r.id)
	// A cancel must not leave it open whether the batch was stored.
	whole := context.WithoutCancel(ctx)
	seq, err := r.c.cfg.Bus.PublishBatch(whole, msgs, bus.Message{Subject: subject, Data: data}, r.cursorSeq)
	if err != nil {
		seq, err = r.stored(ctx, subject, data, err)
	}
	if err == nil {
		r.cursorSeq = seq
	}
	return seq, err
}

// stored finds out whether a batch whose publishing gave an error was stored.
func (r *runner) stored(ctx context.Context, subject string, data []byte, cause error) (uint64, error) {
	m, err := r.c.cfg.Bus.Last(context.WithoutCancel(ctx), protocol.StreamShards, subject)
	if errors.Is(err, bus.ErrNotFound) && r.cursorSeq > 0 {
		return 0, r.cursorGone(ctx)
	}
	if err != nil || m.Sequence == r.cursorSeq {
		return 0, cause
	}
	if bytes.Equal(m.Data, data) {
		return m.Sequence, nil
	}
	// Shards that were published again moved the cursor without changing it, and
	// the answer to that was lost: see republish.
	if was, err := json.Marshal(r.cursor); err == nil && bytes.Equal(m.Data, was) {
		r.cursorSeq = m.Sequence
		return 0, fault.New(fault.Transient, "the cursor of job %s has moved to %d", r.id, m.Sequence)
	}
	return 0, r.superseded("publish shards of job")
}

// cursorGone has the next batch make the job's cursor anew, which somebody took
// out of the stream. That this coordinator leads, the job's record must tell now.
func (r *runner) cursorGone(ctx context.Context) error {
	if err := r.c.save(ctx, r.id, func(*protocol.JobRecord) {}); err != nil {
		return err
	}
	r.log.Warn("the job's cursor is gone from the stream and is written again", "job", r.id, "was", r.cursorSeq)
	r.cursorSeq = 0
	return fault.New(fault.Transient, "the cursor of job %s is gone", r.id)
}

// sweepQueue removes what is queued of a phase all of whose results are there: a
// shard that is delivered once more would be executed for nothing.
func (r *runner) sweepQueue(ctx context.Context, p protocol.Phase) {
	r.storing.Lock()
	defer r.storing.Unlock()
	rec := r.job().Record
	subject := protocol.PhaseShards(protocol.ClassStandard, rec.Spec.Pool, r.id, p)
	if err := r.c.cfg.Bus.Purge(ctx, protocol.StreamShards, subject, 0); err != nil {
		r.log.Debug("remove answered shards from the queue", "job", r.id, "phase", p, "error", err)
	}
}
