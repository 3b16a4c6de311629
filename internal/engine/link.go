package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// WarnLeaderVanished is the warning's kind when a hard-link group was left out
// because its leader is not in the source any more.
const WarnLeaderVanished = "hardlink-leader-vanished"

// linkGroup executes a hard-link group: its leader, the first entry, is copied
// like a file, the members are linked to it. Only what stops the batch is
// returned.
func (r *run) linkGroup(u unit, c *Counts) error {
	leader := &r.b.Entries[u[0]]
	state := stateDone
	var err error
	if leader.LeaderOnly {
		err = checkPath(leader.Path)
	} else {
		err = r.repeating(leader, func() error {
			t, err := r.prepare(u[0], leader, c)
			if t == nil {
				state = stateKept
				return err
			}
			if state, err = r.copyCounted(t, c); err == nil {
				r.warn(t)
			}
			return err
		})
	}
	if stopsRun(err) {
		return err
	}
	if err != nil {
		r.fail(u[0], err, c)
	}
	for _, i := range u[1:] {
		e := &r.b.Entries[i]
		switch {
		case err != nil:
			r.fail(i, &fault.Error{Kind: fault.KindOf(err), Op: "link", Path: e.Path,
				Err: fmt.Errorf("the first name of the group, %q: %w", leader.Path, err)}, c)
			continue
		case state != stateDone:
			r.skipMember(i, e, state, c)
			continue
		}
		merr := r.repeating(e, func() error {
			t, err := r.prepare(i, e, c)
			if t == nil {
				return err
			}
			if err := r.linkMember(t, leader, c); err != nil {
				return err
			}
			r.warn(t)
			return nil
		})
		if stopsRun(merr) {
			return merr
		}
		if merr != nil {
			r.fail(i, merr, c)
		}
	}
	return nil
}

// skipMember leaves out a member whose leader was left out: linking it to
// whatever stands in the leader's place would give it somebody else's contents.
func (r *run) skipMember(i int, e *Entry, state copyState, c *Counts) {
	t := &target{index: i, e: e}
	t.lose(WarnGroupKept)
	if state == stateVanished {
		t.warnings = []string{WarnLeaderVanished}
	}
	c.Skipped++
	r.warn(t)
}

// linkMember makes t a hard link of the group's leader.
func (r *run) linkMember(t *target, leader *Entry, c *Counts) error {
	lpath, where := r.j.trimmed(leader.Path)
	if where != placeBelow || lpath == "" {
		return &fault.Error{Kind: fault.Invalid, Op: "link", Path: t.path,
			Err: fmt.Errorf("the first name of the group, %q, has no place in the destination", leader.Path)}
	}
	ldir, lname := split(lpath)
	from, err := r.existing(ldir)
	if err != nil {
		return opError("open the directory of the group's first name", ldir, err)
	}
	defer from.Release()
	dir, name, err := r.parent(t)
	if err != nil {
		return err
	}
	defer dir.Release()
	if err := r.clearTemps(dir, t.index); err != nil {
		return err
	}
	for range 8 {
		var want, have unix.Stat_t
		if err := fsys.Lstatat(from.FD, lname, &want); err != nil {
			return opError("stat the group's first name", lpath, err)
		}
		if fsys.Type(want.Mode) == unix.S_IFDIR {
			return opError("link to the group's first name", lpath, unix.EISDIR)
		}
		err := fsys.Lstatat(dir.FD, name, &have)
		switch {
		case fsys.Errno(err) == unix.ENOENT:
			err = r.linkNew(from, lname, dir, name)
		case err != nil:
			return opError("stat target", t.path, err)
		case have.Dev == want.Dev && have.Ino == want.Ino:
			c.Links++
			return nil
		case r.keeps(&have, &want):
			c.Skipped++
			return nil
		case fsys.Type(have.Mode) == unix.S_IFDIR:
			err = r.removeDirInWay(t, dir, name)
		default:
			err = r.linkReplace(t, from, lname, dir, name)
		}
		switch {
		case err == nil, errors.Is(err, unix.EEXIST): // look whether it is right
		case fsys.Errno(err) == unix.ENOENT:
			if dir.Gone() || from.Gone() {
				return errParentGone
			}
		default:
			return opError("link", t.path, err)
		}
	}
	return opError("link", t.path, unix.EEXIST)
}

// keeps reports whether the policy keeps a target that is another object.
func (r *run) keeps(have, want *unix.Stat_t) bool {
	switch r.j.spec.Replace {
	case ReplaceNever:
		return true
	case ReplaceIfOlder:
		// What the policy takes for the same contents may become a name of them:
		// else a group whose first name was made anew would fall apart.
		same := fsys.Type(have.Mode) == fsys.Type(want.Mode) && have.Size == want.Size && sameTime(want.Mtim, have.Mtim)
		return !same && !older(have.Mtim, want.Mtim)
	}
	return false
}

func (r *run) linkNew(from *fsys.Dir, lname string, dir *fsys.Dir, name string) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.changing(dir, func() error { return fsys.Linkat(from.FD, lname, dir.FD, name) })
}

// linkReplace replaces a target by a link, through a temporary name. Renaming
// one name of an inode over another of the same inode does nothing and leaves
// the temporary, which happens when a concurrent attempt has just made the
// target right; so the temporary is removed in any case.
func (r *run) linkReplace(t *target, from *fsys.Dir, lname string, dir *fsys.Dir, name string) error {
	temp := r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.check(); err != nil {
		return err
	}
	err := r.changing(dir, func() error {
		return withTemp(dir, temp, func() error { return fsys.Linkat(from.FD, lname, dir.FD, temp) })
	})
	if err != nil {
		return err
	}
	defer func() { _ = fsys.Unlinkat(dir.FD, temp) }()
	if err := r.check(); err != nil {
		return err
	}
	err = r.renameTemp(dir, temp, name)
	if fsys.Errno(err) == unix.EISDIR || fsys.Errno(err) == unix.ENOTEMPTY {
		return nil // a directory appeared: the caller looks again
	}
	return err
}
