package treetest

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// namelessPrefix begins the names that nameless files have in the store.
const namelessPrefix = ".nameless-"

// Folding mounts a file system on the directory at, for the time of the test, that takes
// names for the same which differ in case only, or in a sharp s written as two letters.
// A name is kept as it was made, also where another spelling of it is renamed over it.
// With nameless set files can be made without a name and named later. It returns the
// directory that it stores in; what is nameless there begins with a dot and the word.
func Folding(t testing.TB, at string, nameless bool) (stored string) {
	t.Helper()
	return mountLoopback(t, at, func() {}, func(stored string, x fuse.RawFileSystem) fuse.RawFileSystem {
		return &folding{RawFileSystem: x, stored: stored, nameless: nameless, paths: map[uint64]string{fuse.FUSE_ROOT_ID: ""}}
	})
}

// folding finds the spelling that is stored before each operation with a name, and
// leaves the rest to a loopback.
type folding struct {
	fuse.RawFileSystem
	stored   string
	nameless bool

	mu    sync.Mutex
	paths map[uint64]string // of the nodes that the kernel knows; guarded by mu
	made  int               // nameless files; guarded by mu
}

func fold(name string) string {
	return strings.ReplaceAll(strings.ToLower(strings.ToUpper(name)), "\u00df", "ss")
}

// spell returns the name as the store has it in the directory node, or as it is.
func (x *folding) spell(node uint64, name string) string {
	x.mu.Lock()
	dir := filepath.Join(x.stored, x.paths[node])
	x.mu.Unlock()
	names, err := os.ReadDir(dir)
	if err != nil {
		return name
	}
	for _, n := range names {
		if fold(n.Name()) == fold(name) {
			return n.Name()
		}
	}
	return name
}

// learn notes the node that an operation returned.
func (x *folding) learn(s fuse.Status, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	if !s.Ok() {
		return s
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.paths[out.NodeId] = path.Join(x.paths[parent], name)
	out.EntryValid, out.EntryValidNsec = 0, 0 // another spelling may change it
	return s
}

func (x *folding) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	name = x.spell(h.NodeId, name)
	return x.learn(x.RawFileSystem.Lookup(cancel, h, name, out), h.NodeId, name, out)
}

func (x *folding) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	name = x.spell(in.NodeId, name)
	return x.learn(x.RawFileSystem.Create(cancel, in, name, out), in.NodeId, name, &out.EntryOut)
}

// Tmpfile makes a file that has a name for the store only.
func (x *folding) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if !x.nameless {
		return fuse.ENOSYS
	}
	x.mu.Lock()
	x.made++
	name := fmt.Sprint(namelessPrefix, x.made)
	x.mu.Unlock()
	in.Flags = uint32(os.O_RDWR | os.O_CREATE | os.O_EXCL)
	return x.learn(x.RawFileSystem.Create(cancel, in, name, out), in.NodeId, name, &out.EntryOut)
}

func (x *folding) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	x.mu.Lock()
	old := x.paths[in.Oldnodeid]
	x.mu.Unlock()
	if !strings.HasPrefix(path.Base(old), namelessPrefix) {
		return x.learn(x.RawFileSystem.Link(cancel, in, name, out), in.NodeId, name, out)
	}
	move := &fuse.RenameIn{InHeader: in.InHeader, Newdir: in.NodeId} // it is named in its own directory
	if s := x.RawFileSystem.Rename(cancel, move, path.Base(old), name); !s.Ok() {
		return s
	}
	return x.learn(x.RawFileSystem.Lookup(cancel, &in.InHeader, name, out), in.NodeId, name, out)
}

func (x *folding) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return x.learn(x.RawFileSystem.Mkdir(cancel, in, name, out), in.NodeId, name, out)
}

func (x *folding) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return x.learn(x.RawFileSystem.Mknod(cancel, in, name, out), in.NodeId, name, out)
}

func (x *folding) Symlink(cancel <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	return x.learn(x.RawFileSystem.Symlink(cancel, h, to, name, out), h.NodeId, name, out)
}

func (x *folding) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return x.RawFileSystem.Unlink(cancel, h, x.spell(h.NodeId, name))
}

func (x *folding) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return x.RawFileSystem.Rmdir(cancel, h, x.spell(h.NodeId, name))
}

func (x *folding) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	from, to = x.spell(in.NodeId, from), x.spell(in.Newdir, to)
	s := x.RawFileSystem.Rename(cancel, in, from, to)
	if !s.Ok() {
		return s
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	was, is := path.Join(x.paths[in.NodeId], from), path.Join(x.paths[in.Newdir], to)
	for node, p := range x.paths {
		if p == was || strings.HasPrefix(p, was+"/") {
			x.paths[node] = is + p[len(was):]
		}
	}
	return s
}
