package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// rawNames are names that are not UTF-8: GBK, some of whose bytes are those of "[" and
// of a backslash; halves of characters; and random bytes.
func rawNames() map[string]string {
	r := rand.New(rand.NewPCG(1, 2))
	random := []byte("\xff")
	for len(random) < 60 {
		if b := byte(r.IntN(256)); b != 0 && b != '/' && b != '\n' {
			random = append(random, b)
		}
	}
	return map[string]string{"gbk": "\xb1\xb8\xb7\xdd\xd5\x5c\x81\x5b\xc2\xa0", "random": string(random), "half": "\xe5\xa4"}
}

// rawTree is a directory in which each name has siblings: what becomes of it where
// something takes it for text. Nothing but what is asked for may be touched.
type rawTree struct {
	t            *testing.T
	dir, n       string
	decoys       []treetest.Entry
	src, dst     string
	state, other string
}

func newRawTree(t *testing.T, n string) *rawTree {
	t.Helper()
	dir := t.TempDir()
	r := &rawTree{t: t, dir: dir, n: n, src: filepath.Join(dir, "s"+n), dst: filepath.Join(dir, "d"+n), state: filepath.Join(dir, "t"+n), other: filepath.Join(dir, "o"+n)}
	b := treetest.At(t, r.src)
	b.File("file"+n, "right")
	b.File("dir"+n+"/x"+n, "below")
	b.File("left"+n, "excluded")
	b.File("file"+rawjson.Readable(n), "another")
	if err := os.Symlink("to"+n, b.Path("link"+n)); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(b.Path("file"+n), b.Path("hard"+n)); err != nil {
		t.Fatal(err)
	}
	treetest.Settle(t)
	for _, d := range r.decoyDirs() {
		treetest.At(t, d).File("decoy", "not to be touched")
		r.decoys = append(r.decoys, treetest.Listing(t, d)...)
	}
	return r
}

func (r *rawTree) decoyDirs() []string {
	var out []string
	for _, what := range []string{"s", "d", "t", "o"} {
		for _, n := range []string{rawjson.Readable(r.n), strings.ToValidUTF8(r.n, "\ufffd"), strings.ToValidUTF8(r.n, "")} {
			if d := filepath.Join(r.dir, what+n); len(out) == 0 || out[len(out)-1] != d {
				out = append(out, d)
			}
		}
	}
	return out
}

// untouched fails the test where a sibling was touched, or more have come.
func (r *rawTree) untouched() {
	r.t.Helper()
	var now []treetest.Entry
	for _, d := range r.decoyDirs() {
		now = append(now, treetest.Listing(r.t, d)...)
	}
	if d := treetest.Diff(r.decoys, now); len(d) > 0 {
		r.t.Errorf("siblings were touched:\n%s", strings.Join(d, "\n"))
	}
	names, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	known := map[string]bool{r.src: true, r.dst: true, r.state: true, r.other: true}
	for _, d := range r.decoyDirs() {
		known[d] = true
	}
	for _, n := range names {
		if !known[filepath.Join(r.dir, n.Name())] {
			r.t.Errorf("%q has come", n.Name())
		}
	}
}

// spec decodes the job that a command printed and holds its roots against the tree.
func (r *rawTree) spec(out result) {
	r.t.Helper()
	var v struct {
		Job  *protocol.JobView `json:"job"`
		Spec protocol.JobSpec  `json:"spec"`
	}
	if err := rawjson.Unmarshal([]byte(out.stdout), &v); err != nil {
		r.t.Fatalf("%v: %v", err, out)
	}
	if v.Job != nil {
		v.Spec = v.Job.Spec
	}
	if v.Spec.Source != r.src || v.Spec.Destination != r.dst {
		r.t.Errorf("roots %q, %q", v.Spec.Source, v.Spec.Destination)
	}
	for _, path := range []string{r.src, r.dst} {
		if !strings.Contains(out.stdout, `_bytes": "`+base64.StdEncoding.EncodeToString([]byte(path))+`"`) {
			r.t.Errorf("%q is not beside its readable form:\n%s", path, out.stdout)
		}
	}
}

