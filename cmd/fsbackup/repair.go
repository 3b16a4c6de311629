package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// checkRepair refuses what cannot be repaired, before anything is compared.
func (c verifyCmd) checkRepair() error {
	if !c.Repair {
		if c.DeleteExtra || c.ReplaceDirs {
			return fault.Hinted(fault.Invalid, "add --repair, or leave them out", "--delete-extra and --replace-dirs change the destination, which only --repair does")
		}
		return nil
	}
	if c.FailFast {
		return fault.Hinted(fault.Invalid, "leave out one of both", "--repair needs all differences, and --fail-fast stops at the first")
	}
	if err := checkRoots(c.Source, c.Destination); err != nil {
		return err
	}
	// The rights are those of whoever does the work; that of a mount is everybody's.
	if err := unix.Access(c.Destination, unix.W_OK); errors.Is(err, unix.EROFS) {
		return &fault.Error{Kind: fault.Denied, Op: "repair", Path: c.Destination, Err: errors.New("the destination is read-only"), Hint: "mount it to be written, or leave out --repair"}
	}
	return nil
}

// repair compares, copies what differs, and compares once more.
func (c *verifyCmd) repair(a *app, dir string, p *progress) error {
	if err := c.keepStdin(dir); err != nil {
		return err
	}
	list := filepath.Join(dir, "suspects")
	var found bytes.Buffer // what is said of the differences, if there is nothing to do about them
	v, res, err := c.compare(a, dir, "scan", p, func(cl *client.Client, v protocol.JobView, res *scanner.Result) error {
		quiet := *a
		quiet.stderr = &found
		printFailures(&quiet, cl, v, false, res)
		return writeSuspects(a, list, cl.Undone(a.ctx, v))
	})
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		if !c.Quiet && !c.JSON {
			fmt.Fprintf(a.stderr, format, args...)
		}
	}
	if err := ended(v); err != nil && !errors.Is(err, errFailures) {
		_, _ = found.WriteTo(a.stderr) // an error of the terminal shows itself
		return c.conclude(a, v, res)
	}
	todo, err := c.scanSuspects(a, dir, list, p)
	if err != nil {
		_, _ = found.WriteTo(a.stderr) // as above
		return err
	}
	r := repaired{}
	if len(todo.ControlFiles) == 0 {
		_, _ = found.WriteTo(a.stderr) // as above
		return c.concludeRepair(a, v, res, &r)
	}
	say("%s", found.String())
	say("repairing: %d entries to copy, %d names to delete\n", todo.Repaired, todo.ExtraDeleted)
	j := localJob{id: client.NewJobID(now()), spec: c.repairSpec(todo), files: controlFiles(todo), scan: todo}
	if r.job, err = execute(a, c.localFlags, c.clusterFlags, dir, j, p); err != nil {
		return err
	}
	if err := ended(r.job); err != nil && !errors.Is(err, errFailures) {
		return err
	}
	say("comparing once more\n")
	before := differences(v)
	if v, res, err = c.compare(a, dir, "again", p, nil); err != nil {
		return err
	}
	if after := differences(v); after < before {
		r.n = before - after
	}
	return c.concludeRepair(a, v, res, &r)
}

// keepStdin keeps a list that comes from the standard input, which can be read once:
// without, the scans after the first would see an empty one.
func (c *verifyCmd) keepStdin(dir string) error {
	if c.FilesFrom != "-" && !slices.Contains(c.ExcludeFrom, "-") {
		return nil
	}
	path := filepath.Join(dir, "stdin")
	f, err := os.Create(path)
	if err == nil {
		_, err = io.Copy(f, os.Stdin)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "keep the standard input in", Path: path, Err: err, Hint: "is the temporary directory full? choose another with TMPDIR"}
	}
	c.stdin = path
	return nil
}

// scanSuspects scans for what is to be copied and deleted, and stops where too much
// would be deleted.
func (c verifyCmd) scanSuspects(a *app, dir, list string, p *progress) (*scanner.Result, error) {
	res, err := c.scan(a, dir, "repair", p, func(cfg *scanner.Config) {
		cfg.Incremental, cfg.Suspects = true, readSuspects(list)
		cfg.Destination, cfg.DeleteExtra, cfg.ReplaceDirs, cfg.NoMeta = c.Destination, c.DeleteExtra, c.ReplaceDirs, c.NoMeta
	})
	if err != nil {
		return nil, err
	}
	err = backupCmd{Destination: c.Destination, MaxDelete: c.MaxDelete}.guardDeletes(res)
	if fe, ok := errors.AsType[*fault.Error](err); ok {
		fe.Hint = "verify without --repair names them; go on with --max-delete 100%"
	}
	return res, err
}

// repairSpec is the job that copies what differs.
func (c verifyCmd) repairSpec(res *scanner.Result) protocol.JobSpec {
	spec := c.spec(res.MetaDir)
	spec.VerifyOnly, spec.CheckContents = false, true
	spec.DeleteEmpty, spec.SpareDirs = true, !c.ReplaceDirs
	// What stands in the way of something else has to go first.
	spec.DeleteBefore = res.InWay > 0
	return spec
}

// differences is how many entries a job that compares found to differ, or could not
// compare, and how many names the source does not have.
func differences(v protocol.JobView) uint64 {
	s := v.Stats
	return s.DirsFailed + s.FilesFailed + s.Extra
}

// repaired is what a repair has done.
type repaired struct {
	n   uint64           // differences that are gone
	job protocol.JobView // that copied; its ID is "" where there was none
}

// concludeRepair concludes with how the last comparison ended.
func (c verifyCmd) concludeRepair(a *app, v protocol.JobView, res *scanner.Result, r *repaired) error {
	if !c.JSON && !c.Quiet {
		fmt.Fprintf(a.stdout, "repaired: %d\n", r.n)
	}
	return c.concluded(a, v, res, r)
}

// writeSuspects writes the paths of entries to a file. Where some cannot be named,
// that is said: comparing once more tells what is left.
func writeSuspects(a *app, path string, list iter.Seq2[scanner.Failed, error]) (err error) {
	failed := func(err error) error {
		return &fault.Error{Kind: fault.KindOf(err), Op: "write the list of differences", Path: path, Err: err, Hint: "is the temporary directory full? choose another with TMPDIR"}
	}
	f, err := os.Create(path)
	if err != nil {
		return failed(errors.Unwrap(err))
	}
	w := bufio.NewWriter(f)
	for s, err := range list {
		if errors.Is(err, client.ErrUndoneUnknown) {
			a.log.Warn("some differences are not known by name and are left", "error", err)
			break
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
		_, _ = w.WriteString(s.Path + "\x00") // Flush says it
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return failed(err)
	}
	return nil
}

// readSuspects reads what writeSuspects has written.
func readSuspects(path string) iter.Seq2[scanner.Failed, error] {
	return func(yield func(scanner.Failed, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(scanner.Failed{}, &fault.Error{Kind: fault.KindOf(err), Op: "read the list of differences", Path: path, Err: errors.Unwrap(err)})
			return
		}
		defer func() { _ = f.Close() }() // read only
		for r := bufio.NewReader(f); ; {
			s, err := r.ReadString(0)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				err = &fault.Error{Kind: fault.KindOf(err), Op: "read the list of differences", Path: path, Err: errors.Unwrap(err)}
			}
			if !yield(scanner.Failed{Path: strings.TrimSuffix(s, "\x00")}, err) || err != nil {
				return
			}
		}
	}
}
