package fsys

// LinkMethod says how a nameless file (O_TMPFILE) gets its name on a mount,
// worst first.
type LinkMethod uint8

const (
	// LinkNone means that nameless files can't be used: a temporary name and a
	// rename instead.
	LinkNone LinkMethod = iota
	// LinkByProc is linkat of /proc/self/fd/N; a few microseconds more.
	LinkByProc
	// LinkByFD is linkat with AT_EMPTY_PATH.
	LinkByFD
)

// Link names the nameless file fd.
func (m LinkMethod) Link(p *Proc, fd, dirfd int, name string) error {
	if m == LinkByProc {
		return p.LinkFD(fd, dirfd, name)
	}
	return LinkEmpty(fd, dirfd, name)
}
