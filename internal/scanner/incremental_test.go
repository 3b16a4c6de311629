package scanner

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// series is a source with the scans of it that there have been.
type series struct {
	t         *testing.T
	dir, root string
	committed string
	pending   []string
	scans     int
	base      Config
}

func newSeries(t *testing.T) *series {
	dir := t.TempDir()
	return &series{t: t, dir: dir, root: filepath.Join(dir, "src"), base: Config{Incremental: true, Workers: 2, MemoryLimit: 1 << 20}}
}

// scan scans in comparison with what has been, and reads the lines back. The
// scan is pending until commit.
func (s *series) scan() (*Result, []line) {
	s.t.Helper()
	s.scans++
	cfg := s.base
	cfg.Source, cfg.Out, cfg.TaskID, cfg.Now = s.root, filepath.Join(s.dir, fmt.Sprint("scan", s.scans)), "test", now
	cfg.Committed, cfg.Pending = s.committed, s.pending
	res, err := Scan(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.pending = append(s.pending, res.StateFile)
	return res, linesOf(s.t, res)
}

func (s *series) commit(failed ...Failed) {
	s.t.Helper()
	s.committed = filepath.Join(s.dir, "committed.zst")
	if err := Commit(s.pending[len(s.pending)-1], s.committed, FailedList(failed)); err != nil {
		s.t.Fatal(err)
	}
	s.pending = nil
}

// nextTick returns when the clock of the file system's timestamps has moved on.
func (s *series) nextTick() {
	s.t.Helper()
	probe := filepath.Join(s.dir, "probe")
	var first unix.Stat_t
	for i := 0; ; i++ {
		write(s.t, probe, fmt.Sprint(i))
		var st unix.Stat_t
		if err := unix.Stat(probe, &st); err != nil {
			s.t.Fatal(err)
		}
		if i == 0 {
			first = st
		} else if st.Ctim != first.Ctim {
			return
		}
	}
}

func names(lines []line) []string {
	var out []string
	for _, l := range lines {
		if l.kind != controlfile.Mtime {
			out = append(out, strings.TrimSpace(fmt.Sprintf("%v %s %s%s", l.kind, l.mode, l.path, map[bool]string{true: "/"}[l.isDir])))
		}
	}
	slices.Sort(out)
	return out
}

// expected computes what an incremental scan must emit from what was and is.
func expected(before, after []treetest.Entry) []string {
	old, cur := map[string]*treetest.Entry{}, map[string]*treetest.Entry{}
	for i := range before {
		old[before[i].Path] = &before[i]
	}
	for i := range after {
		cur[after[i].Path] = &after[i]
	}
	mode := func(e *treetest.Entry) string {
		o := old[e.Path]
		if o == nil || o.Type != e.Type {
			return "nn"
		}
		meta := o.Mode != e.Mode || o.UID != e.UID || o.GID != e.GID || !reflect.DeepEqual(o.Xattrs, e.Xattrs)
		data := e.Type == modeRegular && o.Size != e.Size || o.MtimeNS != e.MtimeNS || o.Inode != e.Inode || (o.Nlink > 1) != (e.Nlink > 1)
		switch {
		case o.CtimeNS == e.CtimeNS && o.Inode == e.Inode:
			return ""
		case e.Type == modeDir:
			return "mm"
		case meta && data:
			return "bm"
		case meta:
			return "mm"
		}
		return "dm"
	}
	changedGroup, touched := map[uint64]bool{}, map[string]bool{}
	for _, e := range cur {
		if m := mode(e); e.Type != modeDir && m != "" || m == "nn" {
			if changedGroup[e.Inode] = true; e.Nlink <= 1 || e.Type == modeDir {
				touched[parentOf(e.Path)] = true
			}
		}
	}
	var out []string
	for _, e := range cur {
		switch {
		case e.Type == modeDir:
		case e.Nlink > 1:
			if changedGroup[e.Inode] {
				out = append(out, "hardlink  "+e.Path)
				touched[parentOf(e.Path)] = true
			}
		case mode(e) != "":
			out = append(out, "copy "+mode(e)+" "+e.Path)
		}
	}
	for _, e := range old {
		up := parentOf(e.Path)
		now := cur[e.Path]
		if now != nil && (e.Type != modeDir || now.Type == modeDir) {
			continue // of a directory in the way the line comes as well
		}
		touched[up] = true
		out = append(out, "delete  "+e.Path+map[bool]string{true: "/"}[e.Type == modeDir])
	}
	for _, e := range cur {
		if e.Type == modeDir {
			if m := cmp.Or(mode(e), map[bool]string{true: "fm"}[touched[e.Path]]); m != "" {
				out = append(out, "copy "+m+" "+e.Path+"/")
			}
		}
	}
	slices.Sort(out)
	return out
}

func seeds(t *testing.T, n uint64) uint64 {
	if testing.Short() {
		return min(n, 2)
	}
	return n
}

// TestAnIncrementalScanEmitsExactlyWhatChanged, with the right modes and the
// right figures, and after that nothing.
func TestAnIncrementalScanEmitsExactlyWhatChanged(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t, 12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			s := newSeries(t)
			s.base.ClockTick, s.base.MaxEntries = -1, 40
			treetest.Random(t, s.root, seed, 400)
			s.nextTick()
			first, _ := s.scan()
			if first.Unchanged != 0 || first.New != first.Dirs+first.Files() || first.CopyBytes != first.Bytes || first.PreviousEntries != 0 {
				t.Errorf("%+v", first)
			}
			s.commit()
			before := treetest.Listing(t, s.root)
			s.nextTick()
			log := treetest.Mutate(t, s.root, rand.New(rand.NewPCG(seed, 2)), 60)
			after := treetest.Listing(t, s.root)
			s.nextTick()
			var told []string
			s.base.OnChange = func(c Change) { told = append(told, c.Path) }
			res, lines := s.scan()
			if d := gocmp.Diff(expected(before, after), names(lines)); d != "" {
				t.Errorf("%s\n%s", d, strings.Join(log, "\n"))
			}
			checkFigures(t, res, lines, before, after)
			if len(told) != len(names(lines)) {
				t.Errorf("%d changes told of, %d lines", len(told), len(names(lines)))
			}
			s.base.OnChange = nil
			s.commit()
			again, lines := s.scan()
			if len(lines) != 0 || len(again.ControlFiles) != 0 || again.Unchanged != again.Dirs+again.Files() || again.GoneEntries != 0 {
				t.Errorf("nothing changed, and %q, %+v", names(lines), again)
			}
		})
	}
}

