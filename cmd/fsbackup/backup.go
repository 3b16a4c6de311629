package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/history"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// stateFlags say where the history of a source and its destination is.
type stateFlags struct {
	StateDir string `help:"Directory for what is known from run to run; default: $XDG_STATE_HOME/fsbackup, /var/lib/fsbackup for root, else ~/.local/state/fsbackup." placeholder:"DIR" env:"FSBACKUP_STATE_DIR" group:"state"`
}

// root returns the directory below which histories are.
func (f stateFlags) root(a *app) (string, error) {
	if f.StateDir != "" {
		return absolute(f.StateDir)
	}
	if xdg := a.getenv("XDG_STATE_HOME"); filepath.IsAbs(xdg) {
		return filepath.Join(xdg, "fsbackup"), nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/fsbackup", nil
	}
	home := a.getenv("HOME")
	if home == "" {
		return "", fault.Hinted(fault.Invalid, "name one with --state-dir, or go without: --no-state", "no state directory: HOME is not set")
	}
	return filepath.Join(home, ".local", "state", "fsbackup"), nil
}

type backupCmd struct {
	Source      string `arg:"" help:"Directory to back up."`
	Destination string `arg:"" help:"Directory to put it in; made if missing."`

	Incremental       bool  `short:"i" help:"Copy only what changed since the last run, delete what is gone."`
	DryRun            bool  `short:"n" help:"Only say what would be done."`
	List              bool  `help:"With --dry-run, also list each entry."`
	NoState           bool  `help:"Keep nothing from this run: the next one is a full one." group:"state"`
	KeepScans         int   `help:"Scans to keep, for restores of parts." default:"3" placeholder:"N" group:"state"`
	MaxDelete         limit `help:"Stop where more would be deleted: a number, or a percentage of what is there." default:"25%" placeholder:"N|P%" group:"guards"`
	TrustMtime        bool  `help:"Take the contents of a file as unchanged if its size and modification time are; without, they are compared where only metadata seems to have changed." group:"job"`
	DeleteExcluded    bool  `help:"Delete from the destination what is now excluded." group:"guards"`
	AcceptSource      bool  `help:"Go on although the source is another directory or file system than last time." group:"guards"`
	AcceptDestination bool  `help:"Go on, with a full backup, although the destination is not the one of last time." group:"guards"`
	stateFlags
	localFlags
	scanFlags
	jobFlags
}

// Run scans and runs the job on a cluster of one.
func (c backupCmd) Run(a *app) error {
	var err error
	if c.Source, err = absolute(c.Source); err != nil {
		return err
	}
	if c.Destination, err = absolute(c.Destination); err != nil {
		return err
	}
	if err := checkRoots(c.Source, c.Destination); err != nil {
		return err
	}
	if c.NoState {
		return c.withoutState(a)
	}
	root, err := c.root(a)
	if err != nil {
		return err
	}
	pair, err := history.Open(root, c.Source, c.Destination)
	if err != nil {
		return err
	}
	defer func() { _ = pair.Close() }() // the lock goes with the process
	b := &backup{backupCmd: c, app: a, pair: pair, progress: newProgress(a.stderr, c.Quiet || c.JSON)}
	return b.run()
}

// withoutState is a full backup that leaves nothing behind.
func (c backupCmd) withoutState(a *app) error {
	if c.Incremental {
		return fault.New(fault.Invalid, "--incremental needs the state that --no-state does not keep")
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	c.InMemory = true
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	cfg := c.config(c.Source, filepath.Join(dir, "scan"))
	cfg.Logger, cfg.Progress = a.log, p.scan
	cfg.ExcludePaths = []string{c.Destination, dir}
	res, err := scanner.Scan(a.ctx, cfg)
	p.done()
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.preview(a, res, nil)
	}
	v, err := c.execute(a, dir, localJob{id: client.NewJobID(now()), spec: c.jobSpec(res), files: controlFiles(res)}, p)
	if err != nil {
		return err
	}
	return c.conclude(a, v, res)
}

func (c backupCmd) jobSpec(res *scanner.Result) protocol.JobSpec {
	spec := c.spec(c.Source, c.Destination)
	spec.Meta = res.MetaDir
	// What is excluded is still in the source, which otherwise keeps it.
	spec.DeleteUnchecked = c.DeleteExcluded
	// A new owner or mode and contents that were changed with their time put
	// back look alike in a stat.
	spec.CheckContents = !c.TrustMtime
	return spec
}

func controlFiles(res *scanner.Result) client.Files {
	var files client.Files
	for _, f := range res.ControlFiles {
		files.Control = append(files.Control, protocol.FileRef{Path: f.Path, Phase: phaseOf(f.Kind)})
	}
	slices.SortStableFunc(files.Control, func(x, y protocol.FileRef) int { return cmp.Compare(x.Phase, y.Phase) })
	return files
}

