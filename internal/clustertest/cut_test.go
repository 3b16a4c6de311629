package clustertest

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
	"github.com/fsbackup/fsbackup/internal/worker"
)

// cable is a TCP proxy in front of NATS that can be cut.
type cable struct {
	l net.Listener

	mu    sync.Mutex
	cut   bool              // guarded by mu
	conns map[net.Conn]bool // guarded by mu
}

func newCable(t *testing.T, target string) *cable {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &cable{l: l, conns: map[net.Conn]bool{}}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			far, err := d.DialContext(t.Context(), "tcp", target)
			if err != nil || !w.plug(near, far) {
				_ = near.Close()
			}
		}
	}()
	t.Cleanup(func() { _ = l.Close(); w.set(true) })
	return w
}

// plug has two connections carry each other's bytes, unless the cable is cut.
func (w *cable) plug(a, b net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		_ = b.Close()
		return false
	}
	w.conns[a], w.conns[b] = true, true
	carry := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // until either is closed
		_, _ = to.Close(), from.Close()
	}
	go carry(a, b)
	go carry(b, a)
	return true
}

// set cuts the cable or mends it.
func (w *cable) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for c := range w.conns {
		_ = c.Close()
	}
	clear(w.conns)
}

// TestWorkerThatIsCutOffAgainAndAgainKillsNoShard cuts a worker off three times while
// it is at one long shard, each time until its lease has lapsed. It did not die of
// the shard, and says so when it is back: the shard is not given up.
func TestWorkerThatIsCutOffAgainAndAgainKillsNoShard(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	b := treetest.At(t, src)
	source := treetest.Faulty(t, src)
	b.File("file", strings.Repeat("0123456789", 1000))
	c := NewOn(t, Timing(), bus.ServerConfig{Listen: "127.0.0.1:0"})
	wire := newCable(t, strings.TrimPrefix(c.server.URL(), "nats://"))
	far, err := bus.Connect(t.Context(), bus.Config{URL: "nats://" + wire.l.Addr().String(), Name: "far", Logger: c.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(far.Close)

	const cuts = 4
	reads, goOn := make(chan struct{}, cuts), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	var n atomic.Int64
	id := c.Submit(src, dst, nil)
	source.Inject(func(c treetest.Call) treetest.Fault {
		if c.Op == "read" && n.Add(1) <= cuts {
			reads <- struct{}{}
			<-goOn
		}
		return treetest.Fault{}
	})
	c.StartWorker("w", func(cfg *worker.Config) { cfg.Bus = far })
	is := func(state string, running int) {
		t.Helper()
		for range 2000 {
			r, err := c.Workers(t.Context())
			if err == nil && len(r.Workers) == 1 && r.Workers[0].State == state && len(r.Workers[0].Running) >= running {
				return
			}
			bus.Sleep(t.Context(), 10*time.Millisecond)
		}
		t.Fatalf("the worker is never %s with %d attempts", state, running)
	}
	for range cuts {
		select {
		case <-reads:
		case <-time.After(30 * time.Second):
			t.Fatal("the shard is not executed again")
		}
		is("live", 1) // so that the coordinator knows of the attempt
		wire.set(true)
		is("lost", 0)
		select {
		case goOn <- struct{}{}:
		case <-time.After(30 * time.Second):
			t.Fatal("nothing reads")
		}
		wire.set(false)
		is("live", 0)
	}
	release()
	v := c.Wait(id)
	if v.State != protocol.StateCompleted {
		t.Fatalf("job is %s: %s", v.State, v.Reason)
	}
	whole(t, v, src, dst)
}
