package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

const (
	// faultsFull and faultsIncremental are how many faults hit a seed's two
	// disturbed jobs, at least.
	faultsFull        = 3
	faultsIncremental = 4
	// watchdog is after how long a job that was only disturbed counts as stuck.
	watchdog = 3 * time.Minute
)

var (
	// binaries is where TestMain puts what tests start as processes.
	binaries string
	// mutantName is the defence that is switched off in the binaries: see internal/mutant.
	mutantName = os.Getenv("FSBACKUP_CHAOS_MUTANT")
	results    table
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if seeds() == 0 {
			return m.Run()
		}
		var err error
		if binaries, err = os.MkdirTemp("", "fsbackup-chaos-bin-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(binaries) }() // in the temporary directory
		args := []string{"build", "-o", binaries + "/"}
		if mutantName != "" {
			args = append(args, "-tags", "chaosmutant")
		}
		build := exec.Command("go", append(args, "../../cmd/fsbackup", "../../cmd/coordinator", "../../cmd/worker", "github.com/nats-io/nats-server/v2")...)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the commands: %v\n%s", err, out)
			return 1
		}
		code := m.Run()
		fmt.Fprintf(os.Stderr, "recovery of %d faults:\n%s", len(results.rows), &results)
		return code
	}())
}

// seeds is how many seeds to run: none unless asked for, they take minutes.
func seeds() int {
	n, err := strconv.Atoi(os.Getenv("FSBACKUP_CHAOS_SEEDS"))
	if err != nil {
		return 0
	}
	return n
}

// firstSeed is the seed to begin with: one that failed is run alone.
func firstSeed() int {
	n, err := strconv.Atoi(os.Getenv("FSBACKUP_CHAOS_FIRST"))
	if err != nil {
		return 0
	}
	return n
}

func TestJobsAreExactWhateverIsKilledFrozenOrCutOff(t *testing.T) {
	if seeds() == 0 {
		t.Skip("takes minutes: make chaos SEEDS=n")
	}
	for i := range seeds() {
		seed := firstSeed() + i
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			trial(t, seed)
		})
	}
}

// run is one seed.
type run struct {
	*cluster
	t        *testing.T
	r        *rand.Rand
	src, dst string
	deck     []disturbance
	drawn    int // of the deck
	injected int
}

func trial(t *testing.T, seed int) {
	logs, err := os.MkdirTemp("", fmt.Sprintf("fsbackup-chaos-seed%d-", seed)) //nolint:usetesting // it stays where the test fails
	if err != nil {
		t.Fatal(err)
	}
	keepLogs(t, logs)
	r := rand.New(rand.NewPCG(uint64(seed), 11))
	// Every third seed has NATS embedded in its only coordinator.
	c := newCluster(t, logs, seed%3 == 0)
	x := &run{cluster: c, t: t, r: r, src: filepath.Join(c.dir, "src"), dst: filepath.Join(c.dir, "dst"), deck: c.disturbances()}
	r.Shuffle(len(x.deck), func(i, k int) { x.deck[i], x.deck[k] = x.deck[k], x.deck[i] })
	t.Logf("seed %d, NATS embedded: %v", seed, c.embedded)

	treetest.Random(t, x.src, uint64(seed), 1500)
	treetest.Nasty(t, filepath.Join(x.src, "nasty"))
	if !guardsEnds() {
		x.jobs()
	}
	if !t.Failed() {
		x.ends(seed)
	}
}

// guardsEnds reports whether a defence is switched off that only matters to jobs that
// end badly: the others would take minutes to show nothing.
func guardsEnds() bool {
	return mutantName == string(mutant.Quiet) || mutantName == string(mutant.Answered)
}

// jobs runs jobs that end as they should whatever hits the cluster meanwhile.
func (x *run) jobs() {
	t, r := x.t, x.r
	t.Helper()
	before := treetest.Listing(t, x.src)
	f := treetest.Count(before)
	x.job("full", "", faultsFull, protocol.Stats{
		DirsToBackup: f.Dirs, FilesToBackup: f.Files, BytesToBackup: f.Bytes, DirsCopied: f.Dirs, FilesCopied: f.Files, BytesCopied: f.Bytes, Links: f.Links,
	})

	copied := treetest.Listing(t, x.dst)
	treetest.Mutate(t, x.src, r, 500)
	change := treetest.Changes(before, treetest.Listing(t, x.src))
	x.job("incremental", "full", faultsIncremental, protocol.Stats{
		DirsToBackup: change.Figures.Dirs, FilesToBackup: change.Figures.Files, BytesToBackup: change.Bytes,
		DirsCopied: change.Figures.Dirs, FilesCopied: change.Figures.Files, BytesCopied: change.Bytes, Links: change.Links,
		DirsToDelete: change.DirsDeleted, DirsDeleted: change.DirsDeleted, FilesToDelete: change.FilesDeleted,
		Deleted: change.DirsDeleted + change.FilesDeleted,
	})
	change.Untouched(t, copied, treetest.Listing(t, x.dst))
	x.late()
	if x.injected < 5 {
		t.Errorf("only %d faults hit the jobs, want at least 5: they were too fast", x.injected)
	}
}

