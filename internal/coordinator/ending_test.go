package coordinator

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A leader died when it had published the last shard of an ending job, and the queue
// has lost that. The next leader publishes it again, and the job ends.
func TestATakeoverAtTheLastShardOfAnEndingJob(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	timing := protocol.Timing{Heartbeat: 50 * time.Millisecond, Lease: 300 * time.Millisecond, AckWait: 500 * time.Millisecond, Leader: 2 * time.Second}
	quick := func(cfg *Config) { cfg.Timing = timing }
	_, _, stop := lead(t, b, quick) // makes the buckets
	stop()
	rec := waitingJob("j")
	rec.State, rec.Sealed, rec.Answered, rec.Nonce, rec.NonceReady = protocol.StateEnding, true, true, "n", true
	rec.Ending = &protocol.Ending{State: protocol.StateCompleted}
	rec.Phases = map[protocol.Phase]protocol.PhaseRecord{protocol.PhaseCopy: {Complete: true, Bytes: 123}}
	putJob(t, b, rec)
	cursor, err := json.Marshal(protocol.Cursor{Phase: protocol.PhaseCleanup, Next: 1, Done: true, Bytes: 123})
	if err == nil {
		_, err = b.Store(t.Context(), bus.Message{Subject: protocol.CursorSubject("j"), Data: cursor})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, _, stop := lead(t, b, quick)
	defer stop()
	subject := protocol.ShardSubject(protocol.ClassStandard, "default", "j", protocol.PhaseCleanup, 0)
	for queued := map[string]bool{}; !queued[subject]; {
		if queued, err = b.Queued(t.Context(), protocol.JobShards("j")); err != nil {
			t.Fatal(err)
		}
		if !bus.Sleep(t.Context(), 10*time.Millisecond) {
			t.Fatal("the shard is not published again")
		}
	}
	res, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{Job: "j", Phase: uint32(protocol.PhaseCleanup), Delivery: 1, Worker: "w"})
	if err == nil {
		_, err = b.PublishOnce(t.Context(), bus.Message{Subject: protocol.ResultSubject("j", protocol.PhaseCleanup, 0), Data: res})
	}
	if err != nil {
		t.Fatal(err)
	}
	var j state.Job
	if err := c.rec.Await(t.Context(), "j", func(_ state.Tx, row state.Job) bool { j = row; return row.Record.State.Final() }); err != nil {
		t.Fatal(err)
	}
	if s := j.Record.Stats; j.Record.State != protocol.StateCompleted || s == nil || s.BytesToBackup != 123 {
		t.Errorf("the job is %s: %+v", j.Record.State, j.Record.Stats)
	}
}
