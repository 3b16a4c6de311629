package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// verifying returns the entries that compare the whole source with the
// destination, hard-link groups left out.
func (g *rig) verifying() []Entry {
	g.t.Helper()
	copies, _ := g.scan()
	for i := range copies {
		copies[i].Mode = ""
		if copies[i].Op == entry.OpMkdir {
			copies[i].Op, copies[i].IsDir = entry.OpVerifyDir, true
		} else {
			copies[i].Op = entry.OpVerify
		}
	}
	return copies
}

// verify compares as a job that changes nothing, and fails where it did.
func (g *rig) verify(es ...Entry) *Outcome {
	g.t.Helper()
	spec := g.spec
	defer func() { g.spec = spec }()
	g.spec.ReadOnly = true
	src, dst := fullListing(g.t, g.src), fullListing(g.t, g.dst)
	o := g.run(g.batch(5, es...))
	if !slices.Equal(src, fullListing(g.t, g.src)) || !slices.Equal(dst, fullListing(g.t, g.dst)) {
		g.t.Error("verifying has changed a tree")
	}
	return o
}

// fullListing is a listing with the times that a change would not put back.
func fullListing(t testing.TB, root string) []string {
	t.Helper()
	lines := listing(t, root)
	for i, l := range lines {
		name, _, _ := strings.Cut(l, " mode=")
		st := lstat(t, filepath.Join(root, name))
		lines[i] = fmt.Sprintf("%s ctime=%v", l, st.Ctim)
	}
	return lines
}

