package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// seeds is how many seeds the property tests try: FSBACKUP_SEEDS, or few.
func seeds(t *testing.T, few int) int {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("FSBACKUP_SEEDS")); err == nil {
		return n
	}
	return few
}

// pair is a source and a destination with their state directory.
type pair struct {
	t               *testing.T
	src, dst, state string
}

func newPair(t *testing.T) pair {
	t.Helper()
	dir := t.TempDir()
	return pair{t, filepath.Join(dir, "src"), filepath.Join(dir, "dst"), filepath.Join(dir, "state")}
}

// backup runs an incremental backup.
func (p pair) backup(args ...string) result {
	p.t.Helper()
	treetest.Settle(p.t)
	return fsb(p.t, append([]string{"backup", "--incremental", "--json", "--state-dir", p.state, p.src, p.dst}, args...)...)
}

// statsOf is the statistics of a run that does exactly a change.
func statsOf(c treetest.Change) protocol.Stats {
	return protocol.Stats{
		DirsToBackup: c.Figures.Dirs, FilesToBackup: c.Figures.Files, BytesToBackup: c.Bytes,
		DirsCopied: c.Figures.Dirs, FilesCopied: c.Figures.Files, BytesCopied: c.Bytes, Links: c.Links,
		DirsToDelete: c.DirsDeleted, DirsDeleted: c.DirsDeleted, FilesToDelete: c.FilesDeleted, Deleted: c.DirsDeleted + c.FilesDeleted,
	}
}

// figures compares statistics without what is measured.
func figures(t *testing.T, got, want protocol.Stats) {
	t.Helper()
	got.BytesPerSec, got.HoleBytes, got.ReflinkBytes, got.ShardsRepeated = 0, 0, 0, 0
	if got != want {
		t.Errorf("statistics\n got %+v\nwant %+v", got, want)
	}
}

func TestSecondRunDoesExactlyWhatChanged(t *testing.T) {
	for seed := range seeds(t, 2) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, uint64(seed), 4900)
			treetest.Nasty(t, filepath.Join(p.src, "nasty"))
			p.backup("--shard-entries", "97").want(t, 0)
			treetest.Same(t, p.src, p.dst)
			runs := 1
			if seed%5 == 1 {
				runs = 10
			}
			r := rand.New(rand.NewPCG(uint64(seed), 2))
			for range runs {
				before, beforeDst := treetest.Listing(t, p.src), treetest.Listing(t, p.dst)
				treetest.Mutate(t, p.src, r, 1000/runs)
				after := treetest.Listing(t, p.src)
				c := treetest.Changes(before, after)
				v := p.backup("--max-delete", "100%", "--shard-entries", "97").want(t, 0).job(t)
				treetest.Same(t, p.src, p.dst)
				c.Untouched(t, beforeDst, treetest.Listing(t, p.dst))
				figures(t, v.Stats, statsOf(c))
			}
			v := p.backup().want(t, 0).job(t)
			figures(t, v.Stats, protocol.Stats{})
		})
	}
}

func TestKilledRunsAreMadeGoodByTheNext(t *testing.T) {
	for seed := range seeds(t, 2) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, uint64(seed), 1500)
			r := rand.New(rand.NewPCG(uint64(seed), 3))
			room := p.smallDestination()
			for range 4 {
				for range r.IntN(3) {
					if r.IntN(3) == 0 {
						room(64 << 10)
					}
					weak, open := r.IntN(3) == 0, func() {}
					if weak {
						open = p.closeSome(r)
					}
					p.killed(time.Duration(20+r.IntN(700))*time.Millisecond, weak)
					open()
					room(1 << 30)
					treetest.Mutate(t, p.src, r, 40)
				}
				treetest.Mutate(t, p.src, r, 40)
				p.backup("--max-delete", "100%").want(t, 0)
				treetest.Same(t, p.src, p.dst)
			}
		})
	}
}

