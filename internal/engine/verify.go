package engine

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Verify says how what is copied is verified.
type Verify uint8

const (
	// VerifyNone takes what the kernel was given for what is there.
	VerifyNone Verify = iota
	// VerifyChecksum reads back what was written, before it gets its name, and
	// compares its XXH3-128 with that of the source as it was read; what is left
	// in place is compared with the source.
	VerifyChecksum
)

// WarnMoreLinks is the warning's kind when a file that has one name in the source
// has further names in the destination's file system, within the tree or outside.
const WarnMoreLinks = "target-has-more-links"

// differs is the error of an entry that was compared and is not what its source
// is. It says of each difference both values.
type differs struct{ what []string }

func (d *differs) Error() string { return strings.Join(d.what, "; ") }

func (d *differs) add(format string, args ...any) {
	d.what = append(d.what, fmt.Sprintf(format, args...))
}

// err returns nil if there is no difference.
func (d *differs) err() error {
	if len(d.what) == 0 {
		return nil
	}
	return &fault.Error{Kind: fault.Corrupt, Op: verifyOp, Err: d}
}

// verifyOp is the operation of the failures of verifying.
const verifyOp = "verify"

// missing is the error of an entry that the destination does not have.
func missing() error {
	return &fault.Error{Kind: fault.NotFound, Op: verifyOp, Err: fmt.Errorf("%w: %w", errMissing, unix.ENOENT)}
}

var errMissing = errors.New("is missing in the destination")

// isDifference reports whether err says that an entry was compared and is not
// what its source is.
func isDifference(err error) bool {
	_, ok := errors.AsType[*differs](err)
	return ok || errors.Is(err, errMissing)
}

// verify executes the operations that compare, hard-link groups excepted.
func (r *run) verify(t *target, c *entry.Counts) error {
	switch t.e.Op {
	case entry.OpVerifyDir:
		return r.verifyDir(t, c)
	case entry.OpVerifyTimes:
		return r.verifyTimes(t, c)
	}
	_, err := r.verifyFile(t, c)
	return err
}

// identity is which object a name leads to.
type identity struct {
	dev, ino uint64
	path     string // entry path that has it
}

// verifyFile compares a non-directory with its source and counts it. It returns
// what stands in the destination, also if that differs; nil if nothing does or
// the entry was not compared.
func (r *run) verifyFile(t *target, c *entry.Counts) (*identity, error) {
	var res compared
	var err error
	for try := 0; ; try++ {
		res, err = r.compareOnce(t)
		if !errors.Is(err, errChanged) {
			break
		}
		t.changed, t.warnings = true, nil
		if try == maxReread {
			err = &fault.Error{Kind: fault.Changed, Op: "read source", Path: t.e.Path,
				Err: errChanged, Hint: "it did so each time; verify against a snapshot"}
			break
		}
	}
	if r.j.spec.SkipVanished && errors.Is(err, errVanished) {
		c.Skipped++
		return nil, nil
	}
	if t.changed && (err == nil || fault.Is(err, fault.Changed)) {
		c.ChangedWhileRead++
	}
	if err != nil {
		return res.target, err
	}
	c.FilesVerified++
	c.BytesVerified += res.bytes
	if res.changedScan {
		c.ChangedSinceScan++
	}
	return res.target, nil
}

// compared is the result of comparing an entry.
type compared struct {
	target      *identity
	bytes       uint64 // st_size of a regular file
	changedScan bool   // the source is not what the record says
}

