package scanner

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Config says what is scanned, and how.
type Config struct {
	Source string // directory to scan
	Out    string // directory to write to; made if missing, must hold no other scan

	TaskID, BackupType        string // for headers; BackupType "" = FULL
	Server, Share             string // for headers
	Protocol, ProtocolVersion string // for headers

	Excludes, Includes []string // patterns, see the package comment
	// ExcludeFrom are files of rules, in this order; "-" is Stdin. See the package
	// comment.
	ExcludeFrom []string
	// ListFile names a file of entry paths: these, what is below them and their
	// parents are scanned; all else counts as excluded, and is kept where earlier
	// scans know it. "-" is Stdin. A path that is not there is a problem. The paths
	// are separated by line ends, with ListNUL by NULs.
	ListFile string
	ListNUL  bool
	Stdin    io.Reader // nil = none
	// MaxSize and NewerThan leave out what is no directory and has more bytes, or
	// was modified before that time; zero = any. It is never deleted for it.
	MaxSize   int64
	NewerThan time.Time

	ExcludePaths  []string // directories to keep away from, such as the destination; Out is always one
	OneFileSystem bool     // do not enter directories on other file systems
	PseudoFS      bool     // enter proc, sysfs and the like below the source too
	AllowEmpty    bool     // an empty source is no error

	// Committed is the state file of what the destination is known to hold, ""
	// if nothing is; Pending are those of scans since then whose jobs have not
	// been committed, newest last. See the package comment.
	Committed string
	Pending   []string
	// KnownSince is when the scan of Committed began. Attributes of what has not changed
	// since are known then, and not read again. Zero = they are read.
	KnownSince Time
	// Incremental emits only what changed since Committed; without, everything
	// that is there is emitted. Deletes are emitted in both.
	Incremental bool
	// Suspects are the entries that differ in the destination, as a job that compared
	// them has found. They alone are emitted, to be copied as a whole, and with one
	// member of a hard-link group all of it; everything else counts as unchanged. What
	// it names that the source does not have says nothing: with DeleteExtra the
	// listing of Destination tells. It is read once, in any order; an error of it ends
	// the scan. Such a scan has no state file and compares with none. nil = none.
	Suspects iter.Seq2[Failed, error]
	// Destination is the directory that the control files are for, "" if it is not
	// to be looked at: then Committed alone says what it has. It is listed beside
	// the source, and an entry is unchanged only if it has what the entry is to have
	// there. Without Committed it is what there is to compare with.
	Destination string
	// Settled is the destination's time at the end of the last job. What changed
	// there later was changed by somebody else. Zero = not known.
	Settled Time
	// Gaps are spans before Settled in which no job was at work, and in which nobody
	// has looked at the destination since: what changed in them was changed by
	// somebody else as well.
	Gaps []Span
	// NoMeta says that the job writes contents only, so that nothing else is compared.
	NoMeta bool
	// Checksum has the contents of what is found in the destination, and not known
	// from an earlier scan, compared.
	Checksum bool
	// SameMeans says that the last run was allowed and asked to do what this one is:
	// what it left without its owner would be left so again. It is counted then, and
	// not emitted.
	SameMeans bool
	// KeptTargets says that the last run was asked to keep targets that differ,
	// KeepsTargets that this one is.
	KeptTargets, KeepsTargets bool
	// CheckAttrs has ACLs and attributes in the destination looked at also where
	// nobody has touched them: an earlier run may have lost some.
	CheckAttrs bool
	// NoLinks says that the last run could not make hard links: groups are several
	// objects in the destination, and that is as good as it gets.
	NoLinks bool
	// DeleteExtra deletes what only the destination has, which is kept otherwise.
	DeleteExtra bool
	// ReplaceDirs says that a directory in the way of something else goes with all
	// that is in it.
	ReplaceDirs bool

	// DeleteExcluded deletes what is newly excluded, which is kept otherwise.
	DeleteExcluded bool
	// ClockTick is how far the clock of the source's timestamps can lag behind:
	// an entry that changed less than that before the scan began may have changed
	// again unseen, and counts as changed the next time. 0 = 10 ms; negative =
	// no entry is taken for changed on that ground.
	ClockTick time.Duration
	// OnChange is called from one goroutine for each line of the control files;
	// of directories once.
	OnChange func(Change)

	// Paths limits the scan to these entries, what is below them and their
	// parents. Such a scan has no state file and compares with none.
	Paths []string

	Workers     int    // most directories read at once; 0 = 64
	MaxEntries  int    // lines of a control file; 0 = 100,000
	MaxBytes    int    // bytes of a control file; 0 = 8 MiB
	MemoryLimit int64  // bytes for sorting and pending directories; 0 = 128 MiB
	SpillDir    string // directory for temporary files; "" = Out

	Now           time.Time // time in headers and names; zero = when the scan begins
	Progress      func(Stats)
	ProgressEvery time.Duration // 0 = 250 ms
	Logger        *slog.Logger  // nil = none
	// OnControlFile is called from one goroutine as each control file gets its
	// name.
	OnControlFile func(kind controlfile.Kind, path string)

	// Tree replaces the file system; Source is then only a name. DestinationTree does
	// so for Destination.
	Tree, DestinationTree Tree

	fanIn int              // runs merged at once; 0 = maxFanIn; for tests
	clock func() time.Time // nil = time.Now; for tests
}

