package clustertest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// deletes writes n control files of so many deletes each.
func deletes(t testing.TB, n, entries int) client.Files {
	t.Helper()
	dir := t.TempDir()
	var f client.Files
	for i := range n {
		ref, err := DeleteFile(filepath.Join(dir, fmt.Sprintf("delete-%04d.txt", i)), entries)
		if err != nil {
			t.Fatal(err)
		}
		f.Control = append(f.Control, ref)
	}
	return f
}

// submitFiles submits a job of control files that no worker executes.
func (c *Cluster) submitFiles(f client.Files, change func(*protocol.JobSpec)) protocol.JobID {
	c.t.Helper()
	c.mu.Lock()
	c.n++
	spec := protocol.JobSpec{Source: "/s", Destination: fmt.Sprintf("/d%d", c.n)}
	c.mu.Unlock()
	spec.Limits.Entries = 1
	if change != nil {
		change(&spec)
	}
	id := client.NewJobID(time.Now())
	if err := c.Client.Submit(c.t.Context(), id, spec, f, true); err != nil {
		c.t.Fatal(err)
	}
	return id
}

func contextOf(t testing.TB) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	return ctx, cancel
}

// simulate starts a worker that executes nothing and waits until it has joined.
func (c *Cluster) simulate(t testing.TB, s *Sim) {
	t.Helper()
	s.Bus = c.connect(s.Name)
	ctx, stop := contextOf(t)
	joined, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, sync.OnceFunc(func() { close(joined) })) }()
	select {
	case <-joined:
	case err := <-done:
		t.Fatalf("simulated worker %s ended: %v", s.Name, err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("simulated worker %s ended: %v", s.Name, err)
		}
		s.Bus.Close()
	})
}

// allDeleted fails the test unless a job did so many deletes and nothing else.
func allDeleted(t *testing.T, v protocol.JobView, n uint64) {
	t.Helper()
	want := protocol.Stats{FilesToDelete: n, Deleted: n, ShardsRepeated: v.Stats.ShardsRepeated}
	if v.State != protocol.StateCompleted || v.Stats != want {
		t.Errorf("job is %s (%s)\n got %+v\nwant %+v", v.State, v.Reason, v.Stats, want)
	}
}
