package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// JobSpec is what a submitter asks for. It never changes after submission.
type JobSpec struct {
	Source      string `json:"source"`      // source root, absolute
	Destination string `json:"destination"` // destination root, absolute
	Meta        string `json:"meta"`        // directory of the meta files, as the submitter sees it
	Trim        string `json:"trim,omitempty"`
	Pool        string `json:"pool"`
	Priority    int    `json:"priority,omitempty"` // shares of credit: weight 2^priority, -4..4
	Name        string `json:"name,omitempty"`     // for people

	WriteMeta       bool   `json:"write_meta"`
	Restore         bool   `json:"restore,omitempty"`
	Replace         string `json:"replace,omitempty"`        // always (default), if-older, never
	Vanished        string `json:"vanished,omitempty"`       // fail (default), skip
	CheckContents   bool   `json:"check_contents,omitempty"` // metadata-only entries: compare contents
	DeleteBefore    bool   `json:"delete_before,omitempty"`
	DeleteUnchecked bool   `json:"delete_unchecked,omitempty"`
	// SpareDirs fails the entry in whose way a directory stands that is not empty;
	// without, that directory is removed with all in it.
	SpareDirs bool `json:"spare_dirs,omitempty"`
	// DeleteEmpty has delete lines of directories delete empty ones only, after all
	// other delete lines; without, they delete the directory with all in it.
	DeleteEmpty     bool   `json:"delete_empty,omitempty"`
	Changing        string `json:"changing,omitempty"` // files that change each time they are read: fail (default), take
	FollowRootLinks bool   `json:"follow_root_links,omitempty"`
	// ExpectTargets has it warned about where the destination does not have what the
	// control files take it to have: nobody has looked.
	ExpectTargets bool   `json:"expect_targets,omitempty"`
	Sync          string `json:"sync,omitempty"`        // batch (default), none, file
	Verify        string `json:"verify,omitempty"`      // checksum: what is copied is read back and compared
	VerifyOnly    bool   `json:"verify_only,omitempty"` // compare source and destination, change neither
	AllowOverlap  bool   `json:"allow_overlap,omitempty"`
	KeepDirs      bool   `json:"keep_dirs,omitempty"` // no finish phase: directories keep default modes

	MaxFailures int64 `json:"max_failures,omitempty"` // failures tolerated by status completed; -1 = any
	FailFast    bool  `json:"fail_fast,omitempty"`    // stop at the first failure that is not tolerated
	MaxWorkers  int   `json:"max_workers,omitempty"`  // shards at once over the cluster; 0 = no limit

	Threads int   `json:"threads,omitempty"` // per worker
	Memory  int64 `json:"memory,omitempty"`  // bytes per worker

	Limits Limits `json:"limits"`

	// Trace is the W3C trace context of the submitter.
	Trace map[string]string `json:"trace,omitempty"`
}

// Values of JobSpec.Changing; ChangingFail is the same as nothing.
const (
	ChangingFail = "fail"
	ChangingTake = "take"
)

// Values of JobSpec.Verify; none is the same as nothing.
const (
	VerifyNone     = "none"
	VerifyChecksum = "checksum"
)

// Limits are the cutter's, frozen in the job so that any shard can be cut again.
type Limits struct {
	Version   int    `json:"version"`
	Entries   int    `json:"entries"`    // entries of a shard
	DataBytes uint64 `json:"data_bytes"` // bytes of regular files of a shard
	RawBytes  int    `json:"raw_bytes"`  // uncompressed bytes of a shard's message
}

// DefaultLimits are used where a spec has none.
func DefaultLimits() Limits {
	return Limits{Version: 1, Entries: 2000, DataBytes: 256 << 20, RawBytes: 768 << 10}
}