// Op is what a line of a control file does.
type Op string

// The operations of changes.
const (
	OpCopy   Op = "copy"   // the data and metadata of an entry that is no directory
	OpMeta   Op = "meta"   // metadata only
	OpLink   Op = "link"   // a member of a hard-link group
	OpDir    Op = "dir"    // a directory is made, or gets its metadata again
	OpDelete Op = "delete" // an entry, of directories with all below it
)

// Change is a line of the control files that a scan writes.
type Change struct {
	Op    Op     `json:"op"`
	Mode  string `json:"mode,omitempty"` // nn, dm, mm, bm or fm; "" for deletes
	Path  string `json:"path"`
	IsDir bool   `json:"is_dir,omitempty"`
}

// MarshalJSON renders control characters as in a coded control file. Bytes that are
// no UTF-8 stand beside, as they are.
func (c Change) MarshalJSON() ([]byte, error) {
	type plain Change
	path := c.Path
	c.Path = EscapedPath(path)
	b, err := rawjson.Marshal(struct {
		plain
		PathBytes []byte `json:"path_bytes,omitempty"`
	}{plain(c), rawjson.Exact(path)})
	if err != nil {
		return nil, fmt.Errorf("render a change: %w", err)
	}
	return b, nil
}

// EscapedPath renders a path for people as in a coded control file, and what is no
// UTF-8 as JSON does.
func EscapedPath(path string) string { return rawjson.Readable(controlfile.Escape(path)) }

// Stats are the figures of a scan that is under way.
type Stats struct {
	Dirs, Files uint64 // found so far; files are all that is no directory
	Bytes       uint64 // st_size of the regular files found, each link counted
	Written     uint64 // entries written to control files
	Problems    uint64
	Walked      bool // the walk is over, entries are being written
}

// Problem is an entry that is not in the scan, or not wholly.
type Problem struct {
	Path string // entry path
	Err  error  // one line; *fault.Error
}

// MarshalJSON renders the error as its text, and the path as that of a Change.
func (p Problem) MarshalJSON() ([]byte, error) {
	b, err := rawjson.Marshal(struct {
		Path      string `json:"path"`
		PathBytes []byte `json:"path_bytes,omitempty"`
		Error     string `json:"error"`
	}{EscapedPath(p.Path), rawjson.Exact(p.Path), p.Err.Error()})
	if err != nil {
		return nil, fmt.Errorf("render a problem: %w", err)
	}
	return b, nil
}

// maxProblems bounds Result.Problems; all are in the problem file.
const maxProblems = 1000