// backup is a run with a history.
type backup struct {
	backupCmd
	app      *app
	pair     *history.Pair
	progress *progress
}

func (b *backup) run() error {
	if err := b.guardRoots(); err != nil {
		return err
	}
	cluster, err := b.pair.ClusterDir()
	if err != nil {
		return err
	}
	if !b.DryRun {
		if err := b.resume(cluster); err != nil {
			return err
		}
	}
	scan, res, changes, err := b.scan()
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			if err := scan.Discard(); err != nil {
				b.app.log.Warn("a scan that was not used cannot be removed", "dir", scan.Dir, "error", err)
			}
		}
	}()
	if b.DryRun {
		return b.preview(b.app, res, changes)
	}
	if err := b.guardDeletes(res); err != nil {
		return err
	}
	keep = true
	id := client.NewJobID(now())
	if err := scan.MarkPending(id, res); err != nil {
		return err
	}
	var v protocol.JobView
	if len(res.ControlFiles) == 0 {
		v = protocol.JobView{ID: id, State: protocol.StateCompleted, Status: protocol.StateCompleted.Status(), Spec: b.jobSpec(res)}
		err = b.pair.Commit(scan, nil, now())
	} else {
		v, err = b.execute(b.app, cluster, localJob{
			id: id, spec: b.jobSpec(res), files: controlFiles(res),
			ended: func(cl *client.Client, v protocol.JobView) error { return b.settle(cl, scan, v) },
		}, b.progress)
	}
	if err != nil {
		return err
	}
	if _, err := b.pair.Prune(b.KeepScans); err != nil {
		return err
	}
	return b.conclude(b.app, v, res)
}

// scan scans, against what is known if asked to.
func (b *backup) scan() (*history.Scan, *scanner.Result, []scanner.Change, error) {
	pending, err := b.pair.Pending()
	if err != nil {
		return nil, nil, nil, err
	}
	incremental := b.Incremental && b.pair.Committed() != ""
	if b.Incremental && !incremental && !b.Quiet {
		fmt.Fprintln(b.app.stderr, "no finished run is known of this source and destination: this is a full backup")
	}
	scan, err := b.pair.Begin(now(), incremental)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg := b.config(b.Source, scan.Dir)
	cfg.Logger, cfg.Progress = b.app.log, b.progress.scan
	cfg.ExcludePaths = []string{b.Destination, b.pair.Dir}
	cfg.Incremental, cfg.Committed, cfg.DeleteExcluded = incremental, b.pair.Committed(), b.DeleteExcluded
	for _, s := range pending {
		cfg.Pending = append(cfg.Pending, s.StateFile())
	}
	var changes []scanner.Change
	if b.DryRun && b.List {
		cfg.OnChange = func(c scanner.Change) { changes = append(changes, c) }
	}
	res, err := scanner.Scan(b.app.ctx, cfg)
	b.progress.done()
	if err != nil {
		return nil, nil, nil, errors.Join(err, scan.Discard())
	}
	return scan, res, changes, nil
}

// settle commits what a job has done and forgets the job. A job that did not
// come to its end stays pending.
func (b *backup) settle(cl *client.Client, scan *history.Scan, v protocol.JobView) error {
	if v.State == protocol.StateCancelled || v.Stats.FilesRefused > 0 {
		return nil
	}
	failed := func(yield func(scanner.Failed, error) bool) {
		stopped := errors.New("no more are wanted")
		err := cl.Failures(b.app.ctx, v.ID, func(f protocol.FailureView) error {
			path := f.Path
			if len(f.PathBytes) > 0 {
				path = string(f.PathBytes)
			}
			if !yield(scanner.Failed{Path: strings.Trim(path, "/"), Delete: f.Phase == protocol.PhaseDelete}, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			yield(scanner.Failed{}, err)
		}
	}
	if err := b.pair.Commit(scan, failed, now()); err != nil {
		return err
	}
	_, err := cl.Drop(b.app.ctx, v.ID)
	return err
}

// resume follows the job that an interrupted run left to its end.
func (b *backup) resume(cluster string) error {
	pending, err := b.pair.Pending()
	if err != nil || len(pending) == 0 {
		return err
	}
	last := pending[len(pending)-1]
	if last.Job == "" || !left(cluster) {
		return nil
	}
	if !b.Quiet {
		fmt.Fprintf(b.app.stderr, "an interrupted run is resumed: job %s\n", last.Job)
	}
	spec := protocol.JobSpec{Source: b.Source, Destination: b.Destination}
	v, err := b.execute(b.app, cluster, localJob{
		id: last.Job, spec: spec, resume: true,
		ended: func(cl *client.Client, v protocol.JobView) error { return b.settle(cl, last, v) },
	}, b.progress)
	if fault.Is(err, fault.NotFound) {
		// It was killed before the job was submitted: nothing was done.
		return nil
	}
	if err == nil && v.Failures > 0 && !b.Quiet {
		fmt.Fprintf(b.app.stderr, "the interrupted run ended: %s; what failed is tried again\n", v.Reason)
	}
	return err
}

// left reports whether a cluster's directory has anything to resume.
func left(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "nats", "jetstream"))
	return err == nil
}

