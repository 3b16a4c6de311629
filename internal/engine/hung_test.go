package engine

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// hung waits until n operations hang, and returns them.
func (g *rig) hung(n int, patience time.Duration) []Operation {
	g.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if l := g.e.Hung(patience); len(l) >= n {
			return l
		}
		select {
		case <-tick.C:
		case <-g.t.Context().Done():
			g.t.Fatal("nothing hangs")
		}
	}
}

// TestHungFileSystemIsNamedAndKeepsNothingFromOthers freezes a destination while
// one job writes to it with all places and the only buffer of the engine: what
// hangs is named, another job goes through meanwhile, and once the file system
// is back the first one ends as if nothing had been.
func TestHungFileSystemIsNamedAndKeepsNothingFromOthers(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	g := newRig(t)
	must(t, g.e.Close())
	e, err := New(Config{ReadThreads: 2, WriteThreads: 2, Memory: bufferSize})
	must(t, err)
	g.e = e
	g.write("large", strings.Repeat("0123456789abcdef", 1<<20))
	g.write("small", "s")
	good := *g
	good.spec.ID = "good"
	g.spec.ID, g.spec.Destination, g.dst = "hangs", dir, dir

	// It freezes once the large file is under way, with the buffer in its hands.
	var once sync.Once
	checks := 0
	guard := guardFunc(func() error {
		if checks++; checks == 2 {
			once.Do(freeze)
		}
		return nil
	})
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	began := time.Now()
	var o *Outcome
	var wg sync.WaitGroup
	wg.Go(func() { o, err = j.Run(t.Context(), g.batch(1, g.copyOf("large")), guard) })
	got := g.hung(1, 100*time.Millisecond)
	if got[0].Job != "hangs" || got[0].Doing != "copy" || got[0].Path != "large" || got[0].Since.Before(began) || time.Since(got[0].Since) < 100*time.Millisecond {
		t.Errorf("%+v", got)
	}
	var o2 *Outcome
	var err2 error
	wg.Go(func() { o2, err2 = j.Run(t.Context(), g.batch(1, g.copyOf("small")), nil) })
	for _, want := range []string{"large", "small"} {
		if l := g.hung(2, 100*time.Millisecond); len(l) != 2 || l[0].Path != want && l[1].Path != want {
			t.Errorf("%+v", l)
		}
	}
	o3 := good.run(good.batch(1, good.copyOf("large"), good.copyOf("small")))
	wantFailures(t, o3)
	good.wantCounts(o3, entry.Counts{FilesCopied: 2, BytesCopied: 16<<20 + 1})

	thaw()
	wg.Wait()
	must(t, err)
	must(t, err2)
	wantFailures(t, o)
	wantFailures(t, o2)
	must(t, j.Close())
	if l := g.e.Hung(0); len(l) > 0 {
		t.Errorf("still under way: %+v", l)
	}
	for what, s := range map[string]slots{"reads": e.reads, "writes": e.writes} {
		if len(s) != 0 {
			t.Errorf("%d of %s are held by nobody", len(s), what)
		}
	}
	if len(e.bufs.make) != len(e.bufs.free) || len(e.bufs.free) > cap(e.bufs.free) {
		t.Errorf("%d buffers are there, %d are accounted for", len(e.bufs.free), len(e.bufs.make))
	}
	for _, name := range []string{"large", "small"} {
		if read(t, filepath.Join(dir, name)) != read(t, filepath.Join(g.src, name)) {
			t.Errorf("%s differs", name)
		}
	}
}

// TestWhatIsSlowIsNotHung: each step of a long entry is a sign of progress.
func TestWhatIsSlowIsNotHung(t *testing.T) {
	g := newRig(t)
	for i := range 20 {
		g.target("d/"+string(rune('a'+i)), "x")
	}
	g.spec.DeleteUnchecked = true
	steps, last := 0, time.Now()
	guard := guardFunc(func() error {
		l := g.e.Hung(0)
		if len(l) != 1 || l[0].Path != "d" || l[0].Since.Before(last) {
			t.Errorf("step %d, after %v: %+v", steps, last, l)
		}
		steps, last = steps+1, time.Now()
		return nil
	})
	o, err := g.try(g.batch(2, tree("d")), guard)
	must(t, err)
	wantFailures(t, o)
	if steps < 20 {
		t.Errorf("only %d steps", steps)
	}
}

// TestRootThatHangsIsNamed does so for what concerns a root as a whole.
func TestRootThatHangsIsNamed(t *testing.T) {
	dir, freeze, thaw := treetest.Freezable(t)
	g := newRig(t)
	g.spec.Destination = dir
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	freeze()
	done := make(chan error, 1)
	go func() { done <- j.PutNonce("n") }()
	if l := g.hung(1, 50*time.Millisecond); l[0].Doing != "put the job's mark in" || l[0].Path != dir || l[0].Job != g.spec.ID {
		t.Errorf("%+v", l)
	}
	if err := g.e.Close(); err != nil {
		t.Error(err)
	}
	thaw()
	must(t, <-done)
	must(t, os.Remove(filepath.Join(dir, noncePrefix+"n")))
	must(t, j.Close())
}
