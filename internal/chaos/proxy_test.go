package chaos

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// wire is a TCP proxy in front of one address. All connections through it share
// its state: how late bytes arrive, and whether they do.
type wire struct {
	l      net.Listener
	target string

	mu      sync.Mutex
	changed chan struct{} // closed when what follows changes
	latency time.Duration
	stalled bool   // bytes are held back, and arrive later
	mute    bool   // so are bytes to the target, while others arrive
	held    []byte // bytes to the target since it is mute
	cut     bool   // connections are refused
	closed  bool
	conns   map[net.Conn]struct{}
}

// newWire listens on a free port. It is closed with the test.
func newWire(t testing.TB, target string, latency time.Duration) *wire {
	t.Helper()
	l := listen(t)
	w := &wire{l: l, target: target, latency: latency, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	go w.accept()
	t.Cleanup(func() {
		w.set(func() { w.closed = true })
		_ = l.Close()
		w.reset()
	})
	return w
}

func (w *wire) addr() string { return w.l.Addr().String() }

// set changes the state and wakes what waits for it.
func (w *wire) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.changed)
	w.changed = make(chan struct{})
}

// reset ends all connections with RST.
func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // only how it ends
		}
		_ = c.Close()
	}
	clear(w.conns)
}

func (w *wire) accept() {
	for {
		c, err := w.l.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		refuse := w.cut || w.closed
		w.mu.Unlock()
		if refuse {
			_ = c.Close()
			continue
		}
		go w.join(c)
	}
}

func (w *wire) join(c net.Conn) {
	d := net.Dialer{Timeout: 5 * time.Second}
	s, err := d.Dial("tcp", w.target)
	if err != nil {
		_ = c.Close()
		return
	}
	w.mu.Lock()
	if w.cut || w.closed {
		_, _ = c.Close(), s.Close()
		w.mu.Unlock()
		return
	}
	w.conns[c], w.conns[s] = struct{}{}, struct{}{}
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.copy(c, s, true) })
	both.Go(func() { w.copy(s, c, false) })
	both.Wait()
	w.mu.Lock()
	delete(w.conns, c)
	delete(w.conns, s)
	w.mu.Unlock()
}

// piece is bytes under way.
type piece struct {
	data []byte
	read time.Time
}

// copy carries bytes one way, out being to the target, until either end is closed.
func (w *wire) copy(from, to net.Conn, out bool) {
	pieces := make(chan piece, 256)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 16<<10)
			n, err := from.Read(buf)
			if n > 0 {
				if out {
					w.note(buf[:n])
				}
				pieces <- piece{buf[:n], time.Now()}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		if !w.hold(p.read, out) {
			break
		}
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close() // which ends the reader
	for range pieces {              // so that it can end
	}
}

// note keeps what is held back of a mute wire.
func (w *wire) note(data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mute {
		w.held = append(w.held, data...)
	}
}

// hold waits until bytes that were read at a time may go on.
func (w *wire) hold(read time.Time, out bool) bool {
	for {
		w.mu.Lock()
		wait, stalled, closed, changed := time.Until(read.Add(w.latency)), w.stalled || w.mute && out, w.closed, w.changed
		w.mu.Unlock()
		switch {
		case closed:
			return false
		case stalled:
			<-changed
		case wait > 0:
			time.Sleep(wait)
		default:
			return true
		}
	}
}

// wires are disturbed together.
type wires []*wire

func (ws wires) each(f func(*wire)) {
	for _, w := range ws {
		f(w)
	}
}

func (ws wires) cut() {
	ws.each(func(w *wire) { w.set(func() { w.cut = true }) })
	ws.reset()
}
func (ws wires) heal() {
	ws.each(func(w *wire) { w.set(func() { w.cut, w.stalled, w.mute, w.held = false, false, false, nil }) })
}
func (ws wires) mute() { ws.each(func(w *wire) { w.set(func() { w.mute = true }) }) }

// holds reports whether a text is among what mute wires hold back.
func (ws wires) holds(text string) bool {
	return slices.ContainsFunc(ws, func(w *wire) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return bytes.Contains(w.held, []byte(text))
	})
}
func (ws wires) stall() { ws.each(func(w *wire) { w.set(func() { w.stalled = true }) }) }
func (ws wires) reset() { ws.each((*wire).reset) }
func (ws wires) slow(latency time.Duration) {
	ws.each(func(w *wire) { w.set(func() { w.latency = latency }) })
}

func TestWireHoldsBackAndCuts(t *testing.T) {
	t.Parallel()
	l := listen(t)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }() // until the other end is closed
		}
	}()
	w := newWire(t, l.Addr().String(), 0)
	dial := func() net.Conn {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", w.addr())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := dial()
	defer c.Close()
	echo := func() error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // fails with the read
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	wires{w}.stall()
	if err := echo(); err == nil {
		t.Fatal("a byte came through a stalled wire")
	}
	wires{w}.heal()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second)) // fails with the read
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("what was held back did not arrive: %v", err)
	}
	wires{w}.mute()
	if err := echo(); err == nil || !(wires{w}).holds("x") {
		t.Fatalf("a mute wire did not hold a byte back: %v", err)
	}
	wires{w}.heal()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second)) // fails with the read
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("what a mute wire held back did not arrive: %v", err)
	}
	wires{w}.cut()
	if err := echo(); err == nil {
		t.Fatal("a byte came through a cut wire")
	}
	c2 := dial()
	defer c2.Close()
	_ = c2.SetReadDeadline(time.Now().Add(5 * time.Second)) // fails with the read
	if _, err := c2.Read(make([]byte, 1)); err == nil {
		t.Fatal("a cut wire took a connection")
	}
}