// Normalize fills in defaults and returns an error that names every wrong field.
func (s *JobSpec) Normalize() error {
	var errs []string
	bad := func(msg string) { errs = append(errs, msg) }
	for _, f := range []struct {
		name string
		p    *string
	}{{"source", &s.Source}, {"destination", &s.Destination}} {
		if !path.IsAbs(*f.p) || strings.ContainsRune(*f.p, 0) {
			bad(f.name + " must be an absolute path")
			continue
		}
		*f.p = path.Clean(*f.p)
	}
	if strings.ContainsRune(s.Trim, 0) {
		bad("trim must be without NUL")
	}
	if s.Pool == "" {
		s.Pool = "default"
	}
	if err := CheckToken("pool", s.Pool); err != nil {
		bad(err.Error())
	}
	choose := func(name string, p *string, values ...string) {
		if *p == "" {
			*p = values[0]
		}
		if !slices.Contains(values, *p) {
			bad(name + " must be one of " + strings.Join(values, ", "))
		}
	}
	choose("replace", &s.Replace, "always", "if-older", "never")
	choose("vanished", &s.Vanished, "fail", "skip")
	choose("sync", &s.Sync, "batch", "none", "file")
	if s.Changing == ChangingFail {
		s.Changing = ""
	}
	if s.Changing != "" && s.Changing != ChangingTake {
		bad("changing must be one of " + ChangingFail + ", " + ChangingTake)
	}
	if s.Verify == VerifyNone {
		s.Verify = ""
	}
	if s.Verify != "" && s.Verify != VerifyChecksum {
		bad("verify must be one of " + VerifyNone + ", " + VerifyChecksum)
	}
	if s.Priority < -4 || s.Priority > 4 {
		bad("priority must be between -4 and 4")
	}
	if s.Memory == 0 || s.Memory < -1 {
		if s.Memory != 0 {
			bad("memory must be -1 (the default limit) or a number of bytes")
		}
		s.Memory = -1
	}
	if s.Threads < 0 {
		bad("threads must not be negative")
	}
	def := DefaultLimits()
	if s.Limits.Version == 0 {
		s.Limits.Version = def.Version
	}
	if s.Limits.Version != def.Version {
		bad("limits version is not known")
	}
	if s.Limits.Entries <= 0 {
		s.Limits.Entries = def.Entries
	}
	if s.Limits.DataBytes == 0 {
		s.Limits.DataBytes = def.DataBytes
	}
	if s.Limits.RawBytes <= 0 {
		s.Limits.RawBytes = def.RawBytes
	}
	s.Limits.Entries = min(s.Limits.Entries, 100_000)
	s.Limits.RawBytes = min(max(s.Limits.RawBytes, 16<<10), 16<<20)
	if len(errs) > 0 {
		return fault.New(fault.Invalid, "job: %s", strings.Join(errs, "; "))
	}
	return nil
}

// State is where a job is in its life. Transitions only go down this list.
// Paused is what a queued or running job shows whose record says so.
type State string

// The states of a job.
const (
	StateQueued     State = "queued"     // waits for a job whose destination overlaps
	StateRunning    State = "running"    // admits, publishes, folds
	StatePaused     State = "paused"     // publishes nothing
	StateCancelling State = "cancelling" // what an ending job shows that was cancelled
	StateEnding     State = "ending"     // begins nothing more, and waits until nothing of it can act
	StateCompleted  State = "completed"
	StateFailed     State = "failed"
	StateCancelled  State = "cancelled"
)

// Over reports whether nothing more of the job is begun: it is ending or final.
func (s State) Over() bool { return s == StateEnding || s.Final() }

// Final reports whether nothing follows.
func (s State) Final() bool {
	return s == StateCompleted || s == StateFailed || s == StateCancelled
}

// Status is the C interface's figure: 1 completed, 2 in progress, 3 failed.
func (s State) Status() int {
	switch s {
	case StateCompleted:
		return 1
	case StateFailed, StateCancelled:
		return 3
	}
	return 2
}

// JobRecord is a job's durable record in BucketJobs, written by the leader only.
type JobRecord struct {
	ID     JobID   `json:"id"`
	Spec   JobSpec `json:"spec"`
	State  State   `json:"state"`
	Reason string  `json:"reason,omitempty"` // why it failed or was cancelled, for people
	Paused bool    `json:"paused,omitempty"` // publishes nothing
	Ending *Ending `json:"ending,omitempty"` // set with StateEnding, and kept
	// Answered is set when the job ends: every entry of every control file that
	// was admitted has an accepted result. Where it is not, the records of the
	// control files say which have.
	Answered bool      `json:"answered,omitempty"`
	Sealed   bool      `json:"sealed"`          // no more control files will come
	Files    uint32    `json:"files"`           // control files appended so far
	Metas    []FileRef `json:"metas,omitempty"` // uploaded meta files; empty: they are in Spec.Meta
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Epoch    uint64    `json:"epoch"` // leaders that took the job over
	// Order is the revision at which the record was created: jobs whose
	// destinations overlap run in this order. It is written with the first change.
	Order uint64 `json:"order,omitempty"`
	// ResultsAfter is a sequence of the result stream before all results of the job.
	ResultsAfter uint64 `json:"results_after,omitempty"`

	// Mount proof: set by the first worker. A job that changes nothing has no
	// nonce, and the destination root's identity instead.
	Nonce       string `json:"nonce,omitempty"`
	NonceReady  bool   `json:"nonce_ready,omitempty"`
	MarkLeft    bool   `json:"mark_left,omitempty"` // the job has ended, and no worker took its mark away
	SourceInode uint64 `json:"source_inode,omitempty"`
	SourceFS    string `json:"source_fs,omitempty"`
	DestInode   uint64 `json:"dest_inode,omitempty"`
	DestFS      string `json:"dest_fs,omitempty"`
	// Mounts beneath the roots; nil with jobs of coordinators that did not ask.
	Mounts *RootMounts `json:"mounts,omitempty"`
	// Abilities of the first worker, and to whom belongs what it makes in the
	// destination; nil and "" likewise.
	Abilities *Abilities `json:"abilities,omitempty"`
	Creates   string     `json:"creates,omitempty"`

	Phases map[Phase]PhaseRecord `json:"phases,omitempty"`

	// Final figures, set with a final state.
	Stats    *Stats    `json:"stats,omitempty"`
	Warnings []Warning `json:"warnings,omitempty"`
}

