package worker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// queue is what a worker needs of the cluster: its pool's shards, a place for
// results, and the coordinator. Its methods may be called concurrently. Exactly one
// of Ack, Nak and Term ends a delivery; for one whose lease has lapsed none of them
// is called.
type queue interface {
	// Join binds to the consumer of the worker's pool, and makes it where there is none.
	Join(ctx context.Context, ackWait time.Duration) error
	// Bind binds to that consumer. The error wraps bus.ErrGone if there is none.
	Bind(ctx context.Context) error
	// Next waits at most wait for a shard. It returns nil without an error if none
	// came. The error wraps bus.ErrNoStream if the consumer may be gone: see Bind.
	Next(ctx context.Context, wait time.Duration) (*bus.Delivery, error)
	// Object returns a shard that is stored by reference.
	Object(ctx context.Context, name string) ([]byte, error)
	// Publish stores the failures and then the result. It reports false if the shard
	// had a result already, which then counts.
	Publish(ctx context.Context, p publication) (first bool, err error)

	// InProgress puts the next delivery off, and returns once the server has confirmed it.
	InProgress(ctx context.Context, d *bus.Delivery) error
	// Ack says that the shard has its result.
	Ack(ctx context.Context, d *bus.Delivery) error
	// Nak hands the shard back, to be delivered again after delay.
	Nak(d *bus.Delivery, delay time.Duration) error
	// Term takes the shard out of the queue without a result.
	Term(d *bus.Delivery, reason string) error

	// Send publishes to whoever listens. Nobody confirms it.
	Send(subject string, data []byte) error
	// Request asks the coordinator.
	Request(ctx context.Context, subject string, data []byte) ([]byte, error)
	// Listen calls f with each message of a subject until stop is called.
	Listen(subject string, f func()) (stop func(), err error)
}

// publication is what an attempt stores: its result, and before it the failures,
// since a result that names failures must find them.
type publication struct {
	result   bus.Message
	failures *bus.Message // nil = no entry failed
	object   string       // where failures are stored that are too large for a message
}

// busQueue is the queue on NATS.
type busQueue struct {
	b    *bus.Bus
	name string                   // of the worker's pool
	pool atomic.Pointer[bus.Pool] // replaced by each Bind
}

func newBusQueue(b *bus.Bus, pool string) *busQueue { return &busQueue{b: b, name: pool} }

func (q *busQueue) Join(ctx context.Context, ackWait time.Duration) error {
	if err := q.b.EnsurePool(ctx, protocol.ClassStandard, q.name, ackWait); err != nil {
		return err
	}
	return q.Bind(ctx)
}

func (q *busQueue) Bind(ctx context.Context) error {
	p, err := q.b.Pool(ctx, protocol.ClassStandard, q.name)
	if err == nil {
		q.pool.Store(p)
	}
	return err
}

func (q *busQueue) Next(ctx context.Context, wait time.Duration) (*bus.Delivery, error) {
	p := q.pool.Load()
	if p == nil {
		return nil, fault.New(fault.Internal, "pull from pool %q before it was joined", q.name)
	}
	return p.Next(ctx, wait)
}

func (q *busQueue) Object(ctx context.Context, name string) ([]byte, error) {
	objects, err := q.b.Objects(ctx, protocol.BucketObjects)
	if err != nil {
		return nil, err
	}
	return objects.GetBytes(ctx, name, protocol.MaxRaw)
}

func (q *busQueue) Publish(ctx context.Context, p publication) (bool, error) {
	if p.failures != nil {
		if err := q.storeFailures(ctx, *p.failures, p.object); err != nil {
			return false, err
		}
	}
	return q.b.PublishOnce(ctx, p.result)
}

func (q *busQueue) storeFailures(ctx context.Context, m bus.Message, object string) error {
	if len(m.Data) > q.b.MaxPayload()-protocol.HeaderRoom {
		objects, err := q.b.Objects(ctx, protocol.BucketObjects)
		if err != nil {
			return err
		}
		if err := objects.PutBytes(ctx, object, m.Data); err != nil {
			return err
		}
		m.Header, m.Data = map[string][]string{protocol.HeaderObject: {object}}, nil
	}
	_, err := q.b.Store(ctx, m)
	return err
}

func (q *busQueue) InProgress(ctx context.Context, d *bus.Delivery) error { return d.InProgress(ctx) }
func (q *busQueue) Ack(ctx context.Context, d *bus.Delivery) error        { return d.Ack(ctx) }
func (q *busQueue) Nak(d *bus.Delivery, delay time.Duration) error        { return d.Nak(delay) }
func (q *busQueue) Term(d *bus.Delivery, reason string) error             { return d.Term(reason) }
func (q *busQueue) Send(subject string, data []byte) error                { return q.b.Send(subject, data) }

func (q *busQueue) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	return q.b.Request(ctx, subject, data)
}

func (q *busQueue) Listen(subject string, f func()) (func(), error) {
	return q.b.Listen(subject, func(string, []byte) []byte { f(); return nil })
}
