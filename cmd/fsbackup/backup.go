package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/engine"
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

	Full              bool  `help:"Copy everything again, whatever the destination has." xor:"how"`
	Incremental       bool  `short:"i" help:"What every run does: copy what changed or is wrong in the destination, delete what is gone." xor:"how"`
	TrustHistory      bool  `help:"Do not look at the destination, for speed: take it to hold what the last runs left there." group:"state"`
	Checksum          bool  `help:"Compare the contents of files that the destination had before the first run; without, size and time decide." group:"job"`
	DryRun            bool  `short:"n" help:"Only say what would be done."`
	List              bool  `help:"With --dry-run, also list each entry."`
	NoState           bool  `help:"Keep nothing from this run: the next one knows only what the destination shows." group:"state"`
	KeepScans         int   `help:"Scans to keep, for restores of parts." default:"3" placeholder:"N" group:"state"`
	MaxDelete         limit `help:"Stop where more would be deleted: a number, or a percentage of what is there." default:"25%" placeholder:"N|P%" group:"guards"`
	TrustMtime        bool  `help:"Take the contents of a file as unchanged if its size and modification time are; without, they are compared where only metadata seems to have changed." group:"job"`
	DeleteExcluded    bool  `help:"Delete from the destination what is excluded." group:"guards"`
	DeleteExtra       bool  `help:"Delete from the destination what the source does not have and no run has put there." group:"guards"`
	ReplaceDirs       bool  `help:"Replace a directory that stands in the way of a file or link, with all that is in it." group:"guards"`
	AcceptSource      bool  `help:"Go on although the source is another directory or file system than last time, or lacks mounts that it had." group:"guards"`
	AcceptDestination bool  `help:"Go on although the destination is not the one of last time: compare with what it holds." group:"guards"`
	stateFlags
	localFlags
	clusterFlags
	scanFlags
	jobFlags
}

