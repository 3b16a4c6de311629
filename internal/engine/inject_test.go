package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// driverEnv tells a re-executed test binary to run one batch on its main thread,
// so that strace can count its system calls and interfere with any one of them.
// Its value is the file that describes the batch.
const driverEnv = "FSBACKUP_ENGINE_TEST_DRIVER"

// isDriver also locks the main goroutine to the main thread, which only code that
// runs before main can.
var isDriver = func() bool {
	if os.Getenv(driverEnv) == "" {
		return false
	}
	runtime.LockOSThread()
	return true
}()

// driverDir holds the driver; "" until it is built.
var driverDir string

// driverExe builds the driver, once: the tests of this package without the race
// detector, under which a process takes many times as long to start and to end.
var driverExe = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-driver-")
	if err != nil {
		if dir, err = os.MkdirTemp("", "fsbackup-driver-"); err != nil {
			return "", err
		}
	}
	driverDir = dir
	exe := filepath.Join(dir, "driver")
	cmd := exec.Command("go", "test", "-c", "-o", exe, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the driver: %w: %s", err, out)
	}
	return exe, nil
})

func removeDriver() {
	if driverDir != "" {
		_ = os.RemoveAll(driverDir) // in a temporary directory
	}
}

// driven is what a driver is told, and what it answers.
type driven struct {
	Spec  JobSpec
	Batch *Batch
	Named bool
	// UmaskZero has the process be without a umask, as a worker is.
	UmaskZero bool

	Outcome *Outcome
	Err     string
	Kind    fault.Kind
}

const beginMark = "begin\n"

// drive is the driver.
func drive(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var d driven
	if err := json.Unmarshal(data, &d); err != nil {
		return err
	}
	if d.UmaskZero {
		unix.Umask(0)
	}
	e, err := New(Config{UmaskZero: d.UmaskZero})
	if err != nil {
		return err
	}
	j, err := e.OpenJob(d.Spec)
	if err != nil {
		return err
	}
	if d.Named {
		j.links[j.dst.info.Dev] = fsys.LinkNone
	}
	if _, err := os.Stdout.WriteString(beginMark); err != nil {
		return err
	}
	d.Outcome, err = j.Run(context.Background(), d.Batch, nil)
	if err == nil {
		err = j.Sync(context.Background())
	}
	if err != nil {
		d.Err, d.Kind = err.Error(), fault.KindOf(err)
	}
	d.Batch = nil
	return json.NewEncoder(os.Stdout).Encode(d)
}

// injected is a tree and a batch with something of everything.
type injected struct {
	*rig
	batch   *Batch
	file    string
	named   bool
	stored  string   // where the destination is looked at
	before  []string // of the destination
	want    []string // once it is done
	failing int      // entries that fail undisturbed
}

func newInjected(t *testing.T, named bool) *injected {
	return newInjectedIn(newRigIn(t, shm(t)), named)
}

