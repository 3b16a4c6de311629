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

	Repair       bool   `help:"Copy what differs, and nothing else, then compare once more: the exit code is that of the second time." group:"repair"`
	DeleteExtra  bool   `help:"With --repair, delete from the destination what the source does not have." group:"repair"`
	MaxDelete    limit  `help:"Stop where --delete-extra would delete more: a number, or a percentage of what is there." default:"25%" placeholder:"N|P%" group:"repair"`
	ReplaceDirs  bool   `help:"With --repair, replace a directory that stands in the way of a file or link, with all that is in it." group:"repair"`
	NoMeta       bool   `help:"Compare types and contents only." group:"job"`
	Vanished     string `help:"Sources that go meanwhile: fail, skip." default:"fail" enum:"fail,skip" group:"job"`
	MaxFailures  int64  `help:"Differences that leave the status at completed; -1 = any." default:"0" placeholder:"N" group:"job"`
	FailFast     bool   `help:"Stop at the first difference that is not tolerated." group:"job"`
	Threads      int    `help:"Entries in flight; 0 = the worker's own limit." default:"0" placeholder:"N" group:"job"`
	Memory       size   `help:"Buffers, such as 64MiB; -1 = the worker's own limit." default:"-1" placeholder:"SIZE" group:"job"`
	ShardEntries int    `help:"Entries of a shard." default:"2000" placeholder:"N" group:"job"`
	ShardBytes   size   `help:"Data of a shard." default:"256MiB" placeholder:"SIZE" group:"job"`
	localFlags
	clusterFlags
	scanFlags

	stdin string // what the standard input had, for more than one scan; "" = it is read by the one
}

// Run scans the source and compares the destination with it. Without --repair it
// changes neither.
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
	if err := c.checkRepair(); err != nil {
		return err
	}
	if err := c.reach(a); err != nil {
		return err
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	c.InMemory = true
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	if c.Repair {
		return c.repair(a, dir, p)
	}
	v, res, err := c.compare(a, dir, "scan", p, nil)
	if err != nil {
		return err
	}
	return c.conclude(a, v, res)
}

// compare scans the source and compares the destination with it; told is that of
// localJob.
func (c verifyCmd) compare(a *app, dir, name string, p *progress, told func(*client.Client, protocol.JobView, *scanner.Result) error) (protocol.JobView, *scanner.Result, error) {
	res, err := c.scan(a, dir, name, p, nil)
	if err != nil {
		return protocol.JobView{}, nil, err
	}
	j := localJob{id: client.NewJobID(now()), spec: c.spec(res.MetaDir), files: controlFiles(res), scan: res}
	if told != nil {
		j.told = func(cl *client.Client, v protocol.JobView) error { return told(cl, v, res) }
	}
	v, err := execute(a, c.localFlags, c.clusterFlags, dir, j, p)
	return v, res, err
}

// scan scans the source; more changes how.
func (c verifyCmd) scan(a *app, dir, name string, p *progress, more func(*scanner.Config)) (*scanner.Result, error) {
	cfg := c.config(c.Source, filepath.Join(dir, name))
	cfg.Logger, cfg.Progress = a.log, p.scan
	cfg.ExcludePaths = []string{c.Destination, dir}
	if c.stdin != "" {
		f, err := os.Open(c.stdin)
		if err != nil {
			return nil, &fault.Error{Kind: fault.KindOf(err), Op: "read again", Path: c.stdin, Err: errors.Unwrap(err)}
		}
		defer func() { _ = f.Close() }() // read only
		cfg.Stdin = f
	}
	if more != nil {
		more(&cfg)
	}
	res, err := scanner.Scan(a.ctx, cfg)
	p.done()
	return res, err
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
