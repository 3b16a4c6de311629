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
	Pool     string           `json:"pool"`
	Slots    int              `json:"slots"`
	Allow    []string         `json:"allow"`
	Version  string           `json:"version"`
	Host     string           `json:"host"`
	Running  []Running        `json:"running,omitempty"`
	Unfit    map[JobID]string `json:"unfit,omitempty"`   // jobs that it cannot serve, and why
	Seen     []JobID          `json:"seen,omitempty"`    // cancelled jobs that it was told of and runs nothing of
	Hung     []HungOp         `json:"hung,omitempty"`    // file operations that show no progress
	Unsent   map[JobID]string `json:"unsent,omitempty"`  // jobs of which results cannot be published, and why
	Drained  bool             `json:"drained,omitempty"` // it finishes what it has and takes no more
	Leaving  bool             `json:"leaving,omitempty"`
	Done     uint64           `json:"done"` // shards answered since its start
	RSS      int64            `json:"rss"`
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
	Drain     bool    `json:"drain,omitempty"`     // finish what you have, then leave
	Peers     int     `json:"peers,omitempty"`     // other workers that take shards of this one's pool
}

// AttemptEvent announces the start or end of an attempt.
type AttemptEvent struct {
	Running
	Worker string `json:"worker"`
	End    bool   `json:"end"`
	Reason string `json:"reason,omitempty"` // why it ended without a result
	Kind   string `json:"kind,omitempty"`
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
}

// RootsReply is the answer.
type RootsReply struct {
	Nonce       string `json:"nonce"`
	Write       bool   `json:"write"` // you are the first: write it, then claim with Ready
	Wait        bool   `json:"wait"`  // another worker is writing it: ask again
	SourceInode uint64 `json:"source_inode"`
	SourceFS    string `json:"source_fs"`
	// ReadOnly jobs leave no nonce: the destination root must be this one.
	ReadOnly  bool   `json:"read_only,omitempty"`
	DestInode uint64 `json:"dest_inode,omitempty"`
	DestFS    string `json:"dest_fs,omitempty"`
	Error     string `json:"error,omitempty"`
}
