// Package history owns what is known of a source and its destination from run
// to run: which state the destination has, which scans may have touched it
// since, and the files of the scans that are kept.
package history

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
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
	seen time.Time // last sign of life of the run before this one
	rec  pairRecord
}

type pairRecord struct {
	Source      string    `json:"source"`
	Destination string    `json:"destination"`
	SourceID    *RootID   `json:"source_root,omitempty"`
	DestID      *RootID   `json:"destination_root,omitempty"`
	Committed   string    `json:"committed,omitempty"` // id of the scan that was committed last
	CommittedAt time.Time `json:"committed_at,omitzero"`
	Began       time.Time `json:"began,omitzero"` // when that scan began
	Last        Ending    `json:"last,omitzero"`
	// Mounts are the mount points below the source at the last commit, relative to it.
	Mounts []string `json:"mounts,omitempty"`
}

// Ending is how the destination was left by the run that was committed last.
type Ending struct {
	// Settled is the change time of the destination's root at its end, by the clock of
	// the destination. What changed later was changed by somebody else.
	Settled scanner.Time `json:"settled,omitzero"`
	// Gaps are spans before that in which it was not at work: it was interrupted, and
	// resumed. What changed then was changed by somebody else, too.
	Gaps []scanner.Span `json:"gaps,omitempty"`
	// Means says by what rights and with which options it wrote. A run by the same
	// means would do no better.
	Means string `json:"means,omitempty"`
	// KeptTargets says that it was asked to keep targets that differ.
	KeptTargets bool `json:"kept_targets,omitempty"`
	// NoMeta says that it wrote and compared contents only.
	NoMeta bool `json:"no_meta,omitempty"`
	// Lossy says that copies may lack something, or are missing, without having failed.
	Lossy bool `json:"lossy,omitempty"`
	// AttrsLost says that ACLs or attributes were lost, which no listing shows.
	AttrsLost bool `json:"attrs_lost,omitempty"`
	// LinksCopied says that the destination's file system refused hard links.
	LinksCopied bool `json:"links_copied,omitempty"`
}

// RootID identifies a root directory over reboots and mounts.
type RootID struct {
	FSType int64  `json:"fs_type"`
	FSID   uint64 `json:"fs_id"`
	Inode  uint64 `json:"inode"`
	Birth  int64  `json:"birth,omitempty"` // nanoseconds; 0 = the file system does not keep it
}

// Same reports whether two ids are of one directory. An inode's number is used again
// when it is removed, its time of birth is not; that of a file system is the device's
// on some (xfs), and another after a mount by another way.
func (r RootID) Same(o RootID) bool {
	if r.Birth == 0 || o.Birth == 0 {
		r.Birth, o.Birth = 0, 0
	} else {
		r.FSID, o.FSID = 0, 0
	}
	return r == o
}

// Identify returns what the directory at path is.
func Identify(path string) (RootID, error) {
	var fs unix.Statfs_t
	var st unix.Statx_t
	err := unix.Statfs(path, &fs)
	if err == nil {
		err = unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st)
	}
	if err != nil {
		return RootID{}, &fault.Error{Kind: fault.KindOf(err), Op: "look at root", Path: path, Err: err}
	}
	id := uint64(uint32(fs.Fsid.Val[0])) | uint64(uint32(fs.Fsid.Val[1]))<<32
	r := RootID{FSType: fs.Type, FSID: id, Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		r.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return r, nil
}

// settledAt returns the change time of the directory at path, once the kernel's clock
// for such times has moved on from it: whatever is touched afterwards shows. (That of a
// file server may tick later; within one tick nothing shows there.)
func settledAt(path string) (scanner.Time, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return scanner.Time{}, &fault.Error{Kind: fault.KindOf(err), Op: "look at root", Path: path, Err: err}
	}
	for range 50 { // a tick is 1 to 10 ms; another clock may be ahead for ever
		if coarseNow() > st.Ctim.Nano() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return scanner.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)}, nil
}

// coarseNow is the clock by which the kernel sets such times; where there is none, all
// of them are over.
func coarseNow() int64 {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now) != nil {
		return math.MaxInt64
	}
	return now.Nano()
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

// find returns the directory of the history of a pair below root. The pair is two
// directories, whatever leads to them: links, mounts, other spellings.
func find(root, source, destination string) (string, error) {
	rs, rd := realPath(source), realPath(destination)
	dir := DirFor(root, rs, rd)
	if _, err := os.Stat(filepath.Join(dir, pairFile)); err == nil {
		return dir, nil
	}
	known, err := list(root)
	if err != nil {
		return "", err
	}
	for _, k := range known {
		if realPath(k.rec.Source) == rs && realPath(k.rec.Destination) == rd {
			return k.dir, nil
		}
	}
	is, serr := Identify(source)
	at, derr := Identify(destination)
	for _, k := range known {
		s, d := k.rec.SourceID, k.rec.DestID
		if serr == nil && derr == nil && s != nil && d != nil && s.Same(is) && d.Same(at) {
			return k.dir, nil
		}
	}
	return dir, nil
}

