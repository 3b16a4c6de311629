package protocol

import "fmt"

// MarkEvery is how many shards lie between two marks: no more than so many are
// cut to have any one of them again.
const MarkEvery = 1000

// Mark says where a shard of a phase begins. Those whose number is a multiple of
// MarkEvery have one, durable before the shard is published.
type Mark struct {
	N        uint64 `json:"n"`
	File     uint32 `json:"file"`     // the control file that was being cut
	Position []byte `json:"position"` // the cutter's position in it
}

// MarkKey is the key of the mark from which shard n of a phase is cut.
func MarkKey(job JobID, p Phase, n uint64) string {
	return fmt.Sprintf("mark.%s.%d.%d", job, p, n/MarkEvery)
}

// MarkKeys matches all marks of a job.
func MarkKeys(job JobID) string { return "mark." + string(job) + ".>" }
