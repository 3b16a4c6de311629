// Command coordinator runs jobs on a cluster: it takes control files, publishes
// shards for workers, and folds their results.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/cmd/internal/args"
	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry"
)

// version is set by the linker.
var version string

type config struct {
	Store         string           `help:"Directory for job files and, without --nats, for the embedded NATS server." default:"fsbackup-store" env:"FSBACKUP_STORE" placeholder:"DIR" type:"path"`
	NATSListen    string           `name:"nats-listen" help:"Address of the embedded NATS server; default: ${listen}." env:"FSBACKUP_NATS_LISTEN" placeholder:"HOST:PORT"`
	NATS          string           `name:"nats" help:"URL of an external NATS; without it one is embedded." env:"FSBACKUP_NATS_URL,FSBACKUP_NATS" placeholder:"URL"`
	User          string           `name:"nats-user" help:"User that the embedded NATS server asks for." env:"FSBACKUP_NATS_USER"`
	Password      string           `name:"nats-password" help:"Its password." env:"FSBACKUP_NATS_PASSWORD"`
	Creds         string           `help:"NATS credentials file." env:"FSBACKUP_NATS_CREDS" placeholder:"FILE" type:"path"`
	NKey          string           `name:"nkey" help:"File with the seed of an nkey, to log in to NATS with." env:"FSBACKUP_NATS_NKEY" placeholder:"FILE" type:"path"`
	CA            string           `name:"tls-ca" help:"CA certificates (PEM) to trust for TLS." env:"FSBACKUP_TLS_CA" placeholder:"FILE" type:"path"`
	Cert          string           `name:"tls-cert" help:"Client certificate (PEM)." env:"FSBACKUP_TLS_CERT" placeholder:"FILE" type:"path"`
	Key           string           `name:"tls-key" help:"Key of the client certificate (PEM)." env:"FSBACKUP_TLS_KEY" placeholder:"FILE" type:"path"`
	Replicas      int              `help:"Replicas of streams on an external NATS cluster: 1, 3 or 5." default:"1" env:"FSBACKUP_REPLICAS"`
	QueueBytes    int64            `name:"queue-bytes" help:"Bound of the queue of shards in bytes; a tenth of it is kept free." default:"268435456" env:"FSBACKUP_QUEUE_BYTES" placeholder:"N"`
	HTTP          string           `name:"http" help:"Address of the HTTP API and of /metrics; empty: none." env:"FSBACKUP_HTTP" placeholder:"HOST:PORT"`
	HTTPToken     string           `name:"http-token-file" help:"File with the bearer token of those who may use the HTTP API ($$FSBACKUP_HTTP_TOKEN: the token itself). Beyond this host one is asked for always: without this option it is made in the store." env:"FSBACKUP_HTTP_TOKEN_FILE" placeholder:"FILE" type:"path"`
	HTTPReadToken string           `name:"http-read-token-file" help:"The same for those who may only look, such as Prometheus ($$FSBACKUP_HTTP_READ_TOKEN)." env:"FSBACKUP_HTTP_READ_TOKEN_FILE" placeholder:"FILE" type:"path"`
	HTTPNames     []string         `name:"http-name" help:"Further name of this host, in URLs of the HTTP API; repeat for more." env:"FSBACKUP_HTTP_NAMES" placeholder:"NAME"`
	HTTPCert      string           `name:"http-cert" help:"Certificate (PEM) for the HTTP API to speak TLS." env:"FSBACKUP_HTTP_CERT" placeholder:"FILE" type:"path"`
	HTTPKey       string           `name:"http-key" help:"Key of that certificate (PEM)." env:"FSBACKUP_HTTP_KEY" placeholder:"FILE" type:"path"`
	Name          string           `help:"Name of this coordinator; default: host name." default:"${host}" env:"FSBACKUP_NAME"`
	Keep          time.Duration    `help:"How long ended jobs are kept, with their results and failures." default:"720h" env:"FSBACKUP_KEEP"`
	KeepJobs      int              `help:"How many ended jobs are kept; the oldest go first." default:"10000" env:"FSBACKUP_KEEP_JOBS" placeholder:"N"`
	Heartbeat     time.Duration    `help:"Pause between workers' heartbeats." default:"3s" env:"FSBACKUP_HEARTBEAT" group:"timing"`
	Lease         time.Duration    `help:"Lease of a worker; shorter than the ack wait." default:"20s" env:"FSBACKUP_LEASE" group:"timing"`
	AckWait       time.Duration    `help:"After how long a silent worker's shard is delivered again." default:"30s" env:"FSBACKUP_ACK_WAIT" group:"timing"`
	Leader        time.Duration    `name:"leader-lease" help:"Lease of a leading coordinator." default:"12s" env:"FSBACKUP_LEADER_LEASE" group:"timing"`
	LogLevel      string           `help:"Log level: debug, info, warn, error." default:"info" env:"FSBACKUP_LOG_LEVEL" enum:"debug,info,warn,error"`
	LogFormat     string           `help:"Log format: text, json." default:"text" env:"FSBACKUP_LOG_FORMAT" enum:"text,json"`
	Version       kong.VersionFlag `help:"Show the version."`
}

