package state

import (
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const tableWorkers = "workers"

// Worker is a worker as its last heartbeat described it.
type Worker struct {
	Name     string
	Beat     protocol.Heartbeat
	LastSeen time.Time
	Lost     bool // its lease has ended
	Drain    bool // it is to finish what it has and leave
}

// Takes reports whether the worker takes shards.
func (w Worker) Takes() bool { return !w.Lost && !w.Drain && !w.Beat.Drained && !w.Beat.Leaving }

func workersSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: tableWorkers, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: stringIndex("Name")},
	}}
}

// Worker returns a worker.
func (t Tx) Worker(name string) (Worker, bool) {
	return first[Worker](t.t, tableWorkers, "id", name)
}

// Workers yields all workers by name.
func (t Tx) Workers() iter.Seq[Worker] { return each[Worker](t.t, tableWorkers, "id") }

// PutWorker adds or replaces a worker.
func (t Tx) PutWorker(w Worker) { put(t.t, tableWorkers, w) }

// DropWorker removes a worker.
func (t Tx) DropWorker(name string) {
	_, err := t.t.DeleteAll(tableWorkers, "id", name)
	must(err)
}
