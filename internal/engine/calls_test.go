package engine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// The system calls of an entry are counted where they are made: this process traces
// another that executes a batch, as a debugger does. So nothing in the engine counts,
// and no call can be forgotten.

// runtimeCalls are those that Go's runtime makes for itself. All others are the engine's.
var runtimeCalls = map[uint64]bool{
	unix.SYS_FUTEX: true, unix.SYS_MADVISE: true, unix.SYS_MMAP: true, unix.SYS_MUNMAP: true, unix.SYS_MPROTECT: true, unix.SYS_SCHED_YIELD: true,
	unix.SYS_NANOSLEEP: true, unix.SYS_CLOCK_GETTIME: true, unix.SYS_GETTIMEOFDAY: true, unix.SYS_RT_SIGPROCMASK: true, unix.SYS_RT_SIGACTION: true, unix.SYS_RT_SIGRETURN: true,
	unix.SYS_SIGALTSTACK: true, unix.SYS_TGKILL: true, unix.SYS_GETPID: true, unix.SYS_GETTID: true, unix.SYS_CLONE: true, unix.SYS_CLONE3: true,
	unix.SYS_EPOLL_PWAIT: true, unix.SYS_PRCTL: true, unix.SYS_MINCORE: true, unix.SYS_RESTART_SYSCALL: true, unix.SYS_SCHED_GETAFFINITY: true,
}

// callNames are what people read in place of numbers.
var callNames = map[uint64]string{
	unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE: "close", unix.SYS_STATX: "statx", unix.SYS_FSTAT: "fstat",
	unix.SYS_PREAD64: "pread", unix.SYS_PWRITE64: "pwrite", unix.SYS_READ: "read", unix.SYS_WRITE: "write", unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_UTIMENSAT: "utimensat", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_RENAMEAT2: "renameat2", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_READLINKAT: "readlinkat",
	unix.SYS_FLISTXATTR: "flistxattr", unix.SYS_LISTXATTR: "listxattr", unix.SYS_GETXATTR: "getxattr", unix.SYS_FGETXATTR: "fgetxattr",
	unix.SYS_REMOVEXATTR: "removexattr", unix.SYS_FREMOVEXATTR: "fremovexattr", unix.SYS_SETXATTR: "setxattr", unix.SYS_FSETXATTR: "fsetxattr",
	unix.SYS_GETDENTS64: "getdents", unix.SYS_LSEEK: "lseek", unix.SYS_FSTATFS: "fstatfs", unix.SYS_IOCTL: "ioctl", unix.SYS_FSYNC: "fsync", unix.SYS_NEWFSTATAT: "fstatat",
}

// syscallEntry is the beginning of struct ptrace_syscall_info, which is the same on all
// architectures.
type syscallEntry struct {
	op   uint8 // 1 = entry
	_    [3]byte
	_    uint32
	_    [2]uint64
	nr   uint64
	args [6]uint64
	_    [2]uint64
}

const getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO, of Linux 5.3

// traced executes a batch in a process of its own, as a worker does but in one thread, and
// returns which system calls it made, and what became of it.
func traced(t *testing.T, spec JobSpec, batch *Batch) (map[uint64]int, *driven) {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(driven{Spec: spec, Batch: batch, UmaskZero: true})
	must(t, err)
	file := filepath.Join(dir, "batch")
	must(t, os.WriteFile(file, data, 0o600))
	exe, err := driverExe()
	must(t, err)
	out, err := os.Create(filepath.Join(dir, "out"))
	must(t, err)
	defer func() { must(t, out.Close()) }()
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	p, err := os.StartProcess(exe, []string{exe}, &os.ProcAttr{
		Env:   append(os.Environ(), driverEnv+"="+file, "GODEBUG=asyncpreemptoff=1", "GOGC=off", "GOMAXPROCS=2"),
		Files: []*os.File{nil, out, os.Stderr}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		t.Skipf("processes cannot be traced here: %v", err)
	}
	calls := follow(t, p.Pid)
	_ = p.Release() // follow has waited for it
	text, err := os.ReadFile(out.Name())
	must(t, err)
	answer, begun := strings.CutPrefix(string(text), beginMark)
	var d driven
	if !begun || json.Unmarshal([]byte(answer), &d) != nil || d.Err != "" {
		t.Fatalf("the traced process: %s", text)
	}
	return calls, &d
}

// follow lets the traced process run to its end and counts the calls of its main thread
// between its two writes to standard output: in one thread it executes the batch.
func follow(t *testing.T, pid int) map[uint64]int {
	t.Helper()
	calls := map[uint64]int{}
	const sysgood = unix.SIGTRAP | 0x80
	marks, deliver := 0, 0
	for first := true; ; first = false {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			t.Fatalf("wait for the traced process: %v", err)
		}
		switch {
		case ws.Exited() || ws.Signaled():
			return calls
		case first:
			must(t, unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL))
		case ws.StopSignal() == sysgood:
			var s syscallEntry
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(pid), unsafe.Sizeof(s), uintptr(unsafe.Pointer(&s)), 0, 0)
			if errno != 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
				t.Skipf("the kernel does not tell about traced system calls: %v", errno)
			}
			switch {
			case s.op != 1:
			case s.nr == unix.SYS_WRITE && s.args[0] == 1:
				marks++
			case marks == 1 && !runtimeCalls[s.nr]:
				calls[s.nr]++
			}
		default:
			deliver = int(ws.StopSignal())
		}
		if err := unix.PtraceSyscall(pid, deliver); err != nil {
			t.Fatalf("go on with the traced process: %v", err)
		}
		deliver = 0
	}
}

