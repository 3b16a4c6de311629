package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestTimesAndAgesAreRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"2026-01-31":                time.Date(2026, 1, 31, 0, 0, 0, 0, time.Local),
		"2026-01-31T15:04:05":       time.Date(2026, 1, 31, 15, 4, 5, 0, time.Local),
		"2026-01-31 15:04":          time.Date(2026, 1, 31, 15, 4, 0, 0, time.Local),
		"2026-01-31T15:04:05Z":      time.Date(2026, 1, 31, 15, 4, 5, 0, time.UTC),
		"2026-01-31T15:04:05+02:00": time.Date(2026, 1, 31, 13, 4, 5, 0, time.UTC),
	} {
		var m moment
		if err := m.UnmarshalText([]byte(text)); err != nil || !time.Time(m).Equal(want) {
			t.Errorf("%s: %v, %v", text, time.Time(m), err)
		}
	}
	for text, want := range map[string]time.Duration{"7d": 7 * 24 * time.Hour, "12h": 12 * time.Hour, "1w2d3h": 219 * time.Hour, "90s": 90 * time.Second, "0h": 0} {
		if d, err := parseAge(text); err != nil || d != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"", "d", "7", "-3h", "7x", "yesterday", "2026-13-01", "7dd", "99999999d"} {
		if err := new(moment).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestWhatIsSelectedIsBackedUpAndNothingElseIsTouched(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, n := range []string{"a/x", "a/y", "b/x", "c"} {
		b.File(n, n)
	}
	p.backup().want(t, 0)
	for _, n := range []string{"a/x", "b/x"} {
		if err := os.Remove(b.Path(n)); err != nil {
			t.Fatal(err)
		}
	}
	b.File("a/new", "x")
	b.File("b/new", "x")
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("a\nnope\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := p.backup("--files-from", list, "--max-delete", "50%").want(t, 3)
	if !strings.Contains(r.stderr, `"nope": `) || !strings.Contains(r.stderr, "not in the source") {
		t.Errorf("the missing path is not named: %s", r.stderr)
	}
	for name, there := range map[string]bool{"a/x": false, "a/new": true, "b/x": true, "b/new": false, "c": true} {
		if _, err := os.Lstat(filepath.Join(p.dst, name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
	r = p.backup("--exclude", "*.none", "--max-delete", "50%").want(t, 0)
	if !strings.Contains(r.stderr, `the pattern "*.none" matched nothing`) || !strings.Contains(r.stdout, `"unmatched_patterns"`) {
		t.Errorf("a pattern in vain is not named: %v", r)
	}
	treetest.Same(t, p.src, p.dst)
	q := newPair(t)
	q.src = p.src
	if r := q.backup("--exclude", "*").want(t, 78); !strings.Contains(r.stderr, "the source is empty after excludes") {
		t.Errorf("message: %s", r.stderr)
	}
}

func TestHelpHasTopics(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"help"}, "Exit codes"}, {[]string{"help", "patterns"}, "--exclude-from"},
		{[]string{"help", "backup"}, "--incremental"}, {[]string{"help", "scans", "drop"}, "Usage: fsbackup scans drop"},
	} {
		if r := fsb(t, c.args...).want(t, 0); !strings.Contains(r.stdout, c.says) {
			t.Errorf("%q does not say %q: %v", c.args, c.says, r)
		}
	}
	fsb(t, "help", "nothing").want(t, 64)
}
