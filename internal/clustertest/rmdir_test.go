package clustertest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// deleteTree writes a control file that deletes the files of some directories, and
// the directories, in the order given.
func deleteTree(t *testing.T, path string, dirs []string, files ...string) protocol.FileRef {
	t.Helper()
	w, err := controlfile.NewWriter(path, controlfile.Header{Kind: controlfile.Delete}, time.Unix(1_700_000_000, 0).UTC(), controlfile.Limits{Entries: 1 << 20, Bytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := w.Add(controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: dir, Delete: true}, 0); err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if err := w.Add(controlfile.Entry{Type: controlfile.TypeFile, Name: name}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return protocol.FileRef{Path: path, Phase: protocol.PhaseDelete}
}

// somewhere are so many directories that nobody deletes.
func somewhere(n int) []string {
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = fmt.Sprintf("/dir-%03d", i)
	}
	return dirs
}

func deletesEmpty(s *protocol.JobSpec) { s.DeleteEmpty, s.Limits.Entries = true, 3 }

// recorder notes what simulated workers do with the shards of a job.
type recorder struct {
	mu      sync.Mutex
	begun   []Shard // of the rmdir phase
	deletes int     // shards of the delete phase
	faults  []string
}

func (r *recorder) begin(s Shard) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Phase == protocol.PhaseDelete {
		r.deletes++
		if len(r.begun) > 0 {
			r.faults = append(r.faults, fmt.Sprintf("shard %d of the delete phase comes after %v", s.N, r.begun))
		}
		return
	}
	r.begun = append(r.begun, s)
}

// The directories that delete files name are deleted after all else that they name,
// one shard after the other, over several files, workers and leaders.
func TestDirectoriesAreDeletedAfterAllElseAndOneShardAfterAnother(t *testing.T) {
	t.Parallel()
	for _, before := range []bool{false, true} {
		t.Run(fmt.Sprint("before=", before), func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			var r recorder
			arrived, hold := make(chan struct{}), make(chan struct{})
			open := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(open)
			first := sync.OnceFunc(func() { close(arrived) })
			for i := range 2 {
				c.simulate(t, &Sim{Name: fmt.Sprint("w", i), Slots: 4, Before: func(s Shard) {
					r.begin(s)
					if s.Phase == protocol.PhaseRmdir && s.N == 5 {
						first()
						<-hold
					}
				}})
			}
			dir := t.TempDir()
			var f client.Files
			for i := range 3 {
				f.Control = append(f.Control, deleteTree(t, filepath.Join(dir, fmt.Sprintf("delete-%d.txt", i)), somewhere(10), "a", "b"))
			}
			id := c.submitFiles(f, func(s *protocol.JobSpec) {
				deletesEmpty(s)
				s.DeleteBefore = before
			})
			<-arrived
			c.KillCoordinator()
			c.StartCoordinator()
			c.Until(id, func(v protocol.JobView) bool { return v.Phase == protocol.PhaseRmdir })
			open()
			v := c.Wait(id)
			want := protocol.Stats{DirsToDelete: 30, FilesToDelete: 60, Deleted: 90, DirsDeleted: 30, ShardsRepeated: v.Stats.ShardsRepeated}
			if v.State != protocol.StateCompleted || v.Stats != want || !v.Answered {
				t.Errorf("job is %s (%s)\n got %+v\nwant %+v", v.State, v.Reason, v.Stats, want)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.faults) > 0 {
				t.Error(strings.Join(r.faults, "\n"))
			}
			// A shard may come twice, but never before one that it needs.
			next := uint64(0)
			for _, s := range r.begun {
				if s.N > next {
					t.Errorf("shard %d begins, want no more than %d: %v", s.N, next, r.begun)
				}
				next = max(next, s.N+1)
			}
			// Each file begins a shard: 10 directories are in 4.
			if next != 12 || r.deletes < 21 {
				t.Errorf("%d shards of directories, %d of the rest; want 12 and 21", next, r.deletes)
			}
		})
	}
}

// undone returns the entries that a job has not done.
func (c *Cluster) undone(v protocol.JobView) (dirs, files []string) {
	c.t.Helper()
	for f, err := range c.Undone(c.t.Context(), v) {
		if err != nil {
			c.t.Fatal(err)
		}
		if !f.Delete {
			c.t.Errorf("%q is not done, and not known as a delete", f.Path)
		}
		if strings.Contains(f.Path, "/") {
			files = append(files, f.Path)
		} else {
			dirs = append(dirs, f.Path)
		}
	}
	slices.Sort(dirs)
	slices.Sort(files)
	return slices.Compact(dirs), slices.Compact(files)
}

