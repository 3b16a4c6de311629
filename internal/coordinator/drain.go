package coordinator

import (
	"context"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Drain has a worker finish what it has, take nothing more, and leave. It hears
// so with the answer to its next heartbeat, and from then on says so itself,
// whoever leads. Repeated, it changes nothing.
func (c *Coordinator) Drain(ctx context.Context, q protocol.WorkerRequest) (protocol.WorkersReply, error) {
	if err := c.ready(); err != nil {
		return protocol.WorkersReply{}, err
	}
	known, pool := false, ""
	c.update(func(t state.Tx) {
		w, ok := t.Worker(q.Worker)
		if known = ok && !w.Lost && !w.Beat.Leaving; known {
			w.Drain = true
			pool = w.Beat.Pool
			t.PutWorker(w)
		}
	})
	if !known {
		return protocol.WorkersReply{}, fault.Hinted(fault.NotFound, "list workers with: fsbackup workers", "there is no live worker %q", q.Worker)
	}
	c.log.Info("worker is to be drained", "worker", q.Worker)
	c.countPools(pool)
	if err := c.cfg.Bus.Send(protocol.SubjectPoke, nil); err != nil {
		c.log.Debug("ask for heartbeats", "error", err) // they come by themselves, a little later
	}
	return c.Workers(ctx, struct{}{})
}
