package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/clustertest"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// TestMain is also the worker that tests start as a process of its own.
func TestMain(m *testing.M) {
	os.Exit(clustertest.Main(m, func() int { return start(os.Args[1:], os.Getenv, os.Stdout, os.Stderr) }))
}

// cluster starts NATS and a coordinator, and returns NATS.
func cluster(t *testing.T, timing protocol.Timing) *bus.Server {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: s, Name: "coordinator", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	c, err := coordinator.New(t.Context(), coordinator.Config{Name: "c1", Bus: b, Layout: bus.Layout{Memory: true}, Dir: filepath.Join(t.TempDir(), "c"), Timing: timing, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the coordinator ended with %v", err)
		}
	})
	select {
	case <-c.Led():
	case err := <-ended:
		t.Fatal(err)
	}
	return s
}

// Its lease is longer than the test may run: waiting for its end does not help.
func TestAKilledWorkerStartsAgainUnderItsName(t *testing.T) {
	t.Parallel()
	s := cluster(t, protocol.Timing{Heartbeat: 100 * time.Millisecond, Lease: time.Hour, AckWait: 2 * time.Hour, Leader: 10 * time.Second})
	args := []string{"--nats", s.URL(), "--name", "w1", "--allow", t.TempDir()}
	first := clustertest.Launch(t, args...)
	first.Says(t, "worker is ready")
	first.Kill()
	clustertest.Launch(t, args...).Says(t, "worker is ready")
}

func TestASecondWorkerOfANameIsRefused(t *testing.T) {
	t.Parallel()
	s := cluster(t, protocol.Timing{Heartbeat: 100 * time.Millisecond, Lease: time.Hour, AckWait: 2 * time.Hour, Leader: 10 * time.Second})
	args := []string{"--nats", s.URL(), "--name", "w1", "--allow", t.TempDir()}
	first := clustertest.Launch(t, args...)
	first.Says(t, "worker is ready")
	second := clustertest.Launch(t, args...)
	if code := second.ExitCode(); code != 64 {
		t.Errorf("it ends with exit code %d", code)
	}
	second.Says(t, `a worker named "w1" is alive on host `)
	second.Says(t, "pid "+strconv.Itoa(first.PID())+";")
	select {
	case <-first.Ended():
		t.Error("the first has ended")
	default:
	}
}

func TestHealthIsThatOfTheConnection(t *testing.T) {
	t.Parallel()
	s := cluster(t, protocol.DefaultTiming())
	w := clustertest.Launch(t, "--nats", s.URL(), "--name", "w1", "--allow", t.TempDir(), "--http", "127.0.0.1:0")
	w.Says(t, "worker is ready")
	url := "http://" + w.Address(t, "msg=HTTP address=") + "/healthz"
	if code := clustertest.Status(t, url); code != http.StatusOK {
		t.Errorf("a worker answers %d", code)
	}
	s.Stop()
	w.Says(t, "connection to NATS lost")
	if code := clustertest.Status(t, url); code != http.StatusServiceUnavailable {
		t.Errorf("without a connection it answers %d", code)
	}
}

func TestAConnectionThatIsClosedForGoodEndsTheProcess(t *testing.T) {
	t.Parallel()
	between := clustertest.NewInterjector(t, cluster(t, protocol.DefaultTiming()).URL())
	w := clustertest.Launch(t, "--nats", between.URL(), "--name", "w1", "--allow", t.TempDir())
	w.Says(t, "worker is ready")
	between.Say("-ERR 'you are not wanted'")
	if code := w.ExitCode(); code != 75 {
		t.Errorf("it ends with exit code %d", code)
	}
	w.Says(t, "worker: stay connected to NATS at")
}
