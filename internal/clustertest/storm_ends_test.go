package clustertest

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// ends runs a job that ends in one of the ways in which jobs end, while things
// happen. Then an ordinary run of the command, which knows of it what
// the job's record says, makes the destination identical.
func (s *storm) ends(seed uint64, command, at string, disk *treetest.FaultyFS) {
	s.t.Helper()
	way := Ends[seed%uint64(len(Ends))]
	src, dst, state := filepath.Join(s.t.TempDir(), "src"), filepath.Join(at, "dst"), s.t.TempDir()
	treetest.Random(s.t, src, 200+seed, 500)
	s.wild()
	if disk != nil {
		s.t.Logf("seed %d: the first sync fails", seed)
		failFirstSync(disk)
	}
	e := Begin(s.t, s.Client, s.r, way, src, dst, state, func(spec *protocol.JobSpec) {
		spec.Limits.Entries, spec.DeleteEmpty, spec.SpareDirs = 3, s.r.IntN(2) == 0, s.r.IntN(2) == 0
	})
	happens := func() bool {
		n := s.results() + 4 + s.r.Uint64N(20)
		if !s.reaches(e.ID, n) {
			return false
		}
		names := slices.Sorted(maps.Keys(events))
		what := names[s.r.IntN(len(names))]
		s.t.Logf("seed %d: while a job ends %s, after %d shards %s", seed, way, n, what)
		events[what](s)
		return true
	}
	if happens() && s.reaches(e.ID, s.results()+1+s.r.Uint64N(10)) {
		if e.Strike() {
			// The leader dies as it has made the cancel durable.
			s.without(func(l *lead) { l.Kill() })
		} else {
			happens()
		}
	}
	v := s.Wait(e.ID)
	s.calm()
	e.Unqueued(s.look)
	for _, f := range treetest.Listing(s.t, dst) {
		if strings.HasPrefix(filepath.Base(f.Path), ".fsbackup-") {
			s.t.Errorf("a job that ended %s left its mark: %q", way, f.Path)
		}
	}
	e.Settle(v)
	run := exec.CommandContext(s.t.Context(), command, "backup", "--quiet", "--max-delete", "100%", "--state-dir", state, src, dst)
	if out, err := run.CombinedOutput(); err != nil {
		s.t.Errorf("the next run: %v\n%s", err, out)
	}
	if d := treetest.Diff(treetest.Listing(s.t, src), treetest.Listing(s.t, dst)); len(d) > 0 {
		s.t.Errorf("a job ended %s, and an ordinary run after it left %d differences, first %s", way, len(d), d[0])
	}
}

// wild ends a calm: those who end are replaced again.
func (s *storm) wild() {
	s.t.Helper()
	s.mu.Lock()
	s.over = false
	s.mu.Unlock()
	s.newLeader() // none of those that ended meanwhile has been replaced
}

// failFirstSync has a disk say once that it could not make durable what it took.
func failFirstSync(disk *treetest.FaultyFS) {
	var first sync.Once
	disk.Inject(func(c treetest.Call) (f treetest.Fault) {
		if c.Op == "fsync" {
			first.Do(func() { f.Errno = unix.EIO })
		}
		return f
	})
}

// mayFail returns a directory on a disk that can be made to fail, or just a
// directory where there can be no such disk.
func mayFail(t *testing.T) (dir string, disk *treetest.FaultyFS) {
	t.Helper()
	made := make(chan struct{})
	go func() { // which ends where a test would be skipped
		defer close(made)
		dir, disk = treetest.OnFaultyDisk(unskipped{t}, "-O", "^has_journal")
	}()
	<-made
	if disk == nil {
		dir = t.TempDir()
	}
	return dir, disk
}

// unskipped is a test of which a part can be left out.
type unskipped struct{ testing.TB }

// Skip implements testing.TB.
func (u unskipped) Skip(args ...any) { u.Skipf("%s", fmt.Sprint(args...)) }

// Skipf implements testing.TB.
func (u unskipped) Skipf(format string, args ...any) {
	u.Logf("no disk that fails: "+format, args...)
	runtime.Goexit()
}

// buildCommand builds the command in a directory that goes with the test.
func buildCommand(t *testing.T) string {
	t.Helper()
	began := time.Now()
	command := filepath.Join(t.TempDir(), "fsbackup")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", command, "../../cmd/fsbackup").CombinedOutput(); err != nil {
		t.Fatalf("build the command: %v\n%s", err, out)
	}
	t.Logf("the command was built in %.1f s", time.Since(began).Seconds())
	return command
}
