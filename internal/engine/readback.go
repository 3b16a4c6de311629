package engine

import (
	"encoding/hex"
	"errors"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// readBack compares what is stored of a file that has no final name yet with the
// sum of the size bytes that were read from the source: a target that differs never gets its
// name, and the old one stays.
func (r *run) readBack(t *target, fd int, size int64, want xxh3.Uint128) error {
	if err := fsys.Uncache(fd); err != nil {
		return opError("write", t.path, err)
	}
	var have unix.Stat_t
	if err := fsys.Fstat(fd, &have); err != nil {
		return opError("stat target", t.path, err)
	}
	var d differs
	if have.Size != size {
		d.add("what was written has %d bytes, the source has %d", have.Size, size)
		return d.err()
	}
	if size == 0 {
		return nil
	}
	buf, err := r.buffer(t)
	if err != nil {
		return err
	}
	defer r.giveBack(buf)
	got, err := fsys.Sum(fd, size, have.Blocks*512 < have.Size, buf, r.check)
	if data, ok := errors.AsType[*fsys.DataError](err); ok {
		return opError("read back", t.path, data.Err)
	}
	if errors.Is(err, fsys.ErrShort) {
		d.add("what was written ends before its %d bytes", size)
		return d.err()
	}
	if err != nil {
		return err
	}
	if got != want {
		d.add("what was written reads back with the XXH3-128 %s, the source has %s", sumText(got), sumText(want))
	}
	return d.err()
}

func sumText(s xxh3.Uint128) string {
	b := s.Bytes()
	return hex.EncodeToString(b[:])
}

// stays is the part of verifying that a target gets which is left in its place:
// it must hold what the source holds.
func (r *run) stays(t *target, dir *fsys.Dir, name string, src int, st *unix.Stat_t, res *copied) error {
	dst, err := fsys.OpenPath(dir.FD, name)
	if err != nil {
		return opError("open target", t.path, err)
	}
	defer func() { _ = fsys.Close(dst) }()
	var have unix.Stat_t
	if err := fsys.Fstat(dst, &have); err != nil {
		return opError("stat target", t.path, err)
	}
	var d differs
	if err := r.compareContents(t, &d, src, st, dst, &have); err != nil {
		return err
	}
	if err := r.stillSame(t, src, st); err != nil {
		return err
	}
	err = d.err()
	if fe, ok := errors.AsType[*fault.Error](err); ok {
		fe.Hint = "the replace policy keeps it"
	}
	res.verified = err == nil && fsys.Type(st.Mode) == unix.S_IFREG
	return err
}
