package roster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// rig is a roster with one ending job, of which one shard is open.
type rig struct {
	*Roster
	t    *testing.T
	rec  *records.Records
	boot time.Duration
}

const endingJob protocol.JobID = "j"

func newRig(t *testing.T) *rig {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: s, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.EnsureLayout(t.Context(), bus.Layout{Memory: true, LeaseTTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	leads := func() bool { return true }
	g.rec, err = records.New(t.Context(), records.Config{
		Bus: b, Dir: t.TempDir(), Keep: time.Hour, KeepJobs: 10, Leads: leads, Now: time.Now, Logger: log, Changed: func(protocol.JobID, bool) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	g.Roster = New(Config{
		Name: "c", Records: g.rec, Bus: b, Leads: leads, Ready: func() error { return nil }, Now: time.Now, Boot: func() time.Duration { return g.boot }, Logger: log,
		Timing:  protocol.Timing{Heartbeat: time.Minute, Lease: time.Hour, AckWait: 2 * time.Hour, Leader: time.Hour},
		SetPool: func(string, int, int) {}, GiveUp: func(context.Context, state.Open, string, string) error { return nil },
	})
	rec := protocol.JobRecord{ID: endingJob, State: protocol.StateEnding, Spec: protocol.JobSpec{Pool: "default"}}
	if _, _, err := g.rec.Create(t.Context(), rec, nil, nil); err != nil {
		t.Fatal(err)
	}
	g.rec.Update(func(tx state.Tx) { tx.PutOpen(state.Open{Job: string(endingJob), Phase: protocol.PhaseCopy}) })
	g.Begin()
	return g
}

// beat has a worker report that it runs the job's shard, or nothing of it.
func (g *rig) beat(runs bool) {
	g.t.Helper()
	h := protocol.Heartbeat{Wire: protocol.WireMajor, Worker: "w", Instance: "1", Pool: "default", Slots: 1}
	if runs {
		h.Running = []protocol.Running{{Job: endingJob, Phase: protocol.PhaseCopy}}
	} else {
		h.Seen = []protocol.JobID{endingJob}
	}
	data, err := json.Marshal(h)
	if err != nil {
		g.t.Fatal(err)
	}
	var r protocol.HeartbeatReply
	if err := json.Unmarshal(g.Heartbeat(data), &r); err != nil || r.Refused != "" {
		g.t.Fatalf("%+v, %v", r, err)
	}
}

var errEnough = errors.New("waited long enough")

// waits reports whether AwaitQuiet still waits when ctx ends, which it does after
// every condition was looked at.
func (g *rig) waits() bool {
	g.t.Helper()
	ctx, cancel := context.WithTimeoutCause(g.t.Context(), 50*time.Millisecond, errEnough)
	defer cancel()
	err := g.AwaitQuiet(ctx, endingJob)
	if err != nil && !errors.Is(err, errEnough) {
		g.t.Fatal(err)
	}
	return err != nil
}

func TestANewLeaderWaitsOutALeaseForWorkersThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.boot = 59 * time.Minute
	if !g.waits() {
		t.Error("it believes that no worker is left although one that it does not know may act")
	}
	g.boot = 61 * time.Minute
	if g.waits() {
		t.Error("it waits although every lease is over")
	}
}

func TestAJobEndsOnlyWhenItsWorkersRunNothingOfIt(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.boot = 2 * time.Hour
	g.beat(true)
	if !g.waits() {
		t.Error("it does not wait for a worker that runs a shard")
	}
	g.beat(false)
	if g.waits() {
		t.Error("it waits although the worker runs nothing of the job")
	}
}

func TestNobodyIsWaitedForWhenEveryShardHasItsResult(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.beat(true) // of a shard that another has answered
	g.rec.Update(func(tx state.Tx) { tx.Close(endingJob, protocol.PhaseCopy, 0) })
	if g.waits() {
		t.Error("it waits although nothing of the job is open")
	}
}
