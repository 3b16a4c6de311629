package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// run is one goroutine's part in the execution of a batch.
type run struct {
	*execution
	task  *task
	ask   func() error // check
	place target       // of the entry that is under way
}

// execution is one execution of one batch.
type execution struct {
	j     *Job
	b     *Batch
	guard Guard
	ctx   context.Context // of this run only; ends with it
	stop  context.CancelCauseFunc
	src   *fsys.DirCache
	dst   *fsys.DirCache

	mu       sync.Mutex
	counts   entry.Counts               // guarded by mu
	failures []indexedFailure           // guarded by mu
	warnings map[string]*indexedWarning // guarded by mu

	absent  absentDirs // of the source
	spelled spellings  // of destination directories that fold names

	extrasTold int // extra names among failures; guarded by mu

	grow func() // starts what more goroutines are worthwhile by now

	lastGroup uint64       // the highest number of a hard-link group
	leader    entry.Leader // what became of its leader; guarded by mu
}

type indexedFailure struct {
	index int
	Failure
}

type indexedWarning struct {
	index int // of the entry that Example is from
	Warning
}

// Run executes the batch's entries, up to the job's threads at once. g may be
// nil, else it is asked from many goroutines. Run returns an error only when
// the batch as a whole must go back (fault.Stale, fault.Canceled,
// fault.Exhausted, or the guard's own); whatever else goes wrong is a Failure
// in the outcome. A batch may be run any number of times: the counts are those
// of the end state. Safe for concurrent use; b is only read.
func (j *Job) Run(ctx context.Context, b *Batch, g Guard) (*Outcome, error) {
	outer := ctx
	ctx, stop := context.WithCancelCause(outer)
	defer stop(nil)
	r := &execution{j: j, b: b, guard: g, ctx: ctx, stop: stop, warnings: map[string]*indexedWarning{}}
	for i := range b.Entries {
		r.lastGroup = max(r.lastGroup, b.Entries[i].Group)
	}
	r.src = fsys.NewDirCache(j.e.dirCache, func(p string) (int, error) { return j.e.resolver.OpenDir(j.src.fd, p) })
	r.dst = fsys.NewDirCache(j.e.dirCache, func(p string) (int, error) { return j.e.resolver.OpenDir(j.dst.fd, p) })
	defer r.src.DropAll()
	defer r.dst.DropAll()

	// Directories first: an entry in a directory must not meet what the
	// directory's own line is about to replace.
	for _, units := range plan(b.Entries, j.spec.DeleteEmpty) {
		r.all(units)
		if err := context.Cause(ctx); err != nil {
			return nil, batchError(outer, err)
		}
	}
	return r.outcome(), nil
}

// batchError gives what stopped a run its kind: a cause that the caller
// cancelled with is no fault of the batch.
func batchError(outer context.Context, err error) error {
	if stopsRun(err) || outer.Err() == nil {
		return err
	}
	return &fault.Error{Kind: fault.Canceled, Op: "run batch", Err: err}
}

// unit is what one goroutine does in one go: indexes of entries, in order.
type unit []int

// sliceBytes and sliceEntries bound a unit: large enough that a directory is
// worked on by few goroutines at once (the kernel locks it for each change),
// small enough that no goroutine is left with all the work.
const (
	sliceEntries = 16
	sliceDirs    = 4 // everything else waits for them
	sliceBytes   = 4 << 20
)