// defaultListen is where an embedded NATS server listens unless it is told.
const defaultListen = "127.0.0.1:4222"

// Validate, which the parser calls, holds the values against each other.
func (c *config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fault.New(fault.Invalid, format, args...)) }
	if c.Lease >= c.AckWait {
		bad("--lease %s must be shorter than --ack-wait %s", c.Lease, c.AckWait)
	}
	if c.Heartbeat*3 > c.Lease {
		bad("--lease %s must be at least three heartbeats of %s", c.Lease, c.Heartbeat)
	}
	if c.Keep <= 0 || c.KeepJobs < 1 {
		bad("--keep must be more than 0 and --keep-jobs at least 1, or nobody learns how a job ended")
	}
	if c.Heartbeat < 10*time.Millisecond || c.Leader < time.Second {
		bad("--heartbeat must be at least 10ms and --leader-lease at least 1s")
	}
	if c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5 {
		bad("--replicas must be 1, 3 or 5")
	}
	if c.QueueBytes < 16<<20 {
		bad("--queue-bytes must be at least %d", 16<<20)
	}
	if c.NATS != "" && c.NATSListen != "" {
		bad("--nats (FSBACKUP_NATS_URL) names an external NATS, --nats-listen (FSBACKUP_NATS_LISTEN) asks for an embedded one: give one of them")
	}
	if (c.HTTPCert == "") != (c.HTTPKey == "") {
		bad("--http-cert and --http-key belong together: give both")
	}
	if err := protocol.CheckToken("--name", c.Name); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func main() {
	os.Exit(start(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// start is main with its surroundings as arguments.
func start(line []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if version == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			version = info.Main.Version
		}
	}
	cfg := config{}
	host, _ := os.Hostname() // an empty one is refused by Validate
	parser, err := args.New(&cfg, kong.Name("coordinator"), kong.Writers(stdout, stderr), kong.Vars{"version": "coordinator " + version, "host": token(host), "listen": defaultListen},
		kong.Description("Runs backup jobs on a cluster: takes control files, publishes shards for workers on NATS JetStream, folds their results. Stop it with SIGTERM; jobs go on where they were when it is started again on the same store."))
	if err != nil {
		fmt.Fprintf(stderr, "coordinator: %v\n", err)
		return fault.Internal.ExitCode()
	}
	if _, err := parser.Parse(line); err != nil {
		fmt.Fprintf(stderr, "coordinator: %v (see coordinator --help)\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return fault.Invalid.ExitCode()
	}
	return fail(stderr, serve(context.Background(), cfg, getenv, stderr))
}

// token makes s fit for a subject.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || (r >= '0' && r <= '9') || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') {
			return r
		}
		return '-'
	}, s)
}

func fail(stderr io.Writer, err error) int {
	if err == nil || errors.Is(err, run.ErrSignal) {
		return 0
	}
	fmt.Fprintf(stderr, "coordinator: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return fault.KindOf(err).ExitCode()
}

// serve wires the parts and blocks until a signal or an error. Actors are in
// the group; what must outlive them is closed after it, telemetry last.
func serve(ctx context.Context, cfg config, getenv func(string) string, stderr io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer watch(ctx, shutdownTimeout, stderr, func() { os.Exit(fault.Internal.ExitCode()) })()
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "coordinator", Version: version, Instance: cfg.Name, LogWriter: stderr, LogFormat: cfg.LogFormat, LogLevel: cfg.LogLevel, Getenv: getenv,
	})
	if err != nil {
		return err
	}
	defer func() { _ = tel.Shutdown(context.WithoutCancel(ctx)) }() // logs what it could not send
	free, err := lockStore(cfg.Store)
	if err != nil {
		return err
	}
	defer free()
	s := &server{cfg: cfg, tel: tel, log: tel.Logger()}
	var g run.Group
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))
	g.Add(func() error { return s.run(ctx) }, func(err error) { cancel(err) })
	if cfg.HTTP != "" {
		if err := s.addHTTP(ctx, &g, getenv); err != nil {
			return err
		}
	}
	return g.Run() //nolint:wrapcheck // the first actor's error, which says what it was
}