// A job is cancelled in either phase of its delete files: figures close, and what has
// no result is known by name, directories and files each from their phase.
func TestAJobThatIsCancelledKnowsWhichDirectoriesItHasNotDeleted(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		phase       protocol.Phase
		n           uint64
		dirs, files int // without a result
	}{
		{protocol.PhaseDelete, 2, 10, 11}, {protocol.PhaseRmdir, 0, 7, 0}, {protocol.PhaseRmdir, 2, 1, 0},
	} {
		t.Run(fmt.Sprint(row.phase, row.n), func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			arrived, hold := make(chan struct{}), make(chan struct{})
			open := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(open)
			first := sync.OnceFunc(func() { close(arrived) })
			c.simulate(t, &Sim{Name: "w", Slots: 1, Before: func(s Shard) {
				if s.Phase == row.phase && s.N == row.n {
					first()
					<-hold
				}
			}})
			f := client.Files{Control: []protocol.FileRef{deleteTree(t, filepath.Join(t.TempDir(), "delete.txt"), somewhere(10), "a", "b")}}
			id := c.submitFiles(f, deletesEmpty)
			<-arrived
			if _, err := c.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			open() // a result that comes now counts
			v := c.Wait(id)
			dirs, files := c.undone(v)
			if len(dirs) != row.dirs || len(files) != row.files {
				t.Errorf("not done: %d directories %v and %d files %v, want %d and %d", len(dirs), dirs, len(files), files, row.dirs, row.files)
			}
			want := protocol.Stats{DirsToDelete: 10, FilesToDelete: 20, DeletesNotAttempted: uint64(row.dirs + row.files), DirsDeleted: uint64(10 - row.dirs), ShardsRepeated: v.Stats.ShardsRepeated}
			want.Deleted = 30 - want.DeletesNotAttempted
			if v.State != protocol.StateCancelled || v.Answered || v.Stats != want {
				t.Errorf("job is %s (%s)\n got %+v\nwant %+v", v.State, v.Reason, v.Stats, want)
			}
		})
	}
}

// A shard of directories fails: the rest is executed, or, with fail_fast, known as not
// attempted. What failed is known as a delete.
func TestDirectoriesThatCannotBeDeletedAreFailedDeletes(t *testing.T) {
	t.Parallel()
	for _, fast := range []bool{false, true} {
		t.Run(fmt.Sprint("fail_fast=", fast), func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			hold := make(chan struct{})
			open := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(open)
			c.simulate(t, &Sim{Name: "w", Slots: 2, Dies: func(s Shard) bool { return s.Phase == protocol.PhaseRmdir && s.N == 1 }, Before: func(s Shard) {
				if fast && s.Phase == protocol.PhaseRmdir && s.N == 2 {
					<-hold // the failure before it ends the job
				}
			}})
			f := client.Files{Control: []protocol.FileRef{deleteTree(t, filepath.Join(t.TempDir(), "delete.txt"), somewhere(10), "a", "b")}}
			id := c.submitFiles(f, func(s *protocol.JobSpec) {
				deletesEmpty(s)
				s.FailFast = fast
			})
			if fast {
				c.Until(id, func(v protocol.JobView) bool { return v.State == protocol.StateEnding })
				open()
			}
			v := c.Wait(id)
			dirs, files := c.undone(v)
			want := protocol.Stats{DirsToDelete: 10, FilesToDelete: 20, Deleted: 27, DirsDeleted: 7, DeletesFailed: 3, DirDeletesFailed: 3, ShardsRepeated: v.Stats.ShardsRepeated}
			lost := somewhere(10)[3:6]
			if fast { // the third may have been published meanwhile
				want.DeletesNotAttempted = v.Stats.DeletesNotAttempted
				want.Deleted -= want.DeletesNotAttempted
				want.DirsDeleted -= want.DeletesNotAttempted
				lost = append(lost, somewhere(10)[10-want.DeletesNotAttempted:]...)
			}
			for i := range lost {
				lost[i] = strings.Trim(lost[i], "/")
			}
			if v.State != protocol.StateFailed || v.Stats != want || v.Failures != 3 {
				t.Errorf("job is %s (%s), %d failures\n got %+v\nwant %+v", v.State, v.Reason, v.Failures, v.Stats, want)
			}
			if !slices.Equal(dirs, lost) || len(files) > 0 {
				t.Errorf("not done: %v and %v, want %v", dirs, files, lost)
			}
			if fast && (want.DeletesNotAttempted == 0 || v.Answered) {
				t.Errorf("nothing is left to do: %+v", v.Stats)
			}
		})
	}
}

