package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// foldingRig is a rig whose destination folds names.
type foldingRig struct {
	*rig
	stored string
}

// onFolding runs f with destinations that fold names, and make nameless files or not.
func onFolding(t *testing.T, f func(t *testing.T, g *foldingRig)) {
	for _, nameless := range []bool{false, true} {
		t.Run(fmt.Sprintf("nameless %v", nameless), func(t *testing.T) {
			t.Parallel()
			g := newRigIn(t, shm(t))
			f(t, &foldingRig{g, treetest.Folding(t, g.dst, nameless)})
		})
	}
}

// has fails unless the store has just these paths, directories left out.
func (g *foldingRig) has(paths ...string) {
	g.t.Helper()
	var got []string
	must(g.t, filepath.WalkDir(g.stored, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), ".nameless-") {
			got = append(got, strings.TrimPrefix(p, g.stored+"/"))
		}
		return err
	}))
	sort.Strings(paths)
	sort.Strings(got)
	if !slices.Equal(got, paths) {
		g.t.Errorf("the destination has %q, want %q", got, paths)
	}
}

// wantRivals fails unless each failure of the outcome names both of a pair.
func wantRivals(t *testing.T, o *Outcome, pairs ...[2]string) {
	t.Helper()
	if len(o.Failures) != len(pairs) {
		t.Errorf("%d failures, want %d: %+v", len(o.Failures), len(pairs), o.Failures)
		return
	}
	for _, f := range o.Failures {
		if !slices.ContainsFunc(pairs, func(p [2]string) bool {
			return strings.Contains(f.Reason, quote(p[0])) && strings.Contains(f.Reason, quote(p[1]))
		}) || f.Kind != uint8(fault.Unsupported) || !strings.Contains(f.Reason, "does not tell it from") {
			t.Errorf("%+v", f)
		}
	}
}

// TestNamesThatFallTogether: of two entries whose names the destination takes for one,
// the first has it and the other fails, whatever they are, whether they are in one batch
// or in two, and the same for each attempt.
func TestNamesThatFallTogether(t *testing.T) {
	for _, threads := range []int{1, 8} {
		for _, replace := range []Replace{ReplaceAlways, ReplaceIfOlder, ReplaceNever} {
			for _, apart := range []bool{false, true} {
				t.Run(fmt.Sprintf("threads %d, replace %d, apart %v", threads, replace, apart), func(t *testing.T) {
					onFolding(t, func(t *testing.T, g *foldingRig) {
						g.spec.Threads, g.spec.Replace = threads, replace
						pairs := [][2]string{{"foo", "FOO"}, {"d/Größe", "d/GRÖSSE"}, {"d/é", "d/É"}}
						var first, second []Entry
						for _, p := range pairs {
							g.write(p[0], p[0])
							g.write(p[1], p[1])
							first, second = append(first, g.copyOf(p[0])), append(second, g.copyOf(p[1]))
						}
						must(t, os.Symlink("link", filepath.Join(g.src, "link")))
						must(t, unix.Mkfifo(filepath.Join(g.src, "LINK"), 0o600))
						pairs = append(pairs, [2]string{"link", "LINK"})
						first, second = append(first, g.copyOf("link")), append(second, g.copyOf("LINK"))
						var names []string
						if apart {
							wantFailures(t, g.twice(t, false, g.batch(1, first...)))
							wantRivals(t, g.twice(t, false, g.batch(1, second...)), pairs...)
							wantFailures(t, g.twice(t, false, g.batch(1, first...)))
							names = []string{"foo", "d/Größe", "d/é", "link"}
						} else {
							o := g.twice(t, false, g.batch(1, append(first, second...)...))
							wantRivals(t, o, pairs...)
							for _, p := range pairs {
								who := p[0]
								if o.Failures[0].Path == who || slices.ContainsFunc(o.Failures, func(f Failure) bool { return f.Path == who }) {
									who = p[1]
								}
								names = append(names, who)
							}
						}
						g.has(names...)
						for _, n := range names {
							if strings.EqualFold(n, "link") {
								continue
							}
							if got := read(t, filepath.Join(g.stored, n)); got != n {
								t.Errorf("%s holds what %s has", n, got)
							}
						}
					})
				})
			}
		}
	}
}

