package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// WarnLeaderVanished is the warning's kind when a hard-link group was left out
// because its leader is not in the source any more.
const WarnLeaderVanished = "hardlink-leader-vanished"

// WarnLinkRefused is the warning's kind when a further name of a file was copied,
// since the file system would not link it.
const WarnLinkRefused = "link-refused"

// linkGroup executes a hard-link group: its leader, the first entry, is copied
// like a file, the members are linked to it. Only what stops the batch is
// returned.
func (r *run) linkGroup(u unit, c *entry.Counts) error {
	leader := &r.b.Entries[u[0]]
	state, err := r.lead(u[0], c)
	if stopsRun(err) {
		return err
	}
	if err != nil && !leader.LeaderOnly {
		r.fail(u[0], err, c)
	}
	if leader.Group == r.lastGroup {
		r.noteLeader(state)
	}
	for _, i := range u[1:] {
		e := &r.b.Entries[i]
		switch state {
		case entry.LeaderDone:
		case entry.LeaderFailed:
			r.fail(i, &fault.Error{Kind: fault.KindOf(err), Op: "link", Path: e.Path,
				Err: fmt.Errorf("the first name of the group, %q: %w", leader.Path, err)}, c)
			continue
		default:
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

// errLeaderFailed is of a leader that an earlier batch had.
var errLeaderFailed = &fault.Error{Kind: fault.NotFound, Err: errors.New("it could not be copied"), Hint: "its own failure says why"}

// lead executes the group's leader, or finds out what an earlier batch made of it.
// The error is not nil if the state is entry.LeaderFailed, or if the batch stops.
func (r *run) lead(i int, c *entry.Counts) (entry.Leader, error) {
	leader := &r.b.Entries[i]
	if leader.LeaderOnly {
		if err := checkPath(leader.Path); err != nil {
			return entry.LeaderFailed, err
		}
		switch r.b.Leader {
		case entry.LeaderDone, entry.LeaderKept, entry.LeaderVanished:
			return r.b.Leader, nil
		}
		return entry.LeaderFailed, errLeaderFailed
	}
	state := stateDone
	err := r.repeating(leader, func() error {
		t, err := r.prepare(i, leader, c)
		if t == nil {
			state = stateKept
			return err
		}
		if state, err = r.copyCounted(t, c); err == nil {
			r.warn(t)
		}
		return err
	})
	switch {
	case err != nil:
		return entry.LeaderFailed, err
	case state == stateKept:
		return entry.LeaderKept, nil
	case state == stateVanished:
		return entry.LeaderVanished, nil
	}
	return entry.LeaderDone, nil
}

func (r *run) noteLeader(state entry.Leader) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leader = state
}

// skipMember leaves out a member whose leader was left out: linking it to
// whatever stands in the leader's place would give it somebody else's contents.
func (r *run) skipMember(i int, e *Entry, state entry.Leader, c *entry.Counts) {
	t := &target{index: i, e: e}
	t.lose(WarnGroupKept)
	if state == entry.LeaderVanished {
		t.warnings = []string{WarnLeaderVanished}
	}
	c.Skipped++
	r.warn(t)
}

// linkMember makes t a hard link of the group's leader.
func (r *run) linkMember(t *target, leader *Entry, c *entry.Counts) error {
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
	if len(r.b.Predecessors) == 0 {
		// Nothing has the name, most often, and then there is nothing to look at: the
		// call replaces nothing, follows nothing and links no directory. Whatever else
		// it says, a look tells why.
		switch err := r.linkNew(from, lname, dir, name); {
		case err == nil:
			c.Links++
			return nil
		case stopsRun(err):
			return opError("link", t.path, err)
		}
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
		if err == nil {
			switch gone, err := r.giveWay(t, dir, name, &have); {
			case errors.Is(err, errKept):
				c.Skipped++
				return nil
			case err != nil:
				return err
			case gone:
				continue
			}
		}
		switch {
		case fsys.Errno(err) == unix.ENOENT:
			err = r.linkNew(from, lname, dir, name)
		case err != nil:
			return opError("stat target", t.path, err)
		case have.Dev == want.Dev && have.Ino == want.Ino:
			c.Links++
			return nil
		case r.keeps(&have, &want):
			refused, err := r.probeLink(t, from, lname, dir, &have, &want)
			if err != nil {
				return opError("link", t.path, err)
			}
			if refused {
				return r.copyMember(t, c)
			}
			c.Skipped++
			return nil
		case fsys.Type(have.Mode) == unix.S_IFDIR:
			err = r.removeDirInWay(t, dir, name)
		default:
			err = r.linkReplace(t, from, lname, dir, name)
		}
		switch {
		case errors.Is(err, errLinkRefused):
			return r.copyMember(t, c)
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
	return refusal(r.changing(dir, func() error { return fsys.Linkat(from.FD, lname, dir.FD, name) }))
}

// errLinkRefused marks what a file system says that gives an object no further name:
// it knows no hard links, the object has as many as it can have, or it is none of ours.
var errLinkRefused = errors.New("the file system does not link it")

func refusal(err error) error {
	switch fsys.Errno(err) {
	case unix.EPERM, unix.EMLINK, unix.EOPNOTSUPP, unix.ENOSYS:
		return fmt.Errorf("%w: %w", errLinkRefused, err)
	}
	return err
}

// probeLink reports whether a link to the leader is refused. A target that the policy
// keeps may be the copy that a former attempt made for that reason; both must count
// it alike. What does not look like the leader is no such copy.
func (r *run) probeLink(t *target, from *fsys.Dir, lname string, dir *fsys.Dir, have, want *unix.Stat_t) (bool, error) {
	if fsys.Type(have.Mode) != fsys.Type(want.Mode) || have.Size != want.Size || dir.Protected {
		return false, nil
	}
	err := r.linkTempName(t, from, lname, dir)
	if err == nil {
		err = fsys.Unlinkat(dir.FD, r.tempName(r.b.Attempt, uint32(t.index)))
	}
	if errors.Is(err, errLinkRefused) {
		return true, nil
	}
	return false, err
}

// copyMember copies a member that can't be linked. It counts as the link that its
// line asks for, and its bytes as those of the leader: not again.
func (r *run) copyMember(t *target, c *entry.Counts) error {
	res, err := r.copyObject(t)
	if r.j.spec.SkipVanished && errors.Is(err, errVanished) {
		res, err = copied{state: stateVanished}, nil
	}
	if t.changed && (err == nil || fault.Is(err, fault.Changed)) {
		c.ChangedWhileRead++
	}
	if err != nil {
		return err
	}
	if res.state != stateDone {
		c.Skipped++
		return nil
	}
	if res.changedScan {
		c.ChangedSinceScan++
	}
	c.Links++
	c.LinksCopied++
	t.lose(WarnLinkRefused)
	return nil
}

// linkReplace replaces a target by a link, through a temporary name. Renaming
// one name of an inode over another of the same inode does nothing and leaves
// the temporary, which happens when a concurrent attempt has just made the
// target right; so the temporary is removed in any case.
func (r *run) linkReplace(t *target, from *fsys.Dir, lname string, dir *fsys.Dir, name string) error {
	temp := r.tempName(r.b.Attempt, uint32(t.index))
	err := r.linkTempName(t, from, lname, dir)
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

// linkTempName makes a link of the leader under the temporary name of t.
func (r *run) linkTempName(t *target, from *fsys.Dir, lname string, dir *fsys.Dir) error {
	temp := r.tempName(r.b.Attempt, uint32(t.index))
	if err := r.mayRename(t, dir); err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	return refusal(r.changing(dir, func() error {
		return withTemp(dir, temp, func() error { return fsys.Linkat(from.FD, lname, dir.FD, temp) })
	}))
}
