package scanner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// joiner walks the ordered stream of this scan and those of earlier ones side by
// side, has the emitter write what differs, and writes the new state. It is used
// by one goroutine; its memory is one record of each stream and the directories
// above the current one.
type joiner struct {
	e      *emitter
	state  *stateWriter // nil = none is wanted
	filter *filter
	skip   map[string]bool
	all    bool // emit everything that is there

	deleteExcluded bool
	from, to       Time // an entry that changed between them is dirty

	dest    *destination // what the destination holds; nil = not looked at
	src     *fsTree      // nil = another tree, which looks at everything
	dir     string       // of the entry at the current key, if it is no directory ...
	name    string       // ... and its name
	record  []byte       // scratch
	settled bool         // nothing in the new state waits for a Commit
	way     *wayOut
	lacks   string // what the copy at the current key lacks
	lacking map[string]*Lacking

	suspects *failures // nil = there is no such list
	suspect  bool      // the entry at the current key is in it

	committed *past // nil = none
	pending   []*past
	past      []*past // all of them

	levels []level // directories from the root to the current one
	depth  int
	cur    Record
	value  []byte // scratch
}

// past is the stream of an earlier scan.
type past struct {
	s          *State
	key, value []byte
	ok         bool   // there is a record
	here       bool   // it is about the current key
	rec        Record // then; only its numbers
}

func (p *past) advance() error {
	var err error
	p.key, p.value, err = p.s.pair()
	p.ok = err == nil
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// level is a directory on the way from the root to the current entry.
type level struct {
	path    string
	key     []byte
	live    bool // in this scan
	flags   Flags
	fate    fate   // of all in it, if it is not live
	value   []byte // its record, if it is live
	linked  bool   // it holds members of hard-link groups
	adopted bool   // it was counted as that
	emitted bool   // its lines are written
	lost    bool   // they cannot be: neither can those of its entries

	heldDir bool           // the destination has it as a directory
	knowing bool           // what the destination has in it is known
	remove  bool           // its delete line is due when it has been gone through ...
	kept    bool           // ... unless something in it stays
	way     int            // the way that it is in, see wayOut; 0 = none
	inWay   map[string]int // ways that begin at directories in it
	altered bool           // it, or one above it, may be another one in the destination than at the last run
	moved   bool           // that is likely: it is, or its time is right although it changed
	another bool           // that is known
}

// open opens the states of earlier scans.
func (j *joiner) open(committed string, pending []string) error {
	add := func(path string) (*past, error) {
		s, err := OpenState(path)
		if err != nil {
			return nil, err
		}
		p := &past{s: s}
		j.past = append(j.past, p)
		return p, p.advance()
	}
	var err error
	if committed != "" {
		if j.committed, err = add(committed); err != nil {
			return err
		}
	}
	for _, path := range pending {
		p, err := add(path)
		if err != nil {
			return err
		}
		j.pending = append(j.pending, p)
	}
	if j.dest != nil {
		return j.dest.start()
	}
	return nil
}

func (j *joiner) close() error {
	var errs []error
	for _, p := range j.past {
		errs = append(errs, p.s.Close())
	}
	if j.suspects != nil {
		errs = append(errs, j.suspects.m.close())
	}
	return errors.Join(errs...)
}

// run joins the stream of this scan with the others, to the end of all.
func (j *joiner) run(ctx context.Context, m *merger) error {
	key, value, ok, err := m.next()
	for n := 0; ; n++ {
		if n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		least, any := key, ok
		for _, p := range j.past {
			if p.ok && (!any || bytes.Compare(p.key, least) < 0) {
				least, any = p.key, true
			}
		}
		if d := j.dest; d != nil && d.ok && (!any || bytes.Compare(d.key, least) < 0) {
			least, any = d.key, true
		}
		if !any {
			break
		}
		if d := j.dest; d != nil {
			if d.here = d.ok && bytes.Equal(d.key, least); d.here {
				d.rec = Record{}
				if err := decodeNumbers(d.value, &d.rec); err != nil {
					return &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: string(least), Err: err}
				}
			}
		}
		for _, p := range j.past {
			if p.here = p.ok && bytes.Equal(p.key, least); p.here {
				p.rec = Record{}
				if err := decodeNumbers(p.value, &p.rec); err != nil {
					return stateError(p.s.path, err)
				}
			}
		}
		now := ok && bytes.Equal(key, least)
		if now {
			err = j.step(least, value)
		} else {
			err = j.step(least, nil)
		}
		if err != nil {
			return err
		}
		for _, p := range j.past {
			if p.here {
				if err := p.advance(); err != nil {
					return err
				}
			}
		}
		if j.dest != nil && j.dest.here {
			if err := j.dest.advance(); err != nil {
				return err
			}
		}
		if now {
			key, value, ok, err = m.next()
		}
	}
	for j.depth > 0 {
		if err := j.leave(); err != nil {
			return err
		}
	}
	return nil
}

