// Command slowmount mounts a directory elsewhere as if it were far away: each
// operation takes a given time more. Until it is interrupted:
//
//	go run ./bench/slowmount -latency 2ms STORED MOUNTPOINT
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "slowmount:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("slowmount", flag.ContinueOnError)
	latency := set.Duration("latency", 2*time.Millisecond, "time that each operation takes more")
	cache := set.Duration("cache", time.Second, "how long the kernel keeps names and attributes")
	if err := set.Parse(args); err != nil {
		return fmt.Errorf("read the arguments: %w", err)
	}
	if set.NArg() != 2 {
		return fmt.Errorf("want a directory and a mount point, not %d arguments", set.NArg())
	}
	srv, err := mount(set.Arg(0), set.Arg(1), *latency, *cache)
	if err != nil {
		return fmt.Errorf("mount %q on %q: %w", set.Arg(0), set.Arg(1), err)
	}
	fmt.Fprintln(out, "mounted")
	<-ctx.Done()
	if err := srv.Unmount(); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

func mount(stored, at string, latency, cache time.Duration) (*fuse.Server, error) {
	root, err := fs.NewLoopbackRoot(stored)
	if err != nil {
		return nil, fmt.Errorf("open the directory: %w", err)
	}
	opts := &fs.Options{EntryTimeout: &cache, AttrTimeout: &cache}
	opts.AllowOther, opts.DirectMount = true, true
	opts.MaxBackground, opts.Name, opts.FsName = 1024, "slowmount", "slowmount"
	opts.DisabledCapabilities = fuse.CAP_PASSTHROUGH
	srv, err := fuse.NewServer(&slow{fs.NewNodeFS(root, opts), latency}, at, &opts.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("wait for the mount: %w", err)
	}
	return srv, nil
}

// slow waits before each operation and leaves the rest to a loopback.
type slow struct {
	fuse.RawFileSystem
	latency time.Duration
}

func (s *slow) wait() { time.Sleep(s.latency) }

func (s *slow) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Lookup(c, h, name, out)
}

func (s *slow) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.GetAttr(c, in, out)
}

func (s *slow) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.SetAttr(c, in, out)
}

func (s *slow) Statx(c <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Statx(c, in, out)
}

func (s *slow) Mknod(c <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Mknod(c, in, name, out)
}

func (s *slow) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Mkdir(c, in, name, out)
}

func (s *slow) Unlink(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	s.wait()
	return s.RawFileSystem.Unlink(c, h, name)
}

func (s *slow) Rmdir(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	s.wait()
	return s.RawFileSystem.Rmdir(c, h, name)
}

func (s *slow) Rename(c <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	s.wait()
	return s.RawFileSystem.Rename(c, in, from, to)
}

func (s *slow) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Link(c, in, name, out)
}

func (s *slow) Symlink(c <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Symlink(c, h, target, name, out)
}

func (s *slow) Readlink(c <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	s.wait()
	return s.RawFileSystem.Readlink(c, h)
}

func (s *slow) GetXAttr(c <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	s.wait()
	return s.RawFileSystem.GetXAttr(c, h, attr, dest)
}

func (s *slow) ListXAttr(c <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	s.wait()
	return s.RawFileSystem.ListXAttr(c, h, dest)
}

func (s *slow) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Create(c, in, name, out)
}

func (s *slow) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.Open(c, in, out)
}

func (s *slow) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	s.wait()
	return s.RawFileSystem.Read(c, in, buf)
}

func (s *slow) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	s.wait()
	return s.RawFileSystem.Write(c, in, data)
}

func (s *slow) Flush(c <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	s.wait()
	return s.RawFileSystem.Flush(c, in)
}

func (s *slow) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	s.wait()
	return s.RawFileSystem.OpenDir(c, in, out)
}

func (s *slow) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	s.wait()
	return s.RawFileSystem.ReadDir(c, in, out)
}

func (s *slow) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	s.wait()
	return s.RawFileSystem.ReadDirPlus(c, in, out)
}
