package scanner

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern string
		yes, no []string // paths; a slash at the end marks a directory
	}{
		{"*.o", []string{"a.o", "x/y/.o", "a.o/"}, []string{"a.oo", "o", "a.o/x"}},
		{"core", []string{"core", "a/core", "core/"}, []string{"cores", "core/x"}},
		{"core/", []string{"core/", "a/core/"}, []string{"core"}},
		{"/core", []string{"core"}, []string{"a/core"}},
		{"a/b", []string{"a/b", "a/b/"}, []string{"x/a/b", "a/b/c"}},
		{"a/*/c", []string{"a/b/c"}, []string{"a/c", "a/b/b/c"}},
		{"a/**/c", []string{"a/c", "a/b/c", "a/b/b/c"}, []string{"c", "a/b/d"}},
		{"**/c", []string{"c", "a/c", "a/b/c"}, []string{"a/c/d"}},
		{"a/**", []string{"a/b", "a/b/c"}, []string{"a/", "b"}},
		{"**", []string{"a", "a/b"}, nil},
		{"file?", []string{"file1", "fileé", "file\xff"}, []string{"file", "file12"}},
		{"[a-c]x[!0-9]", []string{"axb", "cxé"}, []string{"dxb", "ax1"}},
		{"[]x]", []string{"]", "x"}, []string{"y"}},
		{"[^a]", []string{"b", "é"}, []string{"a"}},
		{`a\*b`, []string{"a*b"}, []string{"aab"}},
		{"a*b*c*", []string{"abc", "aXbXcX"}, []string{"acb"}},
		{"*a*a*a*a*a*a*a*b", []string{"aaaaaaaab"}, []string{strings.Repeat("a", 250)}},
		// What is not UTF-8 is one byte, which is no other and not U+FFFD.
		{"a\xff", []string{"a\xff"}, []string{"a\xfe", "a\ufffd", "a"}},
		{"a\ufffd", []string{"a\ufffd"}, []string{"a\xff", "a\xef"}},
		{"[\xfe]", []string{"\xfe"}, []string{"\xff", "\ufffd"}},
		{"[\ufffd]", []string{"\ufffd"}, []string{"\xfd", "\xff"}},
		{"[!\ufffd]", []string{"\xfd", "a"}, []string{"\ufffd"}},
		{"[\xb0-\xb2]\xb8", []string{"\xb1\xb8"}, []string{"\xb3\xb8", "\u00b1\xb8"}},
		{"[a-\u00ff]", []string{"\u00ff", "b"}, []string{"\xff"}},
		{"??", []string{"\xb1\xb8", "é\xff"}, []string{"\xb1", "é", "\xb1\xb8\xb7"}},
		{"\xb1\xb8*", []string{"\xb1\xb8", "\xb1\xb8\xb7\xdd"}, []string{"\ufffd\ufffd", "\xb8"}},
		{"*\xa3\xba.txt", []string{"\xd0\xc4\xa3\xba.txt"}, []string{"\xd0\xc4\xa3\xbb.txt"}}, // c4 a3 alone is a letter of UTF-8
		{"*[!é]", []string{"éa", "é\xff"}, []string{"é", "aé"}},
		{"\\\xff", []string{"\xff"}, []string{"\ufffd", "\xfe"}},
		{"new\nline", []string{"new\nline"}, []string{"new"}},
	} {
		p, err := parsePattern(tt.pattern)
		if err != nil {
			t.Errorf("%q: %v", tt.pattern, err)
			continue
		}
		for _, path := range tt.yes {
			if dir, isDir := strings.CutSuffix(path, "/"); !p.match(dir, isDir) {
				t.Errorf("%q does not match %q", tt.pattern, path)
			}
		}
		for _, path := range tt.no {
			if dir, isDir := strings.CutSuffix(path, "/"); p.match(dir, isDir) {
				t.Errorf("%q matches %q", tt.pattern, path)
			}
		}
	}
	for _, bad := range []string{"", "/", "a//b", "[a", "[", "[a-", "a\\", "../a", "a/./b", "[]"} {
		if _, err := parsePattern(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzPattern(f *testing.F) {
	f.Add("a*[b-c]?", "abc/d")
	f.Add("**/[!x]\\*", "a/b/*")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		p, err := parsePattern(pattern)
		if err != nil || strings.Count(pattern, "**") > 3 {
			return
		}
		p.match(path, true)
		// A pattern that quotes everything matches exactly its path.
		var quoted strings.Builder
		for i := range len(path) {
			if path[i] != '/' {
				quoted.WriteByte('\\')
			}
			quoted.WriteByte(path[i])
		}
		if q, err := parsePattern("/" + quoted.String()); err == nil && !strings.HasSuffix(path, "/") && !q.match(path, true) {
			t.Fatalf("%q does not match %q", quoted.String(), path)
		}
	})
}

