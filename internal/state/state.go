// Package state owns the view of jobs, phases, control files, open shards and
// workers that a coordinator decides by. It is rebuilt from the streams at any
// time, so it does no I/O and knows no clock: times are arguments.
package state

import (
	"fmt"
	"iter"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Store is the in-memory database. Its methods may be called concurrently; rows
// are values or frozen: change a copy and put it back.
type Store struct {
	db *memdb.MemDB
}

// New returns an empty store.
func New() *Store {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic("state: schema: " + err.Error()) // a constant, tested
	}
	return &Store{db: db}
}

func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableJobs:    jobsSchema(),
		tablePhases:  phasesSchema(),
		tableFiles:   filesSchema(),
		tableOpen:    openSchema(),
		tableWorkers: workersSchema(),
	}}
}

// Tx is a transaction: a consistent view, and in Update also changes that become
// visible together. It must not be kept after the function returns.
type Tx struct {
	t *memdb.Txn
}

// View calls f with a consistent view.
func (s *Store) View(f func(Tx) error) error {
	t := s.db.Txn(false)
	defer t.Abort()
	return f(Tx{t})
}

// Update calls f and makes its changes visible if it returns nil. f must do no
// I/O: updates are serial.
func (s *Store) Update(f func(Tx) error) error {
	t := s.db.Txn(true)
	defer t.Abort()
	if err := f(Tx{t}); err != nil {
		return err
	}
	t.Commit()
	return nil
}

// must turns memdb's errors into panics: they arise only from a table, index or
// type that does not exist, which is a broken program.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("state: %v", err))
	}
}

func first[T any](t *memdb.Txn, table, index string, args ...any) (T, bool) {
	v, err := t.First(table, index, args...)
	must(err)
	if v == nil {
		var zero T
		return zero, false
	}
	return row[T](v), true
}

// row is the content of a table's row. Each table has rows of one type, so that
// another one is a broken program.
func row[T any](v any) T {
	r, ok := v.(*T)
	if !ok {
		panic(fmt.Sprintf("state: a row is %T", v))
	}
	return *r
}

// each yields the rows of an index. It collects them first: an iterator of a
// write transaction does not see, and must not meet, later writes.
func each[T any](t *memdb.Txn, table, index string, args ...any) iter.Seq[T] {
	it, err := t.Get(table, index, args...)
	must(err)
	var rows []any
	for v := it.Next(); v != nil; v = it.Next() {
		rows = append(rows, v)
	}
	return func(yield func(T) bool) {
		for _, r := range rows {
			if !yield(row[T](r)) {
				return
			}
		}
	}
}

func put[T any](t *memdb.Txn, table string, row T) { must(t.Insert(table, &row)) }

func stringIndex(field string) memdb.Indexer { return &memdb.StringFieldIndex{Field: field} }

// phaseKey is how a phase is written in compound keys.
func phaseKey(p protocol.Phase) string { return p.String() }
