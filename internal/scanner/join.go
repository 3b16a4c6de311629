package scanner

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/controlfile"
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

// fate is what becomes of an entry of earlier scans that this one did not find.
type fate uint8

const (
	gone     fate = iota
	excluded      // excluded now, and kept
	carried       // it could not be looked at
)

// level is a directory on the way from the root to the current entry.
type level struct {
	path    string
	key     []byte
	live    bool // in this scan
	flags   Flags
	fate    fate   // of all in it, if it is not live
	value   []byte // its record, if it is live
	linked  bool   // it holds members of hard-link groups
	emitted bool   // its lines are written
	lost    bool   // they cannot be: neither can those of its entries
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
	return nil
}

func (j *joiner) close() error {
	var errs []error
	for _, p := range j.past {
		errs = append(errs, p.s.Close())
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
		if !any {
			break
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
		lv.fate = j.fateOf(path, true, up)
		return j.keep(key, lv.fate, true)
	}
	lv.live, lv.flags, lv.linked, lv.value = true, j.cur.Flags, j.cur.Linked > 0, append(lv.value, value...)
	mode := j.modeOf(&j.cur)
	if mode == modeNew || mode == modeBoth {
		if err := j.touch(up); err != nil {
			return err
		}
	}
	if mode == modeSame {
		j.e.countMode(mode)
	} else if err := j.emitLevel(lv, mode); err != nil {
		return err
	}
	if lv.lost {
		j.cur.Flags |= FlagDirty
	} else {
		j.e.res.Dirs++
	}
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
	return lv, up, nil
}

// leave ends the current directory.
func (j *joiner) leave() error {
	j.depth--
	lv := &j.levels[j.depth]
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
	hasDir, hasFile := j.kinds()
	switch {
	case !here && !hasDir && !hasFile:
		return nil // could not be looked at, and was not known before
	case !here:
		return j.missing(key, lv, string(name), hasDir, hasFile)
	case j.cur.IsDir():
		if hasFile {
			j.e.res.GoneEntries++
		}
		j.other(hasFile)
		return j.put(key)
	}
	lost, err := j.file(key, value, lv, name)
	if err != nil {
		return err
	}
	if lost {
		j.cur.Flags |= FlagDirty
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

// file emits an entry that is no directory, if need be. It reports whether its
// line cannot be written.
func (j *joiner) file(key, value []byte, lv *level, name []byte) (lost bool, err error) {
	r := &j.cur
	mode := j.modeOf(r)
	if mode == modeSame {
		if r.isLinked() {
			return false, j.e.link(key, value, r, j.linked(lv), mode)
		}
		j.e.countMode(mode)
		j.count(r)
		return false, nil
	}
	full := Record{Dir: lv.path, Name: string(name)}
	if !lv.live || lv.lost {
		j.e.problems.add(full.Path(), fault.New(fault.Unsupported, "its directory is not in the scan"))
		return true, nil
	}
	kind := controlfile.Copy
	if r.isLinked() {
		kind = controlfile.Hardlink
	}
	if ok, err := j.e.holds(kind, full.Dir, full.Name); err != nil || !ok {
		return true, err
	}
	if r.isLinked() {
		return false, j.e.link(key, value, r, j.linked(lv), mode)
	}
	if err := j.touch(lv); err != nil {
		return false, err
	}
	if err := decodeValue(value, &full); err != nil {
		return false, &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: full.Path(), Err: err}
	}
	ok, err := j.e.file(&full, mode)
	if ok {
		j.count(r)
	}
	return !ok, err
}

func (j *joiner) count(r *Record) {
	j.e.countType(r)
	j.e.res.Bytes += r.data()
}

// linked returns how many members of hard-link groups a directory holds.
func (j *joiner) linked(lv *level) uint32 {
	var r Record
	if lv.live && decodeNumbers(lv.value, &r) == nil {
		return r.Linked
	}
	return 0
}

// missing handles a listed name of earlier scans that this one does not list, or
// could not look at.
func (j *joiner) missing(key []byte, lv *level, name string, hasDir, hasFile bool) error {
	fate := j.fateOf(joinPath(lv.path, name), j.base().IsDir(), lv)
	if fate == gone || !j.sure() {
		// Also where a scan that is pending may have had it written.
		if err := j.touch(lv); err != nil {
			return err
		}
	}
	if fate != gone || !lv.live {
		return j.keep(key, fate, true)
	}
	// The delete line of a directory covers all below it.
	written := true
	for _, line := range []struct{ has, isDir bool }{{hasFile, false}, {hasDir, true}} {
		if line.has {
			ok, err := j.e.remove(lv.path, name, line.isDir)
			if err != nil {
				return err
			}
			written = written && ok
		}
	}
	return j.keep(key, fate, written)
}

// fateOf returns what becomes of an entry that this scan has not. up is its
// directory's level. Where a directory is gone, all below it is: excluded is
// only what its directory may still hold.
func (j *joiner) fateOf(path string, isDir bool, up *level) fate {
	out := up != nil && (up.flags&FlagMountPoint != 0 || isDir && j.skip[path] || j.filter.out(path, isDir))
	switch {
	case up == nil:
		return carried
	case !up.live:
		return up.fate
	case j.cur.Flags&markUnknown != 0, up.flags&FlagUnreadable != 0:
		return carried
	case j.cur.Flags&markKeptAway != 0:
		return excluded
	case out && !j.deleteExcluded:
		return excluded
	}
	return gone
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

// keep writes an entry of earlier scans to the new state. written says that what
// is gone has its delete line, or needs none.
func (j *joiner) keep(key []byte, fate fate, written bool) error {
	base := j.base()
	if base == nil {
		return nil
	}
	hasDir, hasFile := j.kinds()
	isDirKey := !bytes.Contains(key, []byte{0, 0})
	counted := &j.e.res.GoneEntries
	j.cur = *base
	flags := base.Flags & (FlagUnreadable | FlagMountPoint | FlagAttrsPartial)
	switch fate {
	case gone:
		flags = FlagGone
		if !written {
			flags |= FlagCarried
		}
	case excluded:
		flags |= FlagExcluded
		counted = &j.e.res.ExcludedKept
	case carried:
		flags |= base.Flags&FlagExcluded | FlagCarried
		if !j.sure() {
			flags |= FlagDirty
		}
		counted = &j.e.res.Carried
	}
	if !isDirKey && hasDir && hasFile {
		flags |= FlagOther
	}
	j.cur.Flags = flags
	if j.known(isDirKey) {
		*counted++
	}
	return j.write(key)
}

// put writes the current record of this scan to the new state.
func (j *joiner) put(key []byte) error {
	r := &j.cur
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
	j.value = appendState(j.value[:0], &j.cur)
	return j.state.add(key, j.value)
}

func (t Time) before(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }

// modeOf returns the mode of an entry's line, modeSame if it needs none: it is as
// the committed state knows it, and no scan since then can have changed it in the
// destination.
func (j *joiner) modeOf(r *Record) string {
	if j.all {
		return modeBoth
	}
	c := &j.committed.rec
	if !j.committed.here || c.Flags&FlagGone != 0 || c.Mode&modeFormat != r.Mode&modeFormat {
		return modeNew
	}
	unsure := c.Flags&(FlagDirty|FlagExcluded|FlagOther) != 0 || r.isLinked() && c.Flags&FlagCarried != 0
	for _, p := range j.pending {
		if !p.here || p.rec.Flags&FlagGone != 0 || p.rec.Mode&modeFormat != r.Mode&modeFormat {
			return modeNew
		}
		unsure = unsure || !same(r, &p.rec) || p.rec.Flags&FlagAgain != 0 && (r.IsDir() || r.isLinked())
	}
	switch {
	case unsure:
		return modeBoth
	case same(r, c):
		return modeSame
	case r.IsDir():
		return modeMeta
	}
	meta := r.Mode != c.Mode || r.UID != c.UID || r.GID != c.GID || r.AttrHash != c.AttrHash
	data := r.data() != c.data() || r.Mtime != c.Mtime || r.Ino != c.Ino || r.Rdev != c.Rdev || r.isLinked() != c.isLinked()
	switch {
	case meta && data:
		return modeBoth
	case meta:
		return modeMeta
	}
	// Also where nothing but the time of the last change differs: somebody may
	// have put the modification time back.
	return modeData
}

// same reports whether two records of a path are of the same object in the same
// state. The device is left out: its number changes with mounts.
func same(a, b *Record) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.AttrHash != b.AttrHash ||
		a.Mtime != b.Mtime || a.Ctime != b.Ctime || a.Ino != b.Ino || a.Rdev != b.Rdev {
		return false
	}
	return a.IsDir() || a.data() == b.data() && a.Nlink == b.Nlink
}
