package clustertest

import (
	"fmt"
	"os"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// TestOneTreeHoweverItIsCut backs one random tree up under different numbers of
// workers, sizes of shards, and with workers that are killed and stopped on the
// way: the trees and the statistics are the same. The long form (FSBACKUP_LONG)
// takes a larger tree and all combinations.
func TestOneTreeHoweverItIsCut(t *testing.T) {
	type way struct {
		workers  int
		entries  int
		restarts bool
	}
	ways := []way{{1, 2000, false}, {2, 7, true}, {5, 1, false}}
	n, seed := 250, uint64(31)
	if os.Getenv("FSBACKUP_LONG") != "" {
		n, ways = 2500, nil
		for _, workers := range []int{1, 2, 5} {
			for _, entries := range []int{1, 7, 2000} {
				ways = append(ways, way{workers, entries, false}, way{workers, entries, true})
			}
		}
	}
	src, _ := roots(t, seed, n)
	var first *protocol.Stats
	for _, w := range ways {
		t.Run(fmt.Sprintf("%+v", w), func(t *testing.T) {
			c := New(t, Timing())
			_, dst := roots(t, seed, 0)
			var parts []*Part
			for i := range w.workers {
				parts = append(parts, c.StartWorker(fmt.Sprint("w", i)))
			}
			id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries = w.entries })
			if w.restarts {
				for i, p := range parts {
					c.Until(id, func(v protocol.JobView) bool { return done(v) > uint64(3*i) })
					if i%2 == 0 {
						p.Kill()
					} else {
						p.Stop()
					}
					c.StartWorker(fmt.Sprint("again", i))
				}
			}
			v := c.Wait(id)
			whole(t, v, src, dst)
			s := v.Stats
			s.BytesPerSec, s.ShardsRepeated, s.HoleBytes, s.ReflinkBytes = 0, 0, 0, 0 // measurements
			if first == nil {
				first = &s
			} else if s != *first {
				t.Errorf("statistics\n got %+v\nwant %+v", s, *first)
			}
		})
	}
}