// smallDestination puts the destination on a file system of its own. The
// function it returns leaves so many bytes free there. Without root, neither
// does anything.
func (p pair) smallDestination() (room func(free int64)) {
	p.t.Helper()
	if !treetest.Root() {
		return func(int64) {}
	}
	if err := os.MkdirAll(p.dst, 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", p.dst, "tmpfs", 0, "size=1g"); err != nil {
		p.t.Logf("cannot mount a tmpfs here, so the destination is never full: %v", err)
		return func(int64) {}
	}
	p.t.Cleanup(func() { _ = unix.Unmount(p.dst, unix.MNT_DETACH) })
	return func(free int64) {
		p.t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(p.dst, &st); err != nil {
			p.t.Fatal(err)
		}
		used := int64(st.Blocks-st.Bfree) * st.Bsize
		if err := unix.Mount("tmpfs", p.dst, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", used+free)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// closeSome takes all permissions from a few directories and files of the
// source, until the function it returns is called.
func (p pair) closeSome(r *rand.Rand) (open func()) {
	p.t.Helper()
	var paths []string
	for _, e := range treetest.Listing(p.t, p.src) {
		if e.Path != "" && (e.IsDir() || e.Type == syscall.S_IFREG) {
			paths = append(paths, filepath.Join(p.src, e.Path))
		}
	}
	modes := map[string]os.FileMode{}
	for range 8 {
		path := paths[r.IntN(len(paths))]
		if st, err := os.Lstat(path); err != nil {
			p.t.Fatal(err)
		} else if _, twice := modes[path]; !twice {
			modes[path] = st.Mode() &^ os.ModeType
		}
	}
	for path := range modes {
		if err := os.Chmod(path, 0); err != nil {
			p.t.Fatal(err)
		}
	}
	return func() {
		for _, path := range slices.Sorted(maps.Keys(modes)) {
			if err := os.Chmod(path, modes[path]); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// killed starts a run and kills it after a while, or lets it end before that.
// A weak run may not read what its user may not: as root it has lost the
// capabilities that lift that.
func (p pair) killed(after time.Duration, weak bool) {
	p.t.Helper()
	args := []string{filepath.Join(bin, "fsbackup"), "backup", "--incremental", "--max-delete", "100%", "--shard-entries", "13", "--state-dir", p.state, p.src, p.dst}
	if weak && treetest.Root() {
		args = append([]string{"setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	kill := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	_ = cmd.Wait() // killed, or not
	p.t.Logf("after at most %v (weak: %v): %v", after, weak, cmd.ProcessState)
}

func TestUnreadableDirectoryIsReportedAndNotTakenForDeleted(t *testing.T) {
	if !treetest.Root() {
		t.Skip("makes the directory unreadable for another user, which needs root")
	}
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("closed/f", "x")
	b.File("open/f", "x")
	base := filepath.Dir(p.src)
	for _, d := range []string{base, filepath.Dir(base)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(base, func(n string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(n, 65534, 65534)
	}); err != nil {
		t.Fatal(err)
	}
	asNobody := func(args ...string) result {
		treetest.Settle(t)
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "fsbackup"), append([]string{"backup", "-i", "--json", "--state-dir", p.state, p.src, p.dst}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Env = append(os.Environ(), "TMPDIR="+base)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the exit code says it
		return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody().want(t, 0)
	if err := os.Chmod(filepath.Join(p.src, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.src, "open", "f")); err != nil {
		t.Fatal(err)
	}
	r := asNobody("--max-delete", "100%").want(t, 3)
	if !strings.Contains(r.stderr, "closed") {
		t.Errorf("the unreadable directory is not named: %s", r.stderr)
	}
	if _, err := os.Stat(filepath.Join(p.dst, "closed", "f")); err != nil {
		t.Errorf("what could not be read was deleted: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dst, "open", "f")); err == nil {
		t.Error("what is gone was not deleted")
	}
	if err := os.Chmod(filepath.Join(p.src, "closed"), 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestRunThatFillsTheDestinationGoesOnWhenThereIsRoom(t *testing.T) {
	if !treetest.Root() {
		t.Skip("mounts a small file system, which needs root")
	}
	p := newPair(t)
	treetest.Random(t, p.src, 5, 300)
	treetest.At(t, p.src).File("large", strings.Repeat("x", 6<<20))
	if err := os.Mkdir(p.dst, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", p.dst, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.dst, unix.MNT_DETACH) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "fsbackup"), "backup", "-i", "--state-dir", p.state, p.src, p.dst)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 0, 4096)
	buf := make([]byte, 512)
	for !bytes.Contains(said, []byte("no room")) {
		n, err := stderr.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			t.Fatalf("the run ended without saying that the destination is full: %s", said)
		}
	}
	// Killed while it waits, it is resumed once there is room.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := unix.Mount("tmpfs", p.dst, "tmpfs", unix.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestRoundTrip(t *testing.T) {
	p := newPair(t)
	treetest.Nasty(t, filepath.Join(p.src, "nasty"))
	treetest.Random(t, filepath.Join(p.src, "random"), 6, 800)
	p.backup().want(t, 0)
	treetest.Mutate(t, p.src, rand.New(rand.NewPCG(6, 6)), 150)
	p.backup("--max-delete", "100%").want(t, 0)
	last := treetest.Listing(t, p.src)
	if err := os.RemoveAll(p.src); err != nil {
		t.Fatal(err)
	}
	v := fsb(t, "restore", "--json", p.dst, p.src).want(t, 0).job(t)
	if d := treetest.Diff(last, treetest.Listing(t, p.src)); len(d) > 0 {
		t.Fatalf("the restored tree differs:\n%s", strings.Join(d[:min(len(d), 10)], "\n"))
	}
	exact(t, v, treetest.Count(last))
}

func TestRestoreOfParts(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("a/b/one", "1")
	b.File("a/b/two", "2")
	b.File("a/other", "o")
	b.File("c/three", "3")
	b.Times("a", time.Unix(1_000_000_000, 5))
	p.backup().want(t, 0)
	check := func(name, target string, want ...string) {
		t.Helper()
		var got []string
		for _, e := range treetest.Listing(t, target) {
			if !e.IsDir() {
				got = append(got, e.Path)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s restored %q, want %q", name, got, want)
		}
	}
	out := filepath.Join(filepath.Dir(p.src), "out")
	fsb(t, "restore", p.dst, out+"1", "a/b", "c/three").want(t, 0)
	check("two paths", out+"1", "a/b/one", "a/b/two", "c/three")
	fsb(t, "restore", "--strip-prefix", "a/b", p.dst, out+"2", "a/b").want(t, 0)
	check("a stripped prefix", out+"2", "one", "two")
	r := fsb(t, "restore", p.dst, out+"3", "a/none").want(t, 66)
	if !strings.Contains(r.stderr, "a/none") {
		t.Errorf("message: %s", r.stderr)
	}
	scans, err := filepath.Glob(filepath.Join(p.state, "*", "scans", "*"))
	if err != nil || len(scans) != 1 {
		t.Fatalf("scans: %v, %v", scans, err)
	}
	fsb(t, "restore", "--scan", scans[0], p.dst, out+"4", "a/other").want(t, 0)
	check("a path of a scan", out+"4", "a/other")
	fsb(t, "restore", "--scan", scans[0], p.dst, out+"5").want(t, 0)
	treetest.Same(t, p.dst, out+"5")
}

func TestReplacePoliciesOfRestores(t *testing.T) {
	for policy, want := range map[string]map[string]string{
		"always":   {"old": "backup", "new": "backup", "gone": "backup"},
		"if-older": {"old": "backup", "new": "target", "gone": "backup"},
		"never":    {"old": "target", "new": "target", "gone": "backup"},
	} {
		t.Run(policy, func(t *testing.T) {
			src, dst := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "target")
			b, d := treetest.At(t, src), treetest.At(t, dst)
			for _, n := range []string{"old", "new", "gone"} {
				b.File(n, "backup")
				b.Times(n, time.Unix(1_600_000_000, 0))
			}
			d.File("old", "target")
			d.Times("old", time.Unix(1_500_000_000, 0))
			d.File("new", "target")
			d.Times("new", time.Unix(1_700_000_000, 0))
			fsb(t, "restore", "--replace", policy, src, dst).want(t, 0)
			for n, w := range want {
				if got, err := os.ReadFile(d.Path(n)); err != nil || string(got) != w {
					t.Errorf("%s is from the %s, want %s, %v", n, got, w, err)
				}
			}
		})
	}
}

func TestDryRunOfARestoreSaysWhatItWouldDo(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("a/f", "12345")
	b.File("a/one", "123")
	b.File("b/g", "1")
	if err := os.Link(b.Path("a/one"), b.Path("b/two")); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "target")
	treetest.At(t, target).File("b/g", "there")
	before := treetest.Listing(t, target)
	scan := filepath.Join(t.TempDir(), "scan")
	fsb(t, "scan", p.src, "--out", scan).want(t, 0)
	plan := func(code int, args ...string) (got struct {
		Status  string      `json:"status"`
		Plan    restorePlan `json:"plan"`
		Entries []restoreOp `json:"entries"`
	}) {
		t.Helper()
		r := fsb(t, append([]string{"restore", "-n", "--json", "--list"}, args...)...).want(t, code)
		if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
			t.Fatalf("%v: %v", err, r)
		}
		return got
	}
	all := restorePlan{Dirs: 3, Files: 4, Links: 2, Bytes: 9, Replaced: 1}
	for _, args := range [][]string{{p.src, target}, {"--scan", scan, p.src, target}} {
		if got := plan(0, args...); got.Plan != all || len(got.Entries) != 7 || got.Status != "completed" {
			t.Errorf("%q: %+v", args, got)
		}
	}
	if got := plan(0, "--replace", "never", p.src, target).Plan; got != (restorePlan{Dirs: 3, Files: 3, Links: 2, Bytes: 8, Kept: 1}) {
		t.Errorf("nothing is replaced: %+v", got)
	}
	if got := plan(0, "--strip-prefix", "a", p.src, target, "a").Plan; got != (restorePlan{Dirs: 1, Files: 2, Links: 1, Bytes: 8}) {
		t.Errorf("a part: %+v", got)
	}
	r := fsb(t, "restore", "-n", "--list", p.src, target, "b").want(t, 0)
	for _, line := range []string{`dir "b/"`, `replace "b/g"`, "would restore 2 directories and 2 files", "1 of the files are in the target already"} {
		if !strings.Contains(r.stdout, line) {
			t.Errorf("no %q in\n%s", line, r.stdout)
		}
	}
	if d := treetest.Diff(before, treetest.Listing(t, target)); len(d) > 0 {
		t.Errorf("a dry run changed the target: %v", d)
	}
	fsb(t, "restore", "-n", p.src, target+"2").want(t, 0)
	if _, err := os.Lstat(target + "2"); err == nil {
		t.Error("a dry run made the target")
	}
}

func TestGuardsStopAndCanBeOverridden(t *testing.T) {
	type env struct {
		p pair
		t *testing.T
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		do       func(e env) // what trips the guard
		says     string
		override []string
		code     int
	}{
		"too many deletes": {func(e env) { _ = os.RemoveAll(filepath.Join(e.p.src, "d")) }, "more than --max-delete 25%", []string{"--max-delete", "100%"}, 78},
		"empty source": {func(e env) {
			_ = os.RemoveAll(filepath.Join(e.p.src, "d"))
			_ = os.RemoveAll(filepath.Join(e.p.src, "e"))
		}, "empty", []string{"--allow-empty", "--max-delete", "100%"}, 78},
		"another destination": {func(e env) {
			move(e.p.dst, e.p.dst+".away")
			_ = os.Mkdir(e.p.dst, 0o755)
		}, "is it mounted? go on with --accept-destination", []string{"--accept-destination"}, 78},
		"destination gone": {func(e env) { move(e.p.dst, e.p.dst+".away") }, "is it mounted? go on with --accept-destination", []string{"--accept-destination"}, 78},
		"another source": {func(e env) {
			move(e.p.src, e.p.src+".away")
			treetest.At(e.t, e.p.src).File("x", "y")
		}, "is it mounted? go on with --accept-source", []string{"--accept-source", "--max-delete", "100%"}, 78},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			b := treetest.At(t, p.src)
			for _, n := range []string{"d/1", "d/2", "d/3", "e/1"} {
				b.File(n, n)
			}
			p.backup().want(t, 0)
			c.do(env{p, t})
			var before []treetest.Entry
			if _, err := os.Stat(p.dst); err == nil {
				before = treetest.Listing(t, p.dst)
			}
			r := p.backup().want(t, c.code)
			if !strings.Contains(r.stderr, c.says) || strings.Count(strings.TrimSpace(r.stderr), "\n") > 0 {
				t.Errorf("message: %s", r.stderr)
			}
			if before != nil {
				after := treetest.Listing(t, p.dst)
				if d := treetest.Diff(before, after); len(d) > 0 {
					t.Errorf("the guard came too late: %v", d)
				}
			} else if _, err := os.Stat(p.dst); err == nil {
				t.Error("the guard came too late: the destination was made")
			}
			p.backup(c.override...).want(t, 0)
			treetest.Same(t, p.src, p.dst)
		})
	}
}

func TestExcludedEntriesAreKeptUnlessAskedFor(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("keep/f", "x")
	b.File("cache/f", "x")
	p.backup().want(t, 0)
	p.backup("--exclude", "/cache").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	p.backup("--exclude", "/cache", "--delete-excluded", "--max-delete", "100%").want(t, 0)
	if _, err := os.Stat(filepath.Join(p.dst, "cache")); err == nil {
		t.Error("the excluded directory was not deleted")
	}
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestDestinationInsideTheSourceIsNotBackedUp(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("backups/f", "x")
	p.dst = filepath.Join(p.src, "backups", "here")
	for range 2 {
		p.backup().want(t, 0)
	}
	if _, err := os.Stat(filepath.Join(p.dst, "backups", "here")); err == nil {
		t.Error("the destination was backed up into itself")
	}
}

func TestDryRunChangesNothingAndSaysWhat(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("stays", "x")
	b.File("changes", "x")
	b.File("goes", "x")
	p.backup().want(t, 0)
	if err := os.Remove(b.Path("goes")); err != nil {
		t.Fatal(err)
	}
	b.File("changes", "changed")
	b.File("comes", "x")
	before := treetest.Listing(t, p.dst)
	treetest.Settle(t)
	r := fsb(t, "backup", "-i", "-n", "--list", "--max-delete", "50%", "--state-dir", p.state, p.src, p.dst).want(t, 0)
	for _, line := range []string{`copy dm "changes"`, `copy nn "comes"`, `delete - "goes"`} {
		if !strings.Contains(r.stdout, line) {
			t.Errorf("no line %s in\n%s", line, r.stdout)
		}
	}
	if strings.Contains(r.stdout, `"stays"`) {
		t.Errorf("an unchanged file is listed:\n%s", r.stdout)
	}
	if d := treetest.Diff(before, treetest.Listing(t, p.dst)); len(d) > 0 {
		t.Errorf("a dry run changed the destination: %v", d)
	}
	p.backup("--max-delete", "50%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestScansAreKeptAndDropped(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for i := range 5 {
		b.File(fmt.Sprint("f", i), "x")
		p.backup("--keep-scans", "2").want(t, 0)
	}
	r := fsb(t, "scans", "list", "--state-dir", p.state, p.src, p.dst).want(t, 0)
	if n := strings.Count(r.stdout, "committed"); n != 2 {
		t.Fatalf("%d scans are kept, want 2:\n%s", n, r.stdout)
	}
	id := strings.Fields(strings.Split(r.stdout, "\n")[1])[0]
	fsb(t, "scans", "drop", "--state-dir", p.state, p.src, p.dst, id).want(t, 0)
	fsb(t, "scans", "drop", "--state-dir", p.state, p.src, p.dst, id).want(t, 66)
	if r := fsb(t, "scans", "--state-dir", p.state).want(t, 0); !strings.Contains(r.stdout, p.src) {
		t.Errorf("the pair is not listed: %s", r.stdout)
	}
	fsb(t, "scans", "reset", "--state-dir", p.state, p.src, p.dst).want(t, 0)
	// Nothing is known then, and what the destination has is found out.
	if v := p.backup().want(t, 0).job(t); v.Stats.FilesCopied != 0 {
		t.Errorf("after a reset %d files were copied, though the destination has them", v.Stats.FilesCopied)
	}
}

func TestTwoRunsOfAPairDoNotMeet(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("f", "x")
	p.backup().want(t, 0)
	dirs, err := filepath.Glob(filepath.Join(p.state, "*", "lock"))
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	f, err := os.Open(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if r := p.backup().want(t, 75); !strings.Contains(r.stderr, "another run") {
		t.Errorf("message: %s", r.stderr)
	}
}
