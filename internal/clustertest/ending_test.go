package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// submitAs is Submit under an id of the client's choice, and with the control files
// for harm.
func (c *Cluster) submitAs(id protocol.JobID, src, dst string, change func(*protocol.JobSpec)) client.Files {
	c.t.Helper()
	files, meta := c.Scan(src)
	spec := protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true}
	spec.Limits.Entries = 7
	if change != nil {
		change(&spec)
	}
	if err := c.Client.Submit(c.t.Context(), id, spec, files, true); err != nil {
		c.t.Fatal(err)
	}
	return files
}

// unqueued waits until the queue has nothing of a job that has ended: a shard that has
// its result is there until its worker has acknowledged it.
func (c *Cluster) unqueued(id protocol.JobID) {
	c.t.Helper()
	b := c.connect("raw")
	defer b.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	for {
		q, err := b.Queued(c.t.Context(), protocol.JobShards(id))
		switch {
		case err != nil:
			c.t.Fatal(err)
		case len(q) == 0:
			return
		case !bus.Sleep(ctx, 20*time.Millisecond):
			c.t.Errorf("still queued: %v", q)
			return
		}
	}
}

func marks(t *testing.T, dst string) []string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dst, ".fsbackup-*"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A job that cannot go on ends like any other: nothing of it is queued, nothing of
// it runs, its mark is gone, and only then does the next job on its destination
// begin.
func TestAJobThatCannotGoOnLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for name, workers := range map[string]int{"one worker": 1, "two workers": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := roots(t, 81, 1500)
			for i := range workers {
				c.StartWorker(fmt.Sprint("w", i))
			}
			job := c.Hold("z-first", src, dst, small)
			c.Until("z-first", func(v protocol.JobView) bool { return done(v) > 10 })
			// The id says that it was first. The store knows better.
			c.submitAs("a-second", src, dst, nil)
			v := c.Until("a-second", func(v protocol.JobView) bool { return v.StallCause == "queue" })
			if v.State != protocol.StateQueued || !strings.Contains(v.Stalled, "z-first") {
				t.Fatalf("the second job is %s: %q", v.State, v.Stalled)
			}
			// All of it is handed over, and it has not come to the rest.
			if _, err := c.Pause(t.Context(), job.ID); err != nil {
				t.Fatal(err)
			}
			job.Release()
			all := treetest.Count(treetest.Listing(t, src))
			c.Until(job.ID, func(v protocol.JobView) bool { return v.Stats.DirsToBackup+v.Stats.FilesToBackup == all.Dirs+all.Files })
			for _, f := range job.Files.Control {
				if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			if _, err := c.Resume(t.Context(), job.ID); err != nil && !fault.Is(err, fault.Invalid) { // it may be ending already
				t.Fatal(err)
			}
			v = c.Wait("z-first")
			if v.State != protocol.StateFailed || !strings.Contains(v.Reason, "control") || v.Answered || v.Stats.Unattempted() == 0 {
				t.Errorf("the first job is %s (%s), answered: %v, %+v", v.State, v.Reason, v.Answered, v.Stats)
			}
			c.unqueued("z-first")
			second := c.Wait("a-second")
			whole(t, second, src, dst)
			if second.Started.Before(v.Ended) {
				t.Errorf("the second began at %v, the first ended at %v", second.Started, v.Ended)
			}
			if m := marks(t, dst); len(m) > 0 {
				t.Errorf("marks are left: %v", m)
			}
		})
	}
}

// Requests that create or extend a job overlap and come again: it has each of its
// control files once, admitted or refused once.
func TestOverlappingSubmissionsSetNothingBack(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	c.StartWorker("w")
	dir := t.TempDir()
	var files client.Files
	for i := range 30 {
		path := filepath.Join(dir, fmt.Sprintf("control_%d.txt", i))
		if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
			t.Fatal(err)
		}
		files.Control = append(files.Control, protocol.FileRef{Path: path, Phase: protocol.PhaseCopy})
	}
	spec := protocol.JobSpec{Source: dir, Destination: filepath.Join(dir, "dst"), Meta: dir, WriteMeta: true}
	submit := func(id protocol.JobID, from, to int, seal bool) error {
		part := client.Files{Control: append([]protocol.FileRef{}, files.Control[from:to]...)}
		if from == 0 {
			return c.Client.Submit(t.Context(), id, spec, part, seal)
		}
		return c.Append(t.Context(), id, uint32(from), part.Control, seal)
	}
	for round := range 5 {
		whole, parts := protocol.JobID(fmt.Sprint("whole", round)), protocol.JobID(fmt.Sprint("parts", round))
		var g sync.WaitGroup
		for range 8 {
			g.Go(func() {
				if err := submit(whole, 0, 30, true); err != nil {
					t.Error(err)
				}
			})
			g.Go(func() {
				for i := 0; i < 30; i += 10 {
					if err := submit(parts, i, i+10, i == 20); err != nil {
						t.Error(err)
					}
				}
			})
		}
		g.Wait()
		for _, id := range []protocol.JobID{whole, parts} {
			v := c.Wait(id)
			if v.State != protocol.StateFailed || v.Stats.FilesRefused != 30 {
				t.Errorf("%s: %s with %d control files refused, want 30: %s", id, v.State, v.Stats.FilesRefused, v.Reason)
			}
		}
	}
}

// Somebody edits a control file where it lies, as its job runs: no changed byte is
// executed.
func TestAnEditInPlaceIsNoticedBeforeItIsExecuted(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 82, 800)
	victim := filepath.Join(dst, "keep-me")
	treetest.At(t, dst).File("keep-me", "x")
	dir := t.TempDir()
	const entries = 40_000 // of many blocks, of which few are read ahead
	ref, err := DeleteFile(filepath.Join(dir, "delete.txt"), entries)
	if err != nil {
		t.Fatal(err)
	}
	spec := protocol.JobSpec{Source: src, Destination: dst, Meta: dir, WriteMeta: true, DeleteUnchecked: true}
	spec.Limits.Entries = 500
	if err := c.Client.Submit(t.Context(), "edit", spec, client.Files{Control: []protocol.FileRef{ref}}, true); err != nil {
		t.Fatal(err)
	}
	// Admitted, and a few shards of it cut: nobody is there to take more.
	c.Until("edit", func(v protocol.JobView) bool { return v.StallCause == "workers" && v.Stats.FilesToDelete == entries })
	data, err := os.ReadFile(ref.Path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), "/some-directory-000390", "/./././././././././././"[:len("/some-directory-000390")])
	text = strings.Replace(text, "a-file-with-a-name-000039000.dat", "keep-me"+strings.Repeat(" ", 25), 1)
	f, err := os.OpenFile(ref.Path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	c.StartWorker("w")
	v := c.Wait("edit")
	if v.State != protocol.StateFailed || !strings.Contains(v.Reason, ref.Path) || v.Stats.DeletesNotAttempted == 0 {
		t.Errorf("the job is %s: %s; %+v", v.State, v.Reason, v.Stats)
	}
	if _, err := os.Lstat(victim); err != nil {
		t.Error("what the edit names was deleted")
	}
	c.unqueued("edit")
}
