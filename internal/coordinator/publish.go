package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"go.opentelemetry.io/otel/propagation"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

const (
	// publishAhead is how many shards are cut and encoded before there is credit.
	publishAhead = 4
	// publishMost bounds one atomic batch, so that two jobs alternate smoothly.
	publishMost = 32
	// headerRoom is what a message's headers take of the payload limit.
	headerRoom = 4 << 10
)

// ready is a shard that waits for credit.
type ready struct {
	msg      bus.Message
	n        uint64
	after    protocol.Cursor // once it is published
	from, to uint64          // results that it needs first
	err      error           // instead of all others: the feed has ended
}

// publish publishes the shards of phase p that the cursor has not passed.
func (r *runner) publish(ctx context.Context, p protocol.Phase) error {
	start := r.cursor
	if start.Phase != p {
		start = protocol.Cursor{Epoch: start.Epoch, Phase: p, Bytes: start.Bytes}
	}
	if !start.Done {
		r.spanEvery = r.every()
		feedCtx, stop := context.WithCancelCause(ctx)
		feed := make(chan ready, publishAhead)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			err := r.feed(feedCtx, p, start, feed)
			select {
			case feed <- ready{err: err}:
			case <-feedCtx.Done():
			}
		}()
		err := r.drain(ctx, p, start, feed)
		stop(context.Canceled)
		<-ended
		if err != nil {
			return err
		}
	}
	r.c.update(func(t state.Tx) {
		row := t.Phase(r.id, p)
		row.Sealed, row.Published = true, r.cursor.Next
		t.PutPhase(row)
	})
	return nil
}

// drain publishes what the feed gives until it ends.
func (r *runner) drain(ctx context.Context, p protocol.Phase, start protocol.Cursor, feed <-chan ready) error {
	next := func() (ready, error) {
		select {
		case i := <-feed:
			return i, nil
		case <-ctx.Done():
			return ready{}, context.Cause(ctx)
		}
	}
	item, err := next()
	if err != nil {
		return err
	}
	cursor := start
	for item.err == nil {
		if item.to > item.from {
			if err := r.await(ctx, func(t state.Tx, _ state.Job) bool { return t.Phase(r.id, p).Done.All(item.from, item.to) }); err != nil {
				return err
			}
		}
		if err := r.await(ctx, func(_ state.Tx, j state.Job) bool { return !j.Record.Paused }); err != nil {
			return err
		}
		credit, err := r.c.ledger.take(ctx, r.id, publishMost)
		if err != nil {
			return err
		}
		batch := []ready{item}
		item = ready{}
	more:
		for {
			select {
			case i := <-feed:
				item = i
				if i.err != nil || i.to > i.from || len(batch) == credit {
					break more
				}
				batch, item = append(batch, i), ready{}
				continue
			default:
			}
			break
		}
		r.c.ledger.answered(r.id, credit-len(batch))
		cursor = batch[len(batch)-1].after
		if errors.Is(item.err, io.EOF) {
			cursor.Done = true
		}
		if err := r.store(ctx, batch, cursor); err != nil {
			return err
		}
		if item.err == nil && item.msg.Subject == "" {
			if item, err = next(); err != nil {
				return err
			}
		}
	}
	if !errors.Is(item.err, io.EOF) {
		return item.err
	}
	if cursor.Done {
		return nil
	}
	cursor.Done = true
	return r.store(ctx, nil, cursor)
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
	msgs := make([]bus.Message, len(batch))
	for i, b := range batch {
		msgs[i] = b.msg
		propagation.TraceContext{}.Inject(ctx, protocol.Carrier(msgs[i].Header))
	}
	subject := protocol.CursorSubject(r.id)
	r.registerOpen(batch, cursor)
	// A cancel must not leave it open whether the batch was stored.
	whole := context.WithoutCancel(ctx)
	for {
		seq, err := r.c.cfg.Bus.PublishBatch(whole, msgs, bus.Message{Subject: subject, Data: data}, r.cursorSeq)
		if err != nil {
			seq, err = r.stored(whole, subject, data, err)
		}
		if err == nil {
			r.cursor, r.cursorSeq = cursor, seq
			r.noteSequences(batch, seq)
			r.c.stall(r.id, stallPublish, "")
			return nil
		}
		if fault.Is(err, fault.Stale) || ctx.Err() != nil {
			return err
		}
		r.c.stall(r.id, stallPublish, "shards cannot be published: "+err.Error())
		if !bus.Sleep(ctx, retryWait) {
			return context.Cause(ctx)
		}
	}
}

