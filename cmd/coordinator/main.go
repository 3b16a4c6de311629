// Command coordinator runs jobs on a cluster: it takes control files, publishes
// shards for workers, and folds their results.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/oklog/run"

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
	Store      string           `help:"Directory for job files and, without --nats, for the embedded NATS server." default:"fsbackup-store" env:"FSBACKUP_STORE" placeholder:"DIR" type:"path"`
	NATSListen string           `name:"nats-listen" help:"Address of the embedded NATS server." default:"127.0.0.1:4222" env:"FSBACKUP_NATS_LISTEN" placeholder:"HOST:PORT"`
	NATS       string           `name:"nats" help:"URL of an external NATS; without it one is embedded." env:"FSBACKUP_NATS_URL,FSBACKUP_NATS" placeholder:"URL"`
	User       string           `name:"nats-user" help:"User that the embedded NATS server asks for." env:"FSBACKUP_NATS_USER"`
	Password   string           `name:"nats-password" help:"Its password." env:"FSBACKUP_NATS_PASSWORD"`
	Creds      string           `help:"NATS credentials file." env:"FSBACKUP_NATS_CREDS" placeholder:"FILE" type:"path"`
	CA         string           `name:"tls-ca" help:"CA certificates (PEM) to trust for TLS." env:"FSBACKUP_TLS_CA" placeholder:"FILE" type:"path"`
	Cert       string           `name:"tls-cert" help:"Client certificate (PEM)." env:"FSBACKUP_TLS_CERT" placeholder:"FILE" type:"path"`
	Key        string           `name:"tls-key" help:"Key of the client certificate (PEM)." env:"FSBACKUP_TLS_KEY" placeholder:"FILE" type:"path"`
	Replicas   int              `help:"Replicas of streams on an external NATS cluster: 1, 3 or 5." default:"1" env:"FSBACKUP_REPLICAS"`
	QueueBytes int64            `name:"queue-bytes" help:"Bound of the queue of shards in bytes; a tenth of it is kept free." default:"268435456" env:"FSBACKUP_QUEUE_BYTES" placeholder:"N"`
	HTTP       string           `name:"http" help:"Address of the HTTP API and of /metrics; empty: none." env:"FSBACKUP_HTTP" placeholder:"HOST:PORT"`
	Name       string           `help:"Name of this coordinator; default: host name." default:"${host}" env:"FSBACKUP_NAME"`
	Keep       time.Duration    `help:"How long results and failures of ended jobs are kept." default:"24h" env:"FSBACKUP_KEEP"`
	Heartbeat  time.Duration    `help:"Pause between workers' heartbeats." default:"3s" env:"FSBACKUP_HEARTBEAT" group:"timing"`
	Lease      time.Duration    `help:"Lease of a worker; shorter than the ack wait." default:"20s" env:"FSBACKUP_LEASE" group:"timing"`
	AckWait    time.Duration    `help:"After how long a silent worker's shard is delivered again." default:"30s" env:"FSBACKUP_ACK_WAIT" group:"timing"`
	Leader     time.Duration    `name:"leader-lease" help:"Lease of a leading coordinator." default:"12s" env:"FSBACKUP_LEADER_LEASE" group:"timing"`
	LogLevel   string           `help:"Log level: debug, info, warn, error." default:"info" env:"FSBACKUP_LOG_LEVEL" enum:"debug,info,warn,error"`
	LogFormat  string           `help:"Log format: text, json." default:"text" env:"FSBACKUP_LOG_FORMAT" enum:"text,json"`
	Version    kong.VersionFlag `help:"Show the version."`
}

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
	if c.Heartbeat < 10*time.Millisecond || c.Leader < time.Second {
		bad("--heartbeat must be at least 10ms and --leader-lease at least 1s")
	}
	if c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5 {
		bad("--replicas must be 1, 3 or 5")
	}
	if c.QueueBytes < 16<<20 {
		bad("--queue-bytes must be at least %d", 16<<20)
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
func start(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if version == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			version = info.Main.Version
		}
	}
	cfg := config{}
	host, _ := os.Hostname() // an empty one is refused by Validate
	parser, err := kong.New(&cfg, kong.Name("coordinator"), kong.Writers(stdout, stderr), kong.Vars{"version": "coordinator " + version, "host": token(host)},
		kong.Description("Runs backup jobs on a cluster: takes control files, publishes shards for workers on NATS JetStream, folds their results. Stop it with SIGTERM; jobs go on where they were when it is started again on the same store."))
	if err != nil {
		fmt.Fprintf(stderr, "coordinator: %v\n", err)
		return fault.Internal.ExitCode()
	}
	if _, err := parser.Parse(args); err != nil {
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
	log := tel.Logger()

	// From the first signal on everything winds down, also while connecting.
	var g run.Group
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))

	b, free, err := connect(ctx, cfg, tel)
	if err != nil {
		return err
	}
	defer free()
	c, err := coordinator.New(ctx, coordinator.Config{
		Name: cfg.Name, Bus: b, Layout: bus.Layout{Replicas: cfg.Replicas, MaxBytes: cfg.QueueBytes}, Dir: filepath.Join(cfg.Store, "coordinator"), Keep: cfg.Keep,
		Timing: protocol.Timing{Heartbeat: cfg.Heartbeat, Lease: cfg.Lease, AckWait: cfg.AckWait, Leader: cfg.Leader},
		Logger: log, Tracer: tel.Providers().TracerProvider, Meter: tel.Providers().MeterProvider, Version: version,
	})
	if err != nil {
		return err
	}
	g.Add(func() error { return c.Run(ctx) }, func(err error) { cancel(err) })
	g.Add(func() error { return offer(ctx, b, c) }, func(err error) { cancel(err) })
	if cfg.HTTP != "" {
		if err := addHTTP(ctx, &g, cfg.HTTP, c, tel); err != nil {
			return err
		}
		log.Info("HTTP API", "address", cfg.HTTP)
	}
	return g.Run() //nolint:wrapcheck // the first actor's error, which says what it was
}

// connect connects to NATS, external or embedded.
func connect(ctx context.Context, cfg config, tel *telemetry.Telemetry) (*bus.Bus, func(), error) {
	log := tel.Logger()
	conn := bus.Config{URL: cfg.NATS, Name: "coordinator " + cfg.Name, Creds: cfg.Creds, User: cfg.User, Password: cfg.Password, CA: cfg.CA, Cert: cfg.Cert, Key: cfg.Key, Logger: log}
	stop := func() {}
	if cfg.NATS == "" {
		server, err := bus.StartServer(bus.ServerConfig{StoreDir: filepath.Join(cfg.Store, "nats"), Listen: cfg.NATSListen, Name: cfg.Name, User: cfg.User, Password: cfg.Password})
		if err != nil {
			return nil, nil, err
		}
		log.Info("embedded NATS", "url", server.URL(), "store", cfg.Store)
		conn.Server, stop = server, server.Stop
	} else {
		// The first connection is tried once, so that a wrong URL is an error;
		// later losses are waited out.
		conn.Patient = false
	}
	b, err := bus.Connect(ctx, conn)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return b, func() { b.Close(); stop() }, nil
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
func addHTTP(ctx context.Context, g *run.Group, addr string, c *coordinator.Coordinator, tel *telemetry.Telemetry) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "listen for HTTP on", Path: addr, Err: err, Hint: "choose another with --http"}
	}
	mux := http.NewServeMux()
	mux.Handle("/", api.Handler(c))
	mux.Handle("GET /metrics", tel.Handler())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	g.Add(func() error { return s.Serve(l) }, func(error) { _ = s.Close() }) // requests are short
	return nil
}
