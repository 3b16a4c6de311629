package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// jobAction is an operation of the client on one job.
type jobAction func(*client.Client, context.Context, protocol.JobID) (protocol.JobView, error)

func now() time.Time { return time.Now() }

// setUmask sets the umask and returns what puts it back.
func setUmask(mask int) func() {
	old := unix.Umask(mask)
	return func() { unix.Umask(old) }
}

// oneLine renders an error on one line: joined errors have one each.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func printJSON(w io.Writer, v any) error {
	return rawjson.Write(w, v, "  ")
}

func printLine(w io.Writer, v any) error { return rawjson.Write(w, v, "") }

// bytesText renders a size with three significant digits.
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n), "KMGTPE"
	i := -1
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f %ciB", f, units[i])
	case f >= 10:
		return fmt.Sprintf("%.1f %ciB", f, units[i])
	}
	return fmt.Sprintf("%.2f %ciB", f, units[i])
}

func durationText(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// printSummary prints all statistics of a job. Figures that are zero and would
// be zero in most jobs are left out.
func printSummary(out io.Writer, v protocol.JobView) {
	s := v.Stats
	fmt.Fprintf(out, "job %s: %s", v.ID, v.State)
	if v.Reason != "" {
		fmt.Fprintf(out, " (%s)", v.Reason)
	}
	fmt.Fprintln(out)
	if v.Stalled != "" {
		fmt.Fprintf(out, "stalled since %s: %s\n", v.StalledSince.Local().Format(time.TimeOnly), v.Stalled)
	}
	if v.Spec.VerifyOnly {
		printVerified(out, s)
	} else {
		w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "\tto back up\tcopied\tfailed\t")
		fmt.Fprintf(w, "directories\t%d\t%d\t%d\t\n", s.DirsToBackup, s.DirsCopied, s.DirsFailed)
		fmt.Fprintf(w, "files\t%d\t%d\t%d\t\n", s.FilesToBackup, s.FilesCopied, s.FilesFailed)
		fmt.Fprintf(w, "bytes\t%d\t%d\t\t\n", s.BytesToBackup, s.BytesCopied)
		_ = w.Flush() // an error of the terminal shows itself
		if v.Spec.Verify == protocol.VerifyChecksum {
			fmt.Fprintf(out, "read back and compared: %d files, %d bytes; %d differ\n", s.FilesVerified, s.BytesVerified, s.FilesDiffer)
		}
	}
	_, done := progressOf(v)
	fmt.Fprintf(out, "%s in %s, %s/s\n", bytesText(done), durationText(v.Seconds), bytesText(s.BytesPerSec))
	for _, x := range []struct {
		name string
		n    uint64
	}{
		{"hard links made", s.Links}, {"deleted", s.Deleted}, {"deletes failed", s.DeletesFailed}, {"skipped", s.Skipped},
		{"not attempted", unattempted(v, s.NotAttempted)}, {"deletes not attempted", unattempted(v, s.DeletesNotAttempted)},
		{"copied directories whose metadata was not attempted", unattempted(v, s.DirMetaNotAttempted)}, {"control files not looked at", unattempted(v, s.FilesNotAdmitted)},
		{"directories without their metadata", s.DirMetaFailed}, {"changed while read", s.ChangedWhileRead},
		{"changed since the scan", s.ChangedSinceScan}, {"shards executed once more", s.ShardsRepeated}, {"control files refused", s.FilesRefused},
	} {
		if x.n > 0 {
			fmt.Fprintf(out, "%s: %d\n", x.name, x.n)
		}
	}
	if s.HoleBytes > 0 {
		fmt.Fprintf(out, "kept as holes: %s\n", bytesText(s.HoleBytes))
	}
	if s.ReflinkBytes > 0 {
		fmt.Fprintf(out, "shared with the source (reflink): %s\n", bytesText(s.ReflinkBytes))
	}
	for _, x := range v.Warnings {
		fmt.Fprintf(out, "warning: %s: %d entries, first %q\n", x.Kind, x.Count, cmp.Or(x.Example, "."))
	}
}

