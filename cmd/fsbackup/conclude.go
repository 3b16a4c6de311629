package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// outcome is what --json prints of a run on one host.
type outcome struct {
	Status       string           `json:"status"` // completed, failed
	ExitCode     int              `json:"exit_code"`
	ProblemCount uint64           `json:"problem_count"` // entries that the scan could not read, or not wholly
	Job          protocol.JobView `json:"job"`
	Scan         *scanner.Result  `json:"scan,omitempty"`

	Repaired  *uint64           `json:"repaired,omitempty"`   // of verify --repair: differences that are gone
	RepairJob *protocol.JobView `json:"repair_job,omitempty"` // the job that copied
}

// conclude prints what became of a run on one host, and returns what it means.
// res is its scan, nil if it made none.
func (f localFlags) conclude(a *app, v protocol.JobView, res *scanner.Result) error {
	return f.concluded(a, v, res, nil)
}

// concluded is conclude, of a repair with what that has done.
func (f localFlags) concluded(a *app, v protocol.JobView, res *scanner.Result, r *repaired) error {
	problems := uint64(0)
	if res != nil {
		problems = res.ProblemCount
		v.Warnings = withLacking(v.Warnings, res)
	}
	err := ended(v)
	if problems > 0 && (err == nil || errors.Is(err, errFailures)) {
		// The job may have done all that it was given. That was not all.
		err = errFailures
		if v.State == protocol.StateCompleted {
			v.State, v.Status, v.Reason = protocol.StateFailed, protocol.StateFailed.Status(), ""
		}
		v.Reason = joinReasons(v.Reason, notRead(problems))
	}
	if f.JSON {
		o := outcome{Status: "completed", ExitCode: exitCode(err), ProblemCount: problems, Job: v, Scan: res}
		if err != nil {
			o.Status = "failed"
		}
		if r != nil {
			o.Repaired = &r.n
			if r.job.ID != "" {
				o.RepairJob = &r.job
			}
		}
		if err := printJSON(a.stdout, o); err != nil {
			return err
		}
	} else if !f.Quiet {
		if res != nil {
			printCompared(a.stdout, res)
		}
		printSummary(a.stdout, v)
		if problems > 0 {
			fmt.Fprintf(a.stdout, "not read: %d\n", problems)
		}
	}
	if res != nil {
		if !f.Quiet {
			warnScan(a.stderr, res)
		}
		printProblems(a.stderr, res)
	}
	if f.Quiet {
		sayFailed(a, v, err)
	}
	return err
}

// withLacking adds what unchanged copies lack to what the job has lost.
func withLacking(warnings []protocol.Warning, res *scanner.Result) []protocol.Warning {
	for _, l := range res.Lacking {
		i := slices.IndexFunc(warnings, func(w protocol.Warning) bool { return w.Kind == l.Kind })
		if i < 0 {
			warnings = append(warnings, protocol.Warning{Kind: l.Kind, Count: l.Count, Example: l.Example})
		} else {
			warnings = slices.Clone(warnings)
			warnings[i].Count += l.Count
		}
	}
	return warnings
}

// printCompared prints what comparing source, history and destination has found.
func printCompared(out io.Writer, r *scanner.Result) {
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"unchanged", r.Unchanged}, {"of these found in the destination already", r.Adopted}, {"repaired in the destination", r.Repaired},
		{"only in the destination, deleted", r.ExtraDeleted}, {"directories that are gone, kept for what is in them", r.KeptDirs},
	} {
		if x.n > 0 {
			fmt.Fprintf(out, "%s: %d\n", x.name, x.n)
		}
	}
	if n := r.Extra - r.ExtraDeleted; n > 0 && len(r.ExtraExamples) > 0 {
		fmt.Fprintf(out, "only in the destination, kept: %d, first %q (--delete-extra deletes them)\n", n, r.ExtraExamples[0])
	}
}

// sayFailed says in one line why a run failed of which no summary is printed. An
// error that is none of its entries' is said by who gets it.
func sayFailed(a *app, v protocol.JobView, err error) {
	if errors.Is(err, errFailures) {
		fmt.Fprintf(a.stderr, "fsbackup: failed: %s\n", v.Reason)
	}
}

func notRead(n uint64) string {
	if n == 1 {
		return "1 entry could not be read"
	}
	return fmt.Sprintf("%d entries could not be read", n)
}

func joinReasons(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// exitCode is the code that a command's error ends it with.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exit](err); ok {
		return int(e)
	}
	return fault.KindOf(err).ExitCode()
}
