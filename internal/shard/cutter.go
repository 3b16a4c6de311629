// Package shard owns how control files become shards: a deterministic cutter
// that gives the same shards for the same bytes and limits, from any position.
package shard

import (
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strings"
	"syscall"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// GroupCap is the most members of a hard-link group that share one shard. A
// larger group (xfs and btrfs allow millions) goes on in further shards, which
// need the shard of its leader: that it is done, and, since a shard ends where a
// group goes on, what became of the leader of its last group. It belongs to
// version 1 of the limits.
const GroupCap = 20_000

// maxMode is the most bytes of a mode column that a shard carries. The known
// ones have two; an unknown one is only ever shown.
const maxMode = 16

// Config is what all cutters of a job have in common.
type Config struct {
	Job     protocol.JobID
	Phase   protocol.Phase
	Limits  protocol.Limits
	Options *protocol.OptionsMsg
	Meta    *controlfile.MetaDir // nil for the phases without records: delete, rmdir, dir

	// GroupCap replaces the constant, for tests with small groups; 0 = the constant.
	GroupCap int
}

// File is a control file of the job.
type File struct {
	Index uint32
	Path  string
	// Phase is the one whose control file it is, where Config.Phase goes over
	// files of others; 0 = the kind that Config.Phase is cut from.
	Phase protocol.Phase
	// Pins hold the file to what was admitted: controlfile.Pins, encoded; empty =
	// it is taken as it is. Where it was changed, New or Next return an error of
	// kind fault.Corrupt before anything of the change is in a shard.
	Pins []byte
}

// Position is where a shard begins. It is JSON-serialisable and valid only for
// the very bytes that it was taken from.
type Position struct {
	Reader controlfile.Position `json:"reader"`
	// Group is where the hard-link group begins that goes on at Reader, and
	// Leader the number of the shard that has its leader.
	Group  *controlfile.Position `json:"group,omitempty"`
	Leader uint64                `json:"leader,omitempty"`
}

// Cut is a shard with the position after it.
type Cut struct {
	Msg   *protocol.ShardMsg
	After Position
}

// Cutter cuts one control file. It is not safe for concurrent use.
type Cutter struct {
	cfg  Config
	file File
	pins *controlfile.Pins
	want controlfile.Kind
	r    *controlfile.Reader
	n    uint64

	held    *unit                 // read, but belongs to the next shard
	leader  *protocol.EntryMsg    // of the group that goes on
	dir     string                // the leader's directory
	groupAt *controlfile.Position // where that group begins
	leaderN uint64
	more    bool                  // the unit read last is a group that goes on
	pending *controlfile.Position // a group line has been read that begins the next unit
}

// unit is what must not be divided: an entry, or up to GroupCap of a group.
type unit struct {
	before    Position
	entries   []*protocol.EntryMsg
	dirs      []string // directory of each entry
	size      int      // raw, at most
	data      uint64   // bytes of regular files to copy
	led       bool     // the leader is among the entries
	more      bool     // the group goes on after this unit
	continued bool     // the group began before this unit
}

// KindOf returns the kind of control file that a phase is cut from.
func KindOf(p protocol.Phase) controlfile.Kind {
	switch p {
	case protocol.PhaseDelete, protocol.PhaseRmdir:
		return controlfile.Delete
	case protocol.PhaseHardlink:
		return controlfile.Hardlink
	case protocol.PhaseDir:
		return controlfile.Mtime
	default:
		return controlfile.Copy
	}
}

// New opens f at pos (nil: its start); the first shard gets number n.
func New(cfg Config, f File, pos *Position, n uint64) (*Cutter, error) {
	if cfg.GroupCap <= 0 {
		cfg.GroupCap = GroupCap
	}
	if f.Phase == 0 {
		f.Phase = cfg.Phase
		if f.Phase == protocol.PhaseRmdir {
			f.Phase = protocol.PhaseDelete
		}
	}
	pins, err := controlfile.ParsePins(f.Pins)
	if err != nil {
		return nil, err
	}
	c := &Cutter{cfg: cfg, file: f, pins: pins, want: KindOf(f.Phase), n: n}
	if pos == nil {
		c.r, err = controlfile.OpenPinned(f.Path, c.want, nil, pins)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if pos.Group != nil {
		if err := c.recallLeader(*pos.Group); err != nil {
			return nil, err
		}
		c.groupAt, c.leaderN, c.more, c.pending = pos.Group, pos.Leader, c.leader != nil, nil
	}
	c.r, err = controlfile.OpenPinned(f.Path, c.want, &pos.Reader, pins)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// recallLeader reads the leader of the group that begins at pos again.
func (c *Cutter) recallLeader(pos controlfile.Position) error {
	r, err := controlfile.OpenPinned(c.file.Path, c.want, &pos, c.pins)
	if err != nil {
		return err
	}
	c.r = r
	u, err := c.readGroup()
	if err != nil {
		return errors.Join(err, r.Close())
	}
	c.noteLeader(u)
	return r.Close()
}

func (c *Cutter) noteLeader(u *unit) {
	for i, e := range u.entries {
		if isLink(e) && !e.LeaderOnly {
			// A copy: the builder numbers the entry, and what is repeated must
			// not depend on where it was first.
			c.leader, c.dir = proto.CloneOf(e), u.dirs[i]
			c.leader.LeaderOnly = true
			return
		}
	}
	c.leader = nil
}

// Close releases the file.
func (c *Cutter) Close() error { return c.r.Close() }

// Next returns the next shard, or io.EOF.
func (c *Cutter) Next() (*Cut, error) {
	b := newBuilder(c.cfg.Limits, &protocol.ShardMsg{
		Job: string(c.cfg.Job), Phase: uint32(c.cfg.Phase), N: c.n, File: c.file.Index, Options: c.cfg.Options,
	})
	for {
		u := c.held
		c.held = nil
		if u == nil {
			var err error
			if u, err = c.read(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
		}
		if !b.fits(u) {
			c.held = u
			break
		}
		if u.continued {
			b.msg.NeedsFrom, b.msg.NeedsTo = c.leaderN, c.leaderN+1
		}
		b.add(u, c.want == controlfile.Hardlink)
		if u.more {
			if !u.continued {
				c.leaderN = c.n
			}
			break
		}
	}
	if len(b.msg.Entries) == 0 {
		return nil, io.EOF
	}
	if c.cfg.Phase == protocol.PhaseRmdir && c.n > 0 {
		// A directory is empty only once those in it are gone, which may be of the
		// shard before: each needs that one's result.
		b.msg.NeedsFrom, b.msg.NeedsTo = c.n-1, c.n
	}
	c.n++
	return &Cut{Msg: b.msg, After: c.position()}, nil
}

// position is where the next shard begins.
func (c *Cutter) position() Position {
	if c.held != nil {
		return c.held.before
	}
	return c.here()
}

func (c *Cutter) here() Position {
	if c.pending != nil {
		return Position{Reader: *c.pending}
	}
	p := Position{Reader: c.r.Position()}
	if c.more {
		p.Group, p.Leader = c.groupAt, c.leaderN
	}
	return p
}

// read returns the next unit of the phase, or io.EOF.
func (c *Cutter) read() (*unit, error) {
	if c.want == controlfile.Hardlink {
		return c.readGroup()
	}
	for {
		before := c.here()
		e, err := c.r.Next()
		if err != nil {
			return nil, err
		}
		m, dir, err := c.entry(e)
		if err != nil {
			return nil, err
		}
		if m != nil {
			u := &unit{before: before}
			u.add(m, dir)
			return u, nil
		}
	}
}

// readGroup returns up to GroupCap members of a hard-link group, or one
// unreadable entry outside groups.
func (c *Cutter) readGroup() (*unit, error) {
	u := &unit{before: c.here()}
	start := u.before.Reader
	// A group of which nothing could be read up to the cap has no leader yet, but
	// the lines that follow are still its own.
	inGroup := c.more || c.pending != nil || start.InGroup
	if c.more {
		u.continued = true
		u.add(proto.CloneOf(c.leader), c.dir)
	}
	c.more, c.pending = false, nil
	own := len(u.entries) // entries that are not this unit's own
	for {
		at := c.r.Position()
		e, err := c.r.Next()
		if errors.Is(err, io.EOF) && len(u.entries) > own {
			return u, nil // the next call meets the end again
		}
		if err != nil {
			return nil, err
		}
		if e.Type == controlfile.TypeGroup {
			if len(u.entries) > own {
				c.pending = &at
				return u, nil
			}
			// Nothing was left of the group before, or it had no lines.
			u, start, own, inGroup = &unit{before: Position{Reader: at}}, at, 0, true
			continue
		}
		m, dir, err := c.entry(e)
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		u.add(m, dir)
		if !inGroup {
			return u, nil
		}
		if len(u.entries)-own >= c.cfg.GroupCap {
			if !u.continued {
				c.noteLeader(u)
				c.groupAt = &start
			}
			c.more = c.leader != nil
			u.more = c.more
			return u, nil
		}
	}
}

// entry turns an entry into what the phase does with it; nil = nothing. Its error is
// that of a meta file: no entry of the control file can be taken for done or failed
// because of it.
func (c *Cutter) entry(e controlfile.Entry) (*protocol.EntryMsg, string, error) {
	finish := c.cfg.Phase == protocol.PhaseFinish
	rmdir := c.cfg.Phase == protocol.PhaseRmdir
	verify := c.cfg.Phase == protocol.PhaseVerify
	m := &protocol.EntryMsg{Mode: mode(e.Mode), IsDir: e.IsDir, Line: e.Line}
	if e.Type == controlfile.TypeBad {
		if finish || rmdir {
			return nil, "", nil // counted by the copy phase, or the delete phase
		}
		m, dir := reject(m, e.Err, e)
		return m, dir, nil
	}
	var op entry.Op
	switch c.file.Phase {
	case protocol.PhaseDelete:
		op = entry.OpUnlink
		isDir := e.Type == controlfile.TypeDir
		if isDir {
			if !e.Delete {
				return nil, "", nil // names the parent of the lines that follow
			}
			op = entry.OpRemoveTree
		}
		if isDir != rmdir && (rmdir || c.cfg.Options.GetDeleteEmpty()) {
			return nil, "", nil // the other of the two phases has it
		}
	case protocol.PhaseHardlink:
		op = entry.OpLink
	case protocol.PhaseDir:
		op = entry.OpTouch
		m.Meta = protocol.MetaToWire(timesMeta(e.Times))
	default:
		if e.Mode == controlfile.ModeDeleted || (finish && e.Type != controlfile.TypeDir) {
			return nil, "", nil
		}
		op = entry.OpCopy
		if e.Type == controlfile.TypeDir {
			op = entry.OpMkdir
			if finish {
				op = entry.OpFinish
			}
		}
	}
	if verify {
		// What a line asks a copy for says nothing about how much of it is compared.
		op, m.Mode = verifying(op), ""
	}
	m.Op = uint32(op)
	if c.cfg.Meta != nil && c.file.Phase != protocol.PhaseDelete && c.file.Phase != protocol.PhaseDir {
		rec, err := c.cfg.Meta.Lookup(e.Meta, e)
		if controlfile.MetaUnusable(err) {
			return nil, "", err
		}
		if err == nil {
			err = typeAgrees(rec.Mode, e.IsDir)
		}
		if err != nil {
			if finish {
				return nil, "", nil
			}
			m, dir := reject(m, err, e)
			return m, dir, nil
		}
		m.Meta = protocol.MetaToWire(&rec.Meta)
	}
	dir, name := split(e.Path)
	m.Name = []byte(name)
	return m, dir, nil
}

// typeAgrees holds a record's type against the line's: a d line whose record
// is a file's would give a directory somebody else's metadata.
func typeAgrees(mode uint32, isDir bool) error {
	if (mode&syscall.S_IFMT == syscall.S_IFDIR) != isDir {
		return fault.New(fault.Corrupt, "metadata record has file type %#o, which is not what the line says", mode&syscall.S_IFMT)
	}
	return nil
}

// mode returns a mode column as a shard carries it: it can be any text in a file
// that was tampered with, and never becomes a mode that is known.
func mode(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxMode {
		s = strings.ToValidUTF8(s[:maxMode], "?")
	}
	return s
}

func split(p string) (dir, name string) {
	if p == "" {
		return "", ""
	}
	dir, name = path.Split(p)
	if dir != "" {
		dir = dir[:len(dir)-1]
	}
	return dir, name
}

func (u *unit) add(m *protocol.EntryMsg, dir string) {
	u.entries = append(u.entries, m)
	u.dirs = append(u.dirs, dir)
	u.size += sizeOf(proto.Size(m) + maxNumbers)
	switch op := entry.Op(m.Op); {
	case op == entry.OpCopy, op == entry.OpVerify:
		u.data += Bytes(m)
	case isLink(m) && !u.led:
		// A group's data counts once, by its leader; where the group goes on,
		// with the shard that copies it.
		u.led = true
		if !m.LeaderOnly {
			u.data += Bytes(m)
		}
	}
}

// maxNumbers is what an entry grows by at most when the builder gives it its
// directory and its group: two tags, and numbers below 2^21, since no shard has
// that many entries.
const maxNumbers = 2 * (1 + 3)

// sizeOf is the size of a field of n bytes with its tag, as in a ShardMsg.
func sizeOf(n int) int { return 1 + protowire.SizeBytes(n) }

// Bytes is what an entry adds to the bytes to back up: the size of a regular
// file whose data is to be copied.
func Bytes(m *protocol.EntryMsg) uint64 {
	if m.Meta == nil || m.Meta.Mode&syscall.S_IFMT != syscall.S_IFREG || m.Mode == "mm" {
		return 0
	}
	return m.Meta.Size
}

// builder fills one shard.
type builder struct {
	limits protocol.Limits
	msg    *protocol.ShardMsg
	index  map[string]uint32
	size   int    // of msg raw, at most
	groups uint64 // numbered from 1 in each shard, so that a shard is the same wherever cutting began
}

func newBuilder(l protocol.Limits, m *protocol.ShardMsg) *builder {
	// What is set last: two numbers of needs, and the bytes of data.
	size := proto.Size(m) + 3*(1+binary.MaxVarintLen64)
	return &builder{limits: l, msg: m, index: map[string]uint32{}, size: size}
}

// fits reports whether u may join the shard. Anything fits an empty one.
func (b *builder) fits(u *unit) bool {
	if len(b.msg.Entries) == 0 {
		return true
	}
	if u.continued {
		return false
	}
	dirs, last := 0, ""
	for i, dir := range u.dirs {
		if _, ok := b.index[dir]; !ok && (i == 0 || dir != last) {
			dirs += sizeOf(len(dir))
		}
		last = dir
	}
	return len(b.msg.Entries)+len(u.entries) <= b.limits.Entries &&
		b.size+u.size+dirs <= b.limits.RawBytes &&
		b.msg.DataBytes+u.data <= b.limits.DataBytes
}

func (b *builder) add(u *unit, group bool) {
	if group {
		b.groups++
	}
	for i, e := range u.entries {
		dir := u.dirs[i]
		at, ok := b.index[dir]
		if !ok {
			at = uint32(len(b.msg.Dirs))
			b.index[dir] = at
			b.msg.Dirs = append(b.msg.Dirs, []byte(dir))
			b.size += sizeOf(len(dir))
		}
		e.Dir = at
		if entry.Op(e.Op) != entry.OpRejected {
			e.Group = b.groups
		}
		b.msg.Entries = append(b.msg.Entries, e)
	}
	b.size += u.size
	b.msg.DataBytes += u.data
}