func newInjectedIn(g *rig, named bool) *injected {
	t := g.t
	g.spec.Threads, g.spec.Sync, g.spec.ID = 1, SyncFile, "injected"
	for p, c := range map[string]string{"new": "n1", "old": "o1", "d/deep": "d1", "inway": "w1", "rich": "r"} {
		g.write(p, c)
	}
	g.write("large", strings.Repeat("0123456789abcdef", 5<<14))
	must(t, os.Truncate(g.write("sparse", "s"), 1<<20))
	g.linked("hh", "h1", "h2")
	must(t, os.Symlink("to", filepath.Join(g.src, "sl")))
	must(t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o640))
	rich := filepath.Join(g.src, "rich")
	must(t, unix.Setxattr(rich, "user.colour", []byte("red"), 0))
	if os.Geteuid() == 0 {
		must(t, os.Chown(rich, 1234, 4321))
	}
	must(t, unix.Chmod(rich, 0o4751))
	must(t, os.Symlink("old", filepath.Join(g.dst, "sl")))
	g.target("old", "o0")
	g.target("h2", "x")
	g.target("inway/sub/f", "dir")
	g.target("gone", "g")
	g.target("gonedir/a/b", "g")
	when := unix.Timespec{Sec: 15e8, Nsec: 5}
	setTimes(t, filepath.Join(g.src, "d"), when, when)
	finish := g.copyOf("d")
	finish.Op = entry.OpFinish
	var es []Entry
	for _, p := range []string{"d", "new", "old", "d/deep", "inway", "sl", "fifo", "rich", "large", "sparse"} {
		es = append(es, g.copyOf(p))
	}
	es = append(es, file("gone"), tree("gonedir"))
	es = append(es, g.group(1, "h1", "h2")...)
	es = append(es, finish)
	in := &injected{rig: g, batch: g.batch(1, es...), file: filepath.Join(filepath.Dir(g.src), "batch"), named: named, stored: g.dst}
	in.before = below(t, g.dst)
	in.want = below(t, g.src)
	data, err := json.Marshal(driven{Spec: g.spec, Batch: in.batch, Named: named})
	must(t, err)
	must(t, os.WriteFile(in.file, data, 0o600))
	return in
}

// below is a listing without the root, which is finished by another batch.
func below(t testing.TB, root string) []string {
	t.Helper()
	return slices.DeleteFunc(listing(t, root), func(l string) bool { return strings.HasPrefix(l, " ") })
}

// strace runs the driver under strace and returns its answer, nil if it gave
// none; begun says whether it came to its batch.
func (in *injected) strace(args ...string) (d *driven, begun bool) {
	in.t.Helper()
	exe, err := driverExe()
	must(in.t, err)
	cmd := exec.Command("strace", append(append([]string{"-qq"}, args...), exe)...)
	cmd.Env = append(os.Environ(), driverEnv+"="+in.file, "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=2")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // what it printed says it
	rest, begun := strings.CutPrefix(out.String(), beginMark)
	if !begun {
		return nil, false
	}
	d = &driven{}
	if json.Unmarshal([]byte(rest), d) != nil {
		return nil, true
	}
	return d, true
}

// calls returns how often the driver makes each system call before its batch,
// and to the end of it.
func (in *injected) calls() (base, total map[string]int) {
	in.t.Helper()
	log := filepath.Join(filepath.Dir(in.src), "strace")
	d, _ := in.strace("-o", log)
	if d == nil || d.Err != "" || len(d.Outcome.Failures) != in.failing {
		in.t.Skipf("strace cannot trace here: %+v", d)
	}
	f, err := os.Open(log)
	must(in.t, err)
	defer func() { _ = f.Close() }()
	total = map[string]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), "(")
		switch {
		case !ok || strings.ContainsAny(name, " <+-"):
		case name == "write" && strings.Contains(rest, `"begin\n"`):
			base = total
			total = maps.Clone(base)
		case name == "write" && base != nil && strings.HasPrefix(rest, "1, "):
			return base, total
		default:
			total[name]++
		}
	}
	must(in.t, lines.Err())
	in.t.Fatal("the trace has no beginning or no end")
	return nil, nil
}

// whole fails unless each name of the destination has its old or its new object.
func (in *injected) whole(what string) {
	in.t.Helper()
	names := func(lines []string) map[string]string {
		m := map[string]string{}
		for _, l := range lines {
			name, _, _ := strings.Cut(l, " mode=")
			m[name] = contentsOf(l)
		}
		return m
	}
	before, want := names(in.before), names(in.want)
	for name, got := range names(below(in.t, in.stored)) {
		base := filepath.Base(name)
		old, was := before[name]
		fresh, will := want[name]
		switch {
		case strings.HasPrefix(base, ".fsb-"):
		case was && got == old, will && got == fresh:
		default:
			in.t.Errorf("%s: %s is %q, was %q, is to be %q", what, name, got, old, fresh)
		}
	}
	for name := range before {
		// What is deleted, or replaced by a file after it was cleared, may be gone.
		if _, err := os.Lstat(filepath.Join(in.stored, name)); err != nil && !strings.HasPrefix(name, "/gone") && !strings.HasPrefix(name, "/inway") {
			in.t.Errorf("%s: %s is gone", what, name)
		}
	}
}

