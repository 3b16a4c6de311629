// Command worker executes shards of backup jobs for a cluster.
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
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/cmd/internal/args"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// version is set by the linker.
var version string

type config struct {
	NATS      string           `name:"nats" help:"NATS URL of the cluster." default:"nats://127.0.0.1:4222" env:"FSBACKUP_NATS_URL,FSBACKUP_NATS" placeholder:"URL"`
	Creds     string           `help:"NATS credentials file." env:"FSBACKUP_NATS_CREDS" placeholder:"FILE" type:"path"`
	NKey      string           `name:"nkey" help:"File with the seed of an nkey, to log in to NATS with." env:"FSBACKUP_NATS_NKEY" placeholder:"FILE" type:"path"`
	CA        string           `name:"tls-ca" help:"CA certificates (PEM) to trust for TLS." env:"FSBACKUP_TLS_CA" placeholder:"FILE" type:"path"`
	Cert      string           `name:"tls-cert" help:"Client certificate (PEM)." env:"FSBACKUP_TLS_CERT" placeholder:"FILE" type:"path"`
	Key       string           `name:"tls-key" help:"Key of the client certificate (PEM)." env:"FSBACKUP_TLS_KEY" placeholder:"FILE" type:"path"`
	Name      string           `help:"Name of this worker, unique in the cluster; default: host name." default:"${host}" env:"FSBACKUP_NAME"`
	Pool      string           `help:"Pool: workers that see the same mounts." default:"default" env:"FSBACKUP_POOL"`
	Allow     []string         `help:"Root that jobs may use as source or destination; repeat for more." env:"FSBACKUP_ALLOW" placeholder:"ROOT" sep:":"`
	Slots     int              `help:"Shards at once." default:"4" env:"FSBACKUP_SLOTS"`
	Read      int              `name:"read-threads" help:"Most entries read at once, all jobs together; how many are is found out. 0 = 256." default:"0" env:"FSBACKUP_READ_THREADS" placeholder:"N"`
	Write     int              `name:"write-threads" help:"Most entries written at once, all jobs together. 0 = 256." default:"0" env:"FSBACKUP_WRITE_THREADS" placeholder:"N"`
	Memory    int64            `help:"Bytes of buffers, all jobs together." default:"67108864" env:"FSBACKUP_MEMORY" placeholder:"BYTES"`
	HTTP      string           `name:"http" help:"Address of /metrics and /healthz; empty: none." env:"FSBACKUP_HTTP" placeholder:"HOST:PORT"`
	LogLevel  string           `help:"Log level: debug, info, warn, error." default:"info" env:"FSBACKUP_LOG_LEVEL" enum:"debug,info,warn,error"`
	LogFormat string           `help:"Log format: text, json." default:"text" env:"FSBACKUP_LOG_FORMAT" enum:"text,json"`
	Version   kong.VersionFlag `help:"Show the version."`
}

// Validate, which the parser calls, checks the values and makes roots absolute.
func (c *config) Validate() error {
	var errs []error
	errs = append(errs, protocol.CheckToken("--name", c.Name), protocol.CheckToken("--pool", c.Pool))
	if len(c.Allow) == 0 {
		errs = append(errs, fault.New(fault.Invalid, "--allow ROOT is missing: name the roots that jobs may use"))
	}
	for i, p := range c.Allow {
		abs, err := filepath.Abs(p)
		if err != nil {
			errs = append(errs, &fault.Error{Kind: fault.Invalid, Op: "resolve --allow", Path: p, Err: err})
		}
		c.Allow[i] = abs
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
	parser, err := args.New(&cfg, kong.Name("worker"), kong.Writers(stdout, stderr), kong.Vars{"version": "worker " + version, "host": token(host)},
		kong.Description("Executes shards of backup jobs. It may join and leave a cluster at any time; on SIGTERM it hands back at once what it has. It touches nothing outside its --allow roots."))
	if err != nil {
		fmt.Fprintf(stderr, "worker: %v\n", err)
		return fault.Internal.ExitCode()
	}
	if _, err := parser.Parse(line); err != nil {
		fmt.Fprintf(stderr, "worker: %v (see worker --help)\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return fault.Invalid.ExitCode()
	}
	return fail(stderr, serve(context.Background(), cfg, host, getenv, stderr))
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
	fmt.Fprintf(stderr, "worker: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	return fault.KindOf(err).ExitCode()
}

// serve wires the parts and blocks until a signal or an error. Actors are in
// the group; what must outlive them is closed after it, telemetry last.
func serve(ctx context.Context, cfg config, host string, getenv func(string) string, stderr io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The process is the worker: with umask 0 the engine needs no call to undo it.
	unix.Umask(0)
	tel, err := telemetry.Setup(ctx, telemetry.Config{
		Service: "worker", Version: version, Instance: cfg.Name, LogWriter: stderr, LogFormat: cfg.LogFormat, LogLevel: cfg.LogLevel, Getenv: getenv,
	})
	if err != nil {
		return err
	}
	defer func() { _ = tel.Shutdown(context.WithoutCancel(ctx)) }() // logs what it could not send
	log := tel.Logger()
	b, err := bus.Connect(ctx, bus.Config{URL: cfg.NATS, Name: "worker " + cfg.Name, Creds: cfg.Creds, NKey: cfg.NKey, CA: cfg.CA, Cert: cfg.Cert, Key: cfg.Key, Logger: log, Patient: true})
	if err != nil {
		return err
	}
	defer b.Close()
	eng, err := engine.New(engine.Config{ReadThreads: cfg.Read, WriteThreads: cfg.Write, Memory: cfg.Memory, UmaskZero: true, Logger: log})
	if err != nil {
		return err
	}
	defer func() { _ = eng.Close() }() // holds no data
	w, err := worker.New(worker.Config{
		Name: cfg.Name, Pool: cfg.Pool, Host: host, Version: version, Allow: cfg.Allow, Slots: cfg.Slots, Bus: b, Engine: eng, Logger: log, Record: tel.Providers(),
	})
	if err != nil {
		return err
	}
	var g run.Group
	g.Add(run.SignalHandler(ctx, os.Interrupt, syscall.SIGTERM))
	g.Add(func() error { return w.Run(ctx) }, func(err error) { cancel(worker.ErrShutdown) })
	g.Add(func() error { return closed(ctx, b) }, func(error) { cancel(worker.ErrShutdown) })
	if cfg.HTTP != "" {
		if err := addHTTP(ctx, &g, cfg.HTTP, tel, b); err != nil {
			return err
		}
	}
	return g.Run() //nolint:wrapcheck // the first actor's error, which says what it was
}

// closed waits until the connection is closed for good: a worker without one is of
// no use, and whoever supervises it starts it again.
func closed(ctx context.Context, b *bus.Bus) error {
	select {
	case <-b.Closed():
		return b.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// addHTTP adds the HTTP server to the group.
func addHTTP(ctx context.Context, g *run.Group, addr string, tel *telemetry.Telemetry, b *bus.Bus) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return &fault.Error{Kind: fault.Unavailable, Op: "listen for HTTP on", Path: addr, Err: err, Hint: "choose another with --http"}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", tel.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !b.Connected() {
			http.Error(w, "this worker has no connection to NATS now", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	g.Add(func() error { return s.Serve(l) }, func(error) { _ = s.Close() }) // requests are short
	tel.Logger().Info("HTTP", "address", l.Addr().String())
	return nil
}
