package clustertest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestUnusableMetaFilesEndTheJob: without its records a job has nothing to go by. That
// is no failure of its entries: it ends before it has done anything, and names the file.
func TestUnusableMetaFilesEndTheJob(t *testing.T) {
	c := New(t, Timing())
	c.StartWorker("w")
	empty := func(path string) error { return os.WriteFile(path, nil, 0o600) }
	other := func(path string) error { // one that is a file of the other kind
		from := filepath.Join(filepath.Dir(path), "meta_file_0")
		if from == path {
			from = filepath.Join(filepath.Dir(path), "xmeta_file_0")
		}
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		return err
	}
	for _, name := range []string{"meta_file_0", "xmeta_file_0"} {
		for how, spoil := range map[string]func(string) error{"missing": os.Remove, "empty": empty, "other": other} {
			t.Run(how+" "+name, func(t *testing.T) {
				src, dst := roots(t, 12, 80)
				id := c.Submit(src, dst, func(s *protocol.JobSpec) {
					if err := spoil(filepath.Join(s.Meta, name)); err != nil {
						t.Fatal(err)
					}
				})
				v := c.Wait(id)
				f := treetest.Count(treetest.Listing(t, src))
				s := v.Stats
				if v.State != protocol.StateFailed || !strings.Contains(v.Reason, "/"+name) || strings.Contains(v.Reason, "\n") {
					t.Errorf("it ends as %s: %s", v.State, v.Reason)
				}
				if s.DirsToBackup+s.FilesToBackup != f.Dirs+f.Files || s.NotAttempted != f.Dirs+f.Files || s.BytesToBackup == 0 || v.Failures != 0 {
					t.Errorf("%d failures, statistics %+v", v.Failures, s)
				}
				if left, err := os.ReadDir(dst); err == nil && len(left) > 0 {
					t.Errorf("the destination has %v", left)
				}
			})
		}
	}
}
