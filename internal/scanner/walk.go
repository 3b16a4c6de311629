package scanner

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/pace"
)

// walker reads a tree with several workers, each with its own sort buffer.
type walker struct {
	tree     Tree
	filter   *filter
	skip     map[string]bool        // entry paths of directories to keep away from
	only     *selection             // nil = all of the tree
	hide     func(path string) bool // entries that are as if they were not there; nil = none
	pending  *pending
	problems *problems
	marks    bool       // earlier scans may know what is left out for its size or time
	pace     *pace.Pace // directories read at once

	memory  int64        // bytes of all buffers together
	limit   atomic.Int64 // bytes of one
	mu      sync.Mutex
	runs    *runSet
	buffers []*sortBuffer // one for each worker; guarded by mu while they run

	dirs, files, bytes, vanished, mountPoints atomic.Uint64
	excluded, keptAway                        atomic.Uint64 // by pattern, by path
}

// mostWorkers is how many directories are read at once where that is worthwhile.
const mostWorkers = 64

// newWalker returns a walker, whose workers divide memory between them.
func newWalker(tree Tree, f *filter, c *Config, l layout, p *problems) (*walker, *runSet) {
	runs := newRunSet(l.spill, "entries", c.fanIn)
	w := &walker{
		tree: tree, filter: f, skip: map[string]bool{}, problems: p, marks: c.compares(),
		pending: newPending(l.spill, int(c.MemoryLimit/8/pendingPathBytes)),
	}
	share := int64(2)
	if c.Destination != "" {
		share = 4
	}
	w.memory, w.runs = c.MemoryLimit/share, runs
	w.pace = pace.New(pace.Config{Ceiling: cmp.Or(c.Workers, mostWorkers)})
	return w, runs
}

// run walks the whole tree.
func (w *walker) run(ctx context.Context) error {
	if err := w.pending.push([]string{""}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, w.pending.stop)
	defer stop()
	var start func()
	start = func() {
		buf, ok := w.buffer()
		if !ok {
			return
		}
		g.Go(func() error {
			if err := w.work(ctx, buf, start); err != nil {
				w.pending.stop()
				return err
			}
			return nil
		})
	}
	for range w.pace.Limit() {
		start()
	}
	return errors.Join(g.Wait(), w.pending.close())
}

// buffer returns the buffer of one more worker, unless there are as many as may work at
// once and one that waits.
func (w *walker) buffer() (*sortBuffer, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.buffers)
	if n > w.pace.Limit() || n == w.pace.Ceiling() {
		return nil, false
	}
	buf := &sortBuffer{runs: w.runs, limit: &w.limit}
	w.buffers = append(w.buffers, buf)
	w.limit.Store(w.memory / int64(n+1))
	return buf, true
}

// work reads directories. It calls more, which may start a further worker, while there
// are some that wait.
func (w *walker) work(ctx context.Context, buf *sortBuffer, more func()) error {
	var key, value []byte // scratch
	var current string    // the directory that is read
	var others []Record   // of what is below it: each is a group of its own in the sort
	add := func(r *Record) error {
		if r.Name == "" && r.Dir != current {
			others = append(others, *r)
			return nil
		}
		r.AttrHash = hashAttrs(r)
		key, value = appendKey(key[:0], r), appendValue(value[:0], r)
		return buf.add(key, value)
	}
	for {
		dir, ok, err := w.pending.pop()
		if err != nil {
			return err
		}
		if !ok {
			return ctx.Err()
		}
		current, others = dir, others[:0]
		if w.pending.waiting() {
			more()
		}
		if err := w.pace.Acquire(ctx); err != nil {
			w.pending.done()
			return err
		}
		before := len(buf.index)
		err = w.dir(ctx, dir, add)
		w.pace.Release(int64(max(1, len(buf.index)-before)))
		buf.group()
		for i := range others {
			current = others[i].Dir
			err = errors.Join(err, add(&others[i]))
			buf.group()
		}
		w.pending.done()
		if err != nil {
			return err
		}
	}
}