// fsb runs the command and returns what it printed.
func (c *cluster) fsb(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "fsbackup"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("fsbackup %q: %w: %s", args, err, stderr.Bytes())
	}
	return out, err
}

// scan writes control files, against a scan before if it is named.
func (x *run) scan(name, previous string) string {
	x.t.Helper()
	treetest.Settle(x.t)
	out := filepath.Join(x.dir, "scan-"+name)
	args := []string{"scan", x.src, "--out", out, "--quiet"}
	if previous != "" {
		args = append(args, "--previous", filepath.Join(x.dir, "scan-"+previous))
	}
	if _, err := x.fsb(args...); err != nil {
		x.t.Fatal(err)
	}
	return out
}

// submit gives a scan to the cluster. Its id is the job's whatever becomes of
// the answer, so it is tried again.
func (x *run) submit(scan, dst string, args ...string) protocol.JobID {
	x.t.Helper()
	out, err := x.fsb(append([]string{"submit", "--nats", x.url, "--source", x.src, "--destination", dst, "--meta", scan, "--control", scan, "--json"}, args...)...)
	if err != nil {
		x.dump("")
		x.t.Fatal(err)
	}
	var sub struct{ Job protocol.JobID }
	if err := json.Unmarshal(out, &sub); err != nil || sub.Job == "" {
		x.t.Fatalf("submit: %v: %s", err, out)
	}
	return sub.Job
}

// job runs a backup while faults hit the cluster, and holds tree and statistics
// against the source.
func (x *run) job(name, previous string, faults uint64, want protocol.Stats) {
	x.t.Helper()
	scan := x.scan(name, previous)
	x.slow(pace)
	entries := want.DirsToBackup + want.FilesToBackup + want.Deleted
	// About 400 shards, whatever the job has to do. Directories have a line in
	// copy and in mtime files, and are finished as well.
	per := max(1, entries/300)
	expected := (entries + 2*want.DirsToBackup) / per
	args := append([]string{"--check-contents", "--shard-entries", fmt.Sprint(per)}, x.dirOptions()...)
	x.t.Logf("job %s: %q", name, args)
	id := x.submit(scan, x.dst, args...)
	p := x.follow(id)
	defer p.stop()
	if p.reaches(4) {
		x.lose(p)
		x.repeat(p)
	}
	for i := range faults {
		if !p.reaches(max(expected*(2*i+1)/(2*faults+1), p.count()+4)) {
			break
		}
		x.hit(p)
	}
	x.slow(0)
	v := p.end()
	x.t.Logf("job %s: %s after %.1f s, %d shards repeated, answered by %v", name, v.State, v.Seconds, v.Stats.ShardsRepeated, v.Workers)
	x.check(v, x.dst, want)
}

// dirOptions draws what becomes of directories that are to go, or that stand in the
// way. A scan names all that is in them, so it makes no difference in the end.
func (x *run) dirOptions() []string {
	switch x.r.IntN(3) {
	case 0:
		return nil
	case 1:
		return []string{"--delete-empty-dirs"}
	}
	return []string{"--delete-empty-dirs", "--spare-dirs", "--delete-before"} // else what is in the way is still there
}

// next returns the next disturbance of the seed that is possible now.
func (x *run) next() (disturbance, part) {
	for {
		d := x.deck[x.drawn%len(x.deck)]
		x.drawn++
		if p, ok := x.pick(x.r, d.component); ok {
			return d, p
		}
	}
}

// hit injects the next fault, one in three times two at once, and measures how
// the job gets over each.
func (x *run) hit(p *progress) {
	x.t.Helper()
	type one struct {
		d            disturbance
		on           part
		r            *rand.Rand
		began, ended time.Time
	}
	var all []*one
	for range 1 + x.r.IntN(3)/2 {
		d, on := x.next()
		if len(all) == 0 || all[0].on.name != on.name {
			all = append(all, &one{d: d, on: on, r: rand.New(rand.NewPCG(x.r.Uint64(), 1))})
		}
	}
	at, phase := p.count(), p.phase()
	var both sync.WaitGroup
	for _, o := range all {
		both.Go(func() { o.began, o.ended = x.inject(o.r, o.d, o.on) })
	}
	both.Wait()
	for _, o := range all {
		x.injected++
		what := fmt.Sprintf("after %d shards, %s: %s %s", at, phase, o.on.name, o.d.kind)
		recovered, ok := p.after(o.ended)
		if !ok {
			x.t.Logf("%s; the job ended meanwhile", what)
			continue
		}
		m := measured{o.d, recovered.Sub(o.ended), p.longest(o.began, recovered)}
		results.add(m)
		x.t.Logf("%s for %.1f s, next result after %.1f s, longest pause %.1f s", what, o.ended.Sub(o.began).Seconds(), m.recovery.Seconds(), m.pause.Seconds())
	}
}