// everything makes a source with an object of each type and backs it up.
func (g *rig) everything(t *testing.T) {
	t.Helper()
	g.metaZoo(t)
	g.write("plain", "plain contents")
	g.write("empty", "")
	g.write("large", strings.Repeat("0123456789abcdef", 5<<14))
	must(g.t, os.Truncate(g.write("sparse", "s"), 1<<20))
	g.write("sub/deep/leaf", "leaf")
	must(g.t, os.Symlink("to", filepath.Join(g.src, "sl")))
	must(g.t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o640))
	must(g.t, unix.Mknod(filepath.Join(g.src, "sock"), unix.S_IFSOCK|0o600, 0))
	must(g.t, unix.Mknod(filepath.Join(g.src, "chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(7, 3))))
	setTimes(g.t, filepath.Join(g.src, "plain"), unix.Timespec{Sec: 1e9}, unix.Timespec{Sec: 1e9, Nsec: 123456789})
	g.backup()
	g.same()
}

func TestVerifyOfATreeThatIsTheSame(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	g.everything(t)
	es := g.verifying()
	var want entry.Counts
	for _, e := range es {
		switch {
		case e.IsDir:
			want.DirsVerified++
		default:
			want.FilesVerified++
			if e.Meta.Mode&unix.S_IFMT == unix.S_IFREG {
				want.BytesVerified += e.Meta.Size
			}
		}
	}
	for range 2 { // a second attempt counts the same
		o := g.verify(es...)
		wantFailures(t, o)
		g.wantCounts(o, want)
		if len(o.Warnings) > 0 {
			t.Errorf("warnings: %+v", o.Warnings)
		}
	}
}

// TestVerifyFindsEachDifference changes one thing of the destination at a time;
// exactly that is told, with both values.
func TestVerifyFindsEachDifference(t *testing.T) {
	needRoot(t)
	keep := func(t *testing.T, p string, f func()) { // the times of p and its directory are put back
		t.Helper()
		dir, st := lstat(t, filepath.Dir(p)), lstat(t, p)
		f()
		setTimes(t, p, st.Atim, st.Mtim)
		setTimes(t, filepath.Dir(p), dir.Atim, dir.Mtim)
	}
	in := func(f func(p string) error) func(*testing.T, string) {
		return func(t *testing.T, p string) { keep(t, p, func() { must(t, f(p)) }) }
	}
	replaced := func(f func(p string) error) func(*testing.T, string) {
		return func(t *testing.T, p string) {
			keep(t, p, func() {
				must(t, os.RemoveAll(p))
				must(t, f(p))
			})
		}
	}
	flip := func(at int64) func(string) error {
		return func(p string) error {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			var b [1]byte
			_, err = f.ReadAt(b[:], at)
			b[0] ^= 0x10
			_, werr := f.WriteAt(b[:], at)
			return errors.Join(err, werr, f.Close())
		}
	}
	g := newRig(t)
	g.everything(t)
	for _, c := range []struct {
		name, path string
		change     func(t *testing.T, p string)
		says       string
	}{
		{"a flipped byte", "plain", in(flip(6)), `contents differ from byte 6 of 14 on: 0x73, the source has 0x63`},
		{"the last byte of a large file", "large", in(flip(5<<18 - 1)), `contents differ from byte 1310719 of 1310720 on: 0x76, the source has 0x66`},
		{"a byte in a hole", "sparse", in(flip(3 << 18)), `contents differ from byte 786432 of 1048576 on: 0x10, the source has 0x00`},
		{"a shorter file", "plain", in(func(p string) error { return os.Truncate(p, 3) }), `size is 3, the source has 14`},
		{"a longer file", "empty", in(func(p string) error { return os.Truncate(p, 1) }), `size is 1, the source has 0`},
		{"a wrong mode", "plain", in(func(p string) error { return os.Chmod(p, 0o640) }), `mode is 0640, the source has 0644`},
		{"a set-id bit", "d/f", in(func(p string) error { return unix.Chmod(p, 0o2755) }), `mode is 2755, the source has 6755`},
		{"a wrong owner", "plain", in(func(p string) error { return os.Chown(p, 7, 8) }), `owner is 7:8, the source has 0:0`},
		{"a nanosecond", "plain", func(t *testing.T, p string) {
			setTimes(t, p, unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1e9, Nsec: 123456788})
		}, `modification time is 2001-09-09T01:46:40.123456788Z, the source has 2001-09-09T01:46:40.123456789Z`},
		{"nanoseconds cut off", "plain", func(t *testing.T, p string) {
			for done := false; !done; done = lstat(t, p).Ctim.Nsec%100 != 0 { // which shows that the file system has them
				setTimes(t, p, unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1e9})
			}
		}, `modification time is 2001-09-09T01:46:40Z, the source has 2001-09-09T01:46:40.123456789Z`},
		{"another type", "fifo", replaced(func(p string) error { return os.WriteFile(p, nil, 0o640) }), `is a file, the source has a fifo`},
		{"a directory for a file", "plain", replaced(func(p string) error { return os.Mkdir(p, 0o644) }), `is a directory, the source has a file`},
		{"a file for a directory", "d/sub", replaced(func(p string) error { return os.WriteFile(p, nil, 0o755) }), `is a file, the source has a directory`},
		{"a link for a directory", "d/sub", replaced(func(p string) error { return os.Symlink(".", p) }), `is a symbolic link, the source has a directory`},
		{"a link's target", "sl", func(t *testing.T, p string) {
			replaced(func(p string) error { return os.Symlink("elsewhere", p) })(t, p)
		}, `link leads to "elsewhere", the source's to "to"`},
		{"a device number", "chr", replaced(func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(7, 4))) }), `device is 7:4, the source has 7:3`},
		{"an attribute's value", "d/f", in(func(p string) error { return unix.Setxattr(p, "user.comment", []byte("other"), 0) }), `attribute user.comment is "other", the source has "bin\x00ary"`},
		{"an attribute too few", "d/f", in(func(p string) error { return unix.Removexattr(p, "trusted.t") }), `attribute trusted.t is missing, the source has "1"`},
		{"an attribute too many", "plain", in(func(p string) error { return unix.Setxattr(p, "user.more", []byte("m"), 0) }), `has the attribute user.more, which is "m"; the source has none of the name`},
		{"an attribute of a directory", "d", in(func(p string) error { return unix.Setxattr(p, "user.dir", []byte("m"), 0) }), `attribute user.dir is "m", the source has "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"... (2000 bytes)`},
		{"an attribute of a link", "d/link", func(t *testing.T, p string) { must(t, unix.Lsetxattr(p, "trusted.l", []byte("3"), 0)) }, `attribute trusted.l is "3", the source has "2"`},
		{"an ACL's entry", "d/f", in(func(p string) error { setfacl(t, p, "-m", "u:1000:r--,m::r-x"); return nil }), `ACL is u::rwx,u:1000:r--,g::r--,g:2000:r-x,m::r-x,o::r-x, the source has u::rwx,u:1000:rwx,`},
		{"an ACL too many", "plain", in(func(p string) error { setfacl(t, p, "-m", "u:1000:r,m::r"); return nil }), `has the ACL u::rw-,u:1000:r--,g::r--,m::r--,o::r--, the source has none`},
		{"an ACL too few", "d", in(func(p string) error { setfacl(t, p, "-x", "u:1000", "-x", "m"); return os.Chmod(p, 0o775) }), `has no ACL, the source has u::rwx,u:1000:rwx,g::r-x,m::rwx,o::r-x`},
		{"a default ACL", "d", in(func(p string) error { setfacl(t, p, "-m", "d:u:1000:r-x"); return nil }), `default ACL is u::rwx,u:1000:r-x,`},
		{"a directory's mode", "sub/deep", in(func(p string) error { return os.Chmod(p, 0o700) }), `mode is 0700, the source has 0755`},
		{"a directory's time", "sub/deep", func(t *testing.T, p string) {
			setTimes(t, p, unix.Timespec{Sec: 1}, unix.Timespec{Sec: 5})
		}, `modification time is 1970-01-01T00:00:05Z, the source has `},
		{"a missing file", "sub/deep/leaf", func(t *testing.T, p string) {
			st := lstat(t, filepath.Dir(p))
			must(t, os.Remove(p))
			setTimes(t, filepath.Dir(p), st.Atim, st.Mtim)
		}, `is missing in the destination`},
		{"an extra file", "sub/deep/extra", func(t *testing.T, p string) {
			st := lstat(t, filepath.Dir(p))
			put(t, p, "x")
			setTimes(t, filepath.Dir(p), st.Atim, st.Mtim)
		}, `extra: a file that the source does not have`},
		{"an extra directory", "extra\n", func(t *testing.T, p string) {
			st := lstat(t, filepath.Dir(p))
			put(t, filepath.Join(p, "below/it"), "x")
			setTimes(t, filepath.Dir(p), st.Atim, st.Mtim)
		}, `extra: a directory that the source does not have`},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t, g.dst = t, t.TempDir()
			g.spec.Destination = g.dst
			g.backup()
			c.change(t, filepath.Join(g.dst, c.path))
			o := g.verify(g.verifying()...)
			wantFailures(t, o, c.path)
			if len(o.Failures) != 1 {
				return
			}
			f := o.Failures[0]
			if !strings.Contains(f.Reason, c.says) || strings.Contains(f.Reason, "; ") && !strings.Contains(c.says, "; ") || f.Op != "verify" || f.Line == 0 {
				t.Errorf("failure %+v, want it to say %q and nothing else", f, c.says)
			}
			n := o.Counts
			if n.DirsDiffer+n.FilesDiffer+n.Extra != 1 || n.DirsDiffer != n.DirsFailed || n.FilesDiffer != n.FilesFailed {
				t.Errorf("counts %+v", n)
			}
		})
	}
}

