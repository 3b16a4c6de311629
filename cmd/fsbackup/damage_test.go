package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// damage alters a destination in ways that no source would: names that only it has,
// directories swapped for links, files made one.
func damage(t *testing.T, dst string, r *rand.Rand, n int) []string {
	t.Helper()
	log := treetest.Mutate(t, dst, r, n)
	var dirs, files []string
	for _, e := range treetest.Listing(t, dst) {
		switch {
		case e.Path == "":
		case e.IsDir():
			dirs = append(dirs, filepath.Join(dst, e.Path))
		case e.Type == unix.S_IFREG:
			files = append(files, filepath.Join(dst, e.Path))
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range n/8 + 1 {
		switch k := r.IntN(4); {
		case k == 0 && len(dirs) > 0:
			d := dirs[r.IntN(len(dirs))]
			if os.Mkdir(filepath.Join(d, fmt.Sprint("extra", i)), 0o755) != nil {
				continue // its parent is gone
			}
			must(os.WriteFile(filepath.Join(d, fmt.Sprint("extra", i), "in it"), nil, 0o644))
			log = append(log, "extra names in "+d)
		case k == 1 && len(dirs) > 0:
			d := dirs[r.IntN(len(dirs))]
			if os.RemoveAll(d) == nil && os.Symlink(t.TempDir(), d) == nil {
				log = append(log, "a link instead of "+d)
			}
		case k == 2 && len(files) > 1:
			x, y := files[r.IntN(len(files))], files[r.IntN(len(files))]
			if x != y && os.Remove(y) == nil && os.Link(x, y) == nil {
				log = append(log, "one file: "+x+", "+y)
			}
		case len(files) > 0:
			f := files[r.IntN(len(files))]
			if unix.Setxattr(f, "user.harm", []byte("x"), 0) == nil {
				log = append(log, "an attribute of "+f)
			}
		}
	}
	return log
}

// TestARunMakesTheDestinationWhatTheSourceIs: between runs the source changes, the
// destination is damaged, the history is lost or an old one, and options differ. After
// one plain run the destination is right but for names that only it has, or the exit
// code is 3 and what is wrong is named. With --delete-extra it is right without any.
func TestARunMakesTheDestinationWhatTheSourceIs(t *testing.T) {
	for seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			p := newPair(t)
			r := rand.New(rand.NewPCG(uint64(seed), 11))
			treetest.Random(t, p.src, uint64(seed), 400)
			p.backup().want(t, 0)
			old := filepath.Join(t.TempDir(), "old")
			var log []string
			for round := range 6 {
				log = append(log, fmt.Sprint("round ", round))
				log = append(log, treetest.Mutate(t, p.src, r, r.IntN(30))...)
				log = append(log, damage(t, p.dst, r, r.IntN(25))...)
				checksum := "--trust-mtime=false"
				switch r.IntN(5) {
				case 0:
					log = append(log, "no history")
					fsb(t, "scans", "reset", "--state-dir", p.state, p.src, p.dst).want(t, 0)
					checksum = "--checksum" // nothing but the contents tells
				case 1:
					if _, err := os.Stat(old); err == nil {
						log = append(log, "an old history")
						copyTree(t, old, p.state)
						checksum = "--checksum"
					}
				case 2:
					copyTree(t, p.state, old)
				}
				// A run of another kind first, whatever it makes of it.
				switch r.IntN(5) {
				case 0:
					log = append(log, "replace never")
					p.backup("--replace", "never", "--max-delete", "100%", checksum)
				case 1:
					log = append(log, "no metadata")
					p.backup("--no-meta", "--max-delete", "100%", checksum)
				case 2:
					log = append(log, "history trusted")
					p.backup("--trust-history", "--max-delete", "100%", checksum)
				}
				run := p.backup("--max-delete", "100%", checksum)
				if run.code != 0 && run.code != 3 {
					t.Fatalf("%s\n%s", run, strings.Join(log, "\n"))
				}
				verify := fsb(t, "verify", "--json", p.src, p.dst)
				s := verify.job(t).Stats
				if differs := s.DirsDiffer + s.FilesDiffer + s.DirsFailed + s.FilesFailed; differs > 0 && run.code == 0 {
					t.Fatalf("round %d: the run completed, and\n%s\nlog:\n%s", round, verify.stderr, strings.Join(log, "\n"))
				}
				for line := range strings.Lines(verify.stderr) {
					f, says, _ := strings.Cut(line, `": `)
					if strings.HasPrefix(f, `"`) && !strings.Contains(says, "extra: ") && !strings.Contains(run.stderr, f+`"`) && !strings.Contains(run.stderr, "failures in all") {
						t.Errorf("round %d: %s, and the run says only\n%s\nlog:\n%s", round, line, run.stderr, strings.Join(log, "\n"))
					}
				}
				p.backup("--max-delete", "100%", "--delete-extra", "--replace-dirs", checksum).want(t, 0)
				if verify := fsb(t, "verify", p.src, p.dst); verify.code != 0 {
					t.Fatalf("round %d: after --delete-extra\n%s\nlog:\n%s", round, verify, strings.Join(log, "\n"))
				}
			}
		})
	}
}

