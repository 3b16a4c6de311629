package clustertest

import (
	"os"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// A control file is edited in place while its job runs: same size, same time. The
// job fails for it, and executes nothing from the edit on.
func TestAControlFileThatIsEditedWhileItsJobRunsIsNotExecuted(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	c.haunt(t, 1)
	files := deletes(t, 1, 100_000)
	path := files.Control[0].Path
	id := c.submitFiles(files, func(s *protocol.JobSpec) { s.Limits.Entries = 1000 })
	c.Until(id, func(v protocol.JobView) bool { return open(v) > 0 })
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("9"), st.Size()-3); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	c.simulate(t, &Sim{Name: "sim", Slots: 50})
	v := c.Wait(id)
	if v.State != protocol.StateFailed || !strings.Contains(v.Reason, "changed after it was admitted") || !strings.Contains(v.Reason, path) {
		t.Errorf("job is %s (%s)", v.State, v.Reason)
	}
	if v.Stats.Deleted == 0 || v.Stats.Deleted > 100_000-1000 {
		t.Errorf("%d lines of 100,000 were executed", v.Stats.Deleted)
	}
}
