package scanner

import (
	"context"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Scan walks cfg.Source and writes control, meta and state files below cfg.Out.
//
// What cannot be read is a problem in the result and never an error: an error
// means that there is no usable scan, because the source is missing or empty
// (fault.Unsafe), the configuration is wrong (fault.Invalid), the output cannot
// be written, or ctx is done. The files of a failed scan are left for a person
// to look at; its temporary files are not.
func Scan(ctx context.Context, cfg Config) (*Result, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	f, err := cfg.filter()
	if err != nil {
		return nil, err
	}
	tree := cfg.Tree
	var fs *fsTree
	if tree == nil {
		if fs, err = openFSTree(cfg.Source, cfg.OneFileSystem); err != nil {
			return nil, err
		}
		fs.pseudo.take = cfg.PseudoFS
		tree = fs
	}
	defer tree.Close()
	l, err := cfg.makeDirs()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(l.spill) //nolint:errcheck // temporary files
	s := &scan{cfg: &cfg, layout: l, problems: newProblems(cfg.Out)}
	s.walker, s.runs = newWalker(tree, f, &cfg, l, s.problems)
	if s.walker.only, err = newSelection(cfg.Paths); err != nil {
		return nil, err
	}
	s.begun = cfg.clock()
	if fs != nil {
		s.keepAway(fs)
	}
	if s.dest, err = s.openDestination(); err != nil {
		return nil, err
	}
	if s.dest != nil {
		defer func() { _ = s.dest.close() }() // read only
	}
	if s.fs = fs; fs != nil && len(cfg.Pending) == 0 {
		fs.since = cfg.KnownSince
	}
	s.res = Result{ControlDir: l.ctrl, MetaDir: l.meta, Started: cfg.Now}
	stop := s.progress()
	err = s.run(ctx)
	stop()
	if perr := s.problems.finish(&s.res); err == nil {
		err = perr
	}
	if err != nil {
		return nil, err
	}
	return &s.res, nil
}

// scan is one call of Scan.
type scan struct {
	cfg      *Config
	layout   layout
	problems *problems
	fs       *fsTree // nil = another tree
	walker   *walker
	runs     *runSet
	dest     *destination // nil = it is not looked at
	begun    time.Time
	res      Result
	written  atomic.Uint64
	walked   atomic.Bool
}

func (s *scan) run(ctx context.Context) error {
	log := s.cfg.Logger.With("component", "scanner")
	if err := s.walk(ctx); err != nil {
		return err
	}
	s.walked.Store(true)
	w := s.walker
	s.res.Excluded, s.res.Vanished, s.res.MountPoints = w.excluded.Load()+w.keptAway.Load(), w.vanished.Load(), w.mountPoints.Load()
	if s.fs != nil {
		s.res.PseudoSkipped = s.fs.pseudo.list()
		s.res.MountPoints -= uint64(len(s.res.PseudoSkipped))
	}
	log.Info("tree walked", "dirs", w.dirs.Load(), "files", w.files.Load(), "problems", s.problems.number())
	if err := w.only.missing("scan", "the source"); err != nil {
		return err
	}
	for path := range w.filter.absent() {
		s.problems.add(path, &fault.Error{
			Kind: fault.NotFound, Op: "look for", Path: orDot(path), Err: errors.New("it is in the list of paths and not in the source"),
		})
	}
	if err := s.refuseEmpty(); err != nil {
		return err
	}
	if err := s.write(ctx); err != nil {
		return err
	}
	s.res.Unmatched = w.filter.unmatched() // also by what only the destination has
	for _, r := range s.res.Unmatched {
		s.res.UnmatchedPatterns = append(s.res.UnmatchedPatterns, r.Pattern)
	}
	for _, dir := range []string{s.layout.ctrl, s.layout.meta, s.layout.state} {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	log.Info("scan written", "control_files", len(s.res.ControlFiles), "groups", s.res.Groups, "problems", s.problems.number())
	return nil
}

// walk walks the source and, beside it, the destination.
func (s *scan) walk(ctx context.Context) error {
	if s.dest == nil {
		return s.walker.run(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.walker.run(ctx) })
	g.Go(func() error { return s.dest.walker.run(ctx) })
	return g.Wait()
}

// refuseEmpty stops a scan that found nothing below the root but its own output
// or the destination: more often than not the source is not mounted. Where a first
// scan has left everything out, more often than not a pattern is wrong; later ones
// keep what earlier ones knew.
func (s *scan) refuseEmpty() error {
	w := s.walker
	if s.cfg.AllowEmpty || w.dirs.Load() > 1 || w.files.Load() > 0 || s.problems.number() > 0 {
		return nil
	}
	err := &fault.Error{
		Kind: fault.Unsafe, Op: "scan", Path: s.cfg.Source, Err: errors.New("the source is empty"),
		Hint: "mount it, or say that an empty source is meant: --allow-empty",
	}
	if w.excluded.Load() > 0 {
		if s.cfg.Committed != "" || len(s.cfg.Pending) > 0 {
			return nil
		}
		err.Err, err.Hint = errors.New("the source is empty after excludes"), "look at what they leave out (fsbackup help patterns), or go on with --allow-empty"
	}
	return err
}

// write turns the sorted runs into files.
func (s *scan) write(ctx context.Context) (err error) {
	e := newEmitter(s)
	e.meta = controlfile.NewMetaWriter(s.layout.meta, e.header(controlfile.Copy), s.cfg.Now, 0)
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, e.meta.Close())
		}
	}()
	j := s.newJoiner(e)
	defer func() { err = errors.Join(err, j.close()) }()
	if err := j.open(s.cfg.Committed, s.cfg.Pending); err != nil {
		return err
	}
	if s.cfg.Suspects != nil {
		if j.suspects, err = sortFailed(s.layout.spill, s.cfg.Suspects); err != nil {
			return err
		}
	}
	if len(s.cfg.Paths) == 0 && s.cfg.Suspects == nil {
		state, err := createState(filepath.Join(s.layout.state, stateName))
		if err != nil {
			return err
		}
		j.state = state
		defer func() { err = errors.Join(err, state.abandon()) }()
	}
	if err := s.writeControl(ctx, e, j); err != nil {
		return err
	}
	s.res.MetaFiles = e.meta.Files()
	closed = true
	if err := e.meta.Close(); err != nil {
		return err
	}
	if j.state == nil {
		return nil
	}
	s.res.StateFile = j.state.path
	return j.state.commit()
}

