package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// repairing is what verify --repair --json prints.
type repairing struct {
	Status   string            `json:"status"`
	ExitCode int               `json:"exit_code"`
	Job      protocol.JobView  `json:"job"`
	Repaired *uint64           `json:"repaired"`
	Copied   *protocol.JobView `json:"repair_job"`
}

// repair runs verify --repair on the pair.
func (p pair) repair(code int, args ...string) (repairing, result) {
	p.t.Helper()
	r := fsb(p.t, append([]string{"verify", "--repair", "--json", p.src, p.dst}, args...)...).want(p.t, code)
	var out repairing
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Repaired == nil || out.ExitCode != code {
		p.t.Fatalf("%v: %s", err, r)
	}
	return out, r
}

// plain makes the destination by a backup that leaves no history.
func (p pair) plain(args ...string) {
	p.t.Helper()
	fsb(p.t, append([]string{"backup", "-q", "--no-state", "--sync", "none", p.src, p.dst}, args...)...).want(p.t, 0)
}

// inodes are those of all below a directory, with when each changed last.
func inodes(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, e := range treetest.Listing(t, dir)[1:] { // the root has the mark of a job for a while
		out[e.Path] = fmt.Sprint(e.Inode, " ", e.CtimeNS)
	}
	return out
}

// changed are the paths at which two of these differ.
func changed(before, after map[string]string) []string {
	both := maps.Clone(before)
	maps.Copy(both, after)
	return slices.DeleteFunc(slices.Sorted(maps.Keys(both)), func(p string) bool { return before[p] == after[p] })
}

