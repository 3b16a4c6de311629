package state

import (
	"maps"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Fold adds a result to its job, once: it reports false, and changes nothing,
// if the job is not known or has ended, the shard has a result already, or no
// phase could have such a shard. open says whether the shard was open, which it
// is not where its publishing is not known yet.
func (t Tx) Fold(r *protocol.ResultMsg) (folded, open bool) {
	id, kind := protocol.JobID(r.GetJob()), protocol.Phase(r.GetPhase())
	if !kind.Known() || r.GetN() >= MaxShards {
		return false, false
	}
	j, ok := t.Job(id)
	if !ok || j.Record.State.Final() {
		return false, false
	}
	p := t.Phase(id, kind)
	if p.Done.Has(r.GetN()) && !mutant.Off(mutant.Results) {
		return false, false
	}
	p.Done = p.Done.With(r.GetN())
	c := protocol.CountsFromWire(r.GetCounts())
	p.Outcomes += outcomes(kind, c)
	t.PutPhase(p)

	addCounts(&j.Stats, kind, c, j.HasCopy)
	o, isOpen := t.Open(id, kind, r.GetN())
	j.Stats.ShardsRepeated += repeated(r, o, isOpen)
	// Finishing a directory has told its losses before its times are set once more.
	if len(r.GetWarnings()) > 0 && (kind != protocol.PhaseDir || !j.HasCopy) {
		j.Warnings = maps.Clone(j.Warnings)
		if j.Warnings == nil {
			j.Warnings = map[string]protocol.Warning{}
		}
		for _, w := range r.GetWarnings() {
			sum := j.Warnings[w.GetKind()]
			if sum.Count == 0 {
				sum = protocol.Warning{Kind: w.GetKind(), Example: string(w.GetExample())}
			}
			sum.Count += w.GetCount()
			j.Warnings[w.GetKind()] = sum
		}
	}
	j.Workers = maps.Clone(j.Workers)
	if j.Workers == nil {
		j.Workers = map[string]uint64{}
	}
	j.Workers[r.GetWorker()]++
	t.PutJob(j)
	return true, t.Close(id, kind, r.GetN())
}

// addCounts adds what a shard of a phase contributes to the job's figures.
func addCounts(s *protocol.Stats, kind protocol.Phase, c entry.Counts, hasCopy bool) {
	switch kind {
	case protocol.PhaseDelete, protocol.PhaseRmdir:
		s.Deleted += c.Deleted
		s.DirsDeleted += c.DirsDeleted
		s.DirDeletesFailed += c.DirsFailed
		s.DeletesFailed += c.DirsFailed + c.FilesFailed
	case protocol.PhaseFinish:
		s.DirMetaFailed += c.DirsFailed
	case protocol.PhaseDir:
		if hasCopy {
			s.DirMetaFailed += c.DirsFailed
			break
		}
		s.DirsCopied += c.DirsTouched
		s.DirsFailed += c.DirsFailed
	default:
		s.DirsCopied += c.DirsCopied
		s.DirsFailed += c.DirsFailed
		s.FilesCopied += c.FilesCopied
		s.FilesFailed += c.FilesFailed
		s.BytesCopied += c.BytesCopied
		s.FilesCopied += c.Links // a link is a file of its control file, as its leader is
	}
	s.DirsVerified += c.DirsVerified
	s.FilesVerified += c.FilesVerified
	s.BytesVerified += c.BytesVerified
	s.DirsDiffer += c.DirsDiffer
	s.LinksCopied += c.LinksCopied
	s.DirsKept += c.DirsKept
	s.ChangingTaken += c.ChangingTaken
	s.FilesDiffer += c.FilesDiffer
	s.Extra += c.Extra
	s.Links += c.Links
	s.Skipped += c.Skipped
	switch {
	case kind.Deletes():
		s.SkippedDeletes += c.Skipped
	case kind == protocol.PhaseCopy, kind == protocol.PhaseHardlink, kind == protocol.PhaseVerify, kind == protocol.PhaseDir && !hasCopy:
		s.SkippedToBackup += c.Skipped
	}
	s.ChangedWhileRead += c.ChangedWhileRead
	s.ChangedSinceScan += c.ChangedSinceScan
	s.HoleBytes += c.HoleBytes
	s.ReflinkBytes += c.ReflinkBytes
}

// outcomes is of how many lines of its control file a shard's counts tell.
func outcomes(kind protocol.Phase, c entry.Counts) uint64 {
	n := c.DirsFailed + c.FilesFailed + c.Skipped
	if kind == protocol.PhaseVerify {
		return n + c.DirsVerified + c.FilesVerified
	}
	return n + c.DirsCopied + c.FilesCopied + c.Links + c.Deleted + c.DirsFinished + c.DirsTouched
}

// repeated is how many executions of a shard there were besides the one that a
// result is of, as far as is known: a leader that has just taken over has heard of
// no attempt, and goes by the deliveries.
func repeated(r *protocol.ResultMsg, o Open, known bool) uint64 {
	if !known || len(o.Attempts) == 0 {
		return uint64(min(r.GetDelivery(), 2)) - uint64(min(r.GetDelivery(), 1))
	}
	n := uint64(0)
	for _, a := range o.Attempts {
		if (a.Sequence != r.GetSequence() || a.Delivery != r.GetDelivery()) && (a.Executed || !a.Ended) {
			n++ // one that died had begun, as far as anybody can tell
		}
	}
	return n
}