// plan returns the units that make directories, those that do the rest, and what
// comes after these. A hard-link group is one unit; other entries go by slices of a
// directory. With deleteEmpty, lines that delete directories are one unit, the last:
// a directory is empty only when the lines before its own have been executed.
func plan(entries []Entry, deleteEmpty bool) [3][]unit {
	var first, second []unit
	var last unit
	groups := map[uint64]int{} // group -> index in second
	var dir string
	var bytes uint64
	open := -1      // the slice that may grow
	var ranks []int // of each of second: which slice of its directory it is
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Op == entry.OpRemoveTree && deleteEmpty:
			last = append(last, i)
			continue
		case e.Op == entry.OpMkdir:
			if n := len(first); n > 0 && len(first[n-1]) < sliceDirs {
				first[n-1] = append(first[n-1], i)
			} else {
				first = append(first, append(make(unit, 0, sliceDirs), i))
			}
			continue
		case inGroup(e):
			if g, ok := groups[e.Group]; ok {
				second[g] = append(second[g], i)
			} else {
				groups[e.Group] = len(second)
				second, ranks = append(second, unit{i}), append(ranks, 0)
			}
			continue
		}
		parent, _ := split(e.Path)
		var size uint64
		if e.Meta != nil {
			size = e.Meta.Size
		}
		if open >= 0 && parent == dir && len(second[open]) < sliceEntries && bytes+size <= sliceBytes {
			second[open] = append(second[open], i)
			bytes += size
			continue
		}
		rank := 0
		if open >= 0 && parent == dir {
			rank = ranks[open] + 1
		}
		dir, bytes, open = parent, size, len(second)
		second, ranks = append(second, append(make(unit, 0, min(sliceEntries, len(entries)-i)), i)), append(ranks, rank)
	}
	second = byRank(second, ranks)
	if len(last) == 0 {
		return [3][]unit{first, second}
	}
	return [3][]unit{first, second, {last}}
}

// byRank sorts units by their ranks; those of one rank stay in order.
func byRank(units []unit, ranks []int) []unit {
	most := 0
	for _, r := range ranks {
		most = max(most, r)
	}
	if most == 0 {
		return units
	}
	order := make([]int, len(units))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(ranks[a], ranks[b]) })
	out := make([]unit, len(units))
	for i, n := range order {
		out[i] = units[n]
	}
	return out
}

// inGroup reports whether an entry is executed with the rest of its hard-link group.
func inGroup(e *Entry) bool { return e.Op.Links() && e.Group != 0 }

func (x *execution) all(units []unit) {
	if len(units) == 0 {
		return
	}
	most := min(x.j.inFlight.Ceiling(), len(units))
	crew, done := x.j.e.crew(x.j.spec.ID, most, 1, x.j.inFlight)
	defer done()
	var wg sync.WaitGroup
	var started, next atomic.Int64
	var work func(t *task)
	start := func() {
		if n := int(started.Add(1)) - 1; n < most {
			wg.Go(func() { work(&crew.tasks[n]) })
		}
	}
	// One more than may be under way, so that it shows if more could be.
	x.grow = func() {
		for int(started.Load()) <= min(x.j.inFlight.Limit(), most-1) && next.Load() < int64(len(units)) {
			start()
		}
	}
	work = func(t *task) {
		r := &run{execution: x, task: t}
		r.ask = r.check
		for {
			n := int(next.Add(1)) - 1
			if n >= len(units) || r.ctx.Err() != nil {
				return
			}
			if err := r.do(units[n]); err != nil {
				r.stop(err)
				return
			}
		}
	}
	if most == 1 {
		started.Store(1)
		work(&crew.tasks[0]) // on the caller's own thread
		return
	}
	x.grow()
	wg.Wait()
}

// do executes a unit; its error stops the batch.
func (r *run) do(u unit) error {
	var c entry.Counts
	defer func() { r.add(&c) }()
	if e := &r.b.Entries[u[0]]; inGroup(e) {
		if e.Op == entry.OpVerifyLink {
			return r.holding(e, func() error { return r.verifyGroup(u, &c) })
		}
		return r.holding(e, func() error { return r.linkGroup(u, &c) })
	}
	for _, i := range u {
		r.grow()
		e := &r.b.Entries[i]
		err := r.holding(e, func() error { return r.entry(i, e, &c) })
		if err == nil {
			continue
		}
		if stopsRun(err) {
			return err
		}
		r.fail(i, err, &c)
	}
	return nil
}

