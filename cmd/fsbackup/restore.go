package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

type restoreCmd struct {
	Backup string   `arg:"" help:"Directory that holds the backup."`
	Target string   `arg:"" help:"Directory to restore to; made if missing."`
	Paths  []string `arg:"" optional:"" help:"Parts to restore, relative to the backup; none = all."`

	Scan string `help:"Restore what a scan names, with its metadata, instead of what is there." placeholder:"DIR"`
	Trim string `name:"strip-prefix" help:"Leading components of paths that are left out below the target." placeholder:"PREFIX"`
	localFlags
	scanFlags
	jobFlags
}

// Run restores a backup, or parts of it: a job with source and destination
// exchanged, in which the records' metadata wins.
func (c restoreCmd) Run(a *app) error {
	var err error
	if c.Backup, err = absolute(c.Backup); err != nil {
		return err
	}
	if c.Target, err = absolute(c.Target); err != nil {
		return err
	}
	if fi, err := os.Stat(c.Backup); err != nil || !fi.IsDir() {
		return &fault.Error{Kind: fault.NotFound, Op: "open backup", Path: c.Backup, Err: errors.New("it is no directory"), Hint: "name the directory that holds the backup"}
	}
	if rb, rt := realPath(c.Backup), realPath(c.Target); within(rb, rt) || within(rt, rb) {
		return &fault.Error{Kind: fault.Unsafe, Op: "restore to", Path: c.Target, Err: errors.New("backup and target lie in each other"), Hint: "choose another target"}
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	for i, p := range c.Paths {
		c.Paths[i] = strings.Trim(filepath.ToSlash(filepath.Clean("/"+p)), "/")
	}
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	files, meta, problems, err := c.input(a, filepath.Join(dir, "scan"), p)
	if err != nil {
		return err
	}
	spec := c.spec(c.Backup, c.Target)
	spec.Meta, spec.Trim, spec.Restore = meta, strings.Trim(c.Trim, "/"), true
	c.InMemory = true
	v, err := c.execute(a, dir, localJob{id: client.NewJobID(now()), spec: spec, files: files}, p)
	if err != nil {
		return err
	}
	if c.JSON {
		if err := printJSON(a.stdout, v); err != nil {
			return err
		}
	} else if !c.Quiet {
		printSummary(a.stdout, v)
	}
	if err := ended(v); err != nil {
		return err
	}
	if problems > 0 {
		return errFailures
	}
	return nil
}

// input returns the control and meta files of what is to be restored.
func (c restoreCmd) input(a *app, out string, p *progress) (files client.Files, meta string, problems uint64, err error) {
	if c.Scan == "" {
		cfg := c.config(c.Backup, out)
		cfg.Logger, cfg.Progress, cfg.Paths = a.log, p.scan, c.Paths
		cfg.Excludes = append(cfg.Excludes, "/.fsbackup-*") // marks of jobs that were killed
		cfg.ExcludePaths = []string{c.Target}
		res, err := scanner.Scan(a.ctx, cfg)
		p.done()
		if err != nil {
			return files, "", 0, err
		}
		printProblems(a.stderr, res)
		return controlFiles(res), res.MetaDir, res.ProblemCount, nil
	}
	in := inputFlags{Meta: c.Scan, Control: []string{c.Scan}}
	if files, meta, err = in.files(); err != nil || len(c.Paths) == 0 {
		return files, meta, 0, err
	}
	var names []string
	for _, f := range files.Control {
		names = append(names, f.Path)
	}
	kept, err := scanner.Filter(a.ctx, scanner.FilterConfig{Control: names, Meta: meta, Out: out, Paths: c.Paths, Now: now()})
	if err != nil {
		return files, "", 0, err
	}
	return controlFiles(&scanner.Result{ControlFiles: kept}), meta, 0, nil
}
