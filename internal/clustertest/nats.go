package clustertest

import (
	"context"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
)

// RestartNATS stops the server and starts it again on the same files and the
// same address, which it must have been given (see NewOn), and waits until the
// coordinator answers again.
func (c *Cluster) RestartNATS() {
	c.t.Helper()
	c.nats.Listen = strings.TrimPrefix(c.server.URL(), "nats://")
	c.server.Stop()
	var err error
	if c.server, err = bus.StartServer(c.nats); err != nil {
		c.t.Fatal(err)
	}
	for {
		if c.leads() != "" {
			return // this process and the coordinator are connected again
		}
		if c.t.Context().Err() != nil {
			c.t.Fatal("nobody connects to the server that was restarted")
		}
	}
}

// leads returns who leads, or "" if nobody answers soon: one that is frozen, or
// that has just been stopped, must not hold up a test whose job runs on.
func (c *Cluster) leads() string {
	ctx, cancel := context.WithTimeout(c.t.Context(), 250*time.Millisecond)
	defer cancel()
	v, err := c.Workers(ctx)
	if err != nil {
		bus.Sleep(ctx, 10*time.Millisecond) // nobody may be there to answer at all
		return ""
	}
	return v.Leader
}
