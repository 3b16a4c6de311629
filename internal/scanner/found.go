package scanner

import (
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// What the joiner does about entries that this scan has.

// unchanged counts an entry for which nothing is emitted, and reports whether no
// earlier scan knew it.
func (j *joiner) unchanged() (adopted bool) {
	j.e.res.Unchanged++
	if adopted = !j.known(true); adopted {
		j.e.res.Adopted++
	}
	return adopted
}

// noteCopy has the new state keep what the destination was seen to have, if nothing
// is written there now, or perhaps nothing. knowing says whether it is known what the
// destination has in the entry's directory.
func (j *joiner) noteCopy(mode string, knowing bool) {
	switch d := j.dest; {
	case j.cur.IsDir(): // whatever is written, it stays the same one
		if d != nil && d.here && d.rec.Flags&marks == 0 && d.rec.IsDir() {
			j.cur.Copy = Copy{Ino: d.copy().Ino}
		} else if d == nil && mode == modeSame && j.committed != nil && j.committed.here {
			j.cur.Copy = j.committed.rec.Copy
		}
	case mode != modeSame && j.e.cfg.KeepsTargets:
		j.cur.Flags |= FlagUnsure
		switch {
		case d == nil && j.committed == nil, d != nil && knowing && !d.here:
			j.cur.Copy = noCopy
		case d != nil && d.here && d.rec.Flags&marks == 0:
			j.cur.Copy = d.copy()
		}
	case j.e.cfg.NoMeta && j.cur.Mode&modeFormat != modeRegular: // nothing of it was looked at
	case mode != modeSame || j.cur.isLinked():
		// A link may be written for its group's sake.
	case d != nil && d.here && d.rec.Flags&marks == 0:
		j.cur.Copy = d.copy()
	case d == nil && j.committed != nil && j.committed.here:
		j.cur.Copy = j.committed.rec.Copy
	}
}

// later deals with a record whose attributes were not looked at: they are known, since
// nothing of the entry has changed, or are read now. It returns the record.
func (j *joiner) later(value []byte) ([]byte, error) {
	if c := j.committed; c != nil && c.here {
		r := j.cur
		r.AttrHash = c.rec.AttrHash
		if same(&r, &c.rec) {
			j.cur.AttrHash = r.AttrHash
			j.cur.Flags |= c.rec.Flags & FlagAttrsPartial
			return value, nil
		}
	}
	full, err := j.whole(value)
	if err != nil {
		return nil, err
	}
	j.record = appendValue(j.record[:0], &full)
	j.cur = Record{}
	return j.record, decodeNumbers(j.record, &j.cur)
}

// whole decodes the record of the entry at the current key with all that it has.
func (j *joiner) whole(value []byte) (Record, error) {
	full := Record{Dir: j.dir, Name: j.name}
	if err := decodeValue(value, &full); err != nil {
		return full, &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: full.Path(), Err: err}
	}
	if full.Flags&markLater == 0 {
		return full, nil
	}
	return full, j.src.complete(&full)
}

// file emits an entry that is no directory, if need be. It returns the mode of its
// line and whether that cannot be written.
func (j *joiner) file(key, value []byte, lv *level, name []byte) (mode string, lost bool, err error) {
	r := &j.cur
	mode = j.modeOf(r, value, lv)
	if mode == modeSame && !r.isLinked() {
		j.unchanged()
		j.count(r)
		return mode, false, nil
	}
	if mode == modeSame {
		return mode, false, j.link(key, value, r, j.linked(lv), mode)
	}
	lost, err = j.emitFile(key, value, lv, name, mode)
	return mode, lost, err
}

// link passes an entry on to the sort by inode, with what the destination has as it.
func (j *joiner) link(key, value []byte, r *Record, linked uint32, mode string) error {
	var at devIno
	if d := j.dest; d != nil && d.here && mode == modeSame && j.suspects == nil {
		at = devIno{d.rec.Dev, d.rec.Ino}
	}
	return j.e.link(key, value, member{linked: linked, mode: mode, adopted: mode == modeSame && !j.known(true), at: at, inode: devIno{r.Dev, r.Ino}})
}

func (j *joiner) emitFile(key, value []byte, lv *level, name []byte, mode string) (lost bool, err error) {
	r := &j.cur
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
		return false, j.link(key, value, r, j.linked(lv), mode)
	}
	if err := j.touch(lv); err != nil {
		return false, err
	}
	if err := decodeValue(value, &full); err != nil {
		return false, &fault.Error{Kind: fault.Corrupt, Op: "read back the record of", Path: full.Path(), Err: err}
	}
	if full.Flags&markLater != 0 {
		if err := j.src.complete(&full); err != nil {
			return false, err
		}
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

// modeOf returns the mode of the line of an entry that this scan has, and counts what
// its copy lacks or has lost. value is its record as a whole, lv its directory's level,
// its own for a directory.
func (j *joiner) modeOf(r *Record, value []byte, lv *level) string {
	switch {
	case j.suspects != nil:
		mode := decideSuspect(j.suspect)
		if mode != modeSame {
			j.e.res.Repaired++
		}
		return mode
	case j.all:
		return found{all: true}.decide()
	}
	// Being there as gone, or as something else, is not being known.
	has := func(p *past) bool {
		return p.here && p.rec.Flags&FlagGone == 0 && p.rec.Mode&modeFormat == r.Mode&modeFormat
	}
	f := found{fresh: true, isDir: r.IsDir()}
	for _, p := range j.past {
		f.fresh = f.fresh && !p.here
	}
	if j.committed != nil {
		f = j.against(r, f, has)
	}
	knowing := lv.knowing
	if r.IsDir() {
		up := j.upOf(true)
		knowing = lv.heldDir || up != nil && up.knowing
	}
	f.held = j.heldAs(r, value, lv, knowing, f.known)
	mode := f.decide()
	switch {
	case f.held == heldLacking && mode == modeSame:
		j.countLack(r, lv)
	case f.known && f.sure && f.same && mode != modeSame:
		j.e.res.Repaired++
	}
	return mode
}

// countLack counts a copy that lacks something.
func (j *joiner) countLack(r *Record, lv *level) {
	l := j.lacking[j.lacks]
	if l == nil {
		l = &Lacking{Kind: j.lacks, Example: lv.path}
		if !r.IsDir() {
			_, name := splitKey(j.dest.key, lv.path)
			l.Example = joinPath(lv.path, name)
		}
		j.lacking[j.lacks] = l
	}
	l.Count++
}

// against compares an entry with the committed state and the pending ones.
func (j *joiner) against(r *Record, f found, has func(*past) bool) found {
	c := &j.committed.rec
	f = found{
		fresh: f.fresh,
		known: has(j.committed),
		sure:  c.Flags&(FlagDirty|FlagExcluded|FlagOther) == 0 && (!r.isLinked() || c.Flags&FlagCarried == 0),
		same:  same(r, c),
		isDir: r.IsDir(),
		meta:  r.Mode != c.Mode || r.UID != c.UID || r.GID != c.GID || r.AttrHash != c.AttrHash,
		data:  r.data() != c.data() || r.Mtime != c.Mtime || r.Ino != c.Ino || r.Rdev != c.Rdev || r.isLinked() != c.isLinked(),
	}
	for _, p := range j.pending {
		f.known = f.known && has(p)
		f.sure = f.sure && same(r, &p.rec) && (p.rec.Flags&FlagAgain == 0 || !r.IsDir() && !r.isLinked())
	}
	return f
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
