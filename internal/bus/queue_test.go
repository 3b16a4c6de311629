package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// orphan has the stream keep shard 0 below the ack floor of its consumer, as a
// server that was killed between the two can: the consumer does not look at it
// until it is past it.
func orphan(t *testing.T, b *Bus) *Pool {
	t.Helper()
	ctx := t.Context()
	if err := b.EnsurePool(ctx, protocol.ClassStandard, "p", time.Minute); err != nil {
		t.Fatal(err)
	}
	c, err := b.js.Consumer(ctx, protocol.StreamShards, protocol.PoolConsumer(protocol.ClassStandard, "p"))
	if err != nil {
		t.Fatal(err)
	}
	narrow := c.CachedInfo().Config
	narrow.FilterSubject = shard(1).Subject
	if _, err := b.js.UpdateConsumer(ctx, protocol.StreamShards, narrow); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PublishBatch(ctx, []Message{shard(0), shard(1)}, cursor("a"), 0); err != nil {
		t.Fatal(err)
	}
	p, err := b.Pool(ctx, protocol.ClassStandard, "p")
	if err != nil {
		t.Fatal(err)
	}
	ack(t, p, 2)
	if err := b.EnsurePool(ctx, protocol.ClassStandard, "p", time.Minute); err != nil {
		t.Fatal(err)
	}
	return p
}

// ack takes the next shard, which must be that of a sequence, out of the queue.
func ack(t *testing.T, p *Pool, sequence uint64) {
	t.Helper()
	d, err := p.Next(t.Context(), 10*time.Second)
	if err != nil || d == nil || d.Sequence != sequence {
		t.Fatalf("delivery %+v, %v; want that of sequence %d", d, err, sequence)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.Ack(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestAnOrphanIsSeenAndReplacedByItsExactSequence(t *testing.T) {
	for _, memory := range []bool{true, false} {
		b := start(t, memory)
		ctx := t.Context()
		p := orphan(t, b)
		if d, err := p.Next(ctx, 50*time.Millisecond); d != nil || err != nil {
			t.Fatalf("an orphan was delivered: %+v, %v", d, err)
		}
		queued, err := b.Queued(ctx, protocol.JobShards("j"))
		if err != nil || len(queued) != 1 || !queued[shard(0).Subject] {
			t.Fatalf("stored: %v, %v", queued, err)
		}
		at, err := b.PoolState(ctx, protocol.ClassStandard, "p")
		if err != nil || at.AckFloor < 1 {
			t.Fatalf("ack floor %d, %v: shard 0 has sequence 1", at.AckFloor, err)
		}
		again := shard(0)
		again.Expect = new(uint64(2))
		if _, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), 3); !errors.Is(err, ErrConflict) {
			t.Fatalf("replaced with another sequence than it has: %v, want ErrConflict", err)
		}
		again.Expect = new(uint64(0))
		if _, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), 3); !errors.Is(err, ErrConflict) {
			t.Fatalf("replaced as if it were not there: %v, want ErrConflict", err)
		}
		again.Expect = new(uint64(1))
		if _, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), 2); !errors.Is(err, ErrConflict) {
			t.Fatalf("replaced by a leader whose cursor has moved: %v, want ErrConflict", err)
		}
		seq, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), 3)
		if err != nil {
			t.Fatal(err)
		}
		ack(t, p, seq-1)
		if queued, err = b.Queued(ctx, protocol.JobShards("j")); err != nil || len(queued) != 0 {
			t.Fatalf("stored after the ack: %v, %v", queued, err)
		}
	}
}

func TestAMissingShardIsPublishedOnlyWhereThereIsNone(t *testing.T) {
	b := start(t, false)
	ctx := t.Context()
	seq, err := b.PublishBatch(ctx, []Message{shard(0)}, cursor("a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	again := shard(0)
	again.Expect = new(uint64(0))
	if _, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), seq); !errors.Is(err, ErrConflict) {
		t.Fatalf("a pending shard was replaced: %v, want ErrConflict", err)
	}
	if err := b.Purge(ctx, protocol.StreamShards, shard(0).Subject, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PublishBatch(ctx, []Message{again}, cursor("a"), seq); err != nil {
		t.Fatal(err)
	}
	m, err := b.Last(ctx, protocol.StreamShards, shard(0).Subject)
	if err != nil || m.Sequence != seq+1 {
		t.Fatalf("published again at %d, %v", m.Sequence, err)
	}
}

// An answer that was under way is lost with its connection: whoever waits for it
// looks what was stored, and does not wait for its time to be over.
func TestALostConnectionEndsTheWaitForAnAnswer(t *testing.T) {
	s, err := StartServer(ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := Connect(t.Context(), Config{URL: s.URL(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	asked := make(chan struct{})
	// In the place of the stream somebody takes the batch and never answers.
	if _, err := b.Listen(protocol.CursorSubject("j"), func(string, []byte) []byte { close(asked); return nil }); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	go func() {
		_, err := b.PublishBatch(ctx, nil, cursor("a"), 0)
		failed <- err
	}()
	<-asked
	s.Stop()
	if err := <-failed; !errors.Is(err, errLost) {
		t.Errorf("the wait ended by %v, want by the loss of the connection", err)
	}
}