// unattempted is a figure of what was not attempted: of a job that goes on it is
// only what is still to be done.
func unattempted(v protocol.JobView, n uint64) uint64 {
	if !v.State.Final() {
		return 0
	}
	return n
}

// failuresShown is how many failures a command prints by itself.
const failuresShown = 10

// printFailures prints the first failures of a job to stderr; named as in
// failureLine. Of entries that the scan, if there is one, could not read that is
// what is said.
func printFailures(a *app, cl *client.Client, v protocol.JobView, named bool, scan *scanner.Result) {
	if v.Failures == 0 {
		return
	}
	unread := map[string]bool{}
	if scan != nil {
		for _, p := range scan.Problems {
			unread[p.Path] = true
		}
	}
	n := uint64(0)
	err := cl.Failures(a.ctx, v.ID, func(f protocol.FailureView) error {
		if unread[f.Path] {
			return nil
		}
		if n++; n > failuresShown {
			return errLimit
		}
		fmt.Fprintln(a.stderr, failureLine(f, named))
		return nil
	})
	if n > failuresShown {
		fmt.Fprintf(a.stderr, "... %d failures in all\n", v.Failures)
	} else if err != nil {
		a.log.Warn("failures cannot be listed", "error", err)
	}
}

// failureLine renders a failure on one line that begins with the entry's path.
// named adds the control file and line: they mean something to those who named the
// file.
func failureLine(f protocol.FailureView, named bool) string {
	path, where := f.Path, f.ControlFile
	switch {
	case path == "" && f.Line == 0: // the file itself
		path, where = where, ""
	case f.Line > 0 && where != "":
		where = fmt.Sprintf("%s:%d", where, f.Line)
	}
	why := strings.ReplaceAll(f.Reason, "\n", " ")
	if f.Op != "" && !strings.HasPrefix(why, f.Op) {
		why = f.Op + ": " + why
	}
	// The reason may name the entry once more.
	why = strings.Replace(why, fmt.Sprintf(" %q: ", path), ": ", 1)
	line := fmt.Sprintf("%q: %s", cmp.Or(path, "."), why)
	switch {
	case !named:
		return oneHost(line)
	case where != "":
		line += " (" + where + ")"
	}
	return line
}

func printScan(out io.Writer, r *scanner.Result) {
	fmt.Fprintf(out, "%d directories, %d files (%d links in %d hard-link groups), %s\n", r.Dirs, r.Files(), r.Links, r.Groups, bytesText(r.Bytes))
	fmt.Fprintf(out, "control files: %d in %s\nmeta files: %s\n", len(r.ControlFiles), r.ControlDir, r.MetaDir)
	for _, x := range []struct {
		name string
		n    uint64
	}{{"excluded", r.Excluded}, {"mount points not entered", r.MountPoints}, {"vanished during the scan", r.Vanished}, {"entries with unreadable or unwritable attributes", r.AttrsPartial}} {
		if x.n > 0 {
			fmt.Fprintf(out, "%s: %d\n", x.name, x.n)
		}
	}
	printProblems(out, r)
}

// printPlan prints what a run would do, by phase.
func printPlan(out io.Writer, r *scanner.Result) {
	fmt.Fprintf(out, "would copy %d new and %d changed entries, set the metadata of %d, delete %d directories and %d files; %d are unchanged\n",
		r.New, r.Modified, r.MetaOnly, r.DeletedDirs, r.DeletedFiles, r.Unchanged)
}

// printProblems prints the first entries that are not, or not wholly, in a scan.
func printProblems(out io.Writer, r *scanner.Result) {
	for i, p := range r.Problems {
		if i == failuresShown {
			fmt.Fprintf(out, "... %d problems in all, see %s\n", r.ProblemCount, r.ProblemFile)
			break
		}
		fmt.Fprintln(out, problemLine(p))
	}
}

// problemLine renders a problem on one line that begins with the path, which is
// said once.
func problemLine(p scanner.Problem) string {
	path := cmp.Or(p.Path, ".")
	why := oneLine(p.Err)
	if e, ok := errors.AsType[*fault.Error](p.Err); ok && e.Path == path {
		bare := *e
		bare.Path = ""
		why = oneLine(&bare)
	}
	return fmt.Sprintf("%q: %s", path, why)
}
