package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

func inode(t testing.TB, p string) uint64 {
	t.Helper()
	return lstat(t, p).Ino
}

func lstat(t testing.TB, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	return st
}

func TestCopyReplacesWithoutTouchingHardLinkedSiblings(t *testing.T) {
	g := newRig(t)
	g.write("f", "new")
	old := g.target("f", "old")
	sibling := filepath.Join(g.dst, "sibling")
	must(t, os.Link(old, sibling))
	g.wantCounts(g.run(g.batch(1, g.copyOf("f"))), entry.Counts{FilesCopied: 1, BytesCopied: 3})
	if read(t, old) != "new" || read(t, sibling) != "old" {
		t.Errorf("f=%q sibling=%q", read(t, old), read(t, sibling))
	}
	noTemps(t, g.dst)
}

func TestCopyReplacesTargetThatOnlyLooksTheSame(t *testing.T) {
	g := newRig(t)
	when := unix.Timespec{Sec: 1500000000, Nsec: 5}
	setTimes(t, g.write("f", "aaa"), when, when)
	setTimes(t, g.target("f", "bbb"), when, when)
	g.run(g.batch(1, g.copyOf("f")))
	if got := read(t, filepath.Join(g.dst, "f")); got != "aaa" {
		t.Errorf("got %q", got)
	}
}

func TestWhatStandsInTheWayIsReplaced(t *testing.T) {
	g := newRig(t)
	outside := put(t, filepath.Join(shm(t), "precious"), "keep")
	g.write("file", "f")
	must(t, os.Symlink("x", filepath.Join(g.src, "link")))
	g.write("dir/inner", "i")
	g.write("dir2/inner", "i")
	g.target("file/a/b/c", "gone")
	g.target("link/a/b/c", "gone")
	g.target("dir", "a file")
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(g.dst, "dir2")))
	must(t, os.Symlink(outside, filepath.Join(g.dst, "tolink")))
	g.write("tolink", "now a file")
	g.backup()
	g.same()
	if read(t, outside) != "keep" {
		t.Error("a symbolic link was written through")
	}
}

func TestParentOfAnEntryReplacesAFileInTheWay(t *testing.T) {
	g := newRig(t)
	g.write("d/sub/f", "x")
	g.target("d", "file where a directory belongs")
	e := g.copyOf("d/sub/f") // the directory's own line is in another batch
	g.wantCounts(g.run(g.batch(1, e)), entry.Counts{FilesCopied: 1, BytesCopied: 1})
	if st := lstat(t, filepath.Join(g.dst, "d")); st.Mode&0o7777 != 0o700 {
		t.Errorf("unfinished directory has mode %o, want 700", st.Mode&0o7777)
	}
}

func TestSourceDifferentFromScanIsCopiedAsItIs(t *testing.T) {
	g := newRig(t)
	g.write("grown", "1")
	g.write("fifo", "was a file")
	copies, _ := g.scan()
	g.write("grown", "12345")
	must(t, os.Remove(filepath.Join(g.src, "fifo")))
	must(t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o600))
	o := g.run(g.batch(1, copies[1:]...))
	g.wantCounts(o, entry.Counts{FilesCopied: 2, BytesCopied: 5, ChangedSinceScan: 2})
	wantFailures(t, o)
	_, finishes := g.scan()
	g.run(g.batch(6, finishes...))
	g.same()
}

func TestSourceThatBecameADirectoryFails(t *testing.T) {
	g := newRig(t)
	g.write("f", "1")
	e := g.copyOf("f")
	must(t, os.Remove(filepath.Join(g.src, "f")))
	g.write("f/x", "1")
	o := g.run(g.batch(1, e))
	g.wantCounts(o, entry.Counts{FilesFailed: 1})
	wantFailures(t, o, "f")
	if f := o.Failures[0]; f.Kind != uint8(fault.Changed) || f.Errno != int(unix.EISDIR) {
		t.Errorf("failure %+v", f)
	}
}

