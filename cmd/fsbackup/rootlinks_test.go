package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDestinationsBelowLinks: a destination is made below a link that root or the own
// user made, and nowhere else.
func TestDestinationsBelowLinks(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	for _, d := range []string{"src", "disk"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "src/f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"own": "disk", "foreign": "disk", "dangling": "none"} {
		if err := os.Symlink(filepath.Join(base, to), filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Lchown(filepath.Join(base, "foreign"), 1234, 1234); err != nil {
		t.Skipf("needs root: %v", err)
	}
	state := t.TempDir()
	backup := func(code int, dst string, flags ...string) result {
		args := append([]string{"backup", filepath.Join(base, "src"), filepath.Join(base, dst), "--quiet", "--state-dir", filepath.Join(state, filepath.Base(dst))}, flags...)
		return fsb(t, args...).want(t, code)
	}
	backup(0, "own/a")
	backup(0, "own/a", "--changing", "take")
	backup(64, "own/a", "--changing", "keep")
	if r := backup(66, "dangling/b"); !strings.Contains(r.stderr, "dangling\": the symbolic link leads nowhere: to ") {
		t.Errorf("%v", r)
	}
	if r := backup(77, "foreign/c"); !strings.Contains(r.stderr, "it belongs to user 1234, who is neither root") {
		t.Errorf("%v", r)
	}
	backup(0, "foreign/d", "--follow-root-links")
	for dst, want := range map[string]bool{"disk/a/f": true, "disk/c": false, "disk/d/f": true, "none": false} {
		if _, err := os.Lstat(filepath.Join(base, dst)); (err == nil) != want {
			t.Errorf("%s: %v", dst, err)
		}
	}
}
