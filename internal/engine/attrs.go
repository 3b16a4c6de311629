package engine

import (
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Kinds of Warning: losses that are counted and fail nothing.
const (
	// WarnOwner: the target's owner or group could not be set.
	WarnOwner = "owner-not-permitted"
	// WarnSetID: set-id bits were left out because the owner they are for could
	// not be set.
	WarnSetID = "setid-dropped"
	// WarnACLUnsupported: the destination holds no POSIX ACLs.
	WarnACLUnsupported = "acl-unsupported"
	// WarnACLUnreadable: the record's ACL text is no POSIX ACL.
	WarnACLUnreadable = "acl-unreadable"
	// WarnACLNotPermitted: the ACL could not be set by this user.
	WarnACLNotPermitted = "acl-not-permitted"
	// WarnXattrUnsupported: the destination holds no attributes of that namespace.
	WarnXattrUnsupported = "xattr-unsupported"
	// WarnXattrNotPermitted: this user may not set such attributes.
	WarnXattrNotPermitted = "xattr-not-permitted"
	// WarnXattrTooLarge: the destination has no room for an attribute of that size.
	WarnXattrTooLarge = "xattr-too-large"
	// WarnXattrUnreadable: an attribute of the source could not be read.
	WarnXattrUnreadable = "xattr-unreadable"
	// WarnFlags: the source is immutable or append-only (chattr +i, +a). A target
	// that were so could be neither updated nor deleted by the next run.
	WarnFlags = "flags-not-copied"
	// WarnTime: the destination can't hold a time so early or so late.
	WarnTime = "time-out-of-range"
	// WarnSocket: the destination holds no sockets.
	WarnSocket = "socket-unsupported"
	// WarnTaken: the file changed each time it was read. What was copied is how it was
	// read last, and may never have been in it at one time.
	WarnTaken = "changing-taken"
	// WarnUnexpected: the destination does not have what the entry takes it to have: a
	// directory that is there already, a copy that needs only metadata, something to
	// delete.
	WarnUnexpected = "destination-not-as-known"
	// WarnGroupKept: a hard-link group was left out because its leader's target
	// is kept by the replace policy.
	WarnGroupKept = "hardlink-group-kept"
)

const setIDs = unix.S_ISUID | unix.S_ISGID

// attrs is the metadata that a target gets.
type attrs struct {
	mode         uint32 // permission bits, set-id bits included
	uid, gid     int
	atime, mtime unix.Timespec
	access       []byte // POSIX ACLs in the kernel's form; nil = none
	def          []byte
	xattrs       []entry.Xattr // without ACLs, sorted by name
}

func timespec(sec, nsec int64) unix.Timespec {
	return unix.Timespec{Sec: sec, Nsec: nsec}
}

// agrees reports whether the source is what the record says: same type and
// modification second and, but for directories, the same size.
func agrees(m *entry.Meta, st *unix.Stat_t) bool {
	if m == nil {
		return true
	}
	kind := fsys.Type(st.Mode)
	if known := fsys.Type(m.Mode); known != 0 && known != kind || m.Mtime != st.Mtim.Sec {
		return false
	}
	return kind != unix.S_IFREG || m.Size == uint64(st.Size)
}

// attrsFromStat returns what a backup gives a target: all of it the source's,
// as it was when it was read.
func attrsFromStat(st *unix.Stat_t) attrs {
	return attrs{mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), atime: st.Atim, mtime: st.Mtim}
}

// attrsFromRecord returns what a restore, or a directory, is given: the
// record's, with the nanoseconds, which records lack, from the source where
// that still agrees. st may be nil.
func attrsFromRecord(m *entry.Meta, st *unix.Stat_t) attrs {
	a := attrs{mode: m.Mode & 0o7777, uid: int(m.UID), gid: int(m.GID),
		atime: timespec(m.Atime, 0), mtime: timespec(m.Mtime, 0)}
	if st != nil && agrees(m, st) {
		a.mtime = st.Mtim
		if st.Atim.Sec == m.Atime {
			a.atime = st.Atim
		}
	}
	return a
}

// fileAttrs returns the attributes for a copied non-directory whose source has
// the given stat; src is read for what the record lacks.
func (r *run) fileAttrs(t *target, st *unix.Stat_t, src fsys.Node) (attrs, error) {
	a := attrsFromStat(st)
	if r.j.spec.Restore && t.e.Meta != nil {
		a = attrsFromRecord(t.e.Meta, st)
	}
	err := r.extended(t, &a, &src)
	return a, err
}

// extended fills in ACLs and extended attributes: the record's if it has them,
// else those of src, which may be nil. What may not be read is a loss; a source
// that can't be read is an error.
func (r *run) extended(t *target, a *attrs, src *fsys.Node) error {
	m := t.e.Meta
	switch {
	case m != nil && m.HasX:
		a.access = t.parseACL(m.AccessACL)
		a.def = t.parseACL(m.DefaultACL)
		for _, x := range m.Xattrs {
			if copiedXattr(x.Name) {
				a.xattrs = append(a.xattrs, x)
			}
		}
	case src != nil:
		if err := a.fromSource(t, *src); err != nil {
			return err
		}
	}
	slices.SortFunc(a.xattrs, func(x, y entry.Xattr) int { return strings.Compare(x.Name, y.Name) })
	return nil
}

