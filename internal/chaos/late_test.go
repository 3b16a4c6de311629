package chaos

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// late runs a job in which a worker falls asleep in the middle of its shards and,
// where there is a standby, the leader as well, with shards under way that it has
// published. The others do the job, then the source changes, and then the sleepers
// wake and what was under way arrives: they must not touch what the job has left,
// nor its figures.
func (x *run) late() {
	x.t.Helper()
	dst := filepath.Join(x.dir, "late")
	f := treetest.Count(treetest.Listing(x.t, x.src))
	scan := x.scan("late", "")
	x.untilAll(len(x.workers))
	x.slow(0)
	// Few threads, and each file on disk before the next: shards take their time.
	id := x.submit(scan, dst, "--shard-entries", "40", "--sync", "file", "--threads", "1")
	p := x.follow(id)
	defer p.stop()
	var asleep []part
	sleep := func(after uint64, component string) {
		if !p.reaches(after) {
			return
		}
		if on, ok := x.pick(x.r, component); ok {
			what := ""
			if component == theLead && x.strand(on) {
				what = " with a batch under way"
			}
			on.d.signal(syscall.SIGSTOP)
			x.t.Logf("late: %s %s sleeps from shard %d on%s", component, on.name, p.count(), what)
			asleep = append(asleep, on)
		}
	}
	sleep(3, aWorker)
	if !x.embedded {
		sleep(p.count()+2, theLead)
	}
	v := p.end()
	x.t.Logf("job late: %s after %.1f s, %d shards repeated, answered by %v", v.State, v.Seconds, v.Stats.ShardsRepeated, v.Workers)
	x.check(v, dst, protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsCopied: f.Dirs, FilesCopied: f.Files, BytesCopied: f.Bytes, Links: f.Links,
	})
	x.disturbSource()
	left := treetest.Listing(x.t, dst)
	for _, on := range asleep {
		said := on.d.said(x.t, standsBy)
		woken := time.Now()
		on.d.signal(syscall.SIGCONT)
		if _, worker := x.workers[on.name]; worker {
			x.idle(woken)
			// Between the last look at its lease and the system call after it, no
			// program can be kept from that call: one in each slot.
			x.untouched(on.name, left, treetest.Listing(x.t, dst), slots)
			left = treetest.Listing(x.t, dst)
			continue
		}
		on.wires.heal()
		x.yields(on.d, said)
		x.idle(time.Now())
		x.untouched(on.name, left, treetest.Listing(x.t, dst), 0)
	}
	now, err := x.Job(x.t.Context(), id)
	if err != nil || now.State != v.State || now.Stats != v.Stats {
		x.t.Errorf("the record of a job that had ended changed: %v\n now %+v\n was %+v", err, now.Stats, v.Stats)
	}
	if x.t.Failed() {
		x.dump(id)
	}
}

// strand holds back what a leader sends until that is a whole batch of shards. It
// reports false if there was none within a third of its lease.
func (x *run) strand(on part) bool {
	x.t.Helper()
	on.wires.mute()
	deadline := time.Now().Add(leader / 3)
	for !on.wires.holds("Nats-Batch-Commit") {
		if time.Now().After(deadline) || !bus.Sleep(x.t.Context(), time.Millisecond) {
			return false
		}
	}
	return true
}

// disturbSource changes the contents of every file, and nothing else.
func (x *run) disturbSource() {
	x.t.Helper()
	for _, e := range treetest.Listing(x.t, x.src) {
		if e.Type != syscall.S_IFREG {
			continue
		}
		f, err := os.OpenFile(filepath.Join(x.src, e.Path), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			x.t.Fatal(err)
		}
		_, err = f.WriteString("changed after the job")
		if cerr := f.Close(); err != nil || cerr != nil {
			x.t.Fatal(err, cerr)
		}
	}
}

// idle waits until every worker has reported twice since a time that it runs nothing.
func (x *run) idle(since time.Time) {
	x.t.Helper()
	deadline := time.Now().Add(time.Minute)
	quiet := map[string]map[time.Time]bool{}
	for {
		v, err := x.Workers(x.t.Context())
		settled := err == nil && len(v.Workers) >= len(x.workers)
		for _, w := range v.Workers {
			if quiet[w.Name] == nil || len(w.Running) > 0 {
				quiet[w.Name] = map[time.Time]bool{}
			}
			if len(w.Running) == 0 && w.LastSeen.After(since) {
				quiet[w.Name][w.LastSeen] = true
			}
			settled = settled && len(quiet[w.Name]) >= 2
		}
		if settled {
			return
		}
		if time.Now().After(deadline) || !bus.Sleep(x.t.Context(), 50*time.Millisecond) {
			x.t.Fatalf("workers do not come to rest: %+v, %v", v, err)
		}
	}
}

// standsBy is what a coordinator says that leads no more.
const standsBy = "leads no longer and stands by"

// yields waits until a leader that woke has seen that it leads no more.
func (x *run) yields(d *daemon, said int) {
	x.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for d.said(x.t, standsBy) == said {
		if time.Now().After(deadline) || !bus.Sleep(x.t.Context(), 50*time.Millisecond) {
			x.dump("")
			d.signal(syscall.SIGQUIT) // its goroutines go to its log
			x.t.Fatalf("%s woke after another had taken its place, and goes on as if it led", d.name)
		}
	}
}

// untouched fails the test if more than a few entries are not what they were, or
// not even the same objects.
func (x *run) untouched(who string, before, after []treetest.Entry, most int) {
	x.t.Helper()
	was := map[string]treetest.Entry{}
	for _, e := range before {
		was[e.Path] = e
	}
	var changed []string
	for _, e := range after {
		old, known := was[e.Path]
		delete(was, e.Path)
		if !known || old.Inode != e.Inode || old.CtimeNS != e.CtimeNS || old.String() != e.String() {
			changed = append(changed, e.String())
		}
	}
	for path := range was {
		changed = append(changed, "gone: "+path)
	}
	switch {
	case len(changed) > most:
		x.t.Errorf("%s woke after the job had ended and changed %d entries:\n%s", who, len(changed), strings.Join(changed[:min(len(changed), 5)], "\n"))
	case len(changed) > 0:
		x.t.Logf("%s performed the call that it was about to: %q", who, changed)
	}
}