// TestDirectoriesThatFallTogether: nothing of the second gets into the first.
func TestDirectoriesThatFallTogether(t *testing.T) {
	onFolding(t, func(t *testing.T, g *foldingRig) {
		for _, p := range []string{"É/a", "é/a", "Lib/a", "Lib/sub/b", "lib/a", "lib/sub/b", "lib/c", "tool", "Tool/x"} {
			g.write(p, p)
		}
		g.spec.Threads = 1
		copies := func(paths ...string) (es []Entry) {
			for _, p := range paths {
				es = append(es, g.copyOf(p))
			}
			return es
		}
		wantFailures(t, g.twice(t, false, g.batch(1, copies("Lib", "Lib/sub", "Lib/a", "Lib/sub/b", "tool")...)))
		o := g.twice(t, false, g.batch(1, copies("lib", "lib/sub", "lib/a", "lib/sub/b", "lib/c", "Tool", "Tool/x")...))
		lib, tool := [2]string{"lib", "Lib"}, [2]string{"Tool", "tool"}
		wantRivals(t, o, lib, lib, lib, lib, lib, tool, tool)
		wantFailures(t, g.twice(t, false, g.batch(1, copies("É", "É/a")...)))
		wantRivals(t, g.twice(t, false, g.batch(1, copies("é", "é/a")...)), [2]string{"É", "é"}, [2]string{"É", "é"})
		must(t, os.RemoveAll(filepath.Join(g.stored, "É")))
		g.has("Lib/a", "Lib/sub/b", "tool")
		for _, p := range []string{"Lib/a", "Lib/sub/b", "tool"} {
			if got := read(t, filepath.Join(g.stored, p)); got != p {
				t.Errorf("%s holds what %s has", p, got)
			}
		}
		// Nor does a file take the place of the directory.
		must(t, os.RemoveAll(filepath.Join(g.src, "lib")))
		g.write("lib", "a file")
		wantRivals(t, g.twice(t, false, g.batch(1, g.copyOf("lib"))), lib)
		g.has("Lib/a", "Lib/sub/b", "tool")
		// What is deleted is what is called so to the letter.
		g.spec.DeleteUnchecked = true
		o = g.twice(t, false, g.batch(2, file("lib/a"), tree("lib/sub"), tree("lib"), file("TOOL")))
		g.wantCounts(o, entry.Counts{Deleted: 4, DirsDeleted: 2})
		g.has("Lib/a", "Lib/sub/b", "tool")
	})
}

// TestNamesOfAGroupThatFallTogether: the second name is not there, although looking for
// it finds the right object.
func TestNamesOfAGroupThatFallTogether(t *testing.T) {
	onFolding(t, func(t *testing.T, g *foldingRig) {
		g.linked("abc", "d/name", "d/NAME", "d/other")
		o := g.twice(t, false, g.batch(3, g.group(1, "d/name", "d/NAME", "d/other")...))
		wantRivals(t, o, [2]string{"d/name", "d/NAME"})
		if o.Counts.FilesCopied != 1 || o.Counts.Links != 1 || o.Counts.FilesFailed != 1 {
			t.Errorf("%+v", o.Counts)
		}
		g.has("d/name", "d/other")
	})
}

