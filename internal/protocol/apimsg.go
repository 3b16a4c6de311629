package protocol

import "time"

// JobView is a job as the control API shows it.
type JobView struct {
	ID           JobID             `json:"id"`
	Name         string            `json:"name,omitempty"`
	State        State             `json:"state"`
	Status       int               `json:"status"` // 1 completed, 2 in progress, 3 failed
	Reason       string            `json:"reason,omitempty"`
	Stalled      string            `json:"stalled,omitempty"`     // what keeps it from going on, and what to do
	StallCause   string            `json:"stall_cause,omitempty"` // workers, roots, space, hung, results, publish, admit, queue
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
}

// StallRoots is the cause of a stall in which no worker can serve the roots.
const StallRoots = "roots"

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
	Unfit    map[JobID]string `json:"unfit,omitempty"`
	Hung     []HungOp         `json:"hung,omitempty"` // file operations that show no progress
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
	// PathBytes is set where Path is not valid UTF-8.
	PathBytes []byte `json:"path_bytes,omitempty"`
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

// JobsReply lists jobs, newest first.
type JobsReply struct {
	Jobs []JobView `json:"jobs"`
}

// WorkersReply lists workers by name.
type WorkersReply struct {
	Workers []WorkerView `json:"workers"`
	Leader  string       `json:"leader"`
}

// ErrorReply is an error on the wire.
type ErrorReply struct {
	Kind string `json:"kind"`
	Text string `json:"error"`
	Hint string `json:"hint,omitempty"`
}
