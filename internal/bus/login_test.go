package bus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// logbook keeps what is logged, for tests that wait for it.
type logbook struct {
	mu   sync.Mutex // guards what follows
	buf  bytes.Buffer
	news chan struct{} // closed when buf grows
}

func newLogbook() (*logbook, *slog.Logger) {
	l := &logbook{news: make(chan struct{})}
	return l, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write implements io.Writer.
func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.news)
	l.news = make(chan struct{})
	return l.buf.Write(p)
}

func (l *logbook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// says waits until a text was logged n times.
func (l *logbook) says(t *testing.T, n int, want string) {
	t.Helper()
	for {
		l.mu.Lock()
		text, news := l.buf.String(), l.news
		l.mu.Unlock()
		if strings.Count(text, want) >= n {
			return
		}
		select {
		case <-news:
		case <-t.Context().Done():
			t.Fatalf("%q is not logged %d times:\n%s", want, n, text)
		}
	}
}

// natsServer starts a server that configure has configured, on a free port.
func natsServer(t *testing.T, configure func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, DisableJetStreamBanner: true}
	if configure != nil {
		configure(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server does not start")
	}
	return s
}

// gate lets in who shows what it wants to see, a password or a JWT. It does not look
// into JWTs.
type gate struct{ wants atomic.Pointer[string] }

func newGate(wants string) *gate {
	g := &gate{}
	g.wants.Store(&wants)
	return g
}

// at has a server ask the gate.
func (g *gate) at(o *server.Options) { o.CustomClientAuthentication = g }

// Check implements the server's authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	if o := c.GetOpts(); *g.wants.Load() != o.Password+o.JWT {
		return false
	}
	c.RegisterUser(&server.User{Username: "u"})
	return true
}

// change has the gate want something else, also of who is in. (A server that reloads
// its configuration does the same, but reads counters of connections that are in use
// without a lock.)
func (g *gate) change(t *testing.T, s *server.Server, wants string) {
	t.Helper()
	g.wants.Store(&wants)
	conns, err := s.Connz(&server.ConnzOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conns.Conns {
		_ = s.DisconnectClientByID(c.Cid) // it may have gone by itself
	}
}

func connectTo(t *testing.T, cfg Config) *Bus {
	t.Helper()
	b, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// works asks the server for something.
func works(t *testing.T, b *Bus) {
	t.Helper()
	if err := b.EnsureLayout(t.Context(), Layout{Memory: true}); err != nil {
		t.Error(err)
	}
	select {
	case <-b.Closed():
		t.Error("the connection is closed for good")
	default:
	}
}

func TestAPasswordThatIsWrongForSixSecondsEndsNothing(t *testing.T) {
	t.Parallel()
	g := newGate("right")
	s := natsServer(t, g.at)
	said, log := newLogbook()
	b := connectTo(t, Config{URL: "nats://u:right@" + s.Addr().String(), Name: "test", Logger: log})
	works(t, b)
	g.change(t, s, "other")
	said.says(t, 12, "level=DEBUG msg=\"NATS refuses the login\"") // twice a second
	if b.Connected() {
		t.Error("it says that it is connected")
	}
	g.change(t, s, "right")
	said.says(t, 1, "connected to NATS again")
	works(t, b)
	if n := strings.Count(said.text(), "level=WARN msg=\"NATS refuses the login"); n != 1 {
		t.Errorf("the refusals are told %d times, want once a minute", n)
	}
}

func TestAFirstLoginThatIsRefused(t *testing.T) {
	t.Parallel()
	g := newGate("other")
	s := natsServer(t, g.at)
	url := "nats://u:right@" + s.Addr().String()
	if _, err := Connect(t.Context(), Config{URL: url, Name: "command"}); !fault.Is(err, fault.Denied) {
		t.Errorf("a command is told %v, want that it is denied", err)
	}
	said, log := newLogbook()
	var b *Bus
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		if b, err = Connect(t.Context(), Config{URL: url, Name: "daemon", Patient: true, Logger: log}); err != nil {
			t.Error(err)
		}
	})
	said.says(t, 1, "cannot connect to NATS, trying again until it works")
	g.change(t, s, "right")
	wg.Wait()
	if b != nil {
		works(t, b)
		b.Close()
	}
}

// seed signs what the server of these tests does not verify, and operator is whom
// it would trust: without one it does not look at JWTs.
const (
	seed     = "SUAPQAS6UFLMVAERHMLZKQOHQPJG6OMQPY2J4JVEVGSVVJFBYHWWTCIH7Q"
	operator = "OBGEHY7GLFKGOWD2T4AD5VALO3KI46EOYYPXOFW2RX7VEOHM6STFY3GZ"
)

