package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// forgetAfter is how long a lost worker stays in the list, for people to see.
const forgetAfter = 10 * time.Minute

// heartbeat answers a worker's heartbeat, unless another may lead: its answer is
// the one that counts.
func (c *Coordinator) heartbeat(data []byte) []byte {
	if !c.leads() {
		return nil
	}
	var h protocol.Heartbeat
	reply := protocol.HeartbeatReply{Wire: protocol.WireMajor, Leader: c.cfg.Name, Timing: c.cfg.Timing}
	switch err := json.Unmarshal(data, &h); {
	case err != nil:
		reply.Refused = "heartbeat cannot be read: " + err.Error()
	case h.Wire != protocol.WireMajor:
		reply.Refused = fmt.Sprintf("worker speaks wire version %d, this coordinator %d; run the same major release on both", h.Wire, protocol.WireMajor)
	default:
		reply.Refused = c.noteWorker(h)
		reply.Peers = max(0, c.ledger.pool(h.Pool).workers-1)
	}
	// Before all jobs are known, one that is not known is no reason to stop it: the
	// worker would take its shards out of the queue.
	if reply.Refused == "" && c.ready() == nil {
		reply.Cancelled = c.toStop(h)
		c.view(func(t state.Tx) {
			w, _ := t.Worker(h.Worker)
			reply.Drain = w.Drain
		})
	}
	out, err := json.Marshal(reply)
	if err != nil {
		c.log.Error("encode heartbeat reply", "error", err)
		return nil
	}
	return out
}

// noteWorker updates the worker's row; it returns why the worker cannot join.
func (c *Coordinator) noteWorker(h protocol.Heartbeat) string {
	if err := protocol.CheckToken("worker name", h.Worker); err != nil {
		return err.Error()
	}
	now := c.now()
	refused, joined, counts, pools := "", false, false, []string{h.Pool}
	c.update(func(t state.Tx) {
		w, known := t.Worker(h.Worker)
		if known && !w.Lost && w.Beat.Instance != h.Instance && !w.Beat.Leaving {
			refused = fmt.Sprintf("a worker named %q is alive on %s; give each worker its own --name", h.Worker, w.Beat.Host)
			return
		}
		joined = !known || w.Lost || w.Beat.Instance != h.Instance
		counts = joined || w.Beat.Slots != h.Slots || w.Beat.Pool != h.Pool || w.Beat.Leaving != h.Leaving
		if known {
			pools = append(pools, w.Beat.Pool)
		}
		// A process that is started anew is not the one that was to leave.
		drain := known && w.Drain && w.Beat.Instance == h.Instance
		t.PutWorker(state.Worker{Name: h.Worker, Beat: h, LastSeen: now, Drain: drain})
	})
	if refused == "" {
		if joined {
			c.log.Info("worker joined", "worker", h.Worker, "pool", h.Pool, "slots", h.Slots, "host", h.Host)
		}
		if h.Leaving {
			c.log.Info("worker leaves", "worker", h.Worker)
		}
		// Thousands of workers report every few seconds: most have no news for
		// anybody.
		if counts {
			c.countPools(pools...)
		}
		for _, id := range h.Seen {
			if r := c.runner(id); r != nil {
				r.poke() // it is being cancelled, and waits for this
			}
		}
	}
	return refused
}

// toStop lists the jobs that this worker must run nothing of.
func (c *Coordinator) toStop(h protocol.Heartbeat) []protocol.JobID {
	var out []protocol.JobID
	c.view(func(t state.Tx) {
		for j := range t.JobsIn(protocol.StateCancelling) {
			out = append(out, j.Record.ID)
		}
		for _, r := range h.Running {
			if j, ok := t.Job(r.Job); (!ok || j.Record.State.Final()) && !slices.Contains(out, r.Job) {
				out = append(out, r.Job)
			}
		}
	})
	return out
}

// countPools gives the ledger what the live workers can do.
func (c *Coordinator) countPools(pools ...string) {
	caps := map[string]capacity{}
	for _, p := range pools {
		caps[p] = capacity{}
	}
	c.view(func(t state.Tx) {
		for w := range t.Workers() {
			if !w.Takes() {
				continue
			}
			k := caps[w.Beat.Pool]
			k.slots += w.Beat.Slots
			k.workers++
			caps[w.Beat.Pool] = k
		}
	})
	for p, k := range caps {
		c.ledger.setPool(p, k)
	}
}

// expireWorkers notices workers whose lease has ended.
func (c *Coordinator) expireWorkers() {
	now := c.now()
	var lost, gone []state.Worker
	c.view(func(t state.Tx) {
		for w := range t.Workers() {
			switch age := now.Sub(w.LastSeen); {
			case !w.Lost && age > c.cfg.Timing.Lease:
				lost = append(lost, w)
			case w.Lost && age > forgetAfter:
				gone = append(gone, w)
			}
		}
	})
	if len(lost)+len(gone) == 0 {
		return
	}
	var pools []string
	c.update(func(t state.Tx) {
		for _, w := range lost {
			// A heartbeat may have come since the view.
			if cur, ok := t.Worker(w.Name); ok && cur.LastSeen.Equal(w.LastSeen) {
				cur.Lost = true
				t.PutWorker(cur)
				pools = append(pools, cur.Beat.Pool)
			}
		}
		for _, w := range gone {
			t.DropWorker(w.Name)
		}
	})
	for _, w := range lost {
		if !w.Beat.Leaving {
			c.log.Warn("worker lost: no heartbeat within its lease", "worker", w.Name, "host", w.Beat.Host, "last_seen", w.LastSeen)
		}
	}
	c.countPools(pools...)
	c.pokeAll()
}

