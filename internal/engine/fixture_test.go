package engine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
)

func TestMain(m *testing.M) {
	if isDriver {
		if err := drive(os.Getenv(driverEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if names := os.Getenv(swapEnv); names != "" {
		swap(names)
		return
	}
	if os.Getenv(asUserEnv) != "" {
		m.Run() // the child of an ordinary user: its parent checks for leaks
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		removeDriver()
		os.Exit(code)
	}))
}

// long reports whether the tests take their full form, which `make long` asks
// for: every round and every system call, where the usual form takes a part.
func long() bool { return os.Getenv("FSBACKUP_LONG") != "" }

// bench is a source and a destination tree with an engine between them.
type rig struct {
	t        testing.TB
	src, dst string
	e        *Engine
	spec     JobSpec
	n        uint64
}

// newRig puts both trees in memory: what tests prove of the engine does not depend
// on the file system, except where they ask for one, and there are slow ones.
func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, shm(t))
}

// newRigIn puts both trees in base.
func newRigIn(t testing.TB, base string) *rig {
	t.Helper()
	g := &rig{t: t, src: filepath.Join(base, "src"), dst: filepath.Join(base, "dst")}
	for _, d := range []string{g.src, g.dst} {
		must(t, os.MkdirAll(d, 0o755))
	}
	e, err := New(Config{})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	g.e = e
	g.spec = JobSpec{ID: "job-" + t.Name(), Source: g.src, Destination: g.dst, WriteMeta: true, Sync: SyncNone}
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run executes a batch as a job of its own.
func (g *rig) run(b *Batch) *Outcome {
	g.t.Helper()
	out, err := g.try(b, nil)
	must(g.t, err)
	return out
}

func (g *rig) try(b *Batch, guard Guard) (*Outcome, error) {
	g.t.Helper()
	j, err := g.e.OpenJob(g.spec)
	must(g.t, err)
	defer func() { must(g.t, j.Close()) }()
	return j.Run(context.Background(), b, guard)
}

// batch makes a batch of a fresh shard number.
func (g *rig) batch(phase uint8, entries ...Entry) *Batch {
	g.n++
	for i := range entries {
		entries[i].Line = uint64(i + 14)
	}
	return &Batch{Phase: phase, N: g.n, Attempt: AttemptID{Sequence: g.n, Delivery: 1}, Entries: entries}
}

// meta returns the record of the source object at p, as a scan would write it.
func (g *rig) meta(p string) *entry.Meta {
	g.t.Helper()
	return metaOf(g.t, filepath.Join(g.src, p))
}

func metaOf(t testing.TB, p string) *entry.Meta {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	return &entry.Meta{Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Inode: st.Ino, Size: uint64(st.Size),
		Rdev: st.Rdev, Atime: st.Atim.Sec, Mtime: st.Mtim.Sec, Ctime: st.Ctim.Sec}
}

// copyOf returns the copy entry of the source object at p.
func (g *rig) copyOf(p string) Entry {
	g.t.Helper()
	m := g.meta(p)
	op := entry.OpCopy
	if fsys.Type(m.Mode) == unix.S_IFDIR {
		op = entry.OpMkdir
	}
	return Entry{Op: op, Mode: "bm", Path: p, Meta: m}
}

// scan returns the copy entries of the whole source and the finish entries of
// its directories.
func (g *rig) scan() (copies, finishes []Entry) {
	g.t.Helper()
	must(g.t, filepath.WalkDir(g.src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, g.src), "/")
		e := g.copyOf(rel)
		copies = append(copies, e)
		if d.IsDir() {
			e.Op = entry.OpFinish
			finishes = append(finishes, e)
		}
		return nil
	}))
	return copies, finishes
}

// backup copies and finishes the whole source.
func (g *rig) backup() (copied, finished *Outcome) {
	g.t.Helper()
	copies, finishes := g.scan()
	copied = g.run(g.batch(1, copies...))
	finished = g.run(g.batch(6, finishes...))
	for _, o := range []*Outcome{copied, finished} {
		for _, f := range o.Failures {
			g.t.Errorf("failure: %+v", f)
		}
	}
	return copied, finished
}