// stored finds out whether a batch whose publishing gave an error was stored.
func (r *runner) stored(ctx context.Context, subject string, data []byte, cause error) (uint64, error) {
	m, err := r.c.cfg.Bus.Last(ctx, protocol.StreamShards, subject)
	switch {
	case err == nil && m.Sequence > r.cursorSeq && bytes.Equal(m.Data, data):
		return m.Sequence, nil
	case err == nil && m.Sequence != r.cursorSeq:
		return 0, &fault.Error{Kind: fault.Stale, Op: "publish shards of job", Path: string(r.id), Err: errors.New("another coordinator has moved the cursor")}
	case errors.Is(err, bus.ErrNotFound) && r.cursorSeq > 0:
		return 0, &fault.Error{Kind: fault.Stale, Op: "publish shards of job", Path: string(r.id), Err: errors.New("its cursor is gone")}
	}
	return 0, cause
}

// registerOpen makes shards known before they are published, since a worker may
// answer before the server's acknowledgement is here.
func (r *runner) registerOpen(batch []ready, cursor protocol.Cursor) {
	now := r.c.now()
	r.c.update(func(t state.Tx) {
		row := t.Phase(r.id, cursor.Phase)
		row.Published = cursor.Next
		t.PutPhase(row)
		j, _ := t.Job(r.id)
		j.CutBytes = cursor.Bytes
		t.PutJob(j)
		for _, b := range batch {
			t.PutOpen(state.Open{Job: string(r.id), Phase: cursor.Phase, N: b.n, Published: now})
		}
	})
}

func (r *runner) noteSequences(batch []ready, cursorSeq uint64) {
	r.c.update(func(t state.Tx) {
		for i, b := range batch {
			if o, ok := t.Open(r.id, r.cursor.Phase, b.n); ok {
				o.Sequence = cursorSeq - uint64(len(batch)-i)
				t.PutOpen(o)
			}
		}
	})
}

// feed cuts the files of phase p from the cursor on. It returns io.EOF at the end
// of a sealed list.
func (r *runner) feed(ctx context.Context, p protocol.Phase, at protocol.Cursor, out chan<- ready) error {
	if p == protocol.PhaseCleanup {
		return r.feedCleanup(ctx, at, out)
	}
	rec := r.job().Record
	meta, err := r.metaDir(ctx, p)
	if err != nil {
		return err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	cfg := shard.Config{Job: r.id, Phase: p, Limits: rec.Spec.Limits, Options: options(rec.Spec), Meta: meta}
	for i := at.File; ; i++ {
		f, err := r.nextFile(ctx, i)
		if err != nil {
			return err
		}
		if !cutBy(r.job(), f.Record.Ref.Phase, p) || f.Record.State != protocol.FileAdmitted {
			continue
		}
		if at.File != i {
			at.File, at.Position = i, nil
		}
		if at, err = r.feedFile(ctx, cfg, f, at, out); err != nil {
			return err
		}
	}
}

// nextFile waits until the i-th control file is admitted or refused; io.EOF
// where the list ends before it.
func (r *runner) nextFile(ctx context.Context, i uint32) (state.File, error) {
	var f state.File
	found := false
	err := r.await(ctx, func(t state.Tx, j state.Job) bool {
		f, found = t.File(r.id, i)
		if !found {
			return j.Record.Sealed && i >= j.Record.Files
		}
		// After a restart an admitted file has no path until it is found again.
		return f.Record.State == protocol.FileRefused || (f.Record.State == protocol.FileAdmitted && f.Path != "")
	})
	if err == nil && !found {
		err = io.EOF
	}
	return f, err
}

// feedFile cuts one control file and returns the cursor behind it.
func (r *runner) feedFile(ctx context.Context, cfg shard.Config, f state.File, at protocol.Cursor, out chan<- ready) (protocol.Cursor, error) {
	var pos *shard.Position
	if len(at.Position) > 0 {
		pos = new(shard.Position)
		if err := json.Unmarshal(at.Position, pos); err != nil {
			return at, &fault.Error{Kind: fault.Corrupt, Op: "read the cursor's position in", Path: f.Path, Err: err}
		}
	} else if err := r.noteFirst(ctx, f, cfg.Phase, at.Next); err != nil {
		return at, err
	}
	cutter, err := shard.New(cfg, shard.File{Index: f.Index, Path: f.Path, Phase: f.Record.Ref.Phase}, pos, at.Next)
	if err != nil {
		return at, err
	}
	defer func() { _ = cutter.Close() }() // read only
	for {
		cut, err := cutter.Next()
		if errors.Is(err, io.EOF) {
			at.Position = nil
			at.File++
			return at, nil
		}
		if err != nil {
			return at, err
		}
		item, err := r.pack(ctx, cut)
		if err != nil {
			return at, err
		}
		if at.Position, err = json.Marshal(cut.After); err != nil {
			return at, fmt.Errorf("encode position in %q: %w", f.Path, err)
		}
		at.Next++
		at.Bytes += cut.Msg.GetDataBytes()
		item.after = at
		select {
		case out <- item:
		case <-ctx.Done():
			return at, context.Cause(ctx)
		}
	}
}

// noteFirst makes durable which shard is a file's first, so that any shard can
// be cut again.
func (r *runner) noteFirst(ctx context.Context, f state.File, p protocol.Phase, n uint64) error {
	if first, ok := f.Record.FirstN[p]; ok && first == n {
		return nil
	}
	first := map[protocol.Phase]uint64{p: n}
	for k, v := range f.Record.FirstN {
		if k != p {
			first[k] = v
		}
	}
	f.Record.FirstN = first
	return r.c.saveFile(ctx, f)
}

// every is how many shards share one span: about a thousand spans a job are kept.
func (r *runner) every() uint64 {
	var entries uint64
	var limit int
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		limit = j.Record.Spec.Limits.Entries
		for f := range t.Files(r.id) {
			entries += f.Record.Counts.Dirs + f.Record.Counts.Files
		}
	})
	return instrument.Every(entries / uint64(max(limit, 1)))
}

