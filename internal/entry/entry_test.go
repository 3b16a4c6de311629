package entry_test

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// TestOperationsKeepTheirNumbers pins what travels on the wire.
func TestOperationsKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	names := []string{
		0: "rejected", 1: "mkdir", 2: "copy", 3: "unlink", 4: "remove-tree", 5: "link", 6: "finish", 7: "touch",
		8: "verify", 9: "verify-link", 10: "verify-dir", 11: "verify-times", 12: "op-12",
	}
	for n, name := range names {
		if got := entry.Op(n).String(); got != name {
			t.Errorf("operation %d is %q, it was %q", n, got, name)
		}
	}
	for op, n := range map[entry.Op]int{
		entry.OpRejected: 0, entry.OpMkdir: 1, entry.OpCopy: 2, entry.OpUnlink: 3, entry.OpRemoveTree: 4, entry.OpLink: 5,
		entry.OpFinish: 6, entry.OpTouch: 7, entry.OpVerify: 8, entry.OpVerifyLink: 9, entry.OpVerifyDir: 10, entry.OpVerifyTimes: 11,
	} {
		if int(op) != n {
			t.Errorf("%v has number %d, it had %d", op, op, n)
		}
		if want := strings.HasPrefix(op.String(), "verify"); op.Verifies() != want {
			t.Errorf("%v verifies: %v", op, op.Verifies())
		}
		if want := strings.HasSuffix(op.String(), "link") && op != entry.OpUnlink; op.Links() != want {
			t.Errorf("%v links: %v", op, op.Links())
		}
	}
}

// TestFiguresKeepTheirNumbers pins what travels on the wire.
func TestFiguresKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	want := map[int]string{
		1: "dirs_copied", 2: "files_copied", 3: "bytes_copied", 4: "dirs_failed", 5: "files_failed", 6: "deleted", 7: "links", 8: "skipped",
		9: "changed_while_read", 10: "changed_since_scan", 11: "dirs_finished", 12: "dirs_touched", 13: "hole_bytes", 14: "reflink_bytes",
		15: "dirs_deleted", 16: "dirs_verified", 17: "files_verified", 18: "bytes_verified", 19: "dirs_differ", 20: "files_differ", 21: "extra",
		22: "links_copied", 23: "dirs_kept", 24: "changing_taken",
	}
	got := map[int]string{}
	for _, f := range entry.Figures() {
		got[f.Number] = f.Name
	}
	if !maps.Equal(got, want) {
		t.Errorf("figures %v", got)
	}
}

// fields gives the i-th field of Counts the value i+1.
func fields() (entry.Counts, map[string]uint64) {
	var c entry.Counts
	v, names := reflect.ValueOf(&c).Elem(), map[string]uint64{}
	for i := range v.NumField() {
		v.Field(i).SetUint(uint64(i + 1))
		names[strings.ToLower(v.Type().Field(i).Name)] = uint64(i + 1)
	}
	return c, names
}

func TestEachFieldOfCountsIsAFigureOfItsName(t *testing.T) {
	t.Parallel()
	c, want := fields()
	got := map[string]uint64{}
	for _, f := range entry.Figures() {
		got[strings.ReplaceAll(f.Name, "_", "")] = *f.Of(&c)
	}
	if !maps.Equal(got, want) {
		t.Errorf("figures %v, fields %v", got, want)
	}
}

func TestAddAddsEachField(t *testing.T) {
	t.Parallel()
	sum, _ := fields()
	c, _ := fields()
	sum.Add(&c)
	sum.Add(&c)
	v := reflect.ValueOf(sum)
	for i := range v.NumField() {
		if got, want := v.Field(i).Uint(), uint64(3*(i+1)); got != want {
			t.Errorf("%s: %d, want %d", v.Type().Field(i).Name, got, want)
		}
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		root, p string
		want    bool
	}{
		{"/a", "/a", true},
		{"/a", "/a/b/c", true},
		{"/a/", "/a//b/", true},
		{"/a", "/ab", false},
		{"/ab", "/a", false},
		{"/a/b", "/a", false},
		{"/a", "/a/../b", false},
		{"/a/b", "/a/b/..", false},
		{"/a/b", "/a/c/../b/d", true},
		{"/", "/", true},
		{"/", "/a", true},
		{"/", "a", false},
		{"/a", "", false},
	} {
		if got := entry.Within(row.root, row.p); got != row.want {
			t.Errorf("Within(%q, %q) = %v", row.root, row.p, got)
		}
	}
}

// TestWithinIsWhatTheComponentsSay holds Within against the components of
// absolute paths.
func TestWithinIsWhatTheComponentsSay(t *testing.T) {
	t.Parallel()
	word := rapid.SampledFrom([]string{"a", "b", "ab", "..", ".", ""})
	gen := rapid.Custom(func(t *rapid.T) string { return "/" + strings.Join(rapid.SliceOfN(word, 0, 5).Draw(t, "words"), "/") })
	parts := func(p string) []string {
		return slices.DeleteFunc(strings.Split(path.Clean(p), "/"), func(s string) bool { return s == "" })
	}
	rapid.Check(t, func(t *rapid.T) {
		root, p := gen.Draw(t, "root"), gen.Draw(t, "path")
		r, q := parts(root), parts(p)
		if want := len(q) >= len(r) && slices.Equal(r, q[:len(r)]); entry.Within(root, p) != want {
			t.Errorf("Within(%q, %q) = %v", root, p, !want)
		}
	})
}

// TestLeadersKeepTheirNumbers pins what travels on the wire.
func TestLeadersKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	for n, name := range []string{0: "done", 1: "failed", 2: "kept", 3: "vanished", 4: "leader-4"} {
		if got := entry.Leader(n).String(); got != name {
			t.Errorf("state %d is %q, it was %q", n, got, name)
		}
	}
	if entry.LeaderDone != 0 || entry.LeaderFailed != 1 || entry.LeaderKept != 2 || entry.LeaderVanished != 3 {
		t.Error("a state has another number")
	}
}

func TestMarksAreToldFromOtherNames(t *testing.T) {
	t.Parallel()
	nonce := strings.Repeat("a2", 13)
	for name, want := range map[string]bool{
		".fsbackup-" + nonce: true, ".fsbackup-" + nonce + "-abcd2345": true,
		".fsbackup-": false, ".fsbackup-src": false, ".fsbackup-" + nonce[1:]: false, ".fsbackup-" + nonce + "a": false,
		".fsbackup-" + strings.ToUpper(nonce): false, "fsbackup-" + nonce: false, ".fsbackup-" + strings.Repeat("a1", 13): false,
	} {
		if entry.IsMark(name) != want {
			t.Errorf("%q is a mark: %v", name, !want)
		}
	}
}
