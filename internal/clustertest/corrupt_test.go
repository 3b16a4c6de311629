package clustertest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestCorruptShardFailsOnce replaces a shard in the stream by bytes that are none,
// before a worker is there: each of its entries fails, once, with a reason that says so, the
// rest of the job is done, and nothing goes round in circles.
func TestCorruptShardFailsOnce(t *testing.T) {
	for name, spoil := range map[string]func(m bus.Stored) bus.Message{
		"garbage": func(m bus.Stored) bus.Message {
			return shardOf(m, []byte("no shard at all"))
		},
		"cut short": func(m bus.Stored) bus.Message {
			return shardOf(m, m.Data[:len(m.Data)-7])
		},
		"a bit flipped": func(m bus.Stored) bus.Message {
			data := append([]byte(nil), m.Data...)
			data[len(data)/2] ^= 4
			return shardOf(m, data)
		},
		"empty, without headers": func(m bus.Stored) bus.Message { return bus.Message{Subject: m.Subject} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := roots(t, 41, 0)
			for _, f := range []string{"a", "b", "c", "d"} {
				treetest.At(t, src).File(f, f)
			}
			id := c.Submit(src, dst, func(s *protocol.JobSpec) { s.Limits.Entries = 2 })
			b := c.connect("spoiler")
			t.Cleanup(b.Close)
			pretend(t, b)
			subject := protocol.ShardSubject(protocol.ClassStandard, client.DefaultPool, id, protocol.PhaseCopy, 0)
			var m bus.Stored
			c.Until(id, func(protocol.JobView) bool { // a shard is open a moment before it is stored
				var err error
				m, err = b.Last(t.Context(), protocol.StreamShards, subject)
				return err == nil
			})
			if err := b.Purge(t.Context(), protocol.StreamShards, subject, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Store(t.Context(), spoil(m)); err != nil {
				t.Fatal(err)
			}
			c.StartWorker("w")
			v := c.Wait(id)
			if v.State != protocol.StateFailed || v.Failures != 2 || v.Stats.NotAttempted != 0 {
				t.Errorf("the job is %s with %d failures: %s", v.State, v.Failures, v.Reason)
			}
			var got []protocol.FailureView
			if err := c.Failures(t.Context(), id, func(f protocol.FailureView) error { got = append(got, f); return nil }); err != nil {
				t.Fatal(err)
			}
			// Each of its entries is named, by the line that it has.
			if len(got) != 2 || got[0].Line == got[1].Line {
				t.Errorf("failures: %+v", got)
			}
			for _, f := range got {
				if f.Kind != fault.Corrupt.String() || !strings.HasPrefix(f.Reason, "the shard cannot be read: ") {
					t.Errorf("failure: %+v", f)
				}
			}
			if n := len(treetest.Listing(t, dst)); n < 3 {
				t.Errorf("%d entries: the rest of the job was not done", n)
			}
		})
	}
}

// shardOf is a message in place of m that says to be a shard as well.
func shardOf(m bus.Stored, data []byte) bus.Message {
	return bus.Message{Subject: m.Subject, Header: map[string][]string{protocol.HeaderWire: m.Header[protocol.HeaderWire]}, Data: data}
}

// pretend says once that there is a worker with slots, so that shards are
// published, and takes none.
func pretend(t *testing.T, b *bus.Bus) {
	t.Helper()
	beat, err := json.Marshal(protocol.Heartbeat{Wire: protocol.WireMajor, Worker: "pretends", Instance: "1", Pool: client.DefaultPool, Slots: 2, Allow: []string{"/"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Request(t.Context(), protocol.SubjectHeartbeat, beat); err != nil {
		t.Fatal(err)
	}
}
