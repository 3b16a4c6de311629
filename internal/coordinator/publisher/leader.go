package publisher

import (
	"context"
	"errors"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// leaderTries is how often a result that is known to be there is asked for: a
// server that follows may have it a moment later than the one that stored it.
const leaderTries = 5

// tellLeader puts into the message of a shard that goes on with a hard-link group
// what became of the group's leader. The shard that has it must have its result.
func (j *Job) tellLeader(ctx context.Context, p protocol.Phase, item *cutShard) error {
	if item.to == item.from || p != protocol.PhaseHardlink {
		return nil
	}
	for try := 1; ; try++ {
		m, err := j.p.cfg.Bus.Last(ctx, protocol.StreamResults, protocol.ResultSubject(j.id, p, item.from))
		switch {
		case err == nil:
			protocol.LeaderToHeader(item.msg.Header, leaderOf(m))
			return nil
		case !errors.Is(err, bus.ErrNotFound):
			return err
		case try == leaderTries:
			// Its bit is set, so it was there. Nothing is linked to what may be anything.
			j.p.log.Warn("the result of a hard-link group's first shard is gone, the rest of the group fails", "job", j.id, "phase", p, "shard", item.n, "first", item.from)
			protocol.LeaderToHeader(item.msg.Header, entry.LeaderFailed)
			return nil
		case !bus.Sleep(ctx, records.RetryWait):
			return context.Cause(ctx)
		}
	}
}

// leaderOf reads what a result says of its leader. One that cannot be read counts
// as a failed shard.
func leaderOf(m bus.Stored) entry.Leader {
	var res protocol.ResultMsg
	if err := protocol.Decode(m.Data, protocol.TypeResult, &res); err != nil {
		return entry.LeaderFailed
	}
	return entry.Leader(min(res.GetLeader(), 255))
}
