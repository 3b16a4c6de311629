package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// tracedWorker starts a cluster of one worker, which runs under strace with the
// given arguments. stop ends the worker and returns the trace.
func tracedWorker(t *testing.T, slots int, allow string, args ...string) (flag string, stop func() []string) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	addr := freePort(t)
	daemon(t, "nats-server", "-js", "-sd", t.TempDir(), "-a", "127.0.0.1", "-p", addr[strings.LastIndex(addr, ":")+1:])
	url := "nats://" + addr
	waitListen(t, addr)
	daemon(t, "coordinator", "--nats", url, "--store", t.TempDir(), "--name", "c1")
	log := filepath.Join(t.TempDir(), "trace")
	args = append([]string{"-f", "-qq", "-s", "8192", "-o", log}, args...)
	args = append(args, filepath.Join(bin, "worker"), "--nats", url, "--name", "w1", "--slots", fmt.Sprint(slots), "--allow", allow)
	cmd := exec.Command("strace", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	// strace passes no signal on: the worker is its child.
	tell := func(s syscall.Signal) {
		for _, pid := range childrenOf(cmd.Process.Pid) {
			_ = syscall.Kill(pid, s)
		}
	}
	stop = func() []string {
		tell(syscall.SIGTERM)
		<-ended
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return calls(string(text))
	}
	t.Cleanup(func() { tell(syscall.SIGKILL); <-ended })
	flag = "--nats=" + url
	until(t, func(r result) bool { return r.code == 0 && strings.Count(r.stdout, " live ") == 1 }, "workers", flag)
	return flag, stop
}

// childrenOf returns the processes that a process started; none if it has ended.
func childrenOf(pid int) (out []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for f := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// calls puts the lines of a trace together that other threads cut in two: each
// call is where it ended.
func calls(trace string) []string {
	begun := map[string]string{}
	var out []string
	lines := bufio.NewScanner(strings.NewReader(trace))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		tid, call, _ := strings.Cut(lines.Text(), " ")
		call = strings.TrimSpace(call)
		if head, cut := strings.CutSuffix(call, " <unfinished ...>"); cut {
			begun[tid] = head
			continue
		}
		if _, tail, resumed := strings.Cut(call, " resumed>"); resumed && strings.HasPrefix(call, "<... ") {
			call = begun[tid] + tail
		}
		out = append(out, call)
	}
	return out
}

// TestResultsNeverPrecedeTheSyncThatCoversThem follows a real worker with one
// slot, so that its shards come one after the other: since the last name that a
// shard made there is a sync of the file system before its result is published,
// under the policy batch and under file, which also syncs each file before it
// gets its name. Under none there is no sync.
func TestResultsNeverPrecedeTheSyncThatCoversThem(t *testing.T) {
	for _, policy := range []string{"batch", "file", "none"} {
		t.Run(policy, func(t *testing.T) {
			src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
			b := treetest.At(t, src)
			for i := range 12 {
				b.File(fmt.Sprintf("d%d/f%d", i%3, i), "x")
			}
			flag, stop := tracedWorker(t, 1, filepath.Dir(filepath.Dir(src)), "-e", "trace=linkat,renameat,renameat2,mkdirat,unlinkat,fsync,syncfs,write")
			scan := filepath.Join(t.TempDir(), "scan")
			fsb(t, "scan", src, "--out", scan).want(t, 0)
			fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "4", "--sync", policy, "--wait").want(t, 0)
			treetest.Same(t, src, dst)
			checkOrder(t, policy, stop())
		})
	}
}

// copyResult is what the publication of a copy shard's result looks like.
var copyResult = regexp.MustCompile(`^write\(\d+, ".*PUB fsb\.result\.[^.]+\.1\.`)

func checkOrder(t *testing.T, policy string, trace []string) {
	t.Helper()
	const filesMade = 12
	names, fsyncs, syncs, results := 0, 0, 0, 0
	dirty, unsynced := false, 0
	for _, call := range trace {
		name, rest, _ := strings.Cut(call, "(")
		done := strings.HasSuffix(call, " = 0")
		switch {
		case name == "fsync" && done:
			fsyncs++
			unsynced++
		case name == "syncfs" && done:
			syncs++
			dirty = false
		case name == "linkat" && done, strings.HasPrefix(name, "renameat") && done:
			names++
			dirty = true
			if unsynced--; policy == "file" && unsynced < 0 {
				t.Errorf("a file got its name before it was synced: %s", call)
			}
		case name == "mkdirat" && done, name == "unlinkat" && done:
			dirty = true
		case copyResult.MatchString(name + "(" + rest):
			results += strings.Count(rest, "PUB fsb.result.")
			if dirty && policy != "none" {
				t.Errorf("result %d precedes the sync that covers it: %s", results, call)
			}
		}
	}
	if names != filesMade || results < 4 {
		t.Fatalf("%d names made, %d results seen; the trace shows nothing:\n%s", names, results, strings.Join(trace[:min(len(trace), 50)], "\n"))
	}
	want := map[string]bool{"batch": syncs > 0 && fsyncs == 0, "file": syncs > 0 && fsyncs == filesMade, "none": syncs == 0 && fsyncs == 0}
	if !want[policy] {
		t.Errorf("%s: %d syncs of the file system, %d of files", policy, syncs, fsyncs)
	}
}
