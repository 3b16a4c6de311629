package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// group makes entries of one hard-link group.
func (g *rig) group(id uint64, paths ...string) []Entry {
	var es []Entry
	for _, p := range paths {
		e := g.copyOf(p)
		e.Op, e.Mode, e.Group = entry.OpLink, "", id
		es = append(es, e)
	}
	return es
}

// linked makes paths names of one source file.
func (g *rig) linked(content string, paths ...string) {
	first := g.write(paths[0], content)
	for _, p := range paths[1:] {
		full := filepath.Join(g.src, p)
		must(g.t, os.MkdirAll(filepath.Dir(full), 0o755))
		must(g.t, os.Link(first, full))
	}
}

func (g *rig) oneInode(paths ...string) {
	g.t.Helper()
	first := inode(g.t, filepath.Join(g.dst, paths[0]))
	for _, p := range paths[1:] {
		if inode(g.t, filepath.Join(g.dst, p)) != first {
			g.t.Errorf("%s is not a link of %s", p, paths[0])
		}
	}
	if n := lstat(g.t, filepath.Join(g.dst, paths[0])).Nlink; int(n) != len(paths) {
		g.t.Errorf("%d links, want %d", n, len(paths))
	}
}

func TestHardLinkGroups(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "a/1", "b/2", "c/d/3")
	g.linked("x", "p", "q")
	must(t, os.Symlink("t", filepath.Join(g.src, "s1")))
	must(t, os.Link(filepath.Join(g.src, "s1"), filepath.Join(g.src, "s2")))
	// In the way of members: a directory, another file, a link of the old leader.
	g.target("b/2/dir/f", "in the way")
	g.target("c/d/3", "other")
	old := g.target("a/1", "old")
	must(t, os.Link(old, filepath.Join(g.dst, "keeps-old")))
	es := append(g.group(1, "a/1", "b/2", "c/d/3"), g.group(2, "p", "q")...)
	es = append(es, g.group(9, "s1", "s2")...)
	want := entry.Counts{FilesCopied: 3, BytesCopied: 4, Links: 4}
	b := g.batch(3, es...)
	o := g.run(b)
	wantFailures(t, o)
	g.wantCounts(o, want)
	check := func() {
		t.Helper()
		g.oneInode("a/1", "b/2", "c/d/3")
		g.oneInode("p", "q")
		g.oneInode("s1", "s2")
		noTemps(t, g.dst)
		if read(t, filepath.Join(g.dst, "keeps-old")) != "old" {
			t.Error("a sibling of the old leader was altered")
		}
	}
	check()
	g.wantCounts(g.run(b), want)
	check()
}

func TestLeaderOfAnEarlierBatchIsOnlyLinkedTo(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2", "3")
	es := g.group(1, "1", "2", "3")
	g.wantCounts(g.run(g.batch(3, es[0], es[1])), entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 1})
	es[0].LeaderOnly = true
	before := inode(t, filepath.Join(g.dst, "1"))
	b := g.batch(3, es[0], es[2])
	g.wantCounts(g.run(b), entry.Counts{Links: 1})
	g.wantCounts(g.run(b), entry.Counts{Links: 1})
	if inode(t, filepath.Join(g.dst, "1")) != before {
		t.Error("the leader was copied again")
	}
	g.oneInode("1", "2", "3")
}

func TestRightLinkIsLeftAlone(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2")
	es := g.group(1, "1", "2")
	g.run(g.batch(3, es...))
	es[0].LeaderOnly = true
	before := lstat(t, filepath.Join(g.dst, "2"))
	g.wantCounts(g.run(g.batch(3, es...)), entry.Counts{Links: 1})
	if lstat(t, filepath.Join(g.dst, "2")).Ctim != before.Ctim {
		t.Error("a right link was made again")
	}
}

func TestMembersFailureDoesNotHideTheOthers(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "bad/2", "3")
	es := g.group(1, "1", "bad/2", "3")
	es[1].Path = "../2"
	o := g.run(g.batch(3, es...))
	wantFailures(t, o, "../2")
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 1, FilesFailed: 1})
}