func (s *scan) newJoiner(e *emitter) *joiner {
	at := func(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }
	tick := s.cfg.ClockTick
	j := &joiner{
		e: e, filter: s.walker.filter, skip: s.walker.skip, all: s.cfg.Suspects == nil && (!s.cfg.Incremental || s.cfg.Committed == "" && s.dest == nil),
		src: s.fs, settled: true, dest: s.dest, lacking: map[string]*Lacking{},
		way:            &wayOut{lines: &sortBuffer{runs: newRunSet(s.layout.spill, "ways", s.cfg.fanIn), limit: fixed(int(s.cfg.MemoryLimit / 16))}},
		deleteExcluded: s.cfg.DeleteExcluded,
		// A modification time alone counts only if it is of now: it can be set to
		// any time to come, and would be dirty until then.
		from: at(s.begun.Add(-tick)), to: at(s.cfg.clock().Add(tick)),
	}
	if tick < 0 {
		j.from, j.to = Time{Sec: math.MaxInt64}, Time{}
	}
	return j
}

// writeControl writes control and meta files in the order in which the sorts
// yield what is in them: directories and files, links, and the directories that
// had to wait for links.
func (s *scan) writeControl(ctx context.Context, e *emitter, j *joiner) error {
	linkRuns, dirRuns := newRunSet(s.layout.spill, "links", s.cfg.fanIn), newRunSet(s.layout.spill, "dirs", s.cfg.fanIn)
	e.links = &sortBuffer{runs: linkRuns, limit: fixed(int(s.cfg.MemoryLimit / 4))}
	if !j.all {
		e.linkDirs = &sortBuffer{runs: dirRuns, limit: fixed(int(s.cfg.MemoryLimit / 8))}
	}
	buffers := s.walker.buffers
	s.walker.buffers = nil // the merger frees each as it is used up
	if err := merged(s.runs, buffers, func(m *merger) error { return j.run(ctx, m) }); err != nil {
		return err
	}
	err := merged(j.way.lines.runs, []*sortBuffer{j.way.lines}, func(m *merger) error {
		free, err := j.way.clear(m, e.remove)
		e.res.InWay = uint64(free)
		return err
	})
	if err != nil {
		return err
	}
	e.res.Listed, e.res.Settled = s.dest != nil, j.settled
	for _, kind := range slices.Sorted(maps.Keys(j.lacking)) {
		e.res.Lacking = append(e.res.Lacking, *j.lacking[kind])
	}
	if err := e.finishAll(controlfile.Delete); err != nil {
		return err
	}
	if j.all {
		if err := e.finishAll(controlfile.Copy, controlfile.Mtime); err != nil {
			return err
		}
	}
	buffer := e.links
	e.links = nil
	if err := merged(linkRuns, []*sortBuffer{buffer}, func(m *merger) error { return e.runLinks(ctx, m) }); err != nil {
		return err
	}
	if e.linkDirs != nil {
		if err := merged(dirRuns, []*sortBuffer{e.linkDirs}, e.runLinkDirs); err != nil {
			return err
		}
	}
	return e.finishAll(controlfile.Copy, controlfile.Mtime)
}

// merged calls f with what runs and buffers hold, in order.
func merged(runs *runSet, buffers []*sortBuffer, f func(*merger) error) error {
	m, err := runs.merge(buffers)
	if err != nil {
		return err
	}
	if err := f(m); err != nil {
		return errors.Join(err, m.close())
	}
	return nil
}

// keepAway notes the directories that are not to be entered: by what they are,
// and by name where they do not exist yet.
func (s *scan) keepAway(t *fsTree) {
	source, err := filepath.EvalSymlinks(s.cfg.Source)
	if err == nil {
		source, err = filepath.Abs(source)
	}
	l := &s.layout
	own := []string{s.cfg.Out, l.ctrl, filepath.Dir(l.meta), l.state, l.spill}
	for _, path := range append(own, s.cfg.ExcludePaths...) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil && st.Mode&modeFormat == modeDir {
			t.skip[devIno{st.Dev, st.Ino}] = true
		}
		abs, aerr := filepath.Abs(path)
		if err != nil || aerr != nil {
			continue
		}
		if rel, err := filepath.Rel(source, abs); err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../") {
			s.walker.skip[rel] = true
		}
	}
}

// progress reports figures until the returned function is called, and then once
// more.
func (s *scan) progress() (stop func()) {
	if s.cfg.Progress == nil {
		return func() {}
	}
	report := func(written uint64, walked bool) {
		w := s.walker
		s.cfg.Progress(Stats{
			Dirs: w.dirs.Load(), Files: w.files.Load(), Bytes: w.bytes.Load(), Written: written,
			Problems: s.problems.number(), Walked: walked,
		})
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(s.cfg.ProgressEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				report(s.written.Load(), s.walked.Load())
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		report(s.written.Load(), s.walked.Load())
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return outError(dir, err)
	}
	return nil
}
