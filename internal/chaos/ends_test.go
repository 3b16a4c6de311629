package chaos

import (
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsbackup/fsbackup/internal/clustertest"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// ends runs a job that ends in one of the ways in which jobs end, while a fault hits
// the cluster. Then an ordinary run, which knows of it what the job's
// record says and looks at the destination, makes it identical.
func (x *run) ends(seed int) {
	x.t.Helper()
	way := clustertest.Ends[seed%len(clustertest.Ends)]
	dst, state := filepath.Join(x.dir, "ends"), filepath.Join(x.dir, "state")
	x.untilAll(len(x.workers))
	x.slow(pace)
	// Every other time shards take seconds, so that the job ends in the middle of
	// some: large ones, few threads, and each file on disk before the next.
	long := seed/len(clustertest.Ends)%2 == 0
	empty, spare := x.r.IntN(2) == 0, x.r.IntN(2) == 0
	e := clustertest.Begin(x.t, x.Client, x.r, way, x.src, dst, state, func(s *protocol.JobSpec) {
		s.DeleteEmpty, s.SpareDirs = empty, spare
		if s.Limits.Entries = 8; long {
			s.Limits.Entries, s.Sync, s.Threads = 300, "file", 1
		}
	})
	p := x.follow(e.ID)
	defer p.stop()
	var deaf sync.WaitGroup
	defer deaf.Wait()
	switch {
	case long:
		for has := 0; has < 20 && !p.over(); has = entriesOf(dst) {
			x.wait(5 * time.Millisecond)
		}
		x.slow(0)
		// A worker does not hear that the job is to end, and goes on while its lease
		// lasts: for less time than it takes to replace a leader.
		if on, ok := x.pick(x.r, aWorker); ok {
			kind, r := []string{cut, stall}[x.r.IntN(2)], rand.New(rand.NewPCG(x.r.Uint64(), 1))
			deaf.Go(func() { x.inject(r, disturbance{aWorker, kind}, on) })
			x.t.Logf("after %d shards, %s: %s %s as the job is to end", p.count(), p.phase(), on.name, kind)
		}
		e.Strike()
	case !p.reaches(10 + x.r.Uint64N(60)):
	case e.Strike():
		// The leader dies as it has made the cancel durable.
		if on, ok := x.pick(x.r, theLead); ok {
			on.d.end(syscall.SIGKILL, time.Duration(x.r.Int64N(int64(2*time.Second))))
			x.t.Logf("%s %s killed behind the cancel", theLead, on.name)
		}
	case p.reaches(p.count() + 4):
		x.hit(p)
	}
	v := p.end()
	x.slow(0)
	left := treetest.Listing(x.t, dst)
	for _, f := range left {
		if strings.HasPrefix(filepath.Base(f.Path), ".fsbackup-") {
			x.t.Errorf("a job that ended %s left its mark: %q", way, f.Path)
		}
	}
	deaf.Wait()
	e.Unqueued(x.bus)
	x.untilAll(len(x.workers))
	x.idle(time.Now())
	// A frozen worker may be about to perform one call in each slot.
	x.untouched("a worker", left, treetest.Listing(x.t, dst), slots)
	e.Settle(v)
	if out, err := x.fsb("backup", "--quiet", "--max-delete", "100%", "--state-dir", state, x.src, dst); err != nil {
		x.t.Errorf("the next run: %v\n%s", err, out)
	}
	if d := treetest.Diff(treetest.Listing(x.t, x.src), treetest.Listing(x.t, dst)); len(d) > 0 {
		x.t.Errorf("a job ended %s, and an ordinary run after it left %d differences, first %s", way, len(d), d[0])
	}
	if x.t.Failed() {
		x.dump(e.ID)
	}
}

// entriesOf is about how many entries a tree has that is being written.
func entriesOf(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { // something may just have gone
		n++
		return nil
	})
	return n
}