func TestLeadersFailureFailsTheGroup(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2", "3")
	es := g.group(1, "1", "2", "3")
	must(t, os.Remove(filepath.Join(g.src, "1")))
	o := g.run(g.batch(3, es...))
	wantFailures(t, o, "1", "2", "3")
	g.wantCounts(o, entry.Counts{FilesFailed: 3})
	g.spec.SkipVanished = true
	o = g.run(g.batch(3, es...))
	g.wantCounts(o, entry.Counts{Skipped: 3})
	if len(o.Warnings) != 1 || o.Warnings[0].Kind != WarnLeaderVanished || o.Warnings[0].Count != 2 {
		t.Errorf("warnings %+v", o.Warnings)
	}
	es[0].LeaderOnly = true // and it is not in the destination either
	o = g.run(g.batch(3, es...))
	wantFailures(t, o, "2", "3")
}

func TestGroupWhoseLeaderIsKeptIsLeftOut(t *testing.T) {
	g := newRig(t)
	g.spec.Replace = ReplaceNever
	g.linked("abc", "1", "2")
	g.target("1", "other contents")
	o := g.run(g.batch(3, g.group(1, "1", "2")...))
	g.wantCounts(o, entry.Counts{Skipped: 2})
	if _, err := os.Lstat(filepath.Join(g.dst, "2")); err == nil {
		t.Error("a member was linked to other contents")
	}
}

// TestLeftoverOfARenameOverTheSameInode plants what a rename of one link over
// another of the same inode leaves behind.
func TestLeftoverOfARenameOverTheSameInode(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2")
	es := g.group(1, "1", "2")
	b := g.batch(3, es...)
	g.run(b)
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	left := (&run{execution: &execution{j: j, b: b}}).tempName(b.Attempt, 1)
	must(t, os.Link(filepath.Join(g.dst, "1"), filepath.Join(g.dst, left)))
	again := *b
	again.Predecessors = []AttemptID{b.Attempt}
	again.Attempt.Delivery++
	again.Entries[0].LeaderOnly = true
	out, err := j.Run(t.Context(), &again, nil)
	must(t, err)
	g.wantCounts(out, entry.Counts{Links: 1})
	noTemps(t, g.dst)
}

// TestConcurrentAttemptMakesTheLinkFirst lets another attempt make the member
// right between link and rename.
func TestConcurrentAttemptMakesTheLinkFirst(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2")
	es := g.group(1, "1", "2")
	g.run(g.batch(3, es...))
	es[0].LeaderOnly = true
	two := filepath.Join(g.dst, "2")
	must(t, os.Remove(two))
	put(t, two, "wrong")
	checks := 0
	guard := guardFunc(func() error {
		if checks++; checks == 3 { // entry, link, rename
			must(t, os.Remove(two))
			must(t, os.Link(filepath.Join(g.dst, "1"), two))
		}
		return nil
	})
	o, err := g.try(g.batch(3, es...), guard)
	must(t, err)
	if checks < 3 {
		t.Fatalf("guard asked %d times", checks)
	}
	g.wantCounts(o, entry.Counts{Links: 1})
	g.oneInode("1", "2")
	noTemps(t, g.dst)
}

func TestLinkAcrossMountsFails(t *testing.T) {
	g := newRig(t)
	mountTmpfs(t, filepath.Join(g.dst, "m"), "")
	g.linked("abc", "1", "m/2")
	o := g.run(g.batch(3, g.group(1, "1", "m/2")...))
	wantFailures(t, o, "m/2")
	if len(o.Failures) == 1 && o.Failures[0].Errno != int(unix.EXDEV) {
		t.Errorf("failure %+v", o.Failures[0])
	}
}

