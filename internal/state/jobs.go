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

	CancelledAt time.Time // when workers began to be told

	Stalls map[string]Stall // what keeps it from going on, by cause; frozen
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

// JobsIn yields the jobs in a state, oldest first.
func (t Tx) JobsIn(s protocol.State) iter.Seq[Job] {
	return each[Job](t.t, tableJobs, "state", string(s))
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