// asPattern is the pattern that matches a name. Bytes of some encodings are those of
// characters that mean something in one.
func asPattern(n string) string {
	return strings.NewReplacer(`\`, `\\`, "[", `\[`, "*", `\*`, "?", `\?`).Replace(n)
}

func eachRawName(t *testing.T, f func(*testing.T, *rawTree)) {
	t.Helper()
	for name, n := range rawNames() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRawTree(t, n)
			f(t, r)
			r.untouched()
		})
	}
}

// backups makes runs of all kinds: by flags before the two paths.
func (r *rawTree) backups(flags ...string) {
	t := r.t
	t.Helper()
	run := func(command string, args ...string) result {
		if command == "backup" {
			args = append(args, "--state-dir", r.state)
		}
		return fsb(t, append(append(append([]string{command}, flags...), args...), "--json", r.src, r.dst)...)
	}
	r.spec(run("backup", "--exclude", "left"+asPattern(r.n)).want(t, 0))
	if _, err := os.Lstat(filepath.Join(r.dst, "left"+r.n)); err == nil {
		t.Error("what is excluded was copied")
	}
	// The next run knows the pair, and takes what is listed only.
	list := filepath.Join(r.other, "list"+r.n)
	treetest.At(t, r.other).File("list"+r.n, "left"+r.n+"\n")
	treetest.At(t, r.other).File("rules"+r.n, "none"+asPattern(r.n)+"\n!*"+asPattern(r.n)+"\n")
	second := run("backup", "--files-from", list).want(t, 0)
	r.spec(second)
	if s := second.job(t).Stats; s.FilesCopied != 1 {
		t.Errorf("%d files copied, 1 is listed", s.FilesCopied)
	}
	treetest.Same(t, r.src, r.dst)
	third := run("backup", "--exclude-from", filepath.Join(r.other, "rules"+r.n)).want(t, 0)
	if s := run("backup").want(t, 0).job(t).Stats; s.FilesToBackup+s.DirsToBackup != 0 {
		t.Errorf("a run for which nothing was left did something: %+v", s)
	}
	var rules struct {
		Scan struct {
			Unmatched []string `json:"unmatched_patterns"`
		} `json:"scan"`
	}
	if err := rawjson.Unmarshal([]byte(third.stdout), &rules); err != nil || len(rules.Scan.Unmatched) != 1 || rules.Scan.Unmatched[0] != "none"+asPattern(r.n) {
		t.Errorf("unmatched: %q, %v", rules.Scan.Unmatched, err)
	}
	run("verify").want(t, 0)
	// Damage shows by its very name, and is mended.
	if err := os.WriteFile(filepath.Join(r.dst, "dir"+r.n, "x"+r.n), []byte("wrong"), 0o644); err != nil {
		t.Fatal(err)
	}
	if bad := run("verify").want(t, 3); !strings.Contains(bad.stderr, "dir") {
		t.Errorf("damage is not named: %v", bad)
	}
	run("backup", "--checksum", "--full").want(t, 0)
	treetest.Same(t, r.src, r.dst)
}

func TestRunsOfPathsThatAreNotUTF8(t *testing.T) {
	eachRawName(t, func(t *testing.T, r *rawTree) {
		r.backups()
		// A plan lists the entries, with the bytes of their names.
		target := filepath.Join(r.dir, "s"+r.n, "..", "o"+r.n, "back")
		plan := fsb(t, "restore", "--dry-run", "--list", "--json", r.dst, target).want(t, 0)
		if !strings.Contains(plan.stdout, `"path_bytes": "`+base64.StdEncoding.EncodeToString([]byte("file"+r.n))) {
			t.Errorf("a plan without bytes: %v", plan)
		}
		fsb(t, "restore", r.dst, target).want(t, 0)
		treetest.Same(t, r.dst, target)
		// All that is kept of the pair is found again.
		var known struct {
			Dir   string `json:"dir"`
			Pairs []struct {
				Source      string `json:"source"`
				Destination string `json:"destination"`
				Dir         string `json:"dir"`
			} `json:"pairs"`
		}
		scans := fsb(t, "scans", "--json", "--state-dir", r.state).want(t, 0)
		if err := rawjson.Unmarshal([]byte(scans.stdout), &known); err != nil || len(known.Pairs) != 1 {
			t.Fatalf("%v: %v", err, scans)
		}
		if p := known.Pairs[0]; p.Source != r.src || p.Destination != r.dst || filepath.Dir(p.Dir) != r.state {
			t.Errorf("pair %q", p)
		}
		one := fsb(t, "scans", "list", "--json", "--state-dir", r.state, r.src, r.dst).want(t, 0)
		if err := rawjson.Unmarshal([]byte(one.stdout), &known); err != nil || filepath.Dir(known.Dir) != r.state {
			t.Errorf("directory %q, %v", known.Dir, err)
		}
		fsb(t, "scans", "reset", "--state-dir", r.state, r.src, r.dst).want(t, 0)
	})
}

func TestControlAndMetaFilesInDirectoriesThatAreNotUTF8(t *testing.T) {
	eachRawName(t, func(t *testing.T, r *rawTree) {
		scan := fsb(t, "scan", "--json", "--out", r.other, r.src).want(t, 0)
		var res struct {
			ControlDir string `json:"control_dir"`
			MetaDir    string `json:"meta_dir"`
		}
		if err := rawjson.Unmarshal([]byte(scan.stdout), &res); err != nil || !strings.HasPrefix(res.ControlDir, r.other) || !strings.HasPrefix(res.MetaDir, r.other) {
			t.Fatalf("%+v, %v: %v", res, err, scan)
		}
		r.spec(fsb(t, "run", "--json", "--control", res.ControlDir, "--meta", res.MetaDir, "--source", r.src, "--destination", r.dst).want(t, 0))
		treetest.Same(t, r.src, r.dst)
		// The meta directory is also found from where the scan is.
		fsb(t, "run", "--json", "--control", r.other, "--meta", r.other, "--source", r.src, "--destination", r.dst, "--verify-only").want(t, 0)
		// An entry that fails is named by its bytes.
		if err := os.Remove(filepath.Join(r.src, "dir"+r.n, "x"+r.n)); err != nil {
			t.Fatal(err)
		}
		bad := fsb(t, "run", "--control", r.other, "--meta", r.other, "--source", r.src, "--destination", r.dst, "--check-contents").want(t, 3)
		if quoted := strconv.Quote("dir" + r.n + "/x" + r.n); !strings.Contains(bad.stderr, quoted) {
			t.Errorf("%s is not named: %v", quoted, bad)
		}
	})
}