// inParts runs a group as the shards of a group beyond the cap do: the first
// batch has the leader and says what became of it, the others only link to it.
func (g *rig) inParts(es []Entry, part int) (sum entry.Counts, parts []*Outcome) {
	g.t.Helper()
	first := g.run(g.batch(3, es[:part]...))
	parts = append(parts, first)
	sum.Add(&first.Counts)
	for at := part; at < len(es); at += part {
		leader := es[0]
		leader.LeaderOnly = true
		b := g.batch(3, append([]Entry{leader}, es[at:min(at+part, len(es))]...)...)
		b.Leader = first.Leader
		o := g.run(b)
		if again := g.run(b); again.Counts != o.Counts || again.Leader != o.Leader {
			g.t.Errorf("a second attempt counts %+v, the first %+v", again, o)
		}
		parts = append(parts, o)
		sum.Add(&o.Counts)
	}
	return sum, parts
}

func TestALeadersFateIsThatOfItsGroupInAllItsBatches(t *testing.T) {
	t.Parallel()
	names := []string{"1", "2", "3", "4", "5", "6", "7"}
	for _, row := range []struct {
		name   string
		set    func(*testing.T, *rig)
		leader entry.Leader
		want   entry.Counts
		warn   string
	}{
		{"done", func(*testing.T, *rig) {}, entry.LeaderDone, entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 6}, ""},
		{"failed", func(t *testing.T, g *rig) { must(t, os.Remove(filepath.Join(g.src, "1"))) },
			entry.LeaderFailed, entry.Counts{FilesFailed: 7}, ""},
		{"vanished", func(t *testing.T, g *rig) {
			g.spec.SkipVanished = true
			must(t, os.Remove(filepath.Join(g.src, "1")))
		}, entry.LeaderVanished, entry.Counts{Skipped: 7}, WarnLeaderVanished},
		{"kept", func(*testing.T, *rig) {}, entry.LeaderKept, entry.Counts{Skipped: 7}, WarnGroupKept},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			g.linked("abc", names...)
			es := g.group(1, names...)
			row.set(t, g)
			if row.leader == entry.LeaderKept {
				g.spec.Replace = ReplaceNever
			}
			foreign := row.leader != entry.LeaderDone
			if foreign {
				// Somebody else's file is where the leader should be.
				g.target("1", "foreign")
			}
			sum, parts := g.inParts(es, 3)
			if sum != row.want {
				t.Errorf("counts %+v, want %+v", sum, row.want)
			}
			warned := uint64(0)
			for i, o := range parts {
				if o.Leader != row.leader {
					t.Errorf("batch %d: the leader is %v", i, o.Leader)
				}
				for _, w := range o.Warnings {
					if w.Kind != row.warn {
						t.Errorf("warning %+v", w)
					}
					warned += w.Count
				}
				if row.leader != entry.LeaderFailed {
					wantFailures(t, o)
					continue
				}
				for _, f := range o.Failures {
					if f.Path != "1" && !strings.Contains(f.Reason, `the first name of the group, "1"`) {
						t.Errorf("failure %+v", f)
					}
				}
			}
			if row.warn != "" && warned != 6 {
				t.Errorf("%d warnings, want one for each member", warned)
			}
			if !foreign {
				g.oneInode(names...)
				return
			}
			for _, n := range names[1:] {
				if _, err := os.Lstat(filepath.Join(g.dst, n)); err == nil {
					t.Errorf("%s was made, of somebody else's file", n)
				}
			}
			if st := lstat(t, filepath.Join(g.dst, "1")); st.Nlink != 1 {
				t.Errorf("somebody else's file has %d names", st.Nlink)
			}
		})
	}
}

// Of several groups in a batch only the last can go on.
func TestTheLeaderThatIsToldIsThatOfTheLastGroup(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.linked("abc", "1", "2")
	g.linked("xyz", "a", "b")
	es := append(g.group(1, "1", "2"), g.group(2, "a", "b")...)
	must(t, os.Remove(filepath.Join(g.src, "1")))
	if o := g.run(g.batch(3, es...)); o.Leader != entry.LeaderDone {
		t.Errorf("the first group failed, and the leader of the last is %v", o.Leader)
	}
	must(t, os.Remove(filepath.Join(g.src, "a")))
	if o := g.run(g.batch(3, es...)); o.Leader != entry.LeaderFailed {
		t.Errorf("the leader of the last group is %v", o.Leader)
	}
}