// Run scans and runs the job, on a cluster of one or on that which is named.
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
	if c.DeleteExtra && c.TrustHistory {
		return fault.New(fault.Invalid, "--delete-extra has to look at the destination, which --trust-history leaves out: leave out one of both")
	}
	if !c.DryRun {
		if err := c.reach(a); err != nil {
			return err
		}
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

// withoutState compares with what the destination shows, and leaves nothing behind.
func (c backupCmd) withoutState(a *app) error {
	if c.TrustHistory {
		return fault.New(fault.Invalid, "--trust-history needs the state that --no-state does not keep: leave out one of both")
	}
	dir, free, err := tempDir(a)
	if err != nil {
		return err
	}
	defer free()
	c.InMemory = true
	p := newProgress(a.stderr, c.Quiet || c.JSON)
	cfg := c.scanConfig(filepath.Join(dir, "scan"))
	cfg.Logger, cfg.Progress = a.log, p.scan
	cfg.ExcludePaths = []string{c.Destination, dir}
	var changes []scanner.Change
	if c.DryRun && c.List {
		cfg.OnChange = func(ch scanner.Change) { changes = append(changes, ch) }
	}
	res, err := scanner.Scan(a.ctx, cfg)
	p.done()
	if err != nil {
		return err
	}
	if c.DryRun {
		return c.preview(a, res, changes)
	}
	if err := c.guardDeletes(res); err != nil {
		return err
	}
	j := localJob{id: client.NewJobID(now()), spec: c.jobSpec(res, false), files: controlFiles(res), scan: res}
	v := nothingToDo(j)
	if len(res.ControlFiles) > 0 {
		if v, err = c.execute(a, dir, j, p); err != nil {
			return err
		}
	}
	return c.conclude(a, v, res)
}

// scanConfig returns how the source is scanned and compared, without history.
func (c backupCmd) scanConfig(out string) scanner.Config {
	cfg := c.config(c.Source, out)
	cfg.Incremental, cfg.DeleteExcluded, cfg.DeleteExtra, cfg.ReplaceDirs = !c.Full, c.DeleteExcluded, c.DeleteExtra, c.ReplaceDirs
	cfg.NoMeta, cfg.Checksum = c.NoMeta, c.Checksum
	if fi, err := os.Stat(c.Destination); err == nil && fi.IsDir() {
		cfg.Destination = c.Destination
	}
	return cfg
}

// nothingToDo is the job of a run that finds everything as it should be.
func nothingToDo(j localJob) protocol.JobView {
	return protocol.JobView{ID: j.id, State: protocol.StateCompleted, Status: protocol.StateCompleted.Status(), Answered: true, Spec: j.spec}
}

// execute has a job done by the cluster that is named, or by one of this process.
func (c backupCmd) execute(a *app, dir string, j localJob, p *progress) (protocol.JobView, error) {
	return execute(a, c.localFlags, c.clusterFlags, dir, j, p)
}

// jobSpec returns the job of a scan. known says that it was compared with a history.
func (c backupCmd) jobSpec(res *scanner.Result, known bool) protocol.JobSpec {
	spec := c.spec(c.Source, c.Destination)
	spec.Meta = res.MetaDir
	// What is excluded is still in the source, which otherwise keeps it.
	spec.DeleteUnchecked = c.DeleteExcluded
	// A new owner or mode and contents that were changed with their time put
	// back look alike in a stat. Where nothing is known of the copies, size and time
	// are to decide.
	spec.CheckContents = !c.TrustMtime && (known || c.Checksum)
	spec.DeleteEmpty, spec.SpareDirs = true, !c.ReplaceDirs
	// What stands in the way of something else has to go first.
	spec.DeleteBefore = spec.DeleteBefore || res.InWay > 0
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
	mounts   []string // mount points below the source
	noLinks  bool     // the destination is known to refuse hard links
	ending   bool     // what an interrupted run has left is to be ended
	distrust string   // why the destination is looked at although history was to be trusted
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
	spec := b.jobSpec(res, b.pair.Committed() != "")
	spec.ExpectTargets = !res.Listed && b.pair.Committed() != ""
	j := localJob{id: client.NewJobID(now()), spec: spec, files: controlFiles(res), scan: res, refused: scan.Discard}
	j.ended = func(cl *client.Client, v protocol.JobView) error { return b.settle(cl, scan, v, res) }
	scan.Cluster, scan.Options, scan.Mounts, scan.By = b.NATS != "", b.options(), b.mounts, b.means()
	scan.By.LinksCopied = b.noLinks // until a run by other means finds that they can be made
	scan.Settled = res.Settled
	scan.Settles = res.Listed || b.pair.Committed() == ""
	if err := scan.MarkPending(j.id, res); err != nil {
		return err
	}
	v := nothingToDo(j)
	if len(res.ControlFiles) == 0 {
		err = b.pair.Commit(scan, nil, now(), false, endingOf(scan.By, v, res))
	} else {
		stop := b.live()
		v, err = b.execute(b.app, cluster, j, b.progress)
		stop()
	}
	if err != nil {
		return err
	}
	if _, err := b.pair.Prune(b.KeepScans); err != nil {
		return err
	}
	if b.distrust != "" && !b.Quiet {
		fmt.Fprintf(b.app.stderr, "the destination was looked at all the same: %s\n", b.distrust)
	}
	if spec.ExpectTargets && !b.Quiet && slices.ContainsFunc(v.Warnings, func(w protocol.Warning) bool { return w.Kind == engine.WarnUnexpected }) {
		fmt.Fprintln(b.app.stderr, "the destination is not what history says: run it once more, which looks at all of it")
	}
	return b.conclude(b.app, v, res)
}

// means says by what rights and with which options this run writes. The last part is
// known when its job has ended.
func (b *backup) means() history.Ending {
	rights := ownRights()
	if b.NATS != "" {
		rights = "those of the cluster's workers"
	}
	return history.Ending{
		Means:       fmt.Sprintf("%s, metadata %v, replace %s", rights, !b.NoMeta, b.Replace),
		NoMeta:      b.NoMeta,
		KeptTargets: b.Replace != "always", Lossy: b.NoMeta || b.Replace != "always",
	}
}

// endingOf completes it.
func endingOf(by history.Ending, v protocol.JobView, res *scanner.Result) history.Ending {
	if res == nil { // of an interrupted run
		by.Lossy = true
		res = &scanner.Result{}
	}
	by.LinksCopied = by.LinksCopied || v.Stats.LinksCopied > 0
	by.Lossy = by.Lossy || v.Stats.Skipped > v.Stats.SkippedDeletes || len(v.Warnings) > 0 || len(res.Lacking) > 0
	lost := func(kind string) bool {
		return kind == scanner.LackAttrs || strings.HasPrefix(kind, "acl-") || strings.HasPrefix(kind, "xattr-")
	}
	by.AttrsLost = slices.ContainsFunc(v.Warnings, func(w protocol.Warning) bool { return lost(w.Kind) }) ||
		slices.ContainsFunc(res.Lacking, func(l scanner.Lacking) bool { return lost(l.Kind) })
	return by
}

// options renders what the job depends on. An interrupted run is gone on with only
// if it is asked for the same.
func (b *backup) options() string {
	c := b.backupCmd
	c.localFlags, c.clusterFlags, c.stateFlags = localFlags{}, clusterFlags{}, stateFlags{}
	c.Source, c.Destination, c.Incremental, c.KeepScans, c.Name, c.Priority = "", "", false, 0, "", 0
	c.Threads, c.Memory, c.MaxWorkers, c.ScanWorkers, c.ScanMemory, c.DryRun, c.List = 0, 0, 0, 0, 0, false, false
	c.AcceptSource, c.AcceptDestination, c.MaxDelete = false, false, limit{}
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v", c))
	return hex.EncodeToString(sum[:8])
}

// scan scans, against what is known and what the destination has.
func (b *backup) scan() (*history.Scan, *scanner.Result, []scanner.Change, error) {
	pending, err := b.pair.Pending()
	if err != nil {
		return nil, nil, nil, err
	}
	known := b.pair.Committed() != ""
	scan, err := b.pair.Begin(now(), known && !b.Full)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg := b.scanConfig(scan.Dir)
	cfg.Logger, cfg.Progress = b.app.log, b.progress.scan
	cfg.ExcludePaths = []string{b.Destination, b.pair.Dir}
	last := b.pair.Last()
	if cfg.Committed = b.pair.Committed(); known {
		if began := b.pair.Began(); !began.IsZero() {
			cfg.KnownSince = scanner.Time{Sec: began.Unix(), Nsec: uint32(began.Nanosecond())}
		}
		same := last.Means == b.means().Means
		cfg.Settled, cfg.Gaps, cfg.SameMeans, cfg.KeptTargets, cfg.CheckAttrs = last.Settled, last.Gaps, same, last.KeptTargets, last.AttrsLost
		if last.NoMeta && !b.NoMeta {
			cfg.Settled = scanner.Time{Nsec: 1} // it has not looked at what this run is to mend
		}
		cfg.NoLinks = same && last.LinksCopied
		b.noLinks = cfg.NoLinks
		switch {
		case cfg.Destination == "" && !b.TrustHistory && !b.Quiet:
			fmt.Fprintln(b.app.stderr, "the destination is not there to be looked at: it is taken to hold what the last runs left in it")
		case !b.TrustHistory:
		case last.Lossy:
			b.distrust = "copies of the last run may lack something"
		default:
			cfg.Destination = ""
		}
	}
	cfg.KeepsTargets = b.Replace != "always"
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

// settle commits what an ended job has done, and forgets the job. What has no
// accepted result stays unknown, and is done by the next run: that the job's
// record tells, whatever its state. Where it cannot be told which entries failed
// or were not attempted, the scan stays pending, and the next run looks at all
// that it has.
//
// res is nil where another run has made the scan.
func (b *backup) settle(cl *client.Client, scan *history.Scan, v protocol.JobView, res *scanner.Result) error {
	err := b.pair.Commit(scan, cl.Undone(b.app.ctx, v), now(), true, endingOf(scan.By, v, res))
	if errors.Is(err, client.ErrUndoneUnknown) {
		b.app.log.Warn("the next run looks at everything", "error", err)
		err = scan.ForgetJob()
	}
	if err != nil || scan.Cluster { // others may want to look at the job
		return err
	}
	_, err = cl.Drop(b.app.ctx, v.ID)
	return err
}

// resume follows the job that an interrupted run left to its end. A run that is asked
// for something else ends it instead, and plans anew.
func (b *backup) resume(cluster string) error {
	pending, err := b.pair.Pending()
	if err != nil || len(pending) == 0 {
		return err
	}
	last := pending[len(pending)-1]
	if last.Job == "" || !last.Cluster && !left(cluster) {
		return nil
	}
	if last.Cluster && b.NATS == "" {
		return fault.Hinted(fault.Unsafe, "follow it with --nats URL as before, or end it: fsbackup scans reset --nats URL SOURCE DESTINATION (with --abandon if that cluster is gone for good)", "job %s of an earlier run may still be at work on its cluster", last.Job)
	}
	where := b.clusterFlags
	if !last.Cluster {
		where = clusterFlags{}
	}
	// A job waits for the mounts that it began with.
	other, moved := last.Options != "" && last.Options != b.options(), !slices.Equal(last.Mounts, b.mounts)
	j := localJob{
		id: last.Job, spec: protocol.JobSpec{Source: b.Source, Destination: b.Destination}, resume: true, stop: b.ending || other || moved,
		ended: func(cl *client.Client, v protocol.JobView) error { return b.settle(cl, last, v, nil) },
	}
	if !b.Quiet {
		what := "is resumed"
		switch {
		case moved && !other:
			what = "is ended, since other file systems are mounted in the source now"
		case j.stop:
			what = "is ended, since other options are given now"
		}
		fmt.Fprintf(b.app.stderr, "an interrupted run %s: job %s\n", what, last.Job)
	}
	// What was touched while nobody was at work is not to be taken for the job's. One on
	// a cluster went on, and may have ended long ago. The last that it does is to remove
	// its mark from the destination's root: where that shows, the root's time is its end.
	if last.Cluster {
		settle := j.ended
		j.ended = func(cl *client.Client, v protocol.JobView) error {
			if b.pair.Touched().After(v.Ended.Add(slack)) {
				if err := last.Unwatched(v.Ended.Add(-slack), now().Add(time.Hour)); err != nil {
					return err
				}
			}
			return settle(cl, v)
		}
	} else if err := last.Unwatched(b.pair.Seen().Add(-slack), now().Add(slack)); err != nil {
		return err
	}
	stop := b.live()
	v, err := execute(b.app, b.localFlags, where, cluster, j, b.progress)
	stop()
	if fault.Is(err, fault.NotFound) {
		// It was killed before the job was submitted: nothing was done.
		return last.ForgetJob()
	}
	if err == nil && !j.stop && v.Failures > 0 && !b.Quiet {
		fmt.Fprintf(b.app.stderr, "the interrupted run ended: %s; what failed is tried again\n", v.Reason)
	}
	return err
}

const (
	// liveEvery is the time between two signs of life of a run.
	liveEvery = 500 * time.Millisecond
	// slack is what a gap is taken to be longer than the signs of life say, on each side.
	slack = 2 * time.Second
)

// live leaves signs of life until the returned function is called.
func (b *backup) live() (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(liveEvery)
		defer tick.Stop()
		for {
			if err := b.pair.Live(); err != nil {
				// Then more is looked at, should the run be interrupted.
				b.app.log.Warn("a run leaves no sign of life", "error", err)
				return
			}
			select {
			case <-quit:
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// left reports whether a cluster's directory has anything to resume.
func left(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "nats", "jetstream"))
	return err == nil
}

// guardRoots stops where source or destination are not what they were: an
// unmounted disk looks like an empty directory.
func (b *backup) guardRoots() error {
	var err error
	if b.mounts, err = b.sourceMounts(); err != nil {
		return err
	}
	src, dst := b.pair.Roots()
	if src != nil && !b.AcceptSource {
		if err := same(b.Source, *src, "source", "--accept-source"); err != nil {
			return err
		}
	}
	if dst == nil {
		return nil
	}
	err = same(b.Destination, *dst, "destination", "--accept-destination")
	if err == nil || !b.AcceptDestination {
		return err
	}
	// Nothing is known of the new one.
	return b.pair.Forget()
}

// sourceMounts returns the mount points below the source, and stops where one of last
// time is not there: its files would seem to be gone.
func (b *backup) sourceMounts() ([]string, error) {
	pending, err := b.pair.Pending()
	if err != nil {
		return nil, err
	}
	known := slices.Clone(b.pair.Mounts())
	for _, s := range pending { // it may have copied some of what was there
		known = append(known, s.Mounts...)
	}
	if b.OneFileSystem && len(known) == 0 {
		return nil, nil
	}
	mounts, err := history.MountsBelow(b.Source)
	if err != nil {
		return nil, err
	}
	for _, m := range known {
		if !b.AcceptSource && !slices.Contains(mounts, m) {
			return nil, &fault.Error{Kind: fault.Unsafe, Op: "use source", Path: filepath.Join(b.Source, m), Err: errors.New("it was a mount point at the last run and is none now"),
				Hint: "mount it, or go on with --accept-source: what was in it is deleted from the destination then"}
		}
	}
	if b.OneFileSystem {
		// What earlier runs have copied of these stays in the destination, but only
		// for as long as they are seen to be mount points.
		mounts = slices.DeleteFunc(mounts, func(m string) bool { return !slices.Contains(known, m) })
	}
	return mounts, nil
}

func same(path string, was history.RootID, what, flag string) error {
	is, err := history.Identify(path)
	switch {
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	case err != nil:
		return &fault.Error{Kind: fault.Unsafe, Op: "use " + what, Path: path, Err: errors.New("it is gone since the last run"), Hint: "is it mounted? go on with " + flag}
	case !is.Same(was):
		return &fault.Error{Kind: fault.Unsafe, Op: "use " + what, Path: path, Err: errors.New("it is not the directory of the last run"), Hint: "is it mounted? go on with " + flag}
	}
	return nil
}

// guardDeletes stops where more would be deleted than expected.
func (c backupCmd) guardDeletes(res *scanner.Result) error {
	n, of := res.GoneEntries+res.ExtraDeleted, max(res.PreviousEntries, res.Dirs+res.Files()+res.Extra)
	if res.ExtraDeleted == 0 {
		of = res.PreviousEntries
	}
	if !c.MaxDelete.exceeded(n, of) {
		return nil
	}
	what := "are gone from the source"
	if res.ExtraDeleted > 0 {
		what = "are not in the source"
	}
	return &fault.Error{
		Kind: fault.Unsafe, Op: "delete from", Path: c.Destination,
		Err:  fmt.Errorf("%d of %d entries %s, more than --max-delete %s", n, of, what, c.MaxDelete),
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
	warnScan(a.stderr, res)
	printProblems(a.stderr, res)
	if err := c.guardDeletes(res); err != nil {
		fmt.Fprintf(a.stderr, "a real run would stop: %s\n", oneLine(err))
	}
	return nil
}