// Deep directories are deleted from the bottom, one entry a shard, by several workers.
func TestEmptyDirectoriesAreDeletedFromTheBottom(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	for i := range 2 {
		c.StartWorker(fmt.Sprint("w", i))
	}
	src, dst := t.TempDir(), t.TempDir()
	b := treetest.At(t, dst)
	b.File("stays", "s")
	deep := ""
	var dirs []string
	for range 12 {
		deep += "/d"
		b.File(strings.TrimPrefix(deep, "/")+"/a", "x")
		dirs = append(dirs, deep)
	}
	slices.Reverse(dirs)
	f := client.Files{Control: []protocol.FileRef{deleteTree(t, filepath.Join(t.TempDir(), "delete.txt"), dirs, "a")}}
	spec := protocol.JobSpec{Source: src, Destination: dst, Meta: src, WriteMeta: true, DeleteEmpty: true}
	spec.Limits.Entries = 1
	id := client.NewJobID(time.Now())
	if err := c.Client.Submit(t.Context(), id, spec, f, true); err != nil {
		t.Fatal(err)
	}
	v := c.Wait(id)
	want := protocol.Stats{DirsToDelete: 12, FilesToDelete: 12, Deleted: 24, DirsDeleted: 12, ShardsRepeated: v.Stats.ShardsRepeated}
	if v.State != protocol.StateCompleted || v.Stats != want {
		t.Errorf("job is %s (%s)\n got %+v\nwant %+v", v.State, v.Reason, v.Stats, want)
	}
	left, err := os.ReadDir(dst)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the destination: %v, %v", left, err)
	}
}

// Directories that are gone have something in them that nobody names. They stay, with
// those above them, and each is counted once: also where a worker dies that has done a
// shard and not told it, and another coordinator goes on.
func TestDirectoriesWithSomethingForeignInThemAreKeptAndCountedOnce(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		after int // looks at the mounts: two a shard, of which the second is after the work
		phase protocol.Phase
	}{
		{"deleting files", 17, protocol.PhaseDelete}, {"before a shard of directories", 49, protocol.PhaseRmdir},
		{"after a shard of directories", 50, protocol.PhaseRmdir}, {"after a later shard of directories", 56, protocol.PhaseRmdir},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := t.TempDir(), t.TempDir()
			b := treetest.At(t, dst)
			var f client.Files
			for half := range 2 {
				var dirs []string
				for i := range 5 {
					top := fmt.Sprintf("/t%d", half*5+i)
					for _, d := range []string{top + "/sub/deep", top + "/sub", top} {
						b.File(strings.Trim(d, "/")+"/a", "x")
						b.File(strings.Trim(d, "/")+"/b", "x")
						dirs = append(dirs, d)
					}
				}
				f.Control = append(f.Control, deleteTree(t, filepath.Join(t.TempDir(), fmt.Sprintf("delete-%d.txt", half)), dirs, "a", "b"))
			}
			b.File("t1/sub/foreign", "f")
			b.Dir("t4/foreign directory")
			b.File("t8/sub/deep/foreign", "f")
			b.File("stays", "s")

			arrived, hold := make(chan struct{}), make(chan struct{})
			open := sync.OnceFunc(func() { close(hold) })
			first := c.StartWorker("first", c.sees(&mountTable{after: row.after, hold: hold, held: sync.OnceFunc(func() { close(arrived) })}), func(cfg *worker.Config) { cfg.Slots = 1 })
			t.Cleanup(open)
			spec := protocol.JobSpec{Source: src, Destination: dst, Meta: src, WriteMeta: true, DeleteEmpty: true}
			spec.Limits.Entries = 3
			id := client.NewJobID(time.Now())
			if err := c.Client.Submit(t.Context(), id, spec, f, true); err != nil {
				t.Fatal(err)
			}
			<-arrived
			if v := c.Until(id, func(v protocol.JobView) bool { return v.Phase == row.phase }); v.Phase != row.phase {
				t.Fatalf("the job is in the phase %s", v.Phase)
			}
			first.bus.Close() // it can say nothing more
			open()
			first.Kill()
			c.KillCoordinator()
			c.StartCoordinator()
			c.StartWorker("second")
			c.StartWorker("third")
			v := c.Wait(id)
			want := protocol.Stats{DirsToDelete: 30, FilesToDelete: 60, Deleted: 84, DirsDeleted: 24, Skipped: 6, SkippedDeletes: 6, DirsKept: 6, ShardsRepeated: v.Stats.ShardsRepeated}
			if v.State != protocol.StateCompleted || v.Stats != want || !v.Answered {
				t.Errorf("job is %s (%s)\n got %+v\nwant %+v", v.State, v.Reason, v.Stats, want)
			}
			if len(v.Warnings) != 1 || v.Warnings[0].Kind != engine.WarnDirKept || v.Warnings[0].Count != 6 {
				t.Errorf("warnings: %+v", v.Warnings)
			}
			var left []string
			for _, e := range treetest.Listing(t, dst) {
				left = append(left, e.Path)
			}
			if want := []string{"", "stays", "t1", "t1/sub", "t1/sub/foreign", "t4", "t4/foreign directory", "t8", "t8/sub", "t8/sub/deep", "t8/sub/deep/foreign"}; !slices.Equal(left, want) {
				t.Errorf("left are %q, want %q", left, want)
			}
		})
	}
}