// step handles one key; value is that of this scan, nil if it has none.
func (j *joiner) step(key, value []byte) error {
	j.cur = Record{}
	if value != nil {
		if err := decodeNumbers(value, &j.cur); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: string(key), Err: err}
		}
	}
	if j.suspects != nil {
		what, err := j.suspects.at(key)
		if err != nil {
			return err
		}
		j.suspect = what != 0
	}
	i := bytes.Index(key, []byte{0, 0})
	if j.known(i < 0) {
		j.e.res.PreviousEntries++
	}
	if i < 0 {
		return j.directory(key, value)
	}
	return j.entry(key, i, value)
}

// known reports whether an earlier scan has an entry at the current key. A slot
// is none: its directory's own record is.
func (j *joiner) known(dirKey bool) bool {
	for _, p := range j.past {
		if p.here && (dirKey || !p.rec.IsDir()) {
			return true
		}
	}
	return false
}

// directory handles the own record of a directory.
func (j *joiner) directory(key, value []byte) error {
	path := strings.ReplaceAll(string(key), "\x00", "/")
	lv, up, err := j.enter(key, path)
	if err != nil {
		return err
	}
	if value == nil || j.cur.Flags&marks != 0 {
		return j.goneDirectory(key, lv, up)
	}
	lv.live, lv.flags, lv.linked, lv.value = true, j.cur.Flags, j.cur.Linked > 0, append(lv.value, value...)
	mode := j.modeOf(&j.cur, value, lv)
	if mode == modeNew || mode == modeBoth && (j.suspects == nil || !lv.heldDir) {
		// Its name may be made.
		if err := j.touch(up); err != nil {
			return err
		}
	}
	if mode == modeSame {
		lv.adopted = j.unchanged()
	} else if err := j.emitLevel(lv, mode); err != nil {
		return err
	}
	if lv.lost {
		j.cur.Flags |= FlagDirty
	} else {
		j.e.res.Dirs++
	}
	j.noteCopy(mode, false)
	return j.put(key)
}

// enter makes the directory at path the current one. It returns its level and
// that of its parent, nil for the root.
func (j *joiner) enter(key []byte, path string) (lv, up *level, err error) {
	for j.depth > 0 {
		if up = &j.levels[j.depth-1]; up.path == "" || strings.HasPrefix(path, up.path) && path[len(up.path)] == '/' {
			break
		}
		if err := j.leave(); err != nil {
			return nil, nil, err
		}
	}
	if j.depth == len(j.levels) {
		j.levels = append(j.levels, level{})
	}
	if j.depth > 0 {
		up = &j.levels[j.depth-1]
		if dir, _ := splitPath(path); dir != up.path {
			return nil, nil, fault.New(fault.Corrupt, "compare scans: %q comes without its parent", path)
		}
	} else if path != "" {
		return nil, nil, fault.New(fault.Corrupt, "compare scans: %q comes before the root", path)
	}
	lv = &j.levels[j.depth]
	j.depth++
	*lv = level{path: path, key: append(lv.key[:0], key...), value: lv.value[:0]}
	if d := j.dest; d != nil {
		switch {
		case d.here && d.rec.Flags&marks == 0:
			lv.heldDir, lv.knowing = true, d.rec.Flags&FlagUnreadable == 0
			if up != nil && d.settled != (Time{}) { // the root is known to be the same
				changed := d.disturbed()
				moved := changed && keptTime(j.cur.Mtime, d.rec.Mtime)
				if c := j.committed; c != nil && c.here && c.rec.IsDir() && c.rec.Copy != (Copy{}) {
					changed = c.rec.Copy.Ino != d.rec.Ino
					lv.another = changed
					moved = changed
				}
				lv.altered, lv.moved, lv.another = up.altered || changed, up.moved || moved, up.another || lv.another
			}
		case !d.here:
			lv.knowing = up != nil && up.knowing // there is none
		}
	}
	return lv, up, nil
}

// leave ends the current directory.
func (j *joiner) leave() error {
	j.depth--
	lv := &j.levels[j.depth]
	if j.depth == 0 || lv.live {
		return j.leaveLive(lv)
	}
	up := &j.levels[j.depth-1]
	switch {
	case lv.kept:
		up.kept = true
		if lv.remove {
			j.e.res.KeptDirs++
		}
	case lv.remove:
		if err := j.touch(up); err != nil {
			return err
		}
		_, name := splitPath(lv.path)
		_, err := j.remove(up, name, true)
		return err
	}
	return nil
}

// leaveLive ends a directory that this scan has.
func (j *joiner) leaveLive(lv *level) error {
	if lv.live && lv.linked && !lv.emitted {
		return j.e.wait(lv.key, lv.value)
	}
	return nil
}