// TestEachDamageIsRepairedAndNothingElse: what is not damaged is neither written nor
// touched.
func TestEachDamageIsRepairedAndNothingElse(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, name := range []string{"d/f", "d/g", "e/f", "e/sub/g", "h/first", "new\nline/inv\xff"} {
		b.File(name, "of "+name)
	}
	must(t, os.Mkdir(b.Path("h/in"), 0o755))
	must(t, os.Link(b.Path("h/first"), b.Path("h/in/second")))
	must(t, os.Link(b.Path("h/first"), b.Path("h/third")))
	must(t, os.Symlink("f", b.Path("d/link")))
	must(t, unix.Mkfifo(b.Path("d/fifo"), 0o600))
	for _, dir := range []string{"", "d", "e", "e/sub", "h", "h/in", "new\nline"} {
		b.Times(dir, time.Unix(1_600_000_000, 0))
	}
	p.plain()
	d := treetest.At(t, p.dst)
	// keep puts the time of a directory back.
	keep := func(dir string) { d.Times(dir, time.Unix(1_600_000_000, 0)) }
	rewrite := func(name, text string) {
		t.Helper()
		var st unix.Stat_t
		must(t, unix.Stat(d.Path(name), &st))
		must(t, os.WriteFile(d.Path(name), []byte(text), 0o644))
		at := time.Unix(st.Mtim.Unix())
		must(t, os.Chtimes(d.Path(name), at, at))
	}
	for name, c := range map[string]struct {
		do      func()
		changes []string // in the destination, by the repair
		dirs    uint64   // written, those that are finished again with them
		files   uint64
		bytes   uint64
		found   uint64
	}{
		"contents, with the time put back": {func() { rewrite("d/f", "OF d/f") }, []string{"d", "d/f"}, 1, 1, 6, 1},
		"size":                             {func() { rewrite("d/f", "short") }, []string{"d", "d/f"}, 1, 1, 6, 1},
		"mode":                             {func() { must(t, os.Chmod(d.Path("d/f"), 0o600)) }, []string{"d", "d/f"}, 1, 1, 6, 1},
		"an attribute":                     {func() { must(t, unix.Setxattr(d.Path("d/f"), "user.harm", []byte("x"), 0)) }, []string{"d", "d/f"}, 1, 1, 6, 1},
		"a time":                           {func() { d.Times("d/f", time.Unix(1, 0)) }, []string{"d", "d/f"}, 1, 1, 6, 1},
		"a file is missing": {func() {
			must(t, os.Remove(d.Path("d/f")))
			keep("d")
		}, []string{"d", "d/f"}, 1, 1, 6, 1},
		"another name": {func() {
			must(t, os.Remove(d.Path("new\nline/inv\xff")))
			keep("new\nline")
		}, []string{"new\nline", "new\nline/inv\xff"}, 1, 1, uint64(len("of new\nline/inv\xff")), 1},
		"a link leads elsewhere": {func() {
			must(t, os.Remove(d.Path("d/link")))
			must(t, os.Symlink("g", d.Path("d/link")))
			keep("d")
		}, []string{"d", "d/link"}, 1, 1, 0, 1},
		"a file instead of a fifo": {func() {
			must(t, os.Remove(d.Path("d/fifo")))
			must(t, os.WriteFile(d.Path("d/fifo"), nil, 0o600))
			keep("d")
		}, []string{"d", "d/fifo"}, 1, 1, 0, 1},
		"a directory's mode":      {func() { must(t, os.Chmod(d.Path("e/sub"), 0o700)) }, []string{"e/sub"}, 1, 0, 0, 1},
		"a directory's time":      {func() { d.Times("e/sub", time.Unix(1, 0)) }, []string{"e/sub"}, 1, 0, 0, 1},
		"a directory's attribute": {func() { must(t, unix.Setxattr(d.Path("e"), "user.harm", []byte("x"), 0)) }, []string{"e"}, 1, 0, 0, 1},
		"the root's mode":         {func() { must(t, os.Chmod(p.dst, 0o700)) }, nil, 1, 0, 0, 1},
		"a tree is missing": {func() {
			must(t, os.RemoveAll(d.Path("e")))
			keep("")
		}, []string{"e", "e/f", "e/sub", "e/sub/g"}, 3, 2, uint64(len("of e/f" + "of e/sub/g")), 4},
		"a link instead of a directory": {func() {
			elsewhere := t.TempDir()
			treetest.At(t, elsewhere).File("f", "stays")
			must(t, os.RemoveAll(d.Path("e")))
			must(t, os.Symlink(elsewhere, d.Path("e")))
			keep("")
			t.Cleanup(func() {
				if got, err := os.ReadFile(filepath.Join(elsewhere, "f")); err != nil || string(got) != "stays" {
					t.Errorf("what the link led to was changed: %q, %v", got, err)
				}
			})
		}, []string{"e", "e/f", "e/sub", "e/sub/g"}, 3, 2, uint64(len("of e/f" + "of e/sub/g")), 4},
		"a file instead of a directory": {func() {
			must(t, os.RemoveAll(d.Path("e")))
			must(t, os.WriteFile(d.Path("e"), nil, 0o644))
			keep("")
		}, []string{"e", "e/f", "e/sub", "e/sub/g"}, 3, 2, uint64(len("of e/f" + "of e/sub/g")), 4},
		"a hard link is a copy": {func() {
			must(t, os.Remove(d.Path("h/in/second")))
			must(t, os.WriteFile(d.Path("h/in/second"), []byte("of h/first"), 0o644))
			keep("h/in")
		}, []string{"h", "h/first", "h/in", "h/in/second", "h/third"}, 2, 3, uint64(len("of h/first")), 1},
		"contents of a group": {func() { rewrite("h/third", "OF h/first") }, []string{"h", "h/first", "h/in", "h/in/second", "h/third"}, 2, 3, uint64(len("of h/first")), 1},
		"two files are one": {func() {
			must(t, os.Remove(d.Path("d/g")))
			must(t, os.Link(d.Path("d/f"), d.Path("d/g")))
			keep("d")
		}, []string{"d", "d/f", "d/g"}, 1, 1, 6, 1}, // the other has a name less
	} {
		t.Run(name, func(t *testing.T) {
			treetest.Settle(t)
			c.do()
			treetest.Settle(t)
			before := inodes(t, p.dst)
			p := p
			p.t = t
			out, r := p.repair(0)
			after := inodes(t, p.dst)
			if got := changed(before, after); !slices.Equal(got, c.changes) {
				t.Errorf("the repair changed %q, want %q", got, c.changes)
			}
			if out.Copied == nil {
				t.Fatalf("nothing was copied: %s", r)
			}
			s := out.Copied.Stats
			if s.DirsCopied != c.dirs || s.FilesCopied != c.files || s.BytesCopied != c.bytes || s.Deleted != 0 {
				t.Errorf("%d directories, %d files, %d bytes are copied and %d names deleted, want %d, %d, %d and none", s.DirsCopied, s.FilesCopied, s.BytesCopied, s.Deleted, c.dirs, c.files, c.bytes)
			}
			if *out.Repaired != c.found {
				t.Errorf("repaired are %d, want %d", *out.Repaired, c.found)
			}
			if r.stderr != "" {
				t.Errorf("it says %s", r.stderr)
			}
			treetest.Same(t, p.src, p.dst)
		})
	}
	out, r := p.repair(0)
	if *out.Repaired != 0 || out.Copied != nil {
		t.Errorf("nothing was wrong, and %s", r)
	}
}

