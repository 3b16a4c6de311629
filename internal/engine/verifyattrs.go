package engine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
)

// Attributes are compared with what a copy would give the target now, by the
// same functions: a backup's source, a restore's record. What a copy by this
// worker would count as a loss, such as ACLs on a file system without them, is
// the same loss here, and no difference: a difference is what a copy would mend.

// compareFileAttrs compares owner, mode, time, ACL and attributes of a
// non-directory.
func (r *run) compareFileAttrs(t *target, d *differs, src int, st *unix.Stat_t, dst int, have *unix.Stat_t) error {
	if !r.j.spec.WriteMeta {
		return nil
	}
	a, err := r.fileAttrs(t, st, fsys.Node{FD: src, Path: true})
	if err != nil {
		return err
	}
	exact := !r.j.spec.Restore || t.e.Meta == nil || agrees(t.e.Meta, st)
	r.compareStat(t, d, &a, have, exact)
	return r.compareExtended(t, d, &a, fsys.Node{FD: dst, Path: true})
}

// compareStat compares owner, mode and modification time. exact says that the
// nanoseconds are known.
func (r *run) compareStat(t *target, d *differs, a *attrs, have *unix.Stat_t, exact bool) {
	mode := r.compareOwner(t, d, a, have)
	if got := have.Mode & 0o7777; fsys.Type(have.Mode) != unix.S_IFLNK && mode != got {
		d.add("mode is %04o, the source has %04o", got, mode)
	}
	h := r.j.holds(have)
	mtime, lost := h.fit(a.mtime)
	switch {
	case h.keeps(mtime, have, exact):
	case h.end(a.mtime, have.Mtim):
		lost = true
	default:
		d.add("modification time is %s, the source has %s", timeText(have.Mtim, exact), timeText(a.mtime, exact))
		lost = false
	}
	// Access times are not compared. One that cannot be kept is lost all the same.
	if _, atime := h.fit(a.atime); lost || atime || h.end(a.atime, have.Atim) {
		t.lose(WarnTime)
	}
}

// compareOwner compares owner and group, and returns the mode that goes with
// those that a copy by this user could set: set-id bits for an owner who is not
// the owner are dropped, as chownPartly does.
func (r *run) compareOwner(t *target, d *differs, a *attrs, have *unix.Stat_t) (mode uint32) {
	wrongOwner, wrongGroup := int(have.Uid) != a.uid, int(have.Gid) != a.gid
	if !wrongOwner && !wrongGroup {
		return a.mode
	}
	owner, group := r.mayOwn(t, a, have)
	if wrongOwner && owner || wrongGroup && group {
		d.add("owner is %d:%d, the source has %d:%d", have.Uid, have.Gid, a.uid, a.gid)
	}
	drop := uint32(setIDs)
	switch {
	case owner && group:
		return a.mode
	case group:
		drop = unix.S_ISUID
	case owner:
		drop = unix.S_ISGID
	}
	t.lose(WarnOwner)
	if a.mode&drop != 0 && !isDirOp(t.e) {
		t.lose(WarnSetID)
		return a.mode &^ drop
	}
	return a.mode
}

func timeText(ts unix.Timespec, exact bool) string {
	if !exact {
		ts.Nsec = 0
	}
	return time.Unix(ts.Sec, ts.Nsec).UTC().Format(time.RFC3339Nano)
}

