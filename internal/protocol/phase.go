package protocol

import "strconv"

// Phase is one of the four kinds of work that control files ask for, or one of
// the internal ones. The numbers of the four are those of the C interface.
type Phase uint8

// The phases.
const (
	PhaseCopy     Phase = 1
	PhaseDelete   Phase = 2
	PhaseHardlink Phase = 3
	PhaseDir      Phase = 4
	// PhaseVerify compares the destination with the source, in jobs that do
	// nothing else.
	PhaseVerify Phase = 5
	// PhaseFinish gives the directories of copy control files owner, mode,
	// ACL, xattrs and times, after the last phase that changes names.
	PhaseFinish Phase = 6
	// PhaseCleanup takes away what the job left in the destination root for
	// its own use. It has one shard.
	PhaseCleanup Phase = 7
	// PhaseRmdir deletes the empty directories that delete files name, after all
	// else that they name. Only jobs with JobSpec.DeleteEmpty have it. Its shards
	// are executed one after another: lines come children before parents.
	PhaseRmdir Phase = 8
)

// lastPhase is the one with the highest number.
const lastPhase = PhaseRmdir

// Phases returns all phases there are, by their numbers.
func Phases() []Phase {
	out := make([]Phase, 0, lastPhase)
	for p := PhaseCopy; p <= lastPhase; p++ {
		out = append(out, p)
	}
	return out
}

// Known reports whether p is one of the phases.
func (p Phase) Known() bool { return p >= PhaseCopy && p <= lastPhase }

// Deletes reports whether p executes delete lines.
func (p Phase) Deletes() bool { return p == PhaseDelete || p == PhaseRmdir }

// String returns the phase's name.
func (p Phase) String() string {
	switch p {
	case PhaseCopy:
		return "copy"
	case PhaseDelete:
		return "delete"
	case PhaseHardlink:
		return "hardlink"
	case PhaseDir:
		return "dir"
	case PhaseVerify:
		return "verify"
	case PhaseFinish:
		return "finish"
	case PhaseCleanup:
		return "cleanup"
	case PhaseRmdir:
		return "rmdir"
	}
	return "phase-" + strconv.Itoa(int(p))
}

// MarshalText makes phases readable in JSON.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is the inverse of MarshalText; an unknown name gives 0.
func (p *Phase) UnmarshalText(b []byte) error {
	*p = 0
	for _, q := range Phases() {
		if q.String() == string(b) {
			*p = q
		}
	}
	return nil
}

// Order returns the phases of a job in the order in which they run.
// deleteBefore has deletes come before copies, for targets that are full.
func Order(deleteBefore bool) []Phase {
	if deleteBefore {
		return []Phase{PhaseDelete, PhaseRmdir, PhaseCopy, PhaseHardlink, PhaseFinish, PhaseDir, PhaseVerify, PhaseCleanup}
	}
	return []Phase{PhaseCopy, PhaseDelete, PhaseRmdir, PhaseHardlink, PhaseFinish, PhaseDir, PhaseVerify, PhaseCleanup}
}

// Reads reports whether p is cut from the control files of the phase kind.
// Finishing goes over the files of the copy phase again, and deleting directories
// over those of the delete phase; verifying goes over all
// that say what is to be there, as kinds of the same phase: its shards need no
// order, so one barrier serves them.
func (p Phase) Reads(kind Phase) bool {
	switch p {
	case PhaseFinish:
		return kind == PhaseCopy
	case PhaseRmdir:
		return kind == PhaseDelete
	case PhaseVerify:
		return kind == PhaseCopy || kind == PhaseHardlink || kind == PhaseDir
	}
	return p == kind
}
