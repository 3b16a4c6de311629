package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Layout says how streams and buckets are made.
type Layout struct {
	Replicas int           // of an external cluster; 0 = 1
	Memory   bool          // keep all in memory
	MaxBytes int64         // bound of the shard stream; 0 = 256 MiB
	LeaseTTL time.Duration // of keys in the lease bucket
}

// ShardBytes is the bound of the shard stream.
func (l Layout) ShardBytes() int64 {
	if l.MaxBytes == 0 {
		return 256 << 20
	}
	return l.MaxBytes
}

// EnsureLayout makes the streams and buckets, or brings existing ones up to date.
func (b *Bus) EnsureLayout(ctx context.Context, l Layout) error {
	if l.Replicas == 0 {
		l.Replicas = 1
	}
	l.MaxBytes = l.ShardBytes()
	storage := jetstream.FileStorage
	if l.Memory {
		storage = jetstream.MemoryStorage
	}
	streams := []jetstream.StreamConfig{
		{
			Name: protocol.StreamShards, Subjects: []string{protocol.SubjectsShards, protocol.SubjectsCursors},
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
			MaxMsgsPerSubject: 1, MaxBytes: l.MaxBytes, AllowAtomicPublish: true, AllowDirect: true,
			Description: "shards to do, and how far each job is published",
		},
		{
			Name: protocol.StreamResults, Subjects: []string{protocol.SubjectsResults},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			MaxMsgsPerSubject: 1, MaxBytes: -1, AllowDirect: true,
			Description: "the first result of each shard; a second is refused",
		},
		{
			Name: protocol.StreamFailures, Subjects: []string{protocol.SubjectsFailures},
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxMsgsPerSubject: 1, MaxBytes: -1, AllowDirect: true,
			Description: "failed entries by attempt",
		},
	}
	for _, c := range streams {
		c.Storage, c.Replicas, c.Duplicates = storage, l.Replicas, time.Minute
		if mutant.Off(mutant.Results) && c.Name == protocol.StreamResults {
			c.MaxMsgsPerSubject, c.DiscardNewPerSubject = -1, false
		}
		s, err := b.js.CreateOrUpdateStream(ctx, c)
		if err != nil {
			err = b.layoutError("make stream", c.Name, err)
			if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Exhausted && c.MaxBytes > 0 {
				e.Hint = fmt.Sprintf("NATS sets %d MiB of its store aside for the queue: make room there, or ask for less with --queue-bytes", c.MaxBytes>>20)
			}
			return err
		}
		if c.AllowAtomicPublish && !s.CachedInfo().Config.AllowAtomicPublish {
			return &fault.Error{Kind: fault.Invalid, Op: "make stream", Path: c.Name, Err: errors.New("the server has no atomic batch publish"), Hint: "use nats-server 2.12 or newer"}
		}
	}
	for _, c := range []jetstream.KeyValueConfig{
		{Bucket: protocol.BucketJobs, History: 1, Description: "jobs and their control files"},
		{Bucket: protocol.BucketLease, History: 1, TTL: l.LeaseTTL, Description: "which coordinator leads"},
	} {
		c.Storage, c.Replicas = storage, l.Replicas
		if _, err := b.js.CreateOrUpdateKeyValue(ctx, c); err != nil {
			return b.layoutError("make bucket", c.Bucket, err)
		}
	}
	if _, err := b.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: protocol.BucketObjects, Storage: storage, Replicas: l.Replicas, Description: "uploaded files and large shards"}); err != nil {
		return b.layoutError("make object bucket", protocol.BucketObjects, err)
	}
	return nil
}

func (b *Bus) layoutError(op, name string, err error) error {
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return &fault.Error{Kind: fault.Unavailable, Op: "use NATS at", Path: b.url, Err: err, Hint: "start nats-server with -js"}
	}
	return classify(op, name, err)
}

// EnsurePool makes the consumer of a pool's shards, or brings it up to date. All
// workers call it, with the ackWait that the coordinator gave them.
func (b *Bus) EnsurePool(ctx context.Context, class, pool string, ackWait time.Duration) error {
	name := protocol.PoolConsumer(class, pool)
	cfg := jetstream.ConsumerConfig{
		Durable: name, FilterSubject: protocol.PoolFilter(class, pool),
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
		// The defaults (512 and 1,000) would stop a large pool.
		MaxWaiting: 65_536, MaxAckPending: 100_000,
	}
	// Thousands of workers that join at once change nothing: an update is work for
	// the server also where it is none.
	if c, err := b.js.Consumer(ctx, protocol.StreamShards, name); err == nil {
		if is := c.CachedInfo().Config; is.FilterSubject == cfg.FilterSubject && is.AckWait == cfg.AckWait && is.MaxDeliver == cfg.MaxDeliver &&
			is.MaxWaiting == cfg.MaxWaiting && is.MaxAckPending == cfg.MaxAckPending {
			return nil
		}
	}
	if _, err := b.js.CreateOrUpdateConsumer(ctx, protocol.StreamShards, cfg); err != nil {
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return &fault.Error{Kind: fault.Unavailable, Op: "join pool", Path: pool, Err: err, Hint: "no coordinator has been on this NATS yet; start one"}
		}
		return classify("make consumer", name, err)
	}
	return nil
}

// StreamState is what bounds publishing.
type StreamState struct {
	Messages uint64
	Bytes    uint64
	MaxBytes int64
	FirstSeq uint64
	LastSeq  uint64
}

