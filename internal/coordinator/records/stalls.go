package records

import (
	"maps"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Causes of stalls.
const (
	StallPublish = "publish"
	StallAdmit   = "admit"
	StallWorkers = "workers"
	StallRoots   = protocol.StallRoots
	StallSpace   = "space"
	StallHung    = "hung"
	StallResults = "results"
	StallQueue   = protocol.StallQueue
	StallMissing = "missing"
	StallList    = protocol.StallList
)

// Stall notes what keeps a job from going on, or with an empty text that the
// cause is gone.
func (r *Records) Stall(job protocol.JobID, cause, text string) {
	now := r.cfg.Now()
	changed := false
	r.Update(func(t state.Tx) {
		j, ok := t.Job(job)
		if !ok || j.Stalls[cause].Text == text {
			return
		}
		changed = true
		since := now
		if old, ok := j.Stalls[cause]; ok {
			since = old.Since
		}
		j.Stalls = maps.Clone(j.Stalls)
		if j.Stalls == nil {
			j.Stalls = map[string]state.Stall{}
		}
		if text == "" {
			delete(j.Stalls, cause)
		} else {
			j.Stalls[cause] = state.Stall{Text: text, Since: since}
		}
		t.PutJob(j)
	})
	if !changed {
		return
	}
	if text == "" {
		r.log.Info("job goes on", "job", job, "cause", cause)
	} else {
		r.log.Warn("job is stalled", "job", job, "cause", cause, "reason", text)
	}
	r.cfg.Changed(job, false)
}
