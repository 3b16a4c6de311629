package coordinator

import (
	"context"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// The object bucket has shards and failures that exceed the payload limit, and
// files that submitters uploaded. A shard's object goes once the shard is
// answered; the rest, and what a leader that died left, once no job needs it.

// dropLarge removes the objects of answered shards. What cannot be removed now is
// tried again, at the latest when the job is erased.
func (r *runner) dropLarge(ctx context.Context) {
	for key := range r.large.Range {
		id, _ := key.(shardID) // nothing else is put there
		answered := false
		r.c.view(func(t state.Tx) {
			j, _ := t.Job(r.id)
			answered = j.Record.State.Final() || t.Phase(r.id, id.phase).Done.Has(id.n)
		})
		if !answered {
			continue
		}
		if err := r.c.objects.Delete(ctx, protocol.ShardObject(id.job, id.phase, id.n)); err != nil {
			r.log.Debug("object of an answered shard stays for now", "job", r.id, "phase", id.phase, "shard", id.n, "error", err)
			return
		}
		r.large.Delete(id)
	}
}

// sweepObjects removes the objects that no job needs. Files that nobody names are
// given the time of the results: their job may still be about to be submitted.
func (c *Coordinator) sweepObjects(ctx context.Context) error {
	objects, err := c.objects.List(ctx)
	if err != nil || len(objects) == 0 {
		return err
	}
	// While somebody submits, what is named is about to change: the next sweep.
	files := c.placing.TryLock()
	if files {
		defer c.placing.Unlock()
	}
	now := c.now()
	known, named := map[protocol.JobID]bool{}, map[string]bool{}
	c.view(func(t state.Tx) {
		for j := range t.Jobs() {
			if c.isOld(j.Record, now) {
				continue
			}
			known[j.Record.ID] = true
			for f := range t.Files(j.Record.ID) {
				named[f.Record.Object] = true
			}
			for _, m := range j.Record.Metas {
				named[protocol.FileObject(m.Digest)] = true
			}
		}
	})
	for _, o := range objects {
		id, ofJob := protocol.JobOfObject(o.Name)
		needed := known[id]
		if !ofJob {
			needed = !files || named[o.Name] || now.Sub(o.Stored) < c.cfg.Keep
		}
		switch {
		case needed:
			continue
		case !c.leads():
			return nil // the next leader's to judge
		}
		if err := c.objects.Delete(ctx, o.Name); err != nil {
			return err
		}
	}
	return nil
}

// isOld reports whether what a job left has been kept for long enough.
func (c *Coordinator) isOld(rec protocol.JobRecord, now time.Time) bool {
	return rec.State.Final() && now.Sub(rec.Ended) > c.cfg.Keep
}
