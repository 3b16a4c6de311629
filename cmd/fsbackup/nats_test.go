package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/history"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// on is a pair whose runs are made by a cluster.
func (p pair) on(flag string, args ...string) result {
	p.t.Helper()
	return p.backup(append([]string{flag, "--shard-entries", "40"}, args...)...)
}

// base is a directory that has all of the pair in it.
func (p pair) base() string { return filepath.Dir(p.dst) }

// clientProcess is a run of the command that goes on.
type clientProcess struct {
	*exec.Cmd
	t    *testing.T
	out  bytes.Buffer
	mu   sync.Mutex
	errs []byte // guarded by mu
	more chan struct{}
}

// start starts the command.
func start(t *testing.T, args ...string) *clientProcess {
	t.Helper()
	c := &clientProcess{Cmd: exec.CommandContext(t.Context(), filepath.Join(bin, "fsbackup"), args...), t: t, more: make(chan struct{}, 1)}
	c.Stdout = &c.out
	c.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	r, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.more)
		buf := make([]byte, 512)
		for {
			n, err := r.Read(buf)
			c.mu.Lock()
			c.errs = append(c.errs, buf[:n]...)
			c.mu.Unlock()
			if err != nil {
				return
			}
			select {
			case c.more <- struct{}{}:
			default:
			}
		}
	}()
	return c
}

func (c *clientProcess) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.errs)
}

// says waits until the command has said a text.
func (c *clientProcess) says(text string) *clientProcess {
	c.t.Helper()
	for !strings.Contains(c.said(), text) {
		if _, ok := <-c.more; !ok && !strings.Contains(c.said(), text) {
			c.t.Fatalf("the command ended without saying %q: %s", text, c.said())
		}
	}
	return c
}

// ends sends a signal and waits for the end.
func (c *clientProcess) ends(s syscall.Signal) result {
	c.t.Helper()
	if err := c.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
	for range c.more {
		continue // until all is read
	}
	_ = c.Wait() // the exit code says it
	return result{c.ProcessState.ExitCode(), c.out.String(), c.said()}
}

// shape lists the names in a JSON document, but for those below what has names of its own.
func shape(t *testing.T, text string) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	all := map[string]bool{}
	var walk func(string, any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if all[at+"/"+k] = true; k != "workers" {
					walk(at+"/"+k, x)
				}
			}
		case []any:
			for _, x := range v {
				walk(at+"[]", x)
			}
		}
	}
	walk("", v)
	return slices.Sorted(maps.Keys(all))
}

