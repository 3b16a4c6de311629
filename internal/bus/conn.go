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
	// Creds is a file with user credentials (JWT and seed); optional. It is read
	// again for each login.
	Creds string
	// NKey is a file with the seed of an nkey, whose public part the server knows;
	// optional. It is read when the connection is first made, and the seed for each
	// login.
	NKey string
	// User and Password, where the URL has none; optional.
	User, Password string
	// CA, Cert and Key are PEM files for TLS; optional. They are read again for
	// each connection.
	CA, Cert, Key string
	// Patient waits for ever for the first connection, and says so: also where the
	// login is refused, since somebody may put that right. Otherwise Connect gives
	// up after Patience. What waiting cannot mend, such as a URL that is none or a
	// file that does not exist, is an error in any case.
	Patient  bool
	Patience time.Duration // default 4 s
	Logger   *slog.Logger  // default: silent
}

// Bus is a connection to NATS. Its methods may be called concurrently.
type Bus struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger
	url string // without secrets

	closed chan struct{} // closed when there will be no connection any more

	mu      sync.Mutex    // guards what follows
	lost    chan struct{} // closed when the connection is; then there is a new one
	closing bool          // by Close
	err     error         // why it was closed, unless by Close
	refused time.Time     // when it was last said that logins are refused
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

// noteClosed notes that the connection is closed for good.
func (b *Bus) noteClosed(nc *nats.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closed:
		return
	default:
	}
	if !b.closing {
		err := nc.LastError()
		if err == nil {
			err = nats.ErrConnectionClosed
		}
		b.err = &fault.Error{Kind: fault.Transient, Op: "stay connected to NATS at", Path: b.url, Err: err, Hint: "start the process again"}
	}
	close(b.closed)
}

// noteError tells what the connection has to report, refused logins once in a while.
func (b *Bus) noteError(subject string, err error) {
	if !loginRefused(err) {
		b.log.Warn("NATS reports an error", "subject", subject, "error", err)
		return
	}
	b.log.Debug("NATS refuses the login", "url", b.url, "error", err)
	b.mu.Lock()
	say := time.Since(b.refused) >= sayEvery
	if say {
		b.refused = time.Now()
	}
	b.mu.Unlock()
	if say {
		b.log.Warn("NATS refuses the login, trying again until it is accepted", "url", b.url, "error", err)
	}
}

// loginRefused reports whether err is an answer to who we say we are.
func loginRefused(err error) bool {
	for _, is := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// Connect connects to NATS. Once connected it reconnects for ever, whatever the
// reason that it lost the connection or cannot get it back.
func Connect(ctx context.Context, cfg Config) (*Bus, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Patience == 0 {
		cfg.Patience = 4 * time.Second
	}
	b := &Bus{log: log, url: Redact(cfg.URL), lost: make(chan struct{}), closed: make(chan struct{})}
	if cfg.Server != nil {
		b.url = "nats://in-process"
	}
	url, opts := b.options(cfg)
	if cfg.NKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKey)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Op: "read the nkey in", Path: cfg.NKey, Err: err, Hint: "name a file with the seed of a user's nkey: it begins with SU"}
		}
		opts = append(opts, nkey)
	}
	nc, err := b.dial(ctx, url, opts, cfg.Patient)
	if err != nil {
		return nil, err
	}
	b.nc = nc
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(10*time.Second))
	if err != nil {
		b.Close()
		return nil, fault.New(fault.Internal, "open JetStream: %w", err)
	}
	b.js = js
	return b, nil
}

// options returns where and how to connect.
func (b *Bus) options(cfg Config) (url string, opts []nats.Option) {
	opts = []nats.Option{
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectBufSize(-1), // an unsent message must fail, not be sent late
		// By default the second refusal of a login closes the connection for good.
		nats.IgnoreAuthErrorAbort(),
		nats.Timeout(min(cfg.Patience, 4*time.Second)),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(5 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.noteLost()
			if err != nil {
				b.log.Warn("connection to NATS lost, reconnecting until it is back", "url", b.url, "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.log.Info("connected to NATS again", "url", Redact(nc.ConnectedUrl()))
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			b.log.Debug("cannot connect to NATS again yet", "url", b.url, "error", err)
		}),
		nats.ClosedHandler(b.noteClosed),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			b.noteError(subject, err)
		}),
	}
	url = cfg.URL
	if cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(cfg.Server.s))
		url = b.url
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
	return url, opts
}

const (
	// dialPause is the time between two attempts at the first connection, and
	// sayEvery how often it is said that they fail.
	dialPause = time.Second
	sayEvery  = time.Minute
)

// dial makes the first connection; patient tries until it stands.
func (b *Bus) dial(ctx context.Context, url string, opts []nats.Option, patient bool) (*nats.Conn, error) {
	var said time.Time
	for {
		nc, err := nats.Connect(url, opts...)
		if err == nil {
			if !said.IsZero() {
				b.log.Info("connected to NATS", "url", Redact(nc.ConnectedUrl()))
			}
			return nc, nil
		}
		err = b.unreachable(err)
		if !patient || (!fault.Is(err, fault.Unavailable) && !loginRefused(err)) {
			return nil, err
		}
		if time.Since(said) >= sayEvery {
			said = time.Now()
			b.log.Warn("cannot connect to NATS, trying again until it works", "error", err)
		}
		if !Sleep(ctx, dialPause) {
			return nil, fault.New(fault.Canceled, "connect to NATS at %s: %w", b.url, context.Cause(ctx))
		}
	}
}

// unreachable is why the first connection cannot be made. What cannot be parsed
// is not repeated: it may hold a password.
func (b *Bus) unreachable(err error) error {
	kind := fault.Unavailable
	hint := "is nats-server running there? name another with --nats URL"
	var bad *neturl.Error
	switch {
	case loginRefused(err):
		kind, hint = fault.Denied, "give user and password in the URL, or --creds FILE"
	case errors.As(err, &bad):
		kind, hint = fault.Invalid, "a URL looks like nats://HOST:4222; write special characters of a password as %XX"
		err = errors.New("this is no URL")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		kind, hint = fault.KindOf(err), "name readable files with --creds, --tls-ca, --tls-cert and --tls-key"
	}
	return &fault.Error{Kind: kind, Op: "connect to NATS at", Path: b.url, Err: err, Hint: hint}
}

// MaxPayload is the largest message that the server takes, in bytes.
func (b *Bus) MaxPayload() int { return int(b.nc.MaxPayload()) }

// Connected reports whether the connection stands now.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Closed is closed when there is no connection and will be none; Err says why.
func (b *Bus) Closed() <-chan struct{} { return b.closed }

// Err returns why the connection was closed for good, once Closed is closed: nil
// after Close.
func (b *Bus) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Close flushes what is under way and closes the connection.
func (b *Bus) Close() {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	if err := b.nc.FlushTimeout(2 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		b.log.Debug("flush before closing", "error", err)
	}
	b.nc.Close()
}
