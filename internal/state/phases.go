package state

import (
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const tablePhases = "phases"

// Phase is how far a phase of a job is.
type Phase struct {
	Job       string
	Name      string // Kind as a string: the index needs one
	Kind      protocol.Phase
	Published uint64 // shards published
	Sealed    bool   // no more will be
	Done      Bitmap // results, one bit a shard
	Outcomes  uint64 // lines of which the results tell
	Started   time.Time
	Ended     time.Time
}

// MaxShards bounds the numbers of a phase's shards, and so what a result with a
// made-up number costs. At the usual limits it is 8,589,934,592,000 entries.
const MaxShards = 1 << 32

// Complete reports whether all that there is has its result. A result of a shard
// that is not there completes nothing.
func (p Phase) Complete() bool {
	return p.Sealed && p.Done.Count() >= p.Published && p.Done.All(0, p.Published)
}

func phasesSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: tablePhases, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: &memdb.CompoundIndex{Indexes: []memdb.Indexer{stringIndex("Job"), stringIndex("Name")}}},
		// A job has several phases.
		"job": {Name: "job", Indexer: stringIndex("Job")},
	}}
}

// Phase returns a phase of a job; one that has not begun is empty.
func (t Tx) Phase(job protocol.JobID, p protocol.Phase) Phase {
	row, ok := first[Phase](t.t, tablePhases, "id", string(job), phaseKey(p))
	if !ok {
		return Phase{Job: string(job), Name: phaseKey(p), Kind: p}
	}
	return row
}

// PutPhase adds or replaces a phase.
func (t Tx) PutPhase(p Phase) {
	p.Name = phaseKey(p.Kind)
	put(t.t, tablePhases, p)
}

// Bitmap is a set of shard numbers. It is a value: With returns a new one that
// shares what did not change, so that a view stays as it was.
type Bitmap struct {
	chunks []*[chunkWords]uint64
	count  uint64
}

const (
	chunkWords = 64
	chunkBits  = chunkWords * 64
)

// Has reports whether n is in the set.
func (b Bitmap) Has(n uint64) bool {
	i := n / chunkBits
	if i >= uint64(len(b.chunks)) || b.chunks[i] == nil {
		return false
	}
	return b.chunks[i][n%chunkBits/64]&(1<<(n%64)) != 0
}

// Count is the size of the set.
func (b Bitmap) Count() uint64 { return b.count }

// With returns the set with n in it.
func (b Bitmap) With(n uint64) Bitmap {
	if b.Has(n) {
		return b
	}
	i := n / chunkBits
	size := max(uint64(len(b.chunks)), i+1)
	chunks := make([]*[chunkWords]uint64, size)
	copy(chunks, b.chunks)
	var c [chunkWords]uint64
	if chunks[i] != nil {
		c = *chunks[i]
	}
	c[n%chunkBits/64] |= 1 << (n % 64)
	chunks[i] = &c
	return Bitmap{chunks: chunks, count: b.count + 1}
}

// All reports whether all of [from, to) are in the set.
func (b Bitmap) All(from, to uint64) bool {
	for n := from; n < to; n++ {
		if !b.Has(n) {
			return false
		}
	}
	return true
}
