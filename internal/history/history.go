// Package history owns what is known of a source and its destination from run
// to run: which state the destination has, which scans may have touched it
// since, and the files of the scans that are kept.
package history

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// Layout of a pair's directory:
//
//	pair.json        source, destination and what their roots were
//	lock             held by the run that uses the directory
//	committed.zst    the state that the destination is known to have
//	scans/ID/        a scan: ctrl, meta, state and scan.json
//	cluster/         NATS and coordinator of the run, for one that is interrupted
const (
	pairFile      = "pair.json"
	lockFile      = "lock"
	committedFile = "committed.zst"
	scansDir      = "scans"
	scanFile      = "scan.json"
	clusterDir    = "cluster"
)

// Pair is the history of one source and destination. It is locked: one process
// uses it at a time, from one goroutine.
type Pair struct {
	Dir         string
	Source      string
	Destination string

	lock *os.File
	rec  pairRecord
}

type pairRecord struct {
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	SourceID    *RootID   `json:"source_root,omitempty"`
	DestID      *RootID   `json:"destination_root,omitempty"`
	Committed   string    `json:"committed,omitempty"` // id of the scan that was committed last
	CommittedAt time.Time `json:"committed_at,omitzero"`
}

// RootID identifies a root directory over reboots and mounts.
type RootID struct {
	FSType int64  `json:"fs_type"`
	FSID   uint64 `json:"fs_id"`
	Inode  uint64 `json:"inode"`
}

// Identify returns what the directory at path is.
func Identify(path string) (RootID, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	err := unix.Statfs(path, &fs)
	if err == nil {
		err = unix.Stat(path, &st)
	}
	if err != nil {
		return RootID{}, &fault.Error{Kind: fault.KindOf(err), Op: "look at root", Path: path, Err: err}
	}
	id := uint64(uint32(fs.Fsid.Val[0])) | uint64(uint32(fs.Fsid.Val[1]))<<32
	return RootID{FSType: fs.Type, FSID: id, Inode: st.Ino}, nil
}

// DirFor returns the directory of a pair below root: readable for people, and
// unique.
func DirFor(root, source, destination string) string {
	h := sha256.Sum256([]byte(source + "\x00" + destination))
	base := strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || (r >= '0' && r <= '9') || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') {
			return r
		}
		return '_'
	}, filepath.Base(source))
	return filepath.Join(root, base[:min(len(base), 40)]+"-"+hex.EncodeToString(h[:6]))
}

// Open locks the history of a pair below root, and makes it if there is none.
func Open(root, source, destination string) (*Pair, error) {
	p := &Pair{Dir: DirFor(root, source, destination), Source: source, Destination: destination}
	if err := os.MkdirAll(filepath.Join(p.Dir, scansDir), 0o700); err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "make state directory", Path: p.Dir, Err: cause(err), Hint: "name another with --state-dir, or go without: --no-state"}
	}
	lock, err := os.OpenFile(filepath.Join(p.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "lock state directory", Path: p.Dir, Err: cause(err)}
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&fault.Error{
			Kind: fault.Transient, Op: "lock state directory", Path: p.Dir, Err: errors.New("another run of this backup is under way"),
			Hint: "wait for it",
		}, lock.Close())
	}
	p.lock = lock
	if err := readJSON(filepath.Join(p.Dir, pairFile), &p.rec); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, p.Close())
	}
	p.rec.Source, p.rec.Destination = source, destination
	return p, nil
}

// Close gives the pair up.
func (p *Pair) Close() error {
	if err := p.lock.Close(); err != nil {
		return &fault.Error{Kind: fault.Internal, Op: "unlock state directory", Path: p.Dir, Err: err}
	}
	return nil
}

// Committed returns the state file of what the destination is known to have;
// "" = nothing is known.
func (p *Pair) Committed() string {
	if p.rec.Committed == "" {
		return ""
	}
	return filepath.Join(p.Dir, committedFile)
}

// CommittedAt is when the last run was committed.
func (p *Pair) CommittedAt() time.Time { return p.rec.CommittedAt }

// Roots returns what the roots were when the last run was committed; nil where
// nothing is known.
func (p *Pair) Roots() (source, destination *RootID) { return p.rec.SourceID, p.rec.DestID }

// Forget drops what is known of the destination: the next run is a full one.
func (p *Pair) Forget() error {
	p.rec.Committed, p.rec.SourceID, p.rec.DestID = "", nil, nil
	if err := p.save(); err != nil {
		return err
	}
	scans, err := p.Pending()
	if err != nil {
		return err
	}
	for _, s := range scans {
		s.Status = StatusAbandoned
		if err := s.save(); err != nil {
			return err
		}
	}
	return nil
}

// ClusterDir is where a run's own cluster keeps what survives the process.
func (p *Pair) ClusterDir() (string, error) {
	dir := filepath.Join(p.Dir, clusterDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Op: "make directory", Path: dir, Err: cause(err)}
	}
	return dir, nil
}

func (p *Pair) save() error { return writeJSON(filepath.Join(p.Dir, pairFile), p.rec) }

// Commit makes a pending scan's state the one that the destination is known to
// have: its job has ended, and failed names what it could not do. Scans that were
// pending before it are covered by it.
func (p *Pair) Commit(s *Scan, failed iter.Seq2[scanner.Failed, error], now time.Time) error {
	if err := scanner.Commit(s.StateFile(), filepath.Join(p.Dir, committedFile), failed); err != nil {
		return err
	}
	src, err := Identify(p.Source)
	if err != nil {
		return err
	}
	dst, err := Identify(p.Destination)
	if err != nil {
		return err
	}
	p.rec.Committed, p.rec.CommittedAt, p.rec.SourceID, p.rec.DestID = s.ID, now, &src, &dst
	if err := p.save(); err != nil {
		return err
	}
	pending, err := p.Pending()
	if err != nil {
		return err
	}
	// Killed in between, what is left pending is harmless: it only makes the next
	// scan look closer.
	for _, o := range pending {
		if o.ID <= s.ID {
			o.Status = StatusCommitted
			if err := o.save(); err != nil {
				return err
			}
		}
	}
	s.Status = StatusCommitted
	return nil
}

// Known is a pair that there is a history of.
type Known struct {
	Dir         string    `json:"dir"`
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	CommittedAt time.Time `json:"committed_at,omitzero"`
}

// List returns the pairs below root.
func List(root string) ([]Known, error) {
	list, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "list state directory", Path: root, Err: cause(err)}
	}
	var out []Known
	for _, d := range list {
		var rec pairRecord
		dir := filepath.Join(root, d.Name())
		if readJSON(filepath.Join(dir, pairFile), &rec) == nil {
			out = append(out, Known{Dir: dir, Source: rec.Source, Destination: rec.Destination, CommittedAt: rec.CommittedAt})
		}
	}
	return out, nil
}