// Ending is why a job ends. It is written once, by whatever ends the job first.
type Ending struct {
	// State is the final state; completed becomes failed where more failed than
	// is tolerated.
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"` // for people
	Kind   string    `json:"kind,omitempty"`   // the fault.Kind of the error that ends it
	Since  time.Time `json:"since"`
}

// PhaseRecord is what is durable of a finished phase.
type PhaseRecord struct {
	Shards   uint64    `json:"shards"`
	Complete bool      `json:"complete"`
	Bytes    uint64    `json:"bytes,omitempty"` // of the cursor at its end
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
}

// FileRef names a control or meta file of a submission.
type FileRef struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"` // hex SHA-256
	Phase  Phase  `json:"phase,omitempty"`
}

// Check refuses what no client says of a file. A coordinator names its own copy
// of an uploaded file by digest, or by the last part of its path.
func (f FileRef) Check() error {
	sum, err := hex.DecodeString(f.Digest)
	switch base := path.Base(f.Path); {
	case !path.IsAbs(f.Path) || strings.ContainsRune(f.Path, 0) || base == "/" || base == "..":
		return fault.New(fault.Invalid, "control or meta file %q is not named by an absolute path", f.Path)
	case f.Digest != "" && (err != nil || len(sum) != sha256.Size):
		return fault.New(fault.Invalid, "the digest %q of file %q is no hex SHA-256", f.Digest, f.Path)
	}
	return nil
}

// FileRecord is the durable record of one control file, written at admission.
type FileRecord struct {
	Index   uint32     `json:"index"`
	Ref     FileRef    `json:"ref"`
	Object  string     `json:"object,omitempty"` // where its content was uploaded to
	State   string     `json:"state"`            // pending, admitted, refused
	Refused string     `json:"refused,omitempty"`
	Counts  FileCounts `json:"counts"`
	// Pins hold the file to what was admitted: those of controlfile, encoded.
	Pins []byte `json:"pins,omitempty"`
	// FirstN is the number of its first shard, by phase.
	FirstN map[Phase]uint64 `json:"first_n,omitempty"`
	// Outcome is set when its job ends: whether every one of its entries has an
	// accepted result. Nil with a final job: not one has.
	Outcome *FileOutcome `json:"outcome,omitempty"`
}

// FileOutcome says which entries of a control file have an accepted result.
type FileOutcome struct {
	Complete bool `json:"complete"` // all of them
	// Missing are the lines whose entries have none, where it is not complete.
	Missing []LineRange `json:"missing,omitempty"`
}

// LineRange is a range of lines of a control file, counted from 1, for one phase
// that goes over the file.
type LineRange struct {
	Phase Phase  `json:"phase"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"` // the first line behind it; 0 = all that follow
}

// States of control files.
const (
	FilePending  = "pending"
	FileAdmitted = "admitted"
	FileRefused  = "refused"
)

// FileCounts are what admission found in a control file.
type FileCounts struct {
	Dirs    uint64 `json:"dirs"`    // directory lines to do, unreadable ones included
	Files   uint64 `json:"files"`   // file lines to do, unreadable ones included
	Bytes   uint64 `json:"bytes"`   // by the header
	Skipped uint64 `json:"skipped"` // dd lines
}

// Cursor says how far a job is published. It is stored with the shards that it
// covers in one atomic batch.
type Cursor struct {
	Epoch    uint64 `json:"epoch"`
	Phase    Phase  `json:"phase"`
	Next     uint64 `json:"next"`     // number of the next shard of the phase
	File     uint32 `json:"file"`     // its control file
	Position []byte `json:"position"` // the cutter's position in it; empty = its start
	Done     bool   `json:"done"`     // the phase has no more shards
	Bytes    uint64 `json:"bytes"`    // sum of the sizes of regular files published so far
}

