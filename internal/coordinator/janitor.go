package coordinator

import (
	"context"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// janitor removes what streams hold of jobs that ended long ago. Their records
// stay until somebody drops them.
func (c *Coordinator) janitor(ctx context.Context) error {
	swept := map[protocol.JobID]bool{}
	for {
		now := c.now()
		var old []protocol.JobID
		c.view(func(t state.Tx) {
			for j := range t.Jobs() {
				if c.isOld(j.Record, now) && !swept[j.Record.ID] {
					old = append(old, j.Record.ID)
				}
			}
		})
		for _, id := range old {
			if err := c.erase(ctx, id, false); err != nil {
				c.log.Warn("what an old job left cannot be removed, trying again later", "job", id, "error", err)
				break
			}
			swept[id] = true
		}
		if err := c.sweepObjects(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("objects that no job needs cannot be removed, trying again later", "error", err)
		}
		if !bus.Sleep(ctx, min(10*time.Minute, c.cfg.Keep)) {
			return context.Cause(ctx)
		}
	}
}
