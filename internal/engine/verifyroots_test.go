package engine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestVerifyReadsWhatIsStored changes a byte below the file system: the page
// cache still has what was written.
func TestVerifyReadsWhatIsStored(t *testing.T) {
	g := newRig(t)
	at := treetest.LoopFS(t, "ext4")
	g.dst = filepath.Join(at, "dst")
	must(t, os.Mkdir(g.dst, 0o755))
	g.spec.Destination, g.spec.Sync = g.dst, SyncFile
	mark := bytes.Repeat([]byte("what is stored of this file "), 300)
	g.write("f", string(mark))
	g.backup()
	wantFailures(t, g.verify(g.verifying()...))
	img := filepath.Join(filepath.Dir(at), "img")
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{'W'}, find(t, f, mark)+5000)
	must(t, errors.Join(err, f.Close()))
	wantFailures(t, g.run(g.batch(5, g.verifying()...)), "f")
}

// TestUncacheHasFilesReadFromWhereTheyAreStored though nothing was synced.
func TestUncacheHasFilesReadFromWhereTheyAreStored(t *testing.T) {
	at := treetest.LoopFS(t, "ext4")
	f, err := os.OpenFile(filepath.Join(at, "f"), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer func() { _ = f.Close() }()
	mark := bytes.Repeat([]byte("what is stored of this file "), 300)
	_, err = f.Write(mark)
	must(t, err)
	must(t, fsys.Uncache(int(f.Fd())))
	img, err := os.OpenFile(filepath.Join(filepath.Dir(at), "img"), os.O_RDWR, 0)
	must(t, err)
	_, err = img.WriteAt([]byte{'W'}, find(t, img, mark)+5000)
	must(t, errors.Join(err, img.Close()))
	got := make([]byte, 1)
	_, err = f.ReadAt(got, 5000)
	must(t, err)
	if got[0] != 'W' {
		t.Errorf("read %q from the page cache", got)
	}
}

// find returns where a sparse file holds data.
func find(t *testing.T, f *os.File, data []byte) int64 {
	t.Helper()
	for off := int64(0); ; {
		from, err := f.Seek(off, unix.SEEK_DATA)
		if err != nil {
			t.Fatal("the data is not in the image in one piece")
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		must(t, err)
		buf := make([]byte, to-from)
		_, err = f.ReadAt(buf, from)
		must(t, err)
		if i := bytes.Index(buf, data); i >= 0 {
			return from + int64(i)
		}
		off = to
	}
}

// TestAReadOnlyJobRefusesEverythingElse whatever a batch says.
func TestAReadOnlyJobRefusesEverythingElse(t *testing.T) {
	g := newRig(t)
	g.write("f", "new")
	g.write("d/g", "g")
	g.linked("l", "l1", "l2")
	g.target("f", "old")
	g.target("gone", "x")
	var es []Entry
	for _, op := range []entry.Op{entry.OpCopy, entry.OpMkdir, entry.OpFinish, entry.OpTouch} {
		e := g.copyOf("f")
		if op != entry.OpCopy {
			e = g.copyOf("d")
		}
		e.Op = op
		es = append(es, e)
	}
	es = append(es, file("gone"), tree("gone"))
	es = append(es, g.group(1, "l1", "l2")...)
	o := g.verify(es...)
	if len(o.Failures) != len(es) {
		t.Errorf("failures %+v", o.Failures)
	}
	g.spec.ReadOnly, g.spec.CreateDest, g.spec.Destination = true, true, filepath.Join(g.dst, "made")
	if j, err := g.e.OpenJob(g.spec); !fault.Is(err, fault.NotFound) {
		t.Errorf("a destination was made: %v %v", j, err)
	}
}

func TestVerifyOnAReadOnlyMount(t *testing.T) {
	g := newRigIn(t, shm(t))
	mountTmpfs(t, g.dst, "size=16m")
	g.write("d/f", "x")
	g.backup()
	must(t, unix.Mount("", g.dst, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	o := g.verify(g.verifying()...)
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{DirsVerified: 2, FilesVerified: 1, BytesVerified: 1})
}
