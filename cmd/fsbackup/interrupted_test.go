package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// killedMidway has a run copy into a destination that is too small, and kills it when
// it says so. The source has names then that are gone, and others that have come.
// The function it returns makes room.
func killedMidway(t *testing.T) (p pair, room func(int64)) {
	t.Helper()
	if !treetest.Root() {
		t.Skip("fills a small file system, which needs root")
	}
	p = newPair(t)
	treetest.Random(t, filepath.Join(p.src, "random"), 81, 300)
	b := treetest.At(t, p.src)
	b.File("gone/f", "x")
	b.File("gone/g", "x")
	room = p.smallDestination()
	room(1 << 30)
	p.backup().want(t, 0)
	must(t, os.RemoveAll(b.Path("gone")))
	treetest.Random(t, filepath.Join(p.src, "new"), 82, 300)
	b.File("zz/large", strings.Repeat("x", 6<<20))
	b.File("zz/small", "x")
	room(1 << 20)
	p.killedWithoutRoom()
	return p, room
}

// killedWithoutRoom kills a run when it says that there is no room.
func (p pair) killedWithoutRoom() {
	t := p.t
	t.Helper()
	treetest.Settle(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "fsbackup"), "backup", "--incremental", "--json", "--state-dir", p.state, p.src, p.dst)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	var said bytes.Buffer
	for buf := make([]byte, 512); !bytes.Contains(said.Bytes(), []byte("no room")); {
		n, err := stderr.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("the run ended without saying that the destination is full: %s", &said)
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
}

// unmarked holds that no mark of a job is left in the destination.
func (p pair) unmarked() {
	p.t.Helper()
	marks, err := filepath.Glob(filepath.Join(p.dst, ".fsbackup-*"))
	if err != nil || len(marks) > 0 {
		p.t.Errorf("left in the destination are %q, %v", marks, err)
	}
}

// queue returns what is left of the queues of runs.
func (p pair) queue() []string {
	p.t.Helper()
	left, err := filepath.Glob(filepath.Join(p.state, "*", "cluster", "*"))
	must(p.t, err)
	return left
}

const (
	saysEnded   = "an interrupted run is ended, since other options are given now: job "
	saysResumed = "an interrupted run is resumed: job "
)

func TestAnInterruptedRunIsGoneOnWithOnlyIfTheSameIsAskedFor(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		says string
		full bool // the destination still is
		not  []string
	}{
		"the same":                      {nil, saysResumed, false, nil},
		"other figures":                 {[]string{"--slots", "2", "--keep-scans", "5", "--threads", "3"}, saysResumed, false, nil},
		"other excludes":                {[]string{"--exclude", "/zz/large"}, saysEnded, false, []string{"zz/large"}},
		"other excludes, still no room": {[]string{"--exclude", "/zz/large"}, saysEnded, true, []string{"zz/large"}},
		"delete before":                 {[]string{"--delete-before"}, saysEnded, false, nil},
		"both":                          {[]string{"--delete-before", "--exclude", "/zz"}, saysEnded, false, []string{"zz", "zz/large", "zz/small"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, room := killedMidway(t)
			if room(1 << 30); c.full {
				room(4 << 20) // for all but the large file
			}
			r := p.backup(c.args...).want(t, 0)
			if !strings.Contains(r.stderr, c.says) || strings.Count(r.stderr, "an interrupted run") != 1 {
				t.Errorf("want %q, it says\n%s", c.says, r.stderr)
			}
			v := r.job(t)
			closed(t, v)
			if slices.Contains(c.args, "--delete-before") && (len(v.Phases) < 3 || v.Phases[0].Phase != protocol.PhaseDelete) {
				t.Errorf("phases ran as %+v, want delete before copy", v.Phases)
			}
			p.unmarked()
			for _, w := range wrong(t, p) {
				// What was copied before it was excluded stays, with its directories.
				if !slices.Contains(c.not, w) && w != "" {
					t.Errorf("%q is wrong", w)
				}
			}
			for _, path := range []string{"gone/f", "gone/g", "gone"} {
				if _, err := os.Lstat(filepath.Join(p.dst, path)); err == nil {
					t.Errorf("%q is gone from the source and is not deleted", path)
				}
			}
			if slices.Contains(c.not, "zz/large") {
				if _, err := os.Lstat(filepath.Join(p.dst, "zz/large")); err == nil {
					t.Error("what is excluded now was copied: the old plan was carried out")
				}
			}
			room(1 << 30)
			r = p.backup().want(t, 0)
			if strings.Contains(r.stderr, "an interrupted run") {
				t.Errorf("once more it says\n%s", r.stderr)
			}
			treetest.Same(t, p.src, p.dst)
			p.unmarked()
		})
	}
}

