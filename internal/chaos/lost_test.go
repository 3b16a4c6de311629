package chaos

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// lose takes shards out of the queue behind the coordinator's back, as a server
// that is killed at the wrong moment can: one is acknowledged that nobody has
// executed, and one is purged that waits or that a worker has.
func (x *run) lose(p *progress) {
	x.t.Helper()
	var swallowed, purged string
	x.persist("acknowledge a shard", func(ctx context.Context) error {
		pool, err := x.bus.Pool(ctx, protocol.ClassStandard, client.DefaultPool)
		if err != nil {
			return err
		}
		for range 100 { // workers ask as well
			d, err := pool.Next(ctx, time.Second)
			if err != nil {
				return err
			}
			if d != nil {
				swallowed = d.Subject
				return d.Ack(ctx)
			}
		}
		return nil
	})
	x.persist("purge a shard", func(ctx context.Context) error {
		for range 100 {
			queued, err := x.bus.Queued(ctx, protocol.SubjectsShards)
			if err != nil {
				return err
			}
			if all := slices.Sorted(maps.Keys(queued)); len(all) > 0 {
				purged = all[x.r.IntN(len(all))]
				return x.bus.Purge(ctx, protocol.StreamShards, purged, 0)
			}
		}
		return nil
	})
	if !x.embedded {
		x.persist("have another server lead the pool's consumer", func(ctx context.Context) error {
			return x.bus.MovePool(ctx, protocol.ClassStandard, client.DefaultPool)
		})
	}
	x.t.Logf("after %d shards, %s: %q was acknowledged without a result, %q purged", p.count(), p.phase(), swallowed, purged)
}

// repeat publishes a result of a job once more, as a worker does to whom the
// server's answer was lost.
func (x *run) repeat(p *progress) {
	x.t.Helper()
	var subject string
	read := errors.New("read")
	x.persist("publish a result again", func(ctx context.Context) error {
		var m bus.Message
		err := x.bus.Tail(ctx, protocol.StreamResults, protocol.JobResults(p.id), 1, func(s bus.Stored) error {
			m = bus.Message{Subject: s.Subject, Data: s.Data}
			return read
		})
		if !errors.Is(err, read) {
			return err
		}
		subject = m.Subject
		_, err = x.bus.PublishOnce(ctx, m)
		return err
	})
	x.t.Logf("after %d shards, %s: %q was published again", p.count(), p.phase(), subject)
}

// persist does something in NATS, again after an error.
func (x *run) persist(what string, f func(context.Context) error) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), time.Minute)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if !bus.Sleep(ctx, 200*time.Millisecond) {
			x.t.Fatalf("%s: %v", what, err)
		}
	}
}