func TestVanishedSourceFailsOrIsSkipped(t *testing.T) {
	g := newRig(t)
	g.write("d/f", "1")
	g.write("g", "1")
	es := []Entry{g.copyOf("d/f"), g.copyOf("g")}
	must(t, os.RemoveAll(filepath.Join(g.src, "d")))
	must(t, os.Remove(filepath.Join(g.src, "g")))
	o := g.run(g.batch(1, es...))
	g.wantCounts(o, entry.Counts{FilesFailed: 2})
	wantFailures(t, o, "d/f", "g")
	for _, f := range o.Failures {
		if f.Kind != uint8(fault.NotFound) || f.Errno != int(unix.ENOENT) || !strings.Contains(f.Reason, "vanished") {
			t.Errorf("failure %+v", f)
		}
	}
	g.spec.SkipVanished = true
	g.wantCounts(g.run(g.batch(1, es...)), entry.Counts{Skipped: 2})
}

// TestChangedWhileRead writes to the source at each check of the guard, which
// lies between the two looks at a source.
func TestChangedWhileRead(t *testing.T) {
	g := newRig(t)
	p := g.write("f", strings.Repeat("x", 20<<20)) // two checks of progress per read
	var writes atomic.Int64
	touch := func(upTo int64) Guard {
		writes.Store(0)
		return guardFunc(func() error {
			if writes.Add(1) <= upTo {
				now := time.Unix(1600000000+writes.Load(), 0)
				return os.Chtimes(p, now, now)
			}
			return nil
		})
	}
	o, err := g.try(g.batch(1, g.copyOf("f")), touch(3))
	must(t, err)
	if o.Counts.ChangedWhileRead != 1 || o.Counts.FilesCopied != 1 {
		t.Errorf("counts %+v", o.Counts)
	}
	o, err = g.try(g.batch(1, g.copyOf("f")), touch(1<<40))
	must(t, err)
	g.wantCounts(o, entry.Counts{FilesFailed: 1, ChangedWhileRead: 1})
	if len(o.Failures) != 1 || o.Failures[0].Kind != uint8(fault.Changed) {
		t.Errorf("failures %+v", o.Failures)
	}
	noTemps(t, g.dst)
}

type guardFunc func() error

func (f guardFunc) Check() error { return f() }

// TestWriterRunningAlong copies a file over and over while it is rewritten: the
// target is always one of the generations, whole.
func TestWriterRunningAlong(t *testing.T) {
	g := newRig(t)
	const size = 1 << 20
	p := g.write("f", strings.Repeat("a", size))
	e := g.copyOf("f")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			tmp := p + ".new"
			_ = os.WriteFile(tmp, []byte(strings.Repeat(string(rune('a'+i%26)), size)), 0o644)
			_ = os.Rename(tmp, p)
		}
	})
	for range 30 {
		o := g.run(g.batch(1, e))
		// A source that never holds still for three reads is a failure, as it should be.
		for _, f := range o.Failures {
			if fault.Kind(f.Kind) != fault.Changed {
				t.Fatalf("failure %+v", f)
			}
		}
		if _, err := os.Lstat(filepath.Join(g.dst, "f")); err != nil && len(o.Failures) > 0 {
			continue
		}
		got := read(t, filepath.Join(g.dst, "f"))
		if len(got) != size || strings.Count(got, got[:1]) != size {
			t.Fatal("target is a mixture of generations")
		}
	}
	stop()
	wg.Wait()
}

func TestMetadataOnlyInPlace(t *testing.T) {
	g := newRig(t)
	p := g.write("f", "data")
	g.backup()
	target := filepath.Join(g.dst, "f")
	must(t, os.Chmod(p, 0o600))
	e := g.copyOf("f")
	e.Mode = "mm"
	before := inode(t, target)
	must(t, unix.Setxattr(target, "user.stale", []byte("x"), 0))
	want := entry.Counts{FilesCopied: 1} // no bytes: as in the totals of control files
	g.wantCounts(g.run(g.batch(1, e)), want)
	if inode(t, target) != before {
		t.Error("not in place")
	}
	g.same()

	t.Run("not with two links", func(t *testing.T) {
		sibling := filepath.Join(g.dst, "sibling")
		must(t, os.Link(target, sibling))
		must(t, os.Chmod(p, 0o640))
		e.Meta = g.meta("f")
		g.wantCounts(g.run(g.batch(1, e)), want)
		if inode(t, target) == before || lstat(t, sibling).Mode&0o777 != 0o600 {
			t.Error("the sibling was altered")
		}
		must(t, os.Remove(sibling))
	})
	t.Run("not with another time", func(t *testing.T) {
		put(t, target, "DATA")
		before := inode(t, target)
		g.wantCounts(g.run(g.batch(1, e)), want)
		if inode(t, target) == before || read(t, target) != "data" {
			t.Error("a target of another time was kept")
		}
	})
	t.Run("not when the source was written to after the scan", func(t *testing.T) {
		before := inode(t, target)
		put(t, p, "atad")
		o := g.run(g.batch(1, e))
		if inode(t, target) == before || read(t, target) != "atad" {
			t.Error("old contents got a new time")
		}
		if o.Counts.FilesCopied != 1 || o.Counts.BytesCopied != 0 {
			t.Errorf("counts %+v", o.Counts)
		}
	})
}

