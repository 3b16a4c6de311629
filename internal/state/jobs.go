package state

import (
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const tableJobs = "jobs"

// Job is a job with what has been folded of it.
type Job struct {
	ID       string
	State    string // Record's: the index needs a field
	Record   protocol.JobRecord
	Revision uint64 // of Record in its bucket
	Phase    protocol.Phase
	Stats    protocol.Stats
	Warnings map[string]protocol.Warning // by kind; frozen
	Workers  map[string]uint64           // shards answered, by worker; frozen
	HasCopy  bool                        // it has control files of the copy phase
	CutBytes uint64                      // sizes of regular files cut so far

	Stalls map[string]Stall // what keeps it from going on, by cause; frozen
}

// Order is the job's place among jobs whose destinations overlap: the revision at
// which its record was created.
func (j Job) Order() uint64 {
	if j.Record.Order > 0 {
		return j.Record.Order
	}
	return j.Revision // it was not changed since
}

// Cuts reports whether the job's phase p goes over control files of the phase
// kind. The directories of copy files need not be compared once more by the lines
// of times files, which say less.
func (j Job) Cuts(p, kind protocol.Phase) bool {
	if p == protocol.PhaseVerify && kind == protocol.PhaseDir && j.HasCopy {
		return false
	}
	return p.Reads(kind)
}

// IsPaused reports whether the job publishes nothing because it is paused. A job
// that is ending is not: its last shard takes its mark away.
func (j Job) IsPaused() bool { return j.Record.Paused && !j.Record.State.Over() }

// Publishes reports whether shards of phase p may be published now: those of an
// ending job are not, but for the one that takes its mark away.
func (j Job) Publishes(p protocol.Phase) bool {
	if p == protocol.PhaseCleanup {
		return j.Record.State == protocol.StateEnding
	}
	return j.Record.State == protocol.StateRunning
}

// Stall is one thing that keeps a job from going on.
type Stall struct {
	Text  string // what, and what to do
	Since time.Time
}

func jobsSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: tableJobs, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: stringIndex("ID")},
		// Of many jobs most have ended, and what looks at all that run or are being
		// cancelled does so once a second, or with each heartbeat.
		"state": {Name: "state", Indexer: stringIndex("State"), AllowMissing: true},
	}}
}

// Job returns a job.
func (t Tx) Job(id protocol.JobID) (Job, bool) { return first[Job](t.t, tableJobs, "id", string(id)) }

// Jobs yields all jobs, oldest first.
func (t Tx) Jobs() iter.Seq[Job] { return each[Job](t.t, tableJobs, "id") }

// JobsIn yields the jobs in one of some states, oldest first of each state.
func (t Tx) JobsIn(states ...protocol.State) iter.Seq[Job] {
	return func(yield func(Job) bool) {
		for _, s := range states {
			for j := range each[Job](t.t, tableJobs, "state", string(s)) {
				if !yield(j) {
					return
				}
			}
		}
	}
}

// PutJob adds or replaces a job.
func (t Tx) PutJob(j Job) {
	j.State = string(j.Record.State)
	put(t.t, tableJobs, j)
}

// DropJob removes a job and everything of it.
func (t Tx) DropJob(id protocol.JobID) {
	for _, table := range []string{tablePhases, tableFiles, tableOpen} {
		_, err := t.t.DeleteAll(table, "job", string(id))
		must(err)
	}
	_, err := t.t.DeleteAll(tableJobs, "id", string(id))
	must(err)
}
