package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
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
		return v, noSuchJob(q.Job)
	}
	return v, nil
}

// Jobs returns all jobs, newest first.
func (c *Coordinator) Jobs(context.Context, struct{}) (protocol.JobsReply, error) {
	var out protocol.JobsReply
	if err := c.ready(); err != nil {
		return out, err
	}
	now := c.now()
	c.view(func(t state.Tx) {
		for j := range t.Jobs() {
			out.Jobs = append(out.Jobs, c.jobView(t, j, now))
		}
	})
	slices.Reverse(out.Jobs)
	return out, nil
}

// Workers returns all workers that were seen in the last minutes.
func (c *Coordinator) Workers(context.Context, struct{}) (protocol.WorkersReply, error) {
	out := protocol.WorkersReply{Leader: c.cfg.Name}
	if err := c.ready(); err != nil {
		return out, err
	}
	c.view(func(t state.Tx) {
		for w := range t.Workers() {
			v := protocol.WorkerView{
				Name: w.Name, Pool: w.Beat.Pool, Host: w.Beat.Host, Version: w.Beat.Version, Slots: w.Beat.Slots,
				Running: w.Beat.Running, Allow: w.Beat.Allow, LastSeen: w.LastSeen, State: "live", Done: w.Beat.Done, RSS: w.Beat.RSS, Unfit: w.Beat.Unfit, Hung: w.Beat.Hung,
			}
			switch {
			case w.Beat.Leaving:
				v.State = "left"
			case w.Lost:
				v.State = "lost"
			case !w.Takes():
				v.State = "drained"
			}
			out.Workers = append(out.Workers, v)
		}
	})
	return out, nil
}

func (c *Coordinator) jobView(t state.Tx, j state.Job, now time.Time) protocol.JobView {
	rec := j.Record
	v := protocol.JobView{
		ID: rec.ID, Name: rec.Spec.Name, State: rec.State, Status: rec.State.Status(), Reason: rec.Reason, Spec: rec.Spec,
		Created: rec.Created, Started: rec.Started, Ended: rec.Ended, Phase: j.Phase,
		Stats: c.figures(t, j, now), Warnings: sortedWarnings(j.Warnings), Workers: j.Workers,
	}
	if rec.Paused && (v.State == protocol.StateQueued || v.State == protocol.StateRunning) {
		v.State = protocol.StatePaused
	}
	v.Failures = v.Stats.Failures()
	v.Tolerated = v.Failures > 0 && tolerated(rec.Spec, v.Stats)
	v.Seconds = elapsed(rec, now).Seconds()
	if rec.State == protocol.StateQueued {
		if other, wait := overlapping(t, j); wait {
			v.Stalled = fmt.Sprintf("waits for job %s, whose destination overlaps", other)
			v.StalledSince, v.StallCause = rec.Created, stallQueue
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
	if rec.State.Final() {
		v.Stalled, v.StalledSince, v.StallCause, v.Phase = "", time.Time{}, "", 0
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

func elapsed(rec protocol.JobRecord, now time.Time) time.Duration {
	switch {
	case rec.Started.IsZero():
		return 0
	case rec.Ended.IsZero():
		return now.Sub(rec.Started)
	}
	return rec.Ended.Sub(rec.Started)
}

// figures completes the folded statistics by what admission and cutting know.
func (c *Coordinator) figures(t state.Tx, j state.Job, now time.Time) protocol.Stats {
	s := j.Stats
	if j.Record.State.Final() {
		if j.Record.Stats != nil {
			s = *j.Record.Stats
		}
		return s
	}
	announced := uint64(0)
	s.DirsToBackup, s.FilesToBackup, s.FilesRefused = 0, 0, 0
	s.DirsToDelete, s.FilesToDelete = 0, 0
	for f := range t.Files(j.Record.ID) {
		rec := f.Record
		if rec.State == protocol.FileRefused {
			s.FilesRefused++
			continue
		}
		s.Skipped += rec.Counts.Skipped
		switch rec.Ref.Phase {
		case protocol.PhaseCopy:
			s.DirsToBackup += rec.Counts.Dirs
			s.FilesToBackup += rec.Counts.Files
			announced += rec.Counts.Bytes
		case protocol.PhaseDelete:
			s.DirsToDelete += rec.Counts.Dirs
			s.FilesToDelete += rec.Counts.Files
		case protocol.PhaseHardlink:
			s.FilesToBackup += rec.Counts.Files
		case protocol.PhaseDir:
			if !j.HasCopy {
				s.DirsToBackup += rec.Counts.Dirs
			}
		}
	}
	// The header's figure until all is cut, then the sum over the records: other
	// scanners' headers count more than regular files.
	s.BytesToBackup = max(announced, j.CutBytes)
	if j.Record.Sealed && cutWhole(t, j) {
		s.BytesToBackup = j.CutBytes
	}
	done := s.BytesCopied
	if j.Record.Spec.VerifyOnly {
		done = s.BytesVerified
		s.DirsToDelete, s.FilesToDelete = 0, 0
	}
	if sec := elapsed(j.Record, now).Seconds(); sec > 0 {
		s.BytesPerSec = uint64(float64(done) / sec)
	}
	return s
}

// cutWhole reports whether all files whose bytes count are cut.
func cutWhole(t state.Tx, j state.Job) bool {
	if j.Record.Spec.VerifyOnly {
		return t.Phase(j.Record.ID, protocol.PhaseVerify).Sealed
	}
	for _, p := range []protocol.Phase{protocol.PhaseCopy, protocol.PhaseHardlink} {
		if t.Phase(j.Record.ID, p).Sealed {
			continue
		}
		for f := range t.Files(j.Record.ID) {
			if f.Record.Ref.Phase == p && f.Record.State != protocol.FileRefused {
				return false
			}
		}
	}
	return true
}

func sortedWarnings(m map[string]protocol.Warning) []protocol.Warning {
	out := make([]protocol.Warning, 0, len(m))
	for _, w := range m {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b protocol.Warning) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

func failureReason(s protocol.Stats) string {
	out := ""
	add := func(n uint64, one, many string) {
		if n == 0 {
			return
		}
		if out != "" {
			out += ", "
		}
		if n == 1 {
			many = one
		}
		out += fmt.Sprintf("%d %s", n, many)
	}
	add(s.FilesDiffer, "file differs", "files differ")
	add(s.DirsDiffer, "directory differs", "directories differ")
	add(s.Extra, "extra name", "extra names")
	add(s.FilesFailed-min(s.FilesDiffer, s.FilesFailed), "file failed", "files failed")
	add(s.DirsFailed-min(s.DirsDiffer, s.DirsFailed), "directory failed", "directories failed")
	add(s.DirMetaFailed, "directory without its metadata", "directories without their metadata")
	add(s.DeletesFailed, "delete failed", "deletes failed")
	add(s.FilesRefused, "control file refused", "control files refused")
	return out
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
	data, err := json.Marshal(v)
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