// dir reads one directory. The directory's own record comes last, because only
// then its counts are known; the sort puts it first.
func (w *walker) dir(ctx context.Context, dir string, add func(*Record) error) error {
	rec, rd, err := w.tree.Open(dir)
	if err != nil {
		if dir == "" && rec == nil {
			return err
		}
		if rec == nil && errors.Is(err, fs.ErrNotExist) {
			w.vanished.Add(1)
			return add(&Record{Dir: dir, Mode: modeDir, Flags: markUnknown})
		}
		w.problems.add(dir, err)
	}
	if rec == nil {
		mark := markUnknown
		if err == nil {
			w.keptAway.Add(1)
			mark = markKeptAway
		}
		return add(&Record{Dir: dir, Mode: modeDir, Flags: mark})
	}
	rec.Dir, rec.Name = dir, ""
	if rd != nil {
		err := w.entries(ctx, rec, rd, add)
		if err = errors.Join(err, rd.Close()); err != nil {
			return err
		}
	}
	if rec.Flags&FlagMountPoint != 0 {
		w.mountPoints.Add(1)
	}
	w.dirs.Add(1)
	return add(rec)
}

// entries reads what is in a directory. Its errors end the scan; what concerns
// an entry only is a problem.
func (w *walker) entries(ctx context.Context, dir *Record, rd DirReader, add func(*Record) error) error {
	keep := func(name string, isDir bool) bool {
		path := joinPath(dir.Dir, name)
		switch {
		case !w.only.has(path, isDir), w.hide != nil && w.hide(path):
			return false
		case isDir && w.skip[path]:
			w.keptAway.Add(1)
			return false
		case !w.filter.listed.has(path, isDir):
			w.excluded.Add(1)
			return false
		}
		w.filter.listed.note(path)
		if w.filter.meet(path, isDir) {
			w.excluded.Add(1)
			return false
		}
		w.only.note(path)
		return true
	}
	var subs []string
	for {
		found, err := rd.Next(keep)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			dir.Flags |= FlagUnreadable
			w.problems.add(dir.Dir, err)
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		subs = subs[:0]
		for i := range found {
			f := &found[i]
			path := joinPath(dir.Dir, f.Name)
			switch {
			case len(path) > controlfile.MaxPath:
				w.problems.add(path, fault.New(fault.Unsupported, "the path has %d bytes, more than %d", len(path), controlfile.MaxPath))
			case f.IsDir:
				dir.SubDirs++
				subs = append(subs, path)
				if err := add(slot(dir.Dir, f.Name)); err != nil {
					return err
				}
			case f.Err != nil:
				if errors.Is(f.Err, fs.ErrNotExist) {
					w.vanished.Add(1)
				} else {
					w.problems.add(path, f.Err)
				}
				if err := addUnknown(dir.Dir, f.Name, add); err != nil {
					return err
				}
			case w.filter.tooBigOrOld(&f.Rec):
				w.excluded.Add(1)
				// Earlier scans may know it, and it is not gone.
				if w.marks {
					if err := addUnknown(dir.Dir, f.Name, add); err != nil {
						return err
					}
				}
			default:
				f.Rec.Dir, f.Rec.Name = dir.Dir, f.Name
				if f.Rec.isLinked() {
					dir.Linked++
				}
				w.files.Add(1)
				if f.Rec.Mode&modeFormat == modeRegular {
					w.bytes.Add(f.Rec.Size)
				}
				if err := add(&f.Rec); err != nil {
					return err
				}
			}
		}
		if err := w.pending.push(subs); err != nil {
			return err
		}
	}
}

// addUnknown hands over that nothing is known of what has a name: neither what it
// is nor what it was.
func addUnknown(dir, name string, add func(*Record) error) error {
	if err := add(&Record{Dir: dir, Name: name, Flags: markUnknown}); err != nil {
		return err
	}
	return add(&Record{Dir: joinPath(dir, name), Mode: modeDir, Flags: markUnknown})
}