// Result is what a scan found and wrote. Entries count each link of a group.
type Result struct {
	// What is in the source, whether or not it is emitted.

	Dirs      uint64 `json:"dirs"` // the root included
	Regular   uint64 `json:"regular"`
	Symlinks  uint64 `json:"symlinks"`
	Fifos     uint64 `json:"fifos"`
	Sockets   uint64 `json:"sockets"`
	CharDevs  uint64 `json:"char_devices"`
	BlockDevs uint64 `json:"block_devices"`
	Bytes     uint64 `json:"bytes"`  // st_size of regular files, a hard-link group once
	Groups    uint64 `json:"groups"` // hard-link groups
	Links     uint64 `json:"links"`  // entries in them

	Excluded    uint64 `json:"excluded"`     // entries left out by pattern, path, list, size or time; what lies below them is not counted
	MountPoints uint64 `json:"mount_points"` // directories not entered because of OneFileSystem
	// Pseudo file systems that were not entered, in the order of their paths.
	PseudoSkipped []Pseudo `json:"pseudo_skipped,omitempty"`

	Vanished     uint64 `json:"vanished"`      // gone between being listed and being looked at
	AttrsPartial uint64 `json:"attrs_partial"` // entries with an ACL or attribute that could not be read or not be written

	// Patterns that matched no entry which the scan came to.
	UnmatchedPatterns []string `json:"unmatched_patterns,omitempty"`
	Unmatched         []Rule   `json:"-"` // the same, with where they stand

	// What is emitted, in entries.

	New          uint64 `json:"new"`           // not in the destination yet
	Modified     uint64 `json:"modified"`      // data, or everything for want of better knowledge
	MetaOnly     uint64 `json:"meta_only"`     // owner, mode, attributes; of directories also times
	Refinished   uint64 `json:"refinished"`    // unchanged directories in which something is emitted or deleted
	Unchanged    uint64 `json:"unchanged"`     // nothing is emitted; Refinished not included
	CopyBytes    uint64 `json:"copy_bytes"`    // st_size of regular files emitted as new or modified, a group once
	Repaired     uint64 `json:"repaired"`      // of them those whose source is unchanged: the destination had lost or altered them
	Adopted      uint64 `json:"adopted"`       // of Unchanged those that no earlier scan knew: the destination had them already
	LinkedFiles  uint64 `json:"linked_files"`  // entries emitted as members of hard-link groups; counted above too
	DeletedDirs  uint64 `json:"deleted_dirs"`  // delete lines of directories
	KeptDirs     uint64 `json:"kept_dirs"`     // directories that are gone, and stay for what is in them
	DeletedFiles uint64 `json:"deleted_files"` // delete lines of what is no directory

	// What was there before, in entries; the states of this scan's Committed and
	// Pending taken together.

	PreviousEntries uint64 `json:"previous_entries"`
	GoneEntries     uint64 `json:"gone_entries"`  // of them not in the source any more, below deleted directories included
	Carried         uint64 `json:"carried"`       // of them those that could not be looked at, or were not asked for by list, size or time; they are kept
	ExcludedKept    uint64 `json:"excluded_kept"` // of them those that are excluded now, and are kept

	// What only the destination has, in entries; what is excluded is not counted.

	Extra         uint64   `json:"extra"`                    // found
	ExtraDeleted  uint64   `json:"extra_deleted"`            // of them those with a delete line
	ExtraExamples []string `json:"extra_examples,omitempty"` // the first ones that are kept
	InWay         uint64   `json:"in_way"`                   // directories that have to be emptied before something else takes their place

	Lacking []Lacking `json:"lacking,omitempty"` // unchanged entries whose copies are not all that they should be, by kind
	Listed  bool      `json:"listed"`            // the destination was looked at
	// Settled says that the state needs no Commit if nothing fails: Take does as well.
	Settled bool `json:"-"`

	ProblemCount uint64    `json:"problem_count"`
	Problems     []Problem `json:"problems,omitempty"`     // the first ones, sorted by path
	ProblemFile  string    `json:"problem_file,omitempty"` // all of them; "" if there are none

	// ControlFiles are in an order in which they can be executed: delete lines of
	// directories come after those of what is in them.
	ControlFiles []ControlFile `json:"control_files"`
	ControlDir   string        `json:"control_dir"`
	MetaDir      string        `json:"meta_dir"`
	StateFile    string        `json:"state_file,omitempty"` // "" if the scan was limited to Paths
	MetaFiles    int           `json:"meta_files"`           // pairs of meta and xmeta files
	Started      time.Time     `json:"started"`
}

// Lacking are copies that lack something, which no run by these means can mend.
type Lacking struct {
	Kind    string `json:"kind"`
	Count   uint64 `json:"count"`
	Example string `json:"example"`
}

// maxExamples bounds Result.ExtraExamples.
const maxExamples = 10

// ControlFile is a control file that a scan wrote.
type ControlFile struct {
	Kind controlfile.Kind `json:"kind"`
	Path string           `json:"path"`
}

// Files returns the number of entries that are no directories.
func (r *Result) Files() uint64 {
	return r.Regular + r.Symlinks + r.Fifos + r.Sockets + r.CharDevs + r.BlockDevs
}