// attempt notes the announced start or end of an attempt.
func (c *Coordinator) attempt(data []byte) {
	var e protocol.AttemptEvent
	if err := json.Unmarshal(data, &e); err != nil {
		c.log.Warn("attempt event cannot be read", "error", err)
		return
	}
	c.update(func(t state.Tx) {
		o, ok := t.Open(e.Job, e.Phase, e.N)
		if !ok {
			return
		}
		o.Attempts = slices.Clone(o.Attempts)
		i := slices.IndexFunc(o.Attempts, func(a state.Attempt) bool {
			return a.Sequence == e.Sequence && a.Delivery == e.Delivery
		})
		if i < 0 {
			o.Attempts = append(o.Attempts, state.Attempt{Sequence: e.Sequence, Delivery: e.Delivery})
			i = len(o.Attempts) - 1
		}
		a := &o.Attempts[i]
		a.Worker = e.Worker
		if e.End {
			a.Ended, a.Reason, a.Kind = true, e.Reason, e.Kind
		} else {
			a.Started = c.now()
		}
		if len(o.Attempts) > 64 {
			o.Attempts = o.Attempts[len(o.Attempts)-64:]
		}
		t.PutOpen(o)
	})
	if e.End {
		c.log.Info("shard handed back", "job", e.Job, "phase", e.Phase, "shard", e.N, "worker", e.Worker, "delivery", e.Delivery, "reason", e.Reason)
	}
}

// rootsState is the mount proof of a job while its first worker makes it.
type rootsState struct {
	writer string
	since  time.Time
	nonce  string
}

// claimRoots tells a worker what it must find in a job's roots, or to be the one
// who leaves it there.
func (c *Coordinator) claimRoots(ctx context.Context, data []byte) []byte {
	if !c.leads() {
		return nil
	}
	var q protocol.RootsClaim
	var reply protocol.RootsReply
	if err := json.Unmarshal(data, &q); err != nil {
		reply.Error = "claim cannot be read: " + err.Error()
	} else if c.ready() != nil {
		reply.Wait = true
	} else {
		reply = c.rootsFor(ctx, q)
	}
	out, err := json.Marshal(reply)
	if err != nil {
		c.log.Error("encode roots reply", "error", err)
		return nil
	}
	return out
}

func (c *Coordinator) rootsFor(ctx context.Context, q protocol.RootsClaim) protocol.RootsReply {
	var j state.Job
	var known bool
	c.view(func(t state.Tx) { j, known = t.Job(q.Job) })
	if !known || j.Record.State.Final() {
		return protocol.RootsReply{Error: fmt.Sprintf("job %s is not running", q.Job)}
	}
	rec := j.Record
	if rec.Spec.VerifyOnly {
		return c.rootsOfReader(ctx, q, rec)
	}
	if rec.NonceReady {
		return protocol.RootsReply{Nonce: rec.Nonce, SourceInode: rec.SourceInode, SourceFS: rec.SourceFS}
	}
	c.mu.Lock()
	s := c.roots[q.Job]
	if s == nil || (s.writer != q.Worker && c.now().Sub(s.since) > c.cfg.Timing.Lease) {
		s = &rootsState{writer: q.Worker, since: c.now(), nonce: newID(c.now())}
		if rec.Nonce != "" {
			s.nonce = rec.Nonce
		}
		c.roots[q.Job] = s
	}
	mine, nonce := s.writer == q.Worker, s.nonce
	c.mu.Unlock()
	switch {
	case !mine:
		return protocol.RootsReply{Wait: true}
	case rec.Nonce == "":
		// Durable before it is written: what is in the destination must be known
		// to whoever cleans up.
		if err := c.save(ctx, q.Job, func(r *protocol.JobRecord) { r.Nonce = nonce }); err != nil {
			return protocol.RootsReply{Error: err.Error()}
		}
	}
	if !q.Ready {
		return protocol.RootsReply{Nonce: nonce, Write: true}
	}
	err := c.save(ctx, q.Job, func(r *protocol.JobRecord) {
		r.NonceReady, r.SourceInode, r.SourceFS = true, q.SourceInode, q.SourceFS
	})
	if err != nil {
		return protocol.RootsReply{Error: err.Error()}
	}
	return protocol.RootsReply{Nonce: nonce, SourceInode: q.SourceInode, SourceFS: q.SourceFS}
}

// rootsOfReader is the mount proof of a job that changes nothing, and so leaves
// no nonce: all workers must see the roots that the first one saw.
func (c *Coordinator) rootsOfReader(ctx context.Context, q protocol.RootsClaim, held protocol.JobRecord) protocol.RootsReply {
	if !held.NonceReady {
		err := c.save(ctx, q.Job, func(r *protocol.JobRecord) {
			if !r.NonceReady { // another worker was not quicker
				r.NonceReady, r.SourceInode, r.SourceFS, r.DestInode, r.DestFS = true, q.SourceInode, q.SourceFS, q.DestInode, q.DestFS
			}
			held = *r
		})
		if err != nil {
			return protocol.RootsReply{Error: err.Error()}
		}
	}
	return protocol.RootsReply{ReadOnly: true, SourceInode: held.SourceInode, SourceFS: held.SourceFS, DestInode: held.DestInode, DestFS: held.DestFS}
}