func writeCreds(t *testing.T, path, jwt string) {
	t.Helper()
	text := "-----BEGIN NATS USER JWT-----\n" + jwt + "\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n" + seed + "\n------END USER NKEY SEED------\n"
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestCredentialsThatAreReplacedAreRead(t *testing.T) {
	t.Parallel()
	g := newGate("first")
	s := natsServer(t, func(o *server.Options) {
		g.at(o)
		o.TrustedKeys = []string{operator}
		o.JetStream = false // wants accounts that operators sign
	})
	creds := filepath.Join(t.TempDir(), "creds")
	writeCreds(t, creds, "first")
	said, log := newLogbook()
	b := connectTo(t, Config{URL: s.ClientURL(), Name: "test", Creds: creds, Logger: log})
	g.change(t, s, "second") // as if the first had expired
	said.says(t, 3, "level=DEBUG msg=\"NATS refuses the login\"")
	if err := os.Remove(creds); err != nil { // for a moment there is none
		t.Fatal(err)
	}
	said.says(t, 1, "no such file")
	writeCreds(t, creds, "second")
	said.says(t, 1, "connected to NATS again")
	if err := b.Send("anything", nil); err != nil {
		t.Error(err)
	}
}

func TestAnNKeyLogsIn(t *testing.T) {
	t.Parallel()
	seedOf := func(name string) (path, public string) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		seed, err := pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, append(seed, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		public, err = pair.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return path, public
	}
	known, public := seedOf("known")
	foreign, _ := seedOf("foreign")
	s := natsServer(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })
	b := connectTo(t, Config{URL: s.ClientURL(), Name: "test", NKey: known})
	if err := b.Send("anything", nil); err != nil {
		t.Error(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]fault.Kind{foreign: fault.Denied, empty: fault.Invalid, empty + "-missing": fault.Invalid} {
		b, err := Connect(t.Context(), Config{URL: s.ClientURL(), Name: "test", NKey: path, Patience: time.Second})
		if err == nil {
			b.Close()
		}
		if !fault.Is(err, kind) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}

func TestAConnectionThatIsClosedForGoodIsTold(t *testing.T) {
	t.Parallel()
	s := natsServer(t, nil)
	b := connectTo(t, Config{URL: s.ClientURL(), Name: "test"})
	// The server closes the connection, and the client library gives it up.
	if err := b.Send(strings.Repeat("x", 8<<10), nil); err != nil {
		t.Fatal(err)
	}
	<-b.Closed()
	if err := b.Err(); !fault.Is(err, fault.Transient) || fault.KindOf(err).ExitCode() != 75 {
		t.Errorf("it was closed for %v", err)
	}
	if b.Connected() {
		t.Error("it says that it is connected")
	}
	other := connectTo(t, Config{URL: s.ClientURL(), Name: "test"})
	other.Close()
	<-other.Closed()
	if err := other.Err(); err != nil {
		t.Errorf("closed by its owner, it tells %v", err)
	}
}

func TestNoSecretIsLoggedOrInAnError(t *testing.T) {
	t.Parallel()
	g := newGate("secret")
	s := natsServer(t, func(o *server.Options) {
		g.at(o)
		o.JetStream = false
	})
	addr := s.Addr().String()
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_ = c.Close()
		}
	}()
	said, log := newLogbook()
	check := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		for ; err != nil; err = errors.Unwrap(err) {
			if text := err.Error(); strings.Contains(text, "secret") {
				t.Errorf("%s: %s", what, text)
			}
		}
	}
	for what, url := range map[string]string{
		"unreachable":        "nats://u:secret@127.0.0.1:1",
		"unreachable list":   "nats://u:secret@127.0.0.1:1,nats://u:secret@127.0.0.1:2",
		"no such host":       "nats://u:secret@host.invalid:4222",
		"refused":            "nats://u:not-the-secret@" + addr,
		"refused token":      "nats://secret@" + addr,
		"not NATS":           "nats://u:secret@" + silent.Addr().String(),
		"port that is none":  "nats://u:secret@127.0.0.1:port",
		"password of a path": "nats://u:secret/a@127.0.0.1:4222",
		"percent":            "nats://u:secret%zz@127.0.0.1:4222",
		"comma":              "nats://u:secret,secret@127.0.0.1:1",
		"blank":              "nats://u:secret @127.0.0.1:1",
		"no scheme":          "u:secret@127.0.0.1:port",
		"control character":  "nats://u:secret\x7f@127.0.0.1:1",
		"mixed schemes":      "ws://u:secret@127.0.0.1:1,nats://u:secret@127.0.0.1:1",
	} {
		_, err := Connect(t.Context(), Config{URL: url, Name: "test", Logger: log, Patience: time.Second})
		check(what, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = Connect(ctx, Config{URL: url, Name: "test", Logger: log, Patience: time.Second, Patient: true})
		check("patient, "+what, err)
	}
	b := connectTo(t, Config{URL: "nats://u:secret@" + addr, Name: "test", Logger: log})
	check("no JetStream", b.EnsureLayout(t.Context(), Layout{}))
	g.change(t, s, "another")
	said.says(t, 1, "connection to NATS lost")
	said.says(t, 2, "level=DEBUG msg=\"NATS refuses the login\"")
	check("disconnected", b.Send(protocol.SubjectPoke, nil))
	s.Shutdown()
	said.says(t, 1, "cannot connect to NATS again yet")
	token := connectTokened(t, log)
	if token == "" {
		t.Error("no URL is logged when a connection is back")
	}
	if strings.Contains(said.text(), "secret") {
		t.Errorf("a secret is logged:\n%s", said.text())
	}
}

// connectTokened loses a connection that a token opens and gets it back, and
// returns what was logged of that.
func connectTokened(t *testing.T, log *slog.Logger) string {
	t.Helper()
	s := natsServer(t, func(o *server.Options) { o.Authorization = "secret" })
	said, mine := newLogbook()
	connectTo(t, Config{URL: "nats://secret@" + s.Addr().String(), Name: "test", Logger: mine})
	conns, err := s.Connz(&server.ConnzOptions{})
	if err != nil || len(conns.Conns) != 1 {
		t.Fatalf("%+v, %v", conns, err)
	}
	if err := s.DisconnectClientByID(conns.Conns[0].Cid); err != nil {
		t.Fatal(err)
	}
	said.says(t, 1, "connected to NATS again\" url=nats://xxxxx@127.0.0.1")
	log.Info("of a token", "log", said.text())
	return said.text()
}
