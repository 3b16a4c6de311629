package engine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// wantWarning fails unless the outcome has n warnings of the kind, with the example.
func wantWarning(t testing.TB, o *Outcome, kind string, n uint64, example string) {
	t.Helper()
	i := slices.IndexFunc(o.Warnings, func(w Warning) bool { return w.Kind == kind })
	if n == 0 && i < 0 {
		return
	}
	if i < 0 || o.Warnings[i].Count != n || o.Warnings[i].Example != example {
		t.Errorf("warnings %+v, want %d of %s from %q", o.Warnings, n, kind, example)
	}
}

// TestEmptyDirectoriesOnlyAreDeleted: with DeleteEmpty directories go only if
// nothing is in them that no line names, whatever the order in which threads meet
// the lines of files and the way that the lines of directories are in.
func TestEmptyDirectoriesOnlyAreDeleted(t *testing.T) {
	for _, threads := range []int{1, 8} {
		g := newRig(t)
		g.spec.DeleteEmpty, g.spec.Threads = true, threads
		var es []Entry
		var dirs []Entry
		for i := range 40 {
			d := fmt.Sprintf("d%02d", i)
			g.target(d+"/sub/f", "x")
			es = append(es, file(d+"/sub/f"))
			dirs = append(dirs, tree(d+"/sub"), tree(d))
		}
		g.target("d07/sub/own", "kept")
		g.target("d31/own", "kept")
		g.target("afile", "x")
		g.write("back/f", "x")
		must(t, os.Mkdir(filepath.Join(g.dst, "back"), 0o755))
		dirs = append(dirs, tree("afile"), tree("missing/too"), tree("back"))
		b := g.batch(2, append(dirs, es...)...) // lines of directories first
		o := g.twice(t, false, b)
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{Deleted: 40 + 80 - 3 + 2, DirsDeleted: 80 - 3 + 2, Skipped: 4, DirsKept: 3})
		wantWarning(t, o, WarnDirKept, 3, "d07/sub")
		if l := listing(t, g.dst); len(l) != 1+3+2+2 {
			t.Errorf("left:\n%v", l)
		}
		if read(t, filepath.Join(g.dst, "d07/sub/own")) != "kept" || read(t, filepath.Join(g.dst, "d31/own")) != "kept" {
			t.Error("what no line names is gone")
		}
	}
}

func TestAMountPointIsKeptLikeADirectoryThatIsNotEmpty(t *testing.T) {
	g := newRig(t)
	g.spec.DeleteEmpty, g.spec.DeleteUnchecked = true, true
	m := filepath.Join(g.dst, "d/m")
	mountTmpfs(t, m, "")
	o := g.twice(t, false, g.batch(2, tree("d/m"), tree("d")))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{Skipped: 2, DirsKept: 2})
	wantWarning(t, o, WarnDirKept, 2, "d/m")
}

// TestUserDeletesBelowDirectoriesThatRefuse: a directory of our own is opened up for
// the time of the job, also where what goes is a directory itself.
func TestUserDeletesBelowDirectoriesThatRefuse(t *testing.T) {
	userDir(t)
	for _, empty := range []bool{false, true} {
		g := newRig(t)
		g.spec.DeleteEmpty = empty
		must(t, os.MkdirAll(filepath.Join(g.dst, "a/b/c"), 0o755))
		g.target("a/f", "x")
		must(t, os.Chmod(filepath.Join(g.dst, "a/b"), 0o500))
		must(t, os.Chmod(filepath.Join(g.dst, "a"), 0o500))
		must(t, os.Chmod(g.dst, 0o500))
		t.Cleanup(func() { _ = exec.Command("chmod", "-R", "u+rwx", g.dst).Run() })
		o := g.run(g.batch(2, file("a/f"), tree("a/b/c"), tree("a/b"), tree("a")))
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{Deleted: 4, DirsDeleted: 3})
	}
}

// TestWhatTheSourceIsSeenToLackIsNotLookedUpAgain, and what it has is.
func TestWhatTheSourceIsSeenToLackIsNotLookedUpAgain(t *testing.T) {
	g := newRig(t)
	g.spec.Threads = 1
	g.write("has/f", "x")
	for _, p := range []string{"has/f", "has/gone", "gone/f", "gone/sub/f", "gone/sub/sub/f"} {
		g.target(p, "x")
	}
	o := g.run(g.batch(2, file("has/gone"), file("gone/f"), file("gone/sub/f"), file("gone/sub/sub/f"), file("has/f"), tree("gone"), tree("has")))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{Deleted: 5, DirsDeleted: 1, Skipped: 2})
}
