package scanner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// started returns a series of which these paths, a slash at the end marking
// directories, are committed.
func started(t *testing.T, paths ...string) *series {
	t.Helper()
	s := newSeries(t)
	s.base.ClockTick = -1
	if err := os.MkdirAll(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	s.put(paths...)
	s.nextTick()
	s.scan()
	s.commit()
	s.nextTick()
	return s
}

func (s *series) path(p string) string { return filepath.Join(s.root, p) }

func (s *series) put(paths ...string) {
	s.t.Helper()
	for _, p := range paths {
		if d, ok := strings.CutSuffix(p, "/"); ok {
			s.must(os.MkdirAll(s.path(d), 0o755))
		} else {
			write(s.t, s.path(p), "content of "+p)
		}
	}
}

func (s *series) remove(paths ...string) {
	s.t.Helper()
	for _, p := range paths {
		s.must(os.RemoveAll(s.path(p)))
	}
}

func (s *series) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// emits checks what the next scan emits.
func (s *series) emits(want ...string) *Result {
	s.t.Helper()
	res, lines := s.scan()
	slices.Sort(want)
	if d := gocmp.Diff(want, names(lines)); d != "" {
		s.t.Error(d)
	}
	return res
}

// states returns the state of the last scan: for each entry its flags.
func (s *series) states() map[string]Flags {
	s.t.Helper()
	path := s.committed
	if n := len(s.pending); n > 0 {
		path = s.pending[n-1]
	}
	st, err := OpenState(path)
	s.must(err)
	defer st.Close()
	out := map[string]Flags{}
	for {
		r, err := st.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		s.must(err)
		name := r.Path()
		if r.IsDir() {
			name += "/"
		}
		if _, ok := out[name]; ok {
			s.t.Errorf("%q is twice in the state", name)
		}
		out[name] = r.Flags
	}
}

func TestModesSayWhatChanged(t *testing.T) {
	t.Parallel()
	s := started(t, "same", "size", "time", "mode", "both", "hidden", "d/x", "d2/x", "e/")
	write(t, s.path("size"), "other")
	chtimes(t, s.path("time"), 1e9)
	s.must(os.Chmod(s.path("mode"), 0o600))
	write(t, s.path("both"), "longer than it was before")
	s.must(os.Chmod(s.path("both"), 0o600))
	var st unix.Stat_t
	s.must(unix.Stat(s.path("hidden"), &st))
	write(t, s.path("hidden"), "CONTENT OF hidden")
	s.must(unix.UtimesNanoAt(unix.AT_FDCWD, s.path("hidden"), []unix.Timespec{st.Atim, st.Mtim}, 0))
	write(t, s.path("d/x"), "other")
	s.must(os.Chmod(s.path("d2"), 0o700))
	s.put("new", "newdir/x")
	res := s.emits("copy dm size", "copy dm time", "copy mm mode", "copy bm both", "copy dm hidden", "copy fm d/", "copy dm d/x", "copy mm d2/",
		"copy nn new", "copy nn newdir/", "copy nn newdir/x", "copy mm /")
	if res.New != 3 || res.Modified != 5 || res.MetaOnly != 3 || res.Refinished != 1 || res.Unchanged != 3 {
		t.Errorf("%+v", res)
	}
}

func TestARenamedDirectoryIsDeletedByNameAndCopiedWhole(t *testing.T) {
	t.Parallel()
	s := started(t, "a/b/c", "a/b/d/e", "k")
	s.must(os.Rename(s.path("a"), s.path("z")))
	res := s.emits("copy mm /", "copy nn z/", "copy nn z/b/", "copy nn z/b/c", "copy nn z/b/d/", "copy nn z/b/d/e",
		"delete  a/", "delete  a/b/", "delete  a/b/c", "delete  a/b/d/", "delete  a/b/d/e")
	if res.DeletedDirs != 3 || res.DeletedFiles != 2 || res.GoneEntries != 5 || res.PreviousEntries != 7 {
		t.Errorf("%+v", res)
	}
	s.commit()
	s.emits()
}

func TestATypeChange(t *testing.T) {
	t.Parallel()
	s := started(t, "f", "d/x/y", "l")
	s.remove("f", "d", "l")
	s.put("f/new", "d")
	s.must(os.Symlink("x", s.path("l")))
	res := s.emits("copy mm /", "copy nn f/", "copy nn f/new", "copy nn d", "copy nn l", "delete  d/", "delete  d/x/", "delete  d/x/y")
	if res.InWay != 1 {
		t.Errorf("%d directories in the way", res.InWay)
	}
	if res.GoneEntries != 4 { // f, d, d/x, d/x/y; l is another non-directory
		t.Errorf("%d gone", res.GoneEntries)
	}
	// If the copy of d fails, its old tree is still there: back to a directory,
	// and what the tree held is deleted.
	s.commit(Failed{Path: "d"})
	s.nextTick()
	s.remove("d")
	s.put("d/")
	s.emits("copy mm /", "copy nn d/", "delete  d/x/", "delete  d/x/y")
	// The same where both are gone, whichever of the two the destination has.
	s.remove("d")
	s.emits("copy bm /", "delete  d", "delete  d/", "delete  d/x/", "delete  d/x/y") // the scan before may have been killed in it
	s.commit()
	s.emits()
}

func TestDeletesThatFailAreTriedAgain(t *testing.T) {
	t.Parallel()
	s := started(t, "a/b", "c", "d", "keep/x")
	s.remove("a", "c", "d")
	s.emits("copy mm /", "delete  a/", "delete  a/b", "delete  c", "delete  d")
	s.commit(Failed{Path: "a", Delete: true}, Failed{Path: "c", Delete: true})
	if d := gocmp.Diff(map[string]Flags{"/": 0, "a/": FlagGone, "a/b": FlagGone, "c": FlagGone, "keep/": 0, "keep/x": 0}, s.states()); d != "" {
		t.Error(d)
	}
	s.emits("copy fm /", "delete  a/", "delete  a/b", "delete  c")
	s.commit(Failed{Path: "a/b", Delete: true}) // and so a is not empty
	if d := gocmp.Diff(map[string]Flags{"/": 0, "a/": FlagGone, "a/b": FlagGone, "keep/": 0, "keep/x": 0}, s.states()); d != "" {
		t.Error(d)
	}
	s.emits("copy fm /", "delete  a/", "delete  a/b")
	s.commit()
	s.emits()
}

func TestWhatFailedIsEmittedAgain(t *testing.T) {
	t.Parallel()
	s := newSeries(t)
	s.base.ClockTick = -1
	s.put("d/x", "d/y", "e/z", "l1")
	s.must(os.Link(s.path("l1"), s.path("d/l2")))
	s.must(os.Link(s.path("l1"), s.path("e/l3")))
	s.scan()
	s.commit(Failed{Path: "d/x"}, Failed{Path: "e"}, Failed{Path: "d/l2"}, Failed{Path: "not there"})
	// The directory only; of a link the whole group.
	s.emits("copy fm d/", "copy bm d/x", "copy bm e/", "copy fm /", "hardlink  l1", "hardlink  d/l2", "hardlink  e/l3")
	s.commit()
	s.emits()
}

func TestGroupsOfLinksAreEmittedWhole(t *testing.T) {
	t.Parallel()
	s := started(t, "a", "p/b", "u", "single")
	link := func(from, to string) { t.Helper(); s.must(os.Link(s.path(from), s.path(to))) }
	link("a", "p/a2")
	link("u", "p/u2")
	s.emits("copy mm p/", "copy fm /", "hardlink  a", "hardlink  p/a2", "hardlink  u", "hardlink  p/u2")
	s.commit()
	s.nextTick()
	// One name removed: the other is a file again, and the delete is a file's.
	s.remove("p/a2")
	s.emits("copy mm p/", "copy fm /", "copy dm a", "delete  p/a2")
	s.commit()
	s.nextTick()
	// A member replaced by a file of its own, with its metadata changed too.
	s.remove("p/u2")
	s.put("p/u2")
	s.must(os.Chmod(s.path("u"), 0o600))
	s.emits("copy mm p/", "copy fm /", "copy bm u", "copy dm p/u2")
	s.commit()
	s.nextTick()
	// A group of four is split in two: only directories that hold members.
	link("u", "u3")
	link("u", "p/u4")
	s.must(os.Remove(s.path("p/u2")))
	link("u", "p/u2")
	s.scan()
	s.commit()
	s.nextTick()
	write(t, s.path("tmp"), "other")
	for _, p := range []string{"u3", "p/u2"} {
		s.remove(p)
		link("tmp", p)
	}
	s.remove("tmp")
	s.emits("copy mm /", "copy mm p/", "hardlink  u", "hardlink  p/u4", "hardlink  u3", "hardlink  p/u2")
	s.commit()
	s.nextTick()
	// Data changed through one name.
	f, err := os.OpenFile(s.path("u3"), os.O_APPEND|os.O_WRONLY, 0)
	s.must(err)
	_, err = f.WriteString("more")
	s.must(errors.Join(err, f.Close()))
	s.emits("copy fm /", "copy fm p/", "hardlink  u3", "hardlink  p/u2")
}

func TestExcludesChangedInBothDirections(t *testing.T) {
	t.Parallel()
	s := started(t, "a.o", "a.c", "tmp/x", "tmp/y/z", "sub/b.o", "gone/c.o")
	s.base.Excludes = []string{"*.o", "/tmp/"}
	s.remove("gone")
	res := s.emits("copy mm /")
	if res.ExcludedKept != 7 || res.GoneEntries != 1 || res.KeptDirs != 1 { // gone/c.o stays, and gone with it
		t.Errorf("%+v", res)
	}
	s.commit()
	// Kept again; then deleted on purpose.
	if res := s.emits(); res.ExcludedKept != 7 || res.KeptDirs != 1 {
		t.Errorf("%+v", res)
	}
	s.commit()
	s.base.DeleteExcluded = true
	s.emits("copy fm /", "copy fm sub/", "delete  a.o", "delete  gone/", "delete  gone/c.o",
		"delete  sub/b.o", "delete  tmp/", "delete  tmp/x", "delete  tmp/y/", "delete  tmp/y/z")
	s.pending = nil // killed before anything was done
	// Included again: what is there is emitted, as nobody looked after it.
	s.base.Excludes, s.base.DeleteExcluded = nil, false
	s.remove("tmp/x")
	s.emits("copy bm a.o", "copy bm sub/b.o", "copy fm sub/", "copy bm tmp/", "copy bm tmp/y/", "copy bm tmp/y/z", "copy fm /",
		"delete  gone/", "delete  gone/c.o", "delete  tmp/x")
	s.commit()
	s.emits()
}

func TestNewlyExcludedPathsAndMountsAreKept(t *testing.T) {
	t.Parallel()
	s := started(t, "d/x", "e/x", "k")
	s.base.ExcludePaths = []string{s.path("d")}
	if res := s.emits(); res.ExcludedKept != 2 {
		t.Errorf("%+v", res)
	}
	s.base.ExcludePaths, s.base.OneFileSystem = nil, true
	s.pending = nil
	if err := unix.Mount("none", s.path("e"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.path("e"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	res, lines := s.scan()
	if d := gocmp.Diff([]string{"copy mm e/"}, names(lines)); d != "" || res.ExcludedKept != 1 {
		t.Errorf("%s %+v", d, res)
	}
}

// faulty makes the next scans meet errors.
func (s *series) faulty(open, read, stat map[string]error) {
	s.t.Helper()
	tree, err := openFSTree(s.root, false)
	s.must(err)
	s.base.Tree = &faultyTree{fsTree: tree, open: open, read: read, stat: stat}
}

func TestWhatCannotBeReadIsCarried(t *testing.T) {
	t.Parallel()
	s := started(t, "denied/x", "denied/sub/y", "io/f", "io/sub/g", "vanished/x", "bad", "lost", "ok", "replaced/x")
	s.must(os.Link(s.path("ok"), s.path("denied/linked")))
	s.scan()
	s.commit()
	s.nextTick()
	s.faulty(
		map[string]error{"denied": unix.EACCES, "vanished": unix.ENOENT, "replaced": unix.ENOTDIR}, map[string]error{"io": unix.EIO},
		map[string]error{"bad": unix.EIO, "lost": fs.ErrNotExist},
	)
	s.remove("denied/x", "io/sub")
	res, lines := s.scan()
	// Where reading ended nobody knows: io/f may have been seen.
	if got := slices.DeleteFunc(names(lines), func(l string) bool { return strings.Contains(l, " io/") }); len(got) != 1 || got[0] != "copy mm denied/" {
		t.Errorf("%q", got)
	}
	if res.GoneEntries != 0 || res.Carried < 10 || res.DeletedDirs+res.DeletedFiles != 0 {
		t.Errorf("%+v", res)
	}
	flags := s.states()
	for path, want := range map[string]Flags{
		"denied/": FlagUnreadable, "denied/x": FlagCarried, "denied/sub/": FlagCarried, "denied/sub/y": FlagCarried, "denied/linked": FlagCarried,
		"io/": FlagUnreadable, "io/sub/": FlagCarried, "io/sub/g": FlagCarried, "vanished/": FlagCarried, "vanished/x": FlagCarried,
		"bad": FlagCarried, "lost": FlagCarried, "replaced/": FlagCarried, "replaced/x": FlagCarried, "ok": 0,
	} {
		if got, ok := flags[path]; !ok || got != want {
			t.Errorf("%q: flags %b, %v", path, got, ok)
		}
	}
	s.commit()
	// Readable again: now what is gone is deleted, what is as it was is left
	// alone, and a link that was carried brings its group.
	s.base.Tree = nil
	s.emits("copy fm denied/", "copy fm io/", "delete  denied/x", "delete  io/sub/", "delete  io/sub/g", "hardlink  ok", "hardlink  denied/linked", "copy fm /")
	s.commit()
	s.emits()
}

func TestNewlinesInDeletedNamesNeedVersion11(t *testing.T) {
	t.Parallel()
	s := started(t, "plain", "new\nline", "d\nir/x", "d\nir/sub/y", "gone\ndir/x", "dir/a\nb", "dir/c,d", "dir/e")
	s.base.MaxEntries = 2 // each file names the parent again
	s.remove("plain", "new\nline", "d\nir/x", "d\nir/sub", "gone\ndir", "dir/a\nb", "dir/c,d", "dir/e")
	res, lines := s.scan()
	want := []string{
		"copy mm /", "copy mm d\nir/", "copy mm dir/", "delete  d\nir/sub/", "delete  d\nir/sub/y", "delete  d\nir/x", "delete  dir/a\nb", "delete  dir/c,d",
		"delete  dir/e", "delete  gone\ndir/", "delete  gone\ndir/x", "delete  new\nline", "delete  plain",
	}
	if d := gocmp.Diff(want, names(lines)); d != "" || res.ProblemCount != 0 {
		t.Error(d, res.Problems)
	}
	for _, f := range res.ControlFiles {
		if f.Kind != controlfile.Delete {
			continue
		}
		r, err := controlfile.Open(f.Path, f.Kind)
		s.must(err)
		for {
			e, err := r.Next()
			if err != nil {
				break
			}
			if has := strings.Contains(e.Path, "\n"); !has && r.Header().Version == "1.1" && (e.Delete || !e.IsDir) || has && r.Header().Version != "1.1" {
				t.Errorf("%q in version %s", e.Path, r.Header().Version)
			}
		}
		s.must(r.Close())
	}
	s.commit()
	s.emits()
}

// TestPathsWhoseEscapedFormIsLongAreDeleted: three times as many bytes as a path has
// fit into a line.
func TestPathsWhoseEscapedFormIsLongAreDeleted(t *testing.T) {
	t.Parallel()
	s := started(t, "keep")
	name := strings.Repeat("\n", 250)
	up := s.descend(name, 15)
	s.must(unix.Mkdirat(up, name, 0o755))
	if res, _ := s.scan(); res.ProblemCount != 0 || res.New != 16 {
		t.Errorf("%d new, problems: %v", res.New, res.Problems)
	}
	s.commit()
	s.must(unix.Unlinkat(up, name, unix.AT_REMOVEDIR))
	if res, _ := s.scan(); res.ProblemCount != 0 || res.DeletedDirs != 1 {
		t.Errorf("%d directories to delete, problems: %v", res.DeletedDirs, res.Problems)
	}
	s.commit()
	s.emits()
}

// descend makes directories below each other, which may have a longer path than the
// kernel takes. It returns the descriptor of the last one.
func (s *series) descend(name string, depth int) int {
	s.t.Helper()
	fd, err := unix.Open(s.root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	s.must(err)
	for range depth {
		s.must(unix.Mkdirat(fd, name, 0o755))
		down, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		s.must(errors.Join(err, unix.Close(fd)))
		fd = down
	}
	s.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestEntriesOfTheClockTickAreEmittedOnceMore(t *testing.T) {
	t.Parallel()
	s := newSeries(t)
	s.put("a", "d/b", "future")
	chtimes(t, s.path("future"), 4e9)
	s.base.ClockTick = 1 << 40 // all of it is young
	s.scan()
	s.commit()
	s.base.ClockTick = -1
	s.emits("copy bm /", "copy bm a", "copy bm d/", "copy bm d/b", "copy bm future")
	s.commit()
	s.emits()
	// A time to come is not a reason by itself.
	begun := now.AddDate(1, 0, 0)
	s.base.clock = nil
	s.base.ClockTick = 0
	s.base.clock = func() time.Time { return begun }
	s.scan()
	s.commit()
	s.emits()
}

func TestADamagedStateIsAClearError(t *testing.T) {
	t.Parallel()
	s := started(t, "a", "d/b", "d/c")
	b, err := os.ReadFile(s.committed)
	s.must(err)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		bad := slices.Clone(b)
		if i%2 == 0 {
			bad = bad[:r.IntN(len(bad))]
		} else {
			bad[r.IntN(len(bad))] ^= byte(1 + r.IntN(255))
		}
		path := filepath.Join(s.dir, fmt.Sprint("bad", i))
		s.must(os.WriteFile(path, bad, 0o600))
		for _, cfg := range []Config{{Committed: path}, {Committed: s.committed, Pending: []string{path}}} {
			cfg.Source, cfg.Out, cfg.Incremental = s.root, filepath.Join(s.dir, fmt.Sprint("out", i, len(cfg.Pending))), true
			_, err := Scan(t.Context(), cfg)
			if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "run a full backup") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%d: %v", i, err)
			}
		}
		if err := Commit(path, path+".out", nil); !fault.Is(err, fault.Corrupt) {
			t.Errorf("commit %d: %v", i, err)
		}
		if left, _ := filepath.Glob(path + ".out*"); left != nil {
			t.Errorf("left behind: %v", left)
		}
	}
	if left, _ := filepath.Glob(s.dir + "/.commit*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	_, err = Scan(t.Context(), Config{Source: s.root, Out: filepath.Join(s.dir, "o"), Committed: filepath.Join(s.dir, "none")})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

// TestCommitDoesNotCareInWhichOrderFailuresCome, nor how many there are, nor
// where it writes.
func TestCommitDoesNotCareInWhichOrderFailuresCome(t *testing.T) {
	t.Parallel()
	s := newSeries(t)
	treetest.Random(t, s.root, 4, 300)
	s.base.ClockTick = -1
	s.scan()
	var failed []Failed
	want := map[string]bool{}
	for i, e := range treetest.Listing(t, s.root) {
		if i%3 == 0 {
			failed = append(failed, Failed{Path: e.Path}, Failed{Path: "/" + e.Path})
			want[e.Path] = true
		}
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(failed), func(i, j int) { failed[i], failed[j] = failed[j], failed[i] })
	s.committed, s.pending = s.pending[0], nil
	s.must(Commit(s.committed, s.committed, FailedList(failed)))
	for path, flags := range s.states() {
		if dirty := flags&FlagDirty != 0; dirty != want[strings.TrimSuffix(path, "/")] || flags&^FlagDirty != 0 {
			t.Errorf("%q: flags %b", path, flags)
		}
	}
	boom := errors.New("boom")
	err := Commit(s.committed, s.committed+"2", func(yield func(Failed, error) bool) { yield(Failed{}, boom) })
	if _, serr := os.Stat(s.committed + "2"); !errors.Is(err, boom) || !errors.Is(serr, fs.ErrNotExist) {
		t.Errorf("%v, %v", err, serr)
	}
}

func TestAFullScanAfterOthersDeletesWhatIsGone(t *testing.T) {
	t.Parallel()
	s := started(t, "a", "d/x", "e")
	s.remove("d", "e")
	s.base.Incremental = false
	s.emits("copy bm /", "copy bm a", "delete  d/", "delete  d/x", "delete  e")
	// Nothing committed, but a scan that is pending may have left something.
	s.base.Incremental, s.committed = true, ""
	s.remove("a")
	s.put("b")
	s.emits("copy bm /", "copy bm b", "delete  a", "delete  d/", "delete  d/x", "delete  e")
	s.commit()
	s.emits()
}

func TestPathsLimitAScan(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, p := range []string{"a/b/c", "a/b/d", "a/x", "e", "f/g", "h/i"} {
		write(t, filepath.Join(root, p), p)
	}
	res, got := scanTree(t, Config{Source: root, Paths: []string{"/a/b/", "e", "a/b/c"}})
	var paths []string
	for p := range got.entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	if d := gocmp.Diff([]string{"", "a", "a/b", "a/b/c", "a/b/d", "e"}, paths); d != "" || res.StateFile != "" {
		t.Error(d, res.StateFile)
	}
	for _, bad := range []string{"nope", "a/b/c/d", "a/../e", "f/nope"} {
		_, err := Scan(t.Context(), Config{Source: root, Out: filepath.Join(t.TempDir(), "o"), Paths: []string{"e", bad}})
		if want := map[bool]fault.Kind{true: fault.Invalid, false: fault.NotFound}[strings.Contains(bad, "..")]; !fault.Is(err, want) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	_, err := Scan(t.Context(), Config{Source: root, Out: filepath.Join(t.TempDir(), "o"), Paths: []string{"e"}, Committed: "x"})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestFilterKeepsPathsAndTheirParents(t *testing.T) {
	t.Parallel()
	root := zoo(t)
	res, whole := scanTree(t, Config{Source: root, MaxEntries: 7})
	var control []string
	for _, f := range res.ControlFiles {
		control = append(control, f.Path)
	}
	want := []string{"links/d,1", "new\nline", "dir new\nline", "sparse", "level-00/level-01/level-02", "links/d,0/l\n2"}
	out := filepath.Join(t.TempDir(), "out")
	files, err := Filter(t.Context(), FilterConfig{Control: control, Meta: res.MetaDir, Out: out, Paths: want, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	sel, err := newSelection(want)
	if err != nil {
		t.Fatal(err)
	}
	got := readBack(t, &Result{ControlFiles: files, MetaDir: res.MetaDir})
	wantEntries := map[string]string{}
	for p, text := range whole.stats() {
		if sel.has(p, whole.entries[p].Mode&modeFormat == modeDir) {
			wantEntries[p] = text
		}
	}
	if d := gocmp.Diff(wantEntries, got.stats()); d != "" {
		t.Error(d)
	}
	if d := gocmp.Diff(map[string][]string{
		"links/d,1/l\n0": {"links/d,1/l\n0"}, "links/d,1/l\n1": {"links/d,1/l\n1"}, "links/d,0/l\n2": {"links/d,0/l\n2", "links/d,1/l\n2"},
	}, got.groups); d != "" {
		t.Error(d)
	}
	var bytes, header uint64
	for p, m := range got.entries {
		if m.Mode&modeFormat == modeRegular {
			bytes += m.Size
		}
		if m.Mode&modeFormat == modeDir && got.times[p] == nil {
			t.Errorf("no times of %q", p)
		}
	}
	for _, f := range files {
		sum, err := controlfile.Check(f.Path, f.Kind)
		if err != nil {
			t.Error(err)
		}
		header += sum.Header.Bytes
	}
	if bytes != header {
		t.Errorf("%d bytes in headers, %d in records", header, bytes)
	}
	_, err = Filter(t.Context(), FilterConfig{Control: control, Out: filepath.Join(t.TempDir(), "o"), Paths: []string{"sparse", "nowhere"}})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("%v", err)
	}
}

// TestPathsThatCannotBeWrittenStayDirty: those that are longer than a path can be are
// a problem each time, and touch nothing.
func TestPathsThatCannotBeWrittenStayDirty(t *testing.T) {
	t.Parallel()
	s := started(t, "good")
	up := s.descend(strings.Repeat("a", 255), 16)
	// The path of the last one that fits has 4095 bytes.
	s.must(unix.Mkdirat(up, "d", 0o755))
	for i := range 2 {
		res, lines := s.scan()
		if res.ProblemCount != 1 || i > 0 && len(lines) > 0 {
			t.Errorf("%d problems, %q", res.ProblemCount, names(lines))
		}
		s.commit()
	}
}
