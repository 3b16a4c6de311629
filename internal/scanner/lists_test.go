package scanner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// paths lists what a scan has, the root left out.
func (s *scanned) paths() []string {
	var out []string
	for p := range s.entries {
		if p != "" {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// listFile writes a list and returns its path.
func listFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	write(t, path, text)
	return path
}

func TestRulesOfAFileAreReadInOrder(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, p := range []string{"a.o", "keep.o", "b.c", "sub/a.o", "logs/x.log", "logs/y.log", "#odd", "!odd", "deep/er/a.o"} {
		write(t, filepath.Join(root, p), p)
	}
	for _, tt := range []struct {
		name, rules, stdin, more string
		cfg                      Config
		want                     string
		unmatched                []string
	}{
		{name: "the last match wins", rules: "*.o\n!keep.o\n", want: "!odd #odd b.c deep deep/er keep.o logs logs/x.log logs/y.log sub"},
		{name: "an early negation is overruled", rules: "!keep.o\n*.o\n", want: "!odd #odd b.c deep deep/er logs logs/x.log logs/y.log sub"},
		{name: "comments, blanks, CRLF, BOM", rules: "\ufeff# all objects\r\n\r\n   \n*.o\r\n\\#odd\n\\!odd", want: "b.c deep deep/er logs logs/x.log logs/y.log sub"},
		{name: "a negation below an excluded directory", rules: "/logs\n!/logs/x.log\n/deep/\n", want: "!odd #odd a.o b.c keep.o sub sub/a.o", unmatched: []string{"/logs/x.log"}},
		{name: "an excluded content with an exception", rules: "/logs/*\n!/logs/x.log\n/deep/**\n", want: "!odd #odd a.o b.c deep keep.o logs logs/x.log sub sub/a.o"},
		{name: "standard input", stdin: "*.o\n", want: "!odd #odd b.c deep deep/er logs logs/x.log logs/y.log sub"},
		{name: "a later file overrules", rules: "*.o\n", more: "!keep.o\n", want: "!odd #odd b.c deep deep/er keep.o logs logs/x.log logs/y.log sub"},
		{name: "an include rescues", rules: "*.o\n", cfg: Config{Includes: []string{"keep.o"}}, want: "!odd #odd b.c deep deep/er keep.o logs logs/x.log logs/y.log sub"},
		{name: "a negation does not reach other excludes", rules: "!a.o\n", cfg: Config{Excludes: []string{"*.o"}}, want: "!odd #odd b.c deep deep/er logs logs/x.log logs/y.log sub"},
		{
			name: "in vain", rules: "*.obj\n*.o\nkeep.o\n!none\n", cfg: Config{Excludes: []string{"*.tmp", "keep.*"}, Includes: []string{"nope", "b.c"}},
			want: "!odd #odd b.c deep deep/er logs logs/x.log logs/y.log sub", unmatched: []string{"*.tmp", "nope", "*.obj", "none"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.cfg.Source = root
			if tt.rules != "" {
				tt.cfg.ExcludeFrom = append(tt.cfg.ExcludeFrom, listFile(t, tt.rules))
			}
			if tt.more != "" {
				tt.cfg.ExcludeFrom = append(tt.cfg.ExcludeFrom, listFile(t, tt.more))
			}
			if tt.stdin != "" {
				tt.cfg.ExcludeFrom, tt.cfg.Stdin = []string{"-"}, strings.NewReader(tt.stdin)
			}
			res, got := scanTree(t, tt.cfg)
			if d := gocmp.Diff(tt.want, strings.Join(got.paths(), " ")); d != "" {
				t.Error(d)
			}
			if d := gocmp.Diff(tt.unmatched, res.UnmatchedPatterns); d != "" {
				t.Errorf("patterns in vain: %s", d)
			}
		})
	}
}

func TestListsThatCannotBeReadAreOneLineErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), "x")
	for _, tt := range []struct {
		name string
		cfg  Config
		kind fault.Kind
		text string
	}{
		{"no such file", Config{ExcludeFrom: []string{"/no/such"}}, fault.NotFound, "/no/such"},
		{"a directory", Config{ListFile: dir}, fault.Invalid, dir},
		{"NUL in rules", Config{ExcludeFrom: []string{listFile(t, "a\x00b\n")}}, fault.Invalid, "line 1 has a NUL"},
		{"NUL in a list", Config{ListFile: listFile(t, "x\na\x00b\x00")}, fault.Invalid, "--from0"},
		{"bad pattern", Config{ExcludeFrom: []string{listFile(t, "# x\n[a\n")}}, fault.Invalid, ":2: the set"},
		{"only a mark", Config{ExcludeFrom: []string{listFile(t, "!\n")}}, fault.Invalid, "it matches nothing"},
		{"empty list", Config{ListFile: listFile(t, "\n")}, fault.Invalid, "it names none"},
		{"a path that leaves the source", Config{ListFile: listFile(t, "a\n../b\n")}, fault.Invalid, ":2: "},
		{"two of standard input", Config{ListFile: "-", ExcludeFrom: []string{"-"}}, fault.Invalid, "standard input"},
		{"no standard input", Config{ListFile: "-"}, fault.Invalid, "no standard input"},
		{"a line without end", Config{ExcludeFrom: []string{listFile(t, strings.Repeat("a", maxItem+1))}}, fault.Invalid, "more than"},
		{"list and deletion", Config{ListFile: listFile(t, "a"), DeleteExcluded: true}, fault.Invalid, "leave out one"},
		{"negative size", Config{MaxSize: -1}, fault.Invalid, "largest size"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.cfg.Source, tt.cfg.Out = dir, filepath.Join(t.TempDir(), "out")
			_, err := Scan(t.Context(), tt.cfg)
			if !fault.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.text) || strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAListLimitsAScanAndWhatIsNotThereIsAProblem(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, p := range []string{"a/b/c", "a/b/d", "a/e", "f", "g/h/i", "new\nline", "tmp/x", "tmp/y"} {
		write(t, filepath.Join(root, p), p)
	}
	res, got := scanTree(t, Config{Source: root, ListFile: listFile(t, "./a/b/\r\nf\nmissing/x\ntmp/x\ng/h\n"), Excludes: []string{"/tmp/", "i"}})
	if d := gocmp.Diff("a a/b a/b/c a/b/d f g g/h", strings.Join(got.paths(), " ")); d != "" {
		t.Error(d)
	}
	if res.ProblemCount != 1 || res.Problems[0].Path != "missing/x" || !fault.Is(res.Problems[0].Err, fault.NotFound) {
		t.Errorf("problems %v", res.Problems)
	}
	_, got = scanTree(t, Config{Source: root, ListFile: "-", ListNUL: true, Stdin: strings.NewReader("new\nline\x00g")})
	if d := gocmp.Diff("g g/h g/h/i new\nline", strings.Join(got.paths(), " ")); d != "" {
		t.Error(d)
	}
	_, got = scanTree(t, Config{Source: root, ListFile: "-", Stdin: strings.NewReader(".\n")})
	if len(got.paths()) != 13 {
		t.Errorf("the root stands for everything: %q", got.paths())
	}
}

func TestAListLeavesAllElseAsItWas(t *testing.T) {
	t.Parallel()
	s := started(t, "a/x", "a/y", "b/x", "c", "d/e/f", "gone/x", "typo")
	s.remove("a/y", "b/x", "gone", "typo")
	s.put("a/new", "b/new")
	s.base.ListFile = listFile(t, "a\nc\ntypo\ngone/x\n")
	res := s.emits("copy mm a/", "copy nn a/new", "copy mm /", "delete  a/y")
	if res.ProblemCount != 2 || res.GoneEntries != 1 || res.Carried != 8 {
		t.Errorf("%+v", res)
	}
	s.commit()
	s.emits()
	s.commit()
	// All of it again: only what the list kept away is left to be done.
	s.base.ListFile = ""
	s.emits("copy mm b/", "copy nn b/new", "copy fm /", "delete  b/x", "delete  gone/", "delete  gone/x", "delete  typo")
	s.commit()
	s.emits()
}

func TestSizeAndTimeLeaveOutAndNeverDelete(t *testing.T) {
	t.Parallel()
	old, recent := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	s := started(t, "d/old", "d/new", "d/turned/x", "big", "small")
	s.must(os.WriteFile(s.path("big"), make([]byte, 5000), 0o644))
	s.must(os.Symlink("x", s.path("link")))
	s.must(os.Chtimes(s.path("d/old"), old, old))
	s.must(os.Chtimes(s.path("d/new"), recent, recent))
	s.scan()
	s.commit()
	s.nextTick()

	s.base.MaxSize = 4999
	s.must(os.WriteFile(s.path("big"), make([]byte, 6000), 0o644))
	s.remove("d/turned")
	s.must(os.WriteFile(s.path("d/turned"), make([]byte, 6000), 0o644))
	s.base.DeleteExcluded = true // asks for patterns
	res := s.emits("copy mm d/")
	if res.Excluded != 2 || res.GoneEntries != 0 || res.Carried != 3 {
		t.Errorf("%+v", res)
	}
	s.commit()
	s.base.MaxSize, s.base.DeleteExcluded = 0, false
	s.base.NewerThan = recent
	s.must(os.Chtimes(s.path("d/new"), recent, recent)) // its change time only
	s.must(os.Chmod(s.path("d/old"), 0o600))
	s.nextTick()
	if res := s.emits("copy dm big", "copy dm d/new", "copy nn d/turned", "copy fm d/", "copy fm /", "delete  d/turned/", "delete  d/turned/x"); res.Excluded != 1 {
		t.Errorf("%+v", res)
	}
	s.commit()
	s.base.NewerThan = time.Time{}
	s.emits("copy fm d/", "copy mm d/old")
	s.commit()
	s.emits()
}

func TestAFirstScanThatLeavesAllOutIsStopped(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(root, "a"), "x")
	cfg := Config{Source: root, Excludes: []string{"*"}, Out: filepath.Join(t.TempDir(), "out")}
	_, err := Scan(t.Context(), cfg)
	if !fault.Is(err, fault.Unsafe) || !strings.Contains(err.Error(), "the source is empty after excludes") {
		t.Errorf("%v", err)
	}
	cfg.Out, cfg.AllowEmpty = "", true
	if res, _ := scanTree(t, cfg); res.Excluded != 1 {
		t.Errorf("%+v", res)
	}
	s := started(t, "a")
	s.base.Excludes = []string{"*"}
	if res := s.emits(); res.ExcludedKept != 1 {
		t.Errorf("a later scan keeps what is excluded: %+v", res)
	}
	if _, err := os.Stat(filepath.Join(root, "a")); errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
