package shard

import (
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func metaMsg(m *controlfile.Meta) *protocol.MetaMsg {
	out := &protocol.MetaMsg{
		Mode: m.Mode, Nlink: m.Nlink, Uid: m.UID, Gid: m.GID,
		Inode: m.Inode, Size: m.Size, Rdev: m.Rdev,
		Atime: m.Atime, Mtime: m.Mtime, Ctime: m.Ctime, Btime: m.Btime,
		HasX: m.HasX, AccessAcl: []byte(m.AccessACL), DefaultAcl: []byte(m.DefaultACL),
		Symlink: []byte(m.Symlink), HasSymlink: m.HasSymlink,
	}
	for _, x := range m.Xattrs {
		out.Xattrs = append(out.Xattrs, &protocol.XattrMsg{Name: []byte(x.Name), Value: x.Value})
	}
	for _, s := range m.Sparse {
		out.Sparse = append(out.Sparse, s.Offset, s.Length)
	}
	return out
}

func timesMeta(t *controlfile.Times) *protocol.MetaMsg {
	return &protocol.MetaMsg{Mode: t.Mode, Uid: t.UID, Gid: t.GID, Atime: t.Atime, Mtime: t.Mtime, Ctime: t.Ctime, Btime: t.Btime}
}