// TestAFileThatIsRenamedButForTheCase is copied under its new name, and not deleted under
// its old one, in whatever order the two are done.
func TestAFileThatIsRenamedButForTheCase(t *testing.T) {
	for _, replace := range []Replace{ReplaceAlways, ReplaceIfOlder} {
		for _, deleteFirst := range []bool{false, true} {
			onFolding(t, func(t *testing.T, g *foldingRig) {
				g.spec.Replace = replace
				for _, p := range []string{"d/readme", "d/l"} {
					g.write(p, p)
				}
				must(t, os.Link(filepath.Join(g.src, "d/l"), filepath.Join(g.src, "d/m")))
				must(t, os.Symlink("x", filepath.Join(g.src, "d/sym")))
				wantFailures(t, g.run(g.batch(1, g.copyOf("d/readme"), g.copyOf("d/sym"))))
				wantFailures(t, g.run(g.batch(3, g.group(1, "d/l", "d/m")...)))
				for _, p := range [][2]string{{"d/readme", "d/README"}, {"d/sym", "d/SYM"}, {"d/m", "d/M"}} {
					must(t, os.Rename(filepath.Join(g.src, p[0]), filepath.Join(g.src, p[1])))
				}
				deletes := func() {
					o := g.twice(t, false, g.batch(2, file("d/readme"), file("d/sym"), file("d/m")))
					g.wantCounts(o, entry.Counts{Deleted: 3})
				}
				if deleteFirst {
					deletes()
				}
				// One attempt: a second would write again what may be the first one's work.
				wantFailures(t, g.run(g.batch(1, g.copyOf("d/README"), g.copyOf("d/SYM"))))
				wantFailures(t, g.run(g.batch(3, g.group(1, "d/l", "d/M")...)))
				if !deleteFirst {
					deletes()
				}
				g.has("d/README", "d/SYM", "d/l", "d/M")
				if read(t, filepath.Join(g.stored, "d/README")) != "d/readme" {
					t.Error("its contents are gone")
				}
				g.oneInode("d/l", "d/M")
			})
		}
	}
}

// TestADirectoryThatIsRenamedButForTheCase fails until the old one is deleted, which the
// same job does; so nothing of it is deleted that was copied before.
func TestADirectoryThatIsRenamedButForTheCase(t *testing.T) {
	onFolding(t, func(t *testing.T, g *foldingRig) {
		g.write("docs/a", "1")
		run := func() *Outcome {
			copies, _ := g.scan()
			return g.twice(t, false, g.batch(1, copies...))
		}
		wantFailures(t, run())
		must(t, os.Rename(filepath.Join(g.src, "docs"), filepath.Join(g.src, "Docs")))
		o := run()
		wantFailures(t, o, "Docs", "Docs/a")
		for _, f := range o.Failures {
			if !strings.Contains(f.Reason, `the destination has it as "docs", and does not tell the two apart (rename it there, or run again once it is deleted there)`) {
				t.Errorf("%+v", f)
			}
		}
		wantFailures(t, g.run(g.batch(2, file("docs/a"), tree("docs"))))
		wantFailures(t, run())
		g.has("Docs/a")
	})
}

// TestVerifyingFindsWhatIsSpelledOtherwise missing.
func TestVerifyingFindsWhatIsSpelledOtherwise(t *testing.T) {
	onFolding(t, func(t *testing.T, g *foldingRig) {
		for _, p := range []string{"foo", "FOO", "Lib/a", "lib/a"} {
			g.write(p, "same")
		}
		when := unix.Timespec{Sec: 1e9}
		for _, p := range []string{"foo", "FOO", "Lib/a", "lib/a"} {
			setTimes(t, filepath.Join(g.src, p), when, when)
		}
		wantFailures(t, g.run(g.batch(1, g.copyOf("foo"), g.copyOf("Lib/a"))))
		dir := g.copyOf("lib")
		dir.Op = entry.OpVerifyDir
		o := g.run(g.batch(5, verifying(g.copyOf("foo")), verifying(g.copyOf("FOO")), verifying(g.copyOf("Lib/a")), verifying(g.copyOf("lib/a")), dir))
		wantFailures(t, o, "FOO", "lib/a", "lib")
		if o.Counts.FilesDiffer != 2 || o.Counts.DirsDiffer != 1 {
			t.Errorf("%+v", o.Counts)
		}
	})
}

// TestOtherFileSystemsTellThemApart: what differs in case is all there.
func TestOtherFileSystemsTellThemApart(t *testing.T) {
	g := newRig(t)
	for _, p := range []string{"foo", "FOO", "Foo", "Lib/a", "lib/a", "lib/A"} {
		g.write(p, p)
	}
	for range 2 {
		g.backup()
		g.same()
	}
	wantFailures(t, g.run(g.batch(2, file("fOO"), tree("LIB"))))
	g.same()
}