func (t *target) parseACL(text string) []byte {
	acl, err := fsys.ParseACL(text)
	if err != nil {
		t.lose(WarnACLUnreadable)
		return nil
	}
	return acl
}

func (a *attrs) fromSource(t *target, src fsys.Node) error {
	names, err := src.Listxattr()
	switch fsys.Errno(err) {
	case 0:
	case unix.EOPNOTSUPP:
		return nil
	case unix.EPERM, unix.EACCES, unix.E2BIG:
		t.lose(WarnXattrUnreadable)
		return nil
	default:
		return sourceError("list attributes of source", t.e.Path, err)
	}
	for _, name := range names {
		acl := name == fsys.XattrAccessACL || name == fsys.XattrDefaultACL
		if !acl && !copiedXattr(name) {
			continue
		}
		value, err := src.Getxattr(name)
		switch errno := fsys.Errno(err); {
		case errno == unix.ENODATA:
		case errno == unix.EPERM, errno == unix.EACCES, errno == unix.EOPNOTSUPP, errno == unix.E2BIG, errno == unix.ERANGE:
			t.lose(WarnXattrUnreadable)
		case err != nil:
			return sourceError("read attribute "+name+" of source", t.e.Path, err)
		case name == fsys.XattrAccessACL:
			a.access = value
		case name == fsys.XattrDefaultACL:
			a.def = value
		default:
			a.xattrs = append(a.xattrs, entry.Xattr{Name: name, Value: value})
		}
	}
	return nil
}

