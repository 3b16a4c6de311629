package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// ghost is a worker that only says that it is there: the test itself takes
// shards out of the queue, behind the coordinator's back.
type ghost struct {
	t    *testing.T
	b    *bus.Bus
	pool *bus.Pool
}

// haunt announces a worker with so many slots, again and again until the test ends.
func (c *Cluster) haunt(t *testing.T, slots int) *ghost {
	t.Helper()
	g := &ghost{t: t, b: c.connect("ghost")}
	t.Cleanup(g.b.Close)
	if err := g.b.EnsurePool(t.Context(), protocol.ClassStandard, client.DefaultPool, c.timing.AckWait); err != nil {
		t.Fatal(err)
	}
	var err error
	if g.pool, err = g.b.Pool(t.Context(), protocol.ClassStandard, client.DefaultPool); err != nil {
		t.Fatal(err)
	}
	if err := g.beat(slots); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.keep(slots))
	return g
}

func (g *ghost) beat(slots int) error {
	data, err := json.Marshal(protocol.Heartbeat{Wire: protocol.WireMajor, Worker: "ghost", Instance: "1", Pool: client.DefaultPool, Slots: slots, Allow: []string{"/"}})
	if err == nil {
		_, err = g.b.Request(g.t.Context(), protocol.SubjectHeartbeat, data)
	}
	return err
}

// keep says again and again that the ghost is there, until the returned function
// is called.
func (g *ghost) keep(slots int) func() {
	ctx, stop := contextOf(g.t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for bus.Sleep(ctx, Timing().Heartbeat) {
			_ = g.beat(slots) // it may be that nobody leads just now
		}
	}()
	return func() { stop(); <-done }
}

// take waits for the next shard.
func (g *ghost) take() *bus.Delivery {
	g.t.Helper()
	d, err := g.pool.Next(g.t.Context(), 20*time.Second)
	if err != nil || d == nil {
		g.t.Fatalf("no shard is delivered: %v", err)
	}
	return d
}

// swallow acknowledges a shard that has no result.
func (g *ghost) swallow(d *bus.Delivery) {
	g.t.Helper()
	if err := d.Ack(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
}

// swallowOne acknowledges the next shard of the queue, if one comes in time, as a
// worker does that dies before it has published its result.
func swallowOne(ctx context.Context, b *bus.Bus, within time.Duration) error {
	pool, err := b.Pool(ctx, protocol.ClassStandard, client.DefaultPool)
	if err != nil {
		return err
	}
	d, err := pool.Next(ctx, within)
	if err != nil || d == nil {
		return err
	}
	return d.Ack(ctx)
}

func (g *ghost) sequence(subject string) uint64 {
	g.t.Helper()
	m, err := g.b.Last(g.t.Context(), protocol.StreamShards, subject)
	if errors.Is(err, bus.ErrNotFound) {
		return 0
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return m.Sequence
}

func TestAShardThatIsLostInTheQueueIsPublishedAgain(t *testing.T) {
	for name, lose := range map[string]func(*ghost){
		"acked without a result": func(g *ghost) { g.swallow(g.take()) },
		"termed": func(g *ghost) {
			if err := g.take().Term("believed cancelled"); err != nil {
				g.t.Fatal(err)
			}
		},
		"purged while it waits": func(g *ghost) {
			d := g.take()
			if err := errors.Join(g.b.Purge(g.t.Context(), protocol.StreamShards, d.Subject, 0), d.Nak(0)); err != nil {
				g.t.Fatal(err)
			}
		},
		"all shards purged": func(g *ghost) {
			if err := g.b.Purge(g.t.Context(), protocol.StreamShards, protocol.SubjectsShards, 0); err != nil {
				g.t.Fatal(err)
			}
		},
		"the whole stream purged, the cursor with it": func(g *ghost) {
			if err := g.b.Purge(g.t.Context(), protocol.StreamShards, ">", 0); err != nil {
				g.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := roots(t, 20, 200)
			g := c.haunt(t, 8)
			id := c.Submit(src, dst, small)
			c.Until(id, func(v protocol.JobView) bool { return open(v) >= 7 })
			lose(g)
			c.StartWorker("w")
			whole(t, c.Wait(id), src, dst)
		})
	}
}

// pass has the pool's consumer pass all shards by but one, which it acknowledges:
// the others are orphans then, stored at or below its ack floor and delivered to
// nobody, as a server that was killed can keep them.
func (g *ghost) pass(but string, ackWait time.Duration) {
	g.t.Helper()
	name := protocol.PoolConsumer(protocol.ClassStandard, client.DefaultPool)
	q := fmt.Sprintf(`{"stream_name":%q,"action":"update","config":{"durable_name":%q,"filter_subject":%q,"ack_policy":"explicit","ack_wait":%d,"max_deliver":-1,"max_waiting":65536,"max_ack_pending":100000}}`,
		protocol.StreamShards, name, but, ackWait.Nanoseconds())
	reply, err := g.b.Request(g.t.Context(), "$JS.API.CONSUMER.CREATE."+protocol.StreamShards+"."+name+"."+but, []byte(q))
	if err != nil || strings.Contains(string(reply), `"error"`) {
		g.t.Fatalf("change the consumer: %s, %v", reply, err)
	}
	d := g.take()
	if d.Subject != but {
		g.t.Fatalf("%s is delivered, want %s", d.Subject, but)
	}
	g.swallow(d)
	if err := g.b.EnsurePool(g.t.Context(), protocol.ClassStandard, client.DefaultPool, ackWait); err != nil {
		g.t.Fatal(err)
	}
}

func shardSubject(id protocol.JobID, n uint64) string {
	return protocol.ShardSubject(protocol.ClassStandard, client.DefaultPool, id, protocol.PhaseCopy, n)
}

func TestOrphansAreReplaced(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 21, 200)
	g := c.haunt(t, 8)
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return open(v) >= 7 })
	was := g.sequence(shardSubject(id, 0))
	g.pass(shardSubject(id, 6), c.timing.AckWait)
	if now := g.sequence(shardSubject(id, 0)); now == 0 || now != was {
		t.Fatalf("shard 0 has sequence %d, then %d: it is no orphan", was, now)
	}
	if d, err := g.pool.Next(t.Context(), 20*time.Millisecond); d != nil || err != nil {
		t.Fatalf("an orphan is delivered: %+v, %v", d, err)
	}
	c.StartWorker("w")
	whole(t, c.Wait(id), src, dst)
}

