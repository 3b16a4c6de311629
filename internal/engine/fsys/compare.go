package fsys

import (
	"bytes"
	"encoding/binary"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// Difference is the first byte in which two files differ; a byte of -1 is beyond
// the end of its file.
type Difference struct {
	At   int64
	A, B int
}

// FirstDifference compares two regular files up to size; same reports that
// there is no difference. With sparse set, what is a hole in both is not read.
// The buffer is the only memory used; check is asked every 8 MiB.
//
// The bytes themselves are compared, not sums of them: both files are here, the
// reading is the same, and the answer says where.
func FirstDifference(a, b int, size int64, sparse bool, buf []byte, check func() error) (d Difference, same bool, err error) {
	half := len(buf) / 2
	asked := int64(0)
	for off := int64(0); off < size; {
		if sparse {
			off = min(nextData(a, off, size), nextData(b, off, size))
		}
		n := min(int64(half), size-off)
		x, y := buf[:n], buf[half:half+int(n)]
		gotX, err := readFull(a, x, off)
		if err != nil {
			return d, false, &DataError{Err: err}
		}
		gotY, err := readFull(b, y, off)
		if err != nil {
			return d, false, &DataError{Write: true, Err: err}
		}
		if gotX < len(x) || gotY < len(y) || !bytes.Equal(x, y) {
			i := firstOther(x[:gotX], y[:gotY])
			return Difference{At: off + int64(i), A: at(x[:gotX], i), B: at(y[:gotY], i)}, false, nil
		}
		off += n
		if off-asked >= window {
			asked = off
			if err := check(); err != nil {
				return d, false, err
			}
		}
	}
	return d, true, nil
}

// firstOther returns the first index at which a and b differ, one of them having
// ended included.
func firstOther(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func at(b []byte, i int) int {
	if i < len(b) {
		return int(b[i])
	}
	return -1
}

// Sum returns the XXH3-128 of the first size bytes of a regular file, holes read
// as the zeros that they are; with sparse set they are not read. The buffer is
// the only memory used; check is asked every 8 MiB. A file that ends early gives
// ErrShort, one that cannot be read a *DataError of the source's side.
func Sum(fd int, size int64, sparse bool, buf []byte, check func() error) (xxh3.Uint128, error) {
	h := xxh3.New()
	err := sum(h, fd, size, sparse, buf, check)
	return h.Sum128(), err
}

func sum(h *xxh3.Hasher, fd int, size int64, sparse bool, buf []byte, check func() error) error {
	asked := int64(0)
	for off := int64(0); off < size; {
		if sparse {
			data := nextData(fd, off, size)
			if err := hashZeros(h, data-off, check); err != nil {
				return err
			}
			if off = data; off == size {
				break
			}
		}
		chunk := buf[:min(int64(len(buf)), size-off)]
		n, err := readFull(fd, chunk, off)
		if err != nil {
			return &DataError{Err: err}
		}
		if n < len(chunk) {
			return ErrShort
		}
		_, _ = h.Write(chunk) // it has no errors
		off += int64(n)
		if off-asked >= window {
			asked = off
			if err := check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// zeros is what holes are made of; it is only read.
var zeros [64 << 10]byte

// hashZeros gives h n zeros.
func hashZeros(h *xxh3.Hasher, n int64, check func() error) error {
	for left := n; left > 0; {
		k := min(left, int64(len(zeros)))
		_, _ = h.Write(zeros[:k]) // it has no errors
		if left -= k; left%window < int64(len(zeros)) && check != nil {
			if err := check(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Uncache has what follows read the file's data from where it is stored: dirty
// pages are written and waited for, then all are dropped. Where a file system
// can't, the data is read from wherever it is. Only the loss of data is an error.
func Uncache(fd int) error {
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := retry(func() error { return unix.SyncFileRange(fd, 0, 0, wait) })
	switch Errno(err) {
	case unix.EIO, unix.ENOSPC, unix.EDQUOT:
		return err
	}
	Forget(fd)
	return nil
}

// Forget drops the clean pages of a file from the page cache.
func Forget(fd int) { _ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }

// EachName calls f with each name in the directory fd, which was opened for
// reading, in the order of the file system; . and .. are left out. The buffer is
// the only memory used.
func EachName(fd int, buf []byte, f func(name string) error) error {
	return EachEntry(fd, buf, func(name string, _ uint64) error { return f(name) })
}

// EachEntry is EachName that tells the inode as well, which need not be that of a stat
// on every file system.
func EachEntry(fd int, buf []byte, f func(name string, ino uint64) error) error {
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, buf)
			return err //nolint:wrapcheck // bare errnos by contract
		})
		if err != nil || n == 0 {
			return err
		}
		const nameAt = 19 // of struct linux_dirent64, on every architecture
		for rest := buf[:n]; len(rest) > nameAt; {
			size := int(binary.NativeEndian.Uint16(rest[16:]))
			ino := binary.NativeEndian.Uint64(rest)
			name, _, _ := bytes.Cut(rest[nameAt:size], []byte{0})
			rest = rest[size:]
			if s := string(name); s != "." && s != ".." {
				if err := f(s, ino); err != nil {
					return err
				}
			}
		}
	}
}