func TestVerifyTellsAllDifferencesOfAnEntryTogether(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	st := lstat(t, g.write("f", "x"))
	g.backup()
	d := filepath.Join(g.dst, "f")
	must(t, os.Chown(d, 5, 6))
	must(t, os.Chmod(d, 0o600))
	must(t, os.WriteFile(d, []byte("y"), 0))
	setTimes(t, d, st.Atim, st.Mtim)
	o := g.verify(g.verifying()...)
	wantFailures(t, o, "f")
	want := "verify: contents differ from byte 0 of 1 on: 0x79, the source has 0x78; owner is 5:6, the source has 0:0; mode is 0600, the source has 0644"
	if o.Failures[0].Reason != want {
		t.Errorf("reason %q\nwant   %q", o.Failures[0].Reason, want)
	}
	g.wantCounts(o, entry.Counts{DirsVerified: 1, FilesFailed: 1, FilesDiffer: 1})
}

func TestVerifyHardLinkGroups(t *testing.T) {
	g := newRig(t)
	g.linked("abc", "a/1", "b/2", "c/3", "d/4")
	group := func() []Entry {
		es := g.group(1, "a/1", "b/2", "c/3", "d/4")
		for i := range es {
			es[i].Op = entry.OpVerifyLink
		}
		return es
	}
	at := func(p string) string { return filepath.Join(g.dst, p) }
	fresh := func(t *testing.T) {
		g.t = t
		must(t, os.RemoveAll(g.dst))
		must(t, os.Mkdir(g.dst, 0o755))
		wantFailures(t, g.run(g.batch(3, g.group(1, "a/1", "b/2", "c/3", "d/4")...)))
	}
	apart := func(t *testing.T, p string) {
		must(t, os.Remove(at(p)))
		src := lstat(t, filepath.Join(g.src, p))
		setTimes(t, put(t, at(p), "abc"), src.Atim, src.Mtim)
	}
	t.Run("right", func(t *testing.T) {
		fresh(t)
		o := g.verify(group()...)
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{FilesVerified: 4, BytesVerified: 3}) // a group's data once
	})
	t.Run("a member of its own", func(t *testing.T) {
		fresh(t)
		apart(t, "c/3")
		o := g.verify(group()...)
		wantFailures(t, o, "c/3")
		if !strings.Contains(o.Failures[0].Reason, `no link to "a/1"`) {
			t.Errorf("reason %q", o.Failures[0].Reason)
		}
		g.wantCounts(o, entry.Counts{FilesVerified: 3, BytesVerified: 3, FilesFailed: 1, FilesDiffer: 1})
	})
	t.Run("the contents of all", func(t *testing.T) {
		fresh(t)
		st := lstat(t, at("a/1"))
		must(t, os.WriteFile(at("a/1"), []byte("axc"), 0))
		setTimes(t, at("a/1"), st.Atim, st.Mtim)
		o := g.verify(group()...)
		wantFailures(t, o, "a/1") // told once
		g.wantCounts(o, entry.Counts{FilesVerified: 3, FilesFailed: 1, FilesDiffer: 1})
	})
	t.Run("the first is missing", func(t *testing.T) {
		fresh(t)
		must(t, os.Remove(at("a/1")))
		apart(t, "d/4")
		o := g.verify(group()...)
		wantFailures(t, o, "a/1", "d/4") // the second is what the rest is held against
		g.wantCounts(o, entry.Counts{FilesVerified: 2, BytesVerified: 3, FilesFailed: 2, FilesDiffer: 2})
	})
	t.Run("going on from another batch", func(t *testing.T) {
		fresh(t)
		apart(t, "d/4")
		es := slices.Delete(group(), 1, 3)
		es[0].LeaderOnly = true
		o := g.verify(es...)
		wantFailures(t, o, "d/4")
		g.wantCounts(o, entry.Counts{FilesFailed: 1, FilesDiffer: 1})
	})
	t.Run("names that the source has not", func(t *testing.T) {
		fresh(t)
		g.write("single", "s")
		wantFailures(t, g.run(g.batch(1, g.copyOf("single"))))
		must(t, os.Link(at("single"), at("twin")))
		e := g.copyOf("single")
		e.Op = entry.OpVerify
		o := g.verify(e)
		wantFailures(t, o) // it may be a link farm of old backups
		if k := kindsOf(o); !slices.Equal(k, []string{WarnMoreLinks}) {
			t.Errorf("warnings %v", k)
		}
	})
}

