package clustertest

import (
	"testing"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// dropConsumer deletes the consumer of the default pool.
func (c *Cluster) dropConsumer(t *testing.T) {
	t.Helper()
	c.drop(t, "CONSUMER.DELETE."+protocol.StreamShards+"."+protocol.PoolConsumer(protocol.ClassStandard, client.DefaultPool))
}

func (c *Cluster) drop(t *testing.T, what string) {
	t.Helper()
	b := c.connect("vandal")
	t.Cleanup(b.Close)
	if _, err := b.Request(t.Context(), "$JS.API."+what, nil); err != nil {
		t.Fatal(err)
	}
}

// TestConsumerThatIsDeletedIsMadeAnew while a worker waits for shards, and while it
// executes some. The job says what is missing, and goes on by itself.
func TestConsumerThatIsDeletedIsMadeAnew(t *testing.T) {
	t.Run("while a worker waits", func(t *testing.T) {
		t.Parallel()
		c := New(t, Timing())
		c.StartWorker("w")
		c.dropConsumer(t)
		src, dst := roots(t, 51, 300)
		whole(t, c.Wait(c.Submit(src, dst, small)), src, dst)
	})
	t.Run("while a job runs", func(t *testing.T) {
		t.Parallel()
		c := New(t, Timing())
		c.StartWorker("a")
		c.StartWorker("b")
		src, dst := roots(t, 52, 1500)
		id := c.Submit(src, dst, small)
		c.Until(id, func(v protocol.JobView) bool { return done(v) > 10 })
		c.dropConsumer(t)
		v := c.Until(id, func(v protocol.JobView) bool { return v.StallCause == "missing" })
		if v.StallCause != "missing" {
			t.Errorf("the job never says what is missing: %s %q", v.State, v.Stalled)
		}
		whole(t, c.Wait(id), src, dst)
	})
}

// TestShardStreamThatIsDeletedIsMadeAnew by the leader, and its consumer by the worker.
func TestShardStreamThatIsDeletedIsMadeAnew(t *testing.T) {
	t.Parallel()
	c := New(t, Timing())
	c.StartWorker("w")
	src, dst := roots(t, 53, 1500)
	id := c.Submit(src, dst, small)
	c.Until(id, func(v protocol.JobView) bool { return done(v) > 10 })
	c.drop(t, "STREAM.DELETE."+protocol.StreamShards)
	whole(t, c.Wait(id), src, dst)
}

// A stream or bucket that is removed while a job runs is made anew, with what the
// leader knows of it. The job is done all the same, and so is the next.
func TestWhatIsRemovedFromNATSIsMadeAnew(t *testing.T) {
	for _, stream := range []string{protocol.StreamResults, protocol.StreamFailures, "KV_" + protocol.BucketJobs, "OBJ_" + protocol.BucketObjects} {
		t.Run(stream, func(t *testing.T) {
			t.Parallel()
			c := New(t, Timing())
			c.StartWorker("w")
			src, dst := roots(t, 54, 1500)
			id := c.Submit(src, dst, small)
			c.Until(id, func(v protocol.JobView) bool { return done(v) > 10 })
			c.drop(t, "STREAM.DELETE."+stream)
			v := c.Wait(id)
			whole(t, v, src, dst)
			src, dst = roots(t, 55, 300)
			whole(t, c.Wait(c.Submit(src, dst, small)), src, dst)
			// The next leader finds what this one has written again.
			c.KillCoordinator()
			c.StartCoordinator()
			if now, err := c.Job(t.Context(), id); err != nil || now.State != v.State || now.Stats != v.Stats {
				t.Errorf("the job is %s: %+v, %v", now.State, now.Stats, err)
			}
		})
	}
}
