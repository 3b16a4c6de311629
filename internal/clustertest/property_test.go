package clustertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// schedules is how many random ones are tried, on trees of how many entries in
// shards of how many, and how many things happen in each: at most, and at least.
type schedules struct{ first, seeds, entries, shard, most, least int }

// wanted returns the short form; FSBACKUP_CLUSTER_SEEDS asks for the long one, and
// FSBACKUP_CLUSTER_FIRST for the seed that it begins with.
func wanted(t *testing.T) schedules {
	t.Helper()
	s := os.Getenv("FSBACKUP_CLUSTER_SEEDS")
	if s == "" {
		return schedules{seeds: 2, entries: 1500, shard: 4, most: 3, least: 1}
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("FSBACKUP_CLUSTER_SEEDS: %v", err)
	}
	first, err := strconv.Atoi(cmp.Or(os.Getenv("FSBACKUP_CLUSTER_FIRST"), "0"))
	if err != nil {
		t.Fatalf("FSBACKUP_CLUSTER_FIRST: %v", err)
	}
	return schedules{first: first, seeds: n, entries: 3000, shard: 1, most: 6, least: 5}
}

// storm is a cluster to which things happen.
type storm struct {
	*Cluster
	t       *testing.T
	r       *rand.Rand
	look    *bus.Bus // of the test
	workers []*Part
	leader  *lead
	asleep  []*lead

	mu   sync.Mutex // guards what follows
	n    int        // names given so far
	live map[string]*lead
	over bool // nobody is started in another's place any more
}

// lead is a coordinator that can be frozen.
type lead struct {
	*Standby
	cold *frost
}

func newStorm(t *testing.T, seed uint64) *storm {
	c := NewOn(t, Timing(), bus.ServerConfig{Listen: "127.0.0.1:0"})
	s := &storm{Cluster: c, t: t, r: rand.New(rand.NewPCG(seed, 7)), look: c.connect("look"), live: map[string]*lead{}}
	t.Cleanup(s.look.Close)
	c.mu.Lock()
	c.coord.Stop()
	c.mu.Unlock()
	s.newLeader()
	for range 3 {
		s.newWorker()
	}
	return s
}

// calm ends what happens: whoever sleeps wakes.
func (s *storm) calm() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	for _, l := range s.asleep {
		l.cold.thaw()
		<-l.done
	}
	s.asleep = nil
}

func (s *storm) name(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return fmt.Sprintf("%s%d", kind, s.n)
}

// coordinator starts one. As in the daemon, one that has lost its lease, as it
// may on a busy machine, stands by again.
func (s *storm) coordinator() *lead {
	s.t.Helper()
	cold := newFrost()
	l := &lead{s.StartStandby(s.name("k"), cold.apply), cold}
	s.t.Cleanup(func() { // before it is waited for
		s.mu.Lock()
		s.over = true
		s.mu.Unlock()
		cold.thaw()
	})
	s.mu.Lock()
	s.live[l.Name] = l
	s.mu.Unlock()
	go func() {
		<-l.done
		s.mu.Lock()
		again := s.live[l.Name] == l && !s.over && fault.Is(l.err, fault.Stale)
		delete(s.live, l.Name)
		s.mu.Unlock()
		if again {
			s.coordinator()
		}
	}()
	return l
}

// newLeader starts a coordinator and waits until one leads and answers.
func (s *storm) newLeader() {
	s.t.Helper()
	s.coordinator()
	for {
		name := s.leads()
		s.mu.Lock()
		l := s.live[name]
		s.mu.Unlock()
		if l != nil {
			s.leader = l
			return
		}
		if s.t.Context().Err() != nil {
			s.t.Fatal("no coordinator answers")
		}
	}
}

// without has the leader go for good, which is to be replaced.
func (s *storm) without(end func(*lead)) {
	s.mu.Lock()
	delete(s.live, s.leader.Name)
	s.mu.Unlock()
	end(s.leader)
	s.newLeader()
}

// newWorker starts a worker of one slot: a job is to last until all has happened.
func (s *storm) newWorker() {
	s.workers = append(s.workers, s.StartWorker(s.name("w"), func(cfg *worker.Config) { cfg.Slots = 1 }))
}

// lose takes one worker away.
func (s *storm) lose() *Part {
	i := s.r.IntN(len(s.workers))
	w := s.workers[i]
	s.workers = slices.Delete(s.workers, i, i+1)
	return w
}

// queue calls f with a connection of its own.
func (s *storm) queue(f func(*bus.Bus) error) {
	s.t.Helper()
	b := s.connect("raw")
	defer b.Close()
	if err := f(b); err != nil {
		s.t.Fatal(err)
	}
}

// events are what happens, by name, each to its end: what was taken away is there
// again afterwards.
var events = map[string]func(*storm){
	"a worker is killed":           func(s *storm) { s.lose().Kill(); s.newWorker() },
	"a worker is stopped":          func(s *storm) { s.newWorker(); s.lose().Stop() },
	"the coordinator is killed":    func(s *storm) { s.without(func(l *lead) { l.Kill() }) },
	"the coordinator is stopped":   func(s *storm) { s.without(func(l *lead) { l.Stop() }) },
	"NATS is restarted":            func(s *storm) { s.RestartNATS() },
	"the coordinator falls asleep": (*storm).sleep,
	"a shard is acked by nobody":   (*storm).swallow,
	"a shard is purged":            (*storm).purge,
}

