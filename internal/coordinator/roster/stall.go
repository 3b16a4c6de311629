package roster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// noteStalls looks at what workers and attempts say of each job.
func (r *Roster) noteStalls() {
	type verdict struct {
		job                                          protocol.JobID
		workers, roots, space, hung, unsent, missing string
	}
	var verdicts []verdict
	r.rec.View(func(t state.Tx) {
		for j := range t.JobsIn(protocol.StateRunning) {
			v := verdict{job: j.Record.ID, hung: hung(t, j), unsent: unsent(t, j), missing: missing(t, j)}
			v.workers, v.roots = workersFor(t, j)
			v.space = exhausted(t, j)
			verdicts = append(verdicts, v)
		}
		for j := range t.JobsIn(protocol.StateEnding) { // waits for what runs
			verdicts = append(verdicts, verdict{job: j.Record.ID, hung: hung(t, j)})
		}
	})
	for _, v := range verdicts {
		r.rec.Stall(v.job, records.StallWorkers, v.workers)
		r.rec.Stall(v.job, records.StallRoots, v.roots)
		r.rec.Stall(v.job, records.StallSpace, v.space)
		r.rec.Stall(v.job, records.StallHung, v.hung)
		r.rec.Stall(v.job, records.StallResults, v.unsent)
		r.rec.Stall(v.job, records.StallMissing, v.missing)
	}
}

// workersFor says whether the job's pool has workers, and whether they can serve it.
func workersFor(t state.Tx, j state.Job) (none, refused string) {
	pool := j.Record.Spec.Pool
	live, unfit := 0, []string{}
	for w := range t.Workers() {
		if !w.Takes() || w.Beat.Pool != pool {
			continue
		}
		live++
		if why, bad := w.Beat.Unfit[j.Record.ID]; bad {
			unfit = append(unfit, w.Name+": "+why)
		}
	}
	if live == 0 {
		return fmt.Sprintf("no worker in pool %q; start one with: worker --nats URL --pool %s --allow ROOT", pool, pool), ""
	}
	if len(unfit) == live {
		slices.Sort(unfit)
		return "", "no worker can serve the job: " + strings.Join(unfit[:min(3, len(unfit))], "; ")
	}
	return "", ""
}

// exhausted says whether open shards were handed back for lack of room.
func exhausted(t state.Tx, j state.Job) string {
	for o := range t.OpenOf(j.Record.ID) {
		// The last that ended decides: the next one may be trying just now.
		for _, a := range slices.Backward(o.Attempts) {
			if !a.Ended {
				continue
			}
			if a.Kind == fault.Exhausted.String() {
				return "the destination has no room or cannot be written: " + a.Reason + "; make room, the job goes on by itself"
			}
			break
		}
	}
	return ""
}

// unsent says whether a worker has results of the job that NATS does not take.
func unsent(t state.Tx, j state.Job) string {
	for w := range t.Workers() {
		if why := w.Beat.Unsent[j.Record.ID]; why != "" && !w.Lost {
			return fmt.Sprintf("worker %s cannot publish results: %s; is the store of NATS full? The job goes on by itself when NATS takes them; a nats-server whose store was full must be restarted once there is room", w.Name, why)
		}
	}
	return ""
}

// missing says whether a worker of the job's pool lacks something in NATS to take
// shards.
func missing(t state.Tx, j state.Job) string {
	for w := range t.Workers() {
		if w.Takes() && w.Beat.Pool == j.Record.Spec.Pool && w.Beat.Missing != "" {
			return fmt.Sprintf("worker %s gets no shards from NATS: %s; it is made anew, and the job goes on by itself", w.Name, w.Beat.Missing)
		}
	}
	return ""
}

// hung says whether file operations of the job show no progress, and which is
// the oldest.
func hung(t state.Tx, j state.Job) string {
	var oldest protocol.HungOp
	var where string
	n := 0
	for w := range t.Workers() {
		if w.Lost || w.Beat.Leaving {
			continue
		}
		for _, o := range w.Beat.Hung {
			if o.Job != j.Record.ID {
				continue
			}
			if n++; n == 1 || o.Since.Before(oldest.Since) {
				oldest, where = o, w.Name
			}
		}
	}
	if n == 0 {
		return ""
	}
	more := ""
	if n > 1 {
		more = fmt.Sprintf(", and %d more", n-1)
	}
	return fmt.Sprintf("a file operation hangs on worker %s: %s %q, no progress since %s%s; see to the file systems there: the job goes on by itself when they answer; or stop that worker, and another takes over",
		where, oldest.Doing, oldest.Path, oldest.Since.UTC().Format(time.RFC3339), more)
}
