package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// faultyRig is a rig whose roots are on file systems that can be made to fail.
type faultyRig struct {
	*rig
	src, dst *treetest.FaultyFS
}

func newFaultyRig(t *testing.T) *faultyRig {
	g := newRig(t)
	return &faultyRig{g, treetest.Faulty(t, g.src), treetest.Faulty(t, g.dst)}
}

// each fails every call of the given operation, from the byte at on if it is a
// read or a write.
func each(op string, at int64, f treetest.Fault) func(treetest.Call) treetest.Fault {
	return func(c treetest.Call) treetest.Fault {
		if c.Op != op || c.Offset+int64(c.Size) < at {
			return treetest.Fault{}
		}
		return f
	}
}

// alternating is each for every second call.
func alternating(op string, f treetest.Fault) func(treetest.Call) treetest.Fault {
	var mu sync.Mutex
	n := 0
	return func(c treetest.Call) treetest.Fault {
		if c.Op != op {
			return treetest.Fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n%2 == 0 {
			return treetest.Fault{}
		}
		return f
	}
}

// TestFaultyFileSystems copies from and to file systems that do less than they
// are asked for, and that fail: the copy is right, or the entry fails with path
// and errno, or the batch goes back. What fails leaves the old target as it was,
// and no trace; the next attempt, without faults, makes it right.
func TestFaultyFileSystems(t *testing.T) {
	type faults = treetest.Fault
	const at = 300_000 // within both files
	for _, c := range []struct {
		name     string
		src, dst func(treetest.Call) treetest.Fault
		errno    unix.Errno // each entry fails, or the batch goes back, with this; 0 = the copy is right
		back     bool       // the batch goes back
		op       string     // what failed
	}{
		{name: "short reads", src: each("read", 0, faults{Most: 4099})},
		{name: "very short reads", src: each("read", 0, faults{Most: 700})},
		{name: "short writes", dst: each("write", 0, faults{Most: 4099})},
		{name: "very short writes", dst: each("write", 0, faults{Most: 700})},
		{name: "short both", src: each("read", 0, faults{Most: 10_007}), dst: each("write", 0, faults{Most: 1999})},
		{name: "short when read back", dst: each("read", 0, faults{Most: 4099})},
		{name: "interrupted reads", src: alternating("read", faults{Errno: unix.EINTR})},
		{name: "interrupted writes", dst: alternating("write", faults{Errno: unix.EINTR})},
		{name: "interrupted create", dst: alternating("create", faults{Errno: unix.EINTR})},
		{name: "interrupted rename", dst: alternating("rename", faults{Errno: unix.EINTR})},
		{name: "interrupted fsync", dst: alternating("fsync", faults{Errno: unix.EINTR})},
		{name: "interrupted open", src: alternating("open", faults{Errno: unix.EINTR})},

		{name: "read EIO", src: each("read", at, faults{Errno: unix.EIO}), errno: unix.EIO, op: "read source"},
		{name: "read ENOSPC", src: each("read", at, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, op: "read source"},
		{name: "read ESTALE", src: each("read", at, faults{Errno: unix.ESTALE}), errno: unix.ESTALE, op: "read source"},
		{name: "open EIO", src: each("open", 0, faults{Errno: unix.EIO}), errno: unix.EIO, op: "open source"},
		{name: "open EACCES", src: each("open", 0, faults{Errno: unix.EACCES}), errno: unix.EACCES, op: "open source"},

		{name: "write EIO", dst: each("write", at, faults{Errno: unix.EIO}), errno: unix.EIO, op: "write"},
		{name: "write nothing", dst: each("write", at, faults{None: true}), errno: unix.EIO, op: "write"},
		{name: "write EFBIG", dst: each("write", at, faults{Errno: unix.EFBIG}), errno: unix.EFBIG, op: "write"},
		{name: "write ENOSPC", dst: each("write", at, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, back: true, op: "write"},
		{name: "write EDQUOT", dst: each("write", at, faults{Errno: unix.EDQUOT}), errno: unix.EDQUOT, back: true, op: "write"},
		{name: "write EROFS", dst: each("write", at, faults{Errno: unix.EROFS}), errno: unix.EROFS, back: true, op: "write"},
		{name: "flush EIO", dst: each("flush", 0, faults{Errno: unix.EIO}), errno: unix.EIO, op: "close"},
		{name: "flush ENOSPC", dst: each("flush", 0, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, back: true, op: "close"},
		{name: "flush EDQUOT", dst: each("flush", 0, faults{Errno: unix.EDQUOT}), errno: unix.EDQUOT, back: true, op: "close"},
		{name: "fsync EIO", dst: each("fsync", 0, faults{Errno: unix.EIO}), errno: unix.EIO, op: "sync"},
		{name: "fsync ENOSPC", dst: each("fsync", 0, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, back: true, op: "sync"},
		{name: "create EIO", dst: each("create", 0, faults{Errno: unix.EIO}), errno: unix.EIO, op: "create"},
		{name: "create EMFILE", dst: each("create", 0, faults{Errno: unix.EMFILE}), errno: unix.EMFILE, op: "create"},
		{name: "create ENOSPC", dst: each("create", 0, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, back: true, op: "create"},
		{name: "create EDQUOT", dst: each("create", 0, faults{Errno: unix.EDQUOT}), errno: unix.EDQUOT, back: true, op: "create"},
		{name: "create EROFS", dst: each("create", 0, faults{Errno: unix.EROFS}), errno: unix.EROFS, back: true, op: "create"},
		{name: "rename EIO", dst: each("rename", 0, faults{Errno: unix.EIO}), errno: unix.EIO, op: "rename to"},
		{name: "rename ENOSPC", dst: each("rename", 0, faults{Errno: unix.ENOSPC}), errno: unix.ENOSPC, back: true, op: "rename to"},
		{name: "setattr EIO", dst: each("setattr", 0, faults{Errno: unix.EIO}), errno: unix.EIO},
	} {
		for _, verify := range []Verify{VerifyNone, VerifyChecksum} {
			if strings.HasSuffix(c.name, "read back") && verify == VerifyNone {
				continue
			}
			t.Run(fmt.Sprintf("%s, verify %d", c.name, verify), func(t *testing.T) {
				t.Parallel()
				g := newFaultyRig(t)
				g.spec.Sync, g.spec.Verify = SyncFile, verify
				g.write("small", strings.Repeat("0123456789", 60_000))
				g.write("large", strings.Repeat("0123456789abcdef", 3<<16))
				old := g.target("small", strings.Repeat("old", 1000))
				b := g.batch(1, g.copyOf("small"), g.copyOf("large"))
				g.src.Inject(c.src)
				g.dst.Inject(c.dst)
				o, err := g.try(b, nil)
				g.src.Inject(nil)
				g.dst.Inject(nil)
				switch {
				case c.back:
					if !fault.Is(err, fault.Exhausted) || errnoOf(err) != c.errno || !strings.HasPrefix(err.Error(), c.op) {
						t.Errorf("the batch ends with %v", err)
					}
				case err != nil:
					t.Errorf("the batch ends with %v", err)
				case c.errno != 0:
					wantFailures(t, o, "small", "large")
					for _, f := range o.Failures {
						if f.Errno != int(c.errno) || c.op != "" && f.Op != c.op || !strings.Contains(f.Reason, f.Path) {
							t.Errorf("%+v", f)
						}
					}
				default:
					wantFailures(t, o)
					g.storedRight()
				}
				if c.errno != 0 && read(t, old) != strings.Repeat("old", 1000) {
					t.Error("the old target was altered")
				}
				noTemps(t, g.dst.Stored)
				b.Attempt.Delivery++
				wantFailures(t, g.run(b))
				g.storedRight()
			})
		}
	}
}

// storedRight fails unless the files of the two stores are the same.
func (g *faultyRig) storedRight() {
	g.t.Helper()
	if src, dst := below(g.t, g.src.Stored), below(g.t, g.dst.Stored); !slices.Equal(src, dst) {
		g.t.Errorf("stored of the source:\n%s\nstored of the destination:\n%s", strings.Join(src, "\n"), strings.Join(dst, "\n"))
	}
}

// TestSourceThatEndsEarlyIsNeverCopied: a file that holds less than its size
// says is not padded, and not cut short.
func TestSourceThatEndsEarlyIsNeverCopied(t *testing.T) {
	g := newFaultyRig(t)
	for _, size := range []int{5, 600_000, 3 << 20} {
		p := fmt.Sprintf("f%d", size)
		g.write(p, strings.Repeat("x", size))
		g.src.Inject(each("read", int64(size/2), treetest.Fault{None: true}))
		o := g.run(g.batch(1, g.copyOf(p)))
		g.src.Inject(nil)
		wantFailures(t, o, p)
		for _, f := range o.Failures {
			if f.Kind != uint8(fault.Changed) || f.Op != "read source" || !strings.Contains(f.Reason, "it ends before its size says (it did so each time: the size is not true") {
				t.Errorf("%+v", f)
			}
		}
		if l := below(t, g.dst.Stored); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
	}
}

// requests are the operations of a file system, and the errors that they fail with.
var requests = map[string][]unix.Errno{
	"lookup": {unix.EIO, unix.EMFILE}, "getattr": {unix.EIO}, "opendir": {unix.EIO, unix.EMFILE}, "readdir": {unix.EIO},
	"create": {unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.EIO, unix.EROFS}, "write": {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS},
	"mkdir": {unix.EDQUOT, unix.EIO, unix.ENOSPC, unix.EROFS}, "mknod": {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS},
	"symlink": {unix.EROFS, unix.EDQUOT, unix.ENOSPC, unix.EIO}, "link": {unix.EDQUOT, unix.EIO, unix.ENOSPC, unix.EROFS},
	"rename": {unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO}, "unlink": {unix.EIO, unix.EROFS}, "rmdir": {unix.EROFS, unix.EIO},
	"setattr": {unix.EDQUOT, unix.EIO, unix.EROFS, unix.ENOSPC}, "setxattr": {unix.EDQUOT, unix.EROFS, unix.EIO},
	"flush": {unix.EIO, unix.EDQUOT, unix.ENOSPC}, "fsync": {unix.EIO, unix.EDQUOT, unix.ENOSPC},
}

// faultyInjected is newInjected with its destination on a faulty file system.
func faultyInjected(t *testing.T) (*injected, *treetest.FaultyFS) {
	g := newRigIn(t, shm(t))
	f := treetest.Faulty(t, g.dst)
	in := newInjectedIn(g, false)
	in.stored = f.Stored
	return in, f
}

// faulted runs the batch while fault decides about its requests.
func (in *injected) faulted(f *treetest.FaultyFS, hook func(treetest.Call) treetest.Fault) *driven {
	j, err := in.e.OpenJob(in.spec)
	must(in.t, err)
	defer func() { must(in.t, j.Close()) }()
	d := &driven{}
	f.Inject(hook)
	d.Outcome, err = j.Run(in.t.Context(), in.batch, nil)
	f.Inject(nil)
	if err != nil {
		d.Err, d.Kind = err.Error(), fault.KindOf(err)
	}
	return d
}

// TestEachRequestToAFileSystemFails is TestEachSystemCallFails for a destination
// that fails by itself, so that each error comes the way that the kernel gives it
// to callers.
func TestEachRequestToAFileSystemFails(t *testing.T) {
	in, f := faultyInjected(t)
	var mu sync.Mutex
	counts := map[string]int{} // guarded by mu
	if d := in.faulted(f, func(c treetest.Call) treetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		counts[c.Op]++
		return treetest.Fault{}
	}); d.Err != "" || len(d.Outcome.Failures) > 0 {
		t.Fatalf("undisturbed: %+v", d)
	}
	in.right("undisturbed")
	mu.Lock()
	counts = maps.Clone(counts) // the kernel may still ask for something
	mu.Unlock()
	results := map[string]int{} // guarded by mu
	met := 0
	t.Run("at", func(t *testing.T) {
		for op, errnos := range requests {
			if counts[op] == 0 {
				t.Errorf("no %s was asked for", op)
			}
			for n := range counts[op] {
				for i, errno := range errnos {
					if !long() && (i != n%len(errnos) || n >= 2*len(errnos)) {
						continue
					}
					met++
					what := fmt.Sprintf("%s %d %s", op, n, unix.ErrnoName(errno))
					t.Run(what, func(t *testing.T) {
						t.Parallel()
						in, f := faultyInjected(t)
						d := in.faulted(f, nth(op, n, treetest.Fault{Errno: errno}))
						result := in.judge(what, errno, d)
						mu.Lock()
						defer mu.Unlock()
						results[result]++
					})
				}
			}
		}
	})
	t.Logf("%d requests failed: %v", met, results)
}

// nth is a fault of the n-th call of op, from 0.
func nth(op string, n int, f treetest.Fault) func(treetest.Call) treetest.Fault {
	var mu sync.Mutex
	return func(c treetest.Call) treetest.Fault {
		if c.Op != op {
			return treetest.Fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		if n--; n == -1 {
			return f
		}
		return treetest.Fault{}
	}
}

// TestEachRequestThatHangsIsNamed has one request of each kind hang: the entry
// that waits for it is named, and right once it goes on.
func TestEachRequestThatHangsIsNamed(t *testing.T) {
	for _, side := range []string{"source", "destination"} {
		ops := map[string][]string{
			"source":      {"lookup", "getattr", "open", "read"},
			"destination": {"lookup", "getattr", "create", "write", "setattr", "fsync", "flush", "rename"},
		}[side]
		for _, op := range ops {
			t.Run(side+" "+op, func(t *testing.T) {
				t.Parallel()
				g := newFaultyRig(t)
				g.spec.Sync = SyncFile
				g.write("f", "new")
				g.target("f", "old")
				j, err := g.e.OpenJob(g.spec)
				must(t, err)
				defer func() { must(t, j.Close()) }()
				b := g.batch(1, g.copyOf("f"))
				fs := map[string]*treetest.FaultyFS{"source": g.src, "destination": g.dst}[side]
				met := make(chan struct{})
				hang := nth(op, 0, treetest.Fault{Hang: true})
				fs.Inject(func(c treetest.Call) treetest.Fault {
					f := hang(c)
					if f.Hang {
						close(met)
					}
					return f
				})
				began := time.Now()
				var o *Outcome
				var wg sync.WaitGroup
				wg.Go(func() { o, err = j.Run(t.Context(), b, nil) })
				<-met // on a busy machine it may have seemed to hang before
				l := g.hung(1, 50*time.Millisecond)
				if len(l) != 1 || l[0].Job != g.spec.ID || l[0].Doing != "copy" || l[0].Path != "f" || l[0].Since.Before(began) {
					t.Errorf("%+v", l)
				}
				if got, err := os.ReadFile(filepath.Join(g.dst.Stored, "f")); err != nil || string(got) != "old" {
					t.Errorf("while it hangs the target is %q, %v", got, err)
				}
				fs.Thaw()
				wg.Wait()
				must(t, err)
				wantFailures(t, o)
				g.storedRight()
			})
		}
	}
}

// TestSyncOfAFaultyDisk has the disk below the destination hang, and then lose
// what it was to keep: the sync that hangs is named, as soon as its patience is
// over, and the one that fails gives back all that it was to cover.
func TestSyncOfAFaultyDisk(t *testing.T) {
	dir, disk := treetest.OnFaultyDisk(t)
	g := newRig(t)
	g.spec.Sync, g.spec.Destination, g.dst = SyncBatch, dir, dir
	g.write("f", "new")
	g.write("g", "new")
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	write := func(p string) {
		o, err := j.Run(t.Context(), g.batch(1, g.copyOf(p)), nil)
		must(t, err)
		wantFailures(t, o)
	}
	write("f")
	met := make(chan struct{})
	var once sync.Once
	disk.Inject(func(c treetest.Call) treetest.Fault {
		if c.Op != "fsync" {
			return treetest.Fault{}
		}
		once.Do(func() { close(met) })
		return treetest.Fault{Hang: true}
	})
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- j.Sync(t.Context()) }()
	<-met
	l := g.hung(1, 50*time.Millisecond)
	if len(l) != 1 || l[0].Job != g.spec.ID || l[0].Doing != "sync" || l[0].Path != dir || l[0].Since.Before(began) {
		t.Errorf("%+v", l)
	}
	disk.Thaw()
	must(t, <-done)

	write("g")
	disk.Inject(each("fsync", 0, treetest.Fault{Errno: unix.EIO}))
	err = j.Sync(t.Context())
	if !fault.Is(err, fault.Transient) || errnoOf(err) != unix.EIO || !strings.Contains(err.Error(), dir) {
		t.Errorf("the sync ends with %v", err)
	}
}

// TestFilesAreLimitedInSize runs a batch in a process that may make no file
// larger than half a MiB: those that are fail with the reason, and the signal
// that comes with it ends nothing.
func TestFilesAreLimitedInSize(t *testing.T) {
	in := newInjected(t, false)
	exe, err := driverExe()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "ulimit -f 1024; exec "+exe)
	cmd.Env = append(os.Environ(), driverEnv+"="+in.file)
	out, err := cmd.Output()
	must(t, err)
	var d driven
	must(t, json.Unmarshal([]byte(strings.TrimPrefix(string(out), beginMark)), &d))
	if d.Err != "" || d.Outcome == nil {
		t.Fatalf("%+v", d)
	}
	wantFailures(t, d.Outcome, "large", "sparse")
	if result := in.judge("limited", unix.EFBIG, &d); result != "entry fails" {
		t.Errorf("%s: %+v", result, d.Outcome)
	}
}

// TestAttributeWithoutRoomIsCounted: ENOSPC for one attribute says nothing about
// the file system as a whole, as long as that has room: the loss is counted.
func TestAttributeWithoutRoomIsCounted(t *testing.T) {
	g := newFaultyRig(t)
	must(t, unix.Setxattr(g.write("f", "x"), "user.colour", []byte("red"), 0))
	b := g.batch(1, g.copyOf("f"))
	noRoom := each("setxattr", 0, treetest.Fault{Errno: unix.ENOSPC})
	g.dst.Inject(noRoom)
	o := g.run(b)
	wantFailures(t, o)
	if len(o.Warnings) != 1 || o.Warnings[0] != (Warning{Kind: WarnXattrTooLarge, Count: 1, Example: "f"}) {
		t.Errorf("%+v", o.Warnings)
	}
}

// TestWhatNoOtherAttemptWritesAgainIsSynced counts syncs of single files.
func TestWhatNoOtherAttemptWritesAgainIsSynced(t *testing.T) {
	for _, tc := range []struct {
		name    string
		spec    func(*JobSpec)
		mode    string
		present bool
		want    int
	}{
		{"contents", func(*JobSpec) {}, "bm", false, 0},
		{"contents, if older", func(s *JobSpec) { s.Replace = ReplaceIfOlder }, "bm", false, 0},
		{"contents of a group, if older", func(s *JobSpec) { s.Replace = ReplaceIfOlder }, "group", false, 1},
		{"contents of a group", func(*JobSpec) {}, "group", false, 0},
		{"contents, if older, without metadata", func(s *JobSpec) { s.Replace, s.WriteMeta = ReplaceIfOlder, false }, "bm", false, 1},
		{"contents, without metadata", func(s *JobSpec) { s.WriteMeta = false }, "bm", false, 0},
		{"metadata only, missing target", func(*JobSpec) {}, "mm", false, 1},
		{"metadata only, missing target, no sync", func(s *JobSpec) { s.Sync = SyncNone }, "mm", false, 0},
		{"metadata only, in place", func(*JobSpec) {}, "mm", true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newFaultyRig(t)
			g.spec.Sync = SyncBatch
			g.write("f", "data")
			if tc.present {
				g.backup()
			}
			var syncs atomic.Int32
			g.dst.Inject(func(c treetest.Call) treetest.Fault {
				if c.Op == "fsync" {
					syncs.Add(1)
				}
				return treetest.Fault{}
			})
			tc.spec(&g.spec)
			e := g.copyOf("f")
			if e.Mode = tc.mode; tc.mode == "group" {
				e.Mode, e.Op, e.Group = "bm", entry.OpLink, 1
			}
			if o := g.run(g.batch(1, e)); o.Counts.FilesCopied != 1 {
				t.Errorf("counted %+v", o.Counts)
			}
			if n := int(syncs.Load()); n != tc.want {
				t.Errorf("%d syncs, want %d", n, tc.want)
			}
		})
	}
}
