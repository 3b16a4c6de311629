package roster

import (
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// forgetAfter is how long a lost worker stays in the list, for people to see.
const forgetAfter = 10 * time.Minute

// Heartbeat answers a worker's heartbeat. It says nothing if another coordinator may
// lead: then that one's answer counts.
func (r *Roster) Heartbeat(data []byte) []byte {
	if !r.cfg.Leads() {
		return nil
	}
	var h protocol.Heartbeat
	reply := protocol.HeartbeatReply{Wire: protocol.WireMajor, Leader: r.cfg.Name, Timing: r.cfg.Timing}
	switch err := rawjson.Unmarshal(data, &h); {
	case err != nil:
		reply.Refused = "heartbeat cannot be read: " + err.Error()
	case h.Wire != protocol.WireMajor:
		reply.Refused = fmt.Sprintf("worker speaks wire version %d, this coordinator %d; run the same major release on both", h.Wire, protocol.WireMajor)
	default:
		reply.Refused, reply.Holder = r.noteWorker(h)
		reply.Peers = max(0, r.workersOf(h.Pool)-1)
	}
	// Before all jobs are known, one that is not known is no reason to stop it: the
	// worker would take its shards out of the queue.
	if reply.Refused == "" && r.cfg.Ready() == nil {
		reply.Cancelled = r.toStop(h)
		r.rec.View(func(t state.Tx) {
			w, _ := t.Worker(h.Worker)
			reply.Drain = w.Drain
		})
	}
	out, err := rawjson.Marshal(reply)
	if err != nil {
		r.log.Error("encode heartbeat reply", "error", err)
		return nil
	}
	return out
}

// noteWorker updates the worker's row; it returns why the worker cannot join, and
// who has its name if that is why.
func (r *Roster) noteWorker(h protocol.Heartbeat) (refused string, holder *protocol.Holder) {
	if err := protocol.CheckToken("worker name", h.Worker); err != nil {
		return err.Error(), nil
	}
	now := r.cfg.Now()
	// Before the row says that it does not run them any more: attempts that neither
	// run nor ended have died.
	for _, e := range h.Ended {
		r.noteAttempt(e)
	}
	joined, counts, pools := false, false, []string{h.Pool}
	r.rec.Update(func(t state.Tx) {
		w, known := t.Worker(h.Worker)
		if known && !w.Lost && w.Beat.Instance != h.Instance && !w.Beat.Leaving && w.Beat.Instance != h.Replaces {
			refused = fmt.Sprintf("a worker named %q is alive on %s; give each worker its own --name", h.Worker, runsOn(w.Beat))
			holder = &protocol.Holder{Instance: w.Beat.Instance, Process: w.Beat.Process, Seen: w.LastSeen}
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
			r.log.Info("worker joined", "worker", h.Worker, "pool", h.Pool, "slots", h.Slots, "host", h.Host)
		}
		if h.Leaving {
			r.log.Info("worker leaves", "worker", h.Worker)
		}
		// Thousands of workers report every few seconds: most have no news for
		// anybody.
		if counts {
			r.countPools(pools...)
		}
		for _, id := range h.Seen {
			r.rec.Poke(id) // it is ending, and waits for this
		}
	}
	return refused, holder
}

// runsOn says for people where a worker runs.
func runsOn(h protocol.Heartbeat) string {
	if h.Process.PID == 0 {
		return h.Host
	}
	return host.Identity(h.Process).String()
}

// toStop lists the jobs that this worker must run nothing of.
func (r *Roster) toStop(h protocol.Heartbeat) []protocol.JobID {
	var out []protocol.JobID
	r.rec.View(func(t state.Tx) {
		for j := range t.JobsIn(protocol.StateEnding) {
			out = append(out, j.Record.ID)
		}
		for _, a := range h.Running {
			if j, ok := t.Job(a.Job); (!ok || j.Record.State.Final()) && !slices.Contains(out, a.Job) {
				out = append(out, a.Job)
			}
		}
	})
	return out
}

// capacity is what the live workers of a pool can do at once.
type capacity struct{ slots, workers int }

// workersOf is how many live workers a pool has.
func (r *Roster) workersOf(pool string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pools[pool]
}

// countPools tells what the live workers of pools can do.
func (r *Roster) countPools(pools ...string) {
	caps := map[string]capacity{}
	for _, p := range pools {
		caps[p] = capacity{}
	}
	r.rec.View(func(t state.Tx) {
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
		r.mu.Lock()
		r.pools[p] = k.workers
		r.mu.Unlock()
		r.cfg.SetPool(p, k.slots, k.workers)
	}
}

// expire notices workers whose lease has ended.
func (r *Roster) expire() {
	now := r.cfg.Now()
	var lost, gone []state.Worker
	r.rec.View(func(t state.Tx) {
		for w := range t.Workers() {
			switch age := now.Sub(w.LastSeen); {
			case !w.Lost && age > r.cfg.Timing.Lease:
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
	r.rec.Update(func(t state.Tx) {
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
			r.log.Warn("worker lost: no heartbeat within its lease", "worker", w.Name, "host", w.Beat.Host, "last_seen", w.LastSeen)
		}
	}
	r.countPools(pools...)
	r.rec.PokeAll()
}
