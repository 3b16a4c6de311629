package engine

import (
	"strings"
	"sync"
	"testing"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestLargeFilesShowHowFarTheyAre stops the write of a large file in its middle, on a
// file system that hangs there, and looks.
func TestLargeFilesShowHowFarTheyAre(t *testing.T) {
	at := t.TempDir()
	f := treetest.Faulty(t, at)
	g := newRig(t)
	g.spec.Destination = at
	g.spec.Sync = SyncNone
	const size = 6 << 20
	g.write("large", strings.Repeat("x", size))
	g.write("small", "x")
	reached := make(chan struct{})
	var once sync.Once
	f.Inject(func(c treetest.Call) treetest.Fault {
		if c.Op == "write" && c.Offset >= size/2 {
			once.Do(func() { close(reached) })
			return treetest.Fault{Hang: true}
		}
		return treetest.Fault{}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		copies, _ := g.scan()
		g.run(g.batch(1, copies...))
	}()
	<-reached
	files := g.e.Copying(1<<20, 10)
	if len(files) != 1 || files[0].Path != "large" || files[0].Size != size || files[0].Done < size/4 || files[0].Done > size/2 || files[0].Since.IsZero() {
		t.Errorf("files being copied: %+v", files)
	}
	if n := len(g.e.Copying(size+1, 10)) + len(g.e.Copying(1, 0)); n != 0 {
		t.Errorf("%d files that were not asked for", n)
	}
	f.Thaw()
	<-done
	if files := g.e.Copying(1, 10); len(files) != 0 {
		t.Errorf("files after the copy: %+v", files)
	}
}
