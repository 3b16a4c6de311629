package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

var errLost = fault.New(fault.Stale, "lease lost")

// TestGuardStopsAtEachCheck loses the lease at the k-th check, for every k: each
// name then has its old or its new object, whole, nothing is left behind, and
// the next attempt ends as if it had been the only one.
func TestGuardStopsAtEachCheck(t *testing.T) {
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named=%v", named), func(t *testing.T) {
			for k := int64(0); ; k++ {
				if done := stopAt(t, k, named); done {
					if k < 20 {
						t.Errorf("only %d checks", k)
					}
					return
				}
			}
		})
	}
}

func stopAt(t *testing.T, k int64, named bool) (done bool) {
	g := newRigIn(t, shm(t))
	g.spec.Threads = 1
	contents := map[string][2]string{"new": {"", "n1"}, "old": {"o0", "o1"}, "d/deep": {"", "d1"}, "inway": {"dir", "w1"}, "h1": {"", "hh"}, "h2": {"x", "hh"}}
	for _, p := range []string{"new", "old", "d/deep", "inway"} {
		g.write(p, contents[p][1])
	}
	g.linked("hh", "h1", "h2")
	must(t, os.Symlink("to", filepath.Join(g.src, "sl")))
	must(t, os.Symlink("old", filepath.Join(g.dst, "sl")))
	g.target("old", "o0")
	g.target("h2", "x")
	g.target("inway/sub/f", "dir")
	g.target("gone", "g")
	g.target("gonedir/a/b", "g")
	es := []Entry{g.copyOf("new"), g.copyOf("old"), g.copyOf("d"), g.copyOf("d/deep"), g.copyOf("inway"), g.copyOf("sl"),
		file("gone"), tree("gonedir")}
	es = append(es, g.group(1, "h1", "h2")...)
	b := g.batch(1, es...)

	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	if named {
		j.links[j.dst.info.Dev] = fsys.LinkNone
	}
	_, err = j.Run(context.Background(), b, newCountdown(k, errLost))
	if err == nil {
		done = true
	} else if !errors.Is(err, errLost) || fault.KindOf(err) != fault.Stale {
		t.Fatalf("check %d: %v", k, err)
	}
	noTemps(t, g.dst)
	for p, c := range contents {
		full := filepath.Join(g.dst, p)
		st, err := os.Lstat(full)
		switch {
		case err != nil:
			if c[0] != "" && p != "inway" {
				t.Errorf("check %d: %s is gone", k, p)
			}
		case st.IsDir():
			if p != "inway" {
				t.Errorf("check %d: %s is a directory", k, p)
			}
		default:
			if got := read(t, full); got != c[0] && got != c[1] {
				t.Errorf("check %d: %s is %q", k, p, got)
			}
		}
	}
	if to, err := os.Readlink(filepath.Join(g.dst, "sl")); err != nil || to != "old" && to != "to" {
		t.Errorf("check %d: link %q %v", k, to, err)
	}
	again := *b
	again.Predecessors = []AttemptID{b.Attempt}
	again.Attempt.Delivery++
	o, err := j.Run(context.Background(), &again, nil)
	must(t, err)
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{DirsCopied: 1, FilesCopied: 6, BytesCopied: 10, Deleted: 2, DirsDeleted: 1, Links: 1})
	noTemps(t, g.dst)
	return done
}

// TestKilledAttemptsTemporariesAreRemoved plants the names that a killed
// attempt leaves, beside one of another shard, which must stay.
func TestKilledAttemptsTemporariesAreRemoved(t *testing.T) {
	g := newRig(t)
	g.write("d/f", "x")
	g.write("g", "x")
	must(t, os.Mkdir(filepath.Join(g.dst, "d"), 0o755))
	b := g.batch(1, g.copyOf("d/f"), g.copyOf("g"))
	b.Attempt.Delivery = 3
	b.Predecessors = []AttemptID{{b.Attempt.Sequence, 1}, {b.Attempt.Sequence, 2}}
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	r := &run{execution: &execution{j: j, b: b}}
	for i, dir := range []string{"d/", ""} {
		for _, a := range b.Predecessors {
			g.target(dir+r.tempName(a, uint32(i)), "half")
		}
	}
	other := g.target("d/"+r.tempName(AttemptID{99, 1}, 0), "another shard's")
	own := g.target("d/"+r.tempName(b.Attempt, 0), "this attempt's, from before a crash")
	j.links[j.dst.info.Dev] = fsys.LinkNone
	o, err := j.Run(t.Context(), b, nil)
	must(t, err)
	wantFailures(t, o)
	if !exists(other) || exists(own) {
		t.Error("wrong names removed")
	}
	must(t, os.Remove(other))
	noTemps(t, g.dst)
}

