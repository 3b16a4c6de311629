package coordinator

import (
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A leader that died between its job's last phase and the job's end, and whose
// cursor somebody purged, takes no figure with it.
func TestACursorMadeAnewKeepsTheBytesOfPhasesThatAreComplete(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	_, _, stop := lead(t, b, nil) // makes the buckets
	stop()
	rec := waitingJob("j")
	rec.Sealed, rec.Phases = true, map[protocol.Phase]protocol.PhaseRecord{}
	for _, p := range protocol.Order(false) {
		rec.Phases[p] = protocol.PhaseRecord{Complete: true, Bytes: 123}
	}
	putJob(t, b, rec)
	c, _, stop := lead(t, b, nil)
	defer stop()
	var j state.Job
	for !j.Record.State.Final() && t.Context().Err() == nil {
		c.view(func(t state.Tx) { j, _ = t.Job("j") })
	}
	if s := j.Record.Stats; s == nil || s.BytesToBackup != 123 {
		t.Errorf("job ended as %s with %+v, want 123 bytes to back up", j.Record.State, s)
	}
}