// holding calls f with a slot of the job and of the engine, for entry e.
func (r *run) holding(e *Entry, f func() error) error {
	canceled := func(err error) error { return &fault.Error{Kind: fault.Canceled, Op: "run batch", Err: err} }
	eng := r.j.e
	if err := r.j.inFlight.Acquire(r.ctx); err != nil {
		return canceled(err)
	}
	defer r.j.inFlight.Release(effort(e))
	if err := eng.reads.acquire(r.ctx); err != nil {
		return canceled(err)
	}
	if err := eng.writes.acquire(r.ctx); err != nil {
		eng.reads.release()
		return canceled(err)
	}
	r.task.begin(eng, doing(e.Op), e.Path, true)
	defer func() {
		if r.task.end() { // else they were given to others while a call hung
			eng.reads.release()
			eng.writes.release()
		}
	}()
	return f()
}

// effort is what an entry counts when it is measured how much gets done: its bytes, and
// as many as cost what its calls do. One that is huge says little of the others.
func effort(e *Entry) int64 {
	const calls, most = 64 << 10, 64 << 20
	if e.Meta == nil || e.Op != entry.OpCopy && e.Op != entry.OpVerify {
		return calls
	}
	return calls + int64(min(e.Meta.Size, most))
}

// entry executes one entry.
func (r *run) entry(i int, e *Entry, c *entry.Counts) error {
	return r.repeating(e, func() error { return r.once(i, e, c) })
}

// repeating calls f again, a bounded number of times, when a directory that it
// had resolved is gone by somebody else's doing. f counts only what succeeds.
func (r *run) repeating(e *Entry, f func() error) error {
	r.task.begin(r.j.e, doing(e.Op), e.Path, false)
	for round := 0; ; round++ {
		if err := r.check(); err != nil {
			return err
		}
		err := f()
		stale := errors.Is(err, unix.ESTALE)
		gone := errors.Is(err, errParentGone)
		if !stale && !gone {
			return err
		}
		if stale {
			if err := r.j.CheckRoots(); err != nil {
				return err
			}
		}
		if round == maxRounds {
			if gone {
				err = &fault.Error{Kind: fault.Transient, Op: "write into", Path: e.Path, Err: errParentGone,
					Hint: "something else removes directories in the destination"}
			}
			return err
		}
		r.src.DropAll()
		r.dst.DropAll()
	}
}

const maxRounds = 3

// once is one try at an entry. It adds to c only when it succeeds.
func (r *run) once(i int, e *Entry, c *entry.Counts) error {
	t, err := r.prepare(i, e, c)
	if t == nil {
		return err
	}
	switch e.Op {
	case entry.OpMkdir:
		err = r.mkdir(t, c)
	case entry.OpCopy, entry.OpLink: // a link without a group is a file of its own
		_, err = r.copyCounted(t, c)
	case entry.OpUnlink, entry.OpRemoveTree:
		err = r.remove(t, c)
	case entry.OpFinish, entry.OpTouch:
		err = r.finish(t, c)
	case entry.OpVerify, entry.OpVerifyLink, entry.OpVerifyDir, entry.OpVerifyTimes:
		err = r.verify(t, c)
	default:
		err = &fault.Error{Kind: fault.Invalid, Op: "execute", Path: e.Path, Err: errors.New("unknown operation")}
	}
	if err == nil {
		r.warn(t)
	}
	return err
}

// prepare checks an entry and finds its place. A nil target without an error is
// an entry that has none and has been counted as skipped. The target is good until
// the next one is prepared.
func (r *run) prepare(i int, e *Entry, c *entry.Counts) (*target, error) {
	if e.Op == entry.OpRejected {
		kind := fault.Kind(e.Kind)
		if kind == fault.Internal {
			kind = fault.Invalid
		}
		return nil, &fault.Error{Kind: kind, Op: "read entry", Path: e.Path, Err: errors.New(cmp.Or(e.Reject, "rejected"))}
	}
	if r.j.spec.ReadOnly && !e.Op.Verifies() {
		return nil, &fault.Error{Kind: fault.Invalid, Op: "execute", Path: e.Path, Err: errors.New("the job changes nothing, the operation would")}
	}
	if e.Path != "" {
		if err := checkPath(e.Path); err != nil {
			return nil, &fault.Error{Kind: fault.Denied, Op: "use path", Path: e.Path, Err: err}
		}
	}
	dst, where := r.j.trimmed(e.Path)
	switch where {
	case placeAbove:
		c.Skipped++ // an ancestor of what is restored
		return nil, nil
	case placeOutside:
		return nil, &fault.Error{Kind: fault.Invalid, Op: "trim", Path: e.Path,
			Err: errors.New("path is not below the trim prefix " + quote(r.j.trim))}
	}
	r.place = target{index: i, e: e, path: dst}
	return &r.place, nil
}

