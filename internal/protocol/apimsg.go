package protocol

import (
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// JobView is a job as the control API shows it.
type JobView struct {
	ID     JobID  `json:"id"`
	Name   string `json:"name,omitempty"`
	State  State  `json:"state"`
	Status int    `json:"status"` // 1 completed, 2 in progress, 3 failed
	Reason string `json:"reason,omitempty"`
	Kind   string `json:"kind,omitempty"` // of the error that ended it, if one did
	// Answered says of a job that has ended that every entry of every control file
	// that was admitted has an accepted result. Where it is not set, Outcomes tells
	// which lines have none.
	Answered     bool              `json:"answered,omitempty"`
	Stalled      string            `json:"stalled,omitempty"`     // what keeps it from going on, and what to do
	StallCause   string            `json:"stall_cause,omitempty"` // workers, roots, space, hung, results, publish, admit, queue, missing, list
	StalledSince time.Time         `json:"stalled_since,omitzero"`
	Phase        Phase             `json:"phase,omitempty"`
	Spec         JobSpec           `json:"spec"`
	Created      time.Time         `json:"created"`
	Started      time.Time         `json:"started,omitzero"`
	Ended        time.Time         `json:"ended,omitzero"`
	Seconds      float64           `json:"seconds"` // from start to end, or to now
	Stats        Stats             `json:"stats"`
	Failures     uint64            `json:"failures"`
	Phases       []PhaseView       `json:"phases,omitempty"`
	Warnings     []Warning         `json:"warnings,omitempty"`
	Workers      map[string]uint64 `json:"workers,omitempty"`   // shards answered by each worker
	Tolerated    bool              `json:"tolerated,omitempty"` // failures are within max_failures
	// Large are large files that are being copied, the largest first. What of them is
	// copied is not yet among the figures.
	Large []LargeFile `json:"large,omitempty"`
}

// StallRoots is the cause of a stall in which no worker can serve the roots.
const StallRoots = "roots"

// StallQueue is the cause of a stall in which a job waits for another one, whose
// destination overlaps.
const StallQueue = "queue"

// StallList is the cause of a stall in which a job waits for more control files.
const StallList = "list"

// PhaseView is a phase of a job.
type PhaseView struct {
	Phase     Phase   `json:"phase"`
	State     string  `json:"state"` // waiting, running, complete
	Published uint64  `json:"published"`
	Done      uint64  `json:"done"`
	Open      uint64  `json:"open"`
	Sealed    bool    `json:"sealed"` // Published is the total
	Seconds   float64 `json:"seconds"`
}

// WorkerView is a worker as the control API shows it.
type WorkerView struct {
	Name     string           `json:"name"`
	Pool     string           `json:"pool"`
	Host     string           `json:"host"`
	Version  string           `json:"version"`
	Slots    int              `json:"slots"`
	Running  []Running        `json:"running,omitempty"`
	Allow    []string         `json:"allow"`
	LastSeen time.Time        `json:"last_seen"`
	State    string           `json:"state"` // live, drained, lost, left
	Done     uint64           `json:"done"`
	RSS      int64            `json:"rss_bytes"`
	Threads  int              `json:"threads,omitempty"` // entries at once that its jobs have found worthwhile; 0 = it does nothing
	Unfit    map[JobID]string `json:"unfit,omitempty"`
	Hung     []HungOp         `json:"hung,omitempty"` // file operations that show no progress
	// Abilities are what it may do with file systems; nil = it does not say.
	Abilities *Abilities `json:"abilities,omitempty"`
}

// FailureView is a failed entry as the control API shows it.
type FailureView struct {
	Phase       Phase  `json:"phase"`
	ControlFile string `json:"control_file"`
	Line        uint64 `json:"line,omitempty"`
	Path        string `json:"path,omitempty"`
	Op          string `json:"operation,omitempty"`
	Errno       int    `json:"errno,omitempty"`
	Kind        string `json:"kind"`
	Reason      string `json:"reason"`
	Worker      string `json:"worker,omitempty"`
	IsDir       bool   `json:"is_dir,omitempty"`
}

// SubmitRequest creates a job. Control files may follow with AppendRequest.
type SubmitRequest struct {
	Wire  int       `json:"wire"`
	ID    JobID     `json:"id"` // chosen by the client, so that a repeated request is the same job
	Spec  JobSpec   `json:"spec"`
	Files []FileRef `json:"files"`
	Metas []FileRef `json:"metas"`
	Seal  bool      `json:"seal"`
}

// SubmitReply names the files that the coordinator cannot read, or that differ
// from what the client has: the client uploads them and asks again.
type SubmitReply struct {
	Job     JobID    `json:"job"`
	Missing []string `json:"missing,omitempty"`
	Created bool     `json:"created"`
}

// AppendRequest adds control files to a job that is not sealed.
type AppendRequest struct {
	Job   JobID     `json:"job"`
	From  uint32    `json:"from"` // index of the first: makes a repeated request harmless
	Files []FileRef `json:"files"`
	Metas []FileRef `json:"metas"`
	Seal  bool      `json:"seal"`
}

// JobRequest names a job.
type JobRequest struct {
	Job JobID `json:"job"`
}

// WorkerRequest names a worker.
type WorkerRequest struct {
	Worker string `json:"worker"`
}

// JobsRequest asks for jobs, newest first.
type JobsRequest struct {
	Limit  int    `json:"limit,omitempty"`  // at most so many; 0 = as many as one reply holds
	After  string `json:"after,omitempty"`  // Next of the page before
	State  State  `json:"state,omitempty"`  // only jobs in this state
	Prefix string `json:"prefix,omitempty"` // only jobs whose ids begin so
}

// Check refuses what no list can be made of.
func (q JobsRequest) Check() error {
	switch q.State {
	case "", StateQueued, StateRunning, StatePaused, StateEnding, StateCancelling, StateCompleted, StateFailed, StateCancelled:
	default:
		return fault.New(fault.Invalid, "%q is no state of a job: queued, running, paused, ending, cancelling, completed, failed, cancelled", q.State)
	}
	if q.Limit < 0 {
		return fault.New(fault.Invalid, "a page of %d jobs is not possible", q.Limit)
	}
	return nil
}

// WorkersRequest asks for workers by name.
type WorkersRequest struct {
	Limit int    `json:"limit,omitempty"` // at most so many; 0 = as many as one reply holds
	After string `json:"after,omitempty"` // Next of the page before
	Name  string `json:"name,omitempty"`  // only this one
}

// FailuresRequest asks for failures from a place on.
type FailuresRequest struct {
	Job   JobID  `json:"job"`
	After string `json:"after,omitempty"` // Next of the page before
	Limit int    `json:"limit,omitempty"`
}

// FailuresReply is a page of failures.
type FailuresReply struct {
	Failures []FailureView `json:"failures"`
	Next     string        `json:"next,omitempty"` // empty: no more
}

// OutcomesRequest asks for the control files of a job that has ended of which not
// every entry has an accepted result, from an index on.
type OutcomesRequest struct {
	Job  JobID  `json:"job"`
	From uint32 `json:"from,omitempty"` // Next of the page before
}

// OutcomesReply is a page of them.
type OutcomesReply struct {
	Files []FileView `json:"files"`
	Next  uint32     `json:"next,omitempty"` // 0: no more
}

// FileView is a control file as the control API shows it.
type FileView struct {
	Index   uint32       `json:"index"`
	Phase   Phase        `json:"phase"`
	Path    string       `json:"path"`
	Digest  string       `json:"digest,omitempty"` // hex SHA-256 of what was admitted; empty: it was not
	State   string       `json:"state"`            // pending, admitted, refused
	Refused string       `json:"refused,omitempty"`
	Outcome *FileOutcome `json:"outcome,omitempty"` // nil: no line has a result
}

// JobsReply is a page of jobs, without their phases, warnings and workers, which
// JobRequest tells.
type JobsReply struct {
	Jobs  []JobView `json:"jobs"`
	Next  string    `json:"next,omitempty"` // empty: no more
	Total int       `json:"total"`          // jobs that match, on all pages
}

// WorkersReply is a page of workers.
type WorkersReply struct {
	Workers []WorkerView `json:"workers"`
	Leader  string       `json:"leader"`
	Next    string       `json:"next,omitempty"` // empty: no more
}

// ErrorReply is an error on the wire.
type ErrorReply struct {
	Kind string `json:"kind"`
	Text string `json:"error"`
	Hint string `json:"hint,omitempty"`
}