// Stats are a job's statistics: FS_Backup's nine figures and what it can't say.
// Sizes are bytes, speed is bytes per second.
type Stats struct {
	DirsToBackup  uint64 `json:"dirs_to_backup"`
	FilesToBackup uint64 `json:"files_to_backup"`
	BytesToBackup uint64 `json:"bytes_to_backup"`
	DirsCopied    uint64 `json:"dirs_copied"`
	FilesCopied   uint64 `json:"files_copied"`
	BytesCopied   uint64 `json:"bytes_copied"`
	DirsFailed    uint64 `json:"dirs_failed"`
	FilesFailed   uint64 `json:"files_failed"`
	BytesPerSec   uint64 `json:"bytes_per_second"`

	DirsToDelete     uint64 `json:"dirs_to_delete"`     // directory lines of delete files
	FilesToDelete    uint64 `json:"files_to_delete"`    // file lines of delete files
	Deleted          uint64 `json:"deleted"`            // delete lines whose target is gone
	DirsDeleted      uint64 `json:"dirs_deleted"`       // of these, lines of directories
	DeletesFailed    uint64 `json:"deletes_failed"`     // delete lines that failed
	DirDeletesFailed uint64 `json:"dir_deletes_failed"` // of these, lines of directories
	Links            uint64 `json:"links_made"`         // hard links, leaders not included
	Skipped          uint64 `json:"skipped"`            // lines that were not to be done
	DirMetaFailed    uint64 `json:"dir_meta_failed"`    // copied directories that did not get their owner, mode or times
	ChangedWhileRead uint64 `json:"changed_while_read"` // files read again because they changed
	ChangedSinceScan uint64 `json:"changed_since_scan"` // files copied as they are, not as they were scanned
	ShardsRepeated   uint64 `json:"shards_repeated"`    // executions of shards besides the one that counts
	FilesRefused     uint64 `json:"control_files_refused"`

	// For every way a job can end: to back up = copied + failed + skipped_to_backup
	// + not_attempted over directories and files (of a verify job verified instead
	// of copied), and to delete = deleted + failed + skipped_deletes +
	// deletes_not_attempted. A directory that was copied and whose owner, mode and
	// times were not come to counts in dir_meta_not_attempted besides.
	SkippedToBackup     uint64 `json:"skipped_to_backup"` // of Skipped
	SkippedDeletes      uint64 `json:"skipped_deletes"`   // of Skipped
	NotAttempted        uint64 `json:"not_attempted"`
	DeletesNotAttempted uint64 `json:"deletes_not_attempted"`
	DirMetaNotAttempted uint64 `json:"dir_meta_not_attempted"`
	FilesNotAdmitted    uint64 `json:"control_files_not_admitted"` // control files that were not looked at

	// Of verify jobs, and of what was read back while copying.
	DirsVerified  uint64 `json:"dirs_verified"`  // compared, and what their source is
	FilesVerified uint64 `json:"files_verified"` // while copying: regular files only
	BytesVerified uint64 `json:"bytes_verified"` // sizes of the regular files among them
	DirsDiffer    uint64 `json:"dirs_differ"`    // of DirsFailed: compared, and not what their source is
	FilesDiffer   uint64 `json:"files_differ"`   // of FilesFailed
	Extra         uint64 `json:"extra"`          // names in the destination that the source does not have

	LinksCopied   uint64 `json:"links_copied"`   // of Links: copied, since the destination would not link
	DirsKept      uint64 `json:"dirs_kept"`      // of Skipped: directories to be deleted that are not empty
	ChangingTaken uint64 `json:"changing_taken"` // of FilesCopied: they changed each time they were read

	HoleBytes    uint64 `json:"hole_bytes"`    // measured, not exact
	ReflinkBytes uint64 `json:"reflink_bytes"` // measured, not exact
}

// Failures is the number of entries and control files that could not be done,
// and of names that should not be there.
func (s *Stats) Failures() uint64 {
	return s.DirsFailed + s.FilesFailed + s.DeletesFailed + s.DirMetaFailed + s.FilesRefused + s.Extra
}

// Unattempted is the number of entries that have no outcome.
func (s *Stats) Unattempted() uint64 {
	return s.NotAttempted + s.DeletesNotAttempted + s.DirMetaNotAttempted + s.FilesNotAdmitted
}

// Warning counts one kind of loss that does not fail an entry.
type Warning struct {
	Kind    string `json:"kind"`
	Count   uint64 `json:"count"`
	Example string `json:"example"`
}
