package worker

import (
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// maxPrior bounds the earlier deliveries whose temporary names are looked for.
const maxPrior = 64

// batch turns a shard's message into what the engine executes.
func batch(s *protocol.ShardMsg, d *bus.Delivery) (*engine.Batch, error) {
	b := &engine.Batch{
		Phase: uint8(s.GetPhase()), N: s.GetN(), Attempt: engine.AttemptID{Sequence: d.Sequence, Delivery: d.Delivered},
		Entries: make([]engine.Entry, 0, len(s.GetEntries())),
	}
	// Every delivery before this one may have left temporary names. Beyond a
	// bound they are deliveries that were handed back unexecuted, for hours.
	for i := max(1, d.Delivered-min(d.Delivered, maxPrior)); i < d.Delivered; i++ {
		b.Predecessors = append(b.Predecessors, engine.AttemptID{Sequence: d.Sequence, Delivery: i})
	}
	b.Predecessors = append(b.Predecessors, priorAttempts(d.Header)...)
	dirs := make([]string, len(s.GetDirs()))
	for i, p := range s.GetDirs() {
		dirs[i] = string(p)
	}
	for _, e := range s.GetEntries() {
		if int(e.GetDir()) >= len(dirs) {
			return nil, fault.New(fault.Corrupt, "entry of line %d refers to directory %d of %d", e.GetLine(), e.GetDir(), len(dirs))
		}
		path := dirs[e.GetDir()]
		if name := string(e.GetName()); name != "" {
			if path != "" {
				path += "/"
			}
			path += name
		}
		b.Entries = append(b.Entries, engine.Entry{
			Op: engine.Op(e.GetOp()), Mode: e.GetMode(), Path: path, Meta: meta(e.GetMeta()), Group: e.GetGroup(), LeaderOnly: e.GetLeaderOnly(),
			IsDir: e.GetIsDir(), Reject: e.GetReject(), Kind: uint8(e.GetKind()), File: s.GetFile(), Line: e.GetLine(),
		})
	}
	return b, nil
}

// priorAttempts reads the attempts at earlier messages of a shard that was
// published again: sequence.deliveries, comma-separated.
func priorAttempts(h map[string][]string) []engine.AttemptID {
	v := h[protocol.HeaderPrior]
	if len(v) == 0 {
		return nil
	}
	var out []engine.AttemptID
	for part := range strings.SplitSeq(v[0], ",") {
		seq, n, ok := strings.Cut(part, ".")
		s, err1 := strconv.ParseUint(seq, 10, 64)
		last, err2 := strconv.ParseUint(n, 10, 16)
		if !ok || err1 != nil || err2 != nil {
			continue
		}
		for i := uint32(1); i <= uint32(last); i++ {
			out = append(out, engine.AttemptID{Sequence: s, Delivery: i})
		}
	}
	return out
}

func meta(m *protocol.MetaMsg) *engine.Meta {
	if m == nil {
		return nil
	}
	out := &engine.Meta{
		Mode: m.GetMode(), Nlink: m.GetNlink(), UID: m.GetUid(), GID: m.GetGid(),
		Inode: m.GetInode(), Size: m.GetSize(), Rdev: m.GetRdev(),
		Atime: m.GetAtime(), Mtime: m.GetMtime(), Ctime: m.GetCtime(), Btime: m.GetBtime(),
		HasX: m.GetHasX(), AccessACL: string(m.GetAccessAcl()), DefaultACL: string(m.GetDefaultAcl()),
		Symlink: string(m.GetSymlink()), HasSymlink: m.GetHasSymlink(),
	}
	for _, x := range m.GetXattrs() {
		out.Xattrs = append(out.Xattrs, engine.Xattr{Name: string(x.GetName()), Value: x.GetValue()})
	}
	for i := 0; i+1 < len(m.GetSparse()); i += 2 {
		out.Sparse = append(out.Sparse, engine.Extent{Offset: m.GetSparse()[i], Length: m.GetSparse()[i+1]})
	}
	return out
}
