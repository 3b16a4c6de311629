package engine

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/pace"
)

// Operation is something that the engine is doing on file systems.
type Operation struct {
	Job   string
	Doing string    // "copy", "delete", "sync" ...
	Path  string    // the entry's path; for what concerns a root as a whole, the root's
	Since time.Time // of the last sign of progress
}

// Hung returns the operations without a sign of progress for the given time or
// longer, the oldest first. A system call that does not return can be neither
// cancelled nor left: its goroutine and its buffer stay with it. Its places among
// those that read and write do not: Hung gives them, and a buffer in place of
// its own, to whatever waits for them, so that a file system that hangs keeps
// nothing from the others. What still holds the job's own places bounds how much
// of one job can hang. Safe for concurrent use.
func (e *Engine) Hung(patience time.Duration) []Operation {
	now := time.Since(e.begun)
	var out []Operation
	e.busyMu.Lock()
	defer e.busyMu.Unlock()
	for g := range e.busy {
		for i := range g.tasks {
			t := &g.tasks[i]
			if seen := time.Duration(t.seen.Load()); seen == 0 || now-seen < patience*time.Duration(g.patience) {
				continue
			}
			if o, ok := t.lend(e); ok {
				o.Job = g.job
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b Operation) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Path, b.Path))
	})
	return out
}

// File is a file that is being copied.
type File struct {
	Job   string
	Path  string // the entry's
	Done  int64  // bytes from its beginning; holes are among them
	Size  int64
	Since time.Time // when its data began to be copied
}

// Copying returns files of at least size bytes that are being copied, the largest first
// and at most so many. Safe for concurrent use.
func (e *Engine) Copying(size int64, most int) []File {
	var out []File
	e.busyMu.Lock()
	defer e.busyMu.Unlock()
	for g := range e.busy {
		for i := range g.tasks {
			if f, ok := g.tasks[i].file(e, size); ok {
				f.Job = g.job
				out = append(out, f)
			}
		}
	}
	slices.SortFunc(out, func(a, b File) int { return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Path, b.Path)) })
	return out[:min(most, len(out))]
}

// copies notes that the task copies the data of a file of a size; 0 = it has ended.
func (t *task) copies(e *Engine, size int64) {
	t.at.Store(0)
	t.began.Store(int64(time.Since(e.begun)))
	t.size.Store(size)
}

// file returns the file that the task copies, if it is at least so large.
func (t *task) file(e *Engine, size int64) (File, bool) {
	is := t.size.Load()
	if is < size || is == 0 {
		return File{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return File{Path: t.path, Done: min(t.at.Load(), is), Size: is, Since: e.begun.Add(time.Duration(t.began.Load()))}, true
}

// Threads returns how many entries the jobs that are being executed have found
// worthwhile to have under way, together. Safe for concurrent use.
func (e *Engine) Threads() int {
	e.busyMu.Lock()
	defer e.busyMu.Unlock()
	n := 0
	counted := map[*pace.Pace]bool{}
	for g := range e.busy {
		if g.pace != nil && !counted[g.pace] {
			counted[g.pace] = true
			n += g.pace.Limit()
		}
	}
	return n
}

// idle reports whether the engine does nothing on file systems.
func (e *Engine) idle() bool {
	e.busyMu.Lock()
	defer e.busyMu.Unlock()
	return len(e.busy) == 0
}

// crew is what the goroutines of one execution are doing.
type crew struct {
	job      string
	patience int        // times as long as usual
	tasks    []task     // one each
	pace     *pace.Pace // of the job, where they execute entries
}

// slowly is how many times longer a sync, which writes what many entries left,
// may go on than an entry before it counts as hung.
const slowly = 4

// crew notes n tasks of a job until the function that it returns is called.
func (e *Engine) crew(job string, n, patience int, p *pace.Pace) (*crew, func()) {
	g := &crew{job: job, patience: patience, tasks: make([]task, n), pace: p}
	e.busyMu.Lock()
	e.busy[g] = struct{}{}
	e.busyMu.Unlock()
	return g, func() {
		e.busyMu.Lock()
		delete(e.busy, g)
		e.busyMu.Unlock()
	}
}

// alone notes an operation on a root as a whole until the function that it
// returns is called.
func (e *Engine) alone(job, doing, path string, patience int) (done func()) {
	g, done := e.crew(job, 1, patience, nil)
	g.tasks[0].begin(e, doing, path, false)
	return done
}

// task is what one goroutine is doing. It is cheap enough for each file: no
// allocation, and locks that nobody else asks for.
type task struct {
	seen atomic.Int64 // the engine's time of the last sign of progress; 0 = waiting, or idle

	size  atomic.Int64 // of the file that is being copied; 0 = none is
	at    atomic.Int64 // where in it
	began atomic.Int64 // the engine's time when that began

	mu     sync.Mutex
	doing  string // guarded by mu
	path   string // guarded by mu
	places bool   // holds places of the engine; guarded by mu
	buffer bool   // holds a buffer of the engine; guarded by mu

	_ [8]byte // tasks of several goroutines share no cache line
}

// progress notes a sign of life.
func (t *task) progress(e *Engine) { t.seen.Store(int64(time.Since(e.begun))) }

// waits notes that the task waits for other tasks, not for a file system.
func (t *task) waits() { t.seen.Store(0) }

// begin notes what the task does now. With places it holds the engine's.
func (t *task) begin(e *Engine, doing, path string, places bool) {
	t.mu.Lock()
	t.doing, t.path = doing, path
	t.places = t.places || places
	t.mu.Unlock()
	t.progress(e)
}

// end notes that the task does nothing; it reports whether it still held places.
func (t *task) end() (held bool) {
	t.waits()
	t.mu.Lock()
	defer t.mu.Unlock()
	held, t.places = t.places, false
	return held
}

// took notes that the task holds a buffer.
func (t *task) took() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buffer = true
}

// gave notes that it holds none any more; it reports whether the buffer is still
// one of the engine's.
func (t *task) gave() (ours bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ours, t.buffer = t.buffer, false
	return ours
}

// lend gives what the task holds to others and returns what it is doing; ok is
// false if it has ended meanwhile.
func (t *task) lend(e *Engine) (o Operation, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen := time.Duration(t.seen.Load())
	if seen == 0 {
		return o, false
	}
	if t.places {
		t.places = false
		e.reads.release()
		e.writes.release()
	}
	if t.buffer {
		t.buffer = false
		e.bufs.make.release() // another may be made in its place
	}
	return Operation{Doing: t.doing, Path: t.path, Since: e.begun.Add(seen)}, true
}

// doings are what people read of each operation.
var doings = [...]string{
	entry.OpRejected: "look at", entry.OpMkdir: "make directory", entry.OpCopy: "copy", entry.OpUnlink: "delete", entry.OpRemoveTree: "delete tree",
	entry.OpLink: "link", entry.OpFinish: "finish directory", entry.OpTouch: "touch directory",
}

// doing says what an operation does.
func doing(o entry.Op) string {
	if int(o) < len(doings) {
		return doings[o]
	}
	return "execute"
}
