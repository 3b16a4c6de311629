package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// scanFlags are the options of a scan.
type scanFlags struct {
	Exclude           []string `help:"Leave out what matches this pattern: fsbackup help patterns." placeholder:"PATTERN" sep:"none" group:"scan"`
	Include           []string `help:"Take what matches this pattern although it is excluded." placeholder:"PATTERN" sep:"none" group:"scan"`
	ExcludeFrom       []string `help:"Read patterns from a file, one a line, ! before those to take; the last that matches wins. - = standard input." placeholder:"FILE" sep:"none" group:"scan"`
	FilesFrom         string   `help:"Take only the entries that a file names, one path a line, and what is below them. - = standard input." placeholder:"FILE" group:"scan"`
	From0             bool     `name:"from0" help:"The paths of --files-from end with NULs." group:"scan"`
	MaxSize           size     `help:"Leave out files that are larger; 0 = none." default:"0" placeholder:"SIZE" group:"scan"`
	NewerThan         moment   `help:"Leave out what is no directory and was modified before: 2026-01-31, 2026-01-31T15:04:05Z, or 7d, 12h ago." placeholder:"TIME|DURATION" group:"scan"`
	OneFileSystem     bool     `short:"x" help:"Do not enter directories on other file systems." group:"scan"`
	PseudoFilesystems bool     `help:"Enter proc, sysfs and other pseudo file systems below the source too." group:"scan"`
	ScanWorkers       int      `help:"Most directories read at once; how many are is found out. 0 = 64." default:"0" placeholder:"N" group:"scan"`
	ScanMemory        size     `help:"Memory of the scan's sorting." default:"128MiB" placeholder:"SIZE" group:"scan"`
	AllowEmpty        bool     `help:"Go on although the source is empty." group:"scan"`
	FileEntries       int      `help:"Entries of a control file." default:"100000" placeholder:"N" group:"scan"`
	FileBytes         size     `help:"Size of a control file." default:"8MiB" placeholder:"SIZE" group:"scan"`
}

func (f scanFlags) config(source, out string) scanner.Config {
	return scanner.Config{
		Source: source, Out: out, Excludes: slices.Clone(f.Exclude), Includes: f.Include, ExcludeFrom: f.ExcludeFrom,
		ListFile: f.FilesFrom, ListNUL: f.From0, Stdin: os.Stdin, MaxSize: int64(f.MaxSize), NewerThan: time.Time(f.NewerThan),
		OneFileSystem: f.OneFileSystem, PseudoFS: f.PseudoFilesystems, AllowEmpty: f.AllowEmpty,
		Workers: f.ScanWorkers, MaxEntries: f.FileEntries, MaxBytes: int(f.FileBytes), MemoryLimit: int64(f.ScanMemory),
	}
}

// moment is a point in time, or how long ago it was.
type moment time.Time

// UnmarshalText parses 2026-01-31, 2026-01-31T15:04:05, RFC 3339, and 7d, 12h or
// 1w2d before now. What has no zone is local time.
func (m *moment) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly, time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, in, time.Local); err == nil {
			*m = moment(t)
			return nil
		}
	}
	d, err := parseAge(in)
	if err != nil {
		return fault.New(fault.Invalid, "%q is neither a time such as 2026-01-31 or 2026-01-31T15:04:05Z nor an age such as 7d or 12h", in)
	}
	*m = moment(now().Add(-d))
	return nil
}

// parseAge parses a duration that may begin with weeks and days.
func parseAge(in string) (time.Duration, error) {
	var sum time.Duration
	rest := in
	for _, u := range []struct {
		unit string
		d    time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, ok := strings.Cut(rest, u.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return 0, fault.New(fault.Invalid, "%q is no number", number)
		}
		sum, rest = sum+time.Duration(n)*u.d, after
	}
	if rest == "" && rest != in {
		return sum, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, fault.New(fault.Invalid, "%q is no duration", in)
	}
	return sum + d, nil
}

// warnScan tells what a scan left out and nobody may have thought of.
func warnScan(out io.Writer, r *scanner.Result) {
	warnUnmatched(out, r)
	if n := len(r.PseudoSkipped); n > 0 {
		var names []string
		for _, p := range r.PseudoSkipped[:min(n, 3)] {
			names = append(names, fmt.Sprintf("%q (%s)", p.Path, p.Type))
		}
		if n > 3 {
			names = append(names, "...")
		}
		fmt.Fprintf(out, "warning: pseudo file systems not entered: %d: %s (take them with --pseudo-filesystems)\n", n, strings.Join(names, ", "))
	}
}

// warnUnmatched names the patterns that matched nothing: more often than not
// they are not what was meant.
func warnUnmatched(out io.Writer, r *scanner.Result) {
	for i, p := range r.Unmatched {
		if i == failuresShown {
			fmt.Fprintf(out, "... %d patterns in all matched nothing\n", len(r.Unmatched))
			return
		}
		fmt.Fprintf(out, "warning: the pattern %s matched nothing (fsbackup help patterns)\n", p)
	}
}

//go:embed patterns.txt
var patternsText string

// topics are what help can tell beside what the flags say.
var topics = map[string]*string{"patterns": &patternsText}

type helpCmd struct {
	Topic []string `arg:"" optional:"" help:"A command, or: patterns."`
}

// Run shows the help of a topic, of a command, or of everything.
func (c helpCmd) Run(a *app) error {
	if len(c.Topic) == 1 && topics[c.Topic[0]] != nil {
		_, err := io.WriteString(a.stdout, *topics[c.Topic[0]])
		return err //nolint:wrapcheck // the writer names itself
	}
	if code := run(append(slices.Clone(c.Topic), "--help"), a.getenv, a.stdout, a.stderr); code != 0 {
		return exit(code)
	}
	return nil
}