// TestMetadataOnlyComparesContents changes data and puts its time back, in files
// whose mode changes as well, at each place where a comparison may go wrong.
func TestMetadataOnlyComparesContents(t *testing.T) {
	when := unix.Timespec{Sec: 15e8, Nsec: 7}
	const size = 3<<20 + 5
	for _, at := range []int64{0, 1, 1 << 20, size - 1, -1} {
		for _, sparse := range []bool{false, true} {
			t.Run(fmt.Sprintf("byte %d, sparse %v", at, sparse), func(t *testing.T) {
				g := newRig(t)
				g.spec.CheckContents = true
				p := g.write("f", "")
				if sparse {
					must(t, os.Truncate(p, size))
				} else {
					put(t, p, strings.Repeat("x", size))
				}
				setTimes(t, p, when, when)
				g.backup()
				target := filepath.Join(g.dst, "f")
				before := inode(t, target)
				must(t, os.Chmod(p, 0o600))
				if at >= 0 {
					f, err := os.OpenFile(p, os.O_WRONLY, 0)
					must(t, err)
					_, err = f.WriteAt([]byte("!"), at)
					must(t, errors.Join(err, f.Close()))
					setTimes(t, p, when, when)
				}
				e := g.copyOf("f")
				e.Mode = "mm"
				g.wantCounts(g.run(g.batch(1, e)), entry.Counts{FilesCopied: 1})
				if kept := inode(t, target) == before; kept != (at < 0) {
					t.Errorf("in place: %v", kept)
				}
				if read(t, target) != read(t, p) || lstat(t, target).Mode&0o777 != 0o600 {
					t.Error("source and target differ")
				}
			})
		}
	}
}

// TestMetadataOnlyGivesNoPrivilegeToForeignContents imitates size and time of a
// set-id program whose line says that only its metadata changed.
func TestMetadataOnlyGivesNoPrivilegeToForeignContents(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	when := unix.Timespec{Sec: 15e8, Nsec: 7}
	p := g.write("su", "good")
	must(t, unix.Chmod(p, 0o4755))
	setTimes(t, p, when, when)
	evil := g.target("su", "evil")
	must(t, os.Chown(evil, 1000, 1000))
	setTimes(t, evil, when, when)
	e := g.copyOf("su")
	e.Mode = "mm"
	g.run(g.batch(1, e))
	if got := read(t, filepath.Join(g.dst, "su")); got != "good" {
		t.Errorf("set-id program is %q", got)
	}
}

