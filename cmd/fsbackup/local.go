package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

type scanCmd struct {
	Source         string `arg:"" help:"Directory to scan."`
	Out            string `help:"Directory for control and meta files." required:"" placeholder:"DIR"`
	JSON           bool   `help:"Print the result as JSON."`
	Quiet          bool   `short:"q" help:"No progress."`
	Previous       string `help:"Directory of the previous scan: write only what changed since, and what is gone." placeholder:"DIR"`
	DeleteExcluded bool   `help:"With --previous, delete what is now excluded."`
	scanFlags
}

// Run scans.
func (c scanCmd) Run(a *app) error {
	source, err := absolute(c.Source)
	if err != nil {
		return err
	}
	out, err := absolute(c.Out)
	if err != nil {
		return err
	}
	cfg := c.config(source, out)
	cfg.Logger = a.log
	if c.Previous != "" {
		cfg.Incremental, cfg.DeleteExcluded = true, c.DeleteExcluded
		cfg.Committed = filepath.Join(c.Previous, "state", "entries.zst")
		if _, err := os.Stat(cfg.Committed); err != nil {
			return &fault.Error{Kind: fault.NotFound, Op: "open the state of the previous scan", Path: cfg.Committed, Err: errors.Unwrap(err), Hint: "name a directory that scan --out wrote"}
		}
	}
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	cfg.Progress = p.scan
	res, err := scanner.Scan(a.ctx, cfg)
	p.done()
	if err != nil {
		return err
	}
	warnScan(a.stderr, res)
	if c.JSON {
		err = printJSON(a.stdout, res)
	} else {
		printScan(a.stdout, res)
	}
	if err == nil && res.ProblemCount > 0 {
		err = errFailures
	}
	return err
}

// localFlags are the options of a cluster within this process.
type localFlags struct {
	JSON     bool `help:"Print the final state as JSON."`
	Quiet    bool `short:"q" help:"No progress, no summary: only failures, stalls, and why it failed."`
	Read     int  `name:"read-threads" help:"Most entries read at once; how many are is found out. 0 = 256." default:"0" placeholder:"N" group:"local"`
	Write    int  `name:"write-threads" help:"Most entries written at once. 0 = 256." default:"0" placeholder:"N" group:"local"`
	Slots    int  `help:"Shards at once." default:"4" placeholder:"N" group:"local"`
	InMemory bool `help:"Keep the job's queue in memory: an interrupted run cannot be resumed." group:"local"`
	stallFlags
}

// checkRoots refuses what would back a tree up into itself and destroy it.
func checkRoots(source, destination string) error {
	fi, err := os.Stat(source)
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "open source", Path: source, Err: errors.Unwrap(err), Hint: "name an existing directory"}
	}
	if !fi.IsDir() {
		return &fault.Error{Kind: fault.Invalid, Op: "open source", Path: source, Err: errors.New("it is not a directory"), Hint: "name a directory"}
	}
	if _, err := os.Stat(filepath.Dir(destination)); err != nil {
		if fe, ok := errors.AsType[*fault.Error](engine.CheckRoot(filepath.Dir(destination), true)); ok {
			return fe // names the link that leads nowhere
		}
		return &fault.Error{Kind: fault.KindOf(err), Op: "make destination", Path: destination, Err: errors.New("its parent directory does not exist"), Hint: "make it, or mount it"}
	}
	if fi, err := os.Stat(destination); err == nil && !fi.IsDir() {
		return &fault.Error{Kind: fault.Invalid, Op: "open destination", Path: destination, Err: errors.New("it is not a directory"), Hint: "name a directory"}
	}
	rs, rd := realPath(source), realPath(destination)
	if rs == rd || entry.Within(rd, rs) {
		return &fault.Error{Kind: fault.Unsafe, Op: "back up to", Path: destination, Err: fmt.Errorf("the source %q is in it", source), Hint: "choose a destination outside the source's parents"}
	}
	return nil
}

// realPath resolves symbolic links as far as p exists.
func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	dir := filepath.Dir(p)
	if dir == p {
		return p
	}
	return filepath.Join(realPath(dir), filepath.Base(p))
}

type runCmd struct {
	inputFlags
	localFlags
	jobFlags
}

