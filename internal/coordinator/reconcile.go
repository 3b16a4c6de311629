package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A shard can get lost in the queue: a server that was killed keeps an orphan,
// which its consumer is past and nobody gets; a worker takes a shard for a
// cancelled one; somebody purges the stream. Its bit is never set, so the job
// would wait for ever. Reconciling finds such shards and publishes them again.

// grace is how long nothing must have been heard of a shard before it is looked
// for: what a worker has, or the queue delivers again, has been heard of by then.
func (c *Coordinator) grace() time.Duration { return c.cfg.Timing.AckWait + c.cfg.Timing.Lease }

// reconcile looks for lost shards until ctx ends, and tells why it ended.
func (c *Coordinator) reconcile(ctx context.Context) error {
	moved := map[string]time.Time{} // by pool: when its consumer got another leader
	for {
		if !bus.Sleep(ctx, c.grace()/2) {
			return context.Cause(ctx)
		}
		for _, r := range c.allRunners() {
			r.dropLarge(ctx)
		}
		if !c.leads() || mutant.Off(mutant.Reconcile) {
			continue
		}
		for id, suspects := range c.unheardOf() {
			r := c.runner(id)
			if r == nil {
				continue
			}
			if err := r.recover(ctx, suspects); err != nil && ctx.Err() == nil {
				c.log.Warn("lost shards cannot be published again, trying again", "job", id, "error", err)
			}
			c.unblock(ctx, r.job().Record.Spec.Pool, suspects, moved)
		}
	}
}

// stuckAfter is how many times the grace a shard may wait while workers ask for
// one: longer than any delay with which shards are handed back.
const stuckAfter = 4

// unblock has another server of NATS lead the consumer of a pool that delivers
// nothing while workers ask: one that lost its followers for a while has been seen
// to sit on a shard for minutes. What is queued stays as it is.
func (c *Coordinator) unblock(ctx context.Context, pool string, suspects []state.Open, moved map[string]time.Time) {
	now := c.now()
	stuck := slices.ContainsFunc(suspects, func(o state.Open) bool { return now.Sub(heardOf(o)) > stuckAfter*c.grace() })
	if !stuck || now.Sub(moved[pool]) < stuckAfter*c.grace() {
		return
	}
	at, err := c.cfg.Bus.PoolState(ctx, protocol.ClassStandard, pool)
	if err == nil && at.Waiting == 0 {
		return // all are busy
	}
	if err == nil {
		err = c.cfg.Bus.MovePool(ctx, protocol.ClassStandard, pool)
	}
	moved[pool] = now
	c.log.Warn("shards wait and workers ask for them, but NATS delivers none: its consumer gets another leader", "pool", pool, "shards", len(suspects), "waiting", at.Waiting, "ack_floor", at.AckFloor, "error", err)
}

// shardID names a shard of any job.
type shardID struct {
	job   protocol.JobID
	phase protocol.Phase
	n     uint64
}

// unheardOf returns the open shards of running jobs of which nothing was heard
// for the grace period, by job and in the order of their numbers.
func (c *Coordinator) unheardOf() map[protocol.JobID][]state.Open {
	now := c.now()
	out := map[protocol.JobID][]state.Open{}
	c.view(func(t state.Tx) {
		busy := map[shardID]bool{}
		for w := range t.Workers() {
			if w.Lost {
				continue
			}
			for _, run := range w.Beat.Running {
				busy[shardID{run.Job, run.Phase, run.N}] = true
			}
		}
		for j := range t.JobsIn(protocol.StateRunning) {
			if j.Record.Paused {
				continue
			}
			for o := range t.OpenOf(j.Record.ID) {
				if now.Sub(heardOf(o)) > c.grace() && !busy[shardID{j.Record.ID, o.Phase, o.N}] {
					out[j.Record.ID] = append(out[j.Record.ID], o)
				}
			}
			slices.SortFunc(out[j.Record.ID], func(a, b state.Open) int { return cmp.Compare(a.N, b.N) })
		}
	})
	return out
}

// heardOf is when an open shard was published, or an attempt at it last began.
func heardOf(o state.Open) time.Time {
	at := o.Published
	for _, a := range o.Attempts {
		if a.Started.After(at) {
			at = a.Started
		}
	}
	return at
}

