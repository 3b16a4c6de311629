package bus

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	neturl "net/url"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Config says how to reach NATS.
type Config struct {
	// URL of the servers, comma-separated; ignored with Server.
	URL string
	// Server is an embedded server to connect to without a socket.
	Server *Server
	// Name of the connection in NATS's own monitoring.
	Name string
	// Creds is a file with user credentials (JWT and seed); optional.
	Creds string
	// User and Password, where the URL has none; optional.
	User, Password string
	// CA, Cert and Key are PEM files for TLS; optional.
	CA, Cert, Key string
	// Patient waits for ever for the first connection, and says so; otherwise
	// Connect gives up after Patience. What waiting cannot mend, such as a URL
	// that is none or credentials that are refused, is an error in any case.
	Patient  bool
	Patience time.Duration // default 4 s
	Logger   *slog.Logger  // default: silent
}

// Bus is a connection to NATS. Its methods may be called concurrently.
type Bus struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger
	url string

	mu   sync.Mutex    // guards lost
	lost chan struct{} // closed when the connection is; then there is a new one
}

// errLost ends a wait for an answer that went with its connection.
var errLost = errors.New("the connection was lost before the answer came")

// connected returns a context that ends, by errLost, with the connection that
// stands now: an answer on its way is lost with it.
func (b *Bus) connected(ctx context.Context) (context.Context, func()) {
	b.mu.Lock()
	lost := b.lost
	b.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-lost:
			cancel(errLost)
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

// cause is why a wait under such a context ended with err.
func cause(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errLost) {
		return errLost
	}
	return err
}

func (b *Bus) noteLost() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.lost)
	b.lost = make(chan struct{})
}

// Connect connects to NATS. Once connected it reconnects for ever.
func Connect(ctx context.Context, cfg Config) (*Bus, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Patience == 0 {
		cfg.Patience = 4 * time.Second
	}
	b := &Bus{log: log, url: cfg.URL, lost: make(chan struct{})}
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectBufSize(-1), // an unsent message must fail, not be sent late
		nats.Timeout(min(cfg.Patience, 4*time.Second)),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(5 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.noteLost()
			if err != nil {
				log.Warn("connection to NATS lost, reconnecting until it is back", "url", cfg.URL, "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("connected to NATS again", "url", nc.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS reports an error", "subject", subject, "error", err)
		}),
	}
	url := cfg.URL
	if cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(cfg.Server.s))
		url = "nats://in-process"
		if cfg.User == "" {
			cfg.User, cfg.Password = cfg.Server.user, cfg.Server.password
		}
	}
	if cfg.Creds != "" {
		opts = append(opts, nats.UserCredentials(cfg.Creds))
	}
	if cfg.User != "" {
		opts = append(opts, nats.UserInfo(cfg.User, cfg.Password))
	}
	if cfg.CA != "" {
		opts = append(opts, nats.RootCAs(cfg.CA))
	}
	if cfg.Cert != "" {
		opts = append(opts, nats.ClientCert(cfg.Cert, cfg.Key))
	}
	nc, err := dial(ctx, url, opts, cfg.Patient, log)
	if err != nil {
		return nil, err
	}
	b.nc, b.url = nc, url
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(10*time.Second))
	if err != nil {
		nc.Close()
		return nil, fault.New(fault.Internal, "open JetStream: %w", err)
	}
	b.js = js
	return b, nil
}

const (
	// dialPause is the time between two attempts at the first connection, and
	// sayEvery how often it is said that they fail.
	dialPause = time.Second
	sayEvery  = time.Minute
)

// dial makes the first connection; patient tries until it stands.
func dial(ctx context.Context, url string, opts []nats.Option, patient bool, log *slog.Logger) (*nats.Conn, error) {
	var said time.Time
	for {
		nc, err := nats.Connect(url, opts...)
		if err == nil {
			if !said.IsZero() {
				log.Info("connected to NATS", "url", nc.ConnectedUrlRedacted())
			}
			return nc, nil
		}
		err = unreachable(url, err)
		if !patient || !fault.Is(err, fault.Unavailable) {
			return nil, err
		}
		if time.Since(said) >= sayEvery {
			said = time.Now()
			log.Warn("NATS cannot be reached, waiting for it", "error", err)
		}
		if !Sleep(ctx, dialPause) {
			return nil, fault.New(fault.Canceled, "connect to NATS at %s: %w", url, context.Cause(ctx))
		}
	}
}

func unreachable(url string, err error) error {
	kind := fault.Unavailable
	hint := "is nats-server running there? name another with --nats URL"
	var bad *neturl.Error
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		kind, hint = fault.Denied, "give user and password in the URL, or --creds FILE"
	case errors.As(err, &bad):
		kind, hint = fault.Invalid, "a URL looks like nats://HOST:4222"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		kind, hint = fault.KindOf(err), "name readable files with --creds, --tls-ca, --tls-cert and --tls-key"
	}
	return &fault.Error{Kind: kind, Op: "connect to NATS at", Path: url, Err: err, Hint: hint}
}

// MaxPayload is the largest message that the server takes, in bytes.
func (b *Bus) MaxPayload() int { return int(b.nc.MaxPayload()) }

// Connected reports whether the connection stands now.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Close flushes what is under way and closes the connection.
func (b *Bus) Close() {
	if err := b.nc.FlushTimeout(2 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		b.log.Debug("flush before closing", "error", err)
	}
	b.nc.Close()
}
