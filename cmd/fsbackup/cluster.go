package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

type submitCmd struct {
	connection
	inputFlags
	Pool string `help:"Workers that see source and destination." default:"default" env:"FSBACKUP_POOL"`
	JSON bool   `help:"Print {\"job\": ID}, or with --wait the final state."`
	Wait bool   `short:"w" help:"Follow the job to its end."`
	stallFlags
	jobFlags
}

// Run submits a job.
func (c submitCmd) Run(a *app) error {
	for _, p := range []*string{&c.Source, &c.Destination} {
		abs, err := absolute(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	files, meta, err := c.files()
	if err != nil {
		return err
	}
	cl, free, err := c.connect(a)
	if err != nil {
		return err
	}
	defer free()
	spec := c.spec(c.Source, c.Destination)
	spec.Meta, spec.Pool = meta, c.Pool
	c.apply(&spec)
	id := client.NewJobID(now())
	p := newProgress(a.stderr, c.JSON)
	err = cl.Telling(p.submission).Submit(a.ctx, id, spec, files, true)
	p.done()
	if err != nil {
		return err
	}
	switch {
	case c.Wait:
		return follow(a, cl, id, p, c.stallFlags, c.JSON, false)
	case c.JSON:
		return printJSON(a.stdout, map[string]protocol.JobID{"job": id})
	}
	fmt.Fprintln(a.stdout, id)
	return nil
}

// jobArg names a job.
type jobArg struct {
	connection
	Job  string `arg:"" help:"Job id, or the beginning of one, or 'last'."`
	JSON bool   `help:"Print JSON."`
}

// open connects and resolves the job's id.
func (j jobArg) open(a *app) (*client.Client, func(), protocol.JobID, error) {
	cl, free, err := j.connect(a)
	if err != nil {
		return nil, nil, "", err
	}
	id, err := resolveJob(a, cl, j.Job)
	if err != nil {
		free()
		return nil, nil, "", err
	}
	return cl, free, id, nil
}

// resolveJob completes the beginning of an id.
func resolveJob(a *app, cl *client.Client, arg string) (protocol.JobID, error) {
	id, err := protocol.ParseJobID(arg)
	if err != nil {
		return "", err
	}
	if len(arg) >= 26 {
		return id, nil
	}
	q := protocol.JobsRequest{Limit: 1}
	if arg != "last" {
		q.Prefix = arg
	}
	r, err := cl.Jobs(a.ctx, q)
	switch {
	case err != nil:
		return "", err
	case r.Total == 0:
		return "", fault.Hinted(fault.NotFound, "list jobs with: fsbackup jobs", "there is no job %q", arg)
	case r.Total > 1 && arg != "last":
		return "", fault.New(fault.Invalid, "%d jobs begin with %q: give more of the id", r.Total, arg)
	}
	return r.Jobs[0].ID, nil
}

type statusCmd struct{ jobArg }

// Run shows a job.
func (c statusCmd) Run(a *app) error {
	cl, free, id, err := c.open(a)
	if err != nil {
		return err
	}
	defer free()
	v, err := cl.Job(a.ctx, id)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, v)
	}
	printSummary(a.stdout, v)
	return nil
}

type watchCmd struct {
	jobArg
	stallFlags
	Quiet bool `short:"q" help:"No progress, no summary: only failures, stalls, and why it failed."`
}

// Run follows a job. It waits for a cluster that is away, also when it starts.
func (c watchCmd) Run(a *app) error {
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	for {
		cl, free, id, err := c.open(a)
		if err == nil {
			defer free()
			return follow(a, cl, id, p, c.stallFlags, c.JSON, c.Quiet)
		}
		switch fault.KindOf(err) {
		case fault.Unavailable, fault.Transient:
			p.lost(err)
		default:
			return err
		}
		if !bus.Sleep(a.ctx, watchPause) {
			return fault.New(fault.Canceled, "interrupted while waiting for the cluster")
		}
	}
}

// watchPause is the time between two attempts at reaching a cluster.
const watchPause = time.Second

func follow(a *app, cl *client.Client, id protocol.JobID, p *progress, stall stallFlags, asJSON, quiet bool) error {
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	limit := stall.within(p)
	guard := newStallGuard(limit, cancel, func(v protocol.JobView) error {
		return fault.Hinted(fault.Transient, "the job goes on when that is mended: fsbackup watch "+string(id), "job %s: %w for %s: %s", id, errStalled, limit, stuck(v.Stalled))
	})
	defer guard.stop()
	v, err := cl.Watch(ctx, id, func(v protocol.JobView) {
		p.job(v)
		guard.look(v)
	}, p.lost)
	p.done()
	if interrupted(a.ctx) {
		return fault.Hinted(fault.Canceled, "the job goes on: fsbackup watch "+string(id), "interrupted")
	}
	if err != nil {
		return err
	}
	if asJSON {
		if err := printJSON(a.stdout, v); err != nil {
			return err
		}
	} else {
		printFailures(a, cl, v, true, nil)
	}
	err = ended(v)
	switch {
	case quiet:
		sayFailed(a, v, err)
	case !asJSON:
		printSummary(a.stdout, v)
	}
	return err
}

