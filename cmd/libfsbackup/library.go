package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

const (
	// keepIdle is how long a cluster or connection that no instance uses is kept
	// for the next one: callers make an instance for each control file.
	keepIdle = 10 * time.Second
	// localThreads and localMemory bound all instances of the process together;
	// each has its own limits within them.
	localThreads = 512
	localMemory  = 1 << 30
	// defaultTmpdir is used where TMPDIR is not set.
	defaultTmpdir = "/tmp"
	// defaultMemory are the buffers of an instance that did not ask.
	defaultMemory = 64 << 20
)

// defaultThreads are the most entries in flight of an instance that did not ask.
const defaultThreads = 256

// library is what a process holds: its instances, and what runs their jobs.
type library struct {
	log   *slog.Logger
	level *slog.LevelVar
	file  *logFile
	idle  time.Duration

	mu        sync.Mutex // guards what follows
	last      uint64
	instances map[uint64]*instance
	backends  map[cluster]*backend
}

// firstHandle and handleStep make handles that are no addresses, so that one
// that is used as a pointer fails at once, and are never used again.
const (
	firstHandle = 0x101
	handleStep  = 2
)

func newLibrary() *library {
	l := &library{
		level: new(slog.LevelVar), file: &logFile{most: logBytes, keep: logKept}, idle: keepIdle,
		last: firstHandle, instances: map[uint64]*instance{}, backends: map[cluster]*backend{},
	}
	l.level.Set(levelOff)
	l.log = slog.New(slog.NewTextHandler(l.file, &slog.HandlerOptions{Level: l.level}))
	return l
}

// initLog starts logging, or goes over to another directory or level.
func (l *library) initLog(dir string, level int) error {
	if err := l.file.open(dir); err != nil {
		return err
	}
	l.level.Set(levels[min(max(level, 0), len(levels)-1)])
	return nil
}

// create makes an instance and returns its handle.
func (l *library) create(source, destination, meta string, phase int, writeMeta bool) (uint64, error) {
	i, err := newInstance(l, source, destination, meta, phase, writeMeta)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last += handleStep
	i.log = l.log.With("instance", l.last)
	l.instances[l.last] = i
	return l.last, nil
}

// find returns the instance of a handle.
func (l *library) find(handle uint64) (*instance, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lookUp(handle)
}

func (l *library) lookUp(handle uint64) (*instance, error) {
	if i := l.instances[handle]; i != nil {
		return i, nil
	}
	switch {
	case handle == 0:
		return nil, fault.New(fault.Invalid, "the handle is NULL")
	case handle > firstHandle && handle <= l.last && (handle-firstHandle)%handleStep == 0:
		return nil, fault.New(fault.Invalid, "the instance has been destroyed")
	}
	return nil, fault.New(fault.Invalid, "the handle is none that CreateBackupInst returned")
}

// destroy stops an instance and forgets it.
func (l *library) destroy(ctx context.Context, handle uint64) error {
	l.mu.Lock()
	i, err := l.lookUp(handle)
	delete(l.instances, handle)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	i.destroy(ctx)
	return nil
}

// environment is what Start takes from the environment of its moment.
type environment struct {
	cluster cluster
	pool    string
	tmpdir  string // "" = the default
}

// cluster says what runs jobs: the zero value is a cluster within this process.
type cluster struct{ url, creds, nkey, ca, cert, key string }

// backend runs jobs for instances: a cluster within the process, or a connection
// to one. It lives as long as instances use it, and a while longer.
type backend struct {
	lib  *library
	to   cluster
	open sync.Mutex // held while it is being opened

	users int         // guarded by lib.mu
	timer *time.Timer // closes it when idle; guarded by lib.mu

	// Set once, with open held, before anybody uses them.
	*client.Client
	local *client.Local
	stop  func()
}

