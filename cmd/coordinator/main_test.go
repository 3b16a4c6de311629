package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/clustertest"
)

// TestMain is also the coordinator that tests start as a process of its own.
func TestMain(m *testing.M) {
	os.Exit(clustertest.Main(m, func() int { return start(os.Args[1:], os.Getenv, os.Stdout, os.Stderr) }))
}

func nats(t *testing.T) *bus.Server {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// The lease is longer than the test may run: waiting for its end does not help.
func TestCoordinatorsOfOneName(t *testing.T) {
	t.Parallel()
	s := nats(t)
	coordinator := func() *clustertest.Process {
		return clustertest.Launch(t, "--nats", s.URL(), "--store", t.TempDir(), "--name", "c1", "--leader-lease", "1h")
	}
	first := coordinator()
	first.Says(t, "msg=leading")
	second := coordinator()
	if code := second.ExitCode(); code != 69 {
		t.Errorf("the second ends with exit code %d", code)
	}
	second.Says(t, `a coordinator named "c1" leads already: host `)
	second.Says(t, fmt.Sprintf("pid %d (give each coordinator its own --name)", first.PID()))
	select {
	case <-first.Ended():
		t.Error("the first has ended")
	default:
	}
	first.Kill()
	coordinator().Says(t, "msg=leading")
}

func TestAnExternalAndAnEmbeddedNATSContradict(t *testing.T) {
	for _, c := range []struct{ env, flag string }{{"FSBACKUP_NATS_URL", "--nats-listen"}, {"FSBACKUP_NATS", "--nats-listen"}, {"FSBACKUP_NATS_LISTEN", "--nats"}} {
		t.Run(c.env, func(t *testing.T) {
			t.Setenv(c.env, "127.0.0.1:4222")
			var out bytes.Buffer
			code := start([]string{c.flag, "127.0.0.1:4223", "--store", t.TempDir()}, os.Getenv, &out, &out)
			if code != 64 || !strings.Contains(out.String(), "--nats (FSBACKUP_NATS_URL)") || !strings.Contains(out.String(), "--nats-listen (FSBACKUP_NATS_LISTEN)") {
				t.Errorf("exit code %d: %s", code, out.String())
			}
		})
	}
}

func TestHealthIsThatOfTheConnection(t *testing.T) {
	t.Parallel()
	s := nats(t)
	c := clustertest.Launch(t, "--nats", s.URL(), "--store", t.TempDir(), "--name", "c1", "--leader-lease", "1h", "--http", "127.0.0.1:0")
	c.Says(t, "msg=leading")
	url := "http://" + c.Address(t, "msg=\"HTTP API\" address=") + "/healthz"
	if code := clustertest.Status(t, url); code != http.StatusOK {
		t.Errorf("the leader answers %d", code)
	}
	s.Stop()
	c.Says(t, "connection to NATS lost")
	if code := clustertest.Status(t, url); code != http.StatusServiceUnavailable { // its lease goes on for an hour
		t.Errorf("without a connection it answers %d", code)
	}
}

func TestAConnectionThatIsClosedForGoodEndsTheProcess(t *testing.T) {
	t.Parallel()
	between := clustertest.NewInterjector(t, nats(t).URL())
	c := clustertest.Launch(t, "--nats", between.URL(), "--store", t.TempDir(), "--name", "c1")
	c.Says(t, "msg=leading")
	between.Say("-ERR 'you are not wanted'")
	if code := c.ExitCode(); code != 75 {
		t.Errorf("it ends with exit code %d", code)
	}
	c.Says(t, "coordinator: stay connected to NATS at")
}
