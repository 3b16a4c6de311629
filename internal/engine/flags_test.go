package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// chattr gives p a flag, such as +i, for the time of the test.
func chattr(t testing.TB, flag, p string) {
	t.Helper()
	if out, err := exec.Command("chattr", flag, p).CombinedOutput(); err != nil {
		t.Skipf("needs chattr: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("chattr", "-"+flag[1:], p).CombinedOutput(); err != nil {
			t.Errorf("chattr: %v: %s", err, out)
		}
	})
}

// TestFlagsOfTheSourceAreCountedAndNotCopied: a copy that were immutable could not
// be brought up to date.
func TestFlagsOfTheSourceAreCountedAndNotCopied(t *testing.T) {
	g := newRig(t)
	g.write("d/a", "x")
	chattr(t, "+i", g.write("d/fixed", "x"))
	chattr(t, "+a", g.write("d/log", "x"))
	g.write("locked/f", "x")
	chattr(t, "+i", filepath.Join(g.src, "locked"))
	for range 2 {
		o, f := g.backup()
		for _, x := range []struct {
			o    *Outcome
			want Warning
		}{{o, Warning{WarnFlags, 2, "d/fixed"}}, {f, Warning{WarnFlags, 1, "locked"}}} {
			if len(x.o.Warnings) != 1 || x.o.Warnings[0] != x.want {
				t.Errorf("warnings %+v, want %+v", x.o.Warnings, x.want)
			}
		}
		g.same()
		for _, p := range []string{"d/fixed", "d/log", "locked"} {
			fd, err := unix.Open(filepath.Join(g.dst, p), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			must(t, err)
			var st unix.Stat_t
			protected, err := fsys.FstatFlags(fd, &st)
			must(t, err)
			must(t, unix.Close(fd))
			if protected {
				t.Errorf("%s: the flag was copied", p)
			}
		}
	}
}

// TestProtectedTargetsFailWithTheReason, each operation on its own; what is not
// protected is done.
func TestProtectedTargetsFailWithTheReason(t *testing.T) {
	g := newRig(t)
	for _, p := range []string{"fixed", "log", "good", "in/f", "dir/f", "h1"} {
		g.write(p, "new")
	}
	must(t, os.Link(filepath.Join(g.src, "h1"), filepath.Join(g.src, "h2")))
	for _, p := range []string{"fixed", "log", "good", "gone", "h2", "dir/f"} {
		g.target(p, "old")
	}
	must(t, os.MkdirAll(filepath.Join(g.dst, "in"), 0o755))
	for flag, names := range map[string][]string{"+i": {"fixed", "gone", "h2", "in", "dir"}, "+a": {"log"}} {
		for _, p := range names {
			chattr(t, flag, filepath.Join(g.dst, p))
		}
	}
	finish := g.copyOf("dir")
	finish.Op = entry.OpFinish
	es := append([]Entry{g.copyOf("fixed"), g.copyOf("log"), g.copyOf("good"), g.copyOf("in/f"), file("gone"), finish}, g.group(1, "h1", "h2")...)
	o := g.run(g.batch(1, es...))
	wantFailures(t, o, "fixed", "log", "in/f", "gone", "dir", "h2")
	for _, f := range o.Failures {
		if f.Errno != int(unix.EPERM) || f.Kind != uint8(fault.Denied) || !strings.Contains(f.Reason, "immutable or append-only (lsattr)") {
			t.Errorf("%+v", f)
		}
	}
	for p, want := range map[string]string{"fixed": "old", "log": "old", "good": "new", "gone": "old", "h1": "new", "h2": "old"} {
		if got := read(t, filepath.Join(g.dst, p)); got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
	noTemps(t, g.dst)
}

func TestFstatFlagsIsFstat(t *testing.T) {
	g := newRig(t)
	g.zoo()
	for _, l := range listing(t, g.src) {
		p, _, _ := strings.Cut(l, " mode=")
		fd, err := unix.Open(g.src+p, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		must(t, err)
		var want, got unix.Stat_t
		must(t, fsys.Fstat(fd, &want))
		protected, err := fsys.FstatFlags(fd, &got)
		must(t, err)
		must(t, unix.Close(fd))
		if got != want || protected {
			t.Errorf("%q:\n got %+v, protected %v\nwant %+v", p, got, protected, want)
		}
	}
}

// TestReadOnlyInMidBatchGivesItBack makes the destination read-only while a batch
// is under way, as a file system does by itself after an error.
func TestReadOnlyInMidBatchGivesItBack(t *testing.T) {
	g := newRig(t)
	for _, p := range []string{"a", "b", "c", "d/e", "d/f", "g"} {
		g.write(p, p)
	}
	mountTmpfs(t, g.dst, "")
	g.target("gone", "x")
	copies, _ := g.scan()
	copies = append(copies, file("gone"))
	g.spec.Threads = 1
	for after := 1; ; after++ {
		checks, locked := 0, false
		_, err := g.try(g.batch(1, copies...), guardFunc(func() error {
			if checks++; checks >= after && !locked {
				// Refused while a file is open for writing: at the next check then.
				locked = unix.Mount("", g.dst, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") == nil
			}
			return nil
		}))
		if !locked {
			if err != nil || after < 8 {
				t.Errorf("after %d checks: %v", after, err)
			}
			return
		}
		must(t, unix.Mount("", g.dst, "", unix.MS_REMOUNT, ""))
		if err != nil && !fault.Is(err, fault.Exhausted) {
			t.Errorf("after %d checks: %v", after, err)
		}
		noTemps(t, g.dst)
		wantFailures(t, g.run(g.batch(1, copies...)))
		for _, p := range []string{"a", "b", "c", "d/e", "d/f", "g"} {
			if read(t, filepath.Join(g.dst, p)) != p {
				t.Errorf("after %d checks: %s", after, p)
			}
			must(t, os.Remove(filepath.Join(g.dst, p)))
		}
		g.target("gone", "x")
	}
}
