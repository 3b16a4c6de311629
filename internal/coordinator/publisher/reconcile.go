package publisher

import (
	"cmp"
	"context"
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
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// A shard can get lost in the queue. A server that was killed may keep an orphan: its
// consumer is past it, so nobody gets it. A worker may remove a shard because it
// believes that the job was cancelled. Somebody may purge the stream. The shard's
// bit is then never set, and the job would wait for ever. Reconciling finds such
// shards and publishes them again.

// Reconcile looks for lost shards until ctx ends, and tells why it ended.
func (p *Publisher) Reconcile(ctx context.Context) error {
	moved := map[string]time.Time{} // by pool: when its consumer got another leader
	for {
		if !bus.Sleep(ctx, p.cfg.Grace/2) {
			return context.Cause(ctx)
		}
		jobs := p.open()
		for _, j := range jobs {
			j.DropLarge(ctx)
		}
		if !p.cfg.Leads() || mutant.Off(mutant.Reconcile) {
			continue
		}
		unheard := p.unheardOf()
		for _, j := range jobs {
			suspects := unheard[j.id]
			if len(suspects) == 0 {
				continue
			}
			switch err := j.publishLost(ctx, suspects); {
			case err == nil, ctx.Err() != nil:
			case fault.Passing(err) || fault.Is(err, fault.Stale):
				p.log.Warn("lost shards cannot be published again, trying again", "job", j.id, "error", err)
			default:
				p.cfg.CannotGoOn(ctx, j.id, err)
			}
			p.unblock(ctx, j.record().Spec.Pool, suspects, moved)
		}
	}
}

// stuckAfter is how long a shard may wait while workers ask for one, in multiples
// of the grace. It is longer than any delay with which shards are handed back.
const stuckAfter = 4

// unblock moves the consumer of a pool to another server of NATS if it delivers
// nothing although workers ask. A server that lost its followers for a while has
// been seen to hold a shard back for minutes. The queue stays as it is.
func (p *Publisher) unblock(ctx context.Context, pool string, suspects []state.Open, moved map[string]time.Time) {
	now := p.cfg.Now()
	stuck := slices.ContainsFunc(suspects, func(o state.Open) bool { return now.Sub(heardOf(o)) > stuckAfter*p.cfg.Grace })
	if !stuck || now.Sub(moved[pool]) < stuckAfter*p.cfg.Grace {
		return
	}
	at, err := p.cfg.Bus.PoolState(ctx, protocol.ClassStandard, pool)
	if err == nil && at.Waiting == 0 {
		return // all are busy
	}
	if err == nil {
		err = p.cfg.Bus.MovePool(ctx, protocol.ClassStandard, pool)
	}
	moved[pool] = now
	p.log.Warn("shards wait and workers ask for them, but NATS delivers none: its consumer gets another leader", "pool", pool, "shards", len(suspects), "waiting", at.Waiting, "ack_floor", at.AckFloor, "error", err)
}

// shardID names a shard of any job.
type shardID struct {
	job   protocol.JobID
	phase protocol.Phase
	n     uint64
}

// unheardOf returns the open shards of running jobs of which nothing was heard
// for the grace period, by job and in the order of their numbers.
func (p *Publisher) unheardOf() map[protocol.JobID][]state.Open {
	now := p.cfg.Now()
	out := map[protocol.JobID][]state.Open{}
	p.rec.View(func(t state.Tx) {
		busy := map[shardID]bool{}
		for w := range t.Workers() {
			if w.Lost {
				continue
			}
			for _, run := range w.Beat.Running {
				busy[shardID{run.Job, run.Phase, run.N}] = true
			}
		}
		for j := range t.JobsIn(protocol.StateRunning, protocol.StateEnding) {
			if j.IsPaused() {
				continue
			}
			for o := range t.OpenOf(j.Record.ID) {
				if j.Publishes(o.Phase) && now.Sub(heardOf(o)) > p.cfg.Grace && !busy[shardID{j.Record.ID, o.Phase, o.N}] {
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

// publishLost publishes those of the suspects again that nobody can get.
func (j *Job) publishLost(ctx context.Context, suspects []state.Open) error {
	lost, err := j.findLost(ctx, suspects)
	if err != nil || len(lost) == 0 {
		return err
	}
	byPhase := map[protocol.Phase][]uint64{}
	for _, id := range slices.SortedFunc(maps.Keys(lost), func(a, b shardID) int { return cmp.Compare(a.n, b.n) }) {
		byPhase[id.phase] = append(byPhase[id.phase], id.n)
	}
	for p, numbers := range byPhase {
		err := j.Recut(ctx, p, numbers, func(cut *shard.Cut) error {
			return j.republish(ctx, cut, lost[shardID{j.id, p, cut.Msg.GetN()}])
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

// findLost returns the suspects that have no result and that the queue will never
// deliver: they are not stored, or stored at or below the ack floor. A message above
// the floor still waits for a worker, or a worker has it. It is never touched.
func (j *Job) findLost(ctx context.Context, suspects []state.Open) (map[shardID]orphan, error) {
	pool := j.record().Spec.Pool
	queued, err := j.p.cfg.Bus.Queued(ctx, protocol.JobShards(j.id))
	if err != nil {
		return nil, err
	}
	at, err := j.p.cfg.Bus.PoolState(ctx, protocol.ClassStandard, pool)
	if err != nil {
		return nil, err
	}
	floor := at.AckFloor
	out := map[shardID]orphan{}
	for _, o := range suspects {
		var found orphan
		subject := protocol.ShardSubject(protocol.ClassStandard, pool, j.id, o.Phase, o.N)
		if queued[subject] {
			if o.Sequence > floor {
				continue
			}
			// Published by the leader before, or an orphan.
			m, err := j.p.cfg.Bus.Last(ctx, protocol.StreamShards, subject)
			switch {
			case errors.Is(err, bus.ErrNotFound):
				continue // answered just now, or lost: then it is not there next time
			case err != nil:
				return nil, err
			}
			found = orphan{m.Sequence, m.Header}
			j.noteSequence(o, m.Sequence)
			if m.Sequence > floor {
				continue
			}
		}
		// A result is stored before its shard is acknowledged, and folded after.
		_, err := j.p.cfg.Bus.Last(ctx, protocol.StreamResults, protocol.ResultSubject(j.id, o.Phase, o.N))
		if err == nil {
			continue
		}
		if !errors.Is(err, bus.ErrNotFound) {
			return nil, err
		}
		out[shardID{j.id, o.Phase, o.N}] = found
	}
	return out, nil
}

// noteSequence notes the sequence of an open shard, of which it was not known.
func (j *Job) noteSequence(o state.Open, sequence uint64) {
	j.p.rec.Update(func(t state.Tx) {
		if cur, ok := t.Open(j.id, o.Phase, o.N); ok && cur.Sequence == o.Sequence {
			cur.Sequence = sequence
			t.PutOpen(cur)
		}
	})
}

// republish publishes a lost shard again, in one batch with the unchanged cursor. The
// server refuses the batch if another coordinator leads, or if the queue no longer
// has what was found there.
func (j *Job) republish(ctx context.Context, cut *shard.Cut, found orphan) error {
	p, n := protocol.Phase(cut.Msg.GetPhase()), cut.Msg.GetN()
	item, err := j.pack(ctx, cut)
	if err == nil {
		err = j.tellLeader(ctx, p, &item)
	}
	if err != nil {
		return err
	}
	free, err := j.p.reserve(ctx, sizeOf(item.msg))
	if err != nil {
		return err
	}
	defer free()
	ctx, span := j.p.tel.startBatch(ctx, j.id, p, 1)
	defer span.End()
	propagation.TraceContext{}.Inject(ctx, protocol.Carrier(item.msg.Header))

	j.storing.Lock()
	defer j.storing.Unlock()
	var o state.Open
	wanted := false
	j.p.rec.View(func(t state.Tx) {
		row, _ := t.Job(j.id)
		if o, wanted = t.Open(j.id, p, n); wanted {
			// What is registered and not stored yet is still to be published.
			wanted = row.Publishes(p) && !t.Phase(j.id, p).Done.Has(n) && j.cursor.Phase == p && n < j.cursor.Next
		}
	})
	if !wanted || !j.p.cfg.Leads() {
		return nil
	}
	if prior := priorAttempts(o, found); prior != "" {
		item.msg.Header[protocol.HeaderPrior] = []string{prior}
	}
	item.msg.Expect = &found.sequence
	data, err := rawjson.Marshal(j.cursor)
	if err != nil {
		return fault.New(fault.Internal, "encode cursor: %w", err)
	}
	_, err = j.commit(ctx, []bus.Message{item.msg}, data)
	if errors.Is(err, bus.ErrConflict) {
		return nil // the queue has changed meanwhile: looked at again in a while
	}
	if err != nil {
		return err
	}
	j.p.log.Warn("shard was lost in the queue and is published again", "job", j.id, "phase", p, "shard", n, "sequence", cmp.Or(found.sequence, o.Sequence), "orphan", found.sequence > 0, "attempts", len(o.Attempts))
	now := j.p.cfg.Now()
	j.p.rec.Update(func(t state.Tx) {
		if o, ok := t.Open(j.id, p, n); ok {
			// Which sequence it has is looked up should it come under suspicion again.
			o.Sequence, o.Published = 0, now
			t.PutOpen(o)
		}
	})
	return nil
}

// maxPrior is how many earlier messages of a shard its header names: the newest.
const maxPrior = 16

// priorAttempts lists the known attempts at earlier messages of a shard, so that the
// next attempt finds their temporary names. The form is sequence.deliveries,
// separated by commas, the newest last.
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
		parts = strings.Split(h[0], ",")
	}
	for _, seq := range slices.Sorted(maps.Keys(most)) {
		// The announcement of the last delivery may be lost.
		parts = append(parts, fmt.Sprintf("%d.%d", seq, most[seq]+1))
	}
	return strings.Join(parts[max(0, len(parts)-maxPrior):], ",")
}
