package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// leadWith puts a coordinator of another configuration in the place of the one
// that New has started.
func (c *Cluster) leadWith(name string, change func(*coordinator.Config)) *Standby {
	c.t.Helper()
	c.mu.Lock()
	c.coord.Stop()
	c.mu.Unlock()
	s := c.StartStandby(name, change)
	<-s.Coordinator.Led()
	for {
		if c.leads() == name {
			return s
		}
	}
}

// A queue that has room for a few shards only: the job says so while nobody makes
// room, a leader can still take it over, and then it goes on to its exact end.
func TestAFullQueueStallsAJobAndCursorsStillFit(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	const bytes = 64 << 10
	tiny := func(cfg *coordinator.Config) { cfg.Layout.MaxBytes = bytes }
	first := c.leadWith("first", tiny)
	g := c.haunt(t, 4000)
	id := c.submitFiles(deletes(t, 1, 1000), nil)
	full := func(v protocol.JobView) bool { return v.StallCause == "publish" }
	v := c.Until(id, full)
	if !strings.Contains(v.Stalled, bus.ErrFull.Error()) || v.State != protocol.StateRunning || open(v) == 0 || v.Phases[0].Sealed {
		t.Fatalf("a job whose queue is full: %+v", v)
	}
	at, err := g.b.StreamState(t.Context(), protocol.StreamShards)
	if err != nil || at.MaxBytes != bytes || at.Bytes > bytes*9/10 || at.Bytes < bytes/2 {
		t.Fatalf("the queue is full with %d of %d bytes, %v", at.Bytes, at.MaxBytes, err)
	}
	before, err := g.b.Last(t.Context(), protocol.StreamShards, protocol.CursorSubject(id))
	if err != nil {
		t.Fatal(err)
	}
	first.Kill()
	c.StartStandby("second", tiny)
	// The next leader moves the cursor, though there is no room for a shard.
	for {
		now, err := g.b.Last(t.Context(), protocol.StreamShards, protocol.CursorSubject(id))
		if err != nil {
			t.Fatal(err)
		}
		if now.Sequence > before.Sequence {
			break
		}
	}
	if v := c.Until(id, full); v.Stalled == "" {
		t.Fatalf("the second leader found room: %+v", v)
	}
	c.simulate(t, &Sim{Name: "sim", Slots: 8})
	v = c.Wait(id)
	allDeleted(t, v, 1000)
}

// One shard that is larger than the queue is named with the way out.
func TestAShardThatIsLargerThanTheQueueSaysWhatToDo(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	c.leadWith("tiny", func(cfg *coordinator.Config) { cfg.Layout.MaxBytes = 1000 })
	c.haunt(t, 8)
	id := c.submitFiles(deletes(t, 1, 3000), func(s *protocol.JobSpec) { s.Limits.Entries = 3000 })
	v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == "publish" })
	if !strings.Contains(v.Stalled, "--queue-bytes") {
		t.Errorf("stalled: %q", v.Stalled)
	}
}

func TestShardsThatExceedThePayloadGoByObject(t *testing.T) {
	t.Parallel()
	c := NewOn(t, Timing(), bus.ServerConfig{MaxPayload: 8 << 10})
	src, dst := roots(t, 40, 1500)
	g := c.haunt(t, 8)
	id := c.Submit(src, dst, nil) // all in a few shards, of more bytes than that
	d := g.take()
	if of := d.Header[protocol.HeaderObject]; !slices.Equal(of, []string{protocol.ShardObject(id, protocol.PhaseCopy, 0)}) {
		t.Fatalf("shard 0 was small enough for a message: this shows nothing (%q)", of)
	}
	if err := d.Nak(0); err != nil {
		t.Fatal(err)
	}
	c.StartWorker("w")
	whole(t, c.Wait(id), src, dst)
	objects, err := g.b.Objects(t.Context(), protocol.BucketObjects)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for { // shards go with their results
		left, err := objects.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
	}
}

func TestAJobOutlivesARestartOfNATS(t *testing.T) {
	t.Parallel()
	c := NewOn(t, Timing(), bus.ServerConfig{Listen: "127.0.0.1:0"})
	src, dst := roots(t, 41, 1500)
	c.StartWorker("a")
	c.StartWorker("b")
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 20 })
	c.RestartNATS()
	whole(t, c.Wait(id), src, dst)
}

func TestAnotherWireVersionIsRefusedByName(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	b := c.connect("future")
	defer b.Close()
	data, err := json.Marshal(protocol.Heartbeat{Wire: protocol.WireMajor + 1, Worker: "future", Instance: "1", Pool: client.DefaultPool, Slots: 4})
	if err != nil {
		t.Fatal(err)
	}
	out, err := b.Request(t.Context(), protocol.SubjectHeartbeat, data)
	if err != nil {
		t.Fatal(err)
	}
	var r protocol.HeartbeatReply
	want := fmt.Sprintf("wire version %d, this coordinator %d", protocol.WireMajor+1, protocol.WireMajor)
	if err := json.Unmarshal(out, &r); err != nil || !strings.Contains(r.Refused, want) {
		t.Errorf("worker: %s, %v", out, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = api.Call[protocol.SubmitReply](ctx, b, api.OpSubmit, protocol.SubmitRequest{Wire: protocol.WireMajor + 1, ID: "j"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("client: %v", err)
	}
	if v, err := c.Workers(t.Context()); err != nil || len(v.Workers) != 0 {
		t.Errorf("it has joined all the same: %+v, %v", v, err)
	}
}