// lockStore keeps a second coordinator from the same directory: two NATS servers
// on one store destroy it.
func lockStore(dir string) (func(), error) {
	fail := func(err error, hint string) (func(), error) {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "use the store", Path: dir, Err: err, Hint: hint}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(errors.Unwrap(err), "name a writable directory with --store")
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(errors.Unwrap(err), "name a writable directory with --store")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return fail(fault.New(fault.Unavailable, "another coordinator uses it"), "stop that one, or name another directory with --store")
	}
	return func() { _ = f.Close() }, nil // nothing was written
}

// server is a coordinator process: it leads or stands by until it is stopped.
type server struct {
	cfg     config
	tel     *telemetry.Telemetry
	log     *slog.Logger
	handler atomic.Pointer[http.Handler] // of the coordinator as it is now; nil before the first
	bus     atomic.Pointer[bus.Bus]      // as it is now; nil before the first
}

// run coordinates until ctx ends. An embedded NATS server that could not write its
// store is started again once there is room.
func (s *server) run(ctx context.Context) error {
	failed := false
	for {
		err := s.session(ctx)
		full := errors.Is(err, bus.ErrStore)
		again := full || (failed && fault.Is(err, fault.Unavailable)) // or it cannot be started yet
		if ctx.Err() != nil || !again {
			return err
		}
		failed = true
		s.log.Error("the embedded NATS server is started again as soon as its store can be written", "store", s.cfg.Store, "error", err)
		for {
			if !bus.Sleep(ctx, time.Second) {
				return context.Cause(ctx)
			}
			if bus.ProbeStore(s.cfg.Store) == nil {
				break
			}
		}
	}
}

// session connects and coordinates until ctx ends or an embedded server fails.
// Where the lead was lost to another coordinator it stands by again.
func (s *server) session(ctx context.Context) error {
	b, embedded, free, err := connect(ctx, s.cfg, s.tel)
	if err != nil {
		return err
	}
	defer free()
	s.bus.Store(b)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var failed <-chan struct{} // of a server that is embedded
	if embedded != nil {
		failed = embedded.Failed()
	}
	go func() {
		select {
		case <-failed:
			cancel(embedded.Err())
		case <-b.Closed():
			cancel(b.Err())
		case <-ctx.Done():
		}
	}()
	for {
		err := s.coordinate(ctx, b)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, bus.ErrClosed) {
			<-b.Closed() // at any moment now
			return b.Err()
		}
		if !fault.Is(err, fault.Stale) {
			return err
		}
		s.log.Warn("this coordinator leads no longer and stands by", "error", err)
	}
}

// coordinate leads once, from waiting for the lease to its end.
func (s *server) coordinate(ctx context.Context, b *bus.Bus) error {
	cfg := s.cfg
	c, err := s.prepare(ctx, coordinator.Config{
		Name: cfg.Name, Bus: b, Layout: bus.Layout{Replicas: cfg.Replicas, MaxBytes: cfg.QueueBytes}, Dir: filepath.Join(cfg.Store, "coordinator"), Keep: cfg.Keep, KeepJobs: cfg.KeepJobs,
		Timing: protocol.Timing{Heartbeat: cfg.Heartbeat, Lease: cfg.Lease, AckWait: cfg.AckWait, Leader: cfg.Leader},
		Logger: s.log, Tracer: s.tel.Providers().TracerProvider, Meter: s.tel.Providers().MeterProvider, Version: version,
	})
	if err != nil {
		return err
	}
	h := api.Handler(c)
	s.handler.Store(&h)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	offered := make(chan error, 1)
	go func() {
		err := offer(ctx, b, c)
		cancel(err) // without an API it is of no use
		offered <- err
	}()
	err = c.Run(ctx)
	cancel(err)
	return errors.Join(err, unlessEnded(ctx, <-offered))
}

// unlessEnded returns err, but nil where it is only that ctx has ended.
func unlessEnded(ctx context.Context, err error) error {
	if errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}

