package publisher

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
)

// item is what the feed gives, in the order of the shards: a cutShard, an
// answeredShard, or at last feedEnd.
type item interface{ isItem() }

// cutShard is a shard that waits for credit.
type cutShard struct {
	msg      bus.Message
	n        uint64
	after    protocol.Cursor // once it is published
	from, to uint64          // results that it needs first
}

// answeredShard is one that has its result already, and only moves the cursor.
type answeredShard struct{ after protocol.Cursor }

// feedEnd is the last item: io.EOF at the end of a sealed list, or what ended the
// feed before.
type feedEnd struct{ err error }

func (cutShard) isItem()      {}
func (answeredShard) isItem() {}
func (feedEnd) isItem()       {}

// Publish publishes the shards of phase p that the cursor has not passed.
func (j *Job) Publish(ctx context.Context, p protocol.Phase) error {
	start := j.cursor
	if start.Phase != p {
		start = protocol.Cursor{Epoch: start.Epoch, Phase: p, Bytes: start.Bytes}
	}
	if !start.Done {
		j.spanEvery.Store(j.every())
		feedCtx, stop := context.WithCancelCause(ctx)
		feed := make(chan item, publishAhead)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			err := j.feed(feedCtx, p, start, feed)
			select {
			case feed <- feedEnd{err}:
			case <-feedCtx.Done():
			}
		}()
		err := j.drain(ctx, start, &intake{feed: feed})
		stop(context.Canceled)
		<-ended
		if err != nil {
			return err
		}
	}
	j.p.rec.Update(func(t state.Tx) {
		row := t.Phase(j.id, p)
		row.Sealed, row.Published = true, j.cursor.Next
		t.PutPhase(row)
	})
	return nil
}

// intake reads a feed, one item ahead where a batch could not take it.
type intake struct {
	feed <-chan item
	held item
}

// next waits for the next item.
func (in *intake) next(ctx context.Context) (item, error) {
	if i := in.held; i != nil {
		in.held = nil
		return i, nil
	}
	select {
	case i := <-in.feed:
		return i, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// join adds to a batch what is ready now and may be published with it: at most
// most shards, and size bytes.
func (in *intake) join(batch []cutShard, most, size int) []cutShard {
	taken := sizeOf(batch[0].msg)
	for len(batch) < most {
		select {
		case i := <-in.feed:
			s, ok := i.(cutShard)
			if taken += sizeOf(s.msg); !ok || s.to > s.from || taken > size {
				in.held = i
				return batch
			}
			batch = append(batch, s)
		default:
			return batch
		}
	}
	return batch
}

// ended reports whether the feed is known to be at its end.
func (in *intake) ended() bool {
	if in.held == nil {
		select {
		case in.held = <-in.feed:
		default:
		}
	}
	end, ok := in.held.(feedEnd)
	return ok && errors.Is(end.err, io.EOF)
}

// drain publishes what the feed gives until it ends.
func (j *Job) drain(ctx context.Context, cursor protocol.Cursor, in *intake) error {
	for {
		next, err := in.next(ctx)
		if err != nil {
			return err
		}
		switch i := next.(type) {
		case answeredShard:
			cursor = i.after
		case cutShard:
			if err := j.mayPublish(ctx, cursor.Phase, i); err != nil {
				return err
			}
			if err := j.tellLeader(ctx, cursor.Phase, &i); err != nil {
				return err
			}
			credit, err := j.p.ledger.take(ctx, j.id, publishMost)
			if err != nil {
				return err
			}
			batch := in.join([]cutShard{i}, credit, j.p.batchBytes())
			j.p.ledger.giveBack(j.id, credit-len(batch))
			cursor = batch[len(batch)-1].after
			cursor.Done = in.ended()
			if err := j.store(ctx, batch, cursor); err != nil {
				return err
			}
		case feedEnd:
			switch {
			case !errors.Is(i.err, io.EOF):
				return i.err
			case cursor.Done:
				return nil // stored with the last batch
			}
			cursor.Done = true
			return j.store(ctx, nil, cursor)
		}
	}
}

// mayPublish waits until the results are there that a shard needs, and while the
// job is paused.
func (j *Job) mayPublish(ctx context.Context, p protocol.Phase, s cutShard) error {
	return j.p.rec.Await(ctx, j.id, func(t state.Tx, row state.Job) bool {
		return !row.IsPaused() && t.Phase(j.id, p).Done.All(s.from, s.to)
	})
}

// registerOpen makes shards known before they are published, since a worker may
// answer before the server's acknowledgement is here.
func (j *Job) registerOpen(batch []cutShard, cursor protocol.Cursor) {
	now := j.p.cfg.Now()
	j.p.rec.Update(func(t state.Tx) {
		phase := t.Phase(j.id, cursor.Phase)
		phase.Published = cursor.Next
		t.PutPhase(phase)
		row, _ := t.Job(j.id)
		row.CutBytes = cursor.Bytes
		t.PutJob(row)
		for _, b := range batch {
			t.PutOpen(state.Open{Job: string(j.id), Phase: cursor.Phase, N: b.n, Published: now})
		}
	})
}

func (j *Job) noteSequences(batch []cutShard, cursorSeq uint64) {
	now := j.p.cfg.Now()
	j.p.rec.Update(func(t state.Tx) {
		for i, b := range batch {
			if o, ok := t.Open(j.id, j.cursor.Phase, b.n); ok {
				o.Sequence, o.Published = cursorSeq-uint64(len(batch)-i), now
				t.PutOpen(o)
			}
		}
	})
}

// every is how many shards share one span: about a thousand spans a job are kept.
func (j *Job) every() uint64 {
	var entries uint64
	var limit int
	j.p.rec.View(func(t state.Tx) {
		row, _ := t.Job(j.id)
		limit = row.Record.Spec.Limits.Entries
		for f := range t.Files(j.id) {
			entries += f.Record.Counts.Dirs + f.Record.Counts.Files
		}
	})
	return instrument.Every(entries / uint64(max(limit, 1)))
}

// pack encodes a shard; one that exceeds the payload limit becomes an object.
func (j *Job) pack(ctx context.Context, cut *shard.Cut) (cutShard, error) {
	m := cut.Msg
	p := protocol.Phase(m.GetPhase())
	data, err := protocol.Encode(protocol.TypeShard, m)
	if err != nil {
		return cutShard{}, err
	}
	item := cutShard{n: m.GetN(), from: m.GetNeedsFrom(), to: m.GetNeedsTo(), msg: bus.Message{
		Subject: protocol.ShardSubject(protocol.ClassStandard, j.record().Spec.Pool, j.id, p, m.GetN()),
		Header: map[string][]string{
			protocol.HeaderWire:  {strconv.Itoa(protocol.WireMajor)},
			protocol.HeaderEvery: {strconv.FormatUint(j.spanEvery.Load(), 10)},
		},
		Data: data,
	}}
	if len(data) > j.p.cfg.Bus.MaxPayload()-protocol.HeaderRoom {
		name := protocol.ShardObject(j.id, p, m.GetN())
		if err := j.p.rec.Objects().PutBytes(ctx, name, data); err != nil {
			return cutShard{}, err
		}
		j.large.Store(shardID{j.id, p, m.GetN()}, nil)
		item.msg.Header[protocol.HeaderObject] = []string{name}
		item.msg.Data = nil
	}
	return item, nil
}
