package clustertest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
)

// crowd is how many names a hard-link group has that is larger than a shard.
const crowd = shard.GroupCap + 300

// crowded makes a tree with one file of that many names, and returns it scanned,
// with the name of the group's leader.
func crowded(t *testing.T, c *Cluster) (src string, files client.Files, meta, leader string) {
	t.Helper()
	src = filepath.Join(t.TempDir(), "src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(src, "n00000")
	if err := os.WriteFile(first, []byte("ours"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < crowd; i++ {
		if err := os.Link(first, filepath.Join(src, fmt.Sprintf("n%05d", i))); err != nil {
			t.Fatal(err)
		}
	}
	files, meta = c.Scan(src)
	for _, f := range files.Control {
		if f.Phase != protocol.PhaseHardlink {
			continue
		}
		r, err := controlfile.Open(f.Path, controlfile.Hardlink)
		if err != nil {
			t.Fatal(err)
		}
		for leader == "" {
			e, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			leader = e.Path
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return src, files, meta, leader
}

// A group is larger than a shard, its leader cannot be copied or is kept out by
// the policy, and somebody else's file is in its place: no member in any of the
// shards becomes a name of that file, and each is counted.
func TestNoMemberOfALargeGroupIsLinkedToAForeignFile(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change func(*protocol.JobSpec)
		lose   bool // the source loses the leader after the scan
		want   protocol.Stats
	}{
		"the leader fails":   {func(*protocol.JobSpec) {}, true, protocol.Stats{FilesFailed: crowd}},
		"the leader is kept": {func(s *protocol.JobSpec) { s.Replace = "never" }, false, protocol.Stats{Skipped: crowd}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, files, meta, leader := crowded(t, c)
			dst := filepath.Join(t.TempDir(), "dst")
			if err := os.MkdirAll(dst, 0o755); err != nil {
				t.Fatal(err)
			}
			foreign := filepath.Join(dst, leader)
			if err := os.WriteFile(foreign, []byte("somebody else's"), 0o600); err != nil {
				t.Fatal(err)
			}
			if row.lose {
				if err := os.Remove(filepath.Join(src, leader)); err != nil {
					t.Fatal(err)
				}
			}
			c.StartWorker("w")
			spec := protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true}
			row.change(&spec)
			id := client.NewJobID(time.Now())
			if err := c.Client.Submit(t.Context(), id, spec, files, true); err != nil {
				t.Fatal(err)
			}
			v := c.Wait(id)
			s := v.Stats
			if s.FilesToBackup != crowd || s.FilesFailed != row.want.FilesFailed || s.Skipped != row.want.Skipped || s.FilesCopied+s.Links > 0 {
				t.Errorf("job is %s (%s), statistics %+v", v.State, v.Reason, s)
			}
			names, err := os.ReadDir(dst)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if strings.HasPrefix(n.Name(), "n") && n.Name() != leader {
					t.Fatalf("%s was made, and there are %d names", n.Name(), len(names))
				}
			}
			if b, err := os.ReadFile(foreign); err != nil || string(b) != "somebody else's" {
				t.Errorf("the foreign file is %q, %v", b, err)
			}
		})
	}
}

// The message of a shard that goes on with a group says what became of the leader,
// also where it was lost and is published again.
func TestALostShardOfALargeGroupStillKnowsItsLeader(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, files, meta, _ := crowded(t, c)
	var links client.Files
	for _, f := range files.Control {
		if f.Phase == protocol.PhaseHardlink {
			links.Control = append(links.Control, f)
		}
	}
	g := c.haunt(t, 4)
	id := client.NewJobID(time.Now())
	spec := protocol.JobSpec{Source: src, Destination: filepath.Join(t.TempDir(), "dst"), Meta: meta}
	if err := c.Client.Submit(t.Context(), id, spec, links, true); err != nil {
		t.Fatal(err)
	}
	first := g.take()
	res, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{
		Job: string(id), Phase: uint32(protocol.PhaseHardlink), Sequence: first.Sequence, Delivery: first.Delivered, Worker: "ghost",
		Counts: &protocol.CountsMsg{Skipped: shard.GroupCap}, Entries: shard.GroupCap, Leader: uint32(entry.LeaderKept),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.b.PublishOnce(t.Context(), bus.Message{Subject: protocol.ResultSubject(id, protocol.PhaseHardlink, 0), Data: res}); err != nil {
		t.Fatal(err)
	}
	g.swallow(first)
	for _, what := range []string{"published", "published again"} {
		d := g.take()
		if got := protocol.LeaderFromHeader(d.Header); got != entry.LeaderKept || !strings.HasSuffix(d.Subject, ".1") {
			t.Errorf("%s: %s says that the leader is %v", what, d.Subject, got)
		}
		g.swallow(d)
	}
}
