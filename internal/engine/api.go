// Package engine executes one batch of entries on file systems.
//
// It knows no cluster: a batch comes in with its metadata resolved, an outcome
// goes out. Every path operation happens beneath a root descriptor, every name
// change is atomic, and every figure is a function of entry, options and end
// state, so that a second attempt at a batch counts the same as the first.
package engine

// Op is what is to be done with an entry.
type Op uint8

const (
	// OpRejected is an entry that could not be read; Entry.Reject says why. It
	// is counted as failed and nothing is done.
	OpRejected Op = iota
	// OpMkdir makes a directory (copy phase, a d line).
	OpMkdir
	// OpCopy copies a non-directory of any type (copy phase, an f line).
	OpCopy
	// OpUnlink removes a non-directory (delete phase, an f line).
	OpUnlink
	// OpRemoveTree removes a directory tree (delete phase, a d line with flag 1).
	OpRemoveTree
	// OpLink makes a member of a hard-link group. The first entry with a group
	// number in a batch is its leader.
	OpLink
	// OpFinish gives a directory owner, mode, ACL, xattrs and times (finish
	// phase, a d line of a copy control file).
	OpFinish
	// OpTouch gives a directory owner, mode and times (dir phase).
	OpTouch
	// OpVerify compares a non-directory of any type with its source (verify
	// phase, an f line of a copy control file). No verifying operation changes
	// anything.
	OpVerify
	// OpVerifyLink compares a member of a hard-link group: OpVerify, if the group
	// has no object yet to hold it against.
	OpVerifyLink
	// OpVerifyDir compares what OpFinish gives a directory, and its names (a d
	// line of a copy control file).
	OpVerifyDir
	// OpVerifyTimes compares what OpTouch gives a directory.
	OpVerifyTimes
)

// Entry is one line of a control file with its metadata resolved.
type Entry struct {
	Op   Op
	Mode string // the line's mode column: mm, dm, bm, nn, fm ...; "" where the line has none
	Path string // entry path, cleaned: no leading or trailing slash, "" = the root itself
	Meta *Meta  // nil for deletes and rejected entries

	Group      uint64 // hard-link group within the batch; 0 = none
	LeaderOnly bool   // the group's leader, done and counted by an earlier batch: only link to it

	IsDir  bool   // for OpRejected: counts as a directory
	Reject string // for OpRejected: the reason
	Kind   uint8  // for OpRejected: the fault.Kind

	File uint32 // index of the control file in its job
	Line uint64 // physical line where the entry begins
}

// Meta is the record of an entry: what the scan saw. Times are seconds since
// the epoch; NSec fields are -1 when the record has none (the file formats
// have none).
type Meta struct {
	Mode                       uint32 // full st_mode
	Nlink, UID, GID            uint32
	Inode, Size, Rdev          uint64
	Atime, Mtime, Ctime, Btime int64
	HasX                       bool // an xmeta record exists: ACL and Xattrs below are the scan's
	AccessACL, DefaultACL      string
	Xattrs                     []Xattr
	Symlink                    string
	HasSymlink                 bool
	Sparse                     []Extent
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Extent is a range of a sparse file that holds data.
type Extent struct{ Offset, Length uint64 }

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
	Sync            Sync
	Verify          Verify
	ReadOnly        bool // nothing but verifying operations, and no sync
	CreateDest      bool
	// Permit is asked, with the real path of its parent, before a destination root
	// is made; nil permits all. The parent's own path may lead through links.
	Permit  func(realParent string) error `json:"-"`
	Threads int                           // entries in flight for the job on this worker; 0 = the engine's limit
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
}

// Guard is asked before each entry and before each rename, link, unlink or
// mkdir. A non-nil error (fault.Stale, fault.Canceled) stops the batch.
type Guard interface{ Check() error }

// Counts are the statistics of a batch. Bytes are st_size of regular files.
type Counts struct {
	DirsCopied, FilesCopied, BytesCopied uint64
	DirsFailed, FilesFailed              uint64
	Deleted                              uint64 // delete lines whose target is gone
	DirsDeleted                          uint64 // of these, lines of directories
	Links                                uint64 // group members, leaders excepted, that are right links
	Skipped                              uint64 // lines deliberately not done (source still has it, kept by policy, ...)
	ChangedWhileRead                     uint64
	ChangedSinceScan                     uint64
	DirsFinished, DirsTouched            uint64
	DirsVerified, FilesVerified          uint64 // compared, and what their source is; of copies, regular files only
	BytesVerified                        uint64 // of these, st_size of regular files
	DirsDiffer, FilesDiffer              uint64 // of DirsFailed and FilesFailed: compared, and not what their source is
	Extra                                uint64 // names in verified directories that the source does not have
	HoleBytes, ReflinkBytes              uint64 // measurements, outside exactness
}

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
	Counts   Counts
	Failures []Failure // in entry order
	Warnings []Warning // sorted by kind
}