func TestReplacePolicies(t *testing.T) {
	past, now, future := unix.Timespec{Sec: 1e9}, unix.Timespec{Sec: 15e8, Nsec: 7}, unix.Timespec{Sec: 2e9}
	for _, tc := range []struct {
		name   string
		policy Replace
		target func(t *testing.T, p string)
		want   entry.Counts
		kept   bool
	}{
		{"never, missing", ReplaceNever, func(*testing.T, string) {}, entry.Counts{FilesCopied: 1, BytesCopied: 3}, false},
		{"never, other", ReplaceNever, func(t *testing.T, p string) { setTimes(t, put(t, p, "old"), past, past) }, entry.Counts{Skipped: 1}, true},
		{"never, directory", ReplaceNever, func(t *testing.T, p string) { must(t, os.Mkdir(p, 0o755)) }, entry.Counts{Skipped: 1}, true},
		{"never, same", ReplaceNever, func(t *testing.T, p string) { setTimes(t, put(t, p, "new"), now, now) }, entry.Counts{FilesCopied: 1, BytesCopied: 3}, true},
		{"if older, older", ReplaceIfOlder, func(t *testing.T, p string) { setTimes(t, put(t, p, "old"), past, past) }, entry.Counts{FilesCopied: 1, BytesCopied: 3}, false},
		{"if older, newer", ReplaceIfOlder, func(t *testing.T, p string) { setTimes(t, put(t, p, "old"), future, future) }, entry.Counts{Skipped: 1}, true},
		{"if older, same", ReplaceIfOlder, func(t *testing.T, p string) { setTimes(t, put(t, p, "new"), now, now) }, entry.Counts{FilesCopied: 1, BytesCopied: 3}, true},
		{"always, newer", ReplaceAlways, func(t *testing.T, p string) { setTimes(t, put(t, p, "old"), future, future) }, entry.Counts{FilesCopied: 1, BytesCopied: 3}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newRig(t)
			g.spec.Replace = tc.policy
			setTimes(t, g.write("f", "new"), now, now)
			p := filepath.Join(g.dst, "f")
			tc.target(t, p)
			var before uint64
			if tc.kept {
				before = inode(t, p)
			}
			b := g.batch(1, g.copyOf("f"))
			g.wantCounts(g.run(b), tc.want)
			if tc.kept && inode(t, p) != before {
				t.Error("target was replaced")
			}
			if !tc.kept && read(t, p) != "new" {
				t.Error("target was kept")
			}
			g.wantCounts(g.run(b), tc.want) // a second attempt counts the same
		})
	}
}

// TestATargetOfAFormerAttemptIsNotTrusted has attempts meet a target of the source's
// size and time. A former attempt may have written it, and its sync may have failed.
func TestATargetOfAFormerAttemptIsNotTrusted(t *testing.T) {
	now := unix.Timespec{Sec: 15e8, Nsec: 7}
	for _, policy := range []Replace{ReplaceAlways, ReplaceIfOlder, ReplaceNever} {
		for _, second := range []bool{false, true} {
			t.Run(fmt.Sprintf("replace %d, second attempt %v", policy, second), func(t *testing.T) {
				g := newRig(t)
				g.spec.Replace = policy
				setTimes(t, g.write("f", "new"), now, now)
				target := put(t, filepath.Join(g.dst, "f"), "bad")
				setTimes(t, target, now, now)
				b := g.batch(1, g.copyOf("f"))
				if second {
					b.Predecessors = []AttemptID{b.Attempt}
					b.Attempt.Delivery++
				}
				g.wantCounts(g.run(b), entry.Counts{FilesCopied: 1, BytesCopied: 3})
				want := "new"
				if !second && policy != ReplaceAlways {
					want = "bad"
				}
				if got := read(t, target); got != want {
					t.Errorf("the target holds %q, want %q", got, want)
				}
			})
		}
	}
}

// TestAFurtherAttemptLeavesAGroupLinked: where targets are kept, writing the first name
// of a group anew would leave the others linked to what it was.
func TestAFurtherAttemptLeavesAGroupLinked(t *testing.T) {
	for _, policy := range []Replace{ReplaceAlways, ReplaceIfOlder, ReplaceNever} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			g := newRig(t)
			g.spec.Replace = policy
			must(t, os.Link(g.write("a", "x"), filepath.Join(g.src, "b")))
			a, b := g.copyOf("a"), g.copyOf("b")
			for _, e := range []*Entry{&a, &b} {
				e.Op, e.Group = entry.OpLink, 1
			}
			batch := g.batch(3, a, b)
			want := entry.Counts{FilesCopied: 1, BytesCopied: 1, Links: 1}
			for range 3 {
				g.wantCounts(g.run(batch), want)
				batch.Predecessors = append(batch.Predecessors, batch.Attempt)
				batch.Attempt.Delivery++
			}
			if inode(t, filepath.Join(g.dst, "a")) != inode(t, filepath.Join(g.dst, "b")) {
				t.Error("the group is two files")
			}
		})
	}
}

