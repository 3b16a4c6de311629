package main

import (
	"errors"
	"fmt"
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
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// verified holds the statistics of a verify job against the tree that it compared.
func verified(t *testing.T, v protocol.JobView, f treetest.Figures, change func(*protocol.Stats)) {
	t.Helper()
	s := v.Stats
	want := protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsVerified: f.Dirs, FilesVerified: f.Files, BytesVerified: f.Bytes,
		BytesPerSec: s.BytesPerSec, ShardsRepeated: s.ShardsRepeated,
	}
	if change != nil {
		change(&want)
	}
	if s != want {
		t.Errorf("statistics\n got %+v\nwant %+v", s, want)
	}
}

// harm are changes of a tree below a backup, one a kind, that leave everything
// else as it was.
type harm struct {
	flipped, mode, xattr, missing, extra string
	sizes                                map[string]uint64
}

// doHarm flips a byte with size and time put back, gives a wrong mode and a wrong
// attribute, removes a file and adds one.
func doHarm(t *testing.T, dir string, r *rand.Rand) harm {
	t.Helper()
	var files, dirs []treetest.Entry
	for _, e := range treetest.Listing(t, dir) {
		switch {
		case e.Type == syscall.S_IFDIR && e.Mode&0o700 == 0o700:
			dirs = append(dirs, e)
		case e.Type == syscall.S_IFREG && e.Group == "" && e.Size > 0 && e.Mode&0o600 == 0o600:
			files = append(files, e)
		}
	}
	r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	h := harm{sizes: map[string]uint64{}}
	b := treetest.At(t, dir)
	for i, p := range []*string{&h.flipped, &h.mode, &h.xattr, &h.missing} {
		*p = files[i].Path
		h.sizes[*p] = uint64(files[i].Size)
	}
	back := func(path string, f func() error) {
		t.Helper()
		var st syscall.Stat_t
		err := syscall.Lstat(b.Path(path), &st)
		if err = errors.Join(err, f()); err != nil {
			t.Fatal(err)
		}
		b.Times(path, time.Unix(st.Mtim.Unix()))
	}
	back(h.flipped, func() error {
		f, err := os.OpenFile(b.Path(h.flipped), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		at := r.Int64N(files[0].Size)
		var c [1]byte
		_, err = f.ReadAt(c[:], at)
		c[0] ^= 1 << r.IntN(8)
		_, werr := f.WriteAt(c[:], at)
		return errors.Join(err, werr, f.Close())
	})
	back(h.mode, func() error { return unix.Fchmodat(unix.AT_FDCWD, b.Path(h.mode), files[1].Mode^0o010, 0) })
	back(h.xattr, func() error { return unix.Lsetxattr(b.Path(h.xattr), "user.wrong", []byte("w"), 0) })
	back(filepath.Dir(h.missing), func() error { return os.Remove(b.Path(h.missing)) })
	in := dirs[r.IntN(len(dirs))].Path
	h.extra = filepath.Join(in, "extra, not in the source")
	back(in, func() error { return os.WriteFile(b.Path(h.extra), []byte("x"), 0o644) })
	return h
}

// paths are what a verify job must name.
func (h harm) paths() []string {
	p := []string{h.flipped, h.mode, h.xattr, h.missing, h.extra}
	slices.Sort(p)
	return p
}

// counted is what the harm does to the statistics of a tree that is the same.
func (h harm) counted(s *protocol.Stats) {
	s.FilesDiffer, s.FilesFailed, s.Extra = 4, 4, 1
	s.FilesVerified -= 4
	for _, n := range h.sizes {
		s.BytesVerified -= n
	}
}

// says are what is said of each.
func (h harm) says() map[string]string {
	return map[string]string{
		h.flipped: "contents differ from byte ", h.mode: "mode is 0", h.xattr: `has the attribute user.wrong, which is "w"`,
		h.missing: "is missing in the destination", h.extra: "extra: a file that the source does not have",
	}
}

// entries is how many a test's tree has: n, or what the environment says.
func entries(t *testing.T, n int) int {
	t.Helper()
	if s := os.Getenv("FSBACKUP_VERIFY_ENTRIES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestVerifyFindsExactlyWhatDiffers in a tree of everything; with
// FSBACKUP_VERIFY_ENTRIES of so many entries.
func TestVerifyFindsExactlyWhatDiffers(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	treetest.Nasty(t, filepath.Join(src, "nasty"))
	treetest.Random(t, filepath.Join(src, "random"), 3, entries(t, 1500))
	fsb(t, "backup", "-q", "--no-state", "--sync", "none", src, dst).want(t, 0)
	want := treetest.Listing(t, src)
	figures := treetest.Count(want)
	t.Logf("%+v", figures)

	verified(t, fsb(t, "verify", "--json", src, dst).want(t, 0).job(t), figures, nil)

	h := doHarm(t, dst, rand.New(rand.NewPCG(uint64(len(want)), 2)))
	before := treetest.Listing(t, dst)
	r := fsb(t, "verify", "--json", "--shard-entries", "700", src, dst).want(t, 3)
	verified(t, r.job(t), figures, h.counted)
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d differences are told, want 5:\n%s", len(lines), r.stderr)
	}
	for path, says := range h.says() {
		i := slices.IndexFunc(lines, func(l string) bool {
			return strings.HasPrefix(l, fmt.Sprintf("%q: verify: %s", strings.ToValidUTF8(path, "�"), says)) || strings.HasPrefix(l, fmt.Sprintf("%q: verify: %s", path, says))
		})
		if i < 0 {
			t.Errorf("nothing says %q of %q:\n%s", says, path, r.stderr)
			continue
		}
		if strings.Contains(lines[i], "control_") {
			t.Errorf("a control file is named that nobody has seen: %s", lines[i])
		}
	}
	t.Logf("%s", r.stderr)
	// For people the same.
	r = fsb(t, "verify", src, dst).want(t, 3)
	if !strings.Contains(r.stdout, "4 files differ, 1 extra name") || !strings.Contains(r.stdout, "extra names in the destination: 1") {
		t.Errorf("summary:\n%s", r.stdout)
	}
	t.Logf("%s", r.stdout)
	// Nothing was changed in either.
	for dir, was := range map[string][]treetest.Entry{src: want, dst: before} {
		is := treetest.Listing(t, dir)
		if d := treetest.Diff(was, is); len(d) > 0 {
			t.Errorf("verifying changed %s:\n%s", dir, strings.Join(d, "\n"))
		}
		for i := range is {
			if i < len(was) && is[i].CtimeNS != was[i].CtimeNS {
				t.Errorf("verifying touched %q in %s", is[i].Path, dir)
			}
		}
	}
}

// TestClusterVerifiesAReadOnlyDestination over three workers, none of which may
// leave anything in it; what is told is told by the failures of the job.
func TestClusterVerifiesAReadOnlyDestination(t *testing.T) {
	if !treetest.Root() {
		t.Skip("a read-only mount needs root")
	}
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Nasty(t, filepath.Join(src, "nasty"))
	treetest.Random(t, filepath.Join(src, "random"), 4, 1500)
	fsb(t, "backup", "-q", "--no-state", "--sync", "none", src, dst).want(t, 0)
	figures := treetest.Count(treetest.Listing(t, src))
	h := doHarm(t, dst, rand.New(rand.NewPCG(4, 2)))
	if out, err := exec.Command("mount", "--bind", dst, dst).CombinedOutput(); err != nil {
		t.Skipf("needs to mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dst).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	if out, err := exec.Command("mount", "-o", "remount,bind,ro", dst).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	flag := cluster(t, 3, filepath.Dir(src), filepath.Dir(dst))
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	shares(t, func(int) protocol.JobView {
		v := fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "40", "--verify-only", "--wait", "--json").want(t, 3).job(t)
		verified(t, v, figures, h.counted)
		return v
	})
	var told []string
	for l := range strings.Lines(fsb(t, "failures", flag, "last", "--json").want(t, 0).stdout) {
		var f protocol.FailureView
		if err := rawjson.Unmarshal([]byte(l), &f); err != nil {
			t.Fatal(err)
		}
		path := f.Path
		told = append(told, path)
		if f.Op != "verify" || f.Phase != protocol.PhaseVerify || f.Line == 0 || !strings.Contains(f.ControlFile, "control_") || !strings.Contains(f.Reason, h.says()[path]) {
			t.Errorf("failure %+v", f)
		}
	}
	slices.Sort(told)
	if !slices.Equal(told, h.paths()) {
		t.Errorf("told are %q, want %q", told, h.paths())
	}
}

// TestVerifyTakesNoWorkerThatSeesAnotherMount although nothing may be left in the
// destination to prove it by.
func TestVerifyTakesNoWorkerThatSeesAnotherMount(t *testing.T) {
	if !treetest.Root() {
		t.Skip("a mount namespace of its own for a worker needs root")
	}
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Random(t, src, 22, 600)
	fsb(t, "backup", "-q", "--no-state", "--sync", "none", src, dst).want(t, 0)
	flag := cluster(t, 1, filepath.Dir(src), filepath.Dir(dst))
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	v := withStray(t, flag, src, dst, scan, "--verify-only")
	verified(t, v, treetest.Count(treetest.Listing(t, src)), nil)
	if v.Workers["stray"] != 0 {
		t.Errorf("shards were answered by %v: the stray worker compared another mount", v.Workers)
	}
}

func TestVerifyOfDirectoryTimesAlone(t *testing.T) {
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Random(t, src, 5, 200)
	fsb(t, "backup", "-q", "--no-state", src, dst).want(t, 0)
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	times, err := filepath.Glob(filepath.Join(scan, "ctrl", "mtime_*"))
	if err != nil || len(times) == 0 { // names with a line end have one of their own
		t.Fatal(times, err)
	}
	args := []string{"run", "--source", src, "--destination", dst, "--verify-only", "--json"}
	for _, path := range times {
		args = append(args, "--control", path)
	}
	run := func(code int) protocol.Stats { return fsb(t, args...).want(t, code).job(t).Stats }
	dirs := treetest.Count(treetest.Listing(t, src)).Dirs
	if s := run(0); s.DirsToBackup != dirs || s.DirsVerified != dirs || s.DirsCopied != 0 {
		t.Errorf("statistics %+v, %d directories", s, dirs)
	}
	treetest.At(t, dst).Times("", time.Unix(1, 0))
	if s := run(3); s.DirsVerified != dirs-1 || s.DirsDiffer != 1 || s.DirsFailed != 1 {
		t.Errorf("statistics %+v, %d directories", s, dirs)
	}
}

func TestVerifyKeepsOutOfWhatIsExcludedAndNames(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	b := treetest.At(t, src)
	b.File("kept/f", "x")
	b.File("cache/f", "x")
	fsb(t, "backup", "-q", "--no-state", "--exclude", "cache/f", src, dst).want(t, 0)
	fsb(t, "verify", "-q", "--exclude", "cache/f", src, dst).want(t, 0)
	fsb(t, "verify", "-q", src, dst).want(t, 3) // it is missing
	// What is excluded now and was copied before is in the source.
	fsb(t, "backup", "-q", "--no-state", src, dst).want(t, 0)
	fsb(t, "verify", "-q", "--exclude", "cache/f", src, dst).want(t, 0)
	// The way it is asked for.
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"no destination":         {[]string{"verify", src, dst + "/none"}, 66},
		"tolerated":              {[]string{"verify", "--max-failures=-1", "-q", src, filepath.Dir(dst)}, 0},
		"metadata left out":      {[]string{"verify", "--no-meta", "-q", src, dst}, 0},
		"unknown way of copying": {[]string{"backup", "--verify", "md5", src, dst}, 64},
	} {
		if r := fsb(t, c.args...); r.code != c.code {
			t.Errorf("%s: want exit code %d, got %v", name, c.code, r)
		}
	}
}

func TestBackupAndRestoreVerifyWhatTheyCopy(t *testing.T) {
	src, dst, out := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "out")
	treetest.Nasty(t, src)
	list := treetest.Listing(t, src)
	figures := treetest.Count(list)
	regular := uint64(0) // files with data of their own
	for _, e := range list {
		if e.Type == syscall.S_IFREG && (e.Group == "" || e.Group == e.Path) {
			regular++
		}
	}
	for _, args := range [][]string{{"backup", "--no-state", src, dst}, {"backup", "--no-state", "--full", src, dst}, {"restore", dst, out}} {
		v := fsb(t, append(args, "--verify", "checksum", "--json")...).want(t, 0).job(t)
		if v.Spec.Verify != protocol.VerifyChecksum {
			t.Errorf("%q: the job's spec is %+v", args, v.Spec)
		}
		s := v.Stats
		if s.FilesVerified != regular || s.BytesVerified != figures.Bytes || s.FilesDiffer != 0 {
			t.Errorf("%q: %d files and %d bytes are verified, want %d and %d", args, s.FilesVerified, s.BytesVerified, regular, figures.Bytes)
		}
		v.Stats.FilesVerified, v.Stats.BytesVerified = 0, 0
		exact(t, v, figures)
	}
	treetest.Same(t, src, dst)
	treetest.Same(t, src, out)
	fsb(t, "verify", "-q", src, out).want(t, 0)
	if r := fsb(t, "backup", "--no-state", "--full", "--verify", "checksum", src, dst); !strings.Contains(r.stdout, fmt.Sprintf("read back and compared: %d files, %d bytes; 0 differ", regular, figures.Bytes)) {
		t.Errorf("summary:\n%s", r)
	}
}