// compareOnce compares a non-directory with its source, which must not change
// meanwhile.
func (r *run) compareOnce(t *target) (res compared, err error) {
	sdir, sname, err := r.sourceParent(t.e.Path)
	if err != nil {
		return res, err
	}
	defer sdir.Release()
	src, err := fsys.OpenPath(sdir.FD, sname)
	if err != nil {
		return res, sourceError("open source", t.e.Path, err)
	}
	defer func() { _ = fsys.Close(src) }()
	var st unix.Stat_t
	protected, err := fsys.FstatFlags(src, &st)
	if err != nil {
		return res, sourceError("stat source", t.e.Path, err)
	}
	if protected && r.j.spec.WriteMeta {
		t.lose(WarnFlags)
	}
	kind := fsys.Type(st.Mode)
	if kind == unix.S_IFDIR {
		return res, &fault.Error{Kind: fault.Changed, Op: "open source", Path: t.e.Path, Err: unix.EISDIR,
			Hint: "it has become a directory since the scan"}
	}
	res.changedScan = !agrees(t.e.Meta, &st)
	r.j.lookAtSize(t, src, &st)
	dst, err := r.openTarget(t)
	if err != nil {
		return res, err
	}
	defer func() { _ = fsys.Close(dst) }()
	var have unix.Stat_t
	if err := fsys.Fstat(dst, &have); err != nil {
		return res, opError("stat target", t.path, err)
	}
	res.target = &identity{have.Dev, have.Ino, t.e.Path}
	if kind == unix.S_IFREG {
		res.bytes = uint64(st.Size)
	}
	var d differs
	if err := r.compareContents(t, &d, src, &st, dst, &have); err != nil {
		return res, err
	}
	if fsys.Type(have.Mode) == kind {
		if err := r.compareFileAttrs(t, &d, src, &st, dst, &have); err != nil {
			return res, err
		}
		if st.Nlink == 1 && have.Nlink > 1 {
			t.lose(WarnMoreLinks)
		}
	}
	// A source that was written to meanwhile differs for no fault of the target.
	if err := r.stillSame(t, src, &st); err != nil {
		return res, err
	}
	return res, d.err()
}

// openTarget returns an O_PATH descriptor of the object in t's place.
func (r *run) openTarget(t *target) (int, error) {
	if t.path == "" {
		return -1, &fault.Error{Kind: fault.Denied, Op: verifyOp, Path: "/",
			Err: errors.New("the destination root is a directory, the entry is none")}
	}
	parent, name := split(t.path)
	// Not by existing, which opens directories up for ordinary users.
	dir, err := r.dstDir(parent)
	if err == nil {
		defer dir.Release()
		var fd int
		if fd, err = r.openSpelled(dir, name); err == nil {
			return fd, nil
		}
	}
	switch fsys.Errno(err) {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return -1, missing()
	}
	return -1, opError("open target", t.path, err)
}

// openSpelled returns an O_PATH descriptor of what is called name in dir, to the letter.
func (r *run) openSpelled(dir *fsys.Dir, name string) (int, error) {
	fd, err := fsys.OpenPath(dir.FD, name)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = fsys.Fstat(fd, &st); err == nil {
		var other string
		if other, err = r.otherSpelling(dir, name, &st); err == nil && other != "" {
			err = unix.ENOENT
		}
	}
	if err != nil {
		_ = fsys.Close(fd)
		return -1, err
	}
	return fd, nil
}

