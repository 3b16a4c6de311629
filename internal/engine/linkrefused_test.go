package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestMembersThatCantBeLinkedAreCopied: whatever a file system refuses links with,
// and whatever stands in the place of the names, each of them is there afterwards,
// counts as a link, and does so for each attempt.
func TestMembersThatCantBeLinkedAreCopied(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EMLINK, unix.EOPNOTSUPP, unix.ENOSYS} {
		for _, replace := range []Replace{ReplaceAlways, ReplaceIfOlder, ReplaceNever} {
			for _, meta := range []bool{true, false} {
				t.Run(fmt.Sprintf("%v, replace %d, metadata %v", errno, replace, meta), func(t *testing.T) {
					t.Parallel()
					g := newRigIn(t, shm(t))
					g.spec.Replace, g.spec.WriteMeta = replace, meta
					dst := treetest.Faulty(t, g.dst)
					g.linked("abc", "a/1", "a/2", "b/3", "b/4")
					must(t, unix.Lsetxattr(filepath.Join(g.src, "a/1"), "user.x", []byte("y"), 0))
					if replace == ReplaceAlways {
						g.target("b/4/gone", "a directory in the way")
					}
					dst.Inject(each("link", 0, treetest.Fault{Errno: errno}))
					want := entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 3, LinksCopied: 3}
					b := g.batch(3, g.group(1, "a/1", "a/2", "b/3", "b/4")...)
					for range 2 {
						o := g.twice(t, false, b)
						wantFailures(t, o)
						g.wantCounts(o, want)
						wantWarning(t, o, WarnLinkRefused, 3, "a/2")
					}
					for _, p := range []string{"a/2", "b/3"} {
						if got := read(t, filepath.Join(g.dst, p)); got != "abc" {
							t.Errorf("%s holds %q", p, got)
						}
					}
					if src, got := lstat(t, filepath.Join(g.src, "b/3")), lstat(t, filepath.Join(g.dst, "b/3")); meta && (got.Mtim != src.Mtim || got.Nlink != 1) {
						t.Errorf("%+v, the source has %+v", got, src)
					}
					noTemps(t, dst.Stored)
				})
			}
		}
	}
}

// TestSomeLinksAreRefused: a file has as many names as it can have.
func TestSomeLinksAreRefused(t *testing.T) {
	g := newRigIn(t, shm(t))
	dst := treetest.Faulty(t, g.dst)
	g.linked("abc", "1", "2", "3", "4")
	n := 0
	dst.Inject(func(c treetest.Call) treetest.Fault {
		if c.Op == "link" {
			if n++; n > 1 {
				return treetest.Fault{Errno: unix.EMLINK}
			}
		}
		return treetest.Fault{}
	})
	b := g.batch(3, g.group(1, "1", "2", "3", "4")...)
	o := g.run(b)
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 3, LinksCopied: 2})
	dst.Inject(nil)
	o = g.run(b) // a later run finds room
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 3, Links: 3})
	g.oneInode("1", "2", "3", "4")
}

// TestAMemberThatIsKeptIsProbedWithoutTrace: the policy keeps what looks like the
// leader where links are possible.
func TestAMemberThatIsKeptIsProbedWithoutTrace(t *testing.T) {
	g := newRig(t)
	g.spec.Replace = ReplaceNever
	g.linked("abc", "1", "2")
	g.target("2", "own")
	o := g.twice(t, false, g.batch(3, g.group(1, "1", "2")...))
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 3, Skipped: 1})
	if read(t, filepath.Join(g.dst, "2")) != "own" {
		t.Error("it was replaced")
	}
	noTemps(t, g.dst)
}

// TestALinkIsNotTakenForRefusedWhenTheTargetIsProtected: the entry fails as before.
func TestALinkIsNotTakenForRefusedWhenTheTargetIsProtected(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "1", "2")
	chattr(t, "+i", g.target("2", "own"))
	o := g.run(g.batch(3, g.group(1, "1", "2")...))
	wantFailures(t, o, "2")
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 3, FilesFailed: 1})
	noTemps(t, g.dst)
}

// TestUserLinksToFilesOfOthersAreCopied: fs.protected_hardlinks lets nobody link to
// a file that he could not write to.
func TestUserLinksToFilesOfOthersAreCopied(t *testing.T) {
	dir := filepath.Join(userDir(t), "linked")
	if v, err := os.ReadFile("/proc/sys/fs/protected_hardlinks"); err != nil || v[0] != '1' {
		t.Skip("links to files of others are not refused here")
	}
	g := newRig(t)
	g.src, g.dst = filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	g.spec.Source, g.spec.Destination = g.src, g.dst
	es := g.group(1, "1", "2")
	es[0].LeaderOnly = true
	b := g.batch(3, es...)
	b.Leader = entry.LeaderDone
	for range 2 {
		o := g.run(b)
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{Links: 1, LinksCopied: 1})
	}
	if read(t, filepath.Join(g.dst, "2")) != "abc" {
		t.Error("it was not copied")
	}
}