func TestExtraNamesAreKeptUnlessTheRepairIsToDeleteThem(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for i := range 6 {
		b.File(fmt.Sprint("d/", i), "x")
	}
	b.File("left out/f", "x")
	p.plain()
	d := treetest.At(t, p.dst)
	for _, name := range []string{"d/extra", "extra/sub/in it", "d/new\nline\xff"} {
		d.File(name, "x")
	}
	must(t, os.WriteFile(d.Path("d/1"), []byte("y"), 0o644))
	kept := []string{"d/extra", "d/new\nline\xff", "extra", "extra/sub", "extra/sub/in it"}

	out, r := p.repair(3)
	if *out.Repaired != 3 || out.Job.Stats.Extra != 3 || out.Copied.Stats.Deleted != 0 || strings.Count(r.stderr, "extra: ") != 3 {
		t.Errorf("want the file and its directories repaired, and three names told: %s", r)
	}
	have := inodes(t, p.dst)
	for _, name := range kept {
		if have[name] == "" {
			t.Errorf("%q is gone", name)
		}
	}
	// Nothing is left to be copied: there is no job then, and the names are told.
	out, r = p.repair(3)
	if *out.Repaired != 0 || out.Copied != nil || strings.Count(r.stderr, "extra: ") != 3 {
		t.Errorf("with nothing but extra names: %s", r)
	}
	if now := inodes(t, p.dst); len(changed(have, now)) > 0 {
		t.Errorf("changed are %q", changed(have, now))
	}
	// More than are to be deleted.
	r = fsb(t, "verify", "--repair", "--delete-extra", "--max-delete", "4", p.src, p.dst).want(t, 78)
	if !strings.Contains(r.stderr, "5 of ") || !strings.Contains(r.stderr, "(verify without --repair names them; go on with --max-delete 100%)") {
		t.Errorf("it says %s", r.stderr)
	}
	if now := inodes(t, p.dst); len(changed(have, now)) > 0 {
		t.Errorf("the guard came too late: changed are %q", changed(have, now))
	}
	// What is excluded is not compared, and stays.
	d.File("left out/extra", "x")
	out, _ = p.repair(0, "--delete-extra", "--max-delete", "5", "--exclude", "/left out")
	if s := out.Copied.Stats; s.Deleted != 5 || s.DirsDeleted != 2 || s.FilesCopied != 0 || *out.Repaired != 3 {
		t.Errorf("repaired are %d, by %+v", *out.Repaired, s)
	}
	if _, err := os.Stat(d.Path("left out/extra")); err != nil {
		t.Errorf("what is excluded was touched: %v", err)
	}
	p.repair(0, "--delete-extra")
	treetest.Same(t, p.src, p.dst)
}

