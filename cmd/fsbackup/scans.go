package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/history"
)

type scansCmd struct {
	List  scansListCmd  `cmd:"" default:"withargs" help:"List what is kept from run to run."`
	Drop  scansDropCmd  `cmd:"" help:"Remove a scan; a job of it that has not ended is ended first."`
	Reset scansResetCmd `cmd:"" help:"End what an interrupted run has left, and forget what is known of the destination: the next run compares with what it holds."`
}

type scansListCmd struct {
	Source      string `arg:"" optional:"" help:"Source of a pair; none = all pairs."`
	Destination string `arg:"" optional:"" help:"Its destination."`
	JSON        bool   `help:"Print JSON."`
	stateFlags
}

// Run lists pairs, or the scans of one.
func (c scansListCmd) Run(a *app) error {
	root, err := c.root(a)
	if err != nil {
		return err
	}
	if c.Destination == "" {
		return c.pairs(a, root)
	}
	pair, err := openPair(root, c.Source, c.Destination)
	if err != nil {
		return err
	}
	defer func() { _ = pair.Close() }() // the lock goes with the process
	scans, err := pair.Scans()
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, struct {
			Dir   string          `json:"dir"`
			Scans []*history.Scan `json:"scans"`
		}{pair.Dir, scans})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SCAN\tSTATUS\tKIND\tFILES\tDATA\tDIRECTORY")
	for _, s := range scans {
		kind := "full"
		if s.Incremental {
			kind = "incremental"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", s.ID, s.Status, kind, s.Files, bytesText(s.Bytes), s.Dir)
	}
	return w.Flush() //nolint:wrapcheck // the writer names itself
}

func (c scansListCmd) pairs(a *app, root string) error {
	known, err := history.List(root)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, map[string]any{"pairs": known})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "LAST RUN\tSOURCE -> DESTINATION\tDIRECTORY")
	for _, k := range known {
		last := "-"
		if !k.CommittedAt.IsZero() {
			last = k.CommittedAt.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s -> %s\t%s\n", last, k.Source, k.Destination, k.Dir)
	}
	return w.Flush() //nolint:wrapcheck // the writer names itself
}

func openPair(root, source, destination string) (*history.Pair, error) {
	src, err := absolute(source)
	if err != nil {
		return nil, err
	}
	dst, err := absolute(destination)
	if err != nil {
		return nil, err
	}
	return history.Open(root, src, dst)
}

type pairArgs struct {
	Source      string `arg:"" help:"Source of the pair."`
	Destination string `arg:"" help:"Its destination."`
	Abandon     bool   `help:"Ask nobody about the cluster's job that an interrupted run has left: the cluster is gone for good. A job that is not would go on."`
	stateFlags
	clusterFlags
}

// with calls f with the pair.
func (p pairArgs) with(a *app, f func(*history.Pair) error) error {
	root, err := p.root(a)
	if err != nil {
		return err
	}
	pair, err := openPair(root, p.Source, p.Destination)
	if err != nil {
		return err
	}
	defer func() { _ = pair.Close() }() // the lock goes with the process
	return f(pair)
}

type scansDropCmd struct {
	pairArgs
	Scan string `arg:"" help:"Id of the scan."`
}

// Run removes a scan. Where its job has not ended, that is ended first.
func (c scansDropCmd) Run(a *app) error {
	return c.with(a, func(p *history.Pair) error {
		pending, err := p.Pending()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(pending, func(s *history.Scan) bool { return s.ID == c.Scan }) {
			if err := c.endQueued(a, p); err != nil {
				return err
			}
		}
		return p.Drop(c.Scan)
	})
}

type scansResetCmd struct{ pairArgs }

// Run ends what an interrupted run has left, and forgets what is known of a
// destination.
func (c scansResetCmd) Run(a *app) error {
	return c.with(a, func(p *history.Pair) error {
		if err := c.endQueued(a, p); err != nil {
			return err
		}
		return p.Forget()
	})
}

// endQueued ends the job that an interrupted run of a pair has left in its queue, and
// settles what it has done.
func (p pairArgs) endQueued(a *app, pair *history.Pair) error {
	b := &backup{
		backupCmd: backupCmd{Source: pair.Source, Destination: pair.Destination, clusterFlags: p.clusterFlags, localFlags: localFlags{Slots: 1, Quiet: true}},
		app:       a, pair: pair, progress: newProgress(a.stderr, true), ending: true,
	}
	cluster, err := pair.ClusterDir()
	if err != nil {
		return err
	}
	if p.Abandon {
		if err := abandon(pair); err != nil {
			return err
		}
	}
	if err := b.resume(cluster); err != nil {
		return err
	}
	if err := os.RemoveAll(cluster); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "remove the queue in", Path: cluster, Err: errors.Unwrap(err)}
	}
	return nil
}

// abandon forgets the jobs that a pair has on a cluster. The next run looks at all
// that their scans have.
func abandon(pair *history.Pair) error {
	pending, err := pair.Pending()
	if err != nil {
		return err
	}
	for _, s := range pending {
		if s.Cluster {
			if err := s.ForgetJob(); err != nil {
				return err
			}
		}
	}
	return nil
}