// target is an entry with its place in the destination.
type target struct {
	index int
	e     *Entry
	path  string // beneath the destination root; "" = the root itself

	warnings []string // kinds of loss met so far, each once
	changed  bool     // the source changed while it was read
	take     bool     // it did so each time: as it is read now it is taken
	toEnd    bool     // the contents of the source are read to their end: its size says nothing of them
	madeUp   bool     // they are made up as they are read: neither do its times
	named    bool     // it is to be made under a temporary name, whatever the file system can do
	refused  bool     // metadata of it was refused in a way that may be due to its having no name
	again    bool     // what stands in its place was taken for a former attempt's work, to be written again
}

// lose notes a loss that does not fail the entry.
func (t *target) lose(kind string) {
	if !slices.Contains(t.warnings, kind) {
		t.warnings = append(t.warnings, kind)
	}
}

// errGuard marks whatever the guard said, so that it stops the batch also when
// its kind would not.
var errGuard = errors.New("guard")

type guardError struct{ err error }

func (g *guardError) Error() string        { return g.err.Error() }
func (g *guardError) Unwrap() error        { return g.err }
func (g *guardError) Is(target error) bool { return target == errGuard }

// check asks the guard and the context. It precedes each entry and each change
// of a name.
func (r *run) check() error {
	r.task.progress(r.j.e)
	if err := r.ctx.Err(); err != nil {
		return &fault.Error{Kind: fault.Canceled, Op: "run batch", Err: context.Cause(r.ctx)}
	}
	if r.guard == nil {
		return nil
	}
	if err := r.guard.Check(); err != nil {
		return &guardError{err}
	}
	return nil
}

// stopsRun reports whether err ends the batch.
func stopsRun(err error) bool {
	return err != nil && (stopsBatch(err) || errors.Is(err, errGuard))
}

func (r *run) fail(i int, err error, c *entry.Counts) {
	e := &r.b.Entries[i]
	failed, differ := &c.FilesFailed, &c.FilesDiffer
	if isDirOp(e) {
		failed, differ = &c.DirsFailed, &c.DirsDiffer
	}
	*failed++
	if isDifference(err) {
		*differ++
	}
	f := r.failure(e, err)
	r.mu.Lock()
	r.failures = append(r.failures, indexedFailure{i, f})
	r.mu.Unlock()
}

// warn counts the losses of an entry that is done. The example of each kind is
// the first entry in batch order, so that a second attempt says the same.
func (r *run) warn(t *target) {
	if len(t.warnings) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kind := range t.warnings {
		w := r.warnings[kind]
		if w == nil {
			w = &indexedWarning{index: t.index, Warning: Warning{Kind: kind}}
			r.warnings[kind] = w
		}
		w.Count++
		if t.index <= w.index {
			w.index, w.Example = t.index, t.e.Path
		}
	}
}

func (r *run) add(c *entry.Counts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Add(c)
}

func (x *execution) outcome() *Outcome {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := &Outcome{Counts: x.counts, Leader: x.leader}
	// Stable: what is told of the names in one directory is in their order.
	slices.SortStableFunc(x.failures, func(a, b indexedFailure) int { return a.index - b.index })
	for _, f := range x.failures {
		o.Failures = append(o.Failures, f.Failure)
	}
	for _, w := range x.warnings {
		o.Warnings = append(o.Warnings, w.Warning)
	}
	slices.SortFunc(o.Warnings, func(a, b Warning) int { return cmp.Compare(a.Kind, b.Kind) })
	return o
}
