package state

import (
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const tableOpen = "open"

// Open is a shard that is published and has no result yet.
type Open struct {
	Job       string
	Name      string // Phase as a string: the index needs one
	Phase     protocol.Phase
	N         uint64
	Sequence  uint64 // of its message
	Published time.Time
	Attempts  []Attempt // announced; frozen
}

// Attempt is one delivery of an open shard.
type Attempt struct {
	Sequence uint64
	Delivery uint32
	Worker   string
	Instance string // of the worker; "" = it did not say
	Started  time.Time
	Ended    bool   // without a result
	Reason   string // why
	Kind     string
	Executed bool // it had begun with the entries; of one that died that is likely
}

func openSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: tableOpen, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{
			stringIndex("Job"), stringIndex("Name"), &memdb.UintFieldIndex{Field: "N"},
		}}},
		// A job has many open shards.
		"job": {Name: "job", Indexer: stringIndex("Job")},
	}}
}

// Open returns an open shard.
func (t Tx) Open(job protocol.JobID, p protocol.Phase, n uint64) (Open, bool) {
	return first[Open](t.t, tableOpen, "id", string(job), phaseKey(p), n)
}

// OpenOf yields the open shards of a job.
func (t Tx) OpenOf(job protocol.JobID) iter.Seq[Open] {
	return each[Open](t.t, tableOpen, "job", string(job))
}

// PutOpen adds or replaces an open shard.
func (t Tx) PutOpen(o Open) {
	o.Name = phaseKey(o.Phase)
	put(t.t, tableOpen, o)
}

// Close removes an open shard and reports whether it was there.
func (t Tx) Close(job protocol.JobID, p protocol.Phase, n uint64) bool {
	k, err := t.t.DeleteAll(tableOpen, "id", string(job), phaseKey(p), n)
	must(err)
	return k > 0
}