// contentsOf is what a line of a listing says about the object without what is
// finished last: type, size, data, target. A file has its mode before it has its
// name, so that is compared as well.
func contentsOf(line string) string {
	_, rest, _ := strings.Cut(line, " mode=")
	mode, rest, _ := strings.Cut(rest, " ")
	if strings.HasPrefix(mode, "4") && len(mode) == 5 {
		return "directory"
	}
	keep := mode
	for w := range strings.FieldsSeq(rest) {
		if strings.HasPrefix(w, "size=") || strings.HasPrefix(w, "data=") || strings.HasPrefix(w, "to=") || strings.HasPrefix(w, "user.") {
			keep += " " + w
		}
	}
	return keep
}

// again runs the batch a second time, undisturbed, which must make everything
// right and leave nothing behind.
func (in *injected) again(what string) {
	in.t.Helper()
	b := *in.batch
	b.Predecessors = []AttemptID{b.Attempt}
	b.Attempt.Delivery++
	o, err := in.try(&b, nil)
	if err != nil {
		in.t.Fatalf("%s: the next attempt: %v", what, err)
	}
	if len(o.Failures) > 0 {
		in.t.Errorf("%s: the next attempt: %+v", what, o.Failures)
	}
	in.right(what)
}

// right fails unless the destination is as it is to be.
func (in *injected) right(what string) {
	in.t.Helper()
	got := below(in.t, in.stored)
	if slices.Equal(got, in.want) {
		return
	}
	for _, l := range got {
		if !slices.Contains(in.want, l) {
			in.t.Errorf("%s: unexpected %s", what, l)
		}
	}
	for _, l := range in.want {
		if !slices.Contains(got, l) {
			in.t.Errorf("%s: missing %s", what, l)
		}
	}
}

// changes are the system calls by which a batch changes anything.
var changes = []string{
	"openat", "openat2", "mkdirat", "mknodat", "symlinkat", "linkat", "renameat", "renameat2", "unlinkat", "chmod", "fchmod", "fchmodat",
	"chown", "lchown", "fchown", "fchownat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
	"pwrite64", "write", "ftruncate", "fallocate", "copy_file_range", "ioctl", "sync_file_range", "fsync", "fdatasync", "syncfs", "close",
}

// eachCall runs f in a test of its own for each of the driver's system calls
// after its beginning, for every share-th of them unless the tests are long.
func eachCall(t *testing.T, named bool, names []string, share int, f func(in *injected, name string, n int)) {
	base, total := newInjected(t, named).calls()
	if long() {
		share = 1
	}
	met, made := 0, 0
	for _, name := range names {
		for n := base[name] + 1; n <= total[name]; n++ {
			if met++; met%share != 0 {
				continue
			}
			made++
			t.Run(name+" "+strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				f(newInjected(t, named), name, n)
			})
		}
	}
	t.Logf("%d of %d system calls", made, met)
	if made < 40/share {
		t.Errorf("only %d of %d system calls were met", made, met)
	}
}

// bothNamings runs f for both ways in which new files come by their names.
func bothNamings(t *testing.T, f func(t *testing.T, named bool)) {
	t.Helper()
	needStrace(t)
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named=%v", named), func(t *testing.T) { f(t, named) })
	}
}

func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	if testing.Short() {
		t.Skip("runs hundreds of processes")
	}
}

