// Package engine executes one batch of entries on file systems.
//
// It knows no cluster: a batch comes in with its metadata resolved, an outcome
// goes out. Every path operation happens beneath a root descriptor, every name
// change is atomic, and every figure is a function of entry, options and end
// state, so that a second attempt at a batch counts the same as the first.
package engine

import "github.com/fsbackup/fsbackup/internal/entry"

// Entry is one line of a control file with its metadata resolved.
type Entry struct {
	Op   entry.Op
	Mode string      // the line's mode column: mm, dm, bm, nn, fm ...; "" where the line has none
	Path string      // entry path, cleaned: no leading or trailing slash, "" = the root itself
	Meta *entry.Meta // nil for deletes and rejected entries

	Group      uint64 // hard-link group within the batch; 0 = none
	LeaderOnly bool   // the group's leader, done and counted by an earlier batch: only link to it

	IsDir  bool   // for OpRejected: counts as a directory
	Reject string // for OpRejected: the reason
	Kind   uint8  // for OpRejected: the fault.Kind

	File uint32 // index of the control file in its job
	Line uint64 // physical line where the entry begins
}

// Sync says when data is made durable.
type Sync uint8

const (
	// SyncBatch is the default: Job.Sync makes one syncfs before results are published.
	SyncBatch Sync = iota
	// SyncNone leaves it to the kernel.
	SyncNone
	// SyncFile also fsyncs each file before it gets its name.
	SyncFile
)

// Replace says which existing targets a copy may replace.
type Replace uint8

const (
	// ReplaceAlways replaces every target that differs.
	ReplaceAlways Replace = iota
	// ReplaceIfOlder keeps a target whose mtime is the entry's or newer.
	ReplaceIfOlder
	// ReplaceNever keeps every existing target.
	ReplaceNever
)

// JobSpec is what the engine must know of a job. The zero values of the
// options are the defaults of a backup.
type JobSpec struct {
	ID              string
	Source          string // source root, absolute
	Destination     string // destination root, absolute; made (0755) if missing and its parent exists
	Trim            string // component-wise prefix removed from entry paths below the destination
	WriteMeta       bool
	Restore         bool // the record's metadata wins over the source's
	Replace         Replace
	SkipVanished    bool // a vanished source is skipped, not failed
	CheckContents   bool // metadata-only entries: compare the contents, and copy them where they differ
	DeleteUnchecked bool // delete lines are not checked against the source
	SpareDirs       bool // a directory that is not empty is not replaced by something else
	DeleteEmpty     bool // OpRemoveTree removes empty directories only
	TakeChanging    bool // a file that changes each time it is read is taken as it was last read
	ExpectTargets   bool // warn where the destination does not have what entries take it to have
	FollowRootLinks bool // links of anybody on the way to the roots are followed
	Sync            Sync
	Verify          Verify
	ReadOnly        bool // nothing but verifying operations, and no sync
	CreateDest      bool
	// Permit is asked, with the real path of its parent, before a destination root
	// is made; nil permits all. The parent's own path may lead through links.
	Permit  func(realParent string) error `json:"-"`
	Threads int                           // most entries in flight for the job on this worker; 0 = the engine's limit
	Memory  int64                         // bytes of buffers for the job on this worker; <= 0 = the engine's limit
}

// AttemptID names one delivery of a shard.
type AttemptID struct {
	Sequence uint64 // stream sequence of the shard's message
	Delivery uint32 // delivery count, from 1
}

// Batch is the content of one shard.
type Batch struct {
	Phase        uint8
	N            uint64
	Attempt      AttemptID
	Predecessors []AttemptID // attempts that may have left temporary names
	Entries      []Entry
	// Leader is what became of the leader that an entry with LeaderOnly names.
	Leader entry.Leader
}

// Guard is asked before each entry and before each rename, link, unlink or
// mkdir. A non-nil error (fault.Stale, fault.Canceled) stops the batch.
type Guard interface{ Check() error }

// Failure is one entry that could not be done.
type Failure struct {
	File   uint32
	Line   uint64
	Path   string
	Op     string // the operation: "open source", "rename", "chown" ...
	Errno  int    // 0 = none
	Kind   uint8  // fault.Kind
	Reason string
	IsDir  bool
}

// Warning counts one kind of loss that does not fail an entry, such as
// "xattrs not supported by the destination".
type Warning struct {
	Kind    string // stable key, e.g. "acl-unsupported"
	Count   uint64
	Example string // first path
}

// Outcome is what became of a batch.
type Outcome struct {
	Counts   entry.Counts
	Failures []Failure // in entry order
	Warnings []Warning // sorted by kind
	// Leader is what became of the leader of the last hard-link group, which is the
	// one that can go on in a later batch.
	Leader entry.Leader
}
