package bus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

func start(t *testing.T, memory bool) *Bus {
	t.Helper()
	b, _ := startServer(t, memory)
	return b
}

func startServer(t *testing.T, memory bool) (*Bus, *Server) {
	t.Helper()
	s, err := StartServer(ServerConfig{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := Connect(t.Context(), Config{Server: s, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.EnsureLayout(t.Context(), Layout{Memory: memory}); err != nil {
		t.Fatal(err)
	}
	return b, s
}

func shard(n uint64) Message {
	return Message{Subject: protocol.ShardSubject(protocol.ClassStandard, "p", "j", protocol.PhaseCopy, n), Data: []byte{byte(n)}}
}

func cursor(s string) Message {
	return Message{Subject: protocol.CursorSubject("j"), Data: []byte(s)}
}

func TestBatchIsStoredWholeAndFencedByItsCursor(t *testing.T) {
	for _, memory := range []bool{true, false} {
		b := start(t, memory)
		ctx := t.Context()
		seq, err := b.PublishBatch(ctx, []Message{shard(0), shard(1)}, cursor("a"), 0)
		if err != nil || seq != 3 {
			t.Fatalf("first batch: seq %d, %v", seq, err)
		}
		if _, err := b.PublishBatch(ctx, []Message{shard(2)}, cursor("old leader"), 0); !errors.Is(err, ErrConflict) {
			t.Fatalf("a stale cursor: %v, want ErrConflict", err)
		}
		if _, err := b.Last(ctx, protocol.StreamShards, shard(2).Subject); !errors.Is(err, ErrNotFound) {
			t.Fatalf("shard of a refused batch: %v, want ErrNotFound", err)
		}
		if seq, err = b.PublishBatch(ctx, []Message{shard(2)}, cursor("b"), seq); err != nil || seq != 5 {
			t.Fatalf("second batch: seq %d, %v", seq, err)
		}
		m, err := b.Last(ctx, protocol.StreamShards, protocol.CursorSubject("j"))
		if err != nil || string(m.Data) != "b" || m.Sequence != 5 {
			t.Fatalf("cursor: %q at %d, %v", m.Data, m.Sequence, err)
		}
	}
}

func TestSecondResultIsRefused(t *testing.T) {
	b := start(t, false)
	m := Message{Subject: protocol.ResultSubject("j", protocol.PhaseCopy, 7), Data: []byte("first")}
	if first, err := b.PublishOnce(t.Context(), m); err != nil || !first {
		t.Fatalf("first result: %v, %v", first, err)
	}
	m.Data = []byte("second")
	if first, err := b.PublishOnce(t.Context(), m); err != nil || first {
		t.Fatalf("second result: %v, %v", first, err)
	}
	got, err := b.Last(t.Context(), protocol.StreamResults, m.Subject)
	if err != nil || string(got.Data) != "first" {
		t.Fatalf("stored result %q, %v", got.Data, err)
	}
}

func TestShardComesBackUnlessKeptInProgress(t *testing.T) {
	b := start(t, true)
	ctx := t.Context()
	const wait = 700 * time.Millisecond
	if err := b.EnsurePool(ctx, protocol.ClassStandard, "p", wait); err != nil {
		t.Fatal(err)
	}
	p, err := b.Pool(ctx, protocol.ClassStandard, "p")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := p.Next(ctx, 20*time.Millisecond); d != nil || err != nil {
		t.Fatalf("empty queue gave %v, %v", d, err)
	}
	if _, err := b.PublishBatch(ctx, []Message{shard(0)}, cursor("a"), 0); err != nil {
		t.Fatal(err)
	}
	d, err := p.Next(ctx, time.Minute)
	if err != nil || d == nil || d.Delivered != 1 || d.Sequence != 1 {
		t.Fatalf("delivery %+v, %v", d, err)
	}
	if err := d.InProgress(ctx); err != nil {
		t.Fatal(err)
	}
	// Left alone it is delivered again, with its count up.
	d2, err := p.Next(ctx, time.Minute)
	if err != nil || d2 == nil || d2.Delivered != 2 || d2.Sequence != 1 {
		t.Fatalf("second delivery %+v, %v", d2, err)
	}
	if err := d2.Nak(0); err != nil {
		t.Fatal(err)
	}
	d3, err := p.Next(ctx, time.Minute)
	if err != nil || d3 == nil || d3.Delivered != 3 {
		t.Fatalf("third delivery %+v, %v", d3, err)
	}
	if err := d3.Ack(ctx); err != nil {
		t.Fatal(err)
	}
	at, err := b.PoolState(ctx, protocol.ClassStandard, "p")
	if err != nil || at.AckFloor != 1 || at.Waiting != 0 {
		t.Fatalf("%+v, %v", at, err)
	}
}

func TestPullThatIsCancelledGivesItsShardBack(t *testing.T) {
	b := start(t, true)
	if err := b.EnsurePool(t.Context(), protocol.ClassStandard, "p", time.Minute); err != nil {
		t.Fatal(err)
	}
	p, err := b.Pool(t.Context(), protocol.ClassStandard, "p")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := p.Next(ctx, 5*time.Second); d != nil || err == nil {
		t.Fatalf("cancelled pull gave %v, %v", d, err)
	}
	if _, err := b.PublishBatch(t.Context(), []Message{shard(0)}, cursor("a"), 0); err != nil {
		t.Fatal(err)
	}
	d, err := p.Next(t.Context(), time.Minute)
	if err != nil || d == nil {
		t.Fatalf("delivery %v, %v", d, err)
	}
}

func TestTailCatchesUpAndFollows(t *testing.T) {
	b := start(t, true)
	put := func(n uint64) {
		if _, err := b.PublishOnce(t.Context(), Message{Subject: protocol.ResultSubject("j", 1, n), Data: []byte{byte(n)}}); err != nil {
			t.Error(err)
		}
	}
	for n := range uint64(5) {
		put(n)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	done := errors.New("done")
	var got []byte
	err := b.Tail(t.Context(), protocol.StreamResults, protocol.SubjectsResults, 2, func(s Stored) error {
		got = append(got, s.Data...)
		if s.Pending == 0 && len(got) == 4 {
			wg.Go(func() { put(5) })
		}
		if len(got) == 5 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || string(got) != "\x01\x02\x03\x04\x05" {
		t.Fatalf("tail gave %v, %v", got, err)
	}
}

func TestSwapLosesToAnotherWriter(t *testing.T) {
	b := start(t, true)
	kv, err := b.KV(t.Context(), protocol.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := kv.Swap(t.Context(), "job.a", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Swap(t.Context(), "job.a", []byte("2"), 0); !errors.Is(err, ErrConflict) {
		t.Fatalf("create of an existing key: %v", err)
	}
	if rev, err = kv.Swap(t.Context(), "job.a", []byte("2"), rev); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Swap(t.Context(), "job.a", []byte("3"), rev-1); !errors.Is(err, ErrConflict) {
		t.Fatalf("stale revision: %v", err)
	}
	if err := kv.DeleteAt(t.Context(), "job.a", rev-1); !errors.Is(err, ErrConflict) {
		t.Fatalf("delete at a stale revision: %v", err)
	}
	n := 0
	if err := kv.Each(t.Context(), "job.*", func(string, []byte, uint64) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("%d keys, %v", n, err)
	}
	if err := kv.Each(t.Context(), "none.*", func(string, []byte, uint64) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := kv.DeleteAt(t.Context(), "job.a", rev); err != nil {
		t.Fatal(err)
	}
	if _, _, err := kv.Get(t.Context(), "job.a"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a deleted key: %v", err)
	}
}

// A listener that does not keep up loses messages, and nothing else: the
// connection stays, and what comes later is heard.
func TestASlowListenerLosesMessagesAndNothingElse(t *testing.T) {
	t.Parallel()
	b, s := startServer(t, true)
	other, err := Connect(t.Context(), Config{Server: s, Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	let, heard := make(chan struct{}), make(chan string, 1)
	stop, err := b.Listen("slow", func(_ string, data []byte) []byte {
		<-let
		if len(data) < 100 {
			heard <- string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	block := make([]byte, 1<<20)
	for range 80 { // more than a subscription holds
		if err := other.Send("slow", block); err != nil {
			t.Fatal(err)
		}
	}
	// Meanwhile the connection serves requests.
	if _, err := b.PublishBatch(t.Context(), []Message{shard(0)}, cursor("a"), 0); err != nil {
		t.Fatal(err)
	}
	close(let)
	for {
		if err := other.Send("slow", []byte("after")); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-heard:
			if got != "after" {
				t.Errorf("heard %q", got)
			}
			return
		case <-time.After(10 * time.Millisecond): // full until it has caught up: once more
		}
	}
}
