package fsys

import (
	"errors"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	// bigFile is the size from which the kernel's copy calls pay: below it
	// copy_file_range and FICLONE cost 10-15 % more than read and write.
	bigFile = 1 << 20
	// rangeStep bounds one copy_file_range, so that a cancel is noticed.
	rangeStep = 128 << 20
	// window is the unit of early write-back and of the caller's check.
	window = 8 << 20
)

// ErrShort means that the source ended before the size it was said to have.
var ErrShort = errors.New("source is shorter than its size")

// DataError says which side of a copy, or of a comparison, failed.
type DataError struct {
	Write bool // the target's side
	Err   error
}

// Error implements error.
func (e *DataError) Error() string {
	if e.Write {
		return "write: " + e.Err.Error()
	}
	return "read: " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *DataError) Unwrap() error { return e.Err }

// Copier copies the contents of one regular file into an empty one.
type Copier struct {
	Buf       []byte        // the only memory used
	Clone     bool          // try FICLONE
	Range     bool          // try copy_file_range
	Writeback bool          // start write-back early: for data that will be synced
	Check     func() error  // asked every 8 MiB; its error is returned as it is
	At        *atomic.Int64 // where the copy is in the file; nil = nobody asks

	// Hash is given what the source holds, zeros for its holes; nil = none. The
	// bytes then pass through Buf instead of copy_file_range; of a clone they
	// are read for it alone.
	Hash *xxh3.Hasher

	// Results.
	Holes, Cloned     uint64 // bytes not written, bytes shared
	Short             int64  // where the source ended, with ErrShort
	NoClone, NoRange  bool   // the method is not possible between these files
	sinceSync, synced int64
}

// Copy copies size bytes from src to dst, both at offset 0. With sparse set it
// asks src for its holes and leaves them out. Exactly size bytes are read: what
// a growing source adds is the caller's to notice.
func (c *Copier) Copy(dst, src int, size int64, sparse bool) error {
	if size == 0 {
		return nil
	}
	if size >= bigFile && c.Clone {
		done, err := c.clone(dst, src, size)
		if done && c.Hash != nil {
			return sum(c.Hash, src, size, sparse, c.Buf, c.Check)
		}
		if done || err != nil {
			return err
		}
	}
	if sparse {
		return c.copySparse(dst, src, size)
	}
	return c.copyRange(dst, src, 0, size)
}

// CopyToEnd copies what can be read from src, from its offset on, and returns how much
// it was. It is for files whose size says nothing, not all of which know offsets.
func (c *Copier) CopyToEnd(dst, src int) (size int64, err error) {
	for {
		n, err := read(src, c.Buf)
		if err != nil {
			return size, &DataError{Err: err}
		}
		if n == 0 {
			return size, nil
		}
		if c.Hash != nil {
			_, _ = c.Hash.Write(c.Buf[:n]) // it has no errors
		}
		if err := pwrite(dst, c.Buf[:n], size); err != nil {
			return size, &DataError{Write: true, Err: err}
		}
		size += int64(n)
		if err := c.progress(dst, size, int64(n)); err != nil {
			return size, err
		}
	}
}

// hole leaves n bytes out of the copy.
func (c *Copier) hole(n int64) error {
	c.Holes += uint64(n)
	if c.Hash == nil {
		return nil
	}
	return hashZeros(c.Hash, n, c.Check)
}

func (c *Copier) clone(dst, src int, size int64) (bool, error) {
	err := retry(func() error { return unix.IoctlFileClone(dst, src) })
	switch Errno(err) {
	case 0:
		var st unix.Stat_t
		if err := Fstat(dst, &st); err != nil {
			return false, &DataError{Write: true, Err: err}
		}
		if st.Size != size {
			return false, ErrShort // the source changed in between
		}
		c.Cloned = uint64(size)
		return true, nil
	case unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO:
		return false, &DataError{Write: true, Err: err}
	case unix.EXDEV, unix.EOPNOTSUPP, unix.ENOTTY, unix.ENOSYS:
		c.NoClone = true
	}
	return false, nil
}

// copySparse copies the data extents of src. The hole before size, if any, is
// made by the final ftruncate.
func (c *Copier) copySparse(dst, src int, size int64) error {
	for off := int64(0); off < size; {
		data, err := seek(src, off, unix.SEEK_DATA)
		switch {
		case Errno(err) == unix.ENXIO:
			end := c.endOf(src, off, size)
			if err := c.hole(end - off); err != nil {
				return err
			}
			if end < size {
				return ErrShort
			}
			return c.truncate(dst, size)
		case err != nil: // the file system can't say
			return c.copyRange(dst, src, off, size)
		}
		if data >= size {
			if err := c.hole(size - off); err != nil {
				return err
			}
			return c.truncate(dst, size)
		}
		end, err := seek(src, data, unix.SEEK_HOLE)
		if err != nil || end > size {
			end = size
		}
		if err := c.hole(data - off); err != nil {
			return err
		}
		if err := c.copyRange(dst, src, data, end); err != nil {
			return err
		}
		off = end
	}
	return c.truncate(dst, size)
}

