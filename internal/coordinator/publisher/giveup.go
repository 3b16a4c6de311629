package publisher

import (
	"context"
	"errors"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// GiveUp answers an open shard in the place of workers: every one of its entries
// failed, for one reason. The shard is cut again from its control file, so that
// the entries are known whatever the queue has of it. A shard that is answered
// meanwhile keeps its answer.
func (p *Publisher) GiveUp(ctx context.Context, o state.Open, kind, reason string) error {
	id := protocol.JobID(o.Job)
	p.mu.Lock()
	j := p.jobs[id]
	p.mu.Unlock()
	if j == nil {
		return nil // the job has ended
	}
	m, err := p.cfg.Bus.Last(ctx, protocol.StreamShards, protocol.ShardSubject(protocol.ClassStandard, j.record().Spec.Pool, id, o.Phase, o.N))
	if errors.Is(err, bus.ErrNotFound) {
		return nil // answered, or lost in the queue: reconciling looks at that
	}
	if err != nil {
		return err
	}
	var res *protocol.ResultMsg
	var fails *protocol.FailuresMsg
	err = j.Recut(ctx, o.Phase, []uint64{o.N}, func(cut *shard.Cut) error {
		res, fails = protocol.FailWhole(cut.Msg, reason)
		return nil
	})
	if err != nil {
		if !fault.Passing(err) && !fault.Is(err, fault.Stale) && ctx.Err() == nil {
			p.cfg.CannotGoOn(ctx, id, err)
		}
		return err
	}
	for _, f := range fails.GetFailures() {
		f.Kind = uint32(fault.ParseKind(kind))
	}
	res.Sequence, res.Delivery, res.Worker = m.Sequence, o.Attempts[len(o.Attempts)-1].Delivery, p.cfg.Name
	fails.Sequence, fails.Delivery, fails.Worker = res.Sequence, res.Delivery, res.Worker
	if !p.cfg.Leads() {
		return nil // its shard is the next leader's to judge
	}
	if err := p.publishFailed(ctx, res, fails); err != nil {
		return err
	}
	p.log.Error("shard given up", "job", id, "phase", o.Phase, "shard", o.N, "attempts", len(o.Attempts), "entries", res.GetEntries(), "reason", reason)
	return p.cfg.Bus.Purge(ctx, protocol.StreamShards, m.Subject, 0)
}

// publishFailed stores failures first: a result that names failures must find them.
func (p *Publisher) publishFailed(ctx context.Context, res *protocol.ResultMsg, fails *protocol.FailuresMsg) error {
	id, ph := protocol.JobID(res.GetJob()), protocol.Phase(res.GetPhase())
	data, err := protocol.Encode(protocol.TypeFailures, fails)
	if err != nil {
		return err
	}
	m := bus.Message{Subject: protocol.FailureSubject(id, ph, res.GetN(), res.GetSequence(), res.GetDelivery()), Header: map[string][]string{}, Data: data}
	if len(data) > p.cfg.Bus.MaxPayload()-protocol.HeaderRoom {
		name := protocol.FailureObject(id, ph, res.GetN(), res.GetSequence(), res.GetDelivery())
		if err := p.rec.Objects().PutBytes(ctx, name, data); err != nil {
			return err
		}
		m.Header[protocol.HeaderObject], m.Data = []string{name}, nil
	}
	if _, err := p.cfg.Bus.Store(ctx, m); err != nil {
		return err
	}
	if data, err = protocol.Encode(protocol.TypeResult, res); err != nil {
		return err
	}
	_, err = p.cfg.Bus.PublishOnce(ctx, bus.Message{Subject: protocol.ResultSubject(id, ph, res.GetN()), Data: data})
	return err
}
