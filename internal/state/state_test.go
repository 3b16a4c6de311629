package state

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"reflect"
	"slices"
	"testing"

	diff "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestTheSchemaBuilds(t *testing.T) {
	t.Parallel()
	if err := schema().Validate(); err != nil {
		t.Error(err)
	}
	New() // panics if not
}

// byBits lets cmp compare bitmaps.
var byBits = diff.Transformer("bits", func(b Bitmap) []uint64 {
	var out []uint64
	for _, c := range b.chunks {
		if c != nil {
			out = append(out, c[:]...)
		}
		out = append(out, ^uint64(0)) // between chunks, so that none looks like another
	}
	return append(out, b.count)
})

type phaseID struct {
	job protocol.JobID
	p   protocol.Phase
}

type fileID struct {
	job protocol.JobID
	i   uint32
}

type openID struct {
	job protocol.JobID
	p   protocol.Phase
	n   uint64
}

// model is the store as plain maps.
type model struct {
	jobs    map[protocol.JobID]Job
	phases  map[phaseID]Phase
	files   map[fileID]File
	open    map[openID]Open
	workers map[string]Worker
}

func newModel() model {
	return model{map[protocol.JobID]Job{}, map[phaseID]Phase{}, map[fileID]File{}, map[openID]Open{}, map[string]Worker{}}
}

func (m model) clone() model {
	return model{maps.Clone(m.jobs), maps.Clone(m.phases), maps.Clone(m.files), maps.Clone(m.open), maps.Clone(m.workers)}
}

func (m model) drop(id protocol.JobID) {
	delete(m.jobs, id)
	maps.DeleteFunc(m.phases, func(k phaseID, _ Phase) bool { return k.job == id })
	maps.DeleteFunc(m.files, func(k fileID, _ File) bool { return k.job == id })
	maps.DeleteFunc(m.open, func(k openID, _ Open) bool { return k.job == id })
}

// Names that are prefixes of each other, which a careless index would mix up.
var (
	someJob    = rapid.SampledFrom([]protocol.JobID{"a", "aa", "ab", "b", "a-"})
	somePhase  = rapid.SampledFrom(protocol.Order(false))
	someWorker = rapid.SampledFrom([]string{"w", "w1", "w10", "x"})
	someN      = rapid.SampledFrom([]uint64{0, 1, 2, 255, 256, 257, 1 << 31, 1 << 40})
	someIndex  = rapid.SampledFrom([]uint32{0, 1, 255, 256, 1 << 31})
)

