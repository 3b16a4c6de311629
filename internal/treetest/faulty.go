package treetest

import (
	"log"
	"os"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FaultyFS is a file system that can be made to fail, to fall short and to hang.
// What it stores lies in another directory, which has none of that.
//
// It is a real one, on FUSE: what a call gives then comes from the kernel. A
// tracer could make up a short result, but not have the kernel do just a part.
type FaultyFS struct {
	Stored string // what it stores

	mu     sync.Mutex
	hook   func(Call) Fault // guarded by mu; nil = no faults
	thawed chan struct{}    // guarded by mu; closed when what hangs goes on
}

// Call is an operation that the kernel asks the file system for.
type Call struct {
	Op     string // "read", "write", "create", "rename" ...
	Name   string // of what is made or removed, where the operation has one
	Offset int64  // of a read or a write
	Size   int    // of a read or a write
}

// Fault is what is to go wrong with a call. The zero value is nothing.
type Fault struct {
	Errno    unix.Errno // it fails with this, and does nothing
	Most     int        // a read or a write does no more bytes than these
	None     bool       // it does none, and does not fail either
	Hang     bool       // it first waits for Thaw
	Nameless bool       // a nameless file can be made
	Empty    bool       // a lookup, or a look at attributes, says size 0
}

// Faulty mounts one on the directory at, for the time of the test. What it
// stores is empty at first.
func Faulty(t testing.TB, at string) *FaultyFS {
	t.Helper()
	f := &FaultyFS{thawed: make(chan struct{})}
	f.Stored = mountLoopback(t, at, f.Thaw, func(_ string, x fuse.RawFileSystem) fuse.RawFileSystem {
		return &faulty{RawFileSystem: x, f: f}
	})
	return f
}

// mountLoopback mounts what wrap makes of a loopback, whose store it returns. Before
// the mount ends thaw is called.
func mountLoopback(t testing.TB, at string, thaw func(), wrap func(stored string, x fuse.RawFileSystem) fuse.RawFileSystem) string {
	t.Helper()
	if !Root() {
		t.Skip("needs root")
	}
	stored, err := os.MkdirTemp("/dev/shm", "fsbackup-faulty-") //nolint:usetesting // in memory, wherever TMPDIR is
	if err != nil {
		t.Skipf("needs /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(stored) })
	root, err := fs.NewLoopbackRoot(stored)
	if err != nil {
		t.Fatal(err)
	}
	opts := &fs.Options{}
	opts.AllowOther, opts.DirectMount = true, true
	// Of no file the kernel is to read and write the stored one on its own.
	opts.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	opts.Logger = log.New(t.Output(), "", 0)
	opts.Name, opts.FsName = "faulty", "fsbackup-test"
	srv, err := fuse.NewServer(wrap(stored, fs.NewNodeFS(root, opts)), at, &opts.MountOptions)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	go srv.Serve()
	t.Cleanup(func() {
		thaw()
		unmount(t, at)
		srv.Wait()
	})
	if err := srv.WaitMount(); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	return stored
}

// Inject has hook say what goes wrong with each call from now on. It is asked
// from many goroutines, and must not use the file system.
func (f *FaultyFS) Inject(hook func(Call) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Thaw ends all faults, and lets what hangs go on. What was asked for before it
// hangs no more, however late it comes to that.
func (f *FaultyFS) Thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = nil
	close(f.thawed)
	f.thawed = make(chan struct{})
}

func (f *FaultyFS) call(c Call) Fault {
	f.mu.Lock()
	hook, thawed := f.hook, f.thawed
	f.mu.Unlock()
	if hook == nil {
		return Fault{}
	}
	fault := hook(c)
	if fault.Hang {
		<-thawed
	}
	return fault
}

// status is call for an operation that is done or not.
func (f *FaultyFS) status(op, name string) fuse.Status {
	return fuse.Status(f.call(Call{Op: op, Name: name}).Errno)
}

// faulty asks before each operation and leaves the rest to a loopback.
type faulty struct {
	fuse.RawFileSystem
	f *FaultyFS
}

// Past the page cache, so that what a call is answered is what its caller gets.
const direct = fuse.FOPEN_DIRECT_IO

func (x *faulty) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := x.f.status("open", ""); !s.Ok() {
		return s
	}
	s := x.RawFileSystem.Open(cancel, in, out)
	out.OpenFlags |= direct
	return s
}

func (x *faulty) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := x.f.status("create", name); !s.Ok() {
		return s
	}
	s := x.RawFileSystem.Create(cancel, in, name, out)
	out.OpenFlags |= direct
	return s
}

// Tmpfile makes nameless files if a fault asks for it. The loopback finds files by their
// names: what has none can be read and written, and nothing else.
func (x *faulty) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	fault := x.f.call(Call{Op: "tmpfile"})
	if !fault.Nameless {
		return fuse.ENOSYS
	}
	const name = ".nameless"
	in.Flags = in.Flags&^uint32(unix.O_TMPFILE) | unix.O_CREAT | unix.O_EXCL
	s := x.RawFileSystem.Create(cancel, in, name, out)
	if s.Ok() {
		s = x.RawFileSystem.Unlink(cancel, &in.InHeader, name)
	}
	out.OpenFlags |= direct
	return s
}