// StreamState returns the state of a stream.
func (b *Bus) StreamState(ctx context.Context, stream string) (StreamState, error) {
	ctx, release := b.connected(ctx)
	defer release()
	s, err := b.js.Stream(ctx, stream)
	if err = cause(ctx, err); err != nil {
		return StreamState{}, classify("read stream", stream, err)
	}
	i := s.CachedInfo()
	return StreamState{Messages: i.State.Msgs, Bytes: i.State.Bytes, MaxBytes: i.Config.MaxBytes, FirstSeq: i.State.FirstSeq, LastSeq: i.State.LastSeq}, nil
}

// PoolState is what the consumer of a pool's shards says of itself.
type PoolState struct {
	// AckFloor is the stream sequence up to which all is acknowledged: a stored
	// message at or below it is never delivered.
	AckFloor uint64
	// Waiting is how many requests for a shard it has and cannot answer.
	Waiting int
}

// PoolState returns the state of a pool's consumer; that of none is zero.
func (b *Bus) PoolState(ctx context.Context, class, pool string) (PoolState, error) {
	name := protocol.PoolConsumer(class, pool)
	c, err := b.js.Consumer(ctx, protocol.StreamShards, name)
	if err != nil {
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return PoolState{}, nil
		}
		return PoolState{}, classify("read consumer", name, err)
	}
	i := c.CachedInfo()
	return PoolState{AckFloor: i.AckFloor.Stream, Waiting: i.NumWaiting}, nil
}

// MovePool has another server of a NATS cluster lead the consumer of a pool. What
// it knows of deliveries goes with it. A server alone refuses.
func (b *Bus) MovePool(ctx context.Context, class, pool string) error {
	name := protocol.PoolConsumer(class, pool)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.CONSUMER.LEADER.STEPDOWN."+protocol.StreamShards+"."+name, nil)
	if err != nil {
		return classify("move consumer", name, err)
	}
	var reply struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := rawjson.Unmarshal(m.Data, &reply); err != nil {
		return fault.New(fault.Transient, "move consumer %q: answer %q: %w", name, m.Data, err)
	}
	if reply.Error != nil {
		return classify("move consumer", name, reply.Error)
	}
	return nil
}

// Purge removes the messages of a subject pattern, up to and including sequence
// upTo, or all with 0.
func (b *Bus) Purge(ctx context.Context, stream, subject string, upTo uint64) error {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return classify("read stream", stream, err)
	}
	opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(subject)}
	if upTo > 0 {
		opts = append(opts, jetstream.WithPurgeSequence(upTo+1))
	}
	return classify("purge", subject, s.Purge(ctx, opts...))
}

// Last returns the newest message on a subject of a stream, or ErrNotFound.
func (b *Bus) Last(ctx context.Context, stream, subject string) (Stored, error) {
	ctx, release := b.connected(ctx)
	defer release()
	s, err := b.js.Stream(ctx, stream)
	if err = cause(ctx, err); err != nil {
		return Stored{}, classify("read stream", stream, err)
	}
	m, err := s.GetLastMsgForSubject(ctx, subject)
	if err = cause(ctx, err); err != nil {
		return Stored{}, classify("read message", subject, err)
	}
	return Stored{Subject: m.Subject, Header: m.Header, Data: m.Data, Sequence: m.Sequence}, nil
}

// HasFrom reports whether a stream holds a message that matches filter, from
// sequence from on.
func (b *Bus) HasFrom(ctx context.Context, stream, filter string, from uint64) (bool, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return false, classify("read stream", stream, err)
	}
	_, err = s.GetMsg(ctx, max(from, 1), jetstream.WithGetMsgSubject(filter))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, classify("read message", filter, err)
}

// Stored is a message of a stream.
type Stored struct {
	Subject  string
	Header   map[string][]string
	Data     []byte
	Sequence uint64
	// Pending is how many stored messages follow it in its tail; 0 means that
	// the tail has caught up with what was stored when it was sent.
	Pending uint64
}

// Tail calls f with the messages of a stream that match filter, from sequence
// from on, in order and without end. It returns when f or ctx ends it. A lost
// connection is waited out.
func (b *Bus) Tail(ctx context.Context, stream, filter string, from uint64, f func(Stored) error) error {
	for {
		cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverAllPolicy}
		if from > 1 {
			cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, from
		}
		c, err := b.js.OrderedConsumer(ctx, stream, cfg)
		if err == nil {
			err = tail(ctx, c, func(m Stored) error {
				err := f(m)
				from = m.Sequence + 1 // after an interruption
				return err
			})
		}
		if err == nil || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if stop, ok := errors.AsType[stopError](err); ok {
			return stop.error
		}
		b.log.Warn("reading a stream was interrupted, trying again", "stream", stream, "error", err)
		if !Sleep(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
}

// stopError marks an error of the callback, which ends a tail.
type stopError struct{ error }

func tail(ctx context.Context, c jetstream.Consumer, f func(Stored) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	it, err := c.Messages(jetstream.PullMaxMessages(512))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer it.Stop()
	stop := context.AfterFunc(ctx, it.Stop)
	defer stop()
	// The iterator makes its consumer anew by itself when it has missed something,
	// and looks at nothing else meanwhile. Whoever ends the tail is not kept
	// waiting for that.
	type item struct {
		m   jetstream.Msg
		err error
	}
	items := make(chan item)
	go func() {
		for {
			m, err := it.Next()
			select {
			case items <- item{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		var i item
		select {
		case i = <-items:
		case <-ctx.Done():
			return nil
		}
		m, err := i.m, i.err
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("next: %w", err)
		}
		md, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
		if err := f(Stored{Subject: m.Subject(), Header: m.Headers(), Data: m.Data(), Sequence: md.Sequence.Stream, Pending: md.NumPending}); err != nil {
			return stopError{err}
		}
	}
}

// Sleep waits for d or until ctx ends, and reports which: true = d has passed.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
