package clustertest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Interjector stands between NATS and one who connects to it, and can speak in the
// server's place.
type Interjector struct {
	l net.Listener

	mu    sync.Mutex // guards what follows, and whole writes to clients
	conns map[net.Conn]struct{}
}

// NewInterjector listens in front of the server at url. It is closed with the test.
func NewInterjector(t testing.TB, url string) *Interjector {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &Interjector{l: l, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		_ = l.Close() // with all that came through it
		i.mu.Lock()
		defer i.mu.Unlock()
		for c := range i.conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go i.pass(c, strings.TrimPrefix(url, "nats://"))
		}
	}()
	return i
}

// URL is where to connect instead.
func (i *Interjector) URL() string { return "nats://" + i.l.Addr().String() }

// Say tells all who are connected a line of the server's protocol.
func (i *Interjector) Say(line string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := range i.conns {
		_, _ = io.WriteString(c, line+"\r\n") // it may just have gone
	}
}

func (i *Interjector) pass(c net.Conn, target string) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", target) //nolint:noctx // a connection of this host, closed with its peer
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	i.mu.Lock()
	i.conns[c] = struct{}{}
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		delete(i.conns, c)
		i.mu.Unlock()
	}()
	go func() {
		_, _ = io.Copy(s, c) // ends with either
		_ = s.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			i.mu.Lock()
			_, _ = c.Write(buf[:n]) // the next read tells
			i.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}