// compareExtended compares ACLs and extended attributes.
func (r *run) compareExtended(t *target, d *differs, a *attrs, n fsys.Node) error {
	var st unix.Stat_t
	if err := fsys.Fstat(n.FD, &st); err != nil {
		return opError("stat target", t.path, err)
	}
	if kind := fsys.Type(st.Mode); kind != unix.S_IFLNK {
		// By the mode that the target has: a wrong one is told once.
		access := wantedACL{fsys.EffectiveACL(a.access, st.Mode), fsys.EffectiveACL(a.access, a.mode)}
		if err := r.compareACL(t, d, n, fsys.XattrAccessACL, "ACL", access); err != nil {
			return err
		}
		if kind == unix.S_IFDIR {
			if err := r.compareACL(t, d, n, fsys.XattrDefaultACL, "default ACL", wantedACL{a.def, a.def}); err != nil {
				return err
			}
		}
	}
	room := r.j.holds(&st).room(a)
	for _, x := range a.xattrs {
		if err := r.compareXattr(t, d, n, x, room); err != nil {
			return err
		}
	}
	return r.compareExcess(t, d, a, n)
}

// wantedACL is the ACL that the target must have, and how it is shown.
type wantedACL struct{ compared, shown []byte }

func (r *run) compareACL(t *target, d *differs, n fsys.Node, name, what string, want wantedACL) error {
	got, err := n.Getxattr(name)
	switch fsys.Errno(err) {
	case 0:
	case unix.ENODATA:
		got = nil
	case unix.EOPNOTSUPP:
		if want.compared != nil {
			t.lose(WarnACLUnsupported)
		}
		return nil
	default:
		return opError("read ACL of", t.path, err)
	}
	switch {
	case fsys.SameACL(want.compared, got):
	case want.compared == nil:
		d.add("has the %s %s, the source has none", what, fsys.FormatACL(got))
	case got == nil:
		d.add("has no %s, the source has %s", what, fsys.FormatACL(want.shown))
	default:
		d.add("%s is %s, the source has %s", what, fsys.FormatACL(got), fsys.FormatACL(want.shown))
	}
	return nil
}

// compareXattr compares one attribute. Without room for all of the entry it may be
// one of those that a copy had no room for.
func (r *run) compareXattr(t *target, d *differs, n fsys.Node, want entry.Xattr, room bool) error {
	got, err := n.Getxattr(want.Name)
	same := err == nil && bytes.Equal(got, want.Value)
	if !same && !r.maySet(want.Name) {
		t.lose(WarnXattrNotPermitted)
		return nil
	}
	if errno := fsys.Errno(err); !same && !room && (errno == 0 || errno == unix.ENODATA) {
		t.lose(WarnXattrTooLarge)
		return nil
	}
	switch fsys.Errno(err) {
	case 0:
		if !same {
			d.add("attribute %s is %s, the source has %s", want.Name, short(got), short(want.Value))
		}
	case unix.ENODATA:
		d.add("attribute %s is missing, the source has %s", want.Name, short(want.Value))
	case unix.EOPNOTSUPP:
		t.lose(WarnXattrUnsupported)
	case unix.EPERM, unix.EACCES:
		t.lose(WarnXattrNotPermitted)
	default:
		return opError("read attribute "+want.Name+" of", t.path, err)
	}
	return nil
}

// maySet reports whether this process has the capability that setting an
// attribute needs. Without, those of the trusted namespace are not even seen.
func (r *run) maySet(name string) bool {
	switch {
	case name == "security.capability":
		return r.j.e.setfcap
	case strings.HasPrefix(name, "trusted."), strings.HasPrefix(name, "security."):
		return r.j.e.admin
	}
	return true
}

// compareExcess finds the attributes that a copy would have removed.
func (r *run) compareExcess(t *target, d *differs, a *attrs, n fsys.Node) error {
	names, err := n.Listxattr()
	switch fsys.Errno(err) {
	case 0:
	case unix.EOPNOTSUPP:
		return nil
	default:
		return opError("list attributes of", t.path, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if !removableXattr(name) || slices.ContainsFunc(a.xattrs, func(x entry.Xattr) bool { return x.Name == name }) {
			continue
		}
		value := "which cannot be read"
		if got, err := n.Getxattr(name); err == nil {
			value = fmt.Sprintf("which is %s", short(got))
		}
		d.add("has the attribute %s, %s; the source has none of the name", name, value)
	}
	return nil
}