// copiedXattr reports whether attributes of that name are copied. The system
// namespace is the kernel's view of other things, ACLs among them; and xfs lists
// ACLs a second time, as it stores them: to remove those is to remove the ACL.
func copiedXattr(name string) bool {
	if strings.HasPrefix(name, "trusted.SGI_ACL_") {
		return false
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.")
}

// removableXattr reports whether an attribute that the source lacks is removed
// from a target. Labels that the destination's own security modules give every
// object are not ours to remove.
func removableXattr(name string) bool {
	if strings.HasPrefix(name, "security.") {
		return name == "security.capability"
	}
	return copiedXattr(name)
}

// applyOpts says what is known of the object that attributes are applied to.
type applyOpts struct {
	fresh   bool // made by us just now: it has no attributes to remove ...
	aclLeft bool // ... except ACLs inherited from its directory
	modeSet bool // the object has mode & 0777 already
	owned   bool // ... and owner and group
	symlink bool // has neither mode nor ACL
}

// apply gives n the attributes. The order is forced: a change of owner clears
// set-id bits and capabilities, an ACL changes the mode, attributes need write
// permission, and everything changes the times.
func (r *run) apply(t *target, n fsys.Node, a *attrs, o applyOpts) error {
	mode := a.mode
	if !o.owned {
		if err := n.Chown(a.uid, a.gid); err != nil {
			r.noteRefusal(t, err, r.j.e.chowns)
			if mode, err = r.chownPartly(t, n, a, err); err != nil {
				return err
			}
		}
	}
	if !o.symlink && !o.fresh && !r.j.e.override {
		// Attributes want write permission; the final mode follows. Where this
		// is not permitted neither is that, and it will say so.
		_ = n.Chmod(mode | 0o600)
	}
	if !o.symlink {
		if err := r.applyACLs(t, n, a, o); err != nil {
			return err
		}
	}
	if err := r.applyXattrs(t, n, a, o); err != nil {
		return err
	}
	if !o.symlink && (!o.modeSet || mode&^0o777 != 0 || mode != a.mode || a.access != nil || o.aclLeft) {
		if err := n.Chmod(mode); err != nil {
			r.noteRefusal(t, err, true)
			return opError("set mode of", t.e.Path, err)
		}
	}
	return r.setTimes(t, n, a)
}

// noteRefusal notes an errno that some file systems (seen on FUSE) give of a file that
// has no name, and would not give of one that has: they look it up by its name, or know
// it only once it has one. EPERM is no wonder where the process lacks the right.
func (r *run) noteRefusal(t *target, err error, mayDo bool) {
	switch fsys.Errno(err) {
	case unix.EPERM, unix.EACCES:
		t.refused = t.refused || mayDo
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EIO, unix.ENOENT, unix.EBADF, unix.EINVAL:
		t.refused = true
	}
}

// setTimes is last of all. The kernel silently clamps what a file system can't
// hold (ext4 with small inodes and xfs without bigtime end in 2038), so that
// unusual times are looked at again.
func (r *run) setTimes(t *target, n fsys.Node, a *attrs) error {
	if err := n.Utimens(a.atime, a.mtime); err != nil {
		r.noteRefusal(t, err, true)
		return opError("set times of", t.e.Path, err)
	}
	if usualTime(a.atime) && usualTime(a.mtime) {
		return nil
	}
	var st unix.Stat_t
	if fsys.Fstat(n.FD, &st) == nil && (st.Mtim.Sec != a.mtime.Sec || st.Atim.Sec != a.atime.Sec) {
		t.lose(WarnTime)
	}
	return nil
}

func usualTime(ts unix.Timespec) bool { return ts.Sec >= 0 && ts.Sec <= math.MaxInt32 }

// privileged reports whether the mode or an attribute would let others act with
// the rights of the target's owner.
func (a *attrs) privileged() bool {
	return a.mode&setIDs != 0 || slices.ContainsFunc(a.xattrs, func(x entry.Xattr) bool { return x.Name == "security.capability" })
}

// chownPartly deals with a refused chown: an ordinary user, a squashing file
// server, an id that the mount does not map. The group alone may be permitted.
// Set-id bits for an owner who is not the owner would be a privilege given to
// somebody else, so they are dropped.
func (r *run) chownPartly(t *target, n fsys.Node, a *attrs, cause error) (uint32, error) {
	if fsys.Errno(cause) != unix.EPERM && fsys.Errno(cause) != unix.EINVAL {
		return 0, opError("set owner of", t.e.Path, cause)
	}
	drop := uint32(setIDs)
	if n.Chown(-1, a.gid) == nil {
		drop = unix.S_ISUID
	} else if n.Chown(a.uid, -1) == nil {
		drop = unix.S_ISGID
	}
	t.lose(WarnOwner)
	if a.mode&drop != 0 && !isDirOp(t.e) {
		t.lose(WarnSetID)
		return a.mode &^ drop, nil
	}
	return a.mode, nil
}

func (r *run) applyACLs(t *target, n fsys.Node, a *attrs, o applyOpts) error {
	for _, x := range []struct {
		name string
		acl  []byte
	}{{fsys.XattrAccessACL, a.access}, {fsys.XattrDefaultACL, a.def}} {
		isDef := x.name == fsys.XattrDefaultACL
		if isDef && !isDirOp(t.e) {
			continue
		}
		var err error
		switch {
		case x.acl != nil:
			err = n.Setxattr(x.name, x.acl)
		case !o.fresh || o.aclLeft:
			if err = n.Removexattr(x.name); fsys.Errno(err) == unix.ENODATA || fsys.Errno(err) == unix.EOPNOTSUPP {
				err = nil
			}
		}
		r.noteRefusal(t, err, r.j.e.override)
		switch fsys.Errno(err) {
		case 0:
		case unix.EOPNOTSUPP:
			t.lose(WarnACLUnsupported)
		case unix.EPERM, unix.EACCES, unix.EINVAL:
			t.lose(WarnACLNotPermitted)
		default:
			if err := r.xattrError(t, n, x.name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) applyXattrs(t *target, n fsys.Node, a *attrs, o applyOpts) error {
	if !o.fresh {
		if err := r.removeExcess(t, n, a); err != nil {
			return err
		}
	}
	for _, x := range a.xattrs {
		if err := n.Setxattr(x.Name, x.Value); err != nil {
			if err := r.xattrError(t, n, x.Name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeExcess removes the attributes that the source does not have.
func (r *run) removeExcess(t *target, n fsys.Node, a *attrs) error {
	names, err := n.Listxattr()
	if err != nil {
		if fsys.Errno(err) == unix.EOPNOTSUPP {
			return nil
		}
		return opError("list attributes of", t.e.Path, err)
	}
	for _, name := range names {
		if !removableXattr(name) || slices.ContainsFunc(a.xattrs, func(x entry.Xattr) bool { return x.Name == name }) {
			continue
		}
		if err := n.Removexattr(name); err != nil && fsys.Errno(err) != unix.ENODATA {
			if err := r.xattrError(t, n, name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// xattrError decides what a refused attribute means: a loss to be counted, or
// an error.
func (r *run) xattrError(t *target, n fsys.Node, name string, err error) error {
	r.noteRefusal(t, err, r.j.e.override)
	switch fsys.Errno(err) {
	case unix.EOPNOTSUPP, unix.EINVAL:
		t.lose(WarnXattrUnsupported)
		return nil
	case unix.EPERM, unix.EACCES:
		t.lose(WarnXattrNotPermitted)
		return nil
	case unix.E2BIG, unix.ERANGE:
		t.lose(WarnXattrTooLarge)
		return nil
	case unix.ENOSPC:
		// ext4 says so too when only the inode's attribute block is full.
		var sf unix.Statfs_t
		if unix.Fstatfs(n.FD, &sf) == nil && sf.Bavail > 64 {
			t.lose(WarnXattrTooLarge)
			return nil
		}
		return &fault.Error{Kind: fault.Exhausted, Op: "set attribute " + name + " of", Path: t.e.Path, Err: err}
	}
	return opError("set attribute "+name+" of", t.e.Path, err)
}