func checkFigures(t *testing.T, res *Result, lines []line, before, after []treetest.Entry) {
	t.Helper()
	want := Result{PreviousEntries: uint64(len(before))}
	fig := treetest.Count(after)
	want.Dirs, want.Bytes = fig.Dirs, fig.Bytes
	mtimes := 0
	seen := map[string]bool{}
	for _, l := range lines {
		switch {
		case l.kind == controlfile.Mtime:
			mtimes++
			continue
		case l.kind == controlfile.Delete && l.isDir:
			want.DeletedDirs++
			continue
		case l.kind == controlfile.Delete:
			want.DeletedFiles++
			continue
		case l.kind == controlfile.Hardlink:
			want.LinkedFiles++
		}
		seen[l.path] = true
		switch l.mode {
		case "nn":
			want.New++
		case "dm", "bm":
			want.Modified++
		case "mm":
			want.MetaOnly++
		case "fm":
			want.Refinished++
		}
	}
	want.Unchanged = uint64(len(after) - len(seen))
	kinds := map[string]uint32{}
	for i := range after {
		kinds[after[i].Path] = after[i].Type
	}
	for i := range before {
		if now, ok := kinds[before[i].Path]; !ok || (now == modeDir) != (before[i].Type == modeDir) {
			want.GoneEntries++
		}
	}
	got := Result{
		PreviousEntries: res.PreviousEntries, Dirs: res.Dirs, Bytes: res.Bytes, DeletedDirs: res.DeletedDirs, DeletedFiles: res.DeletedFiles,
		LinkedFiles: res.LinkedFiles, MetaOnly: res.MetaOnly, Refinished: res.Refinished, Unchanged: res.Unchanged, GoneEntries: res.GoneEntries,
	}
	// Links have no modes in their lines.
	if res.New+res.Modified != want.New+want.Modified+want.LinkedFiles {
		t.Errorf("%d new, %d modified, %d linked", res.New, res.Modified, res.LinkedFiles)
	}
	want.New, want.Modified = 0, 0
	if d := gocmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if fig.Files != res.Files() {
		t.Errorf("%d files, not %d", res.Files(), fig.Files)
	}
	dirs := 0
	for _, l := range lines {
		if l.kind == controlfile.Copy && l.isDir {
			dirs++
		}
	}
	if mtimes != dirs {
		t.Errorf("%d mtime lines for %d directories", mtimes, dirs)
	}
}

