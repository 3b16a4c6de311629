package engine

import (
	"encoding/base32"
	"encoding/binary"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// tempEncoding is lower case only: the names must differ also on a file system
// that ignores case.
var tempEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// tempName returns the temporary name that an attempt at this batch uses for
// the entry with the given index. It is a function of job, phase, shard,
// attempt and entry, so that a later attempt can remove exactly what an earlier
// one left, and of fixed length, so that it fits wherever 31 bytes do.
func (r *run) tempName(a AttemptID, index uint32) string {
	b := make([]byte, 0, 128)
	b = append(b, r.j.spec.ID...)
	b = append(b, 0, r.b.Phase)
	b = binary.LittleEndian.AppendUint64(b, r.b.N)
	b = binary.LittleEndian.AppendUint64(b, a.Sequence)
	b = binary.LittleEndian.AppendUint32(b, a.Delivery)
	b = binary.LittleEndian.AppendUint32(b, index)
	sum := xxh3.Hash128(b).Bytes()
	return string(tempEncoding.AppendEncode(append(b[:0], ".fsb-"...), sum[:]))
}

// mayRename reports why no temporary name may be made in dir: it could never be taken
// away again.
func (r *run) mayRename(t *target, dir *fsys.Dir) error {
	if !dir.Protected {
		return nil
	}
	return &fault.Error{Kind: fault.Denied, Op: "replace", Path: t.path, Err: unix.EPERM,
		Hint: "its directory is immutable or append-only; take that from it with chattr -i -a"}
}

// clearTemps removes what earlier attempts may have left for the entry in dir.
func (r *run) clearTemps(dir *fsys.Dir, index int) error {
	for _, a := range r.b.Predecessors {
		if err := r.check(); err != nil {
			return err
		}
		err := fsys.Unlinkat(dir.FD, r.tempName(a, uint32(index)))
		if err != nil && fsys.Errno(err) != unix.ENOENT {
			return opError("remove an earlier attempt's temporary file", dir.Path, err)
		}
	}
	return nil
}

// renameTemp gives the temporary object its final name. If it is gone somebody
// took this attempt for dead and removed it: the attempt is stale.
func (r *run) renameTemp(dir *fsys.Dir, temp, name string) error {
	err := fsys.Renameat(dir.FD, temp, dir.FD, name)
	if fsys.Errno(err) == unix.ENOENT {
		if dir.Gone() {
			return errParentGone
		}
		return fault.New(fault.Stale, "the temporary file of this attempt was removed: a later attempt has taken over")
	}
	return err
}

// withTemp calls make, which creates the object called temp, and clears the
// name first if a former Run of the very same attempt left it.
func withTemp(dir *fsys.Dir, temp string, make func() error) error {
	err := make()
	if fsys.Errno(err) == unix.EEXIST {
		if err = fsys.Unlinkat(dir.FD, temp); err == nil || fsys.Errno(err) == unix.ENOENT {
			err = make()
		}
	}
	return err
}
