package state

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// number draws shard numbers: crowded at the borders of words and chunks.
// Generators are made anew for each use: tests run in parallel, and must not share
// them.
func number() *rapid.Generator[uint64] {
	return rapid.OneOf(
		rapid.Uint64Range(0, 140),
		rapid.Uint64Range(chunkBits-2, chunkBits+66),
		rapid.Uint64Range(3*chunkBits-1, 3*chunkBits+1),
	)
}

const beyond = 4 * chunkBits

func sameSet(t *rapid.T, b Bitmap, want map[uint64]bool) {
	t.Helper()
	if b.Count() != uint64(len(want)) {
		t.Fatalf("count %d, want %d", b.Count(), len(want))
	}
	for n := range want {
		if !b.Has(n) {
			t.Fatalf("%d is missing", n)
		}
	}
	n := uint64(0)
	for i := range uint64(beyond) {
		if b.Has(i) {
			n++
		}
	}
	if n != b.Count() {
		t.Fatalf("has %d numbers, says %d", n, b.Count())
	}
}

func TestABitmapIsASetAndAValue(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			b    Bitmap
			want map[uint64]bool
		}
		versions := []version{{}}
		for _, n := range rapid.SliceOfN(number(), 0, 12).Draw(t, "numbers") {
			// Any version may go on: they share what did not change.
			from := rapid.SampledFrom(versions).Draw(t, "from")
			next := version{from.b.With(n), map[uint64]bool{n: true}}
			for m := range from.want {
				next.want[m] = true
			}
			versions = append(versions, next)
		}
		for _, v := range versions {
			sameSet(t, v.b, v.want)
		}
		v := rapid.SampledFrom(versions).Draw(t, "version")
		from, to := number().Draw(t, "range from"), number().Draw(t, "range to")
		all := true
		for n := from; n < to; n++ {
			all = all && v.want[n]
		}
		if v.b.All(from, to) != all {
			t.Fatalf("All(%d, %d) is %v", from, to, !all)
		}
	})
}

func TestAPhaseIsCompleteWithEveryResultOfItsShards(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := Phase{Sealed: rapid.Bool().Draw(t, "sealed"), Published: rapid.Uint64Range(0, 6).Draw(t, "published")}
		want := p.Sealed
		has := map[uint64]bool{}
		for _, n := range rapid.SliceOfN(rapid.Uint64Range(0, 8), 0, 12).Draw(t, "results") {
			p.Done, has[n] = p.Done.With(n), true
		}
		for n := range p.Published {
			want = want && has[n]
		}
		if p.Complete() != want {
			t.Fatalf("complete: %v", !want)
		}
	})
}

func TestAMadeUpResultIsIgnored(t *testing.T) {
	t.Parallel()
	s := New()
	update(t, s, func(tx Tx) {
		tx.PutJob(Job{ID: "j"})
		for _, r := range []*protocol.ResultMsg{
			{Job: "j", Phase: 1, N: MaxShards}, {Job: "j", Phase: 1, N: 1<<64 - 1}, {Job: "j", Phase: 0, N: 1}, {Job: "j", Phase: 9, N: 1}, {Job: "k", Phase: 1, N: 1}, {Phase: 1},
		} {
			if fold(tx, r) {
				t.Errorf("%v was folded", r)
			}
		}
		if !fold(tx, &protocol.ResultMsg{Job: "j", Phase: 1, N: 1 << 20}) {
			t.Error("a large number was refused")
		}
	})
}