// endOf returns where src ends of which there is no data from off on: at size, unless
// it has become shorter.
func (c *Copier) endOf(src int, off, size int64) int64 {
	var st unix.Stat_t
	if Fstat(src, &st) == nil && st.Size < size {
		c.Short = max(off, st.Size)
		return c.Short
	}
	return size
}

func (c *Copier) truncate(dst int, size int64) error {
	if err := Ftruncate(dst, size); err != nil {
		return &DataError{Write: true, Err: err}
	}
	return nil
}

// copyRange copies [off, end).
func (c *Copier) copyRange(dst, src int, off, end int64) error {
	if end-off >= bigFile && c.Range && c.Hash == nil {
		var err error
		if off, err = c.kernelCopy(dst, src, off, end); err != nil || off == end {
			return err
		}
	}
	for off < end {
		buf := c.Buf[:min(int64(len(c.Buf)), end-off)]
		n, err := pread(src, buf, off)
		if err != nil {
			return &DataError{Err: err}
		}
		if n == 0 {
			c.Short = off
			return ErrShort
		}
		if c.Hash != nil {
			_, _ = c.Hash.Write(buf[:n]) // it has no errors
		}
		if err := pwrite(dst, buf[:n], off); err != nil {
			return &DataError{Write: true, Err: err}
		}
		off += int64(n)
		if err := c.progress(dst, off, int64(n)); err != nil {
			return err
		}
	}
	return nil
}

// kernelCopy copies as much of [off, end) as copy_file_range can and returns
// where it stopped. Whatever it can't do is left to read and write.
func (c *Copier) kernelCopy(dst, src int, off, end int64) (int64, error) {
	for off < end {
		in, out := off, off
		step := min(end-off, rangeStep)
		if c.Writeback {
			step = min(step, window)
		}
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(step), 0)
		switch {
		case Errno(err) == unix.EINTR:
			continue
		case Errno(err) == unix.ENOSPC || Errno(err) == unix.EDQUOT || Errno(err) == unix.EROFS:
			return off, nil // of which side, read and write will find out
		case err != nil:
			c.NoRange, c.Range = true, false
			return off, nil //nolint:nilerr // read and write will find out what is wrong
		case n == 0: // some file systems say so before the end
			return off, nil
		}
		off += int64(n)
		if err := c.progress(dst, off, int64(n)); err != nil {
			return off, err
		}
	}
	return off, nil
}

// progress starts the write-back of each full window, and waits for the one
// before it and drops it from the page cache, so that a large file neither
// fills memory with dirty pages nor makes one long sync at the end.
func (c *Copier) progress(dst int, off, n int64) error {
	c.sinceSync += n
	if c.At != nil {
		c.At.Store(off)
	}
	if c.sinceSync < window {
		return nil
	}
	c.sinceSync = 0
	if c.Writeback {
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		start := max(c.synced, off-window)
		err := unix.SyncFileRange(dst, start, off-start, unix.SYNC_FILE_RANGE_WRITE)
		if err == nil && c.synced < start {
			err = unix.SyncFileRange(dst, c.synced, start-c.synced, wait)
			_ = unix.Fadvise(dst, c.synced, start-c.synced, unix.FADV_DONTNEED)
		}
		switch Errno(err) {
		case unix.EIO, unix.ENOSPC, unix.EDQUOT:
			return &DataError{Write: true, Err: err}
		}
		c.synced = start
	}
	if c.Check != nil {
		return c.Check()
	}
	return nil
}

func seek(fd int, off int64, whence int) (at int64, err error) {
	err = retry(func() (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err //nolint:wrapcheck // bare errnos by contract
	})
	return at, err
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if Errno(err) != unix.EINTR {
			return n, err //nolint:wrapcheck // bare errnos by contract
		}
	}
}

func pread(fd int, buf []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, off)
		if Errno(err) != unix.EINTR {
			return n, err //nolint:wrapcheck // bare errnos by contract
		}
	}
}

func pwrite(fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		n, err := unix.Pwrite(fd, buf, off)
		switch {
		case Errno(err) == unix.EINTR:
			continue
		case err != nil:
			return err //nolint:wrapcheck // bare errnos by contract
		case n == 0: // a file server that takes nothing and gives no reason
			return unix.EIO
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}

// SameData reports whether two regular files hold the same bytes up to size, as
// FirstDifference does. A file that ends early is different.
func SameData(a, b int, size int64, sparse bool, buf []byte, check func() error) (bool, error) {
	_, same, err := FirstDifference(a, b, size, sparse, buf, check)
	return same, err
}

// nextData returns where the next data of a file is, off where the file system
// can't say.
func nextData(fd int, off, size int64) int64 {
	at, err := seek(fd, off, unix.SEEK_DATA)
	switch {
	case Errno(err) == unix.ENXIO:
		return size
	case err != nil:
		return off
	}
	return min(at, size)
}

// readFull reads until buf is full or the file ends.
func readFull(fd int, buf []byte, off int64) (int, error) {
	done := 0
	for done < len(buf) {
		n, err := pread(fd, buf[done:], off+int64(done))
		if err != nil || n == 0 {
			return done, err
		}
		done += n
	}
	return done, nil
}