func TestWithoutMetadataModesAreDefaults(t *testing.T) {
	g := newRig(t)
	g.spec.WriteMeta = false
	must(t, os.Chmod(g.write("d/f", "x"), 0o4711))
	must(t, os.Chmod(filepath.Join(g.src, "d"), 0o700))
	g.backup()
	if st := lstat(t, filepath.Join(g.dst, "d/f")); st.Mode&0o7777 != 0o644 {
		t.Errorf("file mode %o", st.Mode&0o7777)
	}
	if st := lstat(t, filepath.Join(g.dst, "d")); st.Mode&0o7777 != 0o755 {
		t.Errorf("directory mode %o", st.Mode&0o7777)
	}
}

func TestRestoreTakesTheRecord(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	g.spec.Restore = true
	when := unix.Timespec{Sec: 1500000000, Nsec: 123}
	setTimes(t, g.write("agrees", "x"), when, when)
	setTimes(t, g.write("differs", "x"), when, when)
	a, d := g.copyOf("agrees"), g.copyOf("differs")
	for _, e := range []*Entry{&a, &d} {
		e.Meta.Mode = unix.S_IFREG | 0o4750
		e.Meta.UID, e.Meta.GID = 42, 43
	}
	d.Meta.Mtime = 1400000000
	o := g.run(g.batch(1, a, d))
	g.wantCounts(o, entry.Counts{FilesCopied: 2, BytesCopied: 2, ChangedSinceScan: 1})
	for p, want := range map[string]unix.Timespec{"agrees": when, "differs": {Sec: 1400000000}} {
		st := lstat(t, filepath.Join(g.dst, p))
		if st.Mode&0o7777 != 0o4750 || st.Uid != 42 || st.Gid != 43 || st.Mtim != want {
			t.Errorf("%s: mode %o owner %d:%d mtime %v", p, st.Mode, st.Uid, st.Gid, st.Mtim)
		}
	}
}

func TestRejectedAndImpossibleEntries(t *testing.T) {
	g := newRig(t)
	g.write("f", "x")
	bad := []string{"../f", "a/../../f", "/f", "a//f", "./f", "f\x00", "", strings.Repeat("n", 256), strings.Repeat("a/", 2100) + "f"}
	var entries []Entry
	for _, p := range bad {
		entries = append(entries, Entry{Op: entry.OpCopy, Path: p, Meta: g.meta("f")})
	}
	entries = append(entries,
		Entry{Op: entry.OpRejected, Path: "r", Reject: "no metadata record", Kind: uint8(fault.Corrupt), IsDir: true},
		Entry{Op: entry.Op(99), Path: "what", Meta: g.meta("f")})
	o := g.run(g.batch(1, entries...))
	g.wantCounts(o, entry.Counts{FilesFailed: uint64(len(bad)) + 1, DirsFailed: 1})
	wantFailures(t, o, append(bad, "r", "what")...)
	if len(listing(t, g.dst)) != 1 {
		t.Error("something was made")
	}
	for i, f := range o.Failures {
		if f.Line != uint64(i+14) || strings.Contains(f.Reason, "\n") {
			t.Errorf("failure %+v", f)
		}
	}
}

func TestTrim(t *testing.T) {
	g := newRig(t)
	g.spec.Trim = "/srv/data/"
	g.write("srv/data/sub/f", "x")
	g.write("srv/database/f", "x")
	must(t, os.Chmod(filepath.Join(g.src, "srv/data"), 0o711))
	dir := g.copyOf("srv/data")
	o := g.run(g.batch(1, g.copyOf(""), g.copyOf("srv"), dir, g.copyOf("srv/data/sub/f"), g.copyOf("srv/database/f")))
	wantFailures(t, o, "srv/database/f")
	g.wantCounts(o, entry.Counts{DirsCopied: 1, Skipped: 2, FilesCopied: 1, BytesCopied: 1, FilesFailed: 1})
	dir.Op = entry.OpFinish
	g.run(g.batch(6, dir))
	if read(t, filepath.Join(g.dst, "sub/f")) != "x" || lstat(t, g.dst).Mode&0o777 != 0o711 {
		t.Error("not at its trimmed place")
	}
}