// callsOf says how many of each call there are more in b than in a, and in all, for each
// of n entries.
func callsOf(a, b map[uint64]int, n int) (perEntry float64, text string) {
	var parts []string
	for _, nr := range slices.Sorted(maps.Keys(b)) {
		more := float64(b[nr]-a[nr]) / float64(n)
		if more == 0 {
			continue
		}
		perEntry += more
		parts = append(parts, fmt.Sprintf("%s %.3g", cmp.Or(callNames[nr], fmt.Sprint("call ", nr)), more))
	}
	return perEntry, strings.Join(parts, ", ")
}

// callKind is a kind of entry, and what one more of it costs.
type callKind struct {
	name   string
	most   float64                     // system calls
	allocs int                         // allocations
	make   func(g *rig, i int) []Entry // entries that count as one
	spec   func(*JobSpec)
}

// batch makes a batch of n entries of the kind, and the job that it belongs to.
func (k *callKind) batch(g *rig, n int) *Batch {
	g.t.Helper()
	g.spec.Threads = 1
	if k.spec != nil {
		k.spec(&g.spec)
	}
	var es []Entry
	for i := range n {
		es = append(es, k.make(g, i)...)
	}
	return g.batch(1, es...)
}

// scanned returns the entry of the source object at p, as our own scanner makes it.
func (g *rig) scanned(p string) Entry {
	g.t.Helper()
	e := g.copyOf(p)
	e.Meta.HasX = true
	return e
}

