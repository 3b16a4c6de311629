package roster

import (
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Drain has a worker finish what it has, take nothing more, and leave. It hears
// so with the answer to its next heartbeat, and from then on says so itself,
// whoever leads. Repeated, it changes nothing.
func (r *Roster) Drain(name string) error {
	known, pool := false, ""
	r.rec.Update(func(t state.Tx) {
		w, ok := t.Worker(name)
		if known = ok && !w.Lost && !w.Beat.Leaving; known {
			w.Drain = true
			pool = w.Beat.Pool
			t.PutWorker(w)
		}
	})
	if !known {
		return fault.Hinted(fault.NotFound, "list workers with: fsbackup workers", "there is no live worker %q", name)
	}
	r.log.Info("worker is to be drained", "worker", name)
	r.countPools(pool)
	r.askAll()
	return nil
}