// TestRemovedTemporaryMeansStale removes the attempt's temporary before its
// rename, as a later attempt does.
func TestRemovedTemporaryMeansStale(t *testing.T) {
	g := newRig(t)
	g.write("f", "new")
	g.target("f", "old")
	guard := guardFunc(func() error {
		names, err := filepath.Glob(filepath.Join(g.dst, ".fsb-*"))
		must(t, err)
		for _, n := range names {
			must(t, os.Remove(n))
		}
		return nil
	})
	_, err := g.try(g.batch(1, g.copyOf("f")), guard)
	if !fault.Is(err, fault.Stale) {
		t.Errorf("got %v", err)
	}
	if read(t, filepath.Join(g.dst, "f")) != "old" {
		t.Error("target changed")
	}
}

func TestTemporaryNames(t *testing.T) {
	j := &Job{spec: JobSpec{ID: "j"}}
	r := &run{execution: &execution{j: j, b: &Batch{Phase: 1, N: 2}}}
	seen := map[string]bool{}
	for seq := range uint64(10) {
		for del := range uint32(10) {
			for i := range uint32(10) {
				n := r.tempName(AttemptID{seq, del}, i)
				if len(n) != 31 || !strings.HasPrefix(n, ".fsb-") || strings.Contains(n, "/") || seen[n] {
					t.Fatalf("name %q", n)
				}
				seen[n] = true
			}
		}
	}
	if diff := cmp.Diff(r.tempName(AttemptID{1, 1}, 1), r.tempName(AttemptID{1, 1}, 1)); diff != "" {
		t.Error(diff)
	}
}

// TestDirectoryRemovedMeanwhile removes the parent directory between its
// resolution and the link.
func TestDirectoryRemovedMeanwhile(t *testing.T) {
	for _, named := range []bool{false, true} {
		g := newRig(t)
		g.write("d/f", "x")
		j, err := g.e.OpenJob(g.spec)
		must(t, err)
		if named {
			j.links[j.dst.info.Dev] = fsys.LinkNone
		}
		left := 2
		guard := guardFunc(func() error {
			if exists(filepath.Join(g.dst, "d")) && left > 0 {
				left--
				must(t, os.RemoveAll(filepath.Join(g.dst, "d")))
			}
			return nil
		})
		o, err := j.Run(t.Context(), g.batch(1, g.copyOf("d/f")), guard)
		must(t, err)
		must(t, j.Close())
		wantFailures(t, o)
		if left != 0 || read(t, filepath.Join(g.dst, "d/f")) != "x" {
			t.Error("not copied again")
		}
	}
}

func TestFullDiskGivesTheBatchBack(t *testing.T) {
	g := newRig(t)
	for i := range 20 {
		g.write(fmt.Sprintf("d%d/f%d", i%3, i), strings.Repeat("x", 200<<10))
	}
	mountTmpfs(t, g.dst, "size=1m")
	copies, _ := g.scan()
	_, err := g.try(g.batch(1, copies...), nil)
	if !fault.Is(err, fault.Exhausted) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	noTemps(t, g.dst)

	must(t, unix.Mount("tmpfs", g.dst, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err = g.try(g.batch(1, copies...), nil)
	if !fault.Is(err, fault.Exhausted) || !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only: got %v", err)
	}
	must(t, unix.Mount("tmpfs", g.dst, "tmpfs", unix.MS_REMOUNT, "size=100m"))
	o := g.run(g.batch(1, copies...))
	wantFailures(t, o)
}

func TestNoInodesLeftGivesTheBatchBack(t *testing.T) {
	g := newRig(t)
	for i := range 20 {
		g.write(fmt.Sprintf("d%d/f", i), "x")
	}
	mountTmpfs(t, g.dst, "nr_inodes=10")
	copies, _ := g.scan()
	if _, err := g.try(g.batch(1, copies...), nil); !fault.Is(err, fault.Exhausted) {
		t.Errorf("got %v", err)
	}
}

func TestCancelGivesTheBatchBack(t *testing.T) {
	g := newRig(t)
	g.write("f", "x")
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	ctx, cancel := context.WithCancelCause(t.Context())
	guard := guardFunc(func() error { cancel(errors.New("shutting down")); return nil })
	if _, err := j.Run(ctx, g.batch(1, g.copyOf("f")), guard); !fault.Is(err, fault.Canceled) {
		t.Errorf("got %v", err)
	}
	noTemps(t, g.dst)
}
