package protocol

import (
	"strconv"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// CountsToWire returns c as a message.
func CountsToWire(c *entry.Counts) *CountsMsg {
	out := &CountsMsg{}
	m := out.ProtoReflect()
	for _, f := range countFields() {
		if n := *f.of(c); n != 0 {
			m.Set(f.field, protoreflect.ValueOfUint64(n))
		}
	}
	return out
}

// CountsFromWire is the inverse of CountsToWire. A nil message has no counts.
func CountsFromWire(in *CountsMsg) entry.Counts {
	var c entry.Counts
	if in == nil {
		return c
	}
	m := in.ProtoReflect()
	for _, f := range countFields() {
		*f.of(&c) = m.Get(f.field).Uint()
	}
	return c
}

// countField is a figure with its field in the message, which has its number.
type countField struct {
	of    func(*entry.Counts) *uint64
	field protoreflect.FieldDescriptor
}

// countFields are all figures. The descriptor is not there before the generated
// code has been initialised, hence the function.
var countFields = sync.OnceValue(func() []countField {
	fields := (*CountsMsg)(nil).ProtoReflect().Descriptor().Fields()
	var out []countField
	for _, f := range entry.Figures() {
		out = append(out, countField{f.Of, fields.ByNumber(protoreflect.FieldNumber(f.Number))})
	}
	return out
})

// MetaToWire returns m as a message, which shares the values of m's attributes.
func MetaToWire(m *entry.Meta) *MetaMsg {
	if m == nil {
		return nil
	}
	out := &MetaMsg{
		Mode: m.Mode, Nlink: m.Nlink, Uid: m.UID, Gid: m.GID,
		Inode: m.Inode, Size: m.Size, Rdev: m.Rdev,
		Atime: m.Atime, Mtime: m.Mtime, Ctime: m.Ctime, Btime: m.Btime,
		HasX: m.HasX, AccessAcl: []byte(m.AccessACL), DefaultAcl: []byte(m.DefaultACL),
		Symlink: []byte(m.Symlink), HasSymlink: m.HasSymlink,
	}
	for _, x := range m.Xattrs {
		out.Xattrs = append(out.Xattrs, &XattrMsg{Name: []byte(x.Name), Value: x.Value})
	}
	for _, s := range m.Sparse {
		out.Sparse = append(out.Sparse, s.Offset, s.Length)
	}
	return out
}

// MetaFromWire is the inverse of MetaToWire.
func MetaFromWire(m *MetaMsg) *entry.Meta {
	if m == nil {
		return nil
	}
	out := &entry.Meta{
		Mode: m.GetMode(), Nlink: m.GetNlink(), UID: m.GetUid(), GID: m.GetGid(),
		Inode: m.GetInode(), Size: m.GetSize(), Rdev: m.GetRdev(),
		Atime: m.GetAtime(), Mtime: m.GetMtime(), Ctime: m.GetCtime(), Btime: m.GetBtime(),
		HasX: m.GetHasX(), AccessACL: string(m.GetAccessAcl()), DefaultACL: string(m.GetDefaultAcl()),
		Symlink: string(m.GetSymlink()), HasSymlink: m.GetHasSymlink(),
	}
	for _, x := range m.GetXattrs() {
		out.Xattrs = append(out.Xattrs, entry.Xattr{Name: string(x.GetName()), Value: x.GetValue()})
	}
	for i := 0; i+1 < len(m.GetSparse()); i += 2 {
		out.Sparse = append(out.Sparse, entry.Extent{Offset: m.GetSparse()[i], Length: m.GetSparse()[i+1]})
	}
	return out
}

// LeaderToHeader puts what became of the leader that a shard needs into the
// header of its message.
func LeaderToHeader(h map[string][]string, l entry.Leader) {
	if l != entry.LeaderDone {
		h[HeaderLeader] = []string{strconv.Itoa(int(l))}
	}
}

// LeaderFromHeader is the inverse of LeaderToHeader. What cannot be read has
// failed: nothing is linked to an object of which nothing is known.
func LeaderFromHeader(h map[string][]string) entry.Leader {
	v := h[HeaderLeader]
	if len(v) == 0 {
		return entry.LeaderDone
	}
	n, err := strconv.ParseUint(v[0], 10, 8)
	if err != nil {
		return entry.LeaderFailed
	}
	return entry.Leader(n)
}