// TestKilledAtEachSystemCall kills a process with SIGKILL at each system call
// that changes anything. Each name then has its old or its new object, whole,
// and the next attempt makes everything right and removes what was left.
func TestKilledAtEachSystemCall(t *testing.T) {
	bothNamings(t, func(t *testing.T, named bool) {
		var killed atomic.Int64
		t.Run("at", func(t *testing.T) {
			eachCall(t, named, changes, 3, func(in *injected, name string, n int) {
				what := name + " " + strconv.Itoa(n)
				d, begun := in.strace("-o", "/dev/null", "-e", "trace="+name, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", name, n))
				if !begun {
					in.t.Fatalf("%s: killed before the batch began", what)
				}
				if d == nil {
					killed.Add(1)
				}
				in.whole(what)
				in.again(what)
			})
		})
		if killed.Load() < 20 {
			t.Errorf("killed only %d times", killed.Load())
		}
	})
}

// faults are the errors that each system call is made to fail with. An attribute
// for which there is no room, while the file system has some, is a loss that is
// counted: TestAttributeWithoutRoomIsCounted.
var faults = map[string][]unix.Errno{
	"pread64": {unix.EIO, unix.ESTALE}, "copy_file_range": {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EXDEV},
	"openat2": {unix.EMFILE, unix.EIO, unix.ENOSYS, unix.ENFILE}, "pwrite64": {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS},
	"ftruncate": {unix.EIO, unix.ENOSPC, unix.EDQUOT}, "fsync": {unix.EIO, unix.ENOSPC, unix.EDQUOT},
	"syncfs": {unix.EIO, unix.ENOSPC, unix.EDQUOT}, "openat": {unix.EMFILE, unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS},
	"mkdirat": {unix.ENOSPC, unix.EIO, unix.EROFS, unix.EDQUOT}, "mknodat": {unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS},
	"symlinkat": {unix.ENOSPC, unix.EIO, unix.EDQUOT, unix.EROFS},
	"linkat":    {unix.ENOSPC, unix.EIO, unix.EPERM, unix.EMLINK, unix.EDQUOT, unix.EROFS},
	"renameat":  {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS}, "renameat2": {unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EROFS},
	"unlinkat": {unix.EIO, unix.EPERM, unix.EROFS}, "fchmod": {unix.EIO, unix.EPERM, unix.EROFS, unix.ENOSPC}, "chmod": {unix.EIO},
	"fchmodat": {unix.EIO, unix.EROFS}, "fchown": {unix.EIO, unix.EDQUOT, unix.EROFS, unix.ENOSPC}, "fchownat": {unix.EIO, unix.EROFS},
	"chown": {unix.EIO}, "lchown": {unix.EIO}, "utimensat": {unix.EIO, unix.EROFS, unix.ENOSPC, unix.EDQUOT},
	"setxattr": {unix.ENOSPC, unix.EIO, unix.EDQUOT, unix.EROFS}, "fsetxattr": {unix.EIO, unix.EDQUOT, unix.EROFS},
	"lsetxattr": {unix.EIO}, "getdents64": {unix.EIO}, "newfstatat": {unix.EIO}, "statx": {unix.EIO, unix.ENOSYS}, "fstat": {unix.EIO},
	"readlinkat": {unix.EIO}, "close": {unix.EIO, unix.ENOSPC, unix.EDQUOT}, "flistxattr": {unix.EIO}, "fgetxattr": {unix.EIO},
	"listxattr": {unix.EIO}, "getxattr": {unix.EIO}, "lseek": {unix.EIO}, "ioctl": {unix.EIO},
}

// TestEachSystemCallFails makes each system call of a batch fail with the errors
// that file systems give. The outcome says so with errno and path, or the batch
// goes back; what is not said to have failed is right; and the next attempt
// makes good what failed. Each call fails with one of its errors, in the long
// form with each of them.
func TestEachSystemCallFails(t *testing.T) {
	bothNamings(t, func(t *testing.T, named bool) {
		var mu sync.Mutex
		results := map[string]int{} // guarded by mu
		t.Run("at", func(t *testing.T) {
			eachCall(t, named, slices.Sorted(maps.Keys(faults)), 4, func(in *injected, name string, n int) {
				errnos := faults[name]
				if !long() {
					errnos = errnos[n%len(errnos):][:1]
				}
				for i, errno := range errnos {
					if i > 0 {
						t, _ := in.t.(*testing.T) // as it was made
						in = newInjected(t, named)
					}
					result := in.fails(name, n, errno)
					mu.Lock()
					results[result]++
					mu.Unlock()
				}
			})
		})
		t.Logf("%v", results)
	})
}

func (in *injected) fails(name string, n int, errno unix.Errno) string {
	what := fmt.Sprintf("%s %d: %s", name, n, unix.ErrnoName(errno))
	d, begun := in.strace("-o", "/dev/null", "-e", "trace="+name, "-e", fmt.Sprintf("inject=%s:error=%s:when=%d", name, unix.ErrnoName(errno), n))
	if !begun || d == nil {
		in.t.Errorf("%s: the process did not survive it", what)
		return "died"
	}
	return in.judge(what, errno, d)
}

// judge fails unless what became of a batch, in which a call failed with errno,
// is right or said, and says which.
func (in *injected) judge(what string, errno unix.Errno, d *driven) string {
	in.t.Helper()
	in.whole(what)
	defer in.again(what)
	switch {
	case d.Err != "":
		// The batch goes back: for room, for descriptors, or because the root is in doubt.
		if d.Kind != fault.Exhausted && d.Kind != fault.Transient && d.Kind != fault.Stale && !strings.Contains(d.Err, errno.Error()) {
			in.t.Errorf("%s: the batch ends with %q, kind %v", what, d.Err, d.Kind)
		}
		return "batch goes back"
	case len(d.Outcome.Failures) > 0:
		for _, f := range d.Outcome.Failures {
			if f.Errno != int(errno) && !strings.Contains(f.Reason, errno.Error()) || f.Reason == "" {
				in.t.Errorf("%s: failed as %+v", what, f)
			}
		}
		in.rest(what, d.Outcome)
		return "entry fails"
	case len(d.Outcome.Warnings) > 0:
		return "warning"
	default:
		in.right(what)
		return "made good"
	}
}

// rest fails unless all that did not fail is as it is to be.
func (in *injected) rest(what string, o *Outcome) {
	in.t.Helper()
	bad := map[string]bool{}
	for _, f := range o.Failures {
		for p := f.Path; p != "" && p != "."; p = filepath.Dir(p) {
			bad["/"+p] = true
		}
		if strings.HasPrefix(f.Path, "h") { // a group's names are told together
			bad["/h1"], bad["/h2"] = true, true
		}
	}
	got := below(in.t, in.stored)
	for _, l := range in.want {
		name, _, _ := strings.Cut(l, " mode=")
		if !bad[name] && !slices.Contains(got, l) {
			in.t.Errorf("%s: not said to have failed, and wrong: %s", what, l)
		}
	}
	for _, name := range []string{"/gone", "/gonedir"} {
		if exists(in.stored+name) && !bad[name] {
			in.t.Errorf("%s: %s is still there and nothing says so", what, name)
		}
	}
}

// TestInterruptedSystemCallsAreRepeated interrupts each system call once.
func TestInterruptedSystemCallsAreRepeated(t *testing.T) {
	needStrace(t)
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(faults)), func(name string) bool {
		return name == "close" || name == "syncfs" // never repeated: the descriptor is gone
	})
	eachCall(t, true, names, 4, func(in *injected, name string, n int) {
		what := fmt.Sprintf("%s %d interrupted", name, n)
		d, _ := in.strace("-o", "/dev/null", "-e", "trace="+name, "-e", fmt.Sprintf("inject=%s:error=EINTR:when=%d", name, n))
		if d == nil || d.Err != "" || len(d.Outcome.Failures)+len(d.Outcome.Warnings) > 0 {
			in.t.Errorf("%s: %+v", what, d)
			if d != nil && d.Outcome != nil {
				in.t.Errorf("%s: %+v", what, d.Outcome)
			}
			return
		}
		in.right(what)
	})
}
