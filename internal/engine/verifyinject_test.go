package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// newDiffering is a batch that compares entries each of which differs in another
// way, described for a driver.
func newDiffering(t *testing.T) *injected {
	needRoot(t)
	g := newRigIn(t, shm(t))
	g.spec.Threads, g.spec.ID = 1, "differing"
	for _, p := range []string{"contents", "attribute", "mode", "missing"} {
		g.write(p, p)
	}
	must(t, unix.Setxattr(filepath.Join(g.src, "attribute"), "user.colour", []byte("red"), 0))
	must(t, os.Truncate(g.write("sparse", "s"), 1<<20))
	must(t, os.Symlink("to", filepath.Join(g.src, "link")))
	must(t, unix.Mknod(filepath.Join(g.src, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(7, 3))))
	for _, d := range []string{"names", "time", "attributes"} {
		must(t, os.Mkdir(filepath.Join(g.src, d), 0o750))
	}
	g.linked("xx", "l1", "l2")
	copies, _ := g.scan()
	wantFailures(t, g.run(g.batch(1, copies...)))
	wantFailures(t, g.run(g.batch(3, g.group(1, "l1", "l2")...)))
	_, finishes := g.scan()
	wantFailures(t, g.run(g.batch(6, finishes...)))
	g.same()
	at := func(p string) string { return filepath.Join(g.dst, p) }
	timed := func(p string, f func()) {
		st, up := lstat(t, at(p)), lstat(t, g.dst)
		f()
		if exists(at(p)) {
			setTimes(t, at(p), st.Atim, st.Mtim)
		}
		setTimes(t, g.dst, up.Atim, up.Mtim)
	}
	timed("contents", func() { must(t, os.WriteFile(at("contents"), []byte("c0ntents"), 0)) })
	timed("sparse", func() {
		must(t, os.WriteFile(at("sparse"), []byte("t"), 0))
		must(t, os.Truncate(at("sparse"), 1<<20))
	})
	must(t, unix.Setxattr(at("attribute"), "user.colour", []byte("rad"), 0))
	must(t, os.Chmod(at("mode"), 0o600))
	timed("missing", func() { must(t, os.Remove(at("missing"))) })
	for p, make := range map[string]func() error{
		"link":   func() error { return os.Symlink("ta", at("link")) },
		"device": func() error { return unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(7, 4))) },
	} {
		timed(p, func() {
			must(t, os.Remove(at(p)))
			must(t, make())
		})
	}
	timed("names", func() { put(t, at("names/extra"), "x") })
	setTimes(t, at("time"), unix.Timespec{Sec: 1}, unix.Timespec{Sec: lstat(t, at("time")).Mtim.Sec, Nsec: 7})
	must(t, unix.Setxattr(at("attributes"), "user.more", []byte("m"), 0))
	timed("l2", func() {
		must(t, os.Remove(at("l2")))
		put(t, at("l2"), "xx")
	})
	times := g.copyOf("time")
	times.Op, times.IsDir = entry.OpVerifyTimes, true
	es := append(g.verifying(), times)
	es = slices.DeleteFunc(es, func(e Entry) bool { return e.Path == "" || e.Path == "l1" || e.Path == "l2" })
	group := g.group(1, "l1", "l2")
	for i := range group {
		group[i].Op = entry.OpVerifyLink
	}
	g.spec.ReadOnly = true
	in := &injected{rig: g, batch: g.batch(5, append(es, group...)...), file: filepath.Join(filepath.Dir(g.src), "batch")}
	data, err := json.Marshal(driven{Spec: g.spec, Batch: in.batch})
	must(t, err)
	must(t, os.WriteFile(in.file, data, 0o600))
	return in
}

// TestNoFailedSystemCallHidesADifference makes each system call of a verifying
// batch fail: each entry that differs is still told, as different or as one that
// could not be compared. Of the calls every sixth one fails, with FSBACKUP_LONG
// set each.
func TestNoFailedSystemCallHidesADifference(t *testing.T) {
	t.Parallel()
	needStrace(t)
	in := newDiffering(t)
	all := []string{"attribute", "attributes", "contents", "device", "link", "missing", "mode", "names/extra", "sparse", "time", "time", "l2"}
	wantFailures(t, in.run(in.batch), all...)
	in.failing = len(all)
	differ := map[string]int{} // failures of each path: one goes by two lines
	for _, p := range all {
		differ[p]++
	}
	base, total := in.calls()
	made := 0
	for _, name := range []string{"openat", "openat2", "newfstatat", "fstat", "pread64", "lseek", "readlinkat", "getxattr", "listxattr", "getdents64", "fadvise64", "close"} {
		for n := base[name] + 1; n <= total[name]; n++ {
			if made++; os.Getenv("FSBACKUP_LONG") == "" && made%6 != 0 {
				continue
			}
			what := fmt.Sprintf("%s %d of %d", name, n, total[name])
			d, begun := in.strace("-o", "/dev/null", "-e", "trace="+name, "-e", fmt.Sprintf("inject=%s:error=EIO:when=%d", name, n))
			if !begun || d == nil {
				t.Errorf("%s: the process did not survive it", what)
				continue
			}
			if d.Err != "" {
				continue // the batch goes back
			}
			told := map[string]int{}
			for _, f := range d.Outcome.Failures {
				told[f.Path]++
			}
			for p, n := range differ {
				// A directory whose names cannot be listed stands for them, and where one
				// name of a group cannot be compared there is nothing to hold the other against.
				if told[p] < n && told[strings.TrimSuffix(p, "/extra")] < n && (p != "l2" || told["l1"] == 0) {
					t.Errorf("%s: too little is said of %s: %+v", what, p, d.Outcome.Failures)
				}
			}
		}
	}
	t.Logf("%d system calls", made)
	if made < 100 {
		t.Errorf("only %d system calls were met", made)
	}
}
