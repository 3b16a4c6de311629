package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestAStalledJobIsGivenUpWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	stalled := func(ago time.Duration, cause string) protocol.JobView {
		return protocol.JobView{State: protocol.StateRunning, Stalled: "no room", StallCause: cause, StalledSince: time.Now().Add(-ago)}
	}
	for name, c := range map[string]struct {
		limit time.Duration
		do    func(g *stallGuard)
		over  bool
	}{
		"after its time":           {time.Minute, func(g *stallGuard) { g.look(stalled(0, "space")); time.Sleep(time.Minute) }, true},
		"not before":               {time.Minute, func(g *stallGuard) { g.look(stalled(0, "space")); time.Sleep(time.Minute - 1) }, false},
		"since when it is":         {time.Minute, func(g *stallGuard) { g.look(stalled(50*time.Second, "space")); time.Sleep(10 * time.Second) }, true},
		"at once if for long":      {time.Minute, func(g *stallGuard) { g.look(stalled(time.Hour, "space")) }, true},
		"the clock there is ahead": {time.Minute, func(g *stallGuard) { g.look(stalled(-time.Hour, "space")); time.Sleep(time.Minute) }, true},
		"it went on meanwhile": {time.Minute, func(g *stallGuard) {
			g.look(stalled(0, "space"))
			time.Sleep(30 * time.Second)
			g.look(protocol.JobView{State: protocol.StateRunning})
			g.look(stalled(0, "space"))
			time.Sleep(59 * time.Second)
		}, false},
		"no limit":          {0, func(g *stallGuard) { g.look(stalled(0, "space")); time.Sleep(1000 * time.Hour) }, false},
		"it waits its turn": {time.Minute, func(g *stallGuard) { g.look(stalled(0, protocol.StallQueue)); time.Sleep(time.Hour) }, false},
		"told again": {time.Minute, func(g *stallGuard) {
			v := stalled(0, "space")
			g.look(v)
			time.Sleep(30 * time.Second)
			g.look(v)
			time.Sleep(30 * time.Second)
		}, true},
		"nobody looks": {time.Minute, func(g *stallGuard) { g.look(stalled(0, "space")); g.stop(); time.Sleep(time.Hour) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				g := newStallGuard(c.limit, cancel, func(v protocol.JobView) error { return errors.Join(errStalled, errors.New(v.Stalled)) })
				defer g.stop()
				c.do(g)
				synctest.Wait()
				if over := errors.Is(context.Cause(ctx), errStalled); over != c.over {
					t.Errorf("given up: %v", over)
				}
			})
		})
	}
}

func TestHowLongAStalledJobIsWaitedFor(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"": stallAlone, "0": 0, "90s": 90 * time.Second, "2d": 48 * time.Hour} {
		var f stallFlags
		if text != "" {
			if err := f.StallTimeout.UnmarshalText([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.within(&progress{}); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if got := (stallFlags{}).within(&progress{tty: true}); got != 0 {
		t.Errorf("on a terminal: %v", got)
	}
	if err := new(patience).UnmarshalText([]byte("soon")); err == nil {
		t.Error("no duration is accepted")
	}
}

func TestFailureLinesBeginWithThePath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		f           protocol.FailureView
		alone, full string
	}{
		{
			protocol.FailureView{Path: "a/b", Op: "open source", Reason: `open source "a/b": permission denied (the worker's user lacks the permission)`, ControlFile: "/c/x.txt", Line: 12},
			`"a/b": open source: permission denied (this user lacks the permission)`,
			`"a/b": open source: permission denied (the worker's user lacks the permission) (/c/x.txt:12)`,
		},
		{protocol.FailureView{Path: "", Op: "set times of", Reason: "no\nroom", ControlFile: "/c/x.txt", Line: 3}, `".": set times of: no room`, `".": set times of: no room (/c/x.txt:3)`},
		{protocol.FailureView{Op: "admit control file", Reason: "no title", ControlFile: "/c/x.txt"}, `"/c/x.txt": admit control file: no title`, `"/c/x.txt": admit control file: no title`},
		{protocol.FailureView{Path: "\xff", Op: "verify", Reason: "verify: is missing", ControlFile: "/c/x.txt", Line: 1}, `"\xff": verify: is missing`, `"\xff": verify: is missing (/c/x.txt:1)`},
	} {
		if got := failureLine(c.f, false); got != c.alone {
			t.Errorf("on one host: %s", got)
		}
		if got := failureLine(c.f, true); got != c.full {
			t.Errorf("in a cluster: %s", got)
		}
	}
}

func TestStallsAreToldAlsoQuietly(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := newProgress(&out, true)
	for _, s := range []string{"", "no room", "no room", "", "no room"} {
		p.job(protocol.JobView{State: protocol.StateRunning, Stalled: s})
	}
	p.done()
	if out.String() != "stalled: no room\nstalled: no room\n" {
		t.Errorf("%q", out.String())
	}
}

// TestARunWithoutRoomEndsAndIsResumed on a destination that cannot be written at
// first. What it says is for people who know of no cluster.
func TestARunWithoutRoomEndsAndIsResumed(t *testing.T) {
	if !treetest.Root() {
		t.Skip("needs root")
	}
	p := newPair(t)
	treetest.At(t, p.src).File("d/f", "x")
	if err := os.Mkdir(p.dst, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", p.dst, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("needs tmpfs mounts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.dst, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for name, args := range map[string][]string{"without state": {"--no-state"}, "with a state": nil} {
		r := fsb(t, append([]string{"backup", "-q", "--stall-timeout", "1ms", "--state-dir", p.state, p.src, p.dst}, args...)...).want(t, 75)
		if !strings.Contains(r.stderr, "fsbackup: the job is stalled for 1ms: ") || !strings.Contains(r.stderr, "read-only file system") || !strings.Contains(r.stderr, "(run it again to go on)") {
			t.Errorf("%s: %v", name, r)
		}
		for _, word := range []string{"worker", "nonce", "control"} {
			if strings.Contains(r.stderr, word) {
				t.Errorf("%s: it speaks of a %s: %v", name, word, r)
			}
		}
	}
	if err := unix.Mount("none", p.dst, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if r := p.backup().want(t, 0); !strings.Contains(r.stderr, "an interrupted run is resumed") {
		t.Errorf("it is not resumed: %v", r)
	}
	treetest.Same(t, p.src, p.dst)
}

func TestMistakesWithRootsAreToldWithoutTheCluster(t *testing.T) {
	src := t.TempDir()
	treetest.At(t, src).File("f", "x")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := fsb(t, "backup", src, file).want(t, 64); !strings.Contains(r.stderr, "it is not a directory") {
		t.Errorf("a destination that is a file: %v", r)
	}
	// Who waits for a job of a cluster gives up as well, and the job goes on.
	dst := t.TempDir()
	nats := cluster(t, 0)
	scan := filepath.Join(t.TempDir(), "scan")
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	args := []string{"submit", nats, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--wait", "--stall-timeout", "1ms"}
	r := fsb(t, args...).want(t, 75)
	if !strings.Contains(r.stderr, "the job is stalled for 1ms: no worker in pool") || !strings.Contains(r.stderr, "fsbackup watch ") {
		t.Errorf("message: %v", r)
	}
	fsb(t, "watch", nats, "last", "-q", "--stall-timeout", "1ms").want(t, 75)
}
