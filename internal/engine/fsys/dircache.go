package fsys

import (
	"container/list"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Dir is a shared O_PATH descriptor of a directory.
type Dir struct {
	FD   int
	Path string // beneath the root
	Dev  uint64

	// Stat is of when it was opened.
	Stat unix.Stat_t
	// Protected says that it was immutable or append-only then (chattr +i, +a): names in
	// it can neither be removed nor renamed.
	Protected bool

	cache *DirCache
	refs  int           // guarded by cache.mu; the cache itself holds one
	elem  *list.Element // guarded by cache.mu; nil once dropped

	aclOnce    sync.Once
	defaultACL bool
	noACLs     bool // the file system has none

	folds   atomic.Int32 // 0 = not known yet, 1 = no, 2 = yes
	spelled atomic.Bool
	gives   atomic.Pointer[Owner] // nil = not known yet
}

// Owner is to whom an object belongs.
type Owner struct{ UID, GID uint32 }

// nobodys stands for what is not to be asked for any more; no object has these ids.
var nobodys = &Owner{^uint32(0), ^uint32(0)}

// Gives returns what SetGives noted: to whom belongs what is made in the directory.
func (d *Dir) Gives() (o Owner, known bool) {
	if p := d.gives.Load(); p != nil {
		return *p, true
	}
	return Owner{}, false
}

// SetGives notes to whom something belongs that was just made in the directory: a group
// may be the directory's, by its set-group-id bit or by an option of its mount, and a
// file server or a mount may give all to somebody else.
func (d *Dir) SetGives(o Owner) { d.gives.CompareAndSwap(nil, &o) }

// ForgetGives is called before the directory's mode is changed: from then on it is known
// to give what it makes to nobody.
func (d *Dir) ForgetGives() { d.gives.Store(nobodys) }

// Folds returns what SetFolds noted: whether the directory takes names for the same that
// differ in case.
func (d *Dir) Folds() (folds, known bool) {
	v := d.folds.Load()
	return v == 2, v != 0
}

// SetFolds notes whether the directory folds names.
func (d *Dir) SetFolds(folds bool) {
	v := int32(1)
	if folds {
		v = 2
	}
	d.folds.Store(v)
}

// Spelled returns whether SetSpelled was called: the directory is called what Path says,
// to the letter.
func (d *Dir) Spelled() bool { return d.spelled.Load() }

// SetSpelled notes that Path is right to the letter.
func (d *Dir) SetSpelled() { d.spelled.Store(true) }

// HasDefaultACL reports whether new objects in the directory inherit an ACL.
// The answer is taken once per Dir: its owner may change that at any time.
func (d *Dir) HasDefaultACL() bool {
	d.aclOnce.Do(func() {
		n, err := unix.Getxattr(ProcPath(d.FD), XattrDefaultACL, nil)
		d.defaultACL = err == nil && n > 0
		d.noACLs = Errno(err) == unix.EOPNOTSUPP
	})
	return d.defaultACL
}

// NoACLs reports whether the directory's file system has no ACLs.
func (d *Dir) NoACLs() bool {
	_ = d.HasDefaultACL()
	return d.noACLs
}

// Gone reports whether the directory has been removed since it was opened.
func (d *Dir) Gone() bool {
	var st unix.Stat_t
	return Fstat(d.FD, &st) != nil || st.Nlink == 0
}

// Release gives the reference back; the descriptor must not be used afterwards.
func (d *Dir) Release() {
	c := d.cache
	c.mu.Lock()
	c.unref(d)
	c.mu.Unlock()
}

// DirCache keeps the most recently used directories of one root open, so that
// a batch resolves each directory once. Safe for concurrent use.
type DirCache struct {
	open func(path string) (int, error)
	max  int

	mu  sync.Mutex
	m   map[string]*Dir // guarded by mu
	lru *list.List      // guarded by mu; front = most recent
}

// NewDirCache returns a cache of at most max descriptors that opens what it
// misses by open, which is called without a lock held.
func NewDirCache(max int, open func(path string) (int, error)) *DirCache {
	return &DirCache{open: open, max: max, m: map[string]*Dir{}, lru: list.New()}
}

// Get returns the directory at path with a reference for the caller.
func (c *DirCache) Get(path string) (*Dir, error) {
	if d := c.lookup(path); d != nil {
		return d, nil
	}
	fd, err := c.open(path)
	if err != nil {
		return nil, err
	}
	return c.Add(path, fd)
}

func (c *DirCache) lookup(path string) *Dir {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.m[path]
	if d != nil {
		d.refs++
		c.lru.MoveToFront(d.elem)
	}
	return d
}

// Add puts an open descriptor into the cache, which owns it from now on, and
// returns it with a reference. If the path is there already the descriptor is
// closed and the present one returned.
func (c *DirCache) Add(path string, fd int) (*Dir, error) {
	d := &Dir{FD: fd, Path: path, cache: c, refs: 2}
	var err error
	if d.Protected, err = FstatFlags(fd, &d.Stat); err != nil {
		_ = Close(fd)
		return nil, err
	}
	d.Dev = d.Stat.Dev
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.m[path]; d != nil {
		_ = Close(fd)
		d.refs++
		return d, nil
	}
	d.elem = c.lru.PushFront(d)
	c.m[path] = d
	for len(c.m) > c.max {
		if oldest, ok := c.lru.Back().Value.(*Dir); ok {
			c.drop(oldest)
		}
	}
	return d, nil
}

// Drop forgets d, which no longer is what its path leads to. References stay
// valid until they are released.
func (c *DirCache) Drop(d *Dir) {
	c.mu.Lock()
	c.drop(d)
	c.mu.Unlock()
}

// DropPath forgets the directory at path, which has been removed.
func (c *DirCache) DropPath(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.m[path]; d != nil {
		c.drop(d)
	}
}

// DropAll forgets every directory.
func (c *DirCache) DropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.m {
		c.drop(d)
	}
}

func (c *DirCache) drop(d *Dir) {
	if d.elem == nil {
		return
	}
	c.lru.Remove(d.elem)
	d.elem = nil
	delete(c.m, d.Path)
	c.unref(d)
}

func (c *DirCache) unref(d *Dir) {
	d.refs--
	if d.refs == 0 {
		_ = Close(d.FD)
	}
}