const (
	// problemFile is the name that the reference's scanner uses.
	problemFile      = "failed_file_record.txt"
	defaultMemory    = 128 << 20
	defaultTick      = 10 * time.Millisecond
	defaultInterval  = 250 * time.Millisecond
	pendingPathBytes = 256 // what a pending directory is taken to need
)

// withDefaults returns the configuration with its gaps filled, or all that is
// wrong with it.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	invalid := func(hint, format string, args ...any) {
		errs = append(errs, fault.Hinted(fault.Invalid, hint, format, args...))
	}
	if c.Source == "" {
		invalid("name the directory to scan", "scan: no source")
	}
	if c.Out == "" {
		invalid("name a directory for control and meta files", "scan: no output directory")
	}
	for _, t := range []struct {
		what string
		n    int64
	}{
		{"workers", int64(c.Workers)}, {"entries per control file", int64(c.MaxEntries)},
		{"bytes per control file", int64(c.MaxBytes)}, {"memory limit", c.MemoryLimit}, {"largest size", c.MaxSize},
	} {
		if t.n < 0 {
			invalid("give a positive number, or 0 for the default", "scan: %s is %d", t.what, t.n)
		}
	}
	for _, s := range []string{c.TaskID, c.BackupType, c.Server, c.Share, c.Protocol, c.ProtocolVersion} {
		if strings.ContainsAny(s, "\r\n") {
			invalid("leave it out", "scan: the header value %q has a line end", s)
		}
	}
	if len(c.Paths) > 0 && (c.Committed != "" || len(c.Pending) > 0) {
		invalid("leave out one of both", "scan: a part of the source cannot be compared with a scan of all of it")
	}
	if c.Suspects != nil && (c.Committed != "" || len(c.Pending) > 0) {
		invalid("leave out one of both", "scan: what is copied by a list of suspects is not compared with earlier scans")
	}
	if c.ListFile != "" && c.DeleteExcluded {
		invalid("leave out one of both", "scan: what is not in a list of paths cannot be deleted as excluded")
	}
	stdins := 0
	for _, name := range append([]string{c.ListFile}, c.ExcludeFrom...) {
		if name == "-" {
			stdins++
		}
	}
	if stdins > 1 {
		invalid("put all but one into files", "scan: %d lists are to come from the standard input", stdins)
	}
	if c.BackupType == "" {
		c.BackupType = "FULL"
		if c.Incremental && c.Committed != "" {
			c.BackupType = "INC"
		}
	}
	if c.ClockTick == 0 {
		c.ClockTick = defaultTick
	}
	if c.clock == nil {
		c.clock = time.Now
	}
	if c.MemoryLimit == 0 {
		c.MemoryLimit = defaultMemory
	}
	if c.SpillDir == "" {
		c.SpillDir = c.Out
	}
	if c.Now.IsZero() {
		c.Now = time.Now()
	}
	if c.ProgressEvery <= 0 {
		c.ProgressEvery = defaultInterval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(errs...)
}

// layout is where the scan writes.
type layout struct{ ctrl, meta, state, spill string }

// makeDirs makes the output directories and refuses to mix two scans.
func (c *Config) makeDirs() (layout, error) {
	l := layout{
		ctrl: filepath.Join(c.Out, "ctrl"), meta: filepath.Join(c.Out, "meta", "latest"), state: filepath.Join(c.Out, "state"),
	}
	for _, dir := range []string{l.ctrl, l.meta, l.state, c.SpillDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return l, outError(dir, err)
		}
	}
	for _, dir := range []string{l.ctrl, l.meta} {
		list, err := os.ReadDir(dir)
		if err != nil {
			return l, outError(dir, err)
		}
		if len(list) > 0 {
			return l, &fault.Error{
				Kind: fault.Invalid, Op: "begin a scan in", Path: c.Out, Err: errors.New("it holds another scan"),
				Hint: "choose another output directory, or remove this one",
			}
		}
	}
	spill, err := os.MkdirTemp(c.SpillDir, ".scan-*")
	if err != nil {
		return l, outError(c.SpillDir, err)
	}
	l.spill = spill
	return l, nil
}

func outError(dir string, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return &fault.Error{
		Kind: fault.KindOf(err), Op: "prepare output directory", Path: dir, Err: err,
		Hint: "choose a directory that can be written",
	}
}