func TestADirectoryInTheWayOfARepair(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		code  int
		empty bool
	}{
		"kept": {nil, 3, false}, "empty": {nil, 0, true},
		"replaced": {[]string{"--replace-dirs"}, 0, false}, "emptied first": {[]string{"--delete-extra", "--max-delete", "100%"}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			b := treetest.At(t, p.src)
			b.File("way", "x")
			b.File("other", "x")
			p.plain()
			d := treetest.At(t, p.dst)
			must(t, os.Remove(d.Path("way")))
			d.Dir("way")
			if !c.empty {
				d.File("way/sub/in it", "x")
			}
			must(t, os.WriteFile(d.Path("other"), []byte("y"), 0o644))
			_, r := p.repair(c.code, c.args...)
			if c.code == 0 {
				treetest.Same(t, p.src, p.dst)
				return
			}
			if !strings.Contains(r.stderr, `"way": `) || !strings.Contains(r.stderr, "--replace-dirs") || strings.Contains(r.stderr, `"other"`) {
				t.Errorf("it says %s", r.stderr)
			}
			if _, err := os.Stat(d.Path("way/sub/in it")); err != nil {
				t.Errorf("it was touched: %v", err)
			}
			if w := wrong(t, p); !slices.Equal(w, []string{"way"}) {
				t.Errorf("wrong are %q", w)
			}
		})
	}
}

// TestRepairsAreNotCopiedAgain by the next run, which finds that somebody has touched
// them; and leave no history.
func TestRepairsAreNotCopiedAgain(t *testing.T) {
	p := newPair(t)
	treetest.Random(t, p.src, 31, 300)
	p.backup().want(t, 0)
	before := treeDigest(t, p.state)
	h := doHarm(t, p.dst, rand.New(rand.NewPCG(1, 2)))
	r := fsb(t, "verify", "--repair", "--delete-extra", p.src, p.dst).want(t, 0)
	if !strings.Contains(r.stdout, "repaired: 5\n") || !strings.Contains(r.stdout, "extra names in the destination: 0") {
		t.Errorf("summary:\n%s", r.stdout)
	}
	for path := range h.says() {
		if !strings.Contains(r.stderr, fmt.Sprintf("%q: ", path)) {
			t.Errorf("%q was repaired and is not named:\n%s", path, r.stderr)
		}
	}
	treetest.Same(t, p.src, p.dst)
	if after := treeDigest(t, p.state); after != before {
		t.Errorf("the history changed:\n%s\nwas\n%s", after, before)
	}
	have := inodes(t, p.dst)
	v := p.backup().want(t, 0).job(t)
	if v.Stats.BytesCopied != 0 {
		t.Errorf("%d bytes are copied again: %+v", v.Stats.BytesCopied, v.Stats)
	}
	for path, now := range inodes(t, p.dst) {
		if was, _, _ := strings.Cut(have[path], " "); !strings.HasPrefix(now, was+" ") {
			t.Errorf("%q was replaced", path)
		}
	}
	if v := p.backup().want(t, 0).job(t); v.Stats.FilesCopied+v.Stats.DirsCopied != 0 {
		t.Errorf("and once more: %+v", v.Stats)
	}
}

