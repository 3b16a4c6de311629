package engine

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

func TestTouchSetsDirectoriesFromTheRecord(t *testing.T) {
	g := newRig(t)
	when := unix.Timespec{Sec: 1500000000, Nsec: 123456789}
	for _, d := range []string{"agrees", "differs", "gone"} {
		must(t, os.Mkdir(filepath.Join(g.src, d), 0o755))
		must(t, os.Mkdir(filepath.Join(g.dst, d), 0o755))
		setTimes(t, filepath.Join(g.src, d), when, when)
	}
	var es []Entry
	for _, d := range []string{"agrees", "differs", "gone", ""} {
		e := g.copyOf(d)
		e.Op = entry.OpTouch
		e.Meta.Mode = unix.S_IFDIR | 0o2750
		es = append(es, e)
	}
	es[1].Meta.Mtime--
	must(t, os.Remove(filepath.Join(g.src, "gone")))
	o := g.run(g.batch(4, es...))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{DirsTouched: 4})
	for d, want := range map[string]unix.Timespec{"agrees": when, "differs": {Sec: 1499999999}, "gone": {Sec: 1500000000}} {
		st := lstat(t, filepath.Join(g.dst, d))
		if st.Mtim != want || st.Mode&0o7777 != 0o2750 {
			t.Errorf("%s: mtime %v mode %o", d, st.Mtim, st.Mode)
		}
	}
}

func TestFinishOfWhatIsNoDirectoryFails(t *testing.T) {
	g := newRig(t)
	outside := shm(t)
	must(t, os.Chmod(outside, 0o755))
	for _, d := range []string{"missing", "file", "link"} {
		must(t, os.Mkdir(filepath.Join(g.src, d), 0o700))
	}
	g.target("file", "x")
	must(t, os.Symlink(outside, filepath.Join(g.dst, "link")))
	var es []Entry
	for _, d := range []string{"missing", "file", "link"} {
		e := g.copyOf(d)
		e.Op = entry.OpFinish
		es = append(es, e)
	}
	o := g.run(g.batch(6, es...))
	wantFailures(t, o, "missing", "file", "link")
	g.wantCounts(o, entry.Counts{DirsFailed: 3})
	if lstat(t, outside).Mode&0o777 != 0o755 {
		t.Error("finished through a link")
	}
	for _, f := range o.Failures {
		if !f.IsDir || f.Kind != uint8(fault.NotFound) {
			t.Errorf("%+v", f)
		}
	}
}
