package state

import (
	"maps"

	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Fold adds a result to its job, once: it reports false, and changes nothing,
// if the job is not known or has ended, the shard has a result already, or no
// phase could have such a shard. open says whether the shard was open, which it
// is not where its publishing is not known yet.
func (t Tx) Fold(r *protocol.ResultMsg) (folded, open bool) {
	id, kind := protocol.JobID(r.GetJob()), protocol.Phase(r.GetPhase())
	if kind < protocol.PhaseCopy || kind > protocol.PhaseCleanup || r.GetN() >= MaxShards {
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
	t.PutPhase(p)

	addCounts(&j.Stats, kind, r.GetCounts(), j.HasCopy)
	if r.GetDelivery() > 1 {
		j.Stats.ShardsRepeated++
	}
	if len(r.GetWarnings()) > 0 {
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
func addCounts(s *protocol.Stats, kind protocol.Phase, c *protocol.CountsMsg, hasCopy bool) {
	switch kind {
	case protocol.PhaseDelete:
		s.Deleted += c.GetDeleted()
		s.DirsDeleted += c.GetDirsDeleted()
		s.DirDeletesFailed += c.GetDirsFailed()
		s.DeletesFailed += c.GetDirsFailed() + c.GetFilesFailed()
	case protocol.PhaseFinish:
		s.DirMetaFailed += c.GetDirsFailed()
	case protocol.PhaseDir:
		if hasCopy {
			s.DirMetaFailed += c.GetDirsFailed()
			break
		}
		s.DirsCopied += c.GetDirsTouched()
		s.DirsFailed += c.GetDirsFailed()
	default:
		s.DirsCopied += c.GetDirsCopied()
		s.DirsFailed += c.GetDirsFailed()
		s.FilesCopied += c.GetFilesCopied()
		s.FilesFailed += c.GetFilesFailed()
		s.BytesCopied += c.GetBytesCopied()
		s.FilesCopied += c.GetLinks() // a link is a file of its control file, as its leader is
	}
	s.DirsVerified += c.GetDirsVerified()
	s.FilesVerified += c.GetFilesVerified()
	s.BytesVerified += c.GetBytesVerified()
	s.DirsDiffer += c.GetDirsDiffer()
	s.FilesDiffer += c.GetFilesDiffer()
	s.Extra += c.GetExtra()
	s.Links += c.GetLinks()
	s.Skipped += c.GetSkipped()
	s.ChangedWhileRead += c.GetChangedWhileRead()
	s.ChangedSinceScan += c.GetChangedSinceScan()
	s.HoleBytes += c.GetHoleBytes()
	s.ReflinkBytes += c.GetReflinkBytes()
}
