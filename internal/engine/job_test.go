package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

func TestOpenJobRefusesBadRoots(t *testing.T) {
	g := newRig(t)
	f := g.write("file", "x")
	for name, tc := range map[string]struct {
		change func(s *JobSpec)
		kind   fault.Kind
		text   string
	}{
		"missing source":        {func(s *JobSpec) { s.Source += "/missing" }, fault.NotFound, "source root"},
		"source is a file":      {func(s *JobSpec) { s.Source = f }, fault.NotFound, "must be a directory"},
		"relative":              {func(s *JobSpec) { s.Source = "src" }, fault.Invalid, "absolute"},
		"missing destination":   {func(s *JobSpec) { s.Destination += "/missing" }, fault.NotFound, "destination root"},
		"missing parent":        {func(s *JobSpec) { s.Destination += "/a/b"; s.CreateDest = true }, fault.NotFound, "parent directory"},
		"no id":                 {func(s *JobSpec) { s.ID = "" }, fault.Invalid, "ID"},
		"negative threads":      {func(s *JobSpec) { s.Threads = -1 }, fault.Invalid, "threads"},
		"trim prefix leads out": {func(s *JobSpec) { s.Trim = "a/../b" }, fault.Invalid, "trim"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := g.spec
			tc.change(&spec)
			_, err := g.e.OpenJob(spec)
			if !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	g.spec.Destination += "/made"
	g.spec.CreateDest = true
	g.run(g.batch(1, g.copyOf("file")))
	if read(t, filepath.Join(g.dst, "made/file")) != "x" {
		t.Error("not made")
	}
}

func TestNegativeLimitsAreRefused(t *testing.T) {
	if _, err := New(Config{Memory: -1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestRootsAndChecks(t *testing.T) {
	g := newRig(t)
	via := filepath.Join(t.TempDir(), "via")
	must(t, os.Symlink(g.dst, via))
	g.spec.Destination = via
	open := func() *Job {
		j, err := g.e.OpenJob(g.spec)
		must(t, err)
		t.Cleanup(func() { must(t, j.Close()) })
		return j
	}
	j := open()
	_, dst := j.Roots()
	if dst.Path != via || dst.Real != g.dst || dst.Inode != inode(t, g.dst) || dst.FSType == 0 {
		t.Errorf("%+v", dst)
	}
	must(t, j.CheckRoots())
	t.Run("replaced", func(t *testing.T) {
		must(t, os.Rename(g.src, g.src+"2"))
		must(t, os.Mkdir(g.src, 0o755))
		if err := j.CheckRoots(); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "source root") {
			t.Errorf("%v", err)
		}
		must(t, os.Remove(g.src))
		if err := j.CheckRoots(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
		must(t, os.Rename(g.src+"2", g.src))
		must(t, j.CheckRoots())
	})
	t.Run("mounted over", func(t *testing.T) {
		mountTmpfs(t, g.dst, "")
		if err := j.CheckRoots(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
		over := open()
		must(t, over.CheckRoots())
		must(t, unix.Unmount(g.dst, unix.MNT_DETACH))
		must(t, j.CheckRoots())
		if err := over.CheckRoots(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("unmounted: %v", err)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		must(t, os.Remove(g.dst))
		if err := j.CheckRoots(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
	})
}

func TestNonce(t *testing.T) {
	g := newRig(t)
	when := unix.Timespec{Sec: 1500000000, Nsec: 5}
	setTimes(t, g.dst, when, when)
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	has := func(want bool) {
		t.Helper()
		got, err := j.HasNonce("abc-1")
		must(t, err)
		if got != want {
			t.Errorf("has nonce: %v", got)
		}
	}
	has(false)
	must(t, j.PutNonce("abc-1"))
	must(t, j.PutNonce("abc-1"))
	has(true)
	must(t, j.RemoveNonce("abc-1"))
	must(t, j.RemoveNonce("abc-1"))
	has(false)
	if st := lstat(t, g.dst); st.Mtim != when || st.Atim != when {
		t.Error("the root's times changed")
	}
	for _, bad := range []string{"", "a/b", "..", "a\x00", strings.Repeat("x", 200)} {
		if err := j.PutNonce(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSync(t *testing.T) {
	for _, s := range []Sync{SyncBatch, SyncNone, SyncFile} {
		g := newRig(t)
		g.spec.Sync = s
		g.zoo()
		mountTmpfs(t, filepath.Join(g.dst, "d1"), "")
		copies, _ := g.scan()
		j, err := g.e.OpenJob(g.spec)
		must(t, err)
		o, err := j.Run(t.Context(), g.batch(1, copies...), nil)
		must(t, err)
		wantFailures(t, o)
		must(t, j.Sync(t.Context()))
		want := 2 // the root's file system and the one mounted beneath it
		if s == SyncNone {
			want = 0
		}
		if len(j.syncFDs) != want {
			t.Errorf("sync %d: %d file systems are held, want %d", s, len(j.syncFDs), want)
		}
		must(t, j.Close())
	}
}

func TestMemoryAndThreadLimitsHold(t *testing.T) {
	g := newRig(t)
	e, err := New(Config{ReadThreads: 3, WriteThreads: 2, Memory: 1 << 20})
	must(t, err)
	defer func() { must(t, e.Close()) }()
	g.e = e
	g.spec.Memory = 300 << 10 // one buffer
	for _, p := range []string{"a", "b", "c", "d/e", "d/f"} {
		g.write(p, strings.Repeat("x", 300<<10))
	}
	g.backup()
	g.same()
	if made := len(e.bufs.make); made != 1 {
		t.Errorf("%d buffers made, want 1", made)
	}
	if cap(newBuffers(1).free) != 1 || newBuffers(1).size != smallestBuf {
		t.Error("a tiny budget must still give one buffer")
	}
}