// guardRoots stops where source or destination are not what they were: an
// unmounted disk looks like an empty directory.
func (b *backup) guardRoots() error {
	src, dst := b.pair.Roots()
	if src != nil && !b.AcceptSource {
		if err := same(b.Source, *src, "source", "--accept-source"); err != nil {
			return err
		}
	}
	if dst == nil {
		return nil
	}
	err := same(b.Destination, *dst, "destination", "--accept-destination")
	if err == nil || !b.AcceptDestination {
		return err
	}
	// Nothing is known of the new one.
	return b.pair.Forget()
}

func same(path string, was history.RootID, what, flag string) error {
	is, err := history.Identify(path)
	switch {
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case err != nil:
		return &fault.Error{Kind: fault.Unsafe, Op: "use " + what, Path: path, Err: errors.New("it is gone since the last run"), Hint: "is it mounted? go on with " + flag}
	case is != was:
		return &fault.Error{Kind: fault.Unsafe, Op: "use " + what, Path: path, Err: errors.New("it is not the directory of the last run"), Hint: "is it mounted? go on with " + flag}
	}
	return nil
}

// guardDeletes stops where more would be deleted than expected.
func (b *backup) guardDeletes(res *scanner.Result) error {
	if !b.MaxDelete.exceeded(res.GoneEntries, res.PreviousEntries) {
		return nil
	}
	return &fault.Error{
		Kind: fault.Unsafe, Op: "delete from", Path: b.Destination,
		Err:  fmt.Errorf("%d of %d entries are gone from the source, more than --max-delete %s", res.GoneEntries, res.PreviousEntries, b.MaxDelete),
		Hint: "look with --dry-run --list; go on with --max-delete 100%",
	}
}

// limit is a number, or a percentage of another.
type limit struct {
	n       uint64
	percent bool
}

// UnmarshalText parses 1000 or 25%.
func (l *limit) UnmarshalText(text []byte) error {
	s, percent := strings.CutSuffix(strings.TrimSpace(string(text)), "%")
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || (percent && n > 100) {
		return fault.New(fault.Invalid, "%q is neither a number nor a percentage such as 25%%", text)
	}
	*l = limit{n, percent}
	return nil
}

// String is the inverse of UnmarshalText.
func (l limit) String() string {
	if l.percent {
		return strconv.FormatUint(l.n, 10) + "%"
	}
	return strconv.FormatUint(l.n, 10)
}

func (l limit) exceeded(n, of uint64) bool {
	if l.percent {
		return l.n < 100 && float64(n)*100 > float64(of)*float64(l.n)
	}
	return n > l.n
}

// conclude prints what became of a run and returns what it means.
func (c backupCmd) conclude(a *app, v protocol.JobView, res *scanner.Result) error {
	if c.JSON {
		err := printJSON(a.stdout, struct {
			Job  protocol.JobView `json:"job"`
			Scan *scanner.Result  `json:"scan"`
		}{v, res})
		if err != nil {
			return err
		}
	} else if !c.Quiet {
		if res.Unchanged > 0 {
			fmt.Fprintf(a.stdout, "unchanged: %d\n", res.Unchanged)
		}
		printSummary(a.stdout, v)
	}
	if !c.Quiet {
		printProblems(a.stderr, res)
	}
	if err := ended(v); err != nil {
		return err
	}
	if res.ProblemCount > 0 {
		return errFailures
	}
	return nil
}

// preview prints what a run would do.
func (c backupCmd) preview(a *app, res *scanner.Result, changes []scanner.Change) error {
	if c.JSON {
		return printJSON(a.stdout, struct {
			Scan    *scanner.Result  `json:"scan"`
			Changes []scanner.Change `json:"changes,omitempty"`
		}{res, changes})
	}
	for _, ch := range changes {
		kind := ""
		if ch.IsDir {
			kind = "/"
		}
		fmt.Fprintf(a.stdout, "%s %s %q\n", ch.Op, cmp.Or(ch.Mode, "-"), ch.Path+kind)
	}
	printPlan(a.stdout, res)
	printProblems(a.stderr, res)
	if err := (&backup{backupCmd: c}).guardDeletes(res); err != nil {
		fmt.Fprintf(a.stderr, "a real run would stop: %s\n", oneLine(err))
	}
	return nil
}
