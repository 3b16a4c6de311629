package coordinator

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// beat sends a coordinator the heartbeat of a worker that runs a shard of job j1.
func beat(t *testing.T, c *Coordinator) (protocol.HeartbeatReply, bool) {
	t.Helper()
	data, err := json.Marshal(protocol.Heartbeat{
		Wire: protocol.WireMajor, Worker: "w", Instance: "1", Pool: "default", Slots: 4,
		Running: []protocol.Running{{Job: "j1", Phase: protocol.PhaseCopy, N: 7, Sequence: 1, Delivery: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	out := c.roster.Heartbeat(data)
	if out == nil {
		return protocol.HeartbeatReply{}, false
	}
	var r protocol.HeartbeatReply
	if err := json.Unmarshal(out, &r); err != nil || r.Refused != "" {
		t.Fatalf("%s, %v", out, err)
	}
	return r, true
}

func TestOnlyALeaderThatKnowsAllJobsTellsWorkersToStop(t *testing.T) {
	b := startBus(t)
	c, err := New(t.Context(), Config{Name: "c", Bus: b, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if r, answered := beat(t, c); answered {
		t.Errorf("a standby answers: %+v", r)
	}
	if out := c.roster.ClaimRoots(t.Context(), []byte(`{"job":"j1","worker":"w"}`)); out != nil {
		t.Errorf("a standby answers: %s", out)
	}
	// It has the lease, and has not read its jobs yet.
	c.holds(c.cfg.Boot())
	if r, answered := beat(t, c); !answered || len(r.Cancelled) > 0 {
		t.Errorf("a leader that still reads its jobs says to stop %v (answered: %v)", r.Cancelled, answered)
	}
	if out := string(c.roster.ClaimRoots(t.Context(), []byte(`{"job":"j1","worker":"w"}`))); out != `{"nonce":"","write":false,"wait":true,"source_inode":0,"source_fs":""}` {
		t.Errorf("a leader that still reads its jobs says of a job's roots: %s", out)
	}
	c, _, stop := lead(t, b, nil)
	defer stop()
	if r, _ := beat(t, c); !slices.Contains(r.Cancelled, protocol.JobID("j1")) {
		t.Errorf("a leader that knows of no such job says to stop %v", r.Cancelled)
	}
}
