package state

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// folded is all that folding makes of a job.
type folded struct {
	Job  Job
	Done map[protocol.Phase]Bitmap
}

func foldedOf(t *rapid.T, s *Store) (f folded) {
	t.Helper()
	if err := s.View(func(tx Tx) error {
		c, _ := tx.Checkpoint("j", 0)
		f.Job, _ = tx.Job("j")
		f.Done = c.Done
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return f
}

// A takeover restores the checkpoint of the job and folds the stream from any
// place at or before it: the minimum of the jobs' checkpoints.
func TestACheckpointAndTheRestAreTheWholeStream(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		stream := rapid.SliceOfN(results(), 0, 30).Draw(t, "stream")
		for i := range stream {
			// Numbers across words and chunks.
			stream[i].N = number().Draw(t, "n")
		}
		at := rapid.IntRange(0, len(stream)).Draw(t, "checkpoint at")
		from := rapid.IntRange(0, at).Draw(t, "replay from")
		begin := func() *Store {
			s := New()
			update(t, s, func(tx Tx) { tx.PutJob(Job{ID: "j", HasCopy: true}) })
			return s
		}
		replay := func(s *Store, rs []*protocol.ResultMsg) {
			update(t, s, func(tx Tx) {
				for _, r := range rs {
					tx.Fold(proto.CloneOf(r))
				}
			})
		}
		whole := begin()
		replay(whole, stream)

		first := begin()
		replay(first, stream[:at])
		var data []byte
		update(t, first, func(tx Tx) {
			c, ok := tx.Checkpoint("j", uint64(at))
			if !ok {
				t.Fatal("the job has no checkpoint")
			}
			var err error
			if data, err = c.Encode(); err != nil {
				t.Fatal(err)
			}
		})
		c, err := DecodeCheckpoint(data)
		if err != nil {
			t.Fatal(err)
		}
		if c.Job != "j" || c.Sequence != uint64(at) {
			t.Fatalf("checkpoint of %q at %d, want j at %d", c.Job, c.Sequence, at)
		}
		second := begin()
		update(t, second, func(tx Tx) { tx.Restore(c) })
		if d := cmp.Diff(foldedOf(t, first), foldedOf(t, second), byBits); d != "" {
			t.Fatalf("restored (-was +is):\n%s", d)
		}
		replay(second, stream[from:])
		if d := cmp.Diff(foldedOf(t, whole), foldedOf(t, second), byBits); d != "" {
			t.Fatalf("checkpoint and rest (-whole stream +them):\n%s", d)
		}
	})
}

func encode(t testing.TB, m *protocol.CheckpointMsg) []byte {
	t.Helper()
	b, err := protocol.Encode(protocol.TypeCheckpoint, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// damaged are checkpoints that must not be used, by what is wrong with them.
func damaged(t testing.TB) map[string][]byte {
	t.Helper()
	bits := make([]byte, chunkWords*8)
	phases := func(b ...*protocol.BitsMsg) []byte {
		return encode(t, &protocol.CheckpointMsg{Version: checkpointVersion, Figures: []byte("{}"), Phases: b})
	}
	return map[string][]byte{
		"nothing":             {},
		"another version":     encode(t, &protocol.CheckpointMsg{Version: checkpointVersion + 1, Figures: []byte("{}")}),
		"no figures":          encode(t, &protocol.CheckpointMsg{Version: checkpointVersion}),
		"phase 0":             phases(&protocol.BitsMsg{Chunks: []uint32{0}, Bits: bits}),
		"phase 257":           phases(&protocol.BitsMsg{Phase: 257, Chunks: []uint32{0}, Bits: bits}),
		"a phase twice":       phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{0}, Bits: bits}, &protocol.BitsMsg{Phase: 1, Chunks: []uint32{0}, Bits: bits}),
		"too few bits":        phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{0}, Bits: bits[1:]}),
		"chunks in disorder":  phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{1, 0}, Bits: append(bytes.Clone(bits), bits...)}),
		"a chunk twice":       phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{1, 1}, Bits: append(bytes.Clone(bits), bits...)}),
		"a chunk beyond":      phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{maxChunks}, Bits: bits}),
		"too many in phases":  phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{maxChunks - 1}, Bits: bits}, &protocol.BitsMsg{Phase: 2, Chunks: []uint32{0}, Bits: bits}),
		"a chunk beyond last": phases(&protocol.BitsMsg{Phase: 1, Chunks: []uint32{7, 5}, Bits: append(bytes.Clone(bits), bits...)}),
	}
}

func TestADamagedCheckpointIsRefused(t *testing.T) {
	t.Parallel()
	for what, data := range damaged(t) {
		if _, err := DecodeCheckpoint(data); !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

func TestACheckpointThatNobodyWouldReadIsNotMade(t *testing.T) {
	t.Parallel()
	var b Bitmap
	b = b.With(MaxShards - 1)
	if _, err := (Checkpoint{Job: "j", Done: map[protocol.Phase]Bitmap{1: b, 2: b}}).Encode(); err == nil {
		t.Error("two phases with made-up numbers were encoded")
	}
	data, err := Checkpoint{Job: "j", Done: map[protocol.Phase]Bitmap{1: b}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := DecodeCheckpoint(data)
	if err != nil || !c.Done[1].Has(MaxShards-1) || c.Done[1].Count() != 1 {
		t.Errorf("one phase with a made-up number: %d shards, error %v", c.Done[1].Count(), err)
	}
}

func FuzzCheckpoint(f *testing.F) {
	var b Bitmap
	for _, n := range []uint64{0, 1, 63, 64, chunkBits, 5 * chunkBits} {
		b = b.With(n)
	}
	data, err := Checkpoint{
		Job: "j", Sequence: 7, Stats: protocol.Stats{FilesCopied: 3}, Workers: map[string]uint64{"w": 6},
		Warnings: map[string]protocol.Warning{"acl": {Kind: "acl", Count: 1, Example: "x"}}, Done: map[protocol.Phase]Bitmap{1: b, 6: b},
	}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, d := range damaged(f) {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c, err := DecodeCheckpoint(data)
		runtime.ReadMemStats(&after)
		// What an envelope may cost, and a pointer for each chunk that there can be.
		if n, limit := after.TotalAlloc-before.TotalAlloc, uint64(len(data)+100)<<20/100+16*maxChunks; n > limit {
			t.Fatalf("%d bytes cost %d", len(data), n)
		}
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeCheckpoint(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, got, byBits, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("encoded again (-was +is):\n%s", d)
		}
	})
}
