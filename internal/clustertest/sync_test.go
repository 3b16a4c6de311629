package clustertest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// born returns when each file of a directory was made, and as which inode. The job's
// mark is none of them.
func born(t *testing.T, dir string) map[string]string {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), ".") {
			continue
		}
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(dir, n.Name()), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st)
		if err != nil {
			continue // replaced just now
		}
		if !n.IsDir() && st.Mask&unix.STATX_BTIME != 0 {
			out[n.Name()] = fmt.Sprintf("%d at %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
		}
	}
	return out
}

// TestFailedSyncHasWhatItWasToCoverWrittenAgain has the first sync of a job fail
// while all its shards are in flight: one waits for that sync, the others have written
// meanwhile and wait for the next one, which works. Every file that was there when the
// sync failed is written again, whatever is to become of targets that are there.
func TestFailedSyncHasWhatItWasToCoverWrittenAgain(t *testing.T) {
	for _, replace := range []string{"always", "if-older", "never"} {
		t.Run(replace, func(t *testing.T) { firstSyncFails(t, replace) })
	}
}

func firstSyncFails(t *testing.T, replace string) {
	dir, disk := treetest.OnFaultyDisk(t, "-O", "^has_journal")
	c := New(t, Timing())
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(dir, "dst")
	const files = 27 // with the root: four shards of 7
	b := treetest.At(t, src)
	for i := range files {
		b.File(fmt.Sprintf("file-%02d", i), fmt.Sprintf("what file %d holds", i))
	}
	asked, fail := make(chan struct{}), make(chan struct{})
	ended := sync.OnceFunc(func() { close(fail) })
	t.Cleanup(ended)
	var first sync.Once
	disk.Inject(func(c treetest.Call) (f treetest.Fault) {
		if c.Op == "fsync" {
			first.Do(func() {
				close(asked)
				<-fail
				f.Errno = unix.EIO
			})
		}
		return f
	})
	c.StartWorker("w", func(cfg *worker.Config) { cfg.Slots = 5 }) // one is kept for other jobs
	id := c.Submit(src, dst, func(s *protocol.JobSpec) {
		small(s)
		s.Replace = replace
	})
	<-asked
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	before := born(t, dst)
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for len(before) < files {
		select {
		case <-tick.C:
			before = born(t, dst)
		case <-deadline.C:
			t.Fatalf("%d files are there: %v", len(before), before)
		}
	}
	ended()
	v := c.Wait(id)
	whole(t, v, src, dst)
	after := born(t, dst)
	for name, was := range before {
		if after[name] == was {
			t.Errorf("%s was not written again after the failed sync", name)
		}
	}
	if v.State == protocol.StateCompleted && v.Stats.ShardsRepeated != 4 {
		t.Errorf("%d shards were executed again, want 4", v.Stats.ShardsRepeated)
	}
}
