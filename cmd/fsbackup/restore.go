package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

type restoreCmd struct {
	Backup string   `arg:"" help:"Directory that holds the backup."`
	Target string   `arg:"" help:"Directory to restore to; made if missing."`
	Paths  []string `arg:"" optional:"" help:"Parts to restore, relative to the backup; none = all."`

	DryRun      bool   `short:"n" help:"Only say what would be restored."`
	List        bool   `help:"With --dry-run, also list each entry."`
	Scan        string `help:"Restore what a scan names, with its metadata, instead of what is there." placeholder:"DIR"`
	Trim        string `name:"strip-prefix" help:"Leading components of paths that are left out below the target." placeholder:"PREFIX"`
	DeleteExtra bool   `help:"Delete from the target what the backup does not have; of parts, below them." group:"guards"`
	MaxDelete   limit  `help:"Stop where --delete-extra would delete more: a number, or a percentage of what is there." default:"25%" placeholder:"N|P%" group:"guards"`
	ReplaceDirs bool   `help:"Replace a directory that stands in the way of a file or link, with all that is in it." group:"guards"`
	localFlags
	clusterFlags
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
	if rb, rt := realPath(c.Backup), realPath(c.Target); entry.Within(rb, rt) || entry.Within(rt, rb) {
		return &fault.Error{Kind: fault.Unsafe, Op: "restore to", Path: c.Target, Err: errors.New("backup and target lie in each other"), Hint: "choose another target"}
	}
	if c.DeleteExtra && (c.Scan != "" || c.Trim != "") {
		return fault.New(fault.Invalid, "--delete-extra compares the target with the backup itself: leave out --scan and --strip-prefix")
	}
	if !c.DryRun {
		if err := c.reach(a); err != nil {
			return err
		}
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
	files, meta, res, err := c.input(a, filepath.Join(dir, "scan"), p)
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.preview(a, files, meta, res)
	}
	spec := c.spec(c.Backup, c.Target)
	spec.Meta, spec.Trim, spec.Restore = meta, strings.Trim(c.Trim, "/"), true
	spec.DeleteEmpty, spec.SpareDirs = true, !c.ReplaceDirs
	if res != nil && res.InWay > 0 {
		spec.DeleteBefore = true
	}
	c.InMemory = true
	v, err := execute(a, c.localFlags, c.clusterFlags, dir, localJob{id: client.NewJobID(now()), spec: spec, files: files, scan: res}, p)
	if err != nil {
		return err
	}
	return c.conclude(a, v, res)
}

// marks are those that killed jobs left in a destination.
var marks = "/" + entry.MarkPrefix + strings.Repeat("[a-z2-7]", 26) + "*"

// input returns the control and meta files of what is to be restored, and the
// scan that wrote them if there was one.
func (c restoreCmd) input(a *app, out string, p *progress) (files client.Files, meta string, res *scanner.Result, err error) {
	if c.Scan == "" {
		cfg := c.config(c.Backup, out)
		cfg.Logger, cfg.Progress, cfg.Paths = a.log, p.scan, c.Paths
		cfg.Excludes = append(cfg.Excludes, marks)
		cfg.ExcludePaths = []string{c.Target}
		if fi, err := os.Stat(c.Target); c.DeleteExtra && err == nil && fi.IsDir() {
			cfg.Destination, cfg.DeleteExtra = c.Target, true
		}
		res, err := scanner.Scan(a.ctx, cfg)
		p.done()
		if err == nil {
			err = backupCmd{Destination: c.Target, MaxDelete: c.MaxDelete}.guardDeletes(res)
		}
		if err != nil {
			return files, "", nil, err
		}
		res.UnmatchedPatterns = slices.DeleteFunc(res.UnmatchedPatterns, func(p string) bool { return p == marks })
		res.Unmatched = slices.DeleteFunc(res.Unmatched, func(r scanner.Rule) bool { return r.Pattern == marks })
		return controlFiles(res), res.MetaDir, res, nil
	}
	in := inputFlags{Meta: c.Scan, Control: []string{c.Scan}}
	if files, meta, err = in.files(); err != nil || len(c.Paths) == 0 {
		return files, meta, nil, err
	}
	var names []string
	for _, f := range files.Control {
		names = append(names, f.Path)
	}
	kept, err := scanner.Filter(a.ctx, scanner.FilterConfig{Control: names, Meta: meta, Out: out, Paths: c.Paths, Now: now()})
	if err != nil {
		return files, "", nil, err
	}
	return controlFiles(&scanner.Result{ControlFiles: kept}), meta, nil, nil
}
