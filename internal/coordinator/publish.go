package coordinator

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/fsbackup/fsbackup/internal/bus"
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
	answered bool            // it has its result: only after counts
	err      error           // instead of all others: the feed has ended
}

// publish publishes the shards of phase p that the cursor has not passed.
func (r *runner) publish(ctx context.Context, p protocol.Phase) error {
	start := r.cursor
	if start.Phase != p {
		start = protocol.Cursor{Epoch: start.Epoch, Phase: p, Bytes: start.Bytes}
	}
	if !start.Done {
		r.spanEvery.Store(r.every())
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
		if item.answered {
			cursor = item.after
			if item, err = next(); err != nil {
				return err
			}
			continue
		}
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
		batch, size := []ready{item}, sizeOf(item.msg)
		item = ready{}
	more:
		for {
			select {
			case i := <-feed:
				item = i
				size += sizeOf(i.msg)
				if i.err != nil || i.answered || i.to > i.from || len(batch) == credit || size > r.c.batchBytes() {
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
		if item.err == nil && !item.answered && item.msg.Subject == "" {
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
	now := r.c.now()
	r.c.update(func(t state.Tx) {
		for i, b := range batch {
			if o, ok := t.Open(r.id, r.cursor.Phase, b.n); ok {
				o.Sequence, o.Published = cursorSeq-uint64(len(batch)-i), now
				t.PutOpen(o)
			}
		}
	})
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
			protocol.HeaderEvery: {strconv.FormatUint(r.spanEvery.Load(), 10)},
		},
		Data: data,
	}}
	if len(data) > r.c.cfg.Bus.MaxPayload()-headerRoom {
		name := protocol.ShardObject(r.id, p, m.GetN())
		if err := r.c.objects.PutBytes(ctx, name, data); err != nil {
			return ready{}, err
		}
		r.large.Store(shardID{r.id, p, m.GetN()}, nil)
		item.msg.Header[protocol.HeaderObject] = []string{name}
		item.msg.Data = nil
	}
	return item, nil
}