// TestARunOnAClusterDoesWhatOneAloneDoes: one source has two destinations, which are
// damaged alike. One is made by the process alone, the other by three workers.
func TestARunOnAClusterDoesWhatOneAloneDoes(t *testing.T) {
	alone, many := newPair(t), newPair(t)
	many.src = alone.src
	b := treetest.At(t, many.src)
	flag := cluster(t, 3, alone.base(), many.base())
	harm := func(f func(p pair, r *rand.Rand)) {
		t.Helper()
		for _, p := range []pair{alone, many} {
			f(p, rand.New(rand.NewPCG(3, 9)))
		}
	}
	run := func(code int, args ...string) (one, other protocol.JobView) {
		t.Helper()
		a := alone.backup(append([]string{"--shard-entries", "40"}, args...)...).want(t, code)
		m := many.on(flag, args...).want(t, code)
		x, y := a.job(t), m.job(t)
		figures(t, y.Stats, without(x.Stats))
		if x.State != y.State || x.Status != y.Status || x.Reason != y.Reason || x.Answered != y.Answered {
			t.Errorf("alone it is %s (%s), on a cluster %s (%s)", x.State, x.Reason, y.State, y.Reason)
		}
		if p, q := shape(t, a.stdout), shape(t, m.stdout); !slices.Equal(p, q) {
			t.Errorf("alone it prints\n%q\non a cluster\n%q", p, q)
		}
		return x, y
	}
	treetest.Random(t, many.src, 7, 2500)
	treetest.Nasty(t, b.Path("nasty"))
	run(0)
	treetest.Same(t, many.src, many.dst)

	treetest.Mutate(t, many.src, rand.New(rand.NewPCG(3, 8)), 200)
	harm(func(p pair, r *rand.Rand) { damage(t, p.dst, r, 60) })
	before := treetest.Listing(t, many.dst)
	dry := many.on(flag, "--dry-run", "--list", "--max-delete", "100%").want(t, 0)
	if want := alone.backup("--dry-run", "--list", "--max-delete", "100%").want(t, 0); !slices.Equal(shape(t, dry.stdout), shape(t, want.stdout)) {
		t.Errorf("a dry run alone prints\n%s\nand for a cluster\n%s", want.stdout, dry.stdout)
	}
	if d := treetest.Diff(before, treetest.Listing(t, many.dst)); len(d) > 0 {
		t.Errorf("a dry run changed: %v", d)
	}
	v, _ := run(0, "--max-delete", "100%", "--delete-extra", "--replace-dirs")
	if v.Stats.Deleted == 0 || v.Stats.FilesCopied == 0 {
		t.Errorf("too little happened to show anything: %+v", v.Stats)
	}
	treetest.Same(t, many.src, many.dst)
	treetest.Same(t, alone.src, alone.dst)
	v, _ = run(0)
	figures(t, v.Stats, protocol.Stats{})

	// An entry that cannot be done, and then too many deletes.
	harm(func(p pair, _ *rand.Rand) { treetest.At(t, p.dst).File("in the way/foreign", "f") })
	b.File("in the way", "a file")
	run(3)
	a, m := alone.backup("-q"), many.on(flag, "-q")
	if a.code != 3 || m.code != 3 || a.stderr != m.stderr {
		t.Errorf("alone %v\non a cluster %v", a, m)
	}
	if err := os.RemoveAll(b.Path("nasty")); err != nil {
		t.Fatal(err)
	}
	before = treetest.Listing(t, many.dst)
	if r := many.on(flag, "--max-delete", "3").want(t, 78); !strings.Contains(r.stderr, "more than --max-delete 3") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("message: %s", r.stderr)
	}
	if d := treetest.Diff(before, treetest.Listing(t, many.dst)); len(d) > 0 {
		t.Errorf("the guard came too late: %v", d)
	}
	run(0, "--max-delete", "100%", "--replace-dirs", "--delete-extra")
	treetest.Same(t, many.src, many.dst)
	if r := fsb(t, "backup", "-q", flag, "--state-dir", many.state, many.src, many.dst).want(t, 0); r.stdout != "" || r.stderr != "" {
		t.Errorf("-q is not quiet: %v", r)
	}
}

// without is what figures compares.
func without(s protocol.Stats) protocol.Stats {
	s.BytesPerSec, s.HoleBytes, s.ReflinkBytes, s.ShardsRepeated = 0, 0, 0, 0
	return s
}

