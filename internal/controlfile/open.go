package controlfile

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// errNotRegular is of what can have no fixed contents.
var errNotRegular = fault.New(fault.Invalid, "it is not a regular file")

// OpenRegular opens a file that somebody else names, for reading. What is no
// regular file is refused and not opened: a FIFO would hold its reader for ever,
// a device may do anything. One that takes the file's place meanwhile is closed
// again, and does not hold anybody either.
func OpenRegular(path string) (*os.File, error) {
	if st, err := os.Stat(path); err != nil {
		return nil, err //nolint:wrapcheck // as os.Open would
	} else if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // as os.Open would
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
