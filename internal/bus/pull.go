package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Delivery is one delivery of a shard's message. Exactly one of Ack, Nak and
// Term ends it; a worker whose lease has lapsed calls none of them.
type Delivery struct {
	Subject   string
	Header    map[string][]string
	Data      []byte
	Sequence  uint64
	Delivered uint32

	msg jetstream.Msg
	nc  *nats.Conn
}

// Pool is a source of shards. Its methods may be called concurrently.
type Pool struct {
	c    jetstream.Consumer
	nc   *nats.Conn
	name string
}

// Pool binds to the consumer of a pool's shards, which EnsurePool has made. The error
// wraps ErrNoStream if there is none.
func (b *Bus) Pool(ctx context.Context, class, pool string) (*Pool, error) {
	name := protocol.PoolConsumer(class, pool)
	c, err := b.js.Consumer(ctx, protocol.StreamShards, name)
	if err != nil {
		return nil, classify("bind consumer", name, err)
	}
	return &Pool{c: c, nc: b.nc, name: name}, nil
}

// Next waits at most wait for a shard. It returns nil without an error if none
// came. One request a shard: a standing request for several would let the server
// hand shards to a worker that is busy. The error wraps ErrNoStream if nobody answers
// for the consumer: it was deleted, or its server starts just now.
func (p *Pool) Next(ctx context.Context, wait time.Duration) (*Delivery, error) {
	batch, err := p.c.Fetch(1, jetstream.FetchMaxWait(wait))
	if err != nil {
		return nil, classify("pull from", p.name, err)
	}
	select {
	case m, ok := <-batch.Messages():
		if ok {
			return newDelivery(m, p.nc)
		}
	case <-ctx.Done():
		// The request stands at the server until wait is over: whatever it brings
		// by then must go back.
		go giveBack(batch)
		return nil, fault.New(fault.Canceled, "pull from %s: %w", p.name, context.Cause(ctx))
	}
	if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) && !errors.Is(err, jetstream.ErrNoMessages) {
		return nil, classify("pull from", p.name, err)
	}
	return nil, nil
}

func giveBack(batch jetstream.MessageBatch) {
	for m := range batch.Messages() {
		if err := m.Nak(); err != nil {
			return // the connection is gone, the server will deliver it again by itself
		}
	}
}

func newDelivery(m jetstream.Msg, nc *nats.Conn) (*Delivery, error) {
	md, err := m.Metadata()
	if err != nil {
		return nil, fault.New(fault.Internal, "metadata of %s: %w", m.Subject(), err)
	}
	return &Delivery{
		Subject: m.Subject(), Header: m.Headers(), Data: m.Data(),
		Sequence: md.Sequence.Stream, Delivered: uint32(md.NumDelivered), msg: m, nc: nc,
	}, nil
}

// Ack says that the shard has its result, and waits until the server knows.
func (d *Delivery) Ack(ctx context.Context) error {
	return classify("ack", d.Subject, d.msg.DoubleAck(ctx))
}

// Nak hands the shard back, to be delivered again after delay.
func (d *Delivery) Nak(delay time.Duration) error {
	if delay <= 0 {
		return classify("nak", d.Subject, d.msg.Nak())
	}
	return classify("nak", d.Subject, d.msg.NakWithDelay(delay))
}

// Term takes the shard out of the queue without a result.
func (d *Delivery) Term(reason string) error {
	return classify("term", d.Subject, d.msg.TermWithReason(reason))
}

// InProgress puts the next delivery off by the consumer's AckWait, and waits
// until the server has confirmed it: an unconfirmed signal renews no lease.
func (d *Delivery) InProgress(ctx context.Context) error {
	if _, err := d.nc.RequestWithContext(ctx, d.msg.Reply(), []byte("+WPI")); err != nil {
		return classify("extend", d.Subject, fmt.Errorf("in progress: %w", err))
	}
	return nil
}