func TestVerifyAndRestoreOnACluster(t *testing.T) {
	p := newPair(t)
	treetest.Random(t, p.src, 8, 1200)
	treetest.Nasty(t, filepath.Join(p.src, "nasty"))
	b := treetest.At(t, p.src)
	b.File("part/one", "1")
	b.File("part/sub/two", "2")
	flag := cluster(t, 3, p.base())
	// Without a state each run compares with what is there.
	fsb(t, "backup", flag, "--no-state", "-q", p.src, p.dst).want(t, 0)
	fsb(t, "backup", flag, "--no-state", "-q", p.src, p.dst).want(t, 0)
	treetest.Same(t, p.src, p.dst)
	fsb(t, "verify", flag, "-q", p.src, p.dst).want(t, 0)

	back := filepath.Join(p.base(), "back")
	fsb(t, "restore", flag, "-q", p.dst, back).want(t, 0)
	treetest.Same(t, p.src, back)

	h := doHarm(t, p.dst, rand.New(rand.NewPCG(8, 2)))
	many := fsb(t, "verify", flag, "--json", "--shard-entries", "40", p.src, p.dst).want(t, 3)
	verified(t, many.job(t), treetest.Count(treetest.Listing(t, p.src)), h.counted)
	alone := fsb(t, "verify", "--json", "--shard-entries", "40", p.src, p.dst).want(t, 3)
	if x, y := shape(t, alone.stdout), shape(t, many.stdout); !slices.Equal(x, y) {
		t.Errorf("alone it prints\n%q\non a cluster\n%q", x, y)
	}
	lines := func(r result) []string { return slices.Sorted(strings.Lines(r.stderr)) }
	if !slices.Equal(lines(alone), lines(many)) {
		t.Errorf("alone it says\n%s\non a cluster\n%s", alone.stderr, many.stderr)
	}

	// Of parts, what is extra below them goes, and nothing else.
	r := treetest.At(t, back)
	r.File("part/sub/extra", "x")
	r.File("extra", "x")
	r.File("part/one", "changed")
	fsb(t, "restore", flag, "-q", "--delete-extra", "--max-delete", "100%", p.dst, back, "part").want(t, 0)
	treetest.Same(t, filepath.Join(p.src, "part"), filepath.Join(back, "part"))
	if _, err := os.Lstat(r.Path("extra")); err != nil {
		t.Errorf("what lies outside the parts is touched: %v", err)
	}
	fsb(t, "restore", flag, "--delete-extra", "--max-delete", "0", p.dst, back).want(t, 78)
	fsb(t, "restore", flag, "-q", "--delete-extra", "--max-delete", "100%", "--replace-dirs", p.dst, back).want(t, 0)
	treetest.Same(t, p.dst, back)
}

// TestNobodyThereIsSaidBeforeAScan: no NATS server, or no coordinator.
func TestNobodyThereIsSaidBeforeAScan(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("f", "x")
	if err := os.Mkdir(p.dst, 0o755); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	daemon(t, "nats-server", "-js", "-sd", t.TempDir(), "-a", "127.0.0.1", "-p", addr[strings.LastIndex(addr, ":")+1:])
	waitListen(t, addr)
	for flag, says := range map[string]string{"--nats=nats://" + freePort(t): "--nats URL", "--nats=nats://" + addr: "start one with: coordinator"} {
		for _, args := range [][]string{{"backup", "--state-dir", p.state, p.src, p.dst}, {"backup", "--no-state", p.src, p.dst}, {"verify", p.src, p.dst}, {"restore", p.src, p.dst}} {
			r := fsb(t, append(args, flag)...).want(t, 69)
			if !strings.Contains(r.stderr, says) || strings.Count(r.stderr, "\n") != 1 || r.stdout != "" {
				t.Errorf("%q says %s", args, r)
			}
		}
		fsb(t, "backup", "--dry-run", "--state-dir", p.state, p.src, p.dst, flag).want(t, 0)
	}
	if scans, err := filepath.Glob(filepath.Join(p.state, "*", "scans", "*")); err != nil || len(scans) > 0 {
		t.Errorf("scans were made for nothing: %v %v", scans, err)
	}
	p.backup().want(t, 0) // nothing is pending
}

