package scanner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// devIno identifies a directory whatever path leads to it.
type devIno struct{ dev, ino uint64 }

// fsTree is the tree of a file system. Everything happens relative to a
// descriptor of the root, and no symlink is followed below it.
type fsTree struct {
	root          *os.File
	rootDev       uint64
	rootMount     uint64
	rootID        devIno
	oneFileSystem bool
	light         bool // look at no attributes and no holes
	since         Time // nor at those of what changed before, see markLater; zero = at all

	lateDir   string // the directory that complete has opened last, used by one goroutine
	lateFD    int    // 0 = none
	late      attrReader
	skip      map[devIno]bool // directories to keep away from
	pseudo    pseudos
	noOpenat2 atomic.Bool // the kernel lacks it: walk the components
	readers   sync.Pool   // of *fsDirReader, for their buffers
	looks     *looks
}

// statMask is what is asked of the kernel for each entry.
const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

func openFSTree(source string, oneFileSystem bool) (*fsTree, error) {
	f, err := os.OpenFile(source, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		}
		return nil, &fault.Error{
			Kind: fault.KindOf(err), Op: "open source", Path: source, Err: err,
			Hint: "name a directory that exists and that this user may read",
		}
	}
	st, err := statxAt(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, errors.Join(sysError("stat source", source, err), f.Close())
	}
	// Attributes are read through /proc; without it they would seem not to be.
	if _, err := os.Stat("/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/."); err != nil {
		return nil, errors.Join(&fault.Error{
			Kind: fault.Unsupported, Op: "read attributes below", Path: source,
			Err: errors.New("/proc is not there"), Hint: "mount /proc",
		}, f.Close())
	}
	return &fsTree{
		rootID: devIno{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino},
		root:   f, rootDev: unix.Mkdev(st.Dev_major, st.Dev_minor), rootMount: st.Mnt_id,
		oneFileSystem: oneFileSystem, skip: map[devIno]bool{}, looks: newLooks(),
	}, nil
}

// complete adds what was not looked at to the record of an entry that is no
// directory. It is for one goroutine.
func (t *fsTree) complete(r *Record) error {
	r.Flags &^= markLater
	if t.lateFD == 0 || t.lateDir != r.Dir {
		fd, err := t.open(r.Dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			// It is gone, or something else: whoever copies it finds that as well.
			r.Flags |= FlagAttrsPartial
			return nil //nolint:nilerr // see above
		}
		t.closeLate()
		t.lateDir, t.lateFD = r.Dir, fd
	}
	t.late.readAt(t.lateFD, r.Name, r)
	if r.Mode&modeFormat == modeRegular && r.Blocks*512 < r.Size {
		r.Sparse = extents(t.lateFD, r.Name, r.Size)
	}
	r.AttrHash = hashAttrs(r)
	return nil
}

func (t *fsTree) closeLate() {
	if t.lateFD > 0 {
		_ = unix.Close(t.lateFD)
		t.lateFD = 0
	}
}

// Close releases the root.
func (t *fsTree) Close() error {
	t.closeLate()
	if err := t.root.Close(); err != nil {
		return sysError("close source", t.root.Name(), err)
	}
	return nil
}

// Open implements Tree.
func (t *fsTree) Open(dir string) (*Record, DirReader, error) {
	fd, err := t.openDir(dir)
	if err != nil {
		return t.unreadable(dir, err)
	}
	st, err := statxAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		_ = unix.Close(fd)
		return nil, nil, sysError("stat", dir, err)
	}
	rec := recordOf(&st)
	r, ok := t.readers.Get().(*fsDirReader)
	if !ok {
		r = &fsDirReader{pool: &t.readers, looks: t.looks, buf: make([]byte, 64<<10)}
	}
	r.fd, r.light, r.since = fd, t.light, t.since
	if dir != "" && t.skip[devIno{rec.Dev, rec.Ino}] {
		return nil, nil, r.Close()
	}
	if !t.light {
		r.attrs.readAt(fd, ".", rec)
	}
	// A source that is itself such a file system was named, and is taken.
	left := dir != "" && rec.Dev != t.rootDev && t.pseudo.at(fd, rec.Dev, dir)
	if left || dir != "" && t.oneFileSystem && (rec.Dev != t.rootDev || st.Mnt_id != t.rootMount) {
		rec.Flags |= FlagMountPoint
		return rec, nil, r.Close()
	}
	return rec, r, nil
}

// unreadable returns what can be known of a directory that cannot be opened.
func (t *fsTree) unreadable(dir string, err error) (*Record, DirReader, error) {
	failed := sysError("open directory", dir, err)
	if dir == "" || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil, failed
	}
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, nil, failed
	}
	defer unix.Close(fd)
	st, err := statxAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, nil, failed
	}
	rec := recordOf(&st)
	if t.skip[devIno{rec.Dev, rec.Ino}] {
		return nil, nil, nil
	}
	rec.Flags |= FlagUnreadable
	// Attributes need permission to search it; without they are marked partial.
	var attrs attrReader
	attrs.readAt(fd, ".", rec)
	return rec, nil, failed
}

// procPath returns a path of what a descriptor of a directory leads to, with a slash.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) + "/" }

// openDir opens a directory for reading without touching its access time where
// that is allowed, which is to owners and to root.
func (t *fsTree) openDir(dir string) (int, error) {
	fd, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	return fd, err
}

func (t *fsTree) open(path string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if path == "" {
		path = "."
	}
	root := int(t.root.Fd())
	if !t.noOpenat2.Load() {
		how := unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
		for tries := 0; ; tries++ {
			fd, err := unix.Openat2(root, path, &how)
			switch {
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && tries < 100:
				continue // EAGAIN: somebody renamed a directory meanwhile
			case errors.Is(err, unix.ENOSYS):
				t.noOpenat2.Store(true)
			default:
				return fd, err //nolint:wrapcheck // wrapped with path by the callers
			}
			break
		}
	}
	return openParts(root, path, flags)
}

// openParts opens a path one component at a time, for kernels without openat2.
func openParts(root int, path string, flags int) (int, error) {
	at := root
	for rest, more := path, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
		}
		fd, err := unix.Openat(at, part, f, 0)
		if at != root {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, err //nolint:wrapcheck // wrapped with path by the callers
		}
		at = fd
	}
	return at, nil
}

// statxName is statxAt for a name that ends with a NUL, which spares a copy of it.
func statxName(fd int, name *byte, st *unix.Statx_t) error {
	for {
		_, _, errno := syscall.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(name)), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT,
			statMask, uintptr(unsafe.Pointer(st)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno //nolint:wrapcheck // wrapped with path by the callers
		}
	}
}

func statxAt(fd int, name string, flags int) (unix.Statx_t, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(fd, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &st)
		if !errors.Is(err, unix.EINTR) {
			return st, err //nolint:wrapcheck // wrapped with path by the callers
		}
	}
}

func recordOf(st *unix.Statx_t) *Record {
	r := &Record{}
	fillRecord(r, st)
	return r
}

func fillRecord(r *Record, st *unix.Statx_t) {
	at := func(t unix.StatxTimestamp) Time { return Time{t.Sec, t.Nsec} }
	*r = Record{
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid, BlockSize: st.Blksize,
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Size: st.Size, Blocks: st.Blocks, Atime: at(st.Atime), Mtime: at(st.Mtime), Ctime: at(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		r.Btime = at(st.Btime)
	}
}

// sysError is an error at an entry path.
func sysError(op, path string, err error) error {
	if path == "" {
		path = "."
	}
	return &fault.Error{Kind: fault.KindOf(err), Op: op, Path: path, Err: err}
}

// fsDirReader reads a directory by its descriptor.
type fsDirReader struct {
	looker
	buf   []byte
	found []Found
	names []dirName // of what is found and is no directory
	looks *looks
	pool  *sync.Pool
}

// dirName is a name in the buffer of a directory's reader.
type dirName struct {
	raw *byte // it ends with a NUL
	at  int   // in found
	typ byte  // DT_UNKNOWN where the file system does not say
}

// looker looks at the entries of a directory, for one goroutine.
type looker struct {
	fd    int
	attrs attrReader
	light bool // see fsTree
	since Time
	stat  unix.Statx_t
}

// Close implements DirReader. The reader must not be used any more: another
// directory may get it.
func (r *fsDirReader) Close() error {
	fd := r.fd
	clear(r.found[:cap(r.found)])
	r.pool.Put(r)
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close directory: %w", err)
	}
	return nil
}

// Next implements DirReader: one getdents call, which yields at most a few
// thousand entries, and a stat of each that is no directory.
func (r *fsDirReader) Next(keep func(name string, isDir bool) bool) ([]Found, error) {
	var n int
	for {
		var err error
		n, err = unix.Getdents(r.fd, r.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		break
	}
	if n <= 0 {
		return nil, io.EOF
	}
	r.found, r.names = r.found[:0], r.names[:0]
	for b := r.buf[:n]; len(b) > 0; {
		// struct linux_dirent64: ino u64, off i64, reclen u16, type u8, name.
		size := int(binary.NativeEndian.Uint16(b[16:]))
		typ := b[18]
		name := b[19:size]
		b = b[size:]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		s := string(name)
		if s == "." || s == ".." || typ != unix.DT_UNKNOWN && !keep(s, typ == unix.DT_DIR) {
			continue
		}
		if typ != unix.DT_DIR {
			r.names = append(r.names, dirName{&name[0], len(r.found), typ})
		}
		r.found = append(r.found, Found{Name: s, IsDir: typ == unix.DT_DIR})
	}
	r.looks.all(&r.looker, r.names, r.found)
	return r.known(keep), nil
}

// known leaves out what the file system told no type of, and what is not to be kept.
func (r *fsDirReader) known(keep func(name string, isDir bool) bool) []Found {
	gone := 0
	for _, n := range r.names {
		if f := &r.found[n.at]; n.typ == unix.DT_UNKNOWN && !keep(f.Name, f.IsDir) {
			f.Name = ""
			gone++
		}
	}
	if gone == 0 {
		return r.found
	}
	return slices.DeleteFunc(r.found, func(f Found) bool { return f.Name == "" })
}

// look looks at one entry.
func (l *looker) look(n dirName, f *Found) {
	err := statxName(l.fd, n.raw, &l.stat)
	switch {
	case err != nil:
		f.Err = fmt.Errorf("stat: %w", err)
	case l.stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		f.IsDir = true
	default:
		fillRecord(&f.Rec, &l.stat)
		f.Err = l.detail(f.Name, &f.Rec)
	}
}

// looks is how entries of one tree are looked at: one after the other where that takes
// microseconds, and many at once where each waits for an answer.
type looks struct {
	takes atomic.Int64 // how long one took of late, nanoseconds
	free  chan struct{}
}

const (
	// mostLooks bounds the entries of a tree that are looked at beside one another.
	mostLooks = 256
	// lookTime is what a look takes of a processor's time. As many are worthwhile at
	// once as fit into the time that one takes.
	lookTime = 25 * time.Microsecond
	// lookBatch is how many are timed together.
	lookBatch = 8
)

func newLooks() *looks { return &looks{free: make(chan struct{}, mostLooks)} }

// all looks at all of a directory's names.
func (x *looks) all(l *looker, names []dirName, found []Found) {
	for len(names) > 0 {
		batch := names[:min(lookBatch, len(names))]
		if at := min(int(time.Duration(x.takes.Load())/lookTime), len(names)); at > 1 {
			x.beside(at, l, names, found)
			return
		}
		began := time.Now()
		for _, n := range batch {
			l.look(n, &found[n.at])
		}
		x.took(time.Since(began) / time.Duration(len(batch)))
		names = names[len(batch):]
	}
}

// took notes how long a look has taken.
func (x *looks) took(d time.Duration) {
	old := x.takes.Load()
	x.takes.Store((3*old + int64(d)) / 4)
}

// beside looks at names from several goroutines, and from its own.
func (x *looks) beside(at int, l *looker, names []dirName, found []Found) {
	var next atomic.Int64
	var wg sync.WaitGroup
	work := func(l *looker) {
		began := time.Now()
		n := 0
		for ; ; n++ {
			i := int(next.Add(1)) - 1
			if i >= len(names) {
				break
			}
			l.look(names[i], &found[names[i].at])
		}
		if n > 0 {
			x.took(time.Since(began) / time.Duration(n))
		}
	}
	for range at - 1 {
		select {
		case x.free <- struct{}{}:
		default:
			at = 0
		}
		if at == 0 {
			break // others of the tree have them
		}
		wg.Go(func() {
			defer func() { <-x.free }()
			work(&looker{fd: l.fd, light: l.light, since: l.since})
		})
	}
	work(l)
	wg.Wait()
}

// detail adds what a stat does not say: attributes, the target of a symlink,
// and where a sparse file has data.
func (l *looker) detail(name string, rec *Record) error {
	later := rec.Nlink == 1 && rec.Ctime.before(l.since)
	switch {
	case l.light:
	case later:
		rec.Flags |= markLater
	default:
		l.attrs.readAt(l.fd, name, rec)
	}
	switch rec.Mode & modeFormat {
	case modeSymlink:
		target, err := readlink(l.fd, name)
		if err != nil {
			return fmt.Errorf("read symlink: %w", err)
		}
		rec.Symlink = target
	case modeRegular:
		if rec.Blocks*512 < rec.Size && !l.light && !later {
			rec.Sparse = extents(l.fd, name, rec.Size)
		}
	}
	return nil
}

func readlink(fd int, name string) (string, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, name, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err //nolint:wrapcheck // wrapped by the caller
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}
