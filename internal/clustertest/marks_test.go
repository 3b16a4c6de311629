package clustertest

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Two files, the second of which begins between two marks: whatever shard is
// lost is cut again from a mark or a start of its file, to the same bytes.
func TestAShardThatIsCutAgainIsTheSameByteByByte(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	g := c.haunt(t, 4000)
	files := deletes(t, 2, 1250)
	id := c.submitFiles(files, nil)
	c.Until(id, func(v protocol.JobView) bool { return open(v) == 2500 })
	kv, err := g.b.KV(t.Context(), protocol.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{1000, 2000} {
		if _, _, err := kv.Get(t.Context(), protocol.MarkKey(id, protocol.PhaseDelete, n)); err != nil {
			t.Errorf("mark of shard %d: %v", n, err)
		}
	}
	was := map[string]bus.Stored{}
	for _, n := range []uint64{0, 999, 1000, 1001, 1249, 1250, 1251, 1999, 2000, 2499} {
		subject := protocol.ShardSubject(protocol.ClassStandard, "default", id, protocol.PhaseDelete, n)
		m, err := g.b.Last(t.Context(), protocol.StreamShards, subject)
		if err == nil {
			err = g.b.Purge(t.Context(), protocol.StreamShards, subject, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		was[subject] = m
	}
	for subject, m := range was {
		for g.sequence(subject) == 0 {
			runtime.Gosched() // until it is published again
		}
		again, err := g.b.Last(t.Context(), protocol.StreamShards, subject)
		if err != nil || !bytes.Equal(again.Data, m.Data) || again.Sequence <= m.Sequence {
			t.Errorf("%s was cut again to other bytes, or in another place: sequence %d, then %d, %v", subject, m.Sequence, again.Sequence, err)
		}
	}
	c.simulate(t, &Sim{Name: "sim", Slots: 50})
	allDeleted(t, c.Wait(id), 2500)
}