type failuresCmd struct {
	jobArg
	Limit int `help:"Print at most so many; 0 = all." default:"0" placeholder:"N"`
}

var errLimit = errors.New("limit reached")

// Run lists failures, with --json one object a line.
func (c failuresCmd) Run(a *app) error {
	cl, free, id, err := c.open(a)
	if err != nil {
		return err
	}
	defer free()
	n := 0
	err = cl.Failures(a.ctx, id, func(f protocol.FailureView) error {
		if n++; c.Limit > 0 && n > c.Limit {
			return errLimit
		}
		if c.JSON {
			return printLine(a.stdout, f)
		}
		fmt.Fprintln(a.stdout, failureLine(f, true))
		return nil
	})
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

type cancelCmd struct{ jobArg }

// Run cancels a job.
func (c cancelCmd) Run(a *app) error { return c.act(a, (*client.Client).Cancel) }

type pauseCmd struct{ jobArg }

// Run pauses a job.
func (c pauseCmd) Run(a *app) error { return c.act(a, (*client.Client).Pause) }

type resumeCmd struct{ jobArg }

// Run resumes a job.
func (c resumeCmd) Run(a *app) error { return c.act(a, (*client.Client).Resume) }

type forgetCmd struct{ jobArg }

// Run forgets a job.
func (c forgetCmd) Run(a *app) error { return c.act(a, (*client.Client).Drop) }

func (j jobArg) act(a *app, f jobAction) error {
	cl, free, id, err := j.open(a)
	if err != nil {
		return err
	}
	defer free()
	v, err := f(cl, a.ctx, id)
	if err != nil {
		return err
	}
	if j.JSON {
		return printJSON(a.stdout, v)
	}
	fmt.Fprintf(a.stdout, "job %s: %s\n", v.ID, v.State)
	return nil
}

type jobsCmd struct {
	connection
	Limit int    `help:"List at most so many." default:"50" placeholder:"N"`
	All   bool   `help:"List all."`
	State string `help:"List only jobs in this state: queued, running, paused, ending, cancelling, completed, failed, cancelled." placeholder:"STATE"`
	JSON  bool   `help:"Print JSON."`
}

// Validate, which the parser calls, checks the values.
func (c *jobsCmd) Validate() error {
	if c.Limit < 1 {
		return fault.New(fault.Invalid, "--limit must be at least 1; --all lists all jobs")
	}
	return protocol.JobsRequest{State: protocol.State(c.State)}.Check()
}

// list gets the jobs page by page. Total is that of the first page.
func (c jobsCmd) list(a *app, cl *client.Client) (jobs []protocol.JobView, total int, err error) {
	q := protocol.JobsRequest{State: protocol.State(c.State)}
	for {
		if !c.All {
			q.Limit = c.Limit - len(jobs)
		}
		r, err := cl.Jobs(a.ctx, q)
		if err != nil {
			return nil, 0, err
		}
		if q.After == "" {
			total = r.Total
		}
		jobs = append(jobs, r.Jobs...)
		if q.After = r.Next; q.After == "" || (!c.All && len(jobs) >= c.Limit) {
			return jobs, total, nil
		}
	}
}

// Run lists jobs.
func (c jobsCmd) Run(a *app) error {
	cl, free, err := c.connect(a)
	if err != nil {
		return err
	}
	defer free()
	jobs, total, err := c.list(a, cl)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, map[string]any{"jobs": jobs, "total": total})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "JOB\tSTATE\tPHASE\tFILES\tDATA\tFAILED\tTIME\tSOURCE -> DESTINATION")
	for _, v := range jobs {
		phase := "-"
		if v.Phase != 0 {
			phase = v.Phase.String()
		}
		files, bytes := progressOf(v)
		fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%s\t%d\t%s\t%s -> %s\n", v.ID, v.State, phase, files, v.Stats.FilesToBackup,
			bytesText(bytes), v.Failures, durationText(v.Seconds), v.Spec.Source, v.Spec.Destination)
	}
	if err := w.Flush(); err != nil {
		return err //nolint:wrapcheck // the writer names itself
	}
	if more := total - len(jobs); more > 0 {
		fmt.Fprintf(a.stdout, "and %d more: see them with --all, or with --limit N\n", more)
	}
	return nil
}