// sleep freezes the leader; another takes its place. It wakes when the job is done.
func (s *storm) sleep() {
	s.without(func(l *lead) {
		l.cold.freeze()
		s.asleep = append(s.asleep, l)
	})
}

func (s *storm) swallow() {
	s.queue(func(b *bus.Bus) error { return swallowOne(s.t.Context(), b, time.Second) })
}

func (s *storm) purge() {
	s.queue(func(b *bus.Bus) error {
		queued, err := b.Queued(s.t.Context(), protocol.SubjectsShards)
		if all := slices.Sorted(maps.Keys(queued)); err == nil && len(all) > 0 {
			err = b.Purge(s.t.Context(), protocol.StreamShards, all[s.r.IntN(len(all))], 0)
		}
		return err
	})
}

func TestEveryEntryOfEveryControlFileIsInExactlyOneAcceptedResult(t *testing.T) {
	t.Parallel()
	form := wanted(t)
	command := buildCommand(t)
	for i := range form.seeds {
		seed := uint64(form.first + i)
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			at, disk := t.TempDir(), (*treetest.FaultyFS)(nil)
			if seed%3 == 0 {
				at, disk = mayFail(t) // gone after those who use it
			}
			s := newStorm(t, seed)
			src, dst := roots(t, 100+seed, form.entries)
			files, meta := s.Scan(src)
			id := client.NewJobID(time.Now())
			spec := protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true}
			spec.Limits.Entries = form.shard
			if err := s.Client.Submit(t.Context(), id, spec, files, true); err != nil {
				t.Fatal(err)
			}
			names := slices.Sorted(maps.Keys(events))
			happened := 0
			for range form.most {
				after := s.results() + 10 + s.r.Uint64N(40)
				if !s.reaches(id, after) {
					break
				}
				what := names[s.r.IntN(len(names))]
				t.Logf("seed %d: after %d shards %s", seed, after, what)
				events[what](s)
				happened++
			}
			v := s.Wait(id)
			s.calm()
			whole(t, v, src, dst)
			s.accounted(id, files)
			if now := s.last(id); now.Stats != v.Stats || now.State != v.State {
				t.Errorf("the record changed after the end: %+v, then %+v", v.Stats, now.Stats)
			}
			if happened < form.least {
				t.Errorf("%d things happened, want at least %d: the job was too fast", happened, form.least)
			}
			if !t.Failed() {
				s.ends(seed, command, at, disk)
			}
		})
	}
}

// results is how many results have been stored, of all jobs. It asks NATS: what a
// coordinator tells comes late, if it was killed just now.
func (s *storm) results() uint64 {
	s.t.Helper()
	for {
		at, err := s.look.StreamState(s.t.Context(), protocol.StreamResults)
		if err == nil {
			return at.LastSeq
		}
		if !bus.Sleep(s.t.Context(), 20*time.Millisecond) {
			s.t.Fatal(err)
		}
	}
}

// reaches waits for so many results; it reports false if the job ended with less.
func (s *storm) reaches(id protocol.JobID, n uint64) bool {
	s.t.Helper()
	asked := time.Now()
	for s.results() < n {
		if time.Since(asked) > time.Second {
			if v, err := s.Job(s.t.Context(), id); err == nil && v.State.Final() {
				return s.results() >= n
			}
			asked = time.Now()
		}
		if !bus.Sleep(s.t.Context(), 2*time.Millisecond) {
			s.t.Fatal(context.Cause(s.t.Context()))
		}
	}
	return true
}

func (s *storm) last(id protocol.JobID) protocol.JobView {
	s.t.Helper()
	return s.Until(id, func(protocol.JobView) bool { return true })
}

// accounted fails the test unless the accepted results of a job cover its control
// files: shards 0 to the last of each phase, once each, with as many entries as
// the files of the phase have.
func (s *storm) accounted(id protocol.JobID, files client.Files) {
	s.t.Helper()
	want := map[protocol.Phase]uint64{}
	for _, f := range files.Control {
		sum, err := controlfile.Check(f.Path, shard.KindOf(f.Phase))
		if err != nil {
			s.t.Fatal(err)
		}
		want[f.Phase] += sum.Dirs + sum.Files
		if f.Phase == protocol.PhaseCopy {
			want[protocol.PhaseFinish] += sum.Dirs
		}
	}
	got := map[protocol.Phase]uint64{}
	numbers := map[protocol.Phase][]uint64{}
	all := errors.New("all read")
	s.queue(func(b *bus.Bus) error {
		err := b.Tail(s.t.Context(), protocol.StreamResults, protocol.JobResults(id), 1, func(m bus.Stored) error {
			_, p, n, ok := protocol.ParseResultSubject(m.Subject)
			var r protocol.ResultMsg
			if err := protocol.Decode(m.Data, protocol.TypeResult, &r); err != nil || !ok {
				return fmt.Errorf("result %s: %w", m.Subject, err)
			}
			got[p] += r.GetEntries()
			numbers[p] = append(numbers[p], n)
			if m.Pending == 0 {
				return all
			}
			return nil
		})
		if errors.Is(err, all) {
			return nil
		}
		return err
	})
	delete(got, protocol.PhaseCleanup)
	if !maps.Equal(got, want) {
		s.t.Errorf("entries in accepted results: %v, in the control files: %v", got, want)
	}
	for p, ns := range numbers {
		slices.Sort(ns)
		for i, n := range ns {
			if n != uint64(i) {
				s.t.Errorf("%s: result %d of %d is of shard %d", p, i, len(ns), n)
				break
			}
		}
	}
}
