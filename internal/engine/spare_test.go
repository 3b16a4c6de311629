package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// inTheWay makes a source of every kind that is no directory, and its entries.
func (g *rig) inTheWay() (copies, links []Entry, paths []string) {
	g.t.Helper()
	g.write("file", "f")
	g.write("first", "l")
	must(g.t, os.Link(filepath.Join(g.src, "first"), filepath.Join(g.src, "member")))
	must(g.t, os.Symlink("x", filepath.Join(g.src, "link")))
	must(g.t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o600))
	copies = []Entry{g.copyOf("file"), g.copyOf("link"), g.copyOf("fifo")}
	return copies, g.group(1, "first", "member"), []string{"file", "link", "fifo", "first", "member"}
}

// TestSparedDirectories: with SpareDirs a directory in the way goes only if it is
// empty; what is in it stays as it is, and the entry says so.
func TestSparedDirectories(t *testing.T) {
	for _, restore := range []bool{false, true} {
		for _, named := range []bool{false, true} {
			g := newRig(t)
			g.spec.SpareDirs, g.spec.Restore = true, restore
			copies, links, paths := g.inTheWay()
			for _, p := range paths {
				g.target(p+"/kept", p)
				must(t, os.Chmod(filepath.Join(g.dst, p), 0o711))
			}
			before := listing(t, g.dst)
			copied, linked := g.twice(t, named, g.batch(1, copies...)), g.twice(t, named, g.batch(3, links...))
			wantFailures(t, copied, "file", "link", "fifo")
			wantFailures(t, linked, "first", "member")
			for _, f := range append(copied.Failures, linked.Failures[:1]...) {
				if f.Kind != uint8(fault.Unsafe) || f.Errno != int(unix.ENOTEMPTY) ||
					!strings.Contains(f.Reason, "directory not empty (move it away, or replace it with --replace-dirs)") {
					t.Errorf("%+v", f)
				}
			}
			g.untouched(before)
			// The leader alone can be had.
			must(t, os.RemoveAll(filepath.Join(g.dst, "first")))
			wantFailures(t, g.twice(t, named, g.batch(3, links...)), "member")
			for _, p := range paths {
				must(t, os.RemoveAll(filepath.Join(g.dst, p)))
				must(t, os.Mkdir(filepath.Join(g.dst, p), 0o755))
			}
			wantFailures(t, g.twice(t, named, g.batch(1, copies...)))
			wantFailures(t, g.twice(t, named, g.batch(3, links...)))
			g.oneInode("first", "member")
			noTemps(t, g.dst)
		}
	}
}

// untouched fails unless the destination, its root's times excepted, is as listed.
func (g *rig) untouched(before []string) {
	g.t.Helper()
	if got, want := strings.Join(withoutRoot(listing(g.t, g.dst)), "\n"), strings.Join(withoutRoot(before), "\n"); got != want {
		g.t.Errorf("it was\n%s\nand is\n%s", want, got)
	}
}

func withoutRoot(lines []string) (out []string) {
	for _, l := range lines {
		if !strings.HasPrefix(l, " ") {
			out = append(out, l)
		}
	}
	return out
}

// twice executes a batch and then a second attempt at it, which must count the
// same, and returns the outcome.
func (g *rig) twice(t *testing.T, named bool, b *Batch) *Outcome {
	t.Helper()
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	if named {
		j.links[j.dst.info.Dev] = fsys.LinkNone
	}
	first, err := j.Run(t.Context(), b, nil)
	must(t, err)
	second := *b
	second.Predecessors = []AttemptID{b.Attempt}
	second.Attempt.Delivery++
	again, err := j.Run(t.Context(), &second, nil)
	must(t, err)
	for _, o := range []*Outcome{first, again} {
		o.Counts.HoleBytes, o.Counts.ReflinkBytes = 0, 0
	}
	if first.Counts != again.Counts {
		t.Errorf("the first attempt counts\n%+v\nthe second\n%+v", first.Counts, again.Counts)
	}
	return again
}

// TestASparedDirectoryIsDecidedAsItIsRemoved: what somebody puts into an empty
// directory at any moment of the copy is spared.
func TestASparedDirectoryIsDecidedAsItIsRemoved(t *testing.T) {
	for k := 1; ; k++ {
		g := newRig(t)
		g.spec.SpareDirs = true
		copies, links, paths := g.inTheWay()
		var es []Entry
		for _, e := range append(copies, links...) {
			must(t, os.Mkdir(filepath.Join(g.dst, e.Path), 0o755))
			es = append(es, e)
		}
		checks := 0
		put := map[string]bool{}
		g.spec.Threads = 1
		o, err := g.try(g.batch(1, es...), guardFunc(func() error {
			if checks++; checks < k {
				return nil
			}
			for _, p := range paths {
				if os.WriteFile(filepath.Join(g.dst, p, "new"), []byte(p), 0o600) == nil {
					put[p] = true
				}
			}
			return nil
		}))
		must(t, err)
		if checks < k {
			break
		}
		for p := range put {
			if read(t, filepath.Join(g.dst, p, "new")) != p {
				t.Errorf("at check %d: what was put into %s is gone", k, p)
			}
		}
		if len(o.Failures) < len(put) {
			t.Errorf("at check %d: %d directories are spared, %+v", k, len(put), o.Failures)
		}
	}
}

// TestWithoutSparedDirectoriesTheTreeGoes is the default.
func TestWithoutSparedDirectoriesTheTreeGoes(t *testing.T) {
	g := newRig(t)
	copies, links, paths := g.inTheWay()
	for _, p := range paths {
		g.target(p+"/gone", p)
	}
	wantFailures(t, g.run(g.batch(1, copies...)))
	o := g.run(g.batch(3, links...))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 1, Links: 1})
}