// prepare makes the streams and buckets, and waits where NATS cannot serve them
// yet: its other servers may still be starting.
func (s *server) prepare(ctx context.Context, cfg coordinator.Config) (*coordinator.Coordinator, error) {
	said := ""
	for {
		c, err := coordinator.New(ctx, cfg)
		switch fault.KindOf(err) {
		case fault.Transient, fault.Unavailable, fault.Exhausted:
		default:
			return c, err
		}
		if text := err.Error(); text != said {
			said = text
			s.log.Warn("NATS cannot hold the streams yet, trying again", "error", err)
		}
		if !bus.Sleep(ctx, time.Second) {
			return nil, context.Cause(ctx)
		}
	}
}

// connect connects to NATS, external or embedded: then the server is returned too.
func connect(ctx context.Context, cfg config, tel *telemetry.Telemetry) (*bus.Bus, *bus.Server, func(), error) {
	log := tel.Logger()
	conn := bus.Config{URL: cfg.NATS, Name: "coordinator " + cfg.Name, Creds: cfg.Creds, NKey: cfg.NKey, User: cfg.User, Password: cfg.Password, CA: cfg.CA, Cert: cfg.Cert, Key: cfg.Key, Logger: log, Patient: true}
	stop := func() {}
	if cfg.NATS == "" {
		server, err := bus.StartServer(bus.ServerConfig{StoreDir: filepath.Join(cfg.Store, "nats"), Listen: cmp.Or(cfg.NATSListen, defaultListen), Name: cfg.Name, User: cfg.User, Password: cfg.Password, Logger: log})
		if err != nil {
			return nil, nil, nil, err
		}
		log.Info("embedded NATS", "url", server.URL(), "store", cfg.Store)
		if host, _, err := net.SplitHostPort(cmp.Or(cfg.NATSListen, defaultListen)); cfg.User == "" && err == nil && host != "localhost" && !net.ParseIP(host).IsLoopback() {
			log.Warn("whoever reaches the embedded NATS may do everything with it: give --nats-user and FSBACKUP_NATS_PASSWORD", "listen", cfg.NATSListen)
		}
		conn.Server, stop = server, server.Stop
	}
	b, err := bus.Connect(ctx, conn)
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return b, conn.Server, func() { b.Close(); stop() }, nil
}

// offer serves the control API over NATS once the coordinator leads.
func offer(ctx context.Context, b *bus.Bus, c *coordinator.Coordinator) error {
	select {
	case <-c.Led():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	stop, err := api.Serve(ctx, b, c)
	if err != nil {
		return err
	}
	defer stop()
	<-ctx.Done()
	return context.Cause(ctx)
}

// addHTTP adds the HTTP server to the group.
func (s *server) addHTTP(ctx context.Context, g *run.Group, getenv func(string) string) error {
	addr := s.cfg.HTTP
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "listen for HTTP on", Path: addr, Err: err, Hint: "choose another with --http"}
	}
	who, made, err := access(&s.cfg, getenv, l.Addr())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h := s.handler.Load()
		if h == nil {
			http.Error(w, "this coordinator has no connection to NATS yet", http.StatusServiceUnavailable)
			return
		}
		(*h).ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		b, h := s.bus.Load(), s.handler.Load()
		if b == nil || h == nil || !b.Connected() {
			http.Error(w, "this coordinator has no connection to NATS now", http.StatusServiceUnavailable)
			return
		}
		(*h).ServeHTTP(w, r)
	})
	mux.Handle("GET /metrics", s.tel.Handler())
	hs := &http.Server{Handler: api.Protect(mux, who), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	listen := func() error { return hs.Serve(l) }
	if s.cfg.HTTPCert != "" {
		pair, err := tls.LoadX509KeyPair(s.cfg.HTTPCert, s.cfg.HTTPKey)
		if err != nil {
			return errors.Join(&fault.Error{Kind: fault.Invalid, Op: "use the certificate", Path: s.cfg.HTTPCert, Err: err, Hint: "name a certificate and its key, both PEM"}, l.Close())
		}
		hs.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
		listen = func() error { return hs.ServeTLS(l, "", "") }
	}
	g.Add(listen, func(error) { _ = hs.Close() }) // requests are short
	s.log.Info("HTTP API", "address", l.Addr().String())
	if made != "" {
		s.log.Info("the HTTP API asks for a token", "file", made)
	}
	return nil
}