// acquire returns the backend for a cluster, opening it if need be; one within the
// process has a directory in tmpdir. Each call wants one release.
func (l *library) acquire(ctx context.Context, to cluster, tmpdir string) (*backend, error) {
	l.mu.Lock()
	b := l.backends[to]
	if b != nil && b.dead() {
		delete(l.backends, to) // its users let go of it in time
		b = nil
	}
	if b == nil {
		b = &backend{lib: l, to: to}
		l.backends[to] = b
	}
	b.users++
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	l.mu.Unlock()
	b.open.Lock()
	defer b.open.Unlock()
	if b.stop != nil {
		return b, nil
	}
	var err error
	if to == (cluster{}) {
		err = b.startLocal(ctx, tmpdir)
	} else {
		err = b.connect(ctx)
	}
	if err != nil {
		b.release()
		return nil, err
	}
	return b, nil
}

// release ends one use.
func (b *backend) release() {
	b.lib.mu.Lock()
	defer b.lib.mu.Unlock()
	b.users--
	if b.users == 0 {
		b.timer = time.AfterFunc(b.lib.idle, b.closeIdle)
	}
}

// closeIdle closes the backend unless somebody uses it again.
func (b *backend) closeIdle() {
	b.lib.mu.Lock()
	if b.users > 0 {
		b.lib.mu.Unlock()
		return
	}
	b.users = 1 // nobody else gets here
	if b.lib.backends[b.to] == b {
		delete(b.lib.backends, b.to)
	}
	b.lib.mu.Unlock()
	b.open.Lock()
	defer b.open.Unlock()
	if b.stop != nil {
		b.stop()
	}
}

// failed is closed when the backend has ended by itself.
func (b *backend) failed() <-chan struct{} {
	if b.local == nil {
		return nil
	}
	return b.local.Failed()
}

func (b *backend) dead() bool {
	if !b.open.TryLock() {
		return false // being opened
	}
	defer b.open.Unlock()
	select {
	case <-b.failed():
		return true
	default:
		return false
	}
}

// startLocal starts a cluster within the process. Nothing listens; streams are
// in memory, the directory holds next to nothing.
func (b *backend) startLocal(ctx context.Context, tmpdir string) error {
	scratch, err := host.MakeScratch(cmp.Or(tmpdir, defaultTmpdir))
	if err != nil {
		return err
	}
	dir := scratch.Dir
	removeAtExit(dir)
	log := b.lib.log
	local, err := client.StartLocal(context.WithoutCancel(ctx), client.LocalConfig{
		Dir: dir, Memory: true, Allow: []string{"/"}, Logger: log, Version: libVersion,
		Engine: engine.Config{ReadThreads: localThreads, WriteThreads: localThreads, Memory: localMemory, Logger: log},
	})
	if err != nil {
		return errors.Join(err, scratch.Remove())
	}
	b.Client, b.local = local.Client, local
	b.stop = func() {
		if err := local.Close(); err != nil {
			log.Warn("stop the cluster within the process", "error", err)
		}
		if err := scratch.Remove(); err != nil {
			log.Warn("the library's files cannot be removed", "dir", dir, "error", err)
		}
		log.Info("the cluster within the process has stopped")
	}
	return nil
}

// connect connects to a cluster and makes sure that a coordinator answers.
func (b *backend) connect(ctx context.Context) error {
	conn, err := bus.Connect(ctx, bus.Config{URL: b.to.url, Name: "libfsbackup", Creds: b.to.creds, NKey: b.to.nkey, CA: b.to.ca, Cert: b.to.cert, Key: b.to.key, Logger: b.lib.log})
	if err != nil {
		return err
	}
	c := client.New(conn)
	if _, err := c.Workers(ctx); err != nil {
		conn.Close()
		return err
	}
	b.Client, b.stop = c, conn.Close
	return nil
}

// metaFiles lists the meta files in a directory.
func metaFiles(dir string) ([]protocol.FileRef, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "read metaPath", Path: dir, Err: errors.Unwrap(err), Hint: "name the directory that holds meta_file_*"}
	}
	var out []protocol.FileRef
	for _, n := range names {
		if ok, _ := filepath.Match("*meta_file_*", n.Name()); ok && n.Type().IsRegular() {
			out = append(out, protocol.FileRef{Path: filepath.Join(dir, n.Name())})
		}
	}
	return out, nil
}
