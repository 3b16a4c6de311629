package scanner

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestSuspectsAloneAreEmitted with what their names need: the directories that they
// are in, all of a hard-link group, and what only the destination has.
func TestSuspectsAloneAreEmitted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	for _, name := range []string{"a/f", "a/other", "b/g", "c/first", "way", "new\nline", "inv\xff"} {
		write(t, filepath.Join(src, name), name)
	}
	for _, name := range []string{"a/f", "a/extra", "b/extra/in it", "way/in it", ".fsbackup-" + strings.Repeat("a2", 13)} {
		write(t, filepath.Join(dst, name), name)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(src, "d"), 0o755), os.Link(filepath.Join(src, "c/first"), filepath.Join(src, "d/second"))); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		list        []string
		deleteExtra bool
		want        []string
		repaired    uint64
	}{
		"nothing":              {nil, false, nil, 0},
		"what nobody has":      {[]string{"gone", "a/extra", "a/f/below"}, false, nil, 0},
		"a file":               {[]string{"a/f", "a/f"}, false, []string{"copy bm a/f", "copy fm a/"}, 1},
		"a directory":          {[]string{"a"}, false, []string{"copy bm a/"}, 1},
		"the root":             {[]string{""}, false, []string{"copy bm /"}, 1},
		"a member of a group":  {[]string{"d/second"}, false, []string{"copy fm c/", "copy fm d/", "hardlink bm c/first", "hardlink bm d/second"}, 1},
		"names of all sorts":   {[]string{"new\nline", "inv\xff"}, false, []string{"copy bm inv\xff", "copy bm new\nline", "copy fm /"}, 2},
		"in the way, kept":     {[]string{"way"}, false, []string{"copy bm way", "copy fm /"}, 1},
		"extra names, removed": {[]string{"a/extra"}, true, []string{"copy fm /", "copy fm a/", "copy fm b/", "delete a/extra", "delete b/extra/", "delete b/extra/in it", "delete way/", "delete way/in it"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var list []Failed
			for _, path := range c.list {
				list = append(list, Failed{Path: path})
			}
			var told []string
			res, err := Scan(t.Context(), Config{
				Source: src, Out: filepath.Join(t.TempDir(), "out"), Incremental: true, Destination: dst,
				Suspects: FailedList(list), DeleteExtra: c.deleteExtra, Now: now,
				OnChange: func(ch Change) {
					line := string(ch.Op) + " "
					switch ch.Op {
					case OpDir:
						line = "copy "
					case OpLink:
						line = "hardlink "
					}
					if ch.Mode != "" {
						line += ch.Mode + " "
					}
					line += ch.Path
					if ch.IsDir {
						line += "/"
					}
					told = append(told, line)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if slices.Sort(told); !slices.Equal(told, c.want) {
				t.Errorf("emitted are\n%q, want\n%q", told, c.want)
			}
			if res.Repaired != c.repaired || res.StateFile != "" {
				t.Errorf("%d are counted, want %d; state %q", res.Repaired, c.repaired, res.StateFile)
			}
			if sum := res.New + res.Modified + res.MetaOnly + res.Refinished + res.Unchanged; sum != res.Dirs+res.Files() {
				t.Errorf("%d entries have a fate, the source has %d", sum, res.Dirs+res.Files())
			}
		})
	}
}

func TestAScanIsNotComparedTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := Config{Source: dir, Out: filepath.Join(dir, "out"), Suspects: FailedList(nil), Committed: filepath.Join(dir, "state")}
	if _, err := Scan(t.Context(), cfg); !fault.Is(err, fault.Invalid) {
		t.Errorf("suspects and a state: %v", err)
	}
	why := errors.New("no more")
	cfg.Committed, cfg.AllowEmpty = "", true
	cfg.Suspects = func(yield func(Failed, error) bool) { yield(Failed{}, why) }
	if _, err := Scan(t.Context(), cfg); !errors.Is(err, why) {
		t.Errorf("a list that ends in an error: %v", err)
	}
}
