package clustertest

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// A control file that cannot be read just now is no control file that is refused:
// it is read again, until it says what it says.
func TestAdmissionWaitsForWhatWaitingMends(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.ESTALE, unix.ENOSPC, unix.EMFILE} {
		t.Run(errno.Error(), func(t *testing.T) {
			t.Parallel()
			at := filepath.Join(t.TempDir(), "faulty")
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			disk := treetest.Faulty(t, at)
			c := New(t, Timing())
			c.StartWorker("w")
			src, dst := roots(t, 83, 200)
			files, meta := c.Scan(src)
			for i, f := range files.Control {
				data, err := os.ReadFile(f.Path)
				if err != nil {
					t.Fatal(err)
				}
				files.Control[i].Path = filepath.Join(at, filepath.Base(f.Path))
				if err := os.WriteFile(files.Control[i].Path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// The client opens each file, and the coordinator to see that it is the same.
			// What comes then is admission.
			before := int64(2 * len(files.Control))
			var opened atomic.Int64
			disk.Inject(func(call treetest.Call) treetest.Fault {
				if call.Op != "open" {
					return treetest.Fault{}
				}
				if n := opened.Add(1); n <= before || n > before+3 {
					return treetest.Fault{}
				}
				return treetest.Fault{Errno: errno}
			})
			id := client.NewJobID(time.Now())
			spec := protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true}
			if err := c.Client.Submit(t.Context(), id, spec, files, true); err != nil {
				t.Fatal(err)
			}
			v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == "admit" })
			if !strings.Contains(v.Stalled, at) {
				t.Errorf("the job says %q", v.Stalled)
			}
			whole(t, c.Wait(id), src, dst)
		})
	}
}