// callKinds are the kinds of entries that jobs are made of. The numbers are there to be
// lowered; who raises one says why.
var callKinds = []callKind{
	{name: "small file", most: 10, make: func(g *rig, i int) []Entry {
		g.write(fmt.Sprintf("d/f%d", i), "contents")
		return []Entry{g.scanned(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "small file of another owner", most: 11, make: func(g *rig, i int) []Entry {
		p := g.write(fmt.Sprintf("d/f%d", i), "contents")
		must(g.t, os.Chown(p, 1234, 4321))
		return []Entry{g.scanned(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "small file in a directory of another owner", most: 12, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.dst, "d"), 0o755))
		must(g.t, os.Chown(filepath.Join(g.dst, "d"), 1234, 4321))
		g.write(fmt.Sprintf("d/f%d", i), "contents")
		return []Entry{g.scanned(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "small file, attributes not scanned", most: 11, make: func(g *rig, i int) []Entry {
		g.write(fmt.Sprintf("d/f%d", i), "contents")
		return []Entry{g.copyOf(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "empty file", most: 8, make: func(g *rig, i int) []Entry {
		g.write(fmt.Sprintf("d/f%d", i), "")
		return []Entry{g.scanned(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "small file that replaces another", most: 14, allocs: 4, make: func(g *rig, i int) []Entry {
		g.write(fmt.Sprintf("d/f%d", i), "contents")
		g.target(fmt.Sprintf("d/f%d", i), "others")
		return []Entry{g.scanned(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "metadata alone", most: 12, allocs: 7, make: func(g *rig, i int) []Entry {
		p := fmt.Sprintf("d/f%d", i)
		when := unix.Timespec{Sec: 15e8}
		setTimes(g.t, g.write(p, "contents"), when, when)
		setTimes(g.t, g.target(p, "contents"), when, when)
		e := g.scanned(p)
		e.Mode = "mm"
		return []Entry{e}
	}},
	{name: "symbolic link", most: 11, allocs: 10, make: func(g *rig, i int) []Entry {
		p := fmt.Sprintf("d/l%d", i)
		must(g.t, os.MkdirAll(filepath.Join(g.src, "d"), 0o755))
		must(g.t, os.Symlink("to", filepath.Join(g.src, p)))
		return []Entry{g.scanned(p)}
	}},
	{name: "further hard link", most: 1, make: func(g *rig, i int) []Entry {
		if i == 0 {
			g.write("d/h0", "contents")
		} else {
			must(g.t, os.Link(filepath.Join(g.src, "d/h0"), filepath.Join(g.src, fmt.Sprintf("d/h%d", i))))
		}
		e := g.scanned(fmt.Sprintf("d/h%d", i))
		e.Op, e.Group = entry.OpLink, 1
		return []Entry{e}
	}},
	{name: "hard link that is there", most: 3, allocs: 2, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.dst, "d"), 0o755))
		if i == 0 {
			g.write("d/h0", "contents")
			g.target("d/h0", "contents")
		} else {
			must(g.t, os.Link(filepath.Join(g.src, "d/h0"), filepath.Join(g.src, fmt.Sprintf("d/h%d", i))))
			must(g.t, os.Link(filepath.Join(g.dst, "d/h0"), filepath.Join(g.dst, fmt.Sprintf("d/h%d", i))))
		}
		e := g.scanned(fmt.Sprintf("d/h%d", i))
		e.Op, e.Group, e.LeaderOnly = entry.OpLink, 1, i == 0
		return []Entry{e}
	}},
	{name: "deleted file", most: 2, allocs: 1, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.src, "d"), 0o755))
		g.target(fmt.Sprintf("d/f%d", i), "x")
		return []Entry{file(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "deleted file of a directory that is gone", most: 1, make: func(g *rig, i int) []Entry {
		g.target(fmt.Sprintf("d/f%d", i), "x")
		return []Entry{file(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "deleted file, not looked for in the source", most: 1, spec: func(s *JobSpec) { s.DeleteUnchecked = true }, make: func(g *rig, i int) []Entry {
		g.target(fmt.Sprintf("d/f%d", i), "x")
		return []Entry{file(fmt.Sprintf("d/f%d", i))}
	}},
	{name: "deleted empty directory", most: 2, allocs: 1, spec: func(s *JobSpec) { s.DeleteEmpty = true }, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.src, "d"), 0o755))
		must(g.t, os.MkdirAll(filepath.Join(g.dst, fmt.Sprintf("d/d%d", i)), 0o755))
		return []Entry{tree(fmt.Sprintf("d/d%d", i))}
	}},
	{name: "directory", most: 5, allocs: 3, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.src, fmt.Sprintf("d/d%d", i)), 0o755))
		return []Entry{g.scanned(fmt.Sprintf("d/d%d", i))}
	}},
	{name: "directory, finished", most: 12, allocs: 18, make: func(g *rig, i int) []Entry {
		must(g.t, os.MkdirAll(filepath.Join(g.src, fmt.Sprintf("d/d%d", i)), 0o755))
		must(g.t, os.MkdirAll(filepath.Join(g.dst, fmt.Sprintf("d/d%d", i)), 0o700))
		e := g.scanned(fmt.Sprintf("d/d%d", i))
		e.Op = entry.OpFinish
		return []Entry{e}
	}},
}

// TestSystemCallsPerEntry fails if an entry of a kind costs more system calls than it did.
// What is done once for a directory is not counted: the same batch is executed with n
// entries and with twice as many.
func TestSystemCallsPerEntry(t *testing.T) {
	needRoot(t)
	const n = 32
	for _, k := range callKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			run := func(n int) map[uint64]int {
				g := newRigIn(t, shm(t))
				batch := k.batch(g, n)
				calls, d := traced(t, g.spec, batch)
				wantFailures(t, d.Outcome)
				return calls
			}
			got, text := callsOf(run(n), run(2*n), n)
			t.Logf("%.3g of at most %.3g: %s", got, k.most, text)
			if got > k.most {
				t.Errorf("%.3g system calls an entry, they were %.3g: %s", got, k.most, text)
			}
		})
	}
}
