package state

import (
	"iter"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const tableFiles = "files"

// File is a control file of a job.
type File struct {
	Job      string
	Index    uint32
	Record   protocol.FileRecord
	Revision uint64 // of Record in its bucket
	Path     string // where this coordinator reads it; "" until admission
}

func filesSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: tableFiles, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{stringIndex("Job"), &memdb.UintFieldIndex{Field: "Index"}}}},
		// A job has many files.
		"job": {Name: "job", Indexer: stringIndex("Job")},
	}}
}

// File returns the i-th control file of a job.
func (t Tx) File(job protocol.JobID, i uint32) (File, bool) {
	return first[File](t.t, tableFiles, "id", string(job), i)
}

// Files yields the control files of a job in no particular order.
func (t Tx) Files(job protocol.JobID) iter.Seq[File] {
	return each[File](t.t, tableFiles, "job", string(job))
}

// PutFile adds or replaces a control file.
func (t Tx) PutFile(f File) { put(t.t, tableFiles, f) }
