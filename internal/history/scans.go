package history

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// Status says what became of a scan.
type Status string

// What may become of a scan.
const (
	StatusScanning  Status = "scanning"  // not complete: its files are of no use
	StatusPending   Status = "pending"   // its job may have changed the destination
	StatusCommitted Status = "committed" // its job has ended, and its outcome is known
	StatusAbandoned Status = "abandoned" // its pair was forgotten
)

// Scan is one scan of a pair.
type Scan struct {
	ID          string         `json:"id"`
	Status      Status         `json:"status"`
	Incremental bool           `json:"incremental"`
	Job         protocol.JobID `json:"job,omitempty"`
	Cluster     bool           `json:"cluster,omitempty"` // its job was given to a cluster
	Options     string         `json:"options,omitempty"` // what was asked for; a run that asks for something else plans anew
	Mounts      []string       `json:"mounts,omitempty"`  // mount points below the source, relative to it
	Settles     bool           `json:"settles,omitempty"` // its job mends or fails all that is wrong in the destination, as far as that shows
	Gaps        []scanner.Span `json:"gaps,omitempty"`    // in which its job was not at work
	By          Ending         `json:"by,omitzero"`       // by what means its job writes; the rest is known at its end
	Created     time.Time      `json:"created"`
	Dirs        uint64         `json:"dirs"`
	Files       uint64         `json:"files"`
	Bytes       uint64         `json:"bytes"`

	Settled bool `json:"-"` // see scanner.Result; of a scan of this process

	Dir string `json:"-"` // where the scan's files are
}

// StateFile is the ordered state of what the scan saw.
func (s *Scan) StateFile() string { return filepath.Join(s.Dir, "state", "entries.zst") }

func (s *Scan) save() error { return writeJSON(filepath.Join(s.Dir, scanFile), s) }

// Scans returns all scans, oldest first.
func (p *Pair) Scans() ([]*Scan, error) {
	list, err := os.ReadDir(filepath.Join(p.Dir, scansDir))
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "list scans in", Path: p.Dir, Err: cause(err)}
	}
	var out []*Scan
	for _, d := range list {
		s := &Scan{}
		dir := filepath.Join(p.Dir, scansDir, d.Name())
		if readJSON(filepath.Join(dir, scanFile), s) != nil {
			// Killed between making the directory and writing its record.
			s = &Scan{ID: d.Name(), Status: StatusScanning}
		}
		s.Dir = dir
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Scan) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Pending returns the scans whose jobs are not committed, oldest first.
func (p *Pair) Pending() ([]*Scan, error) {
	all, err := p.Scans()
	return slices.DeleteFunc(all, func(s *Scan) bool { return s.Status != StatusPending }), err
}

// Begin makes the directory of a new scan and removes those of scans that were
// interrupted.
//
// The caller fills in what the scan is to remember of the run, before MarkPending.
func (p *Pair) Begin(now time.Time, incremental bool) (*Scan, error) {
	all, err := p.Scans()
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Status == StatusScanning {
			if err := s.Discard(); err != nil {
				return nil, err
			}
		}
	}
	id := now.UTC().Format("20060102T150405.000000000Z")
	s := &Scan{ID: id, Status: StatusScanning, Incremental: incremental, Created: now, Dir: filepath.Join(p.Dir, scansDir, id)}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "make scan directory", Path: s.Dir, Err: cause(err)}
	}
	return s, s.save()
}

// MarkPending makes durable that a job with this scan's files may change the
// destination. It comes before the job is submitted.
func (s *Scan) MarkPending(job protocol.JobID, r *scanner.Result) error {
	s.Status, s.Job = StatusPending, job
	s.Dirs, s.Files, s.Bytes = r.Dirs, r.Files(), r.Bytes
	return s.save()
}

// Unwatched notes that the scan's job was not at work from one time to another.
func (s *Scan) Unwatched(from, to time.Time) error {
	at := func(t time.Time) scanner.Time { return scanner.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())} }
	s.Gaps = append(s.Gaps, scanner.Span{From: at(from), To: at(to)})
	return s.save()
}

// ForgetJob notes that the scan's job has ended, and that what it has done is not
// known exactly. The scan stays pending: the next run looks at all that it has.
func (s *Scan) ForgetJob() error {
	s.Job = ""
	return s.save()
}

// Discard removes a scan that nothing was done with.
func (s *Scan) Discard() error {
	if err := os.RemoveAll(s.Dir); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "remove scan", Path: s.Dir, Err: cause(err)}
	}
	return nil
}

// Prune removes all but the newest keep scans that are not pending, and returns
// how many it removed.
func (p *Pair) Prune(keep int) (int, error) {
	all, err := p.Scans()
	if err != nil {
		return 0, err
	}
	done := slices.DeleteFunc(all, func(s *Scan) bool { return s.Status == StatusPending || s.Status == StatusScanning })
	n := 0
	for ; n < len(done)-keep; n++ {
		if err := done[n].Discard(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Drop removes one scan, or refuses where it is still needed.
func (p *Pair) Drop(id string) error {
	all, err := p.Scans()
	if err != nil {
		return err
	}
	for _, s := range all {
		switch {
		case s.ID != id:
		case s.Status == StatusPending:
			return fault.Hinted(fault.Unsafe, "run the backup again first, which settles it, or forget all that is known: fsbackup scans reset", "scan %s is pending: what its job has done is not known", id)
		default:
			return s.Discard()
		}
	}
	return fault.New(fault.NotFound, "there is no scan %s", id)
}
