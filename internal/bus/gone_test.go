package bus

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// What a stream had is not gone because the stream is: nobody may take the one for
// the other.
func TestAStreamThatIsGoneIsNoMessageThatIsGone(t *testing.T) {
	t.Parallel()
	b := start(t, true)
	ctx := t.Context()
	if err := b.EnsurePool(ctx, protocol.ClassStandard, "p", time.Minute); err != nil {
		t.Fatal(err)
	}
	pool, err := b.Pool(ctx, protocol.ClassStandard, "p")
	if err != nil {
		t.Fatal(err)
	}
	kv, err := b.KV(ctx, protocol.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := b.Objects(ctx, protocol.BucketObjects)
	if err != nil {
		t.Fatal(err)
	}
	// While they are there, what is missing is not found.
	_, _, missing := kv.Get(ctx, "job.a")
	_, gone := b.Last(ctx, protocol.StreamShards, cursor("").Subject)
	for _, err := range []error{missing, gone, objects.Get(ctx, "o", io.Discard)} {
		if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoStream) || !fault.Is(err, fault.NotFound) {
			t.Errorf("of something that is missing it is told: %v", err)
		}
	}
	for _, s := range []string{protocol.StreamShards, protocol.StreamResults, "KV_" + protocol.BucketJobs, "OBJ_" + protocol.BucketObjects} {
		if err := b.js.DeleteStream(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	for what, f := range map[string]func(context.Context) error{
		"last message": func(ctx context.Context) error {
			_, err := b.Last(ctx, protocol.StreamShards, cursor("").Subject)
			return err
		},
		"state": func(ctx context.Context) error { _, err := b.StreamState(ctx, protocol.StreamShards); return err },
		"messages from": func(ctx context.Context) error {
			_, err := b.HasFrom(ctx, protocol.StreamResults, protocol.SubjectsResults, 1)
			return err
		},
		"queued": func(ctx context.Context) error { _, err := b.Queued(ctx, "fsb.shard.>"); return err },
		"purge":  func(ctx context.Context) error { return b.Purge(ctx, protocol.StreamShards, "fsb.shard.>", 0) },
		"batch": func(ctx context.Context) error {
			_, err := b.PublishBatch(ctx, []Message{shard(0)}, cursor("a"), 0)
			return err
		},
		"result": func(ctx context.Context) error {
			_, err := b.PublishOnce(ctx, Message{Subject: protocol.ResultSubject("j", protocol.PhaseCopy, 7)})
			return err
		},
		"message": func(ctx context.Context) error { _, err := b.Store(ctx, shard(1)); return err },
		"pull":    func(ctx context.Context) error { _, err := pool.Next(ctx, time.Minute); return err },
		"pool":    func(ctx context.Context) error { _, err := b.Pool(ctx, protocol.ClassStandard, "p"); return err },
		"consumer": func(ctx context.Context) error {
			_, err := b.PoolState(ctx, protocol.ClassStandard, "p")
			return err
		},
		"key":          func(ctx context.Context) error { _, _, err := kv.Get(ctx, "job.a"); return err },
		"new key":      func(ctx context.Context) error { _, err := kv.Swap(ctx, "job.a", nil, 0); return err },
		"old key":      func(ctx context.Context) error { _, err := kv.Swap(ctx, "job.a", nil, 7); return err },
		"put":          func(ctx context.Context) error { return kv.Put(ctx, "job.a", nil) },
		"delete":       func(ctx context.Context) error { return kv.Delete(ctx, "job.a") },
		"delete at":    func(ctx context.Context) error { return kv.DeleteAt(ctx, "job.a", 7) },
		"each":         func(ctx context.Context) error { return kv.Each(ctx, "job.*", nil) },
		"bucket":       func(ctx context.Context) error { _, err := b.KV(ctx, protocol.BucketJobs); return err },
		"object":       func(ctx context.Context) error { return objects.Get(ctx, "o", io.Discard) },
		"has object":   func(ctx context.Context) error { _, err := objects.Has(ctx, "o"); return err },
		"new object":   func(ctx context.Context) error { return objects.PutBytes(ctx, "o", []byte("x")) },
		"no object":    func(ctx context.Context) error { return objects.Delete(ctx, "o") },
		"objects":      func(ctx context.Context) error { _, err := objects.List(ctx); return err },
		"their bucket": func(ctx context.Context) error { _, err := b.Objects(ctx, protocol.BucketObjects); return err },
	} {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		err := f(ctx)
		cancel()
		if !errors.Is(err, ErrNoStream) || errors.Is(err, ErrNotFound) || !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	works(t, b)
	if _, err := b.PublishBatch(ctx, []Message{shard(0)}, cursor("a"), 0); err != nil {
		t.Errorf("made again, they take nothing: %v", err)
	}
}
