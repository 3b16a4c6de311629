package scanner

import (
	"bytes"
	"errors"
)

// What the joiner does about entries that only earlier scans or the destination have.

// goneDirectory handles the own record of a directory that this scan does not have.
func (j *joiner) goneDirectory(key []byte, lv, up *level) error {
	lv.fate = j.fateOf(lv.path, true, up)
	known := j.known(true)
	if up != nil {
		_, name := splitPath(lv.path)
		if lv.way = up.way; lv.way == 0 {
			lv.way = up.inWay[name]
		}
	}
	switch {
	case lv.fate != gone, !known && !lv.heldDir:
		j.stays(lv)
	case !known:
		if lv.remove = j.extra(lv.path, up, true); !lv.remove {
			j.stays(lv)
		}
	default:
		lv.remove = lv.heldDir || !up.knowing
	}
	if lv.remove {
		_, name := splitPath(lv.path)
		ok, err := j.e.deletes(up.path, name, true)
		if err != nil {
			return err
		}
		lv.remove = ok
		if !ok {
			return j.keep(key, lv.fate, false)
		}
	}
	return j.keep(key, lv.fate, true)
}

// extra handles what only the destination has, at the current key, and that is not
// excluded: it is to be deleted or not.
func (j *joiner) extra(path string, up *level, isDir bool) (remove bool) {
	j.e.res.Extra++
	purged := j.deleteExcluded && j.filter.out(path, isDir)
	if !j.e.cfg.DeleteExtra && !purged || up == nil {
		if len(j.e.res.ExtraExamples) < maxExamples {
			j.e.res.ExtraExamples = append(j.e.res.ExtraExamples, path)
		}
		return false
	}
	j.e.res.ExtraDeleted++
	return true
}

// stays notes that something in a directory stays, or the directory itself. It cannot
// be deleted then; and if it is in the way of something else, nothing of it may be.
func (j *joiner) stays(lv *level) {
	lv.kept = true
	if lv.way > 0 && !j.e.cfg.ReplaceDirs {
		j.way.bad[lv.way-1] = true
	}
}

// remove writes a delete line of what is in a directory, or keeps it back.
func (j *joiner) remove(lv *level, name string, isDir bool) (bool, error) {
	way := lv.way
	if way == 0 && isDir {
		way = lv.inWay[name]
	}
	if way == 0 {
		return j.e.remove(lv.path, name, isDir)
	}
	if ok, err := j.e.deletes(lv.path, name, isDir); err != nil || !ok {
		return false, err
	}
	return true, j.way.add(way, lv.path, name, isDir)
}

// foreign handles a listed name that neither this scan has nor an earlier one: the
// destination may have it.
func (j *joiner) foreign(lv *level, name string) error {
	d := j.dest
	if d == nil || !d.here || d.rec.Flags&marks != 0 || j.cur.Flags&markUnknown != 0 {
		return nil // it could not be looked at
	}
	path := joinPath(lv.path, name)
	if f := j.fateOf(path, d.rec.IsDir(), lv); f != gone {
		j.stays(lv)
		return nil
	}
	if d.rec.IsDir() {
		return nil // its own record says the rest
	}
	if !j.extra(path, lv, false) {
		j.stays(lv)
		return nil
	}
	if err := j.touch(lv); err != nil {
		return err
	}
	_, err := j.remove(lv, name, false)
	return err
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
	if fate != gone {
		j.stays(lv)
		return j.keep(key, fate, true)
	}
	written := true
	switch d := j.dest; {
	case d != nil && d.here && d.rec.Flags&marks == 0 && !d.rec.IsDir() && !hasFile:
		// Somebody put it in the place of a directory of ours.
		return errors.Join(j.foreign(lv, name), j.keep(key, fate, true))
	case hasFile && (d == nil || !lv.knowing || d.here && !d.rec.IsDir()):
		// The line of a directory comes when all in it has been gone through.
		var err error
		if written, err = j.remove(lv, name, false); err != nil {
			return err
		}
	}
	return j.keep(key, fate, written)
}

// fateOf returns what becomes of an entry that this scan has not. up is its
// directory's level, nil for the root.
func (j *joiner) fateOf(path string, isDir bool, up *level) fate {
	f := unfound{root: up == nil, keptAway: j.cur.Flags&markKeptAway != 0, purge: j.deleteExcluded}
	if up != nil {
		f.dirLives, f.dirFate = up.live, up.fate
		f.unread = j.cur.Flags&markUnknown != 0 || up.flags&FlagUnreadable != 0 || !j.filter.asked(path)
		f.out = up.flags&FlagMountPoint != 0 || isDir && j.skip[path] || j.filter.meet(path, isDir)
	}
	return f.decide()
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