// Run runs control files on a cluster of one.
func (c runCmd) Run(a *app) error {
	var err error
	if c.Source, err = absolute(c.Source); err != nil {
		return err
	}
	if c.Destination, err = absolute(c.Destination); err != nil {
		return err
	}
	if fi, err := os.Stat(c.Source); err != nil || !fi.IsDir() {
		return &fault.Error{Kind: fault.NotFound, Op: "open source", Path: c.Source, Err: errors.New("it is no directory"), Hint: "name it with --source"}
	}
	files, meta, err := c.files()
	if err != nil {
		return err
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	spec := c.spec(c.Source, c.Destination)
	spec.Meta = meta
	c.apply(&spec)
	c.InMemory = true // the directory goes with the process
	v, err := c.execute(a, dir, localJob{id: client.NewJobID(now()), spec: spec, files: files, named: true}, newProgress(a.stderr, c.Quiet || c.JSON))
	if err != nil {
		return err
	}
	switch {
	case c.JSON:
		if err := printJSON(a.stdout, v); err != nil {
			return err
		}
	case !c.Quiet:
		printSummary(a.stdout, v)
	}
	err = ended(v)
	if c.Quiet {
		sayFailed(a, v, err)
	}
	return err
}

// tempDir returns a directory for a run that leaves nothing behind.
func tempDir(a *app) (string, func(), error) {
	scratch, err := host.MakeScratch(os.TempDir())
	if err != nil {
		return "", nil, err
	}
	return scratch.Dir, func() {
		if err := scratch.Remove(); err != nil {
			a.log.Warn("the run's files cannot be removed", "dir", scratch.Dir, "error", err)
		}
	}, nil
}

// localJob is a job on a cluster of one.
type localJob struct {
	id    protocol.JobID
	spec  protocol.JobSpec
	files client.Files
	// resume follows a job that an interrupted run left, instead of submitting.
	resume bool
	// stop ends the job that is resumed.
	stop bool
	// named says that the control files are the user's: failures name them.
	named bool
	// scan is what is said of the source anyway: failures of the same entries are
	// not said once more. nil = nothing.
	scan *scanner.Result
	// told is called instead of printing the first failures. nil = they are printed.
	told func(*client.Client, protocol.JobView) error
	// ended is called with the final state while the cluster still runs.
	ended func(*client.Client, protocol.JobView) error
	// refused is called where a cluster has not taken the job.
	refused func() error
}

// failures tells of the failures of the job.
func (j localJob) failures(a *app, cl *client.Client, v protocol.JobView) error {
	if j.told != nil {
		return j.told(cl, v)
	}
	printFailures(a, cl, v, j.named, j.scan)
	return nil
}

// execute runs a job on a cluster of one to its end. dir is for the cluster's
// own files.
func (f localFlags) execute(a *app, dir string, j localJob, p *progress) (protocol.JobView, error) {
	// The process is this command: its umask is its own, and 0 saves the engine
	// a call per file.
	defer setUmask(0)()
	// The cluster outlives an interrupt for as long as it takes to end the job.
	local, err := client.StartLocal(context.WithoutCancel(a.ctx), client.LocalConfig{
		Dir: dir, Memory: f.InMemory, Allow: []string{j.spec.Source, j.spec.Destination}, Slots: f.Slots,
		Engine: engine.Config{ReadThreads: f.Read, WriteThreads: f.Write, UmaskZero: true, Logger: a.log},
		Logger: a.log, Record: a.telemetry.Providers(), Version: buildVersion(),
	})
	if err != nil {
		return protocol.JobView{}, err
	}
	defer func() {
		if err := local.Close(); err != nil {
			a.log.Warn("stop the local cluster", "error", err)
		}
	}()
	switch {
	case j.resume && j.stop:
		if _, err := local.Cancel(a.ctx, j.id); err != nil && !fault.Is(err, fault.Invalid) { // it is ending already
			return protocol.JobView{}, err
		}
	case !j.resume:
		if err := local.Submit(a.ctx, j.id, j.spec, j.files, true); err != nil {
			return protocol.JobView{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	limit := f.within(p)
	guard := newStallGuard(limit, cancel, func(v protocol.JobView) error {
		return fault.Hinted(fault.Transient, "run it again to go on", "%w for %s: %s", errStalled, limit, stuck(oneHost(v.Stalled)))
	})
	defer guard.stop()
	go func() {
		select {
		case <-local.Failed():
			err := local.Err()
			if err == nil {
				err = fault.Hinted(fault.Internal, "--log-level debug shows what it did last", "it gave no error")
			}
			cancel(fault.New(fault.KindOf(err), "the cluster within this process stopped: %w", err))
		case <-ctx.Done():
		}
	}()
	v, err := local.Watch(ctx, j.id, j.orEnd(a, local.Client, func(v protocol.JobView) {
		if v.StallCause == protocol.StallRoots {
			// There is one worker, and no other will come.
			cancel(fault.New(fault.Denied, "the job cannot run: %s", oneHost(v.Stalled)))
			return
		}
		v.Stalled = oneHost(v.Stalled)
		p.job(v)
		guard.look(v)
	}), p.lost)
	p.done()
	if interrupted(a.ctx) {
		if f.InMemory { // nobody will resume it
			_ = endNow(a, local.Client, j.id) // it is logged
		}
		return v, fault.Hinted(fault.Canceled, "run it again to go on", "interrupted")
	}
	if errors.Is(err, errStalled) && f.InMemory {
		_ = endNow(a, local.Client, j.id) // it is logged
	}
	if err != nil {
		return v, err
	}
	if err := j.failures(a, local.Client, v); err != nil {
		return v, err
	}
	if j.ended != nil {
		err = j.ended(local.Client, v)
	}
	return v, err
}

// errStalled marks a job that was given up because it was stalled for too long.
var errStalled = errors.New("the job is stalled")

// endTime is how long an interrupted run may take to end its job.
const endTime = 10 * time.Second

// endNow cancels a job and waits for its end, so that nothing of it stays in the
// destination. A second interrupt ends the process at once.
func endNow(a *app, cl *client.Client, id protocol.JobID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), endTime)
	defer cancel()
	_, err := cl.Cancel(ctx, id)
	if err == nil || fault.Is(err, fault.Invalid) { // it is ending already
		_, err = cl.Watch(ctx, id, func(protocol.JobView) {}, func(error) {})
	}
	if err != nil {
		a.log.Warn("the interrupted job did not end in time, a file .fsbackup-* may be left in its destination", "job", id, "error", err)
	}
	return err
}
