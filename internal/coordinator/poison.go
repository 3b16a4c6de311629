package coordinator

import (
	"context"
	"errors"
	"fmt"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// poisonAfter is how many attempts may die, without an answer or an end, before
// their shard is given up.
const poisonAfter = 3

// watchPoison gives up shards that kill their workers.
func (c *Coordinator) watchPoison(ctx context.Context) {
	now := c.now()
	var bad []state.Open
	c.view(func(t state.Tx) {
		for j := range t.JobsIn(protocol.StateRunning) {
			for o := range t.OpenOf(j.Record.ID) {
				died := 0
				for _, a := range o.Attempts {
					if !a.Ended && now.Sub(a.Started) > c.cfg.Timing.Lease && !running(t, o, a) {
						died++
					}
				}
				if died >= poisonAfter {
					bad = append(bad, o)
				}
			}
		}
	})
	for _, o := range bad {
		if err := c.giveUp(ctx, o); err != nil && ctx.Err() == nil {
			c.log.Warn("a shard that kills its workers cannot be given up, trying again", "job", o.Job, "phase", o.Phase, "shard", o.N, "error", err)
		}
	}
}

// running reports whether a live worker says that it runs the attempt.
func running(t state.Tx, o state.Open, a state.Attempt) bool {
	w, ok := t.Worker(a.Worker)
	if !ok || w.Lost {
		return false
	}
	for _, r := range w.Beat.Running {
		if r.Job == protocol.JobID(o.Job) && r.Phase == o.Phase && r.N == o.N && r.Sequence == a.Sequence && r.Delivery == a.Delivery {
			return true
		}
	}
	return false
}

// giveUp publishes a failed result for all entries of a shard.
func (c *Coordinator) giveUp(ctx context.Context, o state.Open) error {
	id := protocol.JobID(o.Job)
	var j state.Job
	c.view(func(t state.Tx) { j, _ = t.Job(id) })
	m, err := c.cfg.Bus.Last(ctx, protocol.StreamShards, protocol.ShardSubject(protocol.ClassStandard, j.Record.Spec.Pool, id, o.Phase, o.N))
	if errors.Is(err, bus.ErrNotFound) {
		return nil // answered meanwhile
	}
	if err != nil {
		return err
	}
	shard, err := c.decodeShard(ctx, m)
	if err != nil {
		return err
	}
	last := o.Attempts[len(o.Attempts)-1]
	reason := fmt.Sprintf("given up: %d attempts ended neither with a result nor with an error, the last on worker %s", len(o.Attempts), last.Worker)
	res, fails := protocol.FailWhole(shard, reason)
	res.Sequence, res.Delivery, res.Worker = m.Sequence, last.Delivery, c.cfg.Name
	fails.Sequence, fails.Delivery, fails.Worker = res.Sequence, res.Delivery, res.Worker
	if !c.leads() {
		return nil // its shard is the next leader's to judge
	}
	if err := c.publishFailed(ctx, res, fails); err != nil {
		return err
	}
	c.log.Error("shard given up", "job", id, "phase", o.Phase, "shard", o.N, "attempts", len(o.Attempts), "entries", res.GetEntries())
	return c.cfg.Bus.Purge(ctx, protocol.StreamShards, m.Subject, 0)
}

func (c *Coordinator) decodeShard(ctx context.Context, m bus.Stored) (*protocol.ShardMsg, error) {
	data := m.Data
	if name := m.Header[protocol.HeaderObject]; len(name) > 0 {
		var err error
		if data, err = c.objects.GetBytes(ctx, name[0], protocol.MaxRaw); err != nil {
			return nil, err
		}
	}
	shard := &protocol.ShardMsg{}
	return shard, protocol.Decode(data, protocol.TypeShard, shard)
}

func (c *Coordinator) publishFailed(ctx context.Context, res *protocol.ResultMsg, fails *protocol.FailuresMsg) error {
	id, p := protocol.JobID(res.GetJob()), protocol.Phase(res.GetPhase())
	data, err := protocol.Encode(protocol.TypeFailures, fails)
	if err != nil {
		return err
	}
	m := bus.Message{Subject: protocol.FailureSubject(id, p, res.GetN(), res.GetSequence(), res.GetDelivery()), Header: map[string][]string{}, Data: data}
	if len(data) > c.cfg.Bus.MaxPayload()-headerRoom {
		name := protocol.FailureObject(id, p, res.GetN(), res.GetSequence(), res.GetDelivery())
		if err := c.objects.PutBytes(ctx, name, data); err != nil {
			return err
		}
		m.Header[protocol.HeaderObject], m.Data = []string{name}, nil
	}
	if _, err := c.cfg.Bus.Store(ctx, m); err != nil {
		return err
	}
	if data, err = protocol.Encode(protocol.TypeResult, res); err != nil {
		return err
	}
	_, err = c.cfg.Bus.PublishOnce(ctx, bus.Message{Subject: protocol.ResultSubject(id, p, res.GetN()), Data: data})
	return err
}