// TestNoKillLosesAChange: scans whose jobs are killed at any moment, fail in
// parts, or are done, in any order, some of them full, some with excludes or
// with directories that cannot be read. After one that saw everything and is done
// the destination is the source. The clock's tick is real here.
func TestNoKillLosesAChange(t *testing.T) {
	t.Parallel()
	for seed := range seeds(t, 12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			s := newSeries(t)
			r := rand.New(rand.NewPCG(seed, 3))
			treetest.Random(t, s.root, seed, 120)
			dst := newModel()
			var log []string
			for round := range 8 {
				if round > 0 {
					log = append(log, treetest.Mutate(t, s.root, r, 1+r.IntN(25))...)
				}
				if s.base.Incremental = r.IntN(6) > 0; !s.base.Incremental {
					log = append(log, "full")
				}
				list := treetest.Listing(t, s.root)
				partly := round < 7 && r.IntN(3) == 0
				if partly {
					log = append(log, "partly: "+s.blind(r, list))
				}
				_, lines := s.scan()
				s.base.Tree, s.base.Excludes = nil, nil
				switch k := r.IntN(4); {
				case k == 0 && round < 7:
					log = append(log, "killed")
					dst.run(lines, list, r, r.IntN(len(lines)+1), nil)
				case k == 1 && round < 7:
					failed := dst.run(lines, list, r, -1, func(line) bool { return r.IntN(4) == 0 })
					s.commit(failed...)
					log = append(log, fmt.Sprintf("failed %q", fmt.Sprint(failed)))
				default:
					log = append(log, "done")
					dst.run(lines, list, r, -1, nil)
					if d := dst.differs(list); len(d) > 0 && !partly {
						t.Fatalf("round %d:\n%s\nlog:\n%s\nlines:\n%s", round, strings.Join(d, "\n"), strings.Join(log, "\n"), strings.Join(names(lines), "\n"))
					}
					s.commit()
				}
			}
		})
	}
}

// blind keeps the next scan from seeing something: it is excluded, or its
// directory cannot be read.
func (s *series) blind(r *rand.Rand, list []treetest.Entry) string {
	if r.IntN(2) == 0 {
		s.base.Excludes = []string{fmt.Sprintf("*%d", r.IntN(10))}
		return s.base.Excludes[0]
	}
	var dirs []string
	for i := range list {
		if list[i].Type == modeDir && list[i].Path != "" {
			dirs = append(dirs, list[i].Path)
		}
	}
	if len(dirs) == 0 {
		return "nothing"
	}
	denied, lost := dirs[r.IntN(len(dirs))], dirs[r.IntN(len(dirs))]
	s.faulty(map[string]error{denied: unix.EACCES, lost: unix.ENOENT}, nil, nil)
	return fmt.Sprintf("%q, %q", denied, lost)
}

func chtimes(t *testing.T, path string, sec int64) {
	t.Helper()
	ts := []unix.Timespec{{Sec: sec}, {Sec: sec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}
