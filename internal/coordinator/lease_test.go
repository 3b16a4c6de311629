package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// leaseOf writes the lease of another coordinator named c, and returns its bucket,
// value and revision.
func leaseOf(t *testing.T, b *bus.Bus, process host.Identity, ttl time.Duration) (kv *bus.KV, value []byte, rev uint64) {
	t.Helper()
	if err := b.EnsureLayout(t.Context(), bus.Layout{Memory: true, LeaseTTL: ttl}); err != nil {
		t.Fatal(err)
	}
	kv, err := b.KV(t.Context(), protocol.BucketLease)
	if err != nil {
		t.Fatal(err)
	}
	if value, err = json.Marshal(leaseValue{Name: "c", Instance: "other", Process: process}); err != nil {
		t.Fatal(err)
	}
	if rev, err = kv.Swap(t.Context(), leaseKey, value, 0); err != nil {
		t.Fatal(err)
	}
	return kv, value, rev
}

// elsewhere is a process that nobody on this host can look up.
func elsewhere() host.Identity {
	return host.Identity{Host: "far", Boot: "another", Namespace: "pid:[1]", PID: 77, Start: 1}
}

// starts runs a coordinator named c until it leads (nil) or ends.
func starts(t *testing.T, b *bus.Bus, lease time.Duration) error {
	t.Helper()
	timing := protocol.DefaultTiming()
	timing.Leader = lease
	c, err := New(t.Context(), Config{Name: "c", Bus: b, Layout: bus.Layout{Memory: true}, Dir: t.TempDir(), Timing: timing, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-c.Led():
		cancel(context.Canceled)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}

func TestALeaseOfADeadNamesakeOfThisHostIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	dead := host.Self()
	dead.Start-- // the number is another's now
	leaseOf(t, b, dead, time.Hour)
	if err := starts(t, b, time.Hour); err != nil {
		t.Error(err)
	}
}

func TestALeaseOfThisVeryProcessIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	leaseOf(t, b, host.Self(), time.Hour)
	if err := starts(t, b, time.Hour); err != nil {
		t.Error(err)
	}
}

func TestALiveNamesakeOfThisHostKeepsTheLead(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	alive := host.Self()
	alive.PID, alive.Start = os.Getppid(), 0
	kv, value, _ := leaseOf(t, b, alive, time.Hour)
	if err := starts(t, b, time.Hour); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), alive.String()) {
		t.Errorf("it ended with %v", err)
	}
	if held, _, err := kv.Get(t.Context(), leaseKey); err != nil || string(held) != string(value) {
		t.Errorf("the lease is %s, %v", held, err)
	}
}

func TestANamesakeElsewhereThatRenewsItsLeaseKeepsTheLead(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	kv, value, rev := leaseOf(t, b, elsewhere(), 2*time.Second)
	ended := make(chan error, 1)
	go func() { ended <- starts(t, b, 2*time.Second) }()
	for {
		select {
		case err := <-ended:
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "host far, pid 77") {
				t.Errorf("it ended with %v", err)
			}
			return
		default:
		}
		var err error
		if rev, err = kv.Swap(t.Context(), leaseKey, value, rev); err != nil {
			t.Fatalf("somebody else wrote the lease: %v", err)
		}
	}
}

func TestANamesakeElsewhereThatIsSilentLosesTheLead(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	leaseOf(t, b, elsewhere(), time.Second)
	if err := starts(t, b, time.Second); err != nil {
		t.Error(err)
	}
}

func TestALeaseIsGivenBackByItsHolderOnly(t *testing.T) {
	t.Parallel()
	b := startBus(t)
	ctx := t.Context()
	c, err := New(ctx, Config{Name: "c", Bus: b, Layout: bus.Layout{Memory: true}, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.acquireLease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A renewal whose answer was lost is its own.
	at, err := l.kv.Swap(ctx, leaseKey, l.value, l.rev)
	if err != nil {
		t.Fatal(err)
	}
	l.release()
	if _, _, err := l.kv.Get(ctx, leaseKey); !errors.Is(err, bus.ErrNotFound) {
		t.Fatalf("a released lease: %v", err)
	}
	if l, err = c.acquireLease(ctx); err != nil || l.rev <= at {
		t.Fatalf("lease %+v, %v", l, err)
	}
	// Another took it, as it may once the time is over.
	if _, err := l.kv.Swap(ctx, leaseKey, []byte(`{"name":"d"}`), l.rev); err != nil {
		t.Fatal(err)
	}
	l.release()
	if held, _, err := l.kv.Get(ctx, leaseKey); err != nil || string(held) != `{"name":"d"}` {
		t.Errorf("the lease of another is %s, %v", held, err)
	}
}