// wrong lists what the source has and the destination has not, or not so.
func wrong(t *testing.T, p pair) []string {
	t.Helper()
	have := map[string]string{}
	for _, e := range treetest.Listing(t, p.dst) {
		have[e.Path] = e.String()
	}
	var out []string
	for _, e := range treetest.Listing(t, p.src) {
		if have[e.Path] != e.String() {
			out = append(out, e.Path)
		}
	}
	return out
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := os.RemoveAll(to)
	if err == nil {
		var out []byte
		if out, err = exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatAnotherToolHasCopiedIsNotCopiedAgain(t *testing.T) {
	if _, err := exec.LookPath("rsync"); err != nil {
		t.Skip("rsync is not installed")
	}
	p := newPair(t)
	treetest.Random(t, filepath.Join(p.src, "random"), 5, 500)
	treetest.Nasty(t, filepath.Join(p.src, "nasty"))
	if out, err := exec.Command("rsync", "-aHAX", "--specials", "--devices", p.src+"/", p.dst).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := treetest.Listing(t, p.dst)
	run := p.backup().want(t, 0)
	if s := run.job(t).Stats; s.BytesCopied != 0 {
		t.Errorf("%d bytes were copied although all were there:\n%s", s.BytesCopied, run)
	}
	inodes := map[string]uint64{}
	for _, e := range before {
		inodes[e.Path] = e.Inode
	}
	for _, e := range treetest.Listing(t, p.dst) {
		// Attributes of what is no file are among the things that rsync leaves out.
		if inodes[e.Path] != e.Inode && (e.Type == unix.S_IFREG || strings.HasPrefix(e.Path, "random/")) {
			t.Errorf("%q was replaced", e.Path)
		}
	}
	fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
}

// TestTimesThatWereCutOffAreMended: tar keeps whole seconds, which is less than the
// destination can.
func TestTimesThatWereCutOffAreMended(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("d/f", "x")
	b.File("g", "y")
	copyTree(t, p.src, p.dst)
	for _, e := range treetest.Listing(t, p.dst) {
		n := filepath.Join(p.dst, e.Path)
		st, err := os.Lstat(n)
		if err == nil {
			err = os.Chtimes(n, time.Time{}, st.ModTime().Truncate(time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if s := p.backup().want(t, 0).job(t).Stats; s.BytesCopied != 0 {
		t.Errorf("%d bytes are copied again", s.BytesCopied)
	}
	fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
}

func TestAdoptedMetadataIsMendedWithoutCopying(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("mode", "x")
	b.File("attr", "x")
	b.File("contents", "one")
	copyTree(t, p.src, p.dst)
	d := treetest.At(t, p.dst)
	for _, err := range []error{
		os.Chmod(d.Path("mode"), 0o600), unix.Setxattr(d.Path("attr"), "user.x", []byte("y"), 0),
		os.WriteFile(d.Path("contents"), []byte("two"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("touch", "-r", b.Path("contents"), d.Path("contents")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s := p.backup().want(t, 0).job(t).Stats; s.FilesCopied != 2 || s.BytesCopied != 0 {
		t.Errorf("%d files and %d bytes were written, want the metadata of two", s.FilesCopied, s.BytesCopied)
	}
	if got, err := os.ReadFile(d.Path("contents")); err != nil || string(got) != "two" {
		t.Errorf("contents are %q, %v: size and time decide", got, err)
	}
	fsb(t, "scans", "reset", "--state-dir", p.state, p.src, p.dst).want(t, 0)
	p.backup("--checksum").want(t, 0)
	fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
}

func TestHistoryBelongsToTheDirectories(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("d/f", "x")
	p.backup().want(t, 0)
	links := t.TempDir()
	for name, to := range map[string]string{"s": p.src, "d": p.dst} {
		if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, as := range [][2]string{
		{filepath.Join(links, "s"), p.dst}, {p.src + "/", filepath.Join(links, "d")}, {p.src + "/d/..", p.dst + "/."},
	} {
		run := fsb(t, "backup", "--json", "--trust-history", "--state-dir", p.state, as[0], as[1]).want(t, 0)
		if s := run.job(t).Stats; s.FilesCopied+s.DirsCopied != 0 {
			t.Errorf("%q is not known: %d files, %d directories", as, s.FilesCopied, s.DirsCopied)
		}
	}
	if pairs := strings.Count(fsb(t, "scans", "--json", "--state-dir", p.state).want(t, 0).stdout, `"dir"`); pairs != 1 {
		t.Errorf("there are %d histories of one pair", pairs)
	}
	// Another directory at the path is another destination.
	if err := os.RemoveAll(p.dst); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.dst, 0o755); err != nil {
		t.Fatal(err)
	}
	p.backup().want(t, 78)
	p.backup("--accept-destination").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestADirectoryInTheWayIsNotLost(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, name := range []string{"ours/a", "ours/sub/b", "mixed/a", "link/a", "stays"} {
		b.File(name, "x")
	}
	p.backup().want(t, 0)
	treetest.At(t, p.dst).File("mixed/foreign", "f")
	for _, name := range []string{"ours", "mixed", "link"} {
		if err := os.RemoveAll(b.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	b.File("ours", "a file now")
	b.File("mixed", "a file now")
	if err := os.Symlink("stays", b.Path("link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		run := p.backup("--max-delete", "100%").want(t, 3)
		if !strings.Contains(run.stderr, `"mixed": `) || !strings.Contains(run.stderr, "directory not empty") || strings.Count(run.stderr, "\n") != 1 {
			t.Errorf("it says\n%s", run.stderr)
		}
		if w := wrong(t, p); !slices.Equal(w, []string{"mixed"}) && !slices.Equal(w, []string{"", "mixed"}) {
			t.Errorf("wrong are %q", w)
		}
		for _, name := range []string{"mixed/a", "mixed/foreign"} {
			if _, err := os.Stat(filepath.Join(p.dst, name)); err != nil {
				t.Errorf("something of the directory in the way is touched: %v", err)
			}
		}
	}
	p.backup("--max-delete", "100%", "--replace-dirs").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestADirectoryThatIsGoneKeepsWhatIsNotOurs(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, name := range []string{"d/a", "d/sub/b", "d/cache.o", "e/x", "keep"} {
		b.File(name, "x")
	}
	p.backup().want(t, 0)
	treetest.At(t, p.dst).File("d/sub/foreign", "f")
	for _, name := range []string{"d", "e"} {
		if err := os.RemoveAll(b.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	run := p.backup("--max-delete", "100%", "--exclude", "*.o").want(t, 0)
	var left []string
	for _, e := range treetest.Listing(t, p.dst) {
		left = append(left, e.Path)
	}
	if want := []string{"", "d", "d/cache.o", "d/sub", "d/sub/foreign", "keep"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
	if s := run.job(t).Stats; s.Deleted != 4 || s.DirsDeleted != 1 {
		t.Errorf("%d deleted, %d of them directories", s.Deleted, s.DirsDeleted)
	}
	if out := fsb(t, "backup", "--state-dir", p.state, "--exclude", "*.o", p.src, p.dst).want(t, 0).stdout; !strings.Contains(out, `kept: 2, first "d/sub"`) {
		t.Errorf("what is kept is not shown:\n%s", out)
	}
	p.backup("--max-delete", "100%", "--delete-extra").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestTrustedHistoryThatIsWrongIsTold(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, name := range []string{"d/a", "d/b", "gone", "mode", "other/x"} {
		b.File(name, "x")
	}
	p.backup().want(t, 0)
	d := treetest.At(t, p.dst)
	for _, name := range []string{"d", "gone", "mode"} {
		if err := os.RemoveAll(d.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing of it shows in what changes: history is trusted.
	b.File("new", "x")
	run := p.backup("--trust-history").want(t, 0)
	if w := run.job(t).Warnings; len(w) != 0 {
		t.Errorf("warnings %+v of what was not looked at", w)
	}
	b.File("d/a", "changed")
	if err := errors.Join(os.Remove(b.Path("gone")), os.Chmod(b.Path("mode"), 0o600)); err != nil {
		t.Fatal(err)
	}
	run = p.backup("--trust-history", "--max-delete", "100%").want(t, 0)
	w := run.job(t).Warnings
	if len(w) != 1 || w[0].Kind != "destination-not-as-known" || w[0].Count != 3 {
		t.Errorf("warnings %+v, want d, gone and mode", w)
	}
	if !strings.Contains(run.stderr, "not what history says") {
		t.Errorf("it says %q", run.stderr)
	}
	// Which makes the next run look, though it is told not to.
	run = p.backup("--trust-history").want(t, 0)
	if !strings.Contains(run.stderr, "looked at all the same") {
		t.Errorf("it says %q", run.stderr)
	}
	treetest.Same(t, p.src, p.dst)
	if run := p.backup("--trust-history").want(t, 0); strings.Contains(run.stderr, "looked at") {
		t.Errorf("it says %q", run.stderr)
	}
	p.backup("--trust-history", "--delete-extra").want(t, 64)
	p.backup("--trust-history", "--no-state").want(t, 64)
}

func TestLossesAreRememberedAndMendedByWhoCan(t *testing.T) {
	if !treetest.Root() {
		t.Skip("needs root to be another user")
	}
	p := newPair(t)
	b := treetest.At(t, p.src)
	for _, name := range []string{"a", "d/b"} {
		b.File(name, "x")
	}
	if err := errors.Join(os.Chmod(b.Path("a"), 0o644), unix.Setxattr(b.Path("d/b"), "user.x", []byte("y"), 0)); err != nil {
		t.Fatal(err)
	}
	p.giveToNobody()
	err := filepath.WalkDir(p.src, func(n string, _ os.DirEntry, err error) error { return errors.Join(err, os.Lchown(n, 0, 0)) })
	if err != nil {
		t.Fatal(err)
	}
	owners := func(r result) (n uint64) {
		for _, w := range r.want(t, 0).job(t).Warnings {
			if w.Kind == "owner-not-permitted" {
				n = w.Count
			}
		}
		return n
	}
	first := p.asNobody()
	if n := owners(first); n != 4 {
		t.Errorf("%d owners are lost, want 4:\n%s", n, first)
	}
	for range 2 { // it persists, and is told each time, and nothing is written for it
		again := p.asNobody()
		if n := owners(again); n != 4 || again.job(t).Stats.FilesCopied+again.job(t).Stats.DirsCopied != 0 {
			t.Errorf("%d owners are lost, want 4 and nothing done:\n%s", n, again)
		}
	}
	if s := p.backup().want(t, 0).job(t).Stats; s.FilesCopied != 2 || s.BytesCopied != 0 {
		t.Errorf("root mended %d files with %d bytes, want the metadata of both", s.FilesCopied, s.BytesCopied)
	}
	treetest.Same(t, p.src, p.dst)
}

// TestADestinationIsKnownAfterAnotherMount mounts the file system of the destination
// from another device.
func TestADestinationIsKnownAfterAnotherMount(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			if !treetest.Root() {
				t.Skip("needs root to mount")
			}
			if _, err := exec.LookPath("mkfs." + fs); err != nil {
				t.Skip(err)
			}
			dir := t.TempDir()
			image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
			command := func(args ...string) {
				t.Helper()
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					t.Skipf("%q: %v: %s", args, err, out)
				}
			}
			command("truncate", "-s", "320M", image)
			command("mkfs."+fs, "-q", image)
			command("mkdir", at)
			p := pair{t, filepath.Join(dir, "src"), filepath.Join(at, "dst"), filepath.Join(dir, "state")}
			treetest.At(t, p.src).File("d/f", "x")
			// Before t.TempDir is removed, whatever happens.
			t.Cleanup(func() {
				for _, m := range []string{at, filepath.Join(dir, "other")} {
					_ = unix.Unmount(m, unix.MNT_DETACH)
				}
			})
			for i := range 2 {
				command("mount", "-o", "loop", image, at)
				s := p.backup().want(t, 0).job(t).Stats
				err := unix.Unmount(at, 0)
				if err != nil {
					t.Fatal(err)
				}
				if i > 0 && s.FilesCopied > 0 {
					t.Errorf("%d files are copied again", s.FilesCopied)
				}
				if i == 0 { // takes the loop device that the first mount had
					command("truncate", "-s", "20M", filepath.Join(dir, "taker"))
					command("mkfs.ext4", "-q", filepath.Join(dir, "taker"))
					command("mkdir", filepath.Join(dir, "other"))
					command("mount", "-o", "loop", filepath.Join(dir, "taker"), filepath.Join(dir, "other"))
				}
			}
		})
	}
}

// TestRunsOfOneKindDoNothingTwice: what is kept, or written without metadata, is neither
// written nor read again by the next run of the kind.
func TestRunsOfOneKindDoNothingTwice(t *testing.T) {
	for _, args := range [][]string{nil, {"--no-meta"}, {"--replace", "if-older"}, {"--replace", "never"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			p := newPair(t)
			treetest.Random(t, p.src, 3, 200)
			p.backup(args...).want(t, 0)
			treetest.At(t, p.src).File("new", "x")
			if s := p.backup(args...).want(t, 0).job(t).Stats; s.FilesCopied != 1 || s.DirsCopied != 1 {
				t.Errorf("%d files and %d directories, want the new file and the root", s.FilesCopied, s.DirsCopied)
			}
			if s := p.backup(args...).want(t, 0).job(t).Stats; s.FilesCopied+s.DirsCopied != 0 {
				t.Errorf("%d files and %d directories, want nothing", s.FilesCopied, s.DirsCopied)
			}
			p.backup().want(t, 0)
			fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
		})
	}
}

// TestRenamedDirectoriesOfADestinationAreSeen: what is in a directory shows nothing of
// its renaming. Neither other times in it are taken for what the destination cannot hold,
// nor equal ones for the contents of the last run.
func TestRenamedDirectoriesOfADestinationAreSeen(t *testing.T) {
	for _, times := range []string{"other times", "equal times"} {
		t.Run(times, func(t *testing.T) {
			p := newPair(t)
			b, d := treetest.At(t, p.src), treetest.At(t, p.dst)
			for _, name := range []string{"a", "b"} {
				b.File(name+"/sub/deep/f", name)
				b.File(name+"/sub/first", name+name)
				if err := os.Link(b.Path(name+"/sub/first"), b.Path(name+"/sub/second")); err != nil {
					t.Fatal(err)
				}
			}
			if times == "equal times" {
				err := filepath.WalkDir(p.src, func(n string, _ os.DirEntry, err error) error {
					return errors.Join(err, os.Chtimes(n, time.Unix(1e9, 0), time.Unix(1e9, 0)))
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			p.backup().want(t, 0)
			if times == "equal times" {
				p.backup().want(t, 0) // which comes to know the directories, as links need
			}
			for _, r := range [][2]string{{"a/sub", "t"}, {"b/sub", "a/sub"}, {"t", "b/sub"}} {
				if err := os.Rename(d.Path(r[0]), d.Path(r[1])); err != nil {
					t.Fatal(err)
				}
			}
			if run := p.backup().want(t, 0); strings.Contains(run.stderr, "time-out-of-range") {
				t.Errorf("it says\n%s", run)
			}
			fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
		})
	}
}

// TestNamesLikeMarksAreOrdinary: only what jobs leave is hidden.
func TestNamesLikeMarksAreOrdinary(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File(".fsbackup-notes", "x")
	b.File("f", "x")
	p.backup().want(t, 0)
	if s := p.backup().want(t, 0).job(t).Stats; s.FilesCopied != 0 {
		t.Errorf("%d files are copied again", s.FilesCopied)
	}
	out := filepath.Join(t.TempDir(), "out")
	fsb(t, "restore", "-q", p.dst, out).want(t, 0)
	treetest.Same(t, p.src, out)
	if err := os.Remove(b.Path(".fsbackup-notes")); err != nil {
		t.Fatal(err)
	}
	p.backup("--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	treetest.At(t, p.dst).File(".fsbackup-foreign", "x")
	fsb(t, "verify", "-q", p.src, p.dst).want(t, 3)
	p.backup("--delete-extra", "--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
}

func TestAPatternThatKeepsSomethingHasMatched(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("d/c.o", "x")
	b.File("f", "x")
	p.backup().want(t, 0)
	if err := os.RemoveAll(b.Path("d")); err != nil {
		t.Fatal(err)
	}
	if run := p.backup("--exclude", "*.o", "--max-delete", "100%").want(t, 0); strings.Contains(run.stderr, "matched nothing") {
		t.Errorf("it keeps d/c.o, and the run says %q", run.stderr)
	}
	if run := p.backup("--exclude", "*.none", "--max-delete", "100%").want(t, 0); !strings.Contains(run.stderr, "matched nothing") {
		t.Errorf("the run says %q", run.stderr)
	}
}
