package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// bin is where TestMain puts the binaries that tests start as processes.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "fsbackup-bin-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(bin) }() // in the temporary directory
		build := exec.Command("go", "build", "-o", bin+"/", "../fsbackup", "../coordinator", "../worker", "github.com/nats-io/nats-server/v2")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the commands: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// result is what a command did.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\n--- stdout\n%s--- stderr\n%s", r.code, r.stdout, r.stderr)
}

// fsb runs the command as a process.
func fsb(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "fsbackup"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "XDG_STATE_HOME="+t.TempDir())
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("fsbackup %q: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// want fails the test unless the command ended with code.
func (r result) want(t *testing.T, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("want exit code %d, got %v", code, r)
	}
	return r
}

// job decodes the final state that --json printed.
func (r result) job(t *testing.T) protocol.JobView {
	t.Helper()
	var both struct {
		protocol.JobView
		Status any               `json:"status"` // the job's figure, or the run's word
		Job    *protocol.JobView `json:"job"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &both); err != nil {
		t.Fatalf("output is no JSON: %v\n%v", err, r)
	}
	if n, ok := both.Status.(float64); ok {
		both.JobView.Status = int(n)
	}
	if both.Job != nil {
		both.JobView = *both.Job
	}
	closed(t, both.JobView)
	return both.JobView
}

// process is a daemon of a test cluster.
type process struct {
	*exec.Cmd
	log *os.File
}

// daemon starts a binary that is stopped with the test.
func daemon(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return daemonAs(t, nil, name, args...)
}

// daemonAs is daemon as another user; nil = that of the test.
func daemonAs(t *testing.T, user *syscall.Credential, name string, args ...string) *process {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, log}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("%s did not stop within 20 s of SIGTERM", name)
			<-done
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("--- log of %s %q\n%s", name, args, text)
		}
		_ = log.Close()
	})
	return p
}

// says waits until a daemon has logged a text.
func (p *process) says(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		log, err := os.ReadFile(p.log.Name())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(log, []byte(text)) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s never says %q", p.Path, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freePort returns a TCP port that nothing listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// until polls a command until its output satisfies ok: processes have no event
// that a test could wait on.
func until(t *testing.T, ok func(result) bool, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		r := fsb(t, args...)
		if ok(r) {
			return r
		}
		select {
		case <-ctx.Done():
			t.Fatalf("fsbackup %q never gave what was waited for; last %v", args, r)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// cluster starts NATS, a coordinator and workers as processes; it returns the
// flag that names it.
func cluster(t *testing.T, workers int, allow ...string) string {
	t.Helper()
	flag := leader(t, nil, t.TempDir())
	addWorkers(t, flag, workers, allow...)
	return flag
}

// leader starts NATS and a coordinator without workers, the coordinator as a user.
func leader(t *testing.T, user *syscall.Credential, store string) string {
	t.Helper()
	addr := freePort(t)
	daemon(t, "nats-server", "-js", "-sd", t.TempDir(), "-a", "127.0.0.1", "-p", addr[strings.LastIndex(addr, ":")+1:])
	url := "nats://" + addr
	waitListen(t, addr)
	daemonAs(t, user, "coordinator", "--nats", url, "--store", store, "--name", "c1")
	flag := "--nats=" + url
	until(t, func(r result) bool { return r.code == 0 }, "workers", flag)
	return flag
}

// addWorkers starts workers, and waits until all have joined.
func addWorkers(t *testing.T, flag string, n int, allow ...string) {
	t.Helper()
	for i := range n {
		args := []string{flag, "--name", fmt.Sprintf("w%d", i+1)}
		for _, a := range allow {
			args = append(args, "--allow", a)
		}
		daemon(t, "worker", args...)
	}
	until(t, func(r result) bool {
		var is protocol.WorkersReply
		if r.code != 0 || json.Unmarshal([]byte(r.stdout), &is) != nil {
			return false
		}
		live := 0
		for _, w := range is.Workers {
			if w.State == "live" {
				live++
			}
		}
		return live >= n
	}, "workers", "--json", flag)
}

func waitListen(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nothing listens on %s", addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// exact holds a job's statistics against the tree that it copied.
func exact(t *testing.T, v protocol.JobView, f treetest.Figures) {
	t.Helper()
	s := v.Stats
	want := protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsCopied: f.Dirs, FilesCopied: f.Files, BytesCopied: f.Bytes,
		Links: f.Links, BytesPerSec: s.BytesPerSec, HoleBytes: s.HoleBytes, ReflinkBytes: s.ReflinkBytes, ShardsRepeated: s.ShardsRepeated,
	}
	if s != want {
		t.Errorf("statistics\n got %+v\nwant %+v", s, want)
	}
}

func TestBackupOfATreeWithEverythingInIt(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	treetest.Nasty(t, src)
	want := treetest.Listing(t, src)
	r := fsb(t, "backup", "--json", src, dst).want(t, 0)
	if d := treetest.Diff(want, treetest.Listing(t, dst)); len(d) > 0 {
		t.Fatalf("the backup differs:\n%s", strings.Join(d, "\n"))
	}
	exact(t, r.job(t), treetest.Count(want))
	// Once more over itself: everything is counted the same.
	r = fsb(t, "backup", "--full", "--json", src, dst).want(t, 0)
	treetest.Same(t, src, dst)
	exact(t, r.job(t), treetest.Count(want))
	exact(t, fsb(t, "backup", "--json", src, dst).want(t, 0).job(t), treetest.Figures{})
}

func TestClusterOfThreeWorkersSharesTheWork(t *testing.T) {
	src, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "scan")
	treetest.Nasty(t, filepath.Join(src, "nasty"))
	treetest.Random(t, filepath.Join(src, "random"), 1, 3000)
	targets := t.TempDir()
	flag := cluster(t, 3, filepath.Dir(src), targets)
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	shares(t, func(i int) protocol.JobView {
		dst := filepath.Join(targets, fmt.Sprint("dst", i))
		r := fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "40", "--json").want(t, 0)
		var sub struct{ Job string }
		if err := json.Unmarshal([]byte(r.stdout), &sub); err != nil || sub.Job == "" {
			t.Fatalf("submit --json: %v, %v", err, r)
		}
		v := fsb(t, "watch", flag, sub.Job, "--json").want(t, 0).job(t)
		treetest.Same(t, src, dst)
		exact(t, v, treetest.Count(treetest.Listing(t, src)))
		if out := fsb(t, "failures", flag, sub.Job).want(t, 0).stdout; out != "" {
			t.Errorf("failures of a job without any: %s", out)
		}
		return v
	})
}

// shares runs jobs until each of three workers has answered shards. On a busy machine
// a worker may not get to its first one before the others have done a whole job.
func shares(t *testing.T, job func(i int) protocol.JobView) {
	t.Helper()
	answered := map[string]uint64{}
	for i := range 30 {
		for name, n := range job(i).Workers {
			answered[name] += n
		}
		if len(answered) == 3 || t.Failed() {
			return
		}
	}
	t.Errorf("shards of 30 jobs were answered by %v, want all three workers", answered)
}

func TestCopyOverTwoWorkersOfGoldenControlFiles(t *testing.T) {
	golden := filepath.Join("testdata", "golden")
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	goldenSource(t, src)
	flag := cluster(t, 2, filepath.Dir(src), filepath.Dir(dst))
	r := fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", filepath.Join(golden, "meta"), "--control", filepath.Join(golden, "ctrl"), "--wait", "--json").want(t, 3)
	s := r.job(t).Stats
	// 12 d lines of which one is dd, 37 f lines of which three are dd, and 9 links.
	// Two deletes span several lines and are refused: they could name anything.
	if s.DirsToBackup != 11 || s.DirsCopied != 11 || s.FilesToBackup != 43 || s.FilesCopied != 43 || s.Links != 6 || s.DeletesFailed != 2 || s.Failures() != 2 {
		t.Errorf("statistics of the golden files: %+v", s)
	}
	failures := fsb(t, "failures", flag, "last").stdout
	if strings.Count(failures, "\n") != 2 || strings.Count(failures, "delete_control_0_0123456789abcdef.txt:") != 2 {
		t.Errorf("failures:\n%s", failures)
	}
	for _, name := range []string{"src/plain.txt", "src/comma,dir,,x/1,2,3", "src/new\nline/two\n\nbreaks", "rootfile", "src/l1", "src/nl\nd/l 1"} {
		a, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dst, name))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%q was not copied: %v", name, err)
		}
	}
}

func TestMistakesGetOneLineThatSaysWhatToDo(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	treetest.At(t, src).File("f", "x")
	treetest.At(t, src).File("junk.txt", "no control file\n")
	flag := cluster(t, 1, src)
	scan := filepath.Join(t.TempDir(), "scan")
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	idle := freePort(t)
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no such source":          {[]string{"backup", src + "/none", dst}, 66, "name an existing directory"},
		"source in destination":   {[]string{"backup", src, filepath.Dir(src)}, 78, "choose a destination"},
		"unknown flag":            {[]string{"backup", "--nope", src, dst}, 64, "see fsbackup --help"},
		"bad size":                {[]string{"backup", "--memory", "lots", src, dst}, 64, "is no size"},
		"no control file":         {[]string{"run", "--source", src, "--destination", dst, "--control", src + "/junk.txt"}, 64, "control files begin with"},
		"missing control file":    {[]string{"run", "--source", src, "--destination", dst, "--control", src + "/gone.txt"}, 66, "name control files"},
		"missing meta":            {[]string{"run", "--source", src, "--destination", dst, "--control", scan}, 64, "--meta DIR"},
		"empty meta":              {[]string{"run", "--source", src, "--destination", dst, "--control", scan, "--meta", dst}, 66, "--meta"},
		"NATS not there":          {[]string{"jobs", "--nats", "nats://" + idle}, 69, "--nats URL"},
		"destination not allowed": {[]string{"submit", flag, "--source", src, "--destination", dst, "--control", scan, "--meta", scan}, 77, "--allow"},
		"no such job":             {[]string{"status", flag, "zzz"}, 66, "fsbackup jobs"},
		"scan over a scan":        {[]string{"scan", src, "--out", scan}, 64, "another output directory"},
	} {
		t.Run(name, func(t *testing.T) {
			r := fsb(t, c.args...).want(t, c.code)
			if !strings.Contains(r.stderr, c.says) {
				t.Errorf("the message does not say %q: %s", c.says, r.stderr)
			}
			if n := strings.Count(strings.TrimSpace(r.stderr), "\n"); n > 0 && c.code != 64 {
				t.Errorf("the message has %d lines: %s", n+1, r.stderr)
			}
		})
	}
}

func TestNoCoordinatorIsSaidWithinTheTimeout(t *testing.T) {
	addr := freePort(t)
	daemon(t, "nats-server", "-js", "-sd", t.TempDir(), "-a", "127.0.0.1", "-p", addr[strings.LastIndex(addr, ":")+1:])
	waitListen(t, addr)
	r := fsb(t, "jobs", "--nats", "nats://"+addr).want(t, fault.Unavailable.ExitCode())
	if !strings.Contains(r.stderr, "start one with: coordinator") {
		t.Errorf("message: %s", r.stderr)
	}
}

func TestDeleteJobObeysTypesAndTheSource(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	for _, root := range []string{src, dst} {
		treetest.At(t, root).File("keep/both", "x") // the source has it: skipped
	}
	d := treetest.At(t, dst)
	d.File("d/gone", "x")
	d.File("d/sub/deep/f", "x")
	d.File("d/typed/f", "x") // an f line must not remove a directory
	d.File("d/plain", "x")   // a d line must not remove a file
	ctrl := filepath.Join(t.TempDir(), "delete_control_0_ab.txt")
	body := "Title:NAS Backup Delete Control File\nVersion:1.0\nTimestamp:2026-Nov-23 10:00:00\nTaskId:t\nNasServer:s\nNasShare:/x\nNasProtocol:nfs\nNasProtocolVersion:3\n" +
		"DirectoryDeleteCount:2\nFileDeleteCount:4\n\n" +
		"d,0,/d,0\nf,0,gone\nf,0,typed\nf,0,never-there\nd,0,/d/sub,1\nd,0,/d/plain,1\nd,0,/keep,0\nf,0,both\n"
	if err := os.WriteFile(ctrl, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	v := fsb(t, "run", "--source", src, "--destination", dst, "--control", ctrl, "--json").want(t, 0).job(t)
	for name, there := range map[string]bool{"d/gone": false, "d/sub": false, "d/typed/f": true, "d/plain": true, "keep/both": true} {
		if _, err := os.Lstat(filepath.Join(dst, name)); (err == nil) != there {
			t.Errorf("%s: there is %v, want %v", name, err == nil, there)
		}
	}
	if v.Stats.Deleted+v.Stats.Skipped != 6 || v.Stats.Skipped < 1 || v.Stats.Failures() != 0 {
		t.Errorf("statistics: %+v", v.Stats)
	}
}

func TestControlFilesSpareDirectoriesIfAskedTo(t *testing.T) {
	src, dst, scan := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "scan")
	d := treetest.At(t, dst)
	d.File("gone/foreign", "f")
	d.File("in the way/foreign", "f")
	treetest.At(t, src).File("in the way", "x")
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	body := "Title:NAS Backup Delete Control File\nVersion:1.0\nTimestamp:2026-Nov-23 10:00:00\nTaskId:t\nNasServer:s\nNasShare:/x\nNasProtocol:nfs\nNasProtocolVersion:3\n" +
		"DirectoryDeleteCount:1\nFileDeleteCount:0\n\nd,0,/gone,1\n"
	if err := os.WriteFile(filepath.Join(scan, "ctrl", "delete_control_0_ab.txt"), []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"run", "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--json"}
	s := fsb(t, append(args, "--delete-empty-dirs", "--spare-dirs")...).want(t, 3).job(t).Stats
	if s.DirsKept != 1 || s.Deleted != 0 || s.FilesFailed != 1 {
		t.Errorf("statistics: %+v", s)
	}
	for _, name := range []string{"gone/foreign", "in the way/foreign"} {
		if _, err := os.Lstat(d.Path(name)); err != nil {
			t.Errorf("not spared: %v", err)
		}
	}
	fsb(t, args...).want(t, 0)
	treetest.Same(t, src, dst)
}

// TestScannedDeletesEmptyDirectoriesInAnyNumberOfFiles: names with line breaks have
// files of their own, and the tenth file is not the second.
func TestScannedDeletesEmptyDirectoriesInAnyNumberOfFiles(t *testing.T) {
	for seed, size := range []string{"100000", "100000", "20", "7"} {
		t.Run(fmt.Sprint("seed ", seed+3, " by ", size), func(t *testing.T) {
			d := t.TempDir()
			src, dst := filepath.Join(d, "src"), filepath.Join(d, "dst")
			treetest.Random(t, src, uint64(seed+3), 1500)
			scan := func(name string, args ...string) []string {
				t.Helper()
				treetest.Settle(t)
				out := filepath.Join(d, name)
				fsb(t, append([]string{"scan", src, "--out", out, "--file-entries", size}, args...)...).want(t, 0)
				return []string{"run", "--source", src, "--destination", dst, "--meta", out, "--control", out, "--check-contents", "--json"}
			}
			fsb(t, scan("first")...).want(t, 0)
			before := treetest.Listing(t, src)
			treetest.Mutate(t, src, rand.New(rand.NewPCG(uint64(seed+3), 11)), 500)
			c := treetest.Changes(before, treetest.Listing(t, src))
			run := scan("second", "--previous", filepath.Join(d, "first"))
			s := fsb(t, append(run, "--delete-empty-dirs", "--shard-entries", "30")...).want(t, 0).job(t).Stats
			treetest.Same(t, src, dst)
			if s.DirsKept != 0 || s.DirsDeleted != c.DirsDeleted || s.Deleted != c.DirsDeleted+c.FilesDeleted || c.DirsDeleted == 0 {
				t.Errorf("of %d directories %d were deleted, %d kept", c.DirsDeleted, s.DirsDeleted, s.DirsKept)
			}
		})
	}
}

func TestRefusedControlFileFailsTheJobAndTheRestIsDone(t *testing.T) {
	src, dst, scan := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "scan")
	treetest.At(t, src).File("f", "x")
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	bad := filepath.Join(scan, "ctrl", "control_9_bad.txt")
	text, err := os.ReadFile(filepath.Join("testdata", "golden", "ctrl", "control_0_0123456789abcdef.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, bytes.Replace(text, []byte("FileCount:37"), []byte("FileCount:38"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	r := fsb(t, "run", "--source", src, "--destination", dst, "--meta", scan, "--control", scan).want(t, 3)
	if !strings.Contains(r.stderr, "control_9_bad.txt") || !strings.Contains(r.stderr, "38") {
		t.Errorf("the failure does not name file and reason: %s", r.stderr)
	}
	treetest.Same(t, filepath.Join(src, "f"), filepath.Join(dst, "f"))
}

// goldenSource makes the source tree that the golden control files describe.
func goldenSource(t *testing.T, dir string) {
	t.Helper()
	b := treetest.At(t, dir)
	long := strings.Repeat("L", 251) + ".dat"
	parents := map[string][]string{
		"src": {"plain.txt", "a,b.txt", ",,,", "sp ace.txt", "-rf", "--", "colon:name", "文件.txt", long, "trailing ", " leading", "tab\there",
			"quote\"x", "back\\slash", "new-file", "fm-file", "l1", "k1", "j\n1"},
		"src/dir with spaces": {"x", "y", "z"},
		"src/comma,dir,,x":    {"1,2,3", "d,bm,0", "f"},
		"src/uni-文档-é":        {"😀", "latin\xe9raw"},
		"src/colon:dir":       {"a:b", ":"},
		"src/-leading-dash":   {"-", "..."},
		"src/new\nline":       {"n\nl.txt", "two\n\nbreaks", "after"},
		"src/fm-dir":          {"changed-only"},
		"src/empty":           nil,
		"":                    {"rootfile"},
	}
	parents["src/"+strings.Repeat("D", 255)] = []string{long}
	for dir, files := range parents {
		b.Dir(dir)
		for _, f := range files {
			b.File(filepath.Join(dir, f), "content of "+f)
		}
	}
	for group, names := range map[string][]string{
		"src/l1": {"src/comma,dir/l,1", "src/nl\nd/l 1"}, "src/k1": {"src/comma,dir/k2", "src/nl\nd/k:3"}, "src/j\n1": {"src/comma,dir/j2", "src/nl\nd/-j"},
	} {
		for _, n := range names {
			b.Dir(filepath.Dir(n))
			if err := os.Link(b.Path(group), b.Path(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
