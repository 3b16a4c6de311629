package worker

import (
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// claim is what a worker that has not joined yet knows of the one that has its
// name. Only the goroutine that sends heartbeats uses it.
type claim struct {
	holder protocol.Holder // as the first refusal told it
	since  time.Duration   // boot time of that refusal
}

// refused decides what a worker that has not joined does about a refusal: it
// returns the error to end with, or nil to ask again. A holder of the name that
// was a process of this host and is dead is replaced. Any other may be dead as
// well, and is waited for until it shows that it lives or its lease has ended.
func (m *member) refused(c *claim, reply protocol.HeartbeatReply) error {
	err := fault.New(fault.Invalid, "the coordinator %s refuses this worker: %s", reply.Leader, reply.Refused)
	h := reply.Holder
	if h == nil {
		return err // another reason, which no waiting mends
	}
	who := host.Identity(h.Process)
	if who.Dead() {
		m.mu.Lock()
		known := m.replaces == h.Instance
		m.replaces = h.Instance
		m.mu.Unlock()
		if !known { // a coordinator that does not know of this refuses once more
			m.log.Info("this worker takes the place of one of its name that is dead", "dead", who)
			m.beatNow()
		}
		return nil
	}
	now := m.now()
	switch {
	case c.holder.Instance != h.Instance:
		*c = claim{holder: *h, since: now}
		m.log.Warn("another worker has this one's name, waiting whether it is alive", "holder", who, "at_most", reply.Timing.Lease)
		return nil
	case !h.Seen.Equal(c.holder.Seen):
		return err // it has reported since
	case now-c.since > reply.Timing.Lease+leaseSlack:
		return err
	}
	return nil
}

// leaseSlack is how long after the end of a lease the coordinator may notice it.
const leaseSlack = 5 * time.Second