// recover publishes those of the suspects again that nobody can get.
func (r *runner) recover(ctx context.Context, suspects []state.Open) error {
	lost, err := r.lost(ctx, suspects)
	if err != nil || len(lost) == 0 {
		return err
	}
	byPhase := map[protocol.Phase][]uint64{}
	for _, id := range slices.SortedFunc(maps.Keys(lost), func(a, b shardID) int { return cmp.Compare(a.n, b.n) }) {
		byPhase[id.phase] = append(byPhase[id.phase], id.n)
	}
	for p, numbers := range byPhase {
		err := r.recut(ctx, p, numbers, func(cut *shard.Cut) error {
			return r.republish(ctx, cut, lost[shardID{r.id, p, cut.Msg.GetN()}])
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// orphan is what the stream has of a lost shard.
type orphan struct {
	sequence uint64 // 0 = nothing
	header   map[string][]string
}

// lost returns those of the suspects that have no result and are not stored, or
// stored at or below the ack floor: what is above it waits for a worker, or for
// one that has it, and is never touched.
func (r *runner) lost(ctx context.Context, suspects []state.Open) (map[shardID]orphan, error) {
	pool := r.job().Record.Spec.Pool
	queued, err := r.c.cfg.Bus.Queued(ctx, protocol.JobShards(r.id))
	if err != nil {
		return nil, err
	}
	at, err := r.c.cfg.Bus.PoolState(ctx, protocol.ClassStandard, pool)
	if err != nil {
		return nil, err
	}
	floor := at.AckFloor
	out := map[shardID]orphan{}
	for _, o := range suspects {
		var found orphan
		subject := protocol.ShardSubject(protocol.ClassStandard, pool, r.id, o.Phase, o.N)
		if queued[subject] {
			if o.Sequence > floor {
				continue
			}
			// Published by the leader before, or an orphan.
			m, err := r.c.cfg.Bus.Last(ctx, protocol.StreamShards, subject)
			switch {
			case errors.Is(err, bus.ErrNotFound):
				continue // answered just now, or lost: then it is not there next time
			case err != nil:
				return nil, err
			}
			found = orphan{m.Sequence, m.Header}
			r.noteSequence(o, m.Sequence)
			if m.Sequence > floor {
				continue
			}
		}
		// A result is stored before its shard is acknowledged, and folded after.
		_, err := r.c.cfg.Bus.Last(ctx, protocol.StreamResults, protocol.ResultSubject(r.id, o.Phase, o.N))
		if err == nil {
			continue
		}
		if !errors.Is(err, bus.ErrNotFound) {
			return nil, err
		}
		out[shardID{r.id, o.Phase, o.N}] = found
	}
	return out, nil
}

// noteSequence notes the sequence of an open shard, of which it was not known.
func (r *runner) noteSequence(o state.Open, sequence uint64) {
	r.c.update(func(t state.Tx) {
		if cur, ok := t.Open(r.id, o.Phase, o.N); ok && cur.Sequence == o.Sequence {
			cur.Sequence = sequence
			t.PutOpen(cur)
		}
	})
}

// republish publishes a shard again in the place of what was found of it, with
// the cursor as it is: it is refused where this coordinator leads no more, and
// where the queue has not what was found.
func (r *runner) republish(ctx context.Context, cut *shard.Cut, found orphan) error {
	p, n := protocol.Phase(cut.Msg.GetPhase()), cut.Msg.GetN()
	item, err := r.pack(ctx, cut)
	if err != nil {
		return err
	}
	free, err := r.c.reserve(ctx, sizeOf(item.msg))
	if err != nil {
		return err
	}
	defer free()
	ctx, span := r.c.tel.startBatch(ctx, r.id, p, 1)
	defer span.End()
	propagation.TraceContext{}.Inject(ctx, protocol.Carrier(item.msg.Header))

	r.storing.Lock()
	defer r.storing.Unlock()
	var o state.Open
	wanted := false
	r.c.view(func(t state.Tx) {
		j, _ := t.Job(r.id)
		if o, wanted = t.Open(r.id, p, n); wanted {
			// What is registered and not stored yet is still to be published.
			wanted = j.Record.State == protocol.StateRunning && !t.Phase(r.id, p).Done.Has(n) && r.cursor.Phase == p && n < r.cursor.Next
		}
	})
	if !wanted || !r.c.leads() {
		return nil
	}
	if prior := priorAttempts(o, found); prior != "" {
		item.msg.Header[protocol.HeaderPrior] = []string{prior}
	}
	item.msg.Expect = &found.sequence
	data, err := json.Marshal(r.cursor)
	if err != nil {
		return fault.New(fault.Internal, "encode cursor: %w", err)
	}
	_, err = r.commit(ctx, []bus.Message{item.msg}, data)
	if errors.Is(err, bus.ErrConflict) {
		return nil // the queue has changed meanwhile: looked at again in a while
	}
	if err != nil {
		return err
	}
	r.log.Warn("shard was lost in the queue and is published again", "job", r.id, "phase", p, "shard", n, "sequence", cmp.Or(found.sequence, o.Sequence), "orphan", found.sequence > 0, "attempts", len(o.Attempts))
	now := r.c.now()
	r.c.update(func(t state.Tx) {
		if o, ok := t.Open(r.id, p, n); ok {
			// Which sequence it has is looked up should it come under suspicion again.
			o.Sequence, o.Published = 0, now
			t.PutOpen(o)
		}
	})
	return nil
}

// priorAttempts lists the attempts at earlier messages of a shard, as far as
// they are known, so that what they left under temporary names is found:
// sequence.deliveries, comma-separated.
func priorAttempts(o state.Open, found orphan) string {
	most := map[uint64]uint32{}
	if found.sequence > 0 {
		most[found.sequence] = 1
	}
	if o.Sequence > 0 {
		most[o.Sequence] = 1
	}
	for _, a := range o.Attempts {
		most[a.Sequence] = max(most[a.Sequence], a.Delivery)
	}
	var parts []string
	if h := found.header[protocol.HeaderPrior]; len(h) > 0 && h[0] != "" {
		parts = append(parts, h[0])
	}
	for _, seq := range slices.Sorted(maps.Keys(most)) {
		// The announcement of the last delivery may be lost.
		parts = append(parts, fmt.Sprintf("%d.%d", seq, most[seq]+1))
	}
	return strings.Join(parts, ",")
}
