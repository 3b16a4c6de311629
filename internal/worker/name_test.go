package worker

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// joining runs a worker against a leader that answers its heartbeats with answer,
// one after the other, and returns how it ended, or nil once it has joined.
func joining(t *testing.T, answer func(protocol.Heartbeat) protocol.HeartbeatReply) error {
	t.Helper()
	server, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: server, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.EnsureLayout(t.Context(), bus.Layout{Memory: true}); err != nil {
		t.Fatal(err)
	}
	stop, err := b.Listen(protocol.SubjectHeartbeat, func(_ string, data []byte) []byte {
		var h protocol.Heartbeat
		if err := json.Unmarshal(data, &h); err != nil {
			t.Error(err)
		}
		reply := answer(h)
		reply.Leader = "c1"
		out, err := json.Marshal(reply)
		if err != nil {
			t.Error(err)
		}
		return out
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	eng, err := engine.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = eng.Close() }) // did nothing
	w, err := New(Config{Name: "w", Pool: "p", Allow: []string{"/"}, Bus: b, Engine: eng})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	select {
	case err := <-ended:
		cancel(nil)
		return err
	case <-w.Ready():
		cancel(ErrShutdown)
		if err := <-ended; !errors.Is(err, ErrShutdown) {
			return err
		}
		return nil
	}
}

func accept() protocol.HeartbeatReply {
	return protocol.HeartbeatReply{Wire: protocol.WireMajor, Timing: quick()}
}

func quick() protocol.Timing {
	return protocol.Timing{Heartbeat: 20 * time.Millisecond, Lease: 200 * time.Millisecond, AckWait: 300 * time.Millisecond}
}

func refuse(h protocol.Holder) protocol.HeartbeatReply {
	return protocol.HeartbeatReply{Wire: protocol.WireMajor, Timing: quick(), Refused: "the name is taken on " + host.Identity(h.Process).String(), Holder: &h}
}

// corpse returns what a process of this host was that has ended.
func corpse(t *testing.T) protocol.Process {
	t.Helper()
	id := host.Self()
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	id.PID = cmd.Process.Pid
	return protocol.Process(id)
}

func TestADeadWorkerOfThisHostIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	dead := protocol.Holder{Instance: "old", Process: corpse(t), Seen: time.Now()}
	var replaced []string
	err := joining(t, func(h protocol.Heartbeat) protocol.HeartbeatReply {
		replaced = append(replaced, h.Replaces)
		if h.Replaces != "old" {
			return refuse(dead)
		}
		return accept()
	})
	if err != nil || len(replaced) < 2 || replaced[0] != "" || replaced[1] != "old" {
		t.Errorf("it ended with %v, its heartbeats replaced %q", err, replaced)
	}
}

func TestALiveWorkerKeepsItsName(t *testing.T) {
	t.Parallel()
	elsewhere := protocol.Process{Host: "far", Boot: "another", Namespace: "pid:[1]", PID: 77, Start: 1}
	for what, process := range map[string]protocol.Process{"of another host": elsewhere, "of this host": protocol.Process(host.Self())} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := 0
			err := joining(t, func(h protocol.Heartbeat) protocol.HeartbeatReply {
				if h.Replaces != "" {
					t.Errorf("it replaces %q", h.Replaces)
				}
				if n++; n > 3 { // the holder reports
					return refuse(protocol.Holder{Instance: "other", Process: process, Seen: time.Unix(2, 0)})
				}
				return refuse(protocol.Holder{Instance: "other", Process: process, Seen: time.Unix(1, 0)})
			})
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), host.Identity(process).String()) {
				t.Errorf("it ended with %v", err)
			}
			if n < 4 {
				t.Errorf("it gave up after %d refusals, before the holder showed that it lives", n)
			}
		})
	}
}

func TestAWorkerWaitsForTheEndOfALease(t *testing.T) {
	t.Parallel()
	n := 0
	err := joining(t, func(h protocol.Heartbeat) protocol.HeartbeatReply {
		if n++; n > 4 { // the lease of the one that says nothing has ended
			return accept()
		}
		return refuse(protocol.Holder{Instance: "other", Process: protocol.Process{Host: "far", PID: 77}, Seen: time.Unix(1, 0)})
	})
	if err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestARefusalForAnotherReasonEndsAWorker(t *testing.T) {
	t.Parallel()
	n := 0
	err := joining(t, func(protocol.Heartbeat) protocol.HeartbeatReply {
		n++
		return protocol.HeartbeatReply{Wire: protocol.WireMajor, Timing: quick(), Refused: "another wire version"}
	})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "another wire version") || n != 1 {
		t.Errorf("after %d refusals it ended with %v", n, err)
	}
}
