package coordinator

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// TestAJobShowsItsLargeFiles: those of all workers that live, the largest first, and no
// other job's.
func TestAJobShowsItsLargeFiles(t *testing.T) {
	t.Parallel()
	st := state.New()
	beat := func(files ...protocol.LargeFile) protocol.Heartbeat { return protocol.Heartbeat{Large: files} }
	err := st.Update(func(tx state.Tx) error {
		tx.PutWorker(state.Worker{Name: "a", LastSeen: time.Now(), Beat: beat(
			protocol.LargeFile{Job: "mine", Path: "x", Done: 1, Size: 10, Seconds: 2}, protocol.LargeFile{Job: "other", Path: "y", Done: 1, Size: 99})})
		tx.PutWorker(state.Worker{Name: "b", LastSeen: time.Now(), Beat: beat(protocol.LargeFile{Job: "mine", Path: "z", Done: 5, Size: 50, Seconds: 1})})
		tx.PutWorker(state.Worker{Name: "lost", Lost: true, Beat: beat(protocol.LargeFile{Job: "mine", Path: "gone", Size: 70})})
		return nil
	})
	var got []protocol.LargeFile
	err = errors.Join(err, st.View(func(tx state.Tx) error {
		got = large(tx, "mine")
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []protocol.LargeFile{
		{Worker: "b", Path: "z", Done: 5, Size: 50, Seconds: 1},
		{Worker: "a", Path: "x", Done: 1, Size: 10, Seconds: 2},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