// treeDigest renders a tree with its contents.
func treeDigest(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range treetest.Listing(t, dir) {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// TestRandomDamageIsRepaired, whatever it is, on a cluster as well.
func TestRandomDamageIsRepaired(t *testing.T) {
	for seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			p := newPair(t)
			r := rand.New(rand.NewPCG(uint64(seed), 21))
			treetest.Random(t, filepath.Join(p.src, "random"), uint64(seed), 400)
			if seed == 0 {
				treetest.Nasty(t, filepath.Join(p.src, "nasty"))
			}
			p.plain()
			var more []string
			if seed == 1 {
				more = append(more, cluster(t, 2, filepath.Dir(p.src)))
			}
			for range 3 {
				log := damage(t, p.dst, r, 5+r.IntN(30))
				treetest.Settle(t)
				before := inodes(t, p.dst)
				bad := map[string]bool{}
				for _, path := range wrong(t, p) {
					bad[path] = true
				}
				p.repair(0, append([]string{"--delete-extra", "--replace-dirs", "--max-delete", "100%", "--shard-entries", "60"}, more...)...)
				treetest.Same(t, p.src, p.dst)
				after, groups := inodes(t, p.dst), map[string]string{}
				list := treetest.Listing(t, p.src)
				for _, e := range list {
					if bad[e.Path] && e.Group != "" {
						groups[e.Group] = e.Path
					}
				}
				for _, e := range list {
					if e.Path == "" {
						continue
					}
					was, _, _ := strings.Cut(before[e.Path], " ")
					if !bad[e.Path] && (e.Group == "" || groups[e.Group] == "") && !strings.HasPrefix(after[e.Path], was+" ") {
						t.Errorf("%q was right and is replaced:\n%s", e.Path, strings.Join(log, "\n"))
					}
				}
			}
		})
	}
}

func TestRepairsThatCannotBe(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("f", "x")
	p.plain()
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"extra names without a repair": {[]string{"--delete-extra", p.src, p.dst}, 64, "--repair"},
		"directories without a repair": {[]string{"--replace-dirs", p.src, p.dst}, 64, "--repair"},
		"not all differences":          {[]string{"--repair", "--fail-fast", p.src, p.dst}, 64, "--fail-fast"},
		"of what it is in":             {[]string{"--repair", p.src, filepath.Dir(p.src)}, 78, "is in it"},
		"without a destination":        {[]string{"--repair", p.src, p.dst + "/none"}, 66, "no directory"},
	} {
		r := fsb(t, append([]string{"verify"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.says) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: want exit code %d and %q, got %v", name, c.code, c.says, r)
		}
	}
	if !treetest.Root() {
		t.Skip("a read-only mount needs root")
	}
	must(t, os.WriteFile(filepath.Join(p.dst, "f"), []byte("y"), 0o644))
	if out, err := exec.Command("mount", "--bind", p.dst, p.dst).CombinedOutput(); err != nil {
		t.Skipf("needs to mount: %v %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.dst, unix.MNT_DETACH) })
	if out, err := exec.Command("mount", "-o", "remount,bind,ro", p.dst).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	r := fsb(t, "verify", "--repair", p.src, p.dst).want(t, 77)
	if !strings.Contains(r.stderr, "the destination is read-only") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("it says %s", r.stderr)
	}
	fsb(t, "verify", "-q", p.src, p.dst).want(t, 3)
}

// A list from the standard input is one of all scans of a repair.
func TestRepairsGoByAListFromTheStandardInput(t *testing.T) {
	for name, c := range map[string]struct{ flag, text string }{
		"files": {"--files-from=-", "d/f\n"}, "patterns": {"--exclude-from=-", "/d/g\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			b := treetest.At(t, p.src)
			b.File("d/f", "x")
			b.File("d/g", "x")
			p.plain()
			d := treetest.At(t, p.dst)
			for _, name := range []string{"d/f", "d/g"} {
				must(t, os.WriteFile(d.Path(name), []byte("y"), 0o644))
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "fsbackup"), "verify", "--repair", c.flag, p.src, p.dst)
			cmd.Stdin, cmd.Env = strings.NewReader(c.text), append(os.Environ(), "TMPDIR="+t.TempDir())
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "repaired: 1\n") {
				t.Errorf("%v: %s", err, out)
			}
			for name, want := range map[string]string{"d/f": "x", "d/g": "y"} {
				if got, err := os.ReadFile(d.Path(name)); err != nil || string(got) != want {
					t.Errorf("%s is %q, %v, want %q", name, got, err, want)
				}
			}
		})
	}
}