// TestAClientThatEndsLeavesItsJobToTheNext: interrupted or killed while nobody is
// there to do the work. The next run follows the job to its end, commits it, and then
// does what has changed since.
func TestAClientThatEndsLeavesItsJobToTheNext(t *testing.T) {
	for name, s := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, 9, 600)
			flag := leader(t, nil, t.TempDir())
			args := []string{"backup", "--state-dir", p.state, "--shard-entries", "20", "--max-delete", "100%", "-i", p.src, p.dst}
			r := start(t, append(args, flag)...).says("stalled: ").ends(s)
			id := jobOf(t, flag)
			if s == syscall.SIGINT && (r.code != 130 || !strings.Contains(r.stderr, "interrupted; job "+id+" goes on (run it again to follow it") || !strings.Contains(r.stderr, "fsbackup watch "+id)) {
				t.Errorf("it says %v", r)
			}
			// Alone it is refused: two jobs would meet.
			r = fsb(t, args...).want(t, 78)
			if !strings.Contains(r.stderr, id) || !strings.Contains(r.stderr, "scans reset --nats URL") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("the refusal: %s", r.stderr)
			}
			before := treetest.Listing(t, p.src)
			treetest.Mutate(t, p.src, rand.New(rand.NewPCG(4, 4)), 60)
			c := treetest.Changes(before, treetest.Listing(t, p.src))
			addWorkers(t, flag, 2, p.base())
			r = p.backup(flag, "--max-delete", "100%", "--shard-entries", "20").want(t, 0)
			if !strings.Contains(r.stderr, "an interrupted run is resumed: job "+id) {
				t.Errorf("it says %s", r.stderr)
			}
			treetest.Same(t, p.src, p.dst)
			// The first job took what it found of what had changed since: what is copied
			// is what has changed, and what it could not do.
			if v := r.job(t); string(v.ID) == id || v.Stats.FilesCopied+v.Stats.DirsCopied < uint64(len(c.Files)+len(c.Dirs)) || v.Stats.FilesCopied > 400 {
				t.Errorf("job %s did %+v, want the change %+v", v.ID, v.Stats, statsOf(c))
			}
			figures(t, p.backup(flag).want(t, 0).job(t).Stats, protocol.Stats{})
		})
	}
}

// jobOf returns the id of the newest job.
func jobOf(t *testing.T, flag string) string {
	t.Helper()
	var is protocol.JobsReply
	r := fsb(t, "jobs", "--json", flag).want(t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &is); err != nil || len(is.Jobs) == 0 {
		t.Fatalf("%v: %s", err, r)
	}
	return string(is.Jobs[0].ID)
}

// TestAClientThatEndsInTheMiddle of a job that has done some of its work.
func TestAClientThatEndsInTheMiddle(t *testing.T) {
	if !treetest.Root() {
		t.Skip("fills a small file system, which needs root")
	}
	for name, s := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			b := treetest.At(t, p.src)
			for i := range 400 {
				b.File(fmt.Sprintf("d%d/f%d", i%7, i), strings.Repeat("x", 8192))
			}
			room := p.smallDestination()
			room(1 << 20)
			flag := cluster(t, 3, p.base())
			start(t, "backup", flag, "--state-dir", p.state, "--shard-entries", "20", p.src, p.dst).says("no room").ends(s)
			room(1 << 30)
			id := jobOf(t, flag)
			v := p.backup(flag, "--shard-entries", "20").want(t, 0).job(t)
			figures(t, v.Stats, protocol.Stats{})
			treetest.Same(t, p.src, p.dst)
			v = fsb(t, "status", flag, "--json", id).want(t, 0).job(t)
			if v.State != protocol.StateCompleted || v.Stats.FilesCopied != 400 {
				t.Errorf("the first job is %s: %+v", v.State, v.Stats)
			}
		})
	}
}