// check holds a job that ended against its source.
func (x *run) check(v protocol.JobView, dst string, want protocol.Stats) {
	x.t.Helper()
	got := v.Stats
	got.BytesPerSec, got.HoleBytes, got.ReflinkBytes, got.ShardsRepeated = 0, 0, 0, 0
	if v.State != protocol.StateCompleted || v.Failures != 0 {
		x.t.Errorf("job %s: %s (%s), %d failures", v.ID, v.State, v.Reason, v.Failures)
	}
	if got != want {
		x.t.Errorf("statistics\n got %+v\nwant %+v", got, want)
	}
	for _, e := range treetest.Listing(x.t, dst) {
		if base := filepath.Base(e.Path); strings.HasPrefix(base, ".fsb") {
			x.t.Errorf("left behind in the destination: %q", e.Path)
		}
	}
	if !x.t.Failed() {
		treetest.Same(x.t, x.src, dst)
	} else if d := treetest.Diff(treetest.Listing(x.t, x.src), treetest.Listing(x.t, dst)); len(d) > 0 {
		x.t.Errorf("%d differences of the trees, first %s", len(d), d[0])
	}
	if x.t.Failed() {
		x.dump(v.ID)
		x.t.FailNow()
	}
}

// progress follows a job: when its results came.
type progress struct {
	x    *run
	id   protocol.JobID
	stop func()

	mu      sync.Mutex
	view    protocol.JobView
	done    uint64      // most shards that were seen done
	times   []time.Time // when that grew
	changed chan struct{}
}

// follow takes the snapshots that the leader sends, and asks for more: snapshots
// of a leader that ended or of a connection that broke are lost.
func (x *run) follow(id protocol.JobID) *progress {
	x.t.Helper()
	p := &progress{x: x, id: id, changed: make(chan struct{})}
	unlisten, err := x.bus.Listen(protocol.EventSubject(id), func(_ string, data []byte) []byte {
		var v protocol.JobView
		if json.Unmarshal(data, &v) == nil {
			p.see(v)
		}
		return nil
	})
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(x.t.Context())
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		t := time.NewTicker(250 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			one, stop := context.WithTimeout(ctx, time.Second)
			if v, err := x.Job(one, id); err == nil {
				p.see(v)
			}
			stop()
		}
	}()
	p.stop = func() { cancel(); <-polled; unlisten() }
	return p
}

func (p *progress) see(v protocol.JobView) {
	var done uint64
	for _, ph := range v.Phases {
		done += ph.Done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view.State.Final() {
		return
	}
	if done > p.done {
		p.done = done
		p.times = append(p.times, time.Now())
	} else if !v.State.Final() && done < p.done {
		return // of a leader that is only catching up, or that leads no more
	}
	p.view = v
	close(p.changed)
	p.changed = make(chan struct{})
}

// until waits until cond, called with the lock held, or the job's end, and
// reports which. A job that does neither is stuck.
func (p *progress) until(cond func() bool) bool {
	p.x.t.Helper()
	limit := time.NewTimer(watchdog)
	defer limit.Stop()
	for {
		p.mu.Lock()
		ok, final, changed := cond(), p.view.State.Final(), p.changed
		p.mu.Unlock()
		switch {
		case ok:
			return true
		case final:
			return false
		}
		select {
		case <-changed:
		case <-limit.C:
			p.x.dump(p.id)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.x.t.Fatalf("job %s is stuck for %s; last seen %+v", p.id, watchdog, p.view)
		}
	}
}

func (p *progress) count() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (p *progress) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view.State.Final()
}

func (p *progress) phase() protocol.Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view.Phase
}

// reaches waits for so many done shards.
func (p *progress) reaches(n uint64) bool {
	p.x.t.Helper()
	return p.until(func() bool { return p.done >= n })
}

// after returns when the first result after a time was seen.
func (p *progress) after(at time.Time) (time.Time, bool) {
	p.x.t.Helper()
	var first time.Time
	ok := p.until(func() bool {
		for _, t := range p.times {
			if t.After(at) {
				first = t
				return true
			}
		}
		return false
	})
	return first, ok
}

// longest returns the longest time without a result between two times.
func (p *progress) longest(from, to time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most time.Duration
	last := from
	for _, t := range append(p.times, to) {
		if t.After(from) && !t.After(to) {
			most, last = max(most, t.Sub(last)), t
		}
	}
	return most
}

// end waits for the job's end.
func (p *progress) end() protocol.JobView {
	p.x.t.Helper()
	p.until(func() bool { return p.view.State.Final() })
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}
