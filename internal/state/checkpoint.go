package state

import (
	"encoding/binary"
	"maps"
	"math"
	"math/bits"
	"slices"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// checkpointVersion counts changes of what folding means: a checkpoint of
// another version is not used.
const checkpointVersion = 2

// maxChunks bounds the chunks of all phases of one checkpoint, and so what a
// damaged one costs.
const maxChunks = MaxShards / chunkBits

// Checkpoint is what has been folded of a job up to a sequence of the result
// stream. Folding what follows gives the same as folding all from the start, and
// folding what comes before once more changes nothing.
type Checkpoint struct {
	Job      protocol.JobID
	Sequence uint64
	Stats    protocol.Stats
	Warnings map[string]protocol.Warning
	Workers  map[string]uint64
	Done     map[protocol.Phase]Bitmap
	Outcomes map[protocol.Phase]uint64
}

// figures is the part of a checkpoint that is JSON.
type figures struct {
	Stats    protocol.Stats              `json:"stats"`
	Warnings map[string]protocol.Warning `json:"warnings,omitempty"`
	Workers  map[string]uint64           `json:"workers,omitempty"`
	Outcomes map[protocol.Phase]uint64   `json:"outcomes,omitempty"`
}

// Checkpoint returns what is folded of a job, sequence being that of the last
// result folded of any job; false where the job is not known.
func (t Tx) Checkpoint(id protocol.JobID, sequence uint64) (Checkpoint, bool) {
	j, ok := t.Job(id)
	if !ok {
		return Checkpoint{}, false
	}
	c := Checkpoint{Job: id, Sequence: sequence, Stats: j.Stats, Warnings: j.Warnings, Workers: j.Workers, Done: map[protocol.Phase]Bitmap{}, Outcomes: map[protocol.Phase]uint64{}}
	for _, p := range protocol.Phases() {
		if row := t.Phase(id, p); row.Done.Count() > 0 {
			c.Done[p], c.Outcomes[p] = row.Done, row.Outcomes
		}
	}
	return c, true
}

// Restore makes a checkpoint what is folded of its job, which must be known.
func (t Tx) Restore(c Checkpoint) {
	j, ok := t.Job(c.Job)
	if !ok {
		return
	}
	j.Stats, j.Warnings, j.Workers = c.Stats, c.Warnings, c.Workers
	t.PutJob(j)
	for _, p := range protocol.Phases() {
		row := t.Phase(c.Job, p)
		if done, ok := c.Done[p]; ok || row.Done.Count() > 0 {
			row.Done, row.Outcomes = done, c.Outcomes[p]
			t.PutPhase(row)
		}
	}
}

// Encode returns the checkpoint as it is stored. It fails where a decoder would
// refuse it for its size: then the stream alone tells.
func (c Checkpoint) Encode() ([]byte, error) {
	head, err := rawjson.Marshal(figures{c.Stats, c.Warnings, c.Workers, c.Outcomes})
	if err != nil {
		return nil, fault.New(fault.Internal, "encode checkpoint of job %s: %w", c.Job, err)
	}
	m := &protocol.CheckpointMsg{Version: checkpointVersion, Job: string(c.Job), Sequence: c.Sequence, Figures: head}
	slots := 0
	for _, p := range slices.Sorted(maps.Keys(c.Done)) {
		b := c.Done[p]
		slots += len(b.chunks)
		m.Phases = append(m.Phases, b.message(p))
	}
	if slots > maxChunks {
		return nil, fault.New(fault.Invalid, "checkpoint of job %s: its shards have numbers that are too large", c.Job)
	}
	return protocol.Encode(protocol.TypeCheckpoint, m)
}

// DecodeCheckpoint is the inverse of Encode. Errors are fault.Corrupt, or
// fault.Invalid for a version that is not known.
func DecodeCheckpoint(data []byte) (Checkpoint, error) {
	m := &protocol.CheckpointMsg{}
	if err := protocol.Decode(data, protocol.TypeCheckpoint, m); err != nil {
		return Checkpoint{}, err
	}
	if m.GetVersion() != checkpointVersion {
		return Checkpoint{}, fault.New(fault.Invalid, "checkpoint is of version %d, this coordinator knows %d", m.GetVersion(), checkpointVersion)
	}
	var f figures
	if err := rawjson.Unmarshal(m.GetFigures(), &f); err != nil {
		return Checkpoint{}, fault.New(fault.Corrupt, "figures of checkpoint: %w", err)
	}
	c := Checkpoint{Job: protocol.JobID(m.GetJob()), Sequence: m.GetSequence(), Stats: f.Stats, Warnings: f.Warnings, Workers: f.Workers, Done: map[protocol.Phase]Bitmap{}, Outcomes: f.Outcomes}
	slots := 0
	for _, b := range m.GetPhases() {
		p := protocol.Phase(b.GetPhase())
		if _, twice := c.Done[p]; twice || b.GetPhase() > math.MaxUint8 || !p.Known() {
			return Checkpoint{}, fault.New(fault.Corrupt, "checkpoint has phase %d where it cannot be", b.GetPhase())
		}
		done, err := bitmapOf(b, maxChunks-slots)
		if err != nil {
			return Checkpoint{}, err
		}
		slots += len(done.chunks)
		c.Done[p] = done
	}
	return c, nil
}

// message is the set as it travels.
func (b Bitmap) message(p protocol.Phase) *protocol.BitsMsg {
	m := &protocol.BitsMsg{Phase: uint32(p)}
	for i, c := range b.chunks {
		if c == nil {
			continue
		}
		m.Chunks = append(m.Chunks, uint32(i))
		for _, w := range c {
			m.Bits = binary.LittleEndian.AppendUint64(m.Bits, w)
		}
	}
	return m
}

// bitmapOf is the inverse of message; most bounds how many chunks the set may
// span.
func bitmapOf(m *protocol.BitsMsg, most int) (Bitmap, error) {
	chunks, data := m.GetChunks(), m.GetBits()
	if len(data) != len(chunks)*chunkWords*8 || len(chunks) == 0 {
		return Bitmap{}, fault.New(fault.Corrupt, "checkpoint has %d chunks in %d bytes", len(chunks), len(data))
	}
	if last := chunks[len(chunks)-1]; int64(last) >= int64(most) {
		return Bitmap{}, fault.New(fault.Corrupt, "checkpoint has a chunk %d, at most %d are possible", last, most)
	}
	out := Bitmap{chunks: make([]*[chunkWords]uint64, chunks[len(chunks)-1]+1)}
	for k, i := range chunks {
		if k > 0 && i <= chunks[k-1] {
			return Bitmap{}, fault.New(fault.Corrupt, "checkpoint has chunk %d after chunk %d", i, chunks[k-1])
		}
		if int(i) >= len(out.chunks) {
			return Bitmap{}, fault.New(fault.Corrupt, "checkpoint has chunk %d beyond its last", i)
		}
		c := new([chunkWords]uint64)
		for w := range c {
			c[w] = binary.LittleEndian.Uint64(data[(k*chunkWords+w)*8:])
			out.count += uint64(bits.OnesCount64(c[w]))
		}
		out.chunks[i] = c
	}
	return out, nil
}
