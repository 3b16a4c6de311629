package folder

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Elapsed is how long a job has run, or ran.
func Elapsed(rec protocol.JobRecord, now time.Time) time.Duration {
	switch {
	case rec.Started.IsZero():
		return 0
	case rec.Ended.IsZero():
		return now.Sub(rec.Started)
	}
	return rec.Ended.Sub(rec.Started)
}

// Figures completes the folded statistics by what admission and cutting know.
func Figures(t state.Tx, j state.Job, now time.Time) protocol.Stats {
	s := j.Stats
	if j.Record.State.Final() {
		if j.Record.Stats != nil {
			s = *j.Record.Stats
		}
		return s
	}
	announced := uint64(0)
	s.DirsToBackup, s.FilesToBackup, s.FilesRefused, s.FilesNotAdmitted = 0, 0, 0, 0
	s.DirsToDelete, s.FilesToDelete = 0, 0
	for f := range t.Files(j.Record.ID) {
		rec := f.Record
		if rec.State == protocol.FileRefused {
			s.FilesRefused++
			continue
		}
		if rec.State == protocol.FilePending {
			s.FilesNotAdmitted++
		}
		s.Skipped += rec.Counts.Skipped
		switch rec.Ref.Phase {
		case protocol.PhaseCopy:
			s.DirsToBackup += rec.Counts.Dirs
			s.FilesToBackup += rec.Counts.Files
			announced += rec.Counts.Bytes
		case protocol.PhaseDelete:
			if j.Record.Spec.VerifyOnly {
				continue
			}
			s.DirsToDelete += rec.Counts.Dirs
			s.FilesToDelete += rec.Counts.Files
		case protocol.PhaseHardlink:
			s.FilesToBackup += rec.Counts.Files
		case protocol.PhaseDir:
			if !j.HasCopy {
				s.DirsToBackup += rec.Counts.Dirs
			}
		}
	}
	// The header's figure until all is cut, then the sum over the records: other
	// scanners' headers count more than regular files.
	s.BytesToBackup = max(announced, j.CutBytes)
	if j.Record.Sealed && cutWhole(t, j) {
		s.BytesToBackup = j.CutBytes
	}
	unattempted(t, j, &s)
	done := s.BytesCopied
	if j.Record.Spec.VerifyOnly {
		done = s.BytesVerified
	}
	if sec := Elapsed(j.Record, now).Seconds(); sec > 0 {
		s.BytesPerSec = uint64(float64(done) / sec)
	}
	return s
}

// cutWhole reports whether all files whose bytes count are cut.
func cutWhole(t state.Tx, j state.Job) bool {
	if j.Record.Spec.VerifyOnly {
		return t.Phase(j.Record.ID, protocol.PhaseVerify).Sealed
	}
	for _, p := range []protocol.Phase{protocol.PhaseCopy, protocol.PhaseHardlink} {
		if t.Phase(j.Record.ID, p).Sealed {
			continue
		}
		for f := range t.Files(j.Record.ID) {
			if f.Record.Ref.Phase == p && f.Record.State != protocol.FileRefused {
				return false
			}
		}
	}
	return true
}

// unattempted fills in what has no outcome so far.
func unattempted(t state.Tx, j state.Job, s *protocol.Stats) {
	done := s.DirsCopied + s.FilesCopied
	if j.Record.Spec.VerifyOnly {
		done = s.DirsVerified + s.FilesVerified
	}
	s.NotAttempted = less(s.DirsToBackup+s.FilesToBackup, done+s.DirsFailed+s.FilesFailed+s.SkippedToBackup)
	s.DeletesNotAttempted = less(s.DirsToDelete+s.FilesToDelete, s.Deleted+s.DeletesFailed+s.SkippedDeletes)
	s.DirMetaNotAttempted = 0
	if !j.HasCopy || j.Record.Spec.VerifyOnly {
		return // the lines of times files are what is to be backed up
	}
	if p := protocol.PhaseFinish; !j.Record.Spec.KeepDirs && !j.Record.Phases[p].Complete {
		s.DirMetaNotAttempted = less(s.DirsCopied, t.Phase(j.Record.ID, p).Outcomes)
	}
	if p := protocol.PhaseDir; !j.Record.Phases[p].Complete {
		lines := uint64(0)
		for f := range t.Files(j.Record.ID) {
			if f.Record.Ref.Phase == p && f.Record.State != protocol.FileRefused {
				lines += f.Record.Counts.Dirs + f.Record.Counts.Files
			}
		}
		// Most of these directories are the same.
		s.DirMetaNotAttempted = max(s.DirMetaNotAttempted, less(lines, t.Phase(j.Record.ID, p).Outcomes))
	}
}

// less is a - b, and not below 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// Tolerated reports whether failures leave the status at completed. Control
// files that cannot be used never do.
func Tolerated(spec protocol.JobSpec, s protocol.Stats) bool {
	if s.FilesRefused > 0 {
		return false
	}
	return spec.MaxFailures < 0 || s.Failures() <= uint64(spec.MaxFailures)
}

// Warnings are a job's warnings by kind.
func Warnings(m map[string]protocol.Warning) []protocol.Warning {
	out := make([]protocol.Warning, 0, len(m))
	for _, w := range m {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b protocol.Warning) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

// Reason says in words what failed and what was not attempted; empty: nothing.
func Reason(s protocol.Stats) string {
	out := ""
	add := func(n uint64, one, many string) {
		if n == 0 {
			return
		}
		if out != "" {
			out += ", "
		}
		if n == 1 {
			many = one
		}
		out += fmt.Sprintf("%d %s", n, many)
	}
	add(s.FilesDiffer, "file differs", "files differ")
	add(s.DirsDiffer, "directory differs", "directories differ")
	add(s.Extra, "extra name", "extra names")
	add(s.FilesFailed-min(s.FilesDiffer, s.FilesFailed), "file failed", "files failed")
	add(s.DirsFailed-min(s.DirsDiffer, s.DirsFailed), "directory failed", "directories failed")
	add(s.DirMetaFailed, "directory without its metadata", "directories without their metadata")
	add(s.DeletesFailed, "delete failed", "deletes failed")
	add(s.FilesRefused, "control file refused", "control files refused")
	add(s.NotAttempted, "entry not attempted", "entries not attempted")
	add(s.DeletesNotAttempted, "delete not attempted", "deletes not attempted")
	add(s.FilesNotAdmitted, "control file not looked at", "control files not looked at")
	add(s.DirMetaNotAttempted, "copied directory whose metadata was not attempted", "copied directories whose metadata was not attempted")
	return out
}
