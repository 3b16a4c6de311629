package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

type workersCmd struct {
	connection
	JSON bool `help:"Print JSON."`
}

// Run lists workers.
func (c workersCmd) Run(a *app) error {
	cl, free, err := c.connect(a)
	if err != nil {
		return err
	}
	defer free()
	r, err := cl.Workers(a.ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, r)
	}
	return printWorkers(a.stdout, r)
}

// printWorkers prints a table, and beneath it what hangs.
func printWorkers(out io.Writer, r protocol.WorkersReply) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "WORKER\tSTATE\tPOOL\tHOST\tRUNNING\tTHREADS\tDONE\tMEMORY\tUID\tCAN\tROOTS")
	for _, v := range r.Workers {
		uid, can := abilities(v.Abilities)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d\t%d\t%d\t%s\t%s\t%s\t%v\n", v.Name, v.State, v.Pool, v.Host, len(v.Running), v.Slots, v.Threads, v.Done, bytesText(uint64(v.RSS)), uid, can, v.Allow)
	}
	if err := w.Flush(); err != nil {
		return err //nolint:wrapcheck // the writer names itself
	}
	for _, v := range r.Workers {
		for _, h := range v.Hung {
			fmt.Fprintf(out, "hung: worker %s, job %s: %s %q, no progress since %s\n", v.Name, h.Job, h.Doing, h.Path, h.Since.Local().Format(time.DateTime))
		}
	}
	return nil
}

// abilities says as whom a worker runs, and what it can do with file systems.
func abilities(a *protocol.Abilities) (uid, can string) {
	if a == nil {
		return "?", "?"
	}
	switch lacks := strings.Join(a.Lacks, ","); {
	case len(a.Lacks) == len(engine.AllAbilities()):
		can = "own files only"
	case lacks != "":
		can = "all but " + lacks
	default:
		can = "all"
	}
	if a.IDs != "" {
		can += " (ids of a namespace)"
	}
	return strconv.FormatUint(uint64(a.EUID), 10), can
}

type drainCmd struct {
	connection
	Worker string `arg:"" help:"Name of the worker."`
	JSON   bool   `help:"Print JSON."`
}

// Run drains a worker.
func (c drainCmd) Run(a *app) error {
	cl, free, err := c.connect(a)
	if err != nil {
		return err
	}
	defer free()
	r, err := cl.Drain(a.ctx, c.Worker)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.stdout, r)
	}
	fmt.Fprintf(a.stdout, "worker %s takes no more shards; it leaves when it has finished what it has (fsbackup workers)\n", c.Worker)
	return nil
}
