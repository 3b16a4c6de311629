package protocol

import "time"

// Timing of leases. A worker's lease is shorter than AckWait, so that it has
// stopped before its shard is delivered again.
type Timing struct {
	Heartbeat time.Duration `json:"heartbeat"` // between heartbeats and in-progress signals
	Lease     time.Duration `json:"lease"`     // from the sending of the last confirmed signal
	AckWait   time.Duration `json:"ack_wait"`  // until the server delivers a shard again
	Leader    time.Duration `json:"leader"`    // a coordinator's lease
}

// DefaultTiming is what clusters run with.
func DefaultTiming() Timing {
	return Timing{Heartbeat: 3 * time.Second, Lease: 20 * time.Second, AckWait: 30 * time.Second, Leader: 12 * time.Second}
}

// Heartbeat is a worker's request to the leader.
type Heartbeat struct {
	Wire     int              `json:"wire"`
	Worker   string           `json:"worker"`
	Instance string           `json:"instance"` // unique to the process
	Process  Process          `json:"process,omitzero"`
	Replaces string           `json:"replaces,omitempty"` // instance of the same name whose process is known to be dead
	Pool     string           `json:"pool"`
	Slots    int              `json:"slots"`
	Allow    []string         `json:"allow"`
	Version  string           `json:"version"`
	Host     string           `json:"host"`
	Running  []Running        `json:"running,omitempty"`
	Unfit    map[JobID]string `json:"unfit,omitempty"`   // jobs that it cannot serve, and why
	Seen     []JobID          `json:"seen,omitempty"`    // cancelled jobs that it was told of and runs nothing of
	Hung     []HungOp         `json:"hung,omitempty"`    // file operations that show no progress
	Large    []LargeFile      `json:"large,omitempty"`   // large files that are being copied, the largest first
	Unsent   map[JobID]string `json:"unsent,omitempty"`  // jobs of which results cannot be published, and why
	Drained  bool             `json:"drained,omitempty"` // it finishes what it has and takes no more
	Leaving  bool             `json:"leaving,omitempty"`
	// Missing is what the worker lacks in NATS to take shards, and why.
	Missing string `json:"missing,omitempty"`
	// Ended are attempts that ended without a result, each until a heartbeat that said
	// so was answered. Their announcements may have been lost, and a worker whose lease
	// lapsed has made none.
	Ended []AttemptEvent `json:"ended,omitempty"`
	// Abilities are what the worker may do with file systems.
	Abilities *Abilities `json:"abilities,omitempty"`
	Done      uint64     `json:"done"` // shards answered since its start
	RSS       int64      `json:"rss"`
	Threads   int        `json:"threads,omitempty"` // entries at once that its jobs have found worthwhile
}

// LargeFile is a large file that is being copied.
type LargeFile struct {
	Job     JobID   `json:"job,omitempty"`
	Worker  string  `json:"worker,omitempty"` // where the control API shows a job
	Path    string  `json:"path"`
	Done    int64   `json:"done"`    // bytes from its beginning
	Size    int64   `json:"size"`    // bytes
	Seconds float64 `json:"seconds"` // since its copy began
}

// Abilities are what a worker may do with file systems. All workers of a job have the
// same, or it would depend on them what became of an entry.
type Abilities struct {
	EUID   uint32   `json:"euid"`
	Groups string   `json:"groups,omitempty"` // where permission bits bind it
	Lacks  []string `json:"lacks,omitempty"`  // those of the engine's abilities that it does not have
	IDs    string   `json:"ids,omitempty"`    // of its user namespace, where these are not all
}

// Process says which process of which host somebody is. It has the fields of
// host.Identity, and is converted to it by those who look processes up.
type Process struct {
	Host      string `json:"host,omitempty"`
	Boot      string `json:"boot,omitempty"`
	Namespace string `json:"pid_ns,omitempty"`
	PID       int    `json:"pid,omitempty"`
	Start     uint64 `json:"start_time,omitempty"`
}

// Holder is who has a name that another asks for.
type Holder struct {
	Instance string    `json:"instance"`
	Process  Process   `json:"process"`
	Seen     time.Time `json:"seen"` // its last sign of life; one that moves on is alive
}

// HungOp is a file operation that has shown no sign of progress for long.
type HungOp struct {
	Job   JobID     `json:"job"`
	Doing string    `json:"doing"` // "copy", "delete", "sync" ...
	Path  string    `json:"path"`
	Since time.Time `json:"since"` // of its last sign of progress
}