// part yields components of paths that make keys hard to order.
func part() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[a-c!.\x01-\x30\x{ff}]{1,6}`),
		rapid.Map(rapid.SliceOfN(rapid.ByteRange(1, 255), 1, 20), func(b []byte) string { return string(b) }),
	).Filter(func(s string) bool { return !strings.Contains(s, "/") })
}

func genRecord(t *rapid.T) *Record {
	r := &Record{
		Dir:  strings.Join(rapid.SliceOfN(part(), 0, 4).Draw(t, "dir"), "/"),
		Mode: modeDir | 0o755, UID: rapid.Uint32().Draw(t, "uid"), Ino: rapid.Uint64().Draw(t, "ino"),
		Size: rapid.Uint64().Draw(t, "size"), Mtime: Time{rapid.Int64().Draw(t, "s"), rapid.Uint32Range(0, 999_999_999).Draw(t, "ns")},
		Flags: FlagUnreadable, SubDirs: 3,
	}
	if rapid.Bool().Draw(t, "file") {
		r.Name, r.Mode = part().Draw(t, "name"), modeRegular|0o644
		r.Symlink, r.AccessACL = rapid.String().Draw(t, "target"), rapid.String().Draw(t, "acl")
		for range rapid.IntRange(0, 2).Draw(t, "xattrs") {
			r.Xattrs = append(r.Xattrs, entry.Xattr{Name: "n", Value: rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(t, "value")})
			r.Sparse = append(r.Sparse, entry.Extent{Offset: r.Size, Length: 1})
		}
	}
	return r
}

func TestRecordsSurviveTheirEncoding(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		var got Record
		got.Dir, got.Name = splitKey(appendKey(nil, r), rapid.SampledFrom([]string{"", r.Dir, "a/b"}).Draw(t, "last"))
		value := appendValue(nil, r)
		if err := decodeValue(value, &got); err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(*r, got); d != "" {
			t.Fatal(d)
		}
		if len(value) > 0 && decodeValue(value[:rapid.IntRange(0, len(value)-1).Draw(t, "cut")], &Record{}) == nil {
			t.Fatal("a record that was cut short is accepted")
		}
	})
}

// TestKeysOrderAParentThenItsFilesThenItsSubtrees.
func TestKeysOrderAParentThenItsFilesThenItsSubtrees(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRecord(t), genRecord(t)
		got := bytes.Compare(appendKey(nil, a), appendKey(nil, b))
		split := func(p string) []string {
			if p == "" {
				return nil
			}
			return strings.Split(p, "/")
		}
		want := cmp.Or(slices.Compare(split(a.Dir), split(b.Dir)), strings.Compare(a.Name, b.Name))
		if got != want {
			t.Fatalf("%q %q against %q %q: %d, want %d", a.Dir, a.Name, b.Dir, b.Name, got, want)
		}
	})
}

// TestSortingYieldsEachPairOnceInOrder with buffers that spill and without,
// from several goroutines, merged in passes or at once.
func TestSortingYieldsEachPairOnceInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		// Each sort leaves the directory empty, as is checked below.
		runs := newRunSet(dir, "t", rapid.IntRange(2, 5).Draw(t, "fan-in"))
		limit := rapid.SampledFrom([]int{1, 100, 1000, 1 << 20}).Draw(t, "limit")
		var buffers []*sortBuffer
		var want []string
		n := rapid.IntRange(0, 300).Draw(t, "pairs")
		for i := range 3 {
			b := &sortBuffer{runs: runs, limit: fixed(limit)}
			buffers = append(buffers, b)
			for k := i; k < n; k += 3 {
				key := fmt.Sprintf("%08x", uint32(k)*2654435761)
				if k%10 == 9 { // a directory that changes can list a name twice
					key = want[len(want)-1][:strings.IndexByte(want[len(want)-1], '=')]
				} else {
					want = append(want, key+"="+key+"!")
				}
				if err := b.add([]byte(key), []byte(key+"!")); err != nil {
					t.Fatal(err)
				}
			}
		}
		slices.Sort(want)
		m, err := runs.merge(buffers)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			key, value, ok, err := m.next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			got = append(got, string(key)+"="+string(value))
		}
		if d := gocmp.Diff(slices.Compact(want), got); d != "" {
			t.Fatal(d)
		}
		if left, _ := filepath.Glob(dir + "/*"); left != nil {
			t.Fatalf("left behind: %v", left)
		}
	})
}

func TestPendingDirectoriesAreEachReadOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := newPending(dir, 10)
	if err := p.push([]string{"0"}); err != nil {
		t.Fatal(err)
	}
	// Each of the first directories has 50 below it: 1 + 50 + 2,500.
	var mu sync.Mutex
	seen := map[string]int{}
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			for {
				d, ok, err := p.pop()
				if err != nil {
					t.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				seen[d]++
				mu.Unlock()
				var subs []string
				for i := range 50 {
					if strings.Count(d, "/") < 2 {
						subs = append(subs, fmt.Sprint(d, "/", i))
					}
				}
				if err := p.push(subs); err != nil {
					t.Error(err)
				}
				p.done()
			}
		})
	}
	g.Wait()
	if len(seen) != 2551 || p.spills == 0 {
		t.Errorf("%d directories, %d spills", len(seen), p.spills)
	}
	for d, n := range seen {
		if n != 1 {
			t.Errorf("%q was read %d times", d, n)
		}
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// faultyTree is the file system with errors at some paths.
type faultyTree struct {
	*fsTree
	open map[string]error // of directories, as if open failed
	read map[string]error // of directories, after some entries
	stat map[string]error // of entries, by name
}

type faultyReader struct {
	DirReader
	t   *faultyTree
	err error
	n   int
}

func (f *faultyTree) Open(dir string) (*Record, DirReader, error) {
	if err := f.open[dir]; err != nil {
		return f.unreadable(dir, err)
	}
	rec, rd, err := f.fsTree.Open(dir)
	if rd != nil {
		rd = &faultyReader{DirReader: rd, t: f, err: f.read[dir]}
	}
	return rec, rd, err
}

func (f *faultyReader) Next(keep func(string, bool) bool) ([]Found, error) {
	if f.n++; f.n > 1 && f.err != nil {
		return nil, f.err
	}
	list, err := f.DirReader.Next(keep)
	for i := range list {
		if e := f.t.stat[list[i].Name]; e != nil {
			list[i] = Found{Name: list[i].Name, Err: e}
		}
	}
	return list, err
}

// TestWhatCannotBeReadIsReportedAndNotTakenForGone.
func TestWhatCannotBeReadIsReportedAndNotTakenForGone(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, p := range []string{"a", "denied/x", "io/x", "gone/x", "replaced/x", "vanished", "bad", "ok/x"} {
		write(t, filepath.Join(root, p), "x")
	}
	fst, err := openFSTree(root, false)
	if err != nil {
		t.Fatal(err)
	}
	tree := &faultyTree{
		fsTree: fst,
		open:   map[string]error{"denied": unix.EACCES, "gone": unix.ENOENT, "replaced": unix.ENOTDIR},
		read:   map[string]error{"io": unix.EIO},
		stat:   map[string]error{"vanished": fmt.Errorf("stat: %w", fs.ErrNotExist), "bad": fmt.Errorf("stat: %w", unix.EIO)},
	}
	res, got := scanTree(t, Config{Source: root, Tree: tree})
	var problems []string
	for _, p := range res.Problems {
		problems = append(problems, p.Path)
		if strings.Contains(p.Err.Error(), "\n") || !strings.Contains(p.Err.Error(), p.Path) {
			t.Errorf("%v", p.Err)
		}
	}
	if d := gocmp.Diff([]string{"bad", "denied", "io", "replaced"}, problems); d != "" || res.ProblemCount != 4 {
		t.Error(d)
	}
	if res.Vanished != 2 {
		t.Errorf("%d vanished", res.Vanished)
	}
	var paths []string
	for p := range got.entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	if d := gocmp.Diff([]string{"", "a", "denied", "io", "io/x", "ok", "ok/x"}, paths); d != "" {
		t.Error(d)
	}
	s, err := OpenState(res.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for {
		r, err := s.Next()
		if err != nil {
			break
		}
		if want := r.Path() == "denied" || r.Path() == "io"; want != (r.Flags&FlagUnreadable != 0) {
			t.Errorf("%q: flags %b", r.Path(), r.Flags)
		}
	}
}

// TestAnUnwritableSpillDirectoryFailsTheScan with one line that names it.
func TestAnUnwritableSpillDirectoryFailsTheScan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "src", "a"), "x")
	write(t, filepath.Join(dir, "file"), "x")
	_, err := Scan(t.Context(), Config{Source: filepath.Join(dir, "src"), Out: filepath.Join(dir, "out"), SpillDir: filepath.Join(dir, "file", "x")})
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "file/x") {
		t.Error(err)
	}
}

// TestSymlinksOnTheWayAreNotFollowed, with openat2 and without.
func TestSymlinksOnTheWayAreNotFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "outside", "sub", "secret"), "x")
	write(t, filepath.Join(dir, "src", "in", "sub", "x"), "x")
	if err := os.Symlink(filepath.Join(dir, "outside"), filepath.Join(dir, "src", "link")); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		tree, err := openFSTree(filepath.Join(dir, "src"), false)
		if err != nil {
			t.Fatal(err)
		}
		tree.noOpenat2.Store(old)
		for path, ok := range map[string]bool{"": true, "in": true, "in/sub": true, "link": false, "link/sub": false, "in/sub/x": false, "nope/sub": false} {
			fd, err := tree.openDir(path)
			if (err == nil) != ok {
				t.Errorf("openat2 %v: %q: %v", !old, path, err)
			}
			if err == nil {
				_ = unix.Close(fd)
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestProblemsBeyondTheListAreInTheFile(t *testing.T) {
	t.Parallel()
	p := newProblems(t.TempDir())
	for i := range maxProblems + 10 {
		p.add(fmt.Sprint("p", i), unix.EIO)
	}
	var r Result
	if err := p.finish(&r); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.ProblemFile)
	if err != nil || bytes.Count(b, []byte("\n")) != maxProblems+10 || len(r.Problems) != maxProblems || r.ProblemCount != maxProblems+10 {
		t.Errorf("%d in the list, %d counted, %v", len(r.Problems), r.ProblemCount, err)
	}
	if !errors.Is(r.Problems[0].Err, unix.EIO) || !fault.Is(r.Problems[0].Err, fault.Internal) {
		t.Errorf("%v", r.Problems[0].Err)
	}
}

// TestGroupsAreSortedAsAllIs sorts what directories hold, group by group, and all of it
// at once.
func TestGroupsAreSortedAsAllIs(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]int{200, 1 << 10, 1 << 20}).Draw(t, "limit")
		dir, err := os.MkdirTemp(base, "groups") //nolint:usetesting // rapid has none, and this is for one of many
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir) //nolint:errcheck // temporary
		grouped, plain := &sortBuffer{runs: newRunSet(dir, "g", 0), limit: fixed(limit)}, &sortBuffer{runs: newRunSet(dir, "p", 0), limit: fixed(limit)}
		dirs := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"", "a", "b", "a/x", "a/y", "ab", "a/x/z", "b/a", "\x01", "a/\xff"}), 1, 10, func(s string) string { return s }).Draw(t, "dirs")
		add := func(r *Record) {
			for _, b := range []*sortBuffer{grouped, plain} {
				if err := b.add(appendKey(nil, r), []byte{1}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, d := range dirs {
			for _, name := range rapid.SliceOfNDistinct(part(), 0, 6, func(s string) string { return s }).Draw(t, "names") {
				add(&Record{Dir: d, Name: name})
			}
			add(&Record{Dir: d, Mode: modeDir})
			grouped.group()
		}
		var keys [2][]string
		for i, b := range []*sortBuffer{grouped, plain} {
			m, err := b.runs.merge([]*sortBuffer{b})
			if err != nil {
				t.Fatal(err)
			}
			for {
				key, _, ok, err := m.next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				keys[i] = append(keys[i], string(key))
			}
		}
		if d := gocmp.Diff(keys[1], keys[0]); d != "" {
			t.Fatal(d)
		}
	})
}

func TestStatesKeepWhatTheDestinationWasSeenToHave(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := Record{Mode: modeRegular | 0o644, Size: 3, Copy: Copy{Ino: rapid.Uint64().Draw(t, "inode"), Ctime: Time{rapid.Int64().Draw(t, "s"), rapid.Uint32Range(0, 999_999_999).Draw(t, "ns")}}}
		var got Record
		if err := decodeNumbers(appendState(nil, &r), &got); err != nil || got.Copy != r.Copy || got.Size != r.Size {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

func TestTimesAsFileSystemsKeepThem(t *testing.T) {
	t.Parallel()
	want := Time{1_700_000_001, 123_456_789}
	for _, kept := range []Time{want, {want.Sec, 123_456_700}, {want.Sec, 123_456_000}, {want.Sec, 123_000_000}, {want.Sec, 0}, {want.Sec - 1, 0}} {
		if !keptTime(want, kept) {
			t.Errorf("%v is not taken for %v", kept, want)
		}
	}
	for _, other := range []Time{{want.Sec, 123_456_788}, {want.Sec, 123_456_790}, {want.Sec + 1, 0}, {want.Sec - 2, 0}, {want.Sec - 1, 123_456_789}} {
		if keptTime(want, other) {
			t.Errorf("%v is taken for %v", other, want)
		}
	}
}

// TestAStateIsNotWrittenThroughAnotherName: Take was killed between its two steps.
func TestAStateIsNotWrittenThroughAnotherName(t *testing.T) {
	t.Parallel()
	s := started(t, "a")
	s.put("b")
	s.scan()
	pending := s.pending[len(s.pending)-1]
	before, err := os.ReadFile(pending)
	s.must(err)
	s.must(os.Link(pending, s.committed+".tmp"))
	s.put("c", "d")
	s.scan()
	s.commit()
	if after, err := os.ReadFile(pending); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the state of the scan was written over: %d bytes, %d before, %v", len(after), len(before), err)
	}
}
