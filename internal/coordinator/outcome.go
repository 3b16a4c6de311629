package coordinator

import (
	"context"
	"slices"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// settleFiles makes durable which lines of the job's control files have an accepted
// result. If all lines have one, the job's record says so, and the records of the
// control files stay as they are.
func (r *runner) settleFiles(ctx context.Context) error {
	rec := r.record()
	if rec.Answered || r.isCleanedUp() {
		return nil // a leader before has done it
	}
	var j state.Job
	var files []state.File
	r.c.view(func(t state.Tx) {
		j, _ = t.Job(r.id)
		files = slices.SortedFunc(t.Files(r.id), func(a, b state.File) int { return int(a.Index) - int(b.Index) })
	})
	answered := j.Record.Sealed
	outcomes := make([]protocol.FileOutcome, len(files))
	for i, f := range files {
		if f.Record.State == protocol.FileRefused {
			continue // counted as refused; none of its lines is executed
		}
		out, err := r.outcome(ctx, j, f)
		if err != nil {
			return err
		}
		outcomes[i] = out
		answered = answered && out.Complete
	}
	if answered {
		return r.c.rec.Save(ctx, r.id, func(rec *protocol.JobRecord) { rec.Answered = true })
	}
	for i, f := range files {
		if f.Record.State == protocol.FileRefused {
			continue
		}
		err := r.c.rec.ChangeFile(ctx, r.id, f.Index, "", func(rec *protocol.FileRecord) { rec.Outcome = &outcomes[i] })
		if err != nil {
			return err
		}
	}
	return nil
}

// outcome says which lines of a control file have a result in every phase that
// goes over it.
func (r *runner) outcome(ctx context.Context, j state.Job, f state.File) (protocol.FileOutcome, error) {
	var out protocol.FileOutcome
	for _, p := range protocol.Order(j.Record.Spec.DeleteBefore) {
		if !hasPhase(j.Record.Spec, p) || !j.Cuts(p, f.Record.Ref.Phase) || j.Record.Phases[p].Complete {
			continue
		}
		all := protocol.LineRange{Phase: p, From: 1}
		if f.Record.State != protocol.FileAdmitted || f.Path == "" || !r.tookOver {
			out.Missing = append(out.Missing, all)
			continue
		}
		missing, err := r.pub.Missing(ctx, p, f)
		if err != nil && fault.Passing(err) {
			return out, err
		}
		if err != nil {
			// Which lines its shards have cannot be told any more.
			r.log.Warn("a control file counts as not executed", "job", r.id, "file", f.Record.Ref.Path, "phase", p, "error", err)
			missing = []protocol.LineRange{all}
		}
		out.Missing = append(out.Missing, missing...)
	}
	out.Complete = len(out.Missing) == 0
	return out, nil
}
