package clustertest

import (
	"context"
	"path/filepath"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/coordinator"
)

// Standby is a coordinator that leads when its turn comes. As in the daemon, its
// API is on NATS from then on only.
type Standby struct {
	*Part
	Name        string
	Coordinator *coordinator.Coordinator
}

// StartStandby starts a coordinator that does not lead yet; change may alter its
// configuration.
func (c *Cluster) StartStandby(name string, change func(*coordinator.Config)) *Standby {
	c.t.Helper()
	b := c.connect(name)
	cfg := coordinator.Config{Name: name, Bus: b, Timing: c.timing, Dir: filepath.Join(c.dir, "coordinator"), Logger: c.log.With("part", name)}
	if change != nil {
		change(&cfg)
	}
	co, err := coordinator.New(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(c.t.Context()))
	p := &Part{bus: b, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = co.Run(ctx)
	}()
	served := make(chan struct{})
	go func() {
		defer close(served)
		select {
		case <-co.Led():
		case <-p.done:
			return
		}
		unserve, err := api.Serve(ctx, b, co)
		if err != nil {
			c.log.Error("serve", "part", name, "error", err)
			return
		}
		<-p.done
		unserve()
	}()
	c.t.Cleanup(func() { p.Stop(); <-served; b.Close() })
	return &Standby{p, name, co}
}
