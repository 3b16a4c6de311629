package engine

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/fault"
)

const (
	defaultMemory = 64 << 20
	bufferSize    = 256 << 10 // larger ones bring nothing reliable
	smallestBuf   = 4 << 10
	maxDirCache   = 512 // descriptors per side and batch

	// maxThreads is the ceiling of what each job finds to be worthwhile. A thread that
	// waits for a file system costs 28 KiB.
	maxThreads = 256
)

// Config is what an Engine is made of. The zero value is usable.
type Config struct {
	ReadThreads  int          // most entries read at once, all jobs together; 0 = 256
	WriteThreads int          // most entries written at once, all jobs together; 0 = 256
	Memory       int64        // bytes of buffers, all jobs together; 0 = 64 MiB
	UmaskZero    bool         // the process's umask is 0: saves one call per file
	Logger       *slog.Logger // nil = none
	Now          func() time.Time
	Mounts       MountTable // closed with the engine; nil = the kernel's
}

// Engine executes batches of any number of jobs within one set of limits. Safe
// for concurrent use.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	proc     *fsys.Proc
	resolver *fsys.Resolver
	reads    slots
	writes   slots
	bufs     *buffers
	dirCache int  // descriptors per side and batch
	override bool // permission bits do not bind this process
	chowns   bool // it may give objects to others
	admin    bool // it may set attributes of the trusted and security namespaces ...
	setfcap  bool // ... and file capabilities
	user     user // who gives objects to others where it may not
	begun    time.Time
	mounts   MountTable

	busyMu sync.Mutex
	busy   map[*crew]struct{} // guarded by busyMu
}

// capable reports whether the process has a capability: root in a container may
// be without.
func capable(capability uint) bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return os.Geteuid() == 0
	}
	return d[capability/32].Effective&(1<<(capability%32)) != 0
}

// mostThreads is maxThreads, or as many as the process has descriptors for: an entry
// needs three, and the rest of the process some hundred.
func mostThreads() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 16
	}
	return int(min(maxThreads, max(4, (max(lim.Cur, 256)-256)/4)))
}

// dirCacheSize leaves room for many batches at once under the process's limit
// of descriptors, which is not ours to raise.
func dirCacheSize() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 16
	}
	return int(min(maxDirCache, max(16, lim.Cur/64)))
}

// New returns an engine. It opens no job and starts no goroutine.
func New(cfg Config) (*Engine, error) {
	if cfg.ReadThreads < 0 || cfg.WriteThreads < 0 || cfg.Memory < 0 {
		return nil, fault.New(fault.Invalid, "engine limits must not be negative: read threads %d, write threads %d, memory %d",
			cfg.ReadThreads, cfg.WriteThreads, cfg.Memory)
	}
	cfg.ReadThreads = cmp.Or(cfg.ReadThreads, mostThreads())
	cfg.WriteThreads = cmp.Or(cfg.WriteThreads, mostThreads())
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Mounts == nil {
		cfg.Mounts = &procMounts{}
	}
	proc, err := fsys.OpenProc()
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unsupported, Op: "open", Path: "/proc/self/fd", Err: err,
			Hint: "mount proc in this container or chroot"}
	}
	return &Engine{
		cfg:      cfg,
		log:      cfg.Logger.With("component", "engine"),
		proc:     proc,
		resolver: fsys.NewResolver(),
		reads:    make(slots, cfg.ReadThreads),
		writes:   make(slots, cfg.WriteThreads),
		bufs:     newBuffers(cfg.Memory),
		dirCache: dirCacheSize(),
		override: capable(unix.CAP_DAC_OVERRIDE),
		chowns:   capable(unix.CAP_CHOWN),
		admin:    capable(unix.CAP_SYS_ADMIN),
		setfcap:  capable(unix.CAP_SETFCAP),
		user:     thisUser(),
		begun:    time.Now(),
		mounts:   cfg.Mounts,
		busy:     map[*crew]struct{}{},
	}, nil
}

// Close releases what the engine itself holds. All jobs must be closed before,
// but for those that hang in a system call: these keep what they may yet use.
func (e *Engine) Close() error {
	if !e.idle() {
		return nil
	}
	return errors.Join(e.mounts.Close(), e.proc.Close())
}

// slots is a counting semaphore.
type slots chan struct{}

func (s slots) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slots) release() { <-s }

// buffers hands out buffers of one size, never more than its budget at once.
// They are made when first needed and kept for the life of the engine.
type buffers struct {
	size int
	free chan []byte
	make slots // one token per buffer ever made
}

func newBuffers(memory int64) *buffers {
	size := min(bufferSize, max(smallestBuf, memory))
	n := max(1, memory/size)
	return &buffers{size: int(size), free: make(chan []byte, n), make: make(slots, n)}
}

func (b *buffers) get(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-b.free:
		return buf, nil
	default:
	}
	select {
	case buf := <-b.free:
		return buf, nil
	case b.make <- struct{}{}:
		return make([]byte, b.size), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (b *buffers) put(buf []byte) { b.free <- buf }