// TestARunIsEndedOnItsCluster by the ways that a refused run names.
func TestARunIsEndedOnItsCluster(t *testing.T) {
	p := newPair(t)
	treetest.Random(t, p.src, 10, 300)
	flag := leader(t, nil, t.TempDir())
	leave := func() string {
		t.Helper()
		start(t, "backup", "--state-dir", p.state, p.src, p.dst, flag).says("stalled: ").ends(syscall.SIGKILL)
		p.backup().want(t, 78)
		fsb(t, "scans", "reset", "--state-dir", p.state, p.src, p.dst).want(t, 78)
		return jobOf(t, flag)
	}
	state := func(id string) protocol.State {
		t.Helper()
		return fsb(t, "status", flag, "--json", id).want(t, 0).job(t).State
	}
	id := leave()
	fsb(t, "scans", "reset", flag, "--state-dir", p.state, p.src, p.dst).want(t, 0)
	if is := state(id); is != protocol.StateCancelled {
		t.Errorf("the job is %s", is)
	}
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)

	// The scan that is pending is known by its directory.
	treetest.Mutate(t, p.src, rand.New(rand.NewPCG(5, 5)), 30)
	id = leave()
	var is struct{ Scans []struct{ ID, Status string } }
	if err := json.Unmarshal([]byte(fsb(t, "scans", "--json", "--state-dir", p.state, p.src, p.dst).want(t, 0).stdout), &is); err != nil || len(is.Scans) == 0 || is.Scans[len(is.Scans)-1].Status != "pending" {
		t.Fatalf("%v: %+v", err, is)
	}
	pending := is.Scans[len(is.Scans)-1].ID
	fsb(t, "scans", "drop", "--state-dir", p.state, p.src, p.dst, pending).want(t, 78)
	fsb(t, "scans", "drop", flag, "--state-dir", p.state, p.src, p.dst, pending).want(t, 0)
	if is := state(id); is != protocol.StateCancelled {
		t.Errorf("the job is %s", is)
	}
	p.backup("--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)

	// Other options than before: the job is ended, and planned anew.
	treetest.Mutate(t, p.src, rand.New(rand.NewPCG(6, 6)), 30)
	leave()
	addWorkers(t, flag, 1, p.base())
	if r := p.backup(flag, "--max-delete", "100%", "--checksum").want(t, 0); !strings.Contains(r.stderr, "is ended, since other options are given now") {
		t.Errorf("it says %s", r.stderr)
	}
	treetest.Same(t, p.src, p.dst)
}