func sortedBy[T any, K cmp.Ordered](s iter.Seq[T], key func(T) K) []T {
	return slices.SortedFunc(s, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}

// check compares every index of the store with the model.
func (m model) check(t *rapid.T, tx Tx) {
	t.Helper()
	same := func(what string, want, got any) {
		t.Helper()
		if reflect.DeepEqual(want, got) {
			return // by far the faster way
		}
		if d := diff.Diff(want, got, byBits); d != "" {
			t.Fatalf("%s (-model +store):\n%s", what, d)
		}
	}
	same("jobs, oldest first", sortedBy(maps.Values(m.jobs), func(j Job) string { return j.ID }), slices.Collect(tx.Jobs()))
	same("workers by name", sortedBy(maps.Values(m.workers), func(w Worker) string { return w.Name }), slices.Collect(tx.Workers()))
	for _, id := range []protocol.JobID{"a", "aa", "ab", "b", "a-", "", "zz"} {
		j, ok := tx.Job(id)
		want, wantOK := m.jobs[id]
		same("job", want, j)
		same("job is there", wantOK, ok)
		for _, p := range protocol.Order(false) {
			if want, ok := m.phases[phaseID{id, p}]; ok {
				same("phase", want, tx.Phase(id, p))
			} else if got := tx.Phase(id, p); got.Job != string(id) || got.Kind != p || got.Name != p.String() || got.Published != 0 || got.Sealed || got.Done.Count() != 0 {
				t.Fatalf("phase that has not begun: %+v", got)
			}
		}
		files, opens := map[uint32]File{}, map[openID]Open{}
		for k, f := range m.files {
			if k.job == id {
				files[k.i] = f
				got, ok := tx.File(id, k.i)
				same("file", f, got)
				same("file is there", true, ok)
			}
		}
		for k, o := range m.open {
			if k.job == id {
				opens[k] = o
				got, ok := tx.Open(id, k.p, k.n)
				same("open shard", o, got)
				same("open shard is there", true, ok)
			}
		}
		gotFiles, gotOpens := map[uint32]File{}, map[openID]Open{}
		for f := range tx.Files(id) {
			gotFiles[f.Index] = f
		}
		for o := range tx.OpenOf(id) {
			gotOpens[openID{protocol.JobID(o.Job), o.Phase, o.N}] = o
		}
		same("files of a job", files, gotFiles)
		same("open shards of a job", opens, gotOpens)
	}
	if _, ok := tx.File("a", 77); ok {
		t.Fatal("a file that was never put")
	}
	if _, ok := tx.Worker("w100"); ok {
		t.Fatal("a worker that was never put")
	}
}

// act draws a change and does it to the store and to the model.
func act(t *rapid.T, tx Tx, m model) {
	job, p := someJob.Draw(t, "job"), somePhase.Draw(t, "phase")
	value := rapid.Uint64Range(0, 1000).Draw(t, "value")
	switch rapid.IntRange(0, 9).Draw(t, "change") {
	case 0:
		j := Job{ID: string(job), Revision: value, HasCopy: value%2 == 0}
		tx.PutJob(j)
		m.jobs[job] = j
	case 1:
		row := tx.Phase(job, p)
		row.Published, row.Sealed = value, value%2 == 0
		tx.PutPhase(row)
		m.phases[phaseID{job, p}] = row
	case 2:
		f := File{Job: string(job), Index: someIndex.Draw(t, "index"), Path: string(rune('a' + value%26))}
		tx.PutFile(f)
		m.files[fileID{job, f.Index}] = f
	case 3, 4:
		o := Open{Job: string(job), Phase: p, N: someN.Draw(t, "n"), Sequence: value}
		tx.PutOpen(o)
		o.Name = p.String()
		m.open[openID{job, p, o.N}] = o
	case 5:
		k := openID{job, p, someN.Draw(t, "n")}
		_, want := m.open[k]
		if got := tx.Close(k.job, k.p, k.n); got != want {
			t.Fatalf("close of %v: %v", k, got)
		}
		delete(m.open, k)
	case 6:
		w := Worker{Name: someWorker.Draw(t, "worker"), Lost: value%2 == 0}
		tx.PutWorker(w)
		m.workers[w.Name] = w
	case 7:
		name := someWorker.Draw(t, "worker")
		tx.DropWorker(name)
		delete(m.workers, name)
	case 8:
		tx.DropJob(job)
		m.drop(job)
	default:
		foldBoth(t, tx, m, job, p, rapid.Uint64Range(0, 300).Draw(t, "n"))
	}
}

// foldBoth folds a result without counts: what it adds has tests of its own.
func foldBoth(t *rapid.T, tx Tx, m model, job protocol.JobID, p protocol.Phase, n uint64) {
	row, ok := m.phases[phaseID{job, p}]
	if !ok {
		row = Phase{Job: string(job), Name: p.String(), Kind: p}
	}
	j, known := m.jobs[job]
	want := known && !row.Done.Has(n)
	if got := fold(tx, &protocol.ResultMsg{Job: string(job), Phase: uint32(p), N: n, Worker: "w"}); got != want {
		t.Fatalf("fold of %s %v %d: %v", job, p, n, got)
	}
	if !want {
		return
	}
	row.Done = row.Done.With(n)
	m.phases[phaseID{job, p}] = row
	j.Workers = maps.Clone(j.Workers)
	if j.Workers == nil {
		j.Workers = map[string]uint64{}
	}
	j.Workers["w"]++
	m.jobs[job] = j
	delete(m.open, openID{job, p, n})
}

var errAbort = errors.New("aborted")

// TestTheStoreIsItsModel changes store and model alike, some transactions being
// given up, and compares every index, also inside a transaction and in a view
// that began before it.
func TestTheStoreIsItsModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, m := New(), newModel()
		view := func(f func(Tx)) {
			if err := s.View(func(tx Tx) error { f(tx); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"update": func(t *rapid.T) {
				next := m.clone()
				abort := rapid.IntRange(0, 3).Draw(t, "abort") == 0
				view(func(old Tx) {
					err := s.Update(func(tx Tx) error {
						for range rapid.IntRange(1, 4).Draw(t, "changes") {
							act(t, tx, next)
						}
						next.check(t, tx)
						if abort {
							return errAbort
						}
						return nil
					})
					if abort != errors.Is(err, errAbort) || (!abort && err != nil) {
						t.Fatalf("error %v", err)
					}
					m.check(t, old)
				})
				if !abort {
					m = next
				}
			},
			"": func(t *rapid.T) { view(func(tx Tx) { m.check(t, tx) }) },
		})
	})
}

// What a transaction yields may be changed while it is looked at.
func TestRowsMayBeChangedWhileTheyAreListed(t *testing.T) {
	t.Parallel()
	s := New()
	update(t, s, func(tx Tx) {
		for n := range uint64(50) {
			tx.PutOpen(Open{Job: "j", Phase: 1, N: n})
		}
		seen := 0
		for o := range tx.OpenOf("j") {
			seen++
			tx.Close("j", 1, o.N)
			tx.PutOpen(Open{Job: "j", Phase: 2, N: o.N})
		}
		if seen != 50 {
			t.Errorf("%d rows listed", seen)
		}
	})
	n := 0
	if err := s.View(func(tx Tx) error {
		for o := range tx.OpenOf("j") {
			if n++; n == 3 || o.Phase != 2 {
				break
			}
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("%d rows, error %v", n, err)
	}
}
