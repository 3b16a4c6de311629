package state

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

func update(t interface {
	Helper()
	Fatal(...any)
}, s *Store, f func(Tx)) {
	t.Helper()
	if err := s.Update(func(tx Tx) error { f(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

func jobOf(t *rapid.T, s *Store, id protocol.JobID) (j Job) {
	t.Helper()
	if err := s.View(func(tx Tx) error { j, _ = tx.Job(id); return nil }); err != nil {
		t.Fatal(err)
	}
	return j
}

// TestWhatAPhaseAddsToTheFigures gives every count a value of its own, so that
// the table says where each of them goes.
func TestWhatAPhaseAddsToTheFigures(t *testing.T) {
	t.Parallel()
	c := &protocol.CountsMsg{
		DirsCopied: 1, FilesCopied: 2, BytesCopied: 3, DirsFailed: 10, FilesFailed: 20, Deleted: 100, Links: 200, Skipped: 300,
		ChangedWhileRead: 400, ChangedSinceScan: 500, DirsFinished: 600, DirsTouched: 700, HoleBytes: 800, ReflinkBytes: 900, DirsDeleted: 40,
		DirsVerified: 1000, FilesVerified: 2000, BytesVerified: 3000, DirsDiffer: 4000, FilesDiffer: 5000, Extra: 6000,
	}
	// What every phase adds.
	always := protocol.Stats{Links: 200, Skipped: 300, ChangedWhileRead: 400, ChangedSinceScan: 500, HoleBytes: 800, ReflinkBytes: 900,
		DirsVerified: 1000, FilesVerified: 2000, BytesVerified: 3000, DirsDiffer: 4000, FilesDiffer: 5000, Extra: 6000}
	for _, row := range []struct {
		phase   protocol.Phase
		hasCopy bool
		add     func(*protocol.Stats)
	}{
		{protocol.PhaseCopy, true, func(s *protocol.Stats) {
			s.DirsCopied, s.FilesCopied, s.BytesCopied, s.DirsFailed, s.FilesFailed, s.SkippedToBackup = 1, 2+200, 3, 10, 20, 300
		}},
		{protocol.PhaseHardlink, true, func(s *protocol.Stats) {
			s.DirsCopied, s.FilesCopied, s.BytesCopied, s.DirsFailed, s.FilesFailed, s.SkippedToBackup = 1, 2+200, 3, 10, 20, 300
		}},
		{protocol.PhaseDelete, true, func(s *protocol.Stats) {
			s.Deleted, s.DirsDeleted, s.DeletesFailed, s.DirDeletesFailed, s.SkippedDeletes = 100, 40, 30, 10, 300
		}},
		{protocol.PhaseRmdir, true, func(s *protocol.Stats) {
			s.Deleted, s.DirsDeleted, s.DeletesFailed, s.DirDeletesFailed, s.SkippedDeletes = 100, 40, 30, 10, 300
		}},
		{protocol.PhaseDelete, false, func(s *protocol.Stats) {
			s.Deleted, s.DirsDeleted, s.DeletesFailed, s.DirDeletesFailed, s.SkippedDeletes = 100, 40, 30, 10, 300
		}},
		{protocol.PhaseVerify, true, func(s *protocol.Stats) {
			s.DirsCopied, s.FilesCopied, s.BytesCopied, s.DirsFailed, s.FilesFailed, s.SkippedToBackup = 1, 2+200, 3, 10, 20, 300
		}},
		{protocol.PhaseFinish, true, func(s *protocol.Stats) { s.DirMetaFailed = 10 }},
		{protocol.PhaseDir, true, func(s *protocol.Stats) { s.DirMetaFailed = 10 }},
		{protocol.PhaseDir, false, func(s *protocol.Stats) { s.DirsCopied, s.DirsFailed, s.SkippedToBackup = 700, 10, 300 }},
	} {
		s := New()
		var got protocol.Stats
		update(t, s, func(tx Tx) {
			tx.PutJob(Job{ID: "j", HasCopy: row.hasCopy})
			if !fold(tx, &protocol.ResultMsg{Job: "j", Phase: uint32(row.phase), Counts: c}) {
				t.Errorf("%v: not folded", row.phase)
			}
			j, _ := tx.Job("j")
			got = j.Stats
		})
		want := always
		row.add(&want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%v, job with copy %v:\n%s", row.phase, row.hasCopy, d)
		}
	}
}

func results() *rapid.Generator[*protocol.ResultMsg] {
	return rapid.Custom(func(t *rapid.T) *protocol.ResultMsg {
		small := rapid.Uint64Range(0, 9)
		r := &protocol.ResultMsg{
			Job: "j", Phase: uint32(rapid.SampledFrom(protocol.Order(false)).Draw(t, "phase")), N: rapid.Uint64Range(0, 5).Draw(t, "n"),
			Worker: rapid.SampledFrom([]string{"w1", "w2"}).Draw(t, "worker"), Delivery: rapid.Uint32Range(1, 3).Draw(t, "delivery"),
			Counts: &protocol.CountsMsg{
				DirsCopied: small.Draw(t, "dirs"), FilesCopied: small.Draw(t, "files"), BytesCopied: small.Draw(t, "bytes"), DirsFailed: small.Draw(t, "df"),
				FilesFailed: small.Draw(t, "ff"), Deleted: small.Draw(t, "deleted"), Links: small.Draw(t, "links"), DirsTouched: small.Draw(t, "touched"),
				FilesVerified: small.Draw(t, "verified"), FilesDiffer: small.Draw(t, "differ"), Extra: small.Draw(t, "extra"),
			},
		}
		for range rapid.IntRange(0, 2).Draw(t, "warnings") {
			r.Warnings = append(r.Warnings, &protocol.WarningMsg{Kind: rapid.SampledFrom([]string{"acl", "xattr"}).Draw(t, "kind"), Count: 1 + small.Draw(t, "count"), Example: []byte("x")})
		}
		return r
	})
}

// The first result of a shard counts, no other does; the order of shards is
// irrelevant; each replay of the stream gives the same job.
func TestEachShardCountsOnceInAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type shard struct {
			phase uint32
			n     uint64
		}
		drawn := rapid.SliceOfN(results(), 0, 20).Draw(t, "results")
		var stream []*protocol.ResultMsg // first results only
		seen := map[shard]bool{}
		for _, r := range drawn {
			if id := (shard{r.GetPhase(), r.GetN()}); !seen[id] {
				seen[id] = true
				stream = append(stream, r)
			}
		}
		fold := func(rs []*protocol.ResultMsg, fresh int) Job {
			s := New()
			folded := 0
			update(t, s, func(tx Tx) {
				tx.PutJob(Job{ID: "j", HasCopy: true})
				for _, r := range rs {
					if fold(tx, proto.CloneOf(r)) {
						folded++
					}
				}
			})
			if folded != fresh {
				t.Fatalf("%d results counted, want %d", folded, fresh)
			}
			return jobOf(t, s, "j")
		}
		want := fold(stream, len(stream))
		for name, got := range map[string]Job{
			"with later results of the same shards": fold(drawn, len(stream)),
			"delivered twice":                       fold(append(append([]*protocol.ResultMsg{}, stream...), stream...), len(stream)),
			"in another order":                      fold(rapid.Permutation(stream).Draw(t, "order"), len(stream)),
		} {
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%s (-once +so):\n%s", name, d)
			}
		}
		repeated, byWorker := uint64(0), uint64(0)
		for _, r := range stream {
			if r.GetDelivery() > 1 {
				repeated++
			}
		}
		for _, n := range want.Workers {
			byWorker += n
		}
		if want.Stats.ShardsRepeated != repeated || byWorker != uint64(len(stream)) {
			t.Fatalf("%d repeated, want %d; %d by workers, want %d", want.Stats.ShardsRepeated, repeated, byWorker, len(stream))
		}
	})
}