// Running is an attempt in progress.
type Running struct {
	Job      JobID     `json:"job"`
	Phase    Phase     `json:"phase"`
	N        uint64    `json:"n"`
	Sequence uint64    `json:"sequence"`
	Delivery uint32    `json:"delivery"`
	Since    time.Time `json:"since"`
}

// HeartbeatReply is the leader's answer.
type HeartbeatReply struct {
	Wire      int     `json:"wire"`
	Leader    string  `json:"leader"`
	Timing    Timing  `json:"timing"`
	Cancelled []JobID `json:"cancelled,omitempty"` // stop these, run nothing more of them
	Refused   string  `json:"refused,omitempty"`   // why this worker cannot join
	Holder    *Holder `json:"holder,omitempty"`    // who has its name; set if that is why
	Drain     bool    `json:"drain,omitempty"`     // finish what you have, then leave
	Peers     int     `json:"peers,omitempty"`     // other workers that take shards of this one's pool
}

// AttemptEvent announces the start or end of an attempt.
type AttemptEvent struct {
	Running
	Worker   string `json:"worker"`
	Instance string `json:"instance,omitempty"` // of the worker
	End      bool   `json:"end"`
	Reason   string `json:"reason,omitempty"` // why it ended without a result
	Kind     string `json:"kind,omitempty"`
	Executed bool   `json:"executed,omitempty"` // it had begun with the shard's entries
}

// RootsClaim is a worker's question before its first shard of a job: what must
// I find in the roots? With Ready it reports that it wrote the nonce.
type RootsClaim struct {
	Job         JobID  `json:"job"`
	Worker      string `json:"worker"`
	SourceInode uint64 `json:"source_inode"`
	SourceFS    string `json:"source_fs"`
	DestInode   uint64 `json:"dest_inode"`
	DestFS      string `json:"dest_fs"`
	Ready       bool   `json:"ready"`
	// Mounts are the mount points beneath both roots.
	Mounts *RootMounts `json:"mounts,omitempty"`
	// Abilities are the worker's, and Creates is to whom belongs what it makes in the
	// destination, as uid:gid; with Ready, else "".
	Abilities *Abilities `json:"abilities,omitempty"`
	Creates   string     `json:"creates,omitempty"`
	// Removed are those of RootsReply.Stale that were there, and are no more; with Ready.
	Removed []string `json:"removed,omitempty"`
}

// RootMounts are the mount points beneath the roots of a job, as one worker sees them.
type RootMounts struct {
	Source      MountList `json:"source"`
	Destination MountList `json:"destination"`
}

// MountList says what is mounted beneath a root. There may be very many: beyond a
// bound they are not named, and only their sum tells whether two lists differ.
type MountList struct {
	Count int          `json:"count"`
	Sum   string       `json:"sum"`             // of all of them: hex SHA-256
	List  []MountPoint `json:"list,omitempty"`  // the first ones, sorted by path
	Autos []string     `json:"autos,omitempty"` // automounters' layers: what is mounted on them is not counted
}

// MountPoint is what is mounted at one place.
type MountPoint struct {
	Path  string `json:"path"`            // relative to the root
	FS    string `json:"fs"`              // type of file system, as the kernel names it
	Inode uint64 `json:"inode,omitempty"` // of its root; 0 = not known
}

// RootsReply is the answer.
type RootsReply struct {
	Nonce string `json:"nonce"`
	Write bool   `json:"write"` // you are the first: write it, then claim with Ready
	Wait  bool   `json:"wait"`  // another worker is writing it: ask again
	// Stale are nonces of jobs that have ended and whose marks nobody took out of this
	// destination: remove them before you write yours.
	Stale       []string `json:"stale,omitempty"`
	SourceInode uint64   `json:"source_inode"`
	SourceFS    string   `json:"source_fs"`
	// ReadOnly jobs leave no nonce: the destination root must be this one.
	ReadOnly  bool   `json:"read_only,omitempty"`
	DestInode uint64 `json:"dest_inode,omitempty"`
	DestFS    string `json:"dest_fs,omitempty"`
	// Mounts are the job's: what its first worker had mounted beneath the roots.
	Mounts *RootMounts `json:"mounts,omitempty"`
	// Abilities and Creates are those of the job's first worker.
	Abilities *Abilities `json:"abilities,omitempty"`
	Creates   string     `json:"creates,omitempty"`
	Error     string     `json:"error,omitempty"`
}
