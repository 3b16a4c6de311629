package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

type verifyCmd struct {
	Source      string `arg:"" help:"Directory that was backed up."`
	Destination string `arg:"" help:"Directory that holds the backup."`

	NoMeta       bool   `help:"Compare types and contents only." group:"job"`
	Vanished     string `help:"Sources that go meanwhile: fail, skip." default:"fail" enum:"fail,skip" group:"job"`
	MaxFailures  int64  `help:"Differences that leave the status at completed; -1 = any." default:"0" placeholder:"N" group:"job"`
	FailFast     bool   `help:"Stop at the first difference that is not tolerated." group:"job"`
	Threads      int    `help:"Entries in flight; 0 = the worker's own limit." default:"0" placeholder:"N" group:"job"`
	Memory       size   `help:"Buffers, such as 64MiB; -1 = the worker's own limit." default:"-1" placeholder:"SIZE" group:"job"`
	ShardEntries int    `help:"Entries of a shard." default:"2000" placeholder:"N" group:"job"`
	ShardBytes   size   `help:"Data of a shard." default:"256MiB" placeholder:"SIZE" group:"job"`
	localFlags
	scanFlags
}

// Run scans the source and compares the destination with it, in a cluster of one.
// It changes neither.
func (c verifyCmd) Run(a *app) error {
	var err error
	if c.Source, err = absolute(c.Source); err != nil {
		return err
	}
	if c.Destination, err = absolute(c.Destination); err != nil {
		return err
	}
	for _, p := range []string{c.Source, c.Destination} {
		if fi, err := os.Stat(p); err != nil || !fi.IsDir() {
			return &fault.Error{Kind: fault.NotFound, Op: "verify", Path: p, Err: errors.New("it is no directory"), Hint: "name the directory that was backed up, then the one that holds the backup"}
		}
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	cfg := c.config(c.Source, filepath.Join(dir, "scan"))
	cfg.Logger, cfg.Progress = a.log, p.scan
	cfg.ExcludePaths = []string{c.Destination, dir}
	res, err := scanner.Scan(a.ctx, cfg)
	p.done()
	if err != nil {
		return err
	}
	c.InMemory = true
	v, err := c.execute(a, dir, localJob{id: client.NewJobID(now()), spec: c.spec(res.MetaDir), files: controlFiles(res)}, p)
	if err != nil {
		return err
	}
	return backupCmd{localFlags: c.localFlags}.conclude(a, v, res)
}

func (c verifyCmd) spec(meta string) protocol.JobSpec {
	return protocol.JobSpec{
		Source: c.Source, Destination: c.Destination, Meta: meta, Pool: client.DefaultPool, VerifyOnly: true,
		WriteMeta: !c.NoMeta, Vanished: c.Vanished, MaxFailures: c.MaxFailures, FailFast: c.FailFast, Threads: c.Threads, Memory: int64(c.Memory),
		Limits: protocol.Limits{Entries: c.ShardEntries, DataBytes: uint64(max(c.ShardBytes, 0))},
	}
}

// printVerified prints the figures of a job that compares.
func printVerified(out io.Writer, s protocol.Stats) {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tto verify\tidentical\tdiffer\tfailed\t")
	fmt.Fprintf(w, "directories\t%d\t%d\t%d\t%d\t\n", s.DirsToBackup, s.DirsVerified, s.DirsDiffer, s.DirsFailed-min(s.DirsDiffer, s.DirsFailed))
	fmt.Fprintf(w, "files\t%d\t%d\t%d\t%d\t\n", s.FilesToBackup, s.FilesVerified, s.FilesDiffer, s.FilesFailed-min(s.FilesDiffer, s.FilesFailed))
	fmt.Fprintf(w, "bytes\t%d\t%d\t\t\t\n", s.BytesToBackup, s.BytesVerified)
	_ = w.Flush() // an error of the terminal shows itself
	fmt.Fprintf(out, "extra names in the destination: %d\n", s.Extra)
}