func TestExecutionsAreCountedNotDeliveries(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		attempts []Attempt
		delivery uint32
		want     uint64
	}{
		"one":                                {[]Attempt{{Sequence: 7, Delivery: 1}}, 1, 0},
		"handed back twice, never begun":     {[]Attempt{{Sequence: 7, Delivery: 1, Ended: true}, {Sequence: 7, Delivery: 2, Ended: true}, {Sequence: 7, Delivery: 3}}, 3, 0},
		"begun, and handed back":             {[]Attempt{{Sequence: 7, Delivery: 1, Ended: true, Executed: true}, {Sequence: 7, Delivery: 2}}, 2, 1},
		"two died":                           {[]Attempt{{Sequence: 7, Delivery: 1}, {Sequence: 7, Delivery: 2}, {Sequence: 7, Delivery: 3}}, 3, 2},
		"published again":                    {[]Attempt{{Sequence: 3, Delivery: 1}, {Sequence: 7, Delivery: 1}}, 1, 1},
		"of attempts that nobody knows, one": {nil, 1, 0},
		"of attempts that nobody knows":      {nil, 4, 1},
	} {
		s := New()
		update(t, s, func(tx Tx) {
			tx.PutJob(Job{ID: "j"})
			tx.PutOpen(Open{Job: "j", Phase: 1, N: 5, Sequence: 7, Attempts: row.attempts})
			fold(tx, &protocol.ResultMsg{Job: "j", Phase: 1, N: 5, Sequence: 7, Delivery: row.delivery})
			if j, _ := tx.Job("j"); j.Stats.ShardsRepeated != row.want {
				t.Errorf("%s: %d repeated, want %d", name, j.Stats.ShardsRepeated, row.want)
			}
		})
	}
}

func TestResultsOfJobsThatHaveEndedAreIgnored(t *testing.T) {
	t.Parallel()
	for _, state := range []protocol.State{protocol.StateCompleted, protocol.StateFailed, protocol.StateCancelled} {
		s := New()
		update(t, s, func(tx Tx) {
			tx.PutJob(Job{ID: "j", Record: protocol.JobRecord{State: state}})
			if fold(tx, &protocol.ResultMsg{Job: "j", Phase: 1, Counts: &protocol.CountsMsg{FilesCopied: 1}}) {
				t.Errorf("%s: folded", state)
			}
			if j, _ := tx.Job("j"); j.Stats != (protocol.Stats{}) || tx.Phase("j", 1).Done.Count() != 0 {
				t.Errorf("%s: changed", state)
			}
		})
	}
	// A job that is being cancelled still has attempts whose work is done.
	s := New()
	update(t, s, func(tx Tx) {
		tx.PutJob(Job{ID: "j", Record: protocol.JobRecord{State: protocol.StateEnding}})
		if !fold(tx, &protocol.ResultMsg{Job: "j", Phase: 1}) {
			t.Error("cancelling: not folded")
		}
	})
}

// fold reports whether a result was folded.
func fold(tx Tx, r *protocol.ResultMsg) bool {
	folded, _ := tx.Fold(r)
	return folded
}
