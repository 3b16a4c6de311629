package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// ServerConfig describes an embedded NATS server.
type ServerConfig struct {
	// StoreDir holds JetStream's files. It is needed also for a memory store,
	// which keeps next to nothing there.
	StoreDir string
	// Listen is host:port for workers and clients; empty: in-process
	// connections only. Port 0 chooses a free one.
	Listen string
	// Name appears in NATS's own monitoring.
	Name string
	// User and Password protect Listen; empty: none.
	User, Password string
	// MaxPayload is the most bytes of a message; 0 = 8 MiB.
	MaxPayload int32
	// Logger takes what the server has to say of errors; nil: nobody.
	Logger *slog.Logger
}

// Server is an embedded NATS server with JetStream.
type Server struct {
	s              *server.Server
	user, password string
	ear            *ear
}

// ErrStore means that an embedded server could not write its files. It takes
// nothing more from then on, also where there is room again, until it is stopped
// and started.
var ErrStore = errors.New("NATS cannot write its store")

// Failed is closed when the server can do no more; Err says why.
func (s *Server) Failed() <-chan struct{} { return s.ear.failed }

// Err returns why the server failed, once Failed is closed. It wraps ErrStore.
func (s *Server) Err() error {
	<-s.ear.failed
	return s.ear.err
}

// ear listens to what the server logs: nothing else tells that a stream takes no
// more messages since a write failed.
type ear struct {
	log    *slog.Logger
	store  string
	once   sync.Once
	failed chan struct{} // closed once err is set
	err    error
}

// Errorf implements the server's logger.
func (e *ear) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	e.log.Warn("embedded NATS reports an error", "error", text)
	if strings.Contains(strings.ToLower(text), "critical write error") || strings.Contains(text, "will be DISABLED") {
		e.once.Do(func() {
			e.err = &fault.Error{Kind: fault.Exhausted, Op: "store messages in", Path: e.store, Err: fmt.Errorf("%w: %s", ErrStore, text), Hint: "make room there"}
			close(e.failed)
		})
	}
}

// Warnf implements the server's logger.
func (e *ear) Warnf(format string, v ...any) {
	e.log.Debug("embedded NATS warns", "text", fmt.Sprintf(format, v...))
}

// Fatalf implements the server's logger.
func (e *ear) Fatalf(format string, v ...any) { e.Errorf(format, v...) }

// Noticef implements the server's logger.
func (*ear) Noticef(string, ...any) {}

// Debugf implements the server's logger.
func (*ear) Debugf(string, ...any) {}

// Tracef implements the server's logger.
func (*ear) Tracef(string, ...any) {}

// roomProbe is how much must fit into a store before a server is started on it
// once more.
const roomProbe = 16 << 20

// ProbeStore reports whether a store takes some megabytes.
func ProbeStore(dir string) error {
	f, err := os.CreateTemp(dir, "probe-")
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "write into the store", Path: dir, Err: err}
	}
	defer func() { _ = os.Remove(f.Name()) }() // of no use to anybody
	_, err = f.Write(make([]byte, roomProbe))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "write into the store", Path: dir, Err: err}
	}
	return nil
}

// maxPayload of the embedded server lets a shard with a large hard-link group
// go without the detour over an object.
const maxPayload = 8 << 20

// StartServer starts an embedded server and waits until it accepts connections.
func StartServer(cfg ServerConfig) (*Server, error) {
	if cfg.MaxPayload == 0 {
		cfg.MaxPayload = maxPayload
	}
	opts := &server.Options{
		ServerName:             cfg.Name,
		DontListen:             cfg.Listen == "",
		JetStream:              true,
		StoreDir:               cfg.StoreDir,
		SyncAlways:             true, // the default syncs every two minutes and loses acked messages
		NoSigs:                 true,
		NoLog:                  true,
		MaxPayload:             cfg.MaxPayload,
		DisableJetStreamBanner: true,
		Username:               cfg.User,
		Password:               cfg.Password,
	}
	if cfg.Listen != "" {
		host, port, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return nil, fault.Hinted(fault.Invalid, "use HOST:PORT, for example 127.0.0.1:4222", "NATS listen address %q: %w", cfg.Listen, err)
		}
		opts.Host = host
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fault.Hinted(fault.Invalid, "use HOST:PORT, for example 127.0.0.1:4222", "NATS listen address %q: %w", cfg.Listen, err)
		}
		if opts.Port == 0 {
			opts.Port = server.RANDOM_PORT
		}
		// Found here, an address in use is an error; found by the server, it
		// would end the process.
		if err := probeListen(cfg.Listen); err != nil {
			return nil, err
		}
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Op: "configure the embedded NATS server in", Path: cfg.StoreDir, Err: err}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &ear{log: cfg.Logger, store: cfg.StoreDir, failed: make(chan struct{})}
	s.SetLogger(e, false, false)
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		return nil, &fault.Error{Kind: fault.Unavailable, Op: "start the embedded NATS server in", Path: cfg.StoreDir, Err: errors.New("not ready within 30 s")}
	}
	if !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, &fault.Error{Kind: fault.Unavailable, Op: "start JetStream in", Path: filepath.Join(cfg.StoreDir, "jetstream"), Err: errors.New("JetStream is not enabled"), Hint: "is the directory writable and not in use by another server?"}
	}
	return &Server{s: s, user: cfg.User, password: cfg.Password, ear: e}, nil
}

func probeListen(addr string) error {
	l, err := net.Listen("tcp", addr) //nolint:noctx // binding an address of this host does not wait
	if err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "listen for NATS on", Path: addr, Err: err, Hint: "choose another address, or stop what uses it"}
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("close probe of %s: %w", addr, err)
	}
	return nil
}

// URL is where clients of other processes connect; empty without Listen.
func (s *Server) URL() string {
	if s.s.Addr() == nil {
		return ""
	}
	return s.s.ClientURL()
}

// Stop shuts the server down and waits until its files are closed.
func (s *Server) Stop() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}
