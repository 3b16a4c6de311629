package scanner

// Tree is a directory tree to be scanned. The file system is one; another
// serves to measure everything but system calls. Both methods are called from
// several goroutines at once.
type Tree interface {
	// Open opens a directory by its entry path, "" for the root, and returns its
	// record, whose Dir and counts the caller sets. A directory that is known
	// and cannot be read is returned with FlagUnreadable or FlagMountPoint, no
	// reader, and for the former the error that says why. A nil record without
	// an error means that the directory is left out: it is one of those that
	// the scan was told to keep away from.
	Open(dir string) (*Record, DirReader, error)
	// Close releases the tree.
	Close() error
}

// DirReader reads one directory. It is used by one goroutine.
type DirReader interface {
	// Next returns some entries, io.EOF when there are no more. The slice is
	// valid until the next call. The filter is asked before anything costly is
	// found out about an entry.
	Next(keep func(name string, isDir bool) bool) ([]Found, error)
	Close() error
}

// Found is an entry of a directory.
type Found struct {
	Name  string
	IsDir bool   // to be opened; Record is not used
	Rec   Record // of a non-directory; Dir and Name are set by the caller
	Err   error  // the entry's record could not be had; fs.ErrNotExist = it vanished
}