func (x *faulty) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	fault := x.f.call(Call{Op: "read", Offset: int64(in.Offset), Size: len(buf)})
	if fault.Errno != 0 {
		return nil, fuse.Status(fault.Errno)
	}
	if fault.None {
		return fuse.ReadResultData(nil), fuse.OK
	}
	if n := fault.Most; n > 0 && n < len(buf) {
		buf, in.Size = buf[:n], uint32(n)
	}
	return x.RawFileSystem.Read(cancel, in, buf)
}

func (x *faulty) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	fault := x.f.call(Call{Op: "write", Offset: int64(in.Offset), Size: len(data)})
	if fault.Errno != 0 || fault.None {
		return 0, fuse.Status(fault.Errno)
	}
	if n := fault.Most; n > 0 && n < len(data) {
		data, in.Size = data[:n], uint32(n)
	}
	return x.RawFileSystem.Write(cancel, in, data)
}

func (x *faulty) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS // then it comes to Write
}

func (x *faulty) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS // by read and write
}

func (x *faulty) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fault := x.f.call(Call{Op: "lookup", Name: name})
	if fault.Errno != 0 {
		return fuse.Status(fault.Errno)
	}
	s := x.RawFileSystem.Lookup(cancel, h, name, out)
	if fault.Empty {
		out.Size = 0
	}
	return s
}

func (x *faulty) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fault := x.f.call(Call{Op: "getattr"})
	if fault.Errno != 0 {
		return fuse.Status(fault.Errno)
	}
	s := x.RawFileSystem.GetAttr(cancel, in, out)
	if fault.Empty {
		out.Size = 0
	}
	return s
}

func (x *faulty) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := x.f.status("setattr", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.SetAttr(cancel, in, out)
}

func (x *faulty) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := x.f.status("mknod", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Mknod(cancel, in, name, out)
}

func (x *faulty) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := x.f.status("mkdir", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (x *faulty) Symlink(cancel <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	if s := x.f.status("symlink", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Symlink(cancel, h, to, name, out)
}

func (x *faulty) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if s := x.f.status("readlink", ""); !s.Ok() {
		return nil, s
	}
	return x.RawFileSystem.Readlink(cancel, h)
}

func (x *faulty) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := x.f.status("link", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Link(cancel, in, name, out)
}

func (x *faulty) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if s := x.f.status("rename", to); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Rename(cancel, in, from, to)
}

func (x *faulty) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := x.f.status("unlink", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Unlink(cancel, h, name)
}

func (x *faulty) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := x.f.status("rmdir", name); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Rmdir(cancel, h, name)
}

func (x *faulty) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if s := x.f.status("setxattr", attr); !s.Ok() {
		return s
	}
	return x.RawFileSystem.SetXAttr(cancel, in, attr, data)
}

func (x *faulty) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := x.f.status("opendir", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.OpenDir(cancel, in, out)
}

func (x *faulty) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := x.f.status("readdir", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.ReadDir(cancel, in, out)
}

func (x *faulty) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := x.f.status("readdir", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.ReadDirPlus(cancel, in, out)
}

func (x *faulty) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if s := x.f.status("flush", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Flush(cancel, in)
}

func (x *faulty) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := x.f.status("fsync", ""); !s.Ok() {
		return s
	}
	return x.RawFileSystem.Fsync(cancel, in)
}