// realPath resolves symbolic links as far as p exists.
func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	dir := filepath.Dir(p)
	if dir == p {
		return p
	}
	return filepath.Join(realPath(dir), filepath.Base(p))
}

// Open locks the history of a pair below root, and makes it if there is none.
func Open(root, source, destination string) (*Pair, error) {
	dir, err := find(root, source, destination)
	if err != nil {
		return nil, err
	}
	p := &Pair{Dir: dir, Source: source, Destination: destination}
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
	if fi, err := lock.Stat(); err == nil {
		p.seen = fi.ModTime()
	}
	if err := readJSON(filepath.Join(p.Dir, pairFile), &p.rec); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(err, p.Close())
	}
	p.rec.Source, p.rec.Destination = source, destination
	return p, nil
}

// Seen is when the run before this one, which may have been killed, gave its last sign
// of life.
func (p *Pair) Seen() time.Time { return p.seen }

// Touched is the change time of the destination's root, by the destination's clock; zero
// where there is none.
func (p *Pair) Touched() time.Time {
	var st unix.Stat_t
	if unix.Stat(p.Destination, &st) != nil {
		return time.Time{}
	}
	return time.Unix(st.Ctim.Unix())
}

// Live leaves a sign of life: this run is at work.
func (p *Pair) Live() error {
	if err := unix.Futimes(int(p.lock.Fd()), nil); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "leave a sign of life in", Path: p.lock.Name(), Err: err}
	}
	return nil
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

// Began is when the scan of the last committed run began.
func (p *Pair) Began() time.Time { return p.rec.Began }

// Roots returns what the roots were when the last run was committed; nil where
// nothing is known.
func (p *Pair) Roots() (source, destination *RootID) { return p.rec.SourceID, p.rec.DestID }

// Last returns how the last committed run left the destination.
func (p *Pair) Last() Ending { return p.rec.Last }

// Mounts returns the mount points that the source had at the last commit, relative to
// it.
func (p *Pair) Mounts() []string { return p.rec.Mounts }

// Forget drops what is known of the destination: the next run compares with what it
// holds.
func (p *Pair) Forget() error {
	p.rec.Committed, p.rec.SourceID, p.rec.DestID, p.rec.Last, p.rec.Mounts = "", nil, nil, Ending{}, nil
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
// pending before it are covered by it. A job that wrote something has moved the
// destination's clock on, of which wrote tells; end.Settled is not looked at.
func (p *Pair) Commit(s *Scan, failed iter.Seq2[scanner.Failed, error], now time.Time, wrote bool, end Ending) error {
	commit := func(state, out string) error { return scanner.Commit(state, out, failed) }
	if s.Settled {
		none, err := empty(failed)
		if err != nil {
			return err
		}
		if none {
			commit = scanner.Take
		}
	}
	if err := commit(s.StateFile(), filepath.Join(p.Dir, committedFile)); err != nil {
		return err
	}
	src, err := Identify(p.Source)
	if err != nil {
		return err
	}
	end.Settled, end.Gaps = p.rec.Last.Settled, append(slices.Clone(p.rec.Last.Gaps), s.Gaps...)
	p.rec.Began = s.Created
	p.rec.Committed, p.rec.CommittedAt, p.rec.SourceID, p.rec.DestID, p.rec.Mounts = s.ID, now, &src, nil, s.Mounts
	switch dst, err := Identify(p.Destination); {
	case err == nil:
		p.rec.DestID = &dst
		switch {
		case !wrote:
		case !s.Settles: // what was touched before is not to be taken for its work
			if end.Settled == (scanner.Time{}) {
				end.Settled.Nsec = 1
			}
		default:
			// Its scan has looked at what changed in earlier gaps.
			end.Gaps = s.Gaps
			if end.Settled, err = settledAt(p.Destination); err != nil {
				return err
			}
		}
	case !fault.Is(err, fault.NotFound): // the job has ended before anything was there
		return err
	}
	p.rec.Last = end
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

// empty reports whether nothing failed.
func empty(failed iter.Seq2[scanner.Failed, error]) (bool, error) {
	if failed != nil {
		for _, err := range failed {
			return false, err
		}
	}
	return true, nil
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
	all, err := list(root)
	var out []Known
	for _, k := range all {
		out = append(out, Known{Dir: k.dir, Source: k.rec.Source, Destination: k.rec.Destination, CommittedAt: k.rec.CommittedAt})
	}
	return out, err
}

type knownPair struct {
	dir string
	rec pairRecord
}

func list(root string) ([]knownPair, error) {
	list, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "list state directory", Path: root, Err: cause(err)}
	}
	var out []knownPair
	for _, d := range list {
		var rec pairRecord
		dir := filepath.Join(root, d.Name())
		if readJSON(filepath.Join(dir, pairFile), &rec) == nil {
			out = append(out, knownPair{dir, rec})
		}
	}
	return out, nil
}
