package clustertest

import (
	"strings"

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
		if _, err := c.Workers(c.t.Context()); err == nil {
			return // this process and the coordinator are connected again
		}
		if c.t.Context().Err() != nil {
			c.t.Fatal("nobody connects to the server that was restarted")
		}
	}
}