func TestScansEndWhatAKilledRunHasQueued(t *testing.T) {
	for _, what := range []string{"reset", "drop"} {
		for _, full := range []bool{true, false} {
			name := what
			if full {
				name += ", still no room"
			}
			t.Run(name, func(t *testing.T) {
				p, room := killedMidway(t)
				if len(p.queue()) == 0 {
					t.Fatal("the killed run has left no queue")
				}
				if !full {
					room(1 << 30)
				}
				args := []string{"scans", what, "--state-dir", p.state, p.src, p.dst}
				if what == "drop" {
					args = append(args, p.pendingScan())
				}
				if r := fsb(t, args...).want(t, 0); r.stdout+r.stderr != "" {
					t.Errorf("it says %s", r)
				}
				if left := p.queue(); len(left) > 0 {
					t.Errorf("left are %q", left)
				}
				p.unmarked()
				before := inodes(t, p.dst)
				room(1 << 30)
				p.backup("--dry-run").want(t, 0)
				if len(changed(before, inodes(t, p.dst))) > 0 {
					t.Error("something of the old job was done")
				}
				r := p.backup("--delete-extra").want(t, 0)
				if strings.Contains(r.stderr, "an interrupted run") {
					t.Errorf("it is resumed all the same:\n%s", r.stderr)
				}
				closed(t, r.job(t))
				treetest.Same(t, p.src, p.dst)
				p.unmarked()
			})
		}
	}
}

// pendingScan returns the id of the scan whose job has not ended.
func (p pair) pendingScan() string {
	p.t.Helper()
	for line := range strings.Lines(fsb(p.t, "scans", "list", "--state-dir", p.state, p.src, p.dst).want(p.t, 0).stdout) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "pending" {
			return f[0]
		}
	}
	p.t.Fatal("no scan is pending")
	return ""
}

func TestHistoryCannotTellWhatIsExtra(t *testing.T) {
	p := newPair(t)
	treetest.At(t, p.src).File("f", "x")
	r := p.backup("--delete-extra", "--trust-history").want(t, 64)
	if !strings.Contains(r.stderr, "--trust-history") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("it says %s", r.stderr)
	}
	for _, dir := range []string{p.dst, p.state} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s was made all the same", dir)
		}
	}
}

func TestAMountThatIsMissingInTheSourceStopsTheRun(t *testing.T) {
	if !treetest.Root() {
		t.Skip("mounting needs root")
	}
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.File("f", "x")
	b.Dir("disk one")
	if err := unix.Mount("tmpfs", b.Path("disk one"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			_ = unix.Unmount(b.Path("disk one"), unix.MNT_DETACH)
		}
	})
	b.File("disk one/on it", "x")
	p.backup().want(t, 0)
	treetest.Same(t, p.src, p.dst)
	// Nothing to do; the mount is still known, also if nothing on it is looked at.
	p.backup().want(t, 0)
	p.backup("--one-file-system").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	must(t, unix.Unmount(b.Path("disk one"), 0))
	mounted = false
	b.File("f", "changed")
	before := inodes(t, p.dst)
	for _, args := range [][]string{nil, {"--max-delete", "100%"}, {"--trust-history"}, {"--one-file-system"}} {
		r := p.backup(args...).want(t, 78)
		if !strings.Contains(r.stderr, `disk one`) || !strings.Contains(r.stderr, "--accept-source") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: it says %s", args, r.stderr)
		}
		if c := changed(before, inodes(t, p.dst)); len(c) > 0 {
			t.Errorf("%q: changed are %q", args, c)
		}
	}
	p.backup("--accept-source", "--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	p.backup().want(t, 0) // it is missed no longer
}

