package scanner

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// walker reads a tree with several workers, each with its own sort buffer.
type walker struct {
	tree     Tree
	filter   *filter
	skip     map[string]bool // entry paths of directories to keep away from
	only     *selection      // nil = all of the tree
	pending  *pending
	problems *problems
	buffers  []*sortBuffer

	dirs, files, bytes, vanished, mountPoints atomic.Uint64
	excluded, keptAway                        atomic.Uint64 // by pattern, by path
}

// newWalker divides memory between the workers.
func newWalker(tree Tree, f *filter, c *Config, l layout, p *problems) (*walker, *runSet) {
	runs := newRunSet(l.spill, "entries", c.fanIn)
	w := &walker{
		tree: tree, filter: f, skip: map[string]bool{}, problems: p,
		pending: newPending(l.spill, int(c.MemoryLimit/8/pendingPathBytes)),
	}
	for range c.Workers {
		w.buffers = append(w.buffers, &sortBuffer{runs: runs, limit: int(c.MemoryLimit / 2 / int64(c.Workers))})
	}
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
	for _, b := range w.buffers {
		g.Go(func() error {
			if err := w.work(ctx, b); err != nil {
				w.pending.stop()
				return err
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), w.pending.close())
}

func (w *walker) work(ctx context.Context, buf *sortBuffer) error {
	var key, value []byte // scratch
	add := func(r *Record) error {
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
		err = w.dir(ctx, dir, add)
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
		case !w.only.has(path, isDir):
			return false
		case isDir && w.skip[path]:
			w.keptAway.Add(1)
		case w.filter.out(path, isDir):
			w.excluded.Add(1)
		default:
			w.only.note(path)
			return true
		}
		return false
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
				// What it is, or was, is not known.
				if err := add(&Record{Dir: dir.Dir, Name: f.Name, Flags: markUnknown}); err != nil {
					return err
				}
				if err := add(&Record{Dir: path, Mode: modeDir, Flags: markUnknown}); err != nil {
					return err
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