func (g *rig) write(p, content string) string {
	g.t.Helper()
	return put(g.t, filepath.Join(g.src, p), content)
}

func (g *rig) target(p, content string) string {
	g.t.Helper()
	return put(g.t, filepath.Join(g.dst, p), content)
}

func put(t testing.TB, p, content string) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(t, os.WriteFile(p, []byte(content), 0o644))
	return p
}

func read(t testing.TB, p string) string {
	t.Helper()
	b, err := os.ReadFile(p)
	must(t, err)
	return string(b)
}

// listing describes a tree: one line per object with all that a copy keeps.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{} // first name of each inode
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, root)
		lines = append(lines, rel+" "+describe(t, p, rel, inodes))
		return nil
	}))
	sort.Strings(lines)
	return lines
}

func describe(t testing.TB, p, rel string, inodes map[uint64]string) string {
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	s := fmt.Sprintf("mode=%o uid=%d gid=%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	kind := fsys.Type(st.Mode)
	switch kind {
	case unix.S_IFREG:
		s += fmt.Sprintf(" size=%d data=%x", st.Size, hash(t, p))
	case unix.S_IFLNK:
		to, err := os.Readlink(p)
		must(t, err)
		s += fmt.Sprintf(" to=%q", to)
	case unix.S_IFBLK, unix.S_IFCHR:
		s += fmt.Sprintf(" rdev=%x", st.Rdev)
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		first, ok := inodes[st.Ino]
		if !ok {
			first = rel
			inodes[st.Ino] = rel
		}
		s += fmt.Sprintf(" nlink=%d with=%q", st.Nlink, first)
	}
	fd, err := unix.Open(p, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	n := fsys.Node{FD: fd, Path: true}
	names, err := n.Listxattr()
	if err != nil {
		return s
	}
	sort.Strings(names)
	for _, name := range names {
		v, err := n.Getxattr(name)
		must(t, err)
		s += fmt.Sprintf(" %s=%x", name, v)
	}
	return s
}

func hash(t testing.TB, p string) []byte {
	b, err := os.ReadFile(p)
	must(t, err)
	h := sha256.Sum256(b) // much faster under the race detector than a loop
	return h[:8]
}

// same fails if the trees differ.
func (g *rig) same() {
	g.t.Helper()
	if diff := cmp.Diff(listing(g.t, g.src), listing(g.t, g.dst)); diff != "" {
		g.t.Errorf("source (-) and destination (+) differ:\n%s", diff)
	}
}

// noTemps fails if a temporary name is left beneath root.
func noTemps(t testing.TB, root string) {
	t.Helper()
	for _, l := range listing(t, root) {
		if strings.Contains(l, "/.fsb-") {
			t.Errorf("temporary left: %s", l)
		}
	}
}

func (g *rig) wantCounts(got *Outcome, want entry.Counts) {
	g.t.Helper()
	got.Counts.HoleBytes, got.Counts.ReflinkBytes = 0, 0
	if diff := cmp.Diff(want, got.Counts); diff != "" {
		g.t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func wantFailures(t testing.TB, o *Outcome, paths ...string) {
	t.Helper()
	var got []string
	for _, f := range o.Failures {
		got = append(got, f.Path)
	}
	if diff := cmp.Diff(paths, got); diff != "" {
		t.Errorf("failed paths (-want +got):\n%s\n%+v", diff, o.Failures)
	}
}

// countdown is a guard that gives err from its n-th check on.
type countdown struct {
	left atomic.Int64
	err  error
}

func newCountdown(n int64, err error) *countdown {
	c := &countdown{err: err}
	c.left.Store(n)
	return c
}

func (c *countdown) Check() error {
	if c.left.Add(-1) < 0 {
		return c.err
	}
	return nil
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