// pack encodes a shard; one that exceeds the payload limit becomes an object.
func (r *runner) pack(ctx context.Context, cut *shard.Cut) (ready, error) {
	m := cut.Msg
	p := protocol.Phase(m.GetPhase())
	data, err := protocol.Encode(protocol.TypeShard, m)
	if err != nil {
		return ready{}, err
	}
	item := ready{n: m.GetN(), from: m.GetNeedsFrom(), to: m.GetNeedsTo(), msg: bus.Message{
		Subject: protocol.ShardSubject(protocol.ClassStandard, r.job().Record.Spec.Pool, r.id, p, m.GetN()),
		Header: map[string][]string{
			protocol.HeaderWire:  {strconv.Itoa(protocol.WireMajor)},
			protocol.HeaderEvery: {strconv.FormatUint(r.spanEvery, 10)},
		},
		Data: data,
	}}
	if len(data) > r.c.cfg.Bus.MaxPayload()-headerRoom {
		name := protocol.ShardObject(r.id, p, m.GetN())
		if err := r.c.objects.PutBytes(ctx, name, data); err != nil {
			return ready{}, err
		}
		item.msg.Header[protocol.HeaderObject] = []string{name}
		item.msg.Data = nil
	}
	return item, nil
}

// feedCleanup gives the one shard of the cleanup phase.
func (r *runner) feedCleanup(ctx context.Context, at protocol.Cursor, out chan<- ready) error {
	if at.Next > 0 {
		return io.EOF
	}
	item, err := r.pack(ctx, &shard.Cut{Msg: &protocol.ShardMsg{
		Job: string(r.id), Phase: uint32(protocol.PhaseCleanup), Options: options(r.job().Record.Spec),
	}})
	if err != nil {
		return err
	}
	at.Next++
	item.after = at
	select {
	case out <- item:
		return io.EOF
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func options(s protocol.JobSpec) *protocol.OptionsMsg {
	o := &protocol.OptionsMsg{
		Source: s.Source, Destination: s.Destination, Trim: s.Trim, WriteMeta: s.WriteMeta, Restore: s.Restore,
		SkipVanished: s.Vanished == "skip", DeleteUnchecked: s.DeleteUnchecked, CheckContents: s.CheckContents,
		Threads: uint32(s.Threads), Memory: s.Memory, ReadOnly: s.VerifyOnly,
	}
	if s.Verify == protocol.VerifyChecksum {
		o.Verify = 1
	}
	switch s.Replace {
	case "if-older":
		o.Replace = 1
	case "never":
		o.Replace = 2
	}
	switch s.Sync {
	case "none":
		o.Sync = 1
	case "file":
		o.Sync = 2
	}
	return o
}

// metaDir opens the records that phase p resolves entries by; nil where it needs none.
func (r *runner) metaDir(ctx context.Context, p protocol.Phase) (*controlfile.MetaDir, error) {
	if p == protocol.PhaseDelete || p == protocol.PhaseDir {
		return nil, nil
	}
	dir, err := r.metaPath(ctx)
	if err != nil {
		return nil, err
	}
	return controlfile.OpenMetaDir(dir), nil
}
