package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// scanFlags are the options of a scan.
type scanFlags struct {
	Exclude       []string `help:"Leave out what matches this pattern." placeholder:"PATTERN" sep:"none" group:"scan"`
	Include       []string `help:"Take what matches this pattern although it is excluded." placeholder:"PATTERN" sep:"none" group:"scan"`
	OneFileSystem bool     `short:"x" help:"Do not enter directories on other file systems." group:"scan"`
	ScanWorkers   int      `help:"Directories read at once; 0 = twice the processors." default:"0" placeholder:"N" group:"scan"`
	ScanMemory    size     `help:"Memory of the scan's sorting." default:"128MiB" placeholder:"SIZE" group:"scan"`
	AllowEmpty    bool     `help:"Go on although the source is empty." group:"scan"`
	FileEntries   int      `help:"Entries of a control file." default:"100000" placeholder:"N" group:"scan"`
	FileBytes     size     `help:"Size of a control file." default:"8MiB" placeholder:"SIZE" group:"scan"`
}

func (f scanFlags) config(source, out string) scanner.Config {
	return scanner.Config{
		Source: source, Out: out, Excludes: f.Exclude, Includes: f.Include, OneFileSystem: f.OneFileSystem, AllowEmpty: f.AllowEmpty,
		Workers: f.ScanWorkers, MaxEntries: f.FileEntries, MaxBytes: int(f.FileBytes), MemoryLimit: int64(f.ScanMemory),
	}
}

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
	Quiet    bool `short:"q" help:"No progress, no summary."`
	Read     int  `name:"read-threads" help:"Entries read at once; 0 = twice the processors." default:"0" placeholder:"N" group:"local"`
	Write    int  `name:"write-threads" help:"Entries written at once; 0 = twice the processors." default:"0" placeholder:"N" group:"local"`
	Slots    int  `help:"Shards at once." default:"4" placeholder:"N" group:"local"`
	InMemory bool `help:"Keep the job's queue in memory: an interrupted run cannot be resumed." group:"local"`
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
		return &fault.Error{Kind: fault.KindOf(err), Op: "make destination", Path: destination, Err: errors.New("its parent directory does not exist"), Hint: "make it, or mount it"}
	}
	rs, rd := realPath(source), realPath(destination)
	if rs == rd || within(rd, rs) {
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

// within reports whether p lies in dir.
func within(dir, p string) bool {
	rel, err := filepath.Rel(dir, p)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
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
	spec.Meta, spec.Trim, spec.CheckContents, spec.VerifyOnly = meta, c.Trim, c.Check, c.VerifyOnly
	c.InMemory = true // the directory goes with the process
	v, err := c.execute(a, dir, localJob{id: client.NewJobID(now()), spec: spec, files: files}, newProgress(a.stderr, c.Quiet || c.JSON))
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
	return ended(v)
}

// tempDir returns a directory for a run that leaves nothing behind.
func tempDir(a *app) (string, func(), error) {
	dir, err := os.MkdirTemp("", "fsbackup-")
	if err != nil {
		return "", nil, &fault.Error{Kind: fault.KindOf(err), Op: "make a directory for the run in", Path: os.TempDir(), Err: errors.Unwrap(err), Hint: "choose another with TMPDIR"}
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			a.log.Warn("the run's files cannot be removed", "dir", dir, "error", err)
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
	// ended is called with the final state while the cluster still runs.
	ended func(*client.Client, protocol.JobView) error
}

// execute runs a job on a cluster of one to its end. dir is for the cluster's
// own files.
func (f localFlags) execute(a *app, dir string, j localJob, p *progress) (protocol.JobView, error) {
	// The process is this command: its umask is its own, and 0 saves the engine
	// a call per file.
	defer setUmask(0)()
	local, err := client.StartLocal(a.ctx, client.LocalConfig{
		Dir: dir, Memory: f.InMemory, Allow: []string{j.spec.Source, j.spec.Destination}, Slots: f.Slots,
		Engine: engine.Config{ReadThreads: f.Read, WriteThreads: f.Write, UmaskZero: true, Logger: a.log},
		Logger: a.log, Record: a.telemetry.Providers(), Version: version,
	})
	if err != nil {
		return protocol.JobView{}, err
	}
	defer func() {
		if err := local.Close(); err != nil {
			a.log.Warn("stop the local cluster", "error", err)
		}
	}()
	if !j.resume {
		if err := local.Submit(a.ctx, j.id, j.spec, j.files, true); err != nil {
			return protocol.JobView{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-local.Failed():
			err := local.Err()
			if err == nil {
				err = fault.New(fault.Internal, "for no reason that it gave")
			}
			cancel(fault.New(fault.KindOf(err), "the local cluster stopped: %w", err))
		case <-ctx.Done():
		}
	}()
	v, err := local.Watch(ctx, j.id, func(v protocol.JobView) {
		p.job(v)
		if v.StallCause == protocol.StallRoots {
			// There is one worker, and no other will come.
			cancel(fault.New(fault.Denied, "the job cannot run: %s", v.Stalled))
		}
	}, p.lost)
	p.done()
	if interrupted(a.ctx) {
		return v, fault.Hinted(fault.Canceled, "run it again to go on", "interrupted")
	}
	if err != nil {
		return v, err
	}
	if v.Failures > 0 && !f.Quiet {
		printFailures(a, local.Client, v)
	}
	if j.ended != nil {
		err = j.ended(local.Client, v)
	}
	return v, err
}
