package state

import (
	"slices"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestJobsAreFoundByTheirState(t *testing.T) {
	t.Parallel()
	st := New()
	put := func(id protocol.JobID, s protocol.State) {
		_ = st.Update(func(tx Tx) error {
			tx.PutJob(Job{ID: string(id), Record: protocol.JobRecord{ID: id, State: s}})
			return nil
		})
	}
	want := func(s protocol.State, ids ...protocol.JobID) {
		t.Helper()
		var got []protocol.JobID
		_ = st.View(func(tx Tx) error {
			for j := range tx.JobsIn(s) {
				got = append(got, j.Record.ID)
			}
			return nil
		})
		if !slices.Equal(got, ids) {
			t.Errorf("%s: %v, want %v", s, got, ids)
		}
	}
	put("b", protocol.StateRunning)
	put("a", protocol.StateRunning)
	put("c", protocol.StateQueued)
	want(protocol.StateRunning, "a", "b")
	put("a", protocol.StateCompleted)
	want(protocol.StateRunning, "b")
	want(protocol.StateCompleted, "a")
	_ = st.Update(func(tx Tx) error { tx.DropJob("b"); return nil })
	want(protocol.StateRunning)
	want(protocol.StateQueued, "c")
}
