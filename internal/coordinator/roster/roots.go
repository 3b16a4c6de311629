package roster

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// rootsState is the mount proof of a job while its first worker makes it.
type rootsState struct {
	writer string
	since  time.Time
	nonce  string
}

// ClaimRoots tells a worker what it must find in a job's roots. The first worker of a
// job is told to leave it there.
func (r *Roster) ClaimRoots(ctx context.Context, data []byte) []byte {
	if !r.cfg.Leads() {
		return nil
	}
	var q protocol.RootsClaim
	var reply protocol.RootsReply
	if err := rawjson.Unmarshal(data, &q); err != nil {
		reply.Error = "claim cannot be read: " + err.Error()
	} else if r.cfg.Ready() != nil {
		reply.Wait = true
	} else {
		reply = r.rootsFor(ctx, q)
	}
	out, err := rawjson.Marshal(reply)
	if err != nil {
		r.log.Error("encode roots reply", "error", err)
		return nil
	}
	return out
}

func (r *Roster) rootsFor(ctx context.Context, q protocol.RootsClaim) protocol.RootsReply {
	var j state.Job
	var known bool
	r.rec.View(func(t state.Tx) { j, known = t.Job(q.Job) })
	if !known || j.Record.State.Final() {
		return protocol.RootsReply{Error: fmt.Sprintf("job %s is not running", q.Job)}
	}
	rec := j.Record
	if rec.Spec.VerifyOnly {
		return r.rootsOfReader(ctx, q, rec)
	}
	if rec.NonceReady {
		return protocol.RootsReply{Nonce: rec.Nonce, SourceInode: rec.SourceInode, SourceFS: rec.SourceFS, Mounts: rec.Mounts, Abilities: rec.Abilities, Creates: rec.Creates}
	}
	r.mu.Lock()
	s := r.roots[q.Job]
	if s == nil || (s.writer != q.Worker && r.cfg.Now().Sub(s.since) > r.cfg.Timing.Lease) {
		s = &rootsState{writer: q.Worker, since: r.cfg.Now(), nonce: strings.ToLower(rand.Text())}
		if rec.Nonce != "" {
			s.nonce = rec.Nonce
		}
		r.roots[q.Job] = s
	}
	mine, nonce := s.writer == q.Worker, s.nonce
	r.mu.Unlock()
	switch {
	case !mine:
		return protocol.RootsReply{Wait: true}
	case rec.Nonce == "":
		// Durable before it is written: what is in the destination must be known
		// to whoever cleans up.
		if err := r.rec.Save(ctx, q.Job, func(rec *protocol.JobRecord) { rec.Nonce = nonce }); err != nil {
			return protocol.RootsReply{Error: err.Error()}
		}
	}
	if !q.Ready {
		return protocol.RootsReply{Nonce: nonce, Write: true, Stale: r.staleMarks(rec.Spec)}
	}
	err := r.rec.Save(ctx, q.Job, func(rec *protocol.JobRecord) {
		rec.NonceReady, rec.SourceInode, rec.SourceFS = true, q.SourceInode, q.SourceFS
		rec.Mounts, rec.Abilities, rec.Creates = q.Mounts, q.Abilities, q.Creates
	})
	if err != nil {
		return protocol.RootsReply{Error: err.Error()}
	}
	r.clearMarks(ctx, rec.Spec, q.Removed)
	return protocol.RootsReply{Nonce: nonce, SourceInode: q.SourceInode, SourceFS: q.SourceFS, Mounts: q.Mounts, Abilities: q.Abilities, Creates: q.Creates}
}

// rootsOfReader is the mount proof of a job that changes nothing, and so leaves
// no nonce: all workers must see the roots that the first one saw.
func (r *Roster) rootsOfReader(ctx context.Context, q protocol.RootsClaim, held protocol.JobRecord) protocol.RootsReply {
	if !held.NonceReady {
		err := r.rec.Save(ctx, q.Job, func(rec *protocol.JobRecord) {
			if !rec.NonceReady { // another worker was not quicker
				rec.NonceReady, rec.SourceInode, rec.SourceFS, rec.DestInode, rec.DestFS = true, q.SourceInode, q.SourceFS, q.DestInode, q.DestFS
				rec.Mounts, rec.Abilities = q.Mounts, q.Abilities
			}
			held = *rec
		})
		if err != nil {
			return protocol.RootsReply{Error: err.Error()}
		}
	}
	return protocol.RootsReply{ReadOnly: true, SourceInode: held.SourceInode, SourceFS: held.SourceFS, DestInode: held.DestInode, DestFS: held.DestFS, Mounts: held.Mounts, Abilities: held.Abilities}
}

// mostStale is how many marks of other jobs one job is asked to remove.
const mostStale = 100

// leftMarks calls f with the jobs whose marks may still be in a destination.
func leftMarks(t state.Tx, spec protocol.JobSpec, f func(protocol.JobRecord)) {
	for j := range t.JobsIn(protocol.StateFailed, protocol.StateCancelled, protocol.StateCompleted) {
		if rec := j.Record; rec.MarkLeft && rec.Spec.Pool == spec.Pool && rec.Spec.Destination == spec.Destination {
			f(rec)
		}
	}
}

// staleMarks are the nonces of marks that a job with this spec is to remove.
func (r *Roster) staleMarks(spec protocol.JobSpec) (nonces []string) {
	r.rec.View(func(t state.Tx) {
		leftMarks(t, spec, func(rec protocol.JobRecord) {
			if len(nonces) < mostStale {
				nonces = append(nonces, rec.Nonce)
			}
		})
	})
	return nonces
}

// clearMarks notes that marks were removed. A mark that was not there is kept in mind:
// another file system may be mounted at the destination now.
func (r *Roster) clearMarks(ctx context.Context, spec protocol.JobSpec, removed []string) {
	if len(removed) == 0 {
		return
	}
	var ids []protocol.JobID
	r.rec.View(func(t state.Tx) {
		leftMarks(t, spec, func(rec protocol.JobRecord) {
			if slices.Contains(removed, rec.Nonce) {
				ids = append(ids, rec.ID)
			}
		})
	})
	for _, id := range ids {
		if err := r.rec.Save(ctx, id, func(rec *protocol.JobRecord) { rec.MarkLeft = false }); err != nil {
			r.log.Warn("it cannot be noted that the mark of an ended job was removed", "job", id, "error", err)
			return
		}
		r.log.Info("the mark that an ended job had left in its destination was removed", "job", id)
	}
}