// TestAClusterThatIsGoneForGoodCanBeAbandoned.
func TestAClusterThatIsGoneForGoodCanBeAbandoned(t *testing.T) {
	p := newPair(t)
	treetest.Random(t, p.src, 11, 200)
	t.Run("its cluster", func(t *testing.T) {
		flag := leader(t, nil, t.TempDir())
		start(t, "backup", "--state-dir", p.state, p.src, p.dst, flag).says("stalled: ").ends(syscall.SIGKILL)
	})
	gone := "--nats=nats://" + freePort(t)
	p.backup(gone).want(t, 69)
	fsb(t, "scans", "reset", gone, "--state-dir", p.state, p.src, p.dst).want(t, 69)
	if r := p.backup().want(t, 78); !strings.Contains(r.stderr, "--abandon") {
		t.Errorf("message: %s", r.stderr)
	}
	fsb(t, "scans", "reset", "--abandon", "--state-dir", p.state, p.src, p.dst).want(t, 0)
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

// TestAJobThatIsRefusedLeavesNothingPending: it never was there.
func TestAJobThatIsRefusedLeavesNothingPending(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("f", "x")
	flag := cluster(t, 1, p.src)
	if r := p.backup(flag).want(t, 77); !strings.Contains(r.stderr, "--allow") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("message: %s", r.stderr)
	}
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

// TestACoordinatorThatCannotReadTheControlFiles gets them uploaded, by names of any bytes.
func TestACoordinatorThatCannotReadTheControlFiles(t *testing.T) {
	if !treetest.Root() {
		t.Skip("needs root, whose files the coordinator cannot read")
	}
	p := newPair(t)
	p.src, p.dst, p.state = p.src+"\xb1\xb8", p.dst+"\xb7\xdd", p.state+"\xff"
	treetest.Random(t, p.src, 12, 800)
	treetest.Nasty(t, filepath.Join(p.src, "nasty"))
	store := t.TempDir()
	for _, d := range []string{bin, store, filepath.Dir(store)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(store, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	flag := leader(t, &syscall.Credential{Uid: 65534, Gid: 65534}, store)
	addWorkers(t, flag, 3, p.base())
	p.on(flag, "--file-entries", "50").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	scans, err := filepath.Glob(filepath.Join(p.state, "*", "scans", "*"))
	if err != nil || len(scans) != 1 {
		t.Fatal(scans, err)
	}
	if fi, err := os.Stat(scans[0]); err != nil || fi.Mode().Perm() != 0o700 {
		t.Fatalf("others can read a scan: %v %v", fi.Mode(), err)
	}
	treetest.Mutate(t, p.src, rand.New(rand.NewPCG(7, 7)), 100)
	p.on(flag, "--max-delete", "100%", "--file-entries", "50").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	fsb(t, "verify", flag, "-q", p.src, p.dst).want(t, 0)
	fsb(t, "restore", flag, "-q", p.dst, filepath.Join(p.base(), "back")).want(t, 0)
	treetest.Same(t, p.dst, filepath.Join(p.base(), "back"))
}

// TestWhatIsForeignInAGoneDirectoryIsKeptByACluster also where only the workers see it,
// since the run does not look at the destination.
func TestWhatIsForeignInAGoneDirectoryIsKeptByACluster(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("keep", "x")
	for i := range 30 {
		b.File(fmt.Sprintf("gone/d%d/sub/f", i), "x")
	}
	flag := cluster(t, 3, p.base())
	p.backup(flag, "--shard-entries", "1").want(t, 0)
	d := treetest.At(t, p.dst)
	d.File("gone/d3/foreign", "f")
	d.File("gone/d7/sub/foreign", "f")
	if err := os.RemoveAll(b.Path("gone")); err != nil {
		t.Fatal(err)
	}
	r := p.backup(flag, "--shard-entries", "1", "--trust-history", "--max-delete", "100%").want(t, 0)
	// 30 files, and 61 directories of which gone, d3, d7 and d7/sub stay.
	figures(t, r.job(t).Stats, protocol.Stats{
		DirsToBackup: 1, DirsCopied: 1, DirsToDelete: 61, FilesToDelete: 30, Deleted: 87, DirsDeleted: 57, Skipped: 4, SkippedDeletes: 4, DirsKept: 4,
	})
	left := func() (out []string) {
		for _, e := range treetest.Listing(t, p.dst) {
			out = append(out, e.Path)
		}
		return out
	}
	want := []string{"", "gone", "gone/d3", "gone/d3/foreign", "gone/d7", "gone/d7/sub", "gone/d7/sub/foreign", "keep"}
	if is := left(); !slices.Equal(is, want) {
		t.Errorf("left are %q, want %q", is, want)
	}
	v := p.backup(flag).want(t, 0).job(t)
	if is := left(); !slices.Equal(is, want) || v.Stats.Deleted > 0 {
		t.Errorf("after another run left are %q, want %q; it deleted %d", is, want, v.Stats.Deleted)
	}
	p.backup(flag, "--delete-extra", "--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

// TestAJobThatWasHandedOverInPartIsEnded: who was to hand over the rest is dead, and the
// job would wait for it for ever.
func TestAJobThatWasHandedOverInPartIsEnded(t *testing.T) {
	p := newPair(t)
	treetest.Random(t, p.src, 13, 300)
	flag := cluster(t, 1, p.base())
	h, err := history.Open(p.state, p.src, p.dst)
	must(t, err)
	scan, err := h.Begin(now(), false)
	must(t, err)
	res, err := scanner.Scan(t.Context(), scanner.Config{Source: p.src, Out: scan.Dir, MaxEntries: 50})
	must(t, err)
	id := client.NewJobID(now())
	scan.Cluster = true
	must(t, scan.MarkPending(id, res))
	b, err := bus.Connect(t.Context(), bus.Config{URL: strings.TrimPrefix(flag, "--nats="), Name: "test"})
	must(t, err)
	defer b.Close()
	files := controlFiles(res)
	files.Control = files.Control[:2]
	spec := protocol.JobSpec{Source: p.src, Destination: p.dst, Meta: res.MetaDir, WriteMeta: true, Pool: client.DefaultPool}
	must(t, client.New(b).Submit(t.Context(), id, spec, files, false))
	must(t, h.Close()) // as the kernel does for a process that was killed
	p.backup(flag).want(t, 0)
	treetest.Same(t, p.src, p.dst)
	if v := fsb(t, "status", flag, "--json", string(id)).want(t, 0).job(t); v.State != protocol.StateCancelled {
		t.Errorf("the job is %s", v.State)
	}
}