// A shard that a worker has, and one that waits, may be so for hours: neither is
// touched by the look into the queue that finds a third one gone.
func TestWhatIsPendingIsNeverReplaced(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	src, dst := roots(t, 22, 200)
	g := c.haunt(t, 8)
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return open(v) >= 7 })
	held, gone := g.take(), g.take()
	was := g.sequence(held.Subject)
	waits := g.sequence(shardSubject(id, 6))
	for range 2 {
		g.swallow(gone)
		for g.sequence(gone.Subject) == 0 { // until it is published again
			if err := held.InProgress(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if now := g.sequence(held.Subject); now != was {
			t.Fatalf("a shard that a worker has was published again: sequence %d, then %d", was, now)
		}
		if now := g.sequence(shardSubject(id, 6)); now != waits {
			t.Fatalf("a shard that waits was published again: sequence %d, then %d", waits, now)
		}
		gone = nil
		for gone == nil { // behind those that waited before it
			d := g.take()
			if d.Subject == held.Subject {
				t.Fatal("what the test holds is delivered to another")
			}
			if n := g.sequence(d.Subject); d.Sequence != n || n <= was {
				t.Fatalf("%s is delivered with sequence %d, it has %d", d.Subject, d.Sequence, n)
			}
			gone = d
		}
		waits = g.sequence(shardSubject(id, 6))
	}
	if err := errors.Join(held.Nak(0), gone.Nak(0)); err != nil {
		t.Fatal(err)
	}
	c.StartWorker("w")
	whole(t, c.Wait(id), src, dst)
}

// The leader that finds them gone need not be the one that published them.
func TestLostShardsAreFoundByTheNextLeader(t *testing.T) {
	t.Parallel()
	for name, purge := range map[string]string{"shards": protocol.SubjectsShards, "cursor and shards": ">", "cursor": protocol.SubjectsCursors} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			src, dst := roots(t, 23, 300)
			w := c.StartWorker("w")
			id := c.Submit(src, dst, small)
			c.Until(id, func(v protocol.JobView) bool { return done(v) > 20 })
			w.Kill()
			c.KillCoordinator()
			b := c.connect("raw")
			defer b.Close()
			if err := b.Purge(t.Context(), protocol.StreamShards, purge, 0); err != nil {
				t.Fatal(err)
			}
			c.StartCoordinator()
			c.StartWorker("w2")
			whole(t, c.Wait(id), src, dst)
		})
	}
}