// compareContents compares what both objects are: type, and data, link target or
// device number.
func (r *run) compareContents(t *target, d *differs, src int, st *unix.Stat_t, dst int, have *unix.Stat_t) error {
	kind := fsys.Type(st.Mode)
	if got := fsys.Type(have.Mode); got != kind {
		d.add("is a %s, the source has a %s", kindName(got), kindName(kind))
		return nil
	}
	switch kind {
	case unix.S_IFREG:
		if have.Size != st.Size && !t.toEnd {
			d.add("size is %d, the source has %d", have.Size, st.Size)
			return nil
		}
		return r.compareData(t, d, src, st, dst, have)
	case unix.S_IFLNK:
		want, err := fsys.Readlink(src)
		if err != nil {
			return sourceError("read link", t.e.Path, err)
		}
		got, err := fsys.Readlink(dst)
		if err != nil {
			return opError("read link", t.path, err)
		}
		if got != want {
			d.add("link leads to %s, the source's to %s", short([]byte(got)), short([]byte(want)))
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if have.Rdev != st.Rdev {
			d.add("device is %d:%d, the source has %d:%d",
				unix.Major(have.Rdev), unix.Minor(have.Rdev), unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
	}
	return nil
}

// compareData compares the data of two regular files, of one size where that says something. The target's is
// read from where it is stored if that can be had: what this machine has just
// written is in its page cache.
func (r *run) compareData(t *target, d *differs, src int, st *unix.Stat_t, dst int, have *unix.Stat_t) error {
	size, sparse := st.Size, st.Blocks*512 < st.Size || have.Blocks*512 < have.Size
	if t.toEnd {
		size, sparse = have.Size+1, false // both have ended before that
	}
	if size == 0 {
		return nil
	}
	in, err := r.openData(src)
	if err != nil {
		return sourceError("open source", t.e.Path, err)
	}
	defer func() { _ = fsys.Close(in) }()
	out, err := r.openData(dst)
	if err != nil {
		return opError("open target", t.path, err)
	}
	defer func() { _ = fsys.Close(out) }()
	buf, err := r.buffer(t)
	if err != nil {
		return err
	}
	defer r.giveBack(buf)
	fsys.Forget(out)
	at, same, err := fsys.FirstDifference(in, out, size, sparse, buf, r.check)
	if err != nil {
		return r.dataError(t, err)
	}
	if !same && (at.A >= 0 || at.B >= 0) {
		d.add("contents differ from byte %d of %d on: %s, the source has %s", at.At, max(st.Size, have.Size), byteText(at.B), byteText(at.A))
	}
	return nil
}

// dataError names the side on which reading two files failed.
func (r *run) dataError(t *target, err error) error {
	var data *fsys.DataError
	switch {
	case errors.As(err, &data) && data.Write:
		return opError("read target", t.path, data.Err)
	case errors.As(err, &data):
		return sourceError("read source", t.e.Path, data.Err)
	}
	return err
}

func byteText(b int) string {
	if b < 0 {
		return "the end"
	}
	return fmt.Sprintf("%#02x", b)
}

// short renders a value for a reason: quoted, and cut where it is long.
func short(b []byte) string {
	const most = 48
	if len(b) <= most {
		return quote(string(b))
	}
	return fmt.Sprintf("%s... (%d bytes)", quote(string(b[:most])), len(b))
}

// verifyGroup compares a hard-link group: its first name like a file, the others
// by whether they are names of the same object. What is missing or different does
// not hide the rest. Only what stops the batch is returned.
func (r *run) verifyGroup(u unit, c *entry.Counts) error {
	var first *identity
	for _, i := range u {
		e := &r.b.Entries[i]
		err := r.repeating(e, func() error {
			if e.LeaderOnly { // compared and counted by the shard that has it
				t, err := r.prepare(i, e, &entry.Counts{})
				if t != nil {
					first, err = r.identify(t)
				}
				return err
			}
			t, err := r.prepare(i, e, c)
			if t == nil {
				return err
			}
			if first == nil {
				first, err = r.verifyFile(t, c)
			} else {
				err = r.verifyMember(t, first, c)
			}
			if err == nil {
				r.warn(t)
			}
			return err
		})
		if stopsRun(err) {
			return err
		}
		if err != nil && !e.LeaderOnly {
			r.fail(i, err, c)
		}
	}
	return nil
}

// identify returns what stands in t's place, nil if nothing does.
func (r *run) identify(t *target) (*identity, error) {
	fd, err := r.openTarget(t)
	if errors.Is(err, errMissing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = fsys.Close(fd) }()
	var st unix.Stat_t
	if err := fsys.Fstat(fd, &st); err != nil {
		return nil, opError("stat target", t.path, err)
	}
	return &identity{st.Dev, st.Ino, t.e.Path}, nil
}

// verifyMember compares a member of a group by whether it is the object that
// first is, whose contents and metadata have been compared.
func (r *run) verifyMember(t *target, first *identity, c *entry.Counts) error {
	got, err := r.identify(t)
	if err != nil {
		return err
	}
	if got == nil {
		return missing()
	}
	if got.dev != first.dev || got.ino != first.ino {
		var d differs
		d.add("is inode %d, no link to %s, which is inode %d; the source has them linked", got.ino, short([]byte(first.path)), first.ino)
		return d.err()
	}
	c.FilesVerified++
	return nil
}