func TestVerifyOfTimesLines(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	when := unix.Timespec{Sec: 15e8, Nsec: 42}
	var es []Entry
	for _, d := range []string{"right", "mode", "time", "gone"} {
		must(t, os.Mkdir(filepath.Join(g.src, d), 0o750))
		setTimes(t, filepath.Join(g.src, d), when, when)
		e := g.copyOf(d)
		e.Op, e.IsDir = entry.OpVerifyTimes, true
		es = append(es, e)
	}
	g.backup()
	must(t, os.Chmod(filepath.Join(g.dst, "mode"), 0o755))
	setTimes(t, filepath.Join(g.dst, "time"), when, unix.Timespec{Sec: 15e8, Nsec: 41})
	must(t, os.Remove(filepath.Join(g.dst, "gone")))
	put(t, filepath.Join(g.dst, "extra"), "x") // a times line says nothing of names
	o := g.verify(es...)
	wantFailures(t, o, "mode", "time", "gone")
	g.wantCounts(o, entry.Counts{DirsVerified: 1, DirsFailed: 3, DirsDiffer: 3})
}

// TestVerifyWithoutMetadata compares what is copied without: types and contents.
func TestVerifyWithoutMetadata(t *testing.T) {
	g := newRig(t)
	g.spec.WriteMeta = false
	must(t, os.Chmod(g.write("d/f", "x"), 0o600))
	must(t, os.Chmod(filepath.Join(g.src, "d"), 0o700))
	must(t, os.Symlink("to", filepath.Join(g.src, "sl")))
	copies, _ := g.scan()
	wantFailures(t, g.run(g.batch(1, copies...)))
	wantFailures(t, g.verify(g.verifying()...))
	put(t, filepath.Join(g.dst, "d/f"), "y")
	wantFailures(t, g.verify(g.verifying()...), "d/f")
}

