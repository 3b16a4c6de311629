package coordinator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/coordinator/folder"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// eventPause is the least time between two snapshots of a job to its watchers.
const eventPause = 200 * time.Millisecond

// Job returns a job as it is now.
func (c *Coordinator) Job(_ context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	if err := c.ready(); err != nil {
		return protocol.JobView{}, err
	}
	var v protocol.JobView
	known := false
	now := c.now()
	c.view(func(t state.Tx) {
		j, ok := t.Job(q.Job)
		if known = ok; ok {
			v = c.jobView(t, j, now)
		}
	})
	if !known {
		return v, records.NoSuchJob(q.Job)
	}
	return v, nil
}

func (c *Coordinator) jobView(t state.Tx, j state.Job, now time.Time) protocol.JobView {
	rec := j.Record
	v := protocol.JobView{
		ID: rec.ID, Name: rec.Spec.Name, State: rec.State, Status: rec.State.Status(), Reason: rec.Reason, Spec: rec.Spec,
		Created: rec.Created, Started: rec.Started, Ended: rec.Ended, Phase: j.Phase,
		Stats: folder.Figures(t, j, now), Warnings: folder.Warnings(j.Warnings), Workers: j.Workers,
	}
	v.State = shownState(rec)
	v.Failures = v.Stats.Failures()
	v.Answered = rec.Answered
	if rec.Ending != nil {
		v.Kind = rec.Ending.Kind
	}
	v.Tolerated = v.Failures > 0 && folder.Tolerated(rec.Spec, v.Stats)
	v.Seconds = folder.Elapsed(rec, now).Seconds()
	if rec.State == protocol.StateQueued {
		if other, wait := overlapping(t, j); wait {
			v.Stalled = fmt.Sprintf("waits for job %s, whose destination overlaps", other)
			v.StalledSince, v.StallCause = rec.Created, records.StallQueue
		}
	}
	causes := make([]string, 0, len(j.Stalls))
	for cause := range j.Stalls {
		causes = append(causes, cause)
	}
	slices.Sort(causes)
	for _, cause := range causes {
		s := j.Stalls[cause]
		if v.Stalled == "" || s.Since.Before(v.StalledSince) {
			v.Stalled, v.StalledSince, v.StallCause = s.Text, s.Since, cause
		}
	}
	if v.Stalled == "" && rec.State == protocol.StateRunning && !rec.Sealed && !anyOpen(t, rec.ID) {
		v.Stalled, v.StalledSince, v.StallCause = "waits for more control files: its list is not complete; append the rest and seal it, or cancel the job", rec.Started, records.StallList
	}
	if rec.State.Final() {
		v.Stalled, v.StalledSince, v.StallCause, v.Phase = "", time.Time{}, "", 0
	}
	if rec.State == protocol.StateRunning {
		v.Large = large(t, rec.ID)
	}
	for _, p := range protocol.Order(rec.Spec.DeleteBefore) {
		row := t.Phase(rec.ID, p)
		if row.Started.IsZero() && row.Published == 0 {
			continue
		}
		pv := protocol.PhaseView{Phase: p, State: "running", Published: row.Published, Done: row.Done.Count(), Sealed: row.Sealed}
		if done := rec.Phases[p]; done.Complete {
			pv.State, pv.Done = "complete", row.Published
		}
		pv.Open = pv.Published - min(pv.Done, pv.Published)
		end := row.Ended
		if end.IsZero() {
			end = now
		}
		if !row.Started.IsZero() {
			pv.Seconds = end.Sub(row.Started).Seconds()
		}
		v.Phases = append(v.Phases, pv)
	}
	return v
}

// mostLarge bounds the large files that a job shows.
const mostLarge = 32

// large returns the large files of a job that workers copy just now.
func large(t state.Tx, id protocol.JobID) []protocol.LargeFile {
	var out []protocol.LargeFile
	for w := range t.Workers() {
		if w.Lost {
			continue
		}
		for _, f := range w.Beat.Large {
			if f.Job == id {
				f.Job, f.Worker = "", w.Name
				out = append(out, f)
			}
		}
	}
	slices.SortFunc(out, func(a, b protocol.LargeFile) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Path, b.Path))
	})
	return out[:min(mostLarge, len(out))]
}

func anyOpen(t state.Tx, id protocol.JobID) bool {
	for range t.OpenOf(id) {
		return true
	}
	return false
}

// shownState is the state of a job as people see it.
func shownState(rec protocol.JobRecord) protocol.State {
	switch {
	case rec.Paused && (rec.State == protocol.StateQueued || rec.State == protocol.StateRunning):
		return protocol.StatePaused
	case rec.State == protocol.StateEnding && rec.Ending != nil && rec.Ending.State == protocol.StateCancelled:
		return protocol.StateCancelling
	}
	return rec.State
}

// publishEvent sends a job's snapshot to those who watch it, not more often than
// eventPause unless now is set.
func (c *Coordinator) publishEvent(id protocol.JobID, always bool) {
	now := c.now()
	c.mu.Lock()
	if !always && now.Sub(c.events[id]) < eventPause {
		c.mu.Unlock()
		return
	}
	c.events[id] = now
	c.mu.Unlock()
	var v protocol.JobView
	c.view(func(t state.Tx) {
		if j, ok := t.Job(id); ok {
			v = c.jobView(t, j, now)
		}
	})
	data, err := rawjson.Marshal(v)
	if err == nil {
		err = c.cfg.Bus.Send(protocol.EventSubject(id), data)
	}
	if err != nil {
		c.log.Debug("send job event", "job", id, "error", err)
	}
	if v.State.Final() {
		c.mu.Lock()
		delete(c.events, id)
		c.mu.Unlock()
	}
}
