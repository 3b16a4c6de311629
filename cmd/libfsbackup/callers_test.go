package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// libraryVersion is what `make lib` gave the library.
func libraryVersion(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink(filepath.Join(makeLib(t), "libfsbackup.so.1"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(name, "libfsbackup.so.")
}

// installed returns the directory into which `make install` put the library, with the
// name that callers of FS_Backup load.
func installed(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := command("make", "-C", "../..", "install", "DIST="+makeLib(t), "PREFIX=/usr", "DESTDIR="+root, "COMPAT=1"); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "usr", "lib")
}

// TestVersionsAgree: the file's name, fsbackup_version, the .pc file and the last node
// of the map, which has what was added last.
func TestVersionsAgree(t *testing.T) {
	t.Parallel()
	want := libraryVersion(t)
	src := filepath.Join(t.TempDir(), "version.c")
	if err := os.WriteFile(src, []byte("#include <fsbackup.h>\n#include <stdio.h>\nint main(void) { printf(\"%s %s\\n\", fsbackup_version(), fsbackup_commit()); return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := runProgram(t, nil, program(t, src))
	is := strings.Fields(out)
	if len(is) != 2 || is[0] != want || is[1] == "unknown" {
		t.Errorf("the library says %q, its file %s", out, want)
	}
	pc, err := os.ReadFile(filepath.Join(makeLib(t), "fsbackup.pc"))
	if err != nil || !strings.Contains(string(pc), "\nVersion: "+want+"\n") || !strings.Contains(string(pc), "\ncommit="+is[1]+"\n") {
		t.Errorf("the .pc file: %v\n%s", err, pc)
	}
	text, err := os.ReadFile("fsbackup.map")
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "FSBACKUP_"); ok {
			nodes = append(nodes, strings.Fields(v)[0])
		}
	}
	if len(nodes) == 0 || nodes[0] != "1" || !strings.HasPrefix(want+".", nodes[len(nodes)-1]+".") {
		t.Errorf("nodes %q of the map, version %s", nodes, want)
	}
}

// TestACallerThatPollsFromAnotherThread is the example in Python: an instance for each
// control file, polled while it is enqueued and started, nothing destroyed, the end by
// _exit. FSBACKUP_LONG has it a hundred times each.
func TestACallerThatPollsFromAnotherThread(t *testing.T) {
	t.Parallel()
	need(t, "python3")
	lib := filepath.Join(installed(t), "libBackup.so")
	rounds := 8
	if os.Getenv("FSBACKUP_LONG") != "" {
		rounds = 100
	}
	base := t.TempDir()
	src := treetest.At(t, filepath.Join(base, "src"))
	for i := range 60 {
		src.File(fmt.Sprintf("d%d/f%d", i/10, i), "content")
	}
	if err := os.Link(src.Path("d0/f0"), src.Path("d1/link")); err != nil {
		t.Fatal(err)
	}
	s := scan(t, src.Path(""), 10)
	tmp := t.TempDir()
	for _, pause := range []string{"0.001", "0"} {
		right := 0
		for n := range rounds {
			dst := filepath.Join(base, fmt.Sprintf("dst-%s-%d", pause, n))
			cmd := exec.CommandContext(t.Context(), "python3", "../../examples/python/backup.py", s.src, dst, s.meta, s.ctrl, lib, pause)
			cmd.Env = append(withoutCluster(), "TMPDIR="+tmp)
			out, err := cmd.CombinedOutput()
			if err != nil || strings.Count(string(out), "status 1") != len(s.all())-len(s.files[controlfile.Mtime])+1 {
				t.Errorf("pause %s, run %d: %v\n%s", pause, n, err, out)
				continue
			}
			treetest.Same(t, s.src, dst)
			right++
			if err := os.RemoveAll(dst); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("polls every %s s: %d of %d runs are right", pause, right, rounds)
	}
	// Each Start sweeps what the process before left.
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 1 {
		t.Errorf("%d directories are left: %v", len(left), err)
	}
}

func TestTheWrapperForCpp(t *testing.T) {
	t.Parallel()
	for _, std := range []string{"-std=c++11", "-std=c++17", "-std=c++20"} {
		base := t.TempDir()
		src := treetest.At(t, filepath.Join(base, "src"))
		for i := range 40 {
			src.File(fmt.Sprintf("d%d/f%d", i/10, i), "content")
		}
		src.File("gone0", "x")
		src.File("gone1", "x")
		s := scan(t, src.Path(""), 0)
		if err := errors.Join(os.Remove(src.Path("gone0")), os.Remove(src.Path("gone1"))); err != nil {
			t.Fatal(err)
		}
		out := runProgram(t, nil, program(t, "testdata/wrapper.cc", std, "-pedantic"), s.src, filepath.Join(base, "dst"), s.meta, s.files[controlfile.Copy][0])
		if out != "ok\n" {
			t.Errorf("%s: %q", std, out)
		}
	}
}

// TestAHostThatEndsByExit leaves its directory, which the next Start sweeps.
func TestAHostThatEndsByExit(t *testing.T) {
	t.Parallel()
	s, dst := small(t, 200)
	prog, tmp := program(t, "testdata/exits.c"), t.TempDir()
	exits := func(how, tmpdir string) (string, int) {
		t.Helper()
		var errs bytes.Buffer
		cmd := exec.CommandContext(t.Context(), prog, s.src, dst, s.meta, s.files[controlfile.Copy][0], how)
		cmd.Env, cmd.Stderr = append(withoutCluster(), "TMPDIR="+tmpdir), &errs
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return errs.String(), cmd.ProcessState.ExitCode()
	}
	var before []string
	for _, how := range []string{"now", "ended", "now", "ended"} {
		if errs, code := exits(how, tmp); code != 0 {
			t.Fatalf("%s: exit %d: %s", how, code, errs)
		}
		left, err := filepath.Glob(filepath.Join(tmp, "*"))
		if err != nil || len(left) != 1 || slices.Equal(left, before) {
			t.Errorf("after %s there is %q (%v), before there was %q", how, left, err, before)
		}
		before = left
	}
	treetest.Same(t, s.src, dst)
	missing := filepath.Join(tmp, "missing")
	if errs, code := exits("ended", missing); code != 7 || !strings.Contains(errs, missing) || !strings.Contains(errs, "TMPDIR") || strings.Count(errs, "\n") != 1 {
		t.Errorf("without a directory: exit %d: %s", code, errs)
	}
}
