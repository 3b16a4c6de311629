package records

import (
	"context"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// uploadsKept is how long an uploaded file stays that no job names: its job may
// still be about to be submitted.
const uploadsKept = 24 * time.Hour

// SweepObjects removes the objects that no job needs: files that submitters
// uploaded, and shards and failures that exceeded the payload limit.
func (r *Records) SweepObjects(ctx context.Context) error {
	objects, err := r.objects.List(ctx)
	if err != nil || len(objects) == 0 {
		return err
	}
	// While somebody submits, what is named is about to change: the next sweep.
	files := r.placing.TryLock()
	if files {
		defer r.placing.Unlock()
	}
	now := r.cfg.Now()
	known, named := map[protocol.JobID]bool{}, map[string]bool{}
	r.View(func(t state.Tx) {
		for j := range t.Jobs() {
			known[j.Record.ID] = true
			if j.Record.State.Final() {
				continue // its figures and failures stay, what it was made of does not
			}
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
			needed = !files || named[o.Name] || now.Sub(o.Stored) < uploadsKept
		}
		switch {
		case needed:
			continue
		case !r.cfg.Leads():
			return nil // the next leader's to judge
		}
		if err := r.objects.Delete(ctx, o.Name); err != nil {
			return err
		}
	}
	return nil
}