// emitLevel writes the lines of a directory of this scan.
func (j *joiner) emitLevel(lv *level, mode string) error {
	r := Record{Dir: lv.path}
	if err := decodeValue(lv.value, &r); err != nil {
		return &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: lv.path, Err: err}
	}
	ok, err := j.e.directory(&r, mode)
	lv.emitted, lv.lost = ok, !ok
	return err
}

// touch sees to it that a directory in which names change is finished again.
func (j *joiner) touch(lv *level) error {
	if lv == nil || !lv.live || lv.emitted || lv.lost {
		return nil
	}
	j.e.res.Unchanged-- // as it was counted
	if lv.adopted {
		j.e.res.Adopted--
	}
	return j.emitLevel(lv, modeStay)
}

// entry handles what a directory lists: a slot, or an entry that is no
// directory. i is where the directory's key ends.
func (j *joiner) entry(key []byte, i int, value []byte) error {
	if j.depth == 0 || !bytes.Equal(key[:i], j.levels[j.depth-1].key) {
		dir, name := splitKey(key, "")
		return fault.New(fault.Corrupt, "compare scans: %q comes without its directory", joinPath(dir, name))
	}
	lv := &j.levels[j.depth-1]
	name := key[i+2:]
	here := value != nil && j.cur.Flags&marks == 0
	if here && j.cur.Flags&markLater != 0 {
		j.dir, j.name = lv.path, string(name)
		var err error
		if value, err = j.later(value); err != nil {
			return err
		}
	}
	hasDir, hasFile := j.kinds()
	switch {
	case !here && !hasDir && !hasFile:
		return j.foreign(lv, string(name))
	case !here:
		return j.missing(key, lv, string(name), hasDir, hasFile)
	case j.cur.IsDir():
		if hasFile {
			j.e.res.GoneEntries++
		}
		j.other(hasFile)
		return j.put(key)
	}
	if d := j.dest; d != nil && d.here && d.rec.IsDir() || hasDir && !lv.knowing {
		if lv.inWay == nil {
			lv.inWay = map[string]int{}
		}
		lv.inWay[string(name)] = j.way.open()
	}
	mode, lost, err := j.file(key, value, lv, name)
	if err != nil {
		return err
	}
	if lost {
		j.cur.Flags |= FlagDirty
	} else {
		j.noteCopy(mode, lv.knowing)
	}
	j.other(hasDir)
	return j.put(key)
}

// kinds reports what the destination may have at the current key, a listed name.
func (j *joiner) kinds() (hasDir, hasFile bool) {
	for _, p := range j.past {
		if p.here {
			hasDir = hasDir || p.rec.IsDir() || p.rec.Flags&FlagOther != 0
			hasFile = hasFile || !p.rec.IsDir() || p.rec.Flags&FlagOther != 0
		}
	}
	return hasDir, hasFile
}

// other marks the current record if the destination may have one of the other
// kind.
func (j *joiner) other(has bool) {
	if has {
		j.cur.Flags |= FlagOther
	}
}

// base returns the record of the current key that is kept if this scan has none.
func (j *joiner) base() *Record {
	if j.committed != nil && j.committed.here {
		return &j.committed.rec
	}
	for _, p := range slices.Backward(j.pending) {
		if p.here {
			return &p.rec
		}
	}
	return nil
}

// sure reports whether the destination is known to hold what the committed state
// has at the current key.
func (j *joiner) sure() bool {
	c := j.committed
	if c == nil || !c.here || c.rec.Flags&(FlagDirty|FlagGone) != 0 {
		return false
	}
	for _, p := range j.pending {
		if !p.here || p.rec.Flags&(FlagGone|FlagAgain) != 0 || !same(&c.rec, &p.rec) {
			return false
		}
	}
	return true
}

// upOf returns the level of the directory that has the entry at the current key, nil
// for the root.
func (j *joiner) upOf(dirKey bool) *level {
	n := j.depth - 1
	if dirKey {
		n--
	}
	if n < 0 {
		return nil
	}
	return &j.levels[n]
}

// put writes the current record of this scan to the new state.
func (j *joiner) put(key []byte) error {
	r := &j.cur
	r.Flags &^= markLater
	if r.Mode&modeFormat != modeDir || !bytes.Contains(key, []byte{0, 0}) {
		if !r.Ctime.before(j.from) || !r.Mtime.before(j.from) && r.Mtime.before(j.to) {
			r.Flags |= FlagDirty
		}
		if j.all {
			r.Flags |= FlagAgain
		}
	}
	return j.write(key)
}

func (j *joiner) write(key []byte) error {
	if j.state == nil {
		return nil
	}
	if j.cur.IsDir() && bytes.Contains(key, []byte{0, 0}) {
		j.cur.Name = "/" // a slot, whatever it is called
	}
	j.settled = j.settled && j.cur.Flags&(FlagGone|FlagAgain|FlagOther) == 0
	j.value = appendState(j.value[:0], &j.cur)
	return j.state.add(key, j.value)
}

func (t Time) before(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }
