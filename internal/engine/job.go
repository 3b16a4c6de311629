package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/pace"
)

// RootInfo identifies a root as the engine holds it.
type RootInfo struct {
	Path   string // as given in the JobSpec
	Real   string // where the descriptor leads, symbolic links of Path resolved
	Dev    uint64
	Inode  uint64
	FSType uint64 // f_type of statfs
}

// Job is one job's hold on its two roots. Safe for concurrent use; Close ends it.
type Job struct {
	e         *Engine
	spec      JobSpec
	trim      string
	src, dst  root
	inFlight  *pace.Pace // entries under way
	memory    slots      // buffers that the job may hold at once
	noClone   atomic.Bool
	noRange   atomic.Bool
	noAtimeNo atomic.Bool // O_NOATIME was refused: files of other owners
	mounted   mountsHeld

	sizesMu sync.Mutex
	sizes   map[uint64]sizeTrust // by st_dev of the source; guarded by sizesMu

	linkMu    sync.Mutex
	links     map[uint64]fsys.LinkMethod // by st_dev of the destination directory; guarded by linkMu
	nameless  map[uint64]bool            // st_dev on which a name is no help where metadata is refused; guarded by linkMu
	syncMu    sync.Mutex
	syncFDs   map[uint64]int // st_dev -> descriptor for syncfs; guarded by syncMu
	closeOnce sync.Once

	holdsOnce sync.Once
	holdsDst  holds // of the destination's root; set by holdsOnce
}

type root struct {
	fd   int
	info RootInfo
}

// OpenJob opens both roots and holds them until Close. A root that is missing
// or no directory, and options that contradict each other, are refused with a
// fault.Error.
func (e *Engine) OpenJob(spec JobSpec) (*Job, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if spec.ReadOnly {
		spec.Sync, spec.CreateDest = SyncNone, false
	}
	trim := strings.Trim(spec.Trim, "/")
	if trim != "" {
		if err := checkPath(trim); err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Op: "use trim prefix", Path: spec.Trim, Err: err,
				Hint: "give it as a relative path such as srv/data"}
		}
	}
	defer e.alone(spec.ID, "open the roots of the job from", spec.Source+" to "+spec.Destination, 1)()
	src, err := openRoot(spec.Source, "source", spec.FollowRootLinks)
	if err != nil {
		return nil, err
	}
	dst, err := openRoot(spec.Destination, "destination", spec.FollowRootLinks)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDangling) && spec.CreateDest {
		if err = makeRoot(spec); err == nil {
			dst, err = openRoot(spec.Destination, "destination", spec.FollowRootLinks)
		}
	}
	if err != nil {
		_ = fsys.Close(src.fd)
		return nil, err
	}
	limit := max(cap(e.reads), cap(e.writes))
	if spec.Threads > 0 {
		limit = min(limit, spec.Threads)
	}
	memory := int64(cap(e.bufs.free))
	if spec.Memory > 0 {
		memory = min(memory, max(1, spec.Memory/int64(e.bufs.size)))
	}
	j := &Job{e: e, spec: spec, trim: trim, src: src, dst: dst,
		inFlight: pace.New(pace.Config{Ceiling: limit}), memory: make(slots, memory),
		sizes: map[uint64]sizeTrust{}, links: map[uint64]fsys.LinkMethod{}, nameless: map[uint64]bool{}, syncFDs: map[uint64]int{}}
	if err := j.holdForSync(dst.info.Dev, dst.fd); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

func checkSpec(spec JobSpec) error {
	var errs []error
	if spec.ID == "" {
		errs = append(errs, errors.New("job has no ID"))
	}
	for _, r := range []struct{ what, path string }{{"source", spec.Source}, {"destination", spec.Destination}} {
		if !filepath.IsAbs(r.path) || strings.ContainsRune(r.path, 0) {
			errs = append(errs, errors.New(r.what+" root "+quote(r.path)+" is not an absolute path"))
		}
	}
	if spec.Replace > ReplaceNever || spec.Sync > SyncFile || spec.Verify > VerifyChecksum {
		errs = append(errs, errors.New("unknown replace, sync or verify option"))
	}
	if spec.Threads < 0 {
		errs = append(errs, errors.New("threads must not be negative"))
	}
	if len(errs) > 0 {
		return &fault.Error{Kind: fault.Invalid, Op: "open job", Path: spec.ID, Err: errors.Join(errs...)}
	}
	return nil
}

func openRoot(path, what string, followLinks bool) (root, error) {
	// The root's own path may lead through links: the operator named it. From
	// here on only the descriptor counts.
	fd, err := openRootDir(path, followLinks)
	if fe, ok := errors.AsType[*fault.Error](err); ok { // of a link on the way
		return root{}, &fault.Error{Kind: fe.Kind, Op: "open " + what + " root", Path: path, Err: fe}
	}
	if err != nil {
		hint := "is it mounted on this machine?"
		if errors.Is(err, unix.ENOTDIR) {
			hint = "a root must be a directory"
		}
		return root{}, &fault.Error{Kind: fault.FromErrno(errnoOf(err)), Op: "open " + what + " root", Path: path, Err: err, Hint: hint}
	}
	info, err := rootInfo(path, fd)
	if err != nil {
		_ = fsys.Close(fd)
		return root{}, &fault.Error{Kind: fault.KindOf(err), Op: "open " + what + " root", Path: path, Err: err}
	}
	return root{fd: fd, info: info}, nil
}

// makeRoot makes the destination root, in the very directory that the job's
// Permit was asked about.
func makeRoot(spec JobSpec) error {
	parent, name := filepath.Split(filepath.Clean(spec.Destination))
	up, err := openRoot(parent, "parent of the destination", spec.FollowRootLinks)
	if errors.Is(err, errDangling) || fault.Is(err, fault.Denied) {
		return err
	}
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "make destination root", Path: spec.Destination,
			Err: errnoOf(err), Hint: "make its parent directory first"}
	}
	defer func() { _ = fsys.Close(up.fd) }()
	if spec.Permit != nil {
		if err := spec.Permit(up.info.Real); err != nil {
			return err
		}
	}
	if err := fsys.Mkdirat(up.fd, name, 0o755); err != nil && fsys.Errno(err) != unix.EEXIST {
		return &fault.Error{Kind: fault.KindOf(err), Op: "make destination root", Path: spec.Destination, Err: err}
	}
	return nil
}

func rootInfo(path string, fd int) (RootInfo, error) {
	var st unix.Stat_t
	if err := fsys.Fstat(fd, &st); err != nil {
		return RootInfo{}, err
	}
	var sf unix.Statfs_t
	if err := unix.Fstatfs(fd, &sf); err != nil {
		return RootInfo{}, fmt.Errorf("statfs: %w", err)
	}
	real, err := os.Readlink(fsys.ProcPath(fd))
	if err != nil {
		return RootInfo{}, fmt.Errorf("read its path: %w", err)
	}
	return RootInfo{Path: path, Real: real, Dev: st.Dev, Inode: st.Ino, FSType: uint64(sf.Type)}, nil
}

// Roots returns what the job's roots are.
func (j *Job) Roots() (src, dst RootInfo) { return j.src.info, j.dst.info }

// CheckRoots reports, as fault.Unavailable, a root whose path no longer leads to
// the directory that the job holds: unmounted, mounted over or replaced. Filling
// an empty mount point, or reading one as an empty source, starts like that.
// Call it before each batch.
func (j *Job) CheckRoots() error {
	defer j.e.alone(j.spec.ID, "check the roots", j.src.info.Path+" and "+j.dst.info.Path, 1)()
	if err := j.src.check("source"); err != nil {
		return err
	}
	return j.dst.check("destination")
}

func (r root) check(what string) error {
	gone := func(err error, hint string) error {
		return &fault.Error{Kind: fault.Unavailable, Op: "check " + what + " root", Path: r.info.Path, Err: err, Hint: hint}
	}
	var held, now unix.Stat_t
	if err := fsys.Fstat(r.fd, &held); err != nil {
		return gone(err, "the mount went away; mount it again and restart this worker")
	}
	if held.Nlink == 0 {
		return gone(unix.ENOENT, "the directory has been deleted; make it again and restart this worker")
	}
	if err := unix.Stat(r.info.Path, &now); err != nil {
		return gone(err, "mount it again")
	}
	if now.Dev != r.info.Dev || now.Ino != r.info.Inode {
		return gone(errors.New("the path leads to another directory than when the job was opened"),
			"it was unmounted, mounted over or replaced; undo that or restart this worker")
	}
	return nil
}

const noncePrefix = entry.MarkPrefix

// PutNonce leaves the job's proof of identity in the destination root. A nonce
// that is there already is success. The root's times stay as they were.
func (j *Job) PutNonce(nonce string) error {
	return j.withNonce(nonce, "put the job's mark", true, func(name string) error {
		fd, err := fsys.Openat(j.dst.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		if fsys.Errno(err) == unix.EEXIST {
			return nil
		}
		if err != nil {
			return err
		}
		return fsys.Close(fd)
	})
}

// HasNonce reports whether the destination root holds the nonce, that is
// whether this worker sees the mount that the coordinator's first worker saw.
func (j *Job) HasNonce(nonce string) (bool, error) {
	defer j.e.alone(j.spec.ID, "look for the job's mark in", j.dst.info.Path, 1)()
	found := false
	name, err := nonceName(nonce)
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	switch err := fsys.Lstatat(j.dst.fd, name, &st); fsys.Errno(err) {
	case 0:
		found = fsys.Type(st.Mode) == unix.S_IFREG
	case unix.ENOENT:
	default:
		return false, &fault.Error{Kind: fault.KindOf(err), Op: "look for the job's mark in", Path: j.dst.info.Path, Err: err}
	}
	return found, nil
}

// RemoveNonce removes the nonce; a missing one is success. The root's times
// stay as they were, so that it may run after the root has been finished.
func (j *Job) RemoveNonce(nonce string) error {
	return j.withNonce(nonce, "remove the job's mark", false, func(name string) error {
		if err := fsys.Unlinkat(j.dst.fd, name); fsys.Errno(err) != unix.ENOENT {
			return err
		}
		return nil
	})
}

func nonceName(nonce string) (string, error) {
	ok := nonce != "" && len(nonce) <= 128
	for _, c := range nonce {
		ok = ok && (c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_')
	}
	if !ok {
		return "", fault.New(fault.Invalid, "nonce %q is not 1 to 128 letters, digits, - or _", nonce)
	}
	return noncePrefix + nonce, nil
}

func (j *Job) withNonce(nonce, op string, adds bool, f func(name string) error) error {
	name, err := nonceName(nonce)
	if err != nil {
		return err
	}
	defer j.e.alone(j.spec.ID, op+" in", j.dst.info.Path, 1)()
	root := fsys.Node{FD: j.dst.fd, Path: true}
	hint := "the destination root must be writable"
	var st unix.Stat_t
	protected, err := fsys.FstatFlags(j.dst.fd, &st)
	switch {
	case err != nil:
	case protected && adds: // what is put there could not be taken away
		err = unix.EPERM
	default:
		err = f(name)
	}
	if protected {
		hint = "the destination root is immutable or append-only; take that from it with chattr -i -a"
	}
	if fsys.Errno(err) == unix.EACCES && !j.e.override && root.Chmod(st.Mode&0o7777|0o700) == nil {
		// A former job gave our own root the mode of its source.
		err = f(name)
		if cerr := root.Chmod(st.Mode & 0o7777); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: op + " in", Path: j.dst.info.Path, Err: err, Hint: hint}
	}
	// Not the owner: then nobody will set this root's times either.
	_ = root.Utimens(st.Atim, st.Mtim)
	return nil
}

// holdForSync keeps a descriptor for syncfs on the file system that dirFD is
// on. It is opened before the first write there, because syncfs reports only
// write-back errors that happened since.
func (j *Job) holdForSync(dev uint64, dirFD int) error {
	if j.spec.Sync == SyncNone {
		return nil
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if _, ok := j.syncFDs[dev]; ok {
		return nil
	}
	fd, err := fsys.Openat(dirFD, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "open for sync", Path: j.dst.info.Path, Err: err,
			Hint: "the destination root must be readable"}
	}
	j.syncFDs[dev] = fd
	return nil
}

// Sync makes everything that the job's batches wrote so far durable: one syncfs
// per file system written to. It does nothing with SyncNone. An error means
// that work may be lost, so every batch that it was to cover must go back.
func (j *Job) Sync(ctx context.Context) error {
	if j.spec.Sync == SyncNone {
		return nil
	}
	j.syncMu.Lock()
	fds := make([]int, 0, len(j.syncFDs))
	for _, fd := range j.syncFDs {
		fds = append(fds, fd)
	}
	j.syncMu.Unlock()
	for _, fd := range fds {
		if err := ctx.Err(); err != nil {
			return &fault.Error{Kind: fault.Canceled, Op: "sync", Path: j.dst.info.Path, Err: context.Cause(ctx)}
		}
		done := j.e.alone(j.spec.ID, "sync", j.dst.info.Path, slowly)
		err := fsys.Syncfs(fd)
		done()
		if err != nil {
			kind := fault.FromErrno(errnoOf(err))
			if kind == fault.Internal { // EIO: the data is lost, the batch must be done again
				kind = fault.Transient
			}
			return &fault.Error{Kind: kind, Op: "sync", Path: j.dst.info.Path, Err: err,
				Hint: "what was written since the last sync will be written again"}
		}
	}
	return nil
}

// Close gives the roots back. No Run may be under way.
func (j *Job) Close() error {
	var errs []error
	j.closeOnce.Do(func() {
		errs = append(errs, fsys.Close(j.src.fd), fsys.Close(j.dst.fd))
		for _, fd := range j.syncFDs {
			errs = append(errs, fsys.Close(fd))
		}
	})
	return errors.Join(errs...)
}

// errnoOf returns the errno in err's tree, 0 if there is none.
func errnoOf(err error) syscall.Errno {
	var no syscall.Errno
	errors.As(err, &no)
	return no
}

// linkMethod returns how nameless files are named on the destination's file
// system dev. The best is assumed until it fails: there is no probe, which
// would leave litter if it were killed half-way, and change the directory's
// times.
func (j *Job) linkMethod(dev uint64) fsys.LinkMethod {
	j.linkMu.Lock()
	defer j.linkMu.Unlock()
	if m, ok := j.links[dev]; ok {
		return m
	}
	return fsys.LinkByFD
}

// linkFailed notes that method does not work on dev and returns what is left.
func (j *Job) linkFailed(dev uint64, method fsys.LinkMethod) fsys.LinkMethod {
	j.linkMu.Lock()
	defer j.linkMu.Unlock()
	next := method - 1
	if m, ok := j.links[dev]; ok {
		next = min(next, m)
	}
	j.links[dev] = next
	return next
}

// tryNamed reports whether a file on dev whose metadata was refused while it had no name
// is to be made again under a temporary one. It is, until that has been of no help: many
// may have begun before the first of them is refused.
func (j *Job) tryNamed(dev uint64) bool {
	j.linkMu.Lock()
	defer j.linkMu.Unlock()
	return !j.nameless[dev]
}

// namedRefused notes that the same was refused to a file that had a name.
func (j *Job) namedRefused(dev uint64) {
	j.linkMu.Lock()
	defer j.linkMu.Unlock()
	j.nameless[dev] = true
}