// TestVerifyTellsASourceThatCannotBeCompared keeps it apart from a difference.
func TestVerifyTellsASourceThatCannotBeCompared(t *testing.T) {
	g := newRig(t)
	g.write("f", "x")
	g.write("d/g", "x")
	g.backup()
	es := g.verifying()
	must(t, os.Remove(filepath.Join(g.src, "f")))
	must(t, os.RemoveAll(filepath.Join(g.src, "d")))
	o := g.verify(slices.DeleteFunc(slices.Clone(es), func(e Entry) bool { return e.Path == "" })...)
	wantFailures(t, o, "d", "d/g", "f")
	for _, f := range o.Failures {
		if fault.Kind(f.Kind) != fault.NotFound || !strings.Contains(f.Reason, "vanished") {
			t.Errorf("failure %+v", f)
		}
	}
	g.wantCounts(o, entry.Counts{DirsFailed: 1, FilesFailed: 2})
	g.spec.SkipVanished = true
	o = g.verify(es...)
	wantFailures(t, o, "d", "f", "") // names that the source has not any more, and the root: its time
	g.wantCounts(o, entry.Counts{DirsFailed: 1, DirsDiffer: 1, Extra: 2, Skipped: 3})
}

func TestVerifyBoundsWhatItTellsOfOneDirectory(t *testing.T) {
	g := newRigIn(t, shm(t))
	g.write("d/f", "x")
	g.backup()
	const more = mostExtras + 7
	st := lstat(t, filepath.Join(g.dst, "d"))
	for i := range more {
		put(t, filepath.Join(g.dst, "d", fmt.Sprintf("extra%04d", i)), "")
	}
	setTimes(t, filepath.Join(g.dst, "d"), st.Atim, st.Mtim)
	// Of others: a mark of theirs in the root is no name of the backup's.
	root := lstat(t, g.dst)
	put(t, filepath.Join(g.dst, noncePrefix+strings.Repeat("a2", 13)), "")
	setTimes(t, g.dst, root.Atim, root.Mtim)
	o := g.verify(g.verifying()...)
	if o.Counts.Extra != more || len(o.Failures) != mostExtras+1 || o.Counts.DirsVerified != 2 {
		t.Errorf("%d failures, counts %+v", len(o.Failures), o.Counts)
	}
	if last := o.Failures[len(o.Failures)-1]; !strings.Contains(last.Reason, "7 further names") || last.Path != "d" {
		t.Errorf("the last failure is %+v", last)
	}
	if !slices.IsSortedFunc(o.Failures[:mostExtras], func(a, b Failure) int { return strings.Compare(a.Path, b.Path) }) {
		t.Error("the names are not in order")
	}
	// Of a batch altogether, whatever the number of directories.
	e := g.copyOf("d")
	e.Op, e.IsDir = entry.OpVerifyDir, true
	var es []Entry
	for range 12 {
		es = append(es, e)
	}
	o = g.run(g.batch(5, es...))
	told := 0
	for _, f := range o.Failures {
		if !strings.Contains(f.Reason, "further names") {
			told++
		}
	}
	if told != mostExtrasTold || len(o.Failures) != told+len(es) || o.Counts.Extra != uint64(more*len(es)) {
		t.Errorf("%d failures, %d of them names, counts %+v", len(o.Failures), told, o.Counts)
	}
}

// TestVerifyAsksItsGuard stops at each of its checks.
func TestVerifyAsksItsGuard(t *testing.T) {
	g := newRig(t)
	g.write("d/f", strings.Repeat("x", 20<<20))
	g.linked("l", "l1", "l2")
	g.backup()
	g.spec.ReadOnly, g.spec.Threads = true, 1
	b := g.batch(5, g.verifying()...)
	lost := fault.New(fault.Stale, "lease lost")
	for n := int64(0); ; n++ {
		o, err := g.try(b, newCountdown(n, lost))
		if err == nil {
			if n < int64(len(b.Entries)) || o.Counts.FilesVerified != 3 {
				t.Errorf("only %d checks, %+v", n, o.Counts)
			}
			return
		}
		if !errors.Is(err, lost) {
			t.Fatalf("check %d: %v", n, err)
		}
	}
}

func TestVerifyStopsWithItsContext(t *testing.T) {
	g := newRig(t)
	g.write("f", "x")
	g.spec.ReadOnly = true
	b := g.batch(5, g.verifying()...)
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if o, err := j.Run(ctx, b, nil); !fault.Is(err, fault.Canceled) {
		t.Errorf("%+v %v", o, err)
	}
}