func TestAClusterAndPathsThatAreNotUTF8(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store"+rawNames()["gbk"])
	addr, web := freePort(t), freePort(t)
	daemon(t, "coordinator", "--nats-listen", addr, "--store", store, "--name", "c1", "--http", web, "--log-format", "json", "--log-level", "debug")
	flag := "--nats=nats://" + addr
	until(t, func(r result) bool { return r.code == 0 }, "workers", flag)
	base := t.TempDir()
	var trees []*rawTree
	var allow []string
	for _, n := range rawNames() {
		r := newRawTree(t, n)
		trees = append(trees, r)
		allow = append(allow, r.dir)
	}
	allow = append(allow, filepath.Join(base, "allowed\xff"))
	addWorkers(t, flag, 2, allow...)
	if _, err := os.Stat(store); err != nil {
		t.Error(err)
	}
	var workers protocol.WorkersReply
	if err := rawjson.Unmarshal([]byte(fsb(t, "workers", "--json", flag).want(t, 0).stdout), &workers); err != nil || workers.Workers[0].Allow[len(allow)-1] != allow[len(allow)-1] {
		t.Errorf("%+v, %v", workers.Workers, err)
	}
	for _, r := range trees {
		r.backups(flag)
		r.untouched()
		r.byHTTP("http://"+web, flag)
		r.untouched()
	}
}

// byHTTP submits a job over HTTP with the bytes alone, and has it fail in one entry.
func (r *rawTree) byHTTP(url, flag string) {
	t := r.t
	t.Helper()
	scan := fsb(t, "scan", "--json", "--out", filepath.Join(r.other, "scan"), r.src).want(t, 0)
	var res struct {
		Control []struct {
			Path string `json:"path"`
			Kind string `json:"kind"`
		} `json:"control_files"`
		MetaDir string `json:"meta_dir"`
	}
	if err := rawjson.Unmarshal([]byte(scan.stdout), &res); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.dst); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.src, "left"+r.n), filepath.Join(r.other, "away")); err != nil {
		t.Fatal(err)
	}
	raw := func(s string) []byte { return []byte(s) }
	type ref struct {
		Path  []byte `json:"path_bytes"`
		Phase string `json:"phase,omitempty"`
	}
	id := string(client.NewJobID(time.Now()))
	request := map[string]any{
		"wire": protocol.WireMajor, "id": id, "seal": true,
		"spec": map[string]any{"source_bytes": raw(r.src), "destination_bytes": raw(r.dst), "meta_bytes": raw(res.MetaDir), "write_meta": true},
	}
	var files, metas []ref
	for _, c := range res.Control {
		phase := map[string]string{"copy": "copy", "hardlink": "hardlink", "mtime": "dir"}[c.Kind]
		if phase == "" {
			t.Fatalf("kind %q", c.Kind)
		}
		files = append(files, ref{raw(c.Path), phase})
	}
	names, err := os.ReadDir(res.MetaDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		metas = append(metas, ref{Path: raw(filepath.Join(res.MetaDir, n.Name()))})
	}
	request["files"], request["metas"] = files, metas
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(url+"/api/v1/jobs", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s, %v", answer.Status, text, err)
	}
	r.spec(fsb(t, "watch", flag, "--json", id).want(t, 3))
	get := func(path string, v any) string {
		answer, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err == nil {
			err = rawjson.Unmarshal(text, v)
		}
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %s", path, answer.Status, err, text)
		}
		return string(text)
	}
	var v protocol.JobView
	get("/api/v1/jobs/"+id, &v)
	if v.Spec.Source != r.src || v.Spec.Destination != r.dst || v.Spec.Meta != res.MetaDir {
		t.Errorf("job %+v", v.Spec)
	}
	var failures protocol.FailuresReply
	said := get("/api/v1/jobs/"+id+"/failures", &failures)
	if len(failures.Failures) != 1 || failures.Failures[0].Path != "left"+r.n || !strings.HasPrefix(failures.Failures[0].ControlFile, r.other) || !strings.Contains(said, `"path_bytes":`) {
		t.Errorf("failures %+v", failures.Failures)
	}
	listed := fsb(t, "failures", flag, id, "--json").want(t, 0)
	var f protocol.FailureView
	if err := rawjson.Unmarshal([]byte(listed.stdout), &f); err != nil || f.Path != "left"+r.n {
		t.Errorf("%q, %v", f.Path, err)
	}
}
