package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestPathsInGBK gives the library paths that are not UTF-8 for everything, within the
// process and on a cluster, beside what they would be if something took them for text.
func TestPathsInGBK(t *testing.T) {
	t.Parallel()
	program := program(t, "testdata/bytes.c")
	base := t.TempDir()
	url := startCluster(t, 1, base)
	for name, env := range map[string][]string{"within the process": nil, "on a cluster": {"FSBACKUP_NATS_URL=" + url}} {
		t.Run(name, func(t *testing.T) {
			const n = "\xb1\xb8\xb7\xdd\xd5\x5c\x81\x5b" // two of the second bytes are "\" and "["
			dir := filepath.Join(base, strings.ReplaceAll(name, " ", "-"))
			decoys := map[string][]treetest.Entry{}
			for _, what := range []string{"src", "dst", "out", "log"} {
				for _, text := range []string{strings.ToValidUTF8(n, "\ufffd"), strings.ToValidUTF8(n, "")} {
					d := filepath.Join(dir, what+text)
					treetest.At(t, d).File("decoy", "not to be touched")
					decoys[d] = treetest.Listing(t, d)
				}
			}
			src, dst, out, log := filepath.Join(dir, "src"+n), filepath.Join(dir, "dst"+n), filepath.Join(dir, "out"+n), filepath.Join(dir, "log"+n)
			tmp := filepath.Join(dir, "tmp"+n)
			if err := os.Mkdir(tmp, 0o755); err != nil {
				t.Fatal(err)
			}
			b := treetest.At(t, src)
			b.File("dir"+n+"/file"+n, "content")
			b.File("other"+strings.ToValidUTF8(n, "\ufffd"), "another")
			if err := os.Link(b.Path("dir"+n+"/file"+n), b.Path("hard"+n)); err != nil {
				t.Fatal(err)
			}
			run := func(missing string) {
				t.Helper()
				res, err := scanner.Scan(t.Context(), scanner.Config{Source: src, Out: out})
				if err != nil {
					t.Fatal(err)
				}
				args := []string{log, src, dst, res.MetaDir, missing}
				slices.SortStableFunc(res.ControlFiles, func(a, b scanner.ControlFile) int { return int(a.Kind) - int(b.Kind) })
				for _, f := range res.ControlFiles {
					if missing != "" && f.Kind != controlfile.Copy {
						continue
					}
					args = append(args, strconv.Itoa(int(f.Kind))+":"+f.Path)
				}
				if missing != "" {
					if err := os.Remove(filepath.Join(src, missing)); err != nil {
						t.Fatal(err)
					}
				}
				if said := runProgram(t, append(env, "TMPDIR="+tmp), program, args...); said != "done\n" {
					t.Errorf("said %q", said)
				}
			}
			run("")
			treetest.Same(t, src, dst)
			b.File("gone"+n, "it will be")
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
			run("gone" + n)
			if text, err := os.ReadFile(filepath.Join(log, logName)); err != nil || !bytes.Contains(text, []byte(strconv.Quote(src))) {
				t.Errorf("the log does not name %q: %v\n%s", src, err, text)
			}
			for d, before := range decoys {
				if diff := treetest.Diff(before, treetest.Listing(t, d)); len(diff) > 0 {
					t.Errorf("%q was touched: %v", d, diff)
				}
			}
			if all, err := os.ReadDir(dir); err != nil || len(all) != len(decoys)+5 {
				t.Errorf("%d names, %v", len(all), err)
			}
		})
	}
}