// A first run that was killed has copied some of what was on the mount, and no run has
// told the history so.
func TestAMountThatIsMissingAfterAKillStopsTheRun(t *testing.T) {
	if !treetest.Root() {
		t.Skip("mounting needs root")
	}
	p := newPair(t)
	b := treetest.At(t, p.src)
	b.Dir("disk")
	if err := unix.Mount("tmpfs", b.Path("disk"), "tmpfs", 0, "size=20m"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	gone := func() { _ = unix.Unmount(b.Path("disk"), unix.MNT_DETACH) }
	t.Cleanup(gone)
	b.File("disk/a", "x")
	b.File("disk/large", strings.Repeat("x", 6<<20))
	b.File("f", "x")
	room := p.smallDestination()
	room(1 << 20)
	p.killedWithoutRoom()
	gone()
	room(1 << 30)
	before := inodes(t, p.dst)
	r := p.backup("--max-delete", "100%").want(t, 78)
	if !strings.Contains(r.stderr, "/disk") || !strings.Contains(r.stderr, "--accept-source") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("it says %s", r.stderr)
	}
	if c := changed(before, inodes(t, p.dst)); len(c) > 0 {
		t.Errorf("changed are %q", c)
	}
	r = p.backup("--accept-source", "--max-delete", "100%").want(t, 0)
	if !strings.Contains(r.stderr, "an interrupted run is ended, since other file systems are mounted in the source now: job ") {
		t.Errorf("it says %s", r.stderr)
	}
	treetest.Same(t, p.src, p.dst)
	p.backup().want(t, 0) // it is missed no longer
	p.unmarked()
}

// TestDamageWhileARunIsInterruptedIsSeen: a run is killed, somebody touches what it has
// copied, and the next run ends the job. What was touched meanwhile is not its work.
func TestDamageWhileARunIsInterruptedIsSeen(t *testing.T) {
	for _, options := range [][]string{nil, {"--exclude", "none"}} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			p := newPair(t)
			b := treetest.At(t, p.src)
			for i := range 3000 {
				b.File(fmt.Sprintf("d%02d/f%04d", i/100, i), fmt.Sprintf("contents %04d", i))
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "fsbackup"), "backup", "-q", "--state-dir", p.state, "--shard-entries", "20", "--slots", "1", p.src, p.dst)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			copied := func() (files []string) {
				list, err := filepath.Glob(filepath.Join(p.dst, "d*", "f*"))
				if err != nil {
					t.Fatal(err)
				}
				return list
			}
			for len(copied()) < 100 {
				runtime.Gosched()
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			files := copied()
			if len(files) == 3000 {
				t.Skip("it was done before it was killed")
			}
			altered, given := files[0], files[1]
			fi, err := os.Stat(altered)
			if err != nil {
				t.Fatal(err)
			}
			err = errors.Join(os.WriteFile(altered, []byte("CONTENTS 9999"), 0o644), os.Chtimes(altered, fi.ModTime(), fi.ModTime()), os.Chmod(given, 0o600))
			if treetest.Root() {
				err = errors.Join(err, os.Chown(given, 77, 77))
			}
			if err != nil {
				t.Fatal(err)
			}
			p.backup(append([]string{"--shard-entries", "20"}, options...)...).want(t, 0)
			fsb(t, "verify", "-q", p.src, p.dst).want(t, 0)
			// And nothing is looked at for it a second time.
			if run := p.backup(append([]string{"--shard-entries", "20"}, options...)...).want(t, 0); run.job(t).Stats.FilesCopied != 0 {
				t.Errorf("%d files are done again", run.job(t).Stats.FilesCopied)
			}
		})
	}
}
