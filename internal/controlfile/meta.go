package controlfile

import (
	"encoding/binary"
	"fmt"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Meta is the record of an entry, from whichever family of meta files.
type Meta struct {
	// What an entry needs of its record. HasX is set if an xmeta record exists and
	// is complete in ACLs, whose text form is ACLFromXattr's, and attributes.
	entry.Meta

	Type                   uint16 // 3 = UNIX; 0 in records that carry none
	Attr                   uint32 // attribute bits as the scanner saw them
	BlockSize, Blocks      uint64 // fixed records of files only; Blocks of 512 bytes
	HardlinkFiles, SubDirs uint32 // fixed records of directories only

	Name    string // base name; for directories sometimes the whole path
	HasName bool

	Partial bool    // for writing: an ACL or attribute is missing here; read back, HasX is then false
	Other   []Field // fields that are kept without being understood
}

// Record sizes and titles, as the reference implementation lays them out.
const (
	titleMetaOld = "NAS Scanner Backup Meta File"
	titleMetaNew = "FS Scanner Backup Meta File"
	titleXmeta   = "FS Scanner Backup XMeta File"

	sizeDirOld     = 72  // named records: then the name, then the ACL text
	sizeFileOld    = 88  //
	sizeFileOldNAS = 160 // begins with an NFS file handle
	sizeDirNew     = 96
	sizeFileNew    = 120

	// MetaTypeUnix is the record type of POSIX entries.
	MetaTypeUnix = 3

	modeFormat = 0o170000 // S_IFMT
	modeDir    = 0o040000 // S_IFDIR
)

var le = binary.LittleEndian

// xmetaRef is where a fixed record says that its xmeta record is. Offset 0
// means that there is none.
type xmetaRef struct{ index, offset uint64 }

// decodeDirNew decodes a fixed directory record. Padding is not looked at: the
// reference writes uninitialised memory there.
func decodeDirNew(b []byte) (Meta, xmetaRef) {
	return Meta{
		Meta: entry.Meta{
			Mode: le.Uint32(b[16:]), UID: le.Uint32(b[20:]), GID: le.Uint32(b[24:]), Inode: le.Uint64(b[32:]),
			Size: le.Uint64(b[40:]), Mtime: int64(le.Uint64(b[48:])), Atime: int64(le.Uint64(b[56:])),
			Ctime: int64(le.Uint64(b[64:])), Btime: int64(le.Uint64(b[72:])),
		},
		Type: le.Uint16(b), HardlinkFiles: le.Uint32(b[4:]), SubDirs: le.Uint32(b[8:]), Attr: le.Uint32(b[12:]),
	}, xmetaRef{le.Uint64(b[80:]), le.Uint64(b[88:])}
}

// decodeFileNew decodes a fixed file record. Its times are in another order
// than a directory's.
func decodeFileNew(b []byte) (Meta, xmetaRef) {
	return Meta{
		Meta: entry.Meta{
			Mode: le.Uint32(b[8:]), Nlink: le.Uint32(b[12:]),
			UID: le.Uint32(b[16:]), GID: le.Uint32(b[20:]), Inode: le.Uint64(b[24:]), Size: le.Uint64(b[32:]),
			Rdev: le.Uint64(b[48:]), Mtime: int64(le.Uint64(b[56:])), Ctime: int64(le.Uint64(b[64:])),
			Atime: int64(le.Uint64(b[72:])), Btime: int64(le.Uint64(b[80:])),
		},
		Type: le.Uint16(b), Attr: le.Uint32(b[4:]),
		BlockSize: le.Uint64(b[88:]), Blocks: le.Uint64(b[96:]),
	}, xmetaRef{le.Uint64(b[104:]), le.Uint64(b[112:])}
}

// decodeOld decodes a named record of exactly len(b) bytes. Nothing in the file
// tells the variants of a file record apart but the lengths of what follows the
// fixed part, and the name.
func decodeOld(b []byte, e Entry) (*Meta, error) {
	sizes := []int{sizeFileOld, sizeFileOldNAS}
	if e.IsDir {
		sizes = []int{sizeDirOld}
	}
	var found *Meta
	for _, size := range sizes {
		m, ok := decodeOldSized(b, size)
		if !ok {
			continue
		}
		if m.nameIs(e) {
			return m, nil
		}
		found = m
	}
	if found == nil {
		return nil, fault.New(fault.Corrupt, "the record of %d bytes has no length that fits its name and ACL", len(b))
	}
	return found, nil // the caller refuses it for its name
}

func decodeOldSized(b []byte, size int) (*Meta, bool) {
	if len(b) < size {
		return nil, false
	}
	var lens int // where the lengths of ACL and name are
	m := &Meta{HasName: true}
	switch size {
	case sizeDirOld:
		lens = 64
		m.Inode, m.Size = le.Uint64(b), le.Uint64(b[8:])
		m.Mtime, m.Atime = int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))
		m.Ctime, m.Btime = int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:]))
		m.Attr, m.Mode, m.UID, m.GID = le.Uint32(b[48:]), le.Uint32(b[52:]), le.Uint32(b[56:]), le.Uint32(b[60:])
	default:
		at := size - sizeFileOld // behind the file handle and its padding
		f := b[at:]
		lens = at + 80
		m.Inode = le.Uint64(f)
		m.Mtime, m.Atime = int64(le.Uint64(f[8:])), int64(le.Uint64(f[16:]))
		m.Ctime, m.Btime = int64(le.Uint64(f[24:])), int64(le.Uint64(f[32:]))
		m.Attr, m.Size, m.Rdev = le.Uint32(f[40:]), le.Uint64(f[48:]), le.Uint64(f[56:])
		m.Mode, m.Nlink, m.UID, m.GID = le.Uint32(f[64:]), le.Uint32(f[68:]), le.Uint32(f[72:]), le.Uint32(f[76:])
	}
	aclLen, nameLen := int(le.Uint16(b[lens:])), int(le.Uint16(b[lens+2:]))
	if size+nameLen+aclLen != len(b) {
		return nil, false
	}
	m.Name = string(b[size : size+nameLen])
	m.AccessACL, m.DefaultACL = splitACL(string(b[size+nameLen:]))
	return m, true
}

// nameIs reports whether the record's name is the entry's. A directory's may be
// the last part of its path or the whole of it.
func (m *Meta) nameIs(e Entry) bool {
	if !e.IsDir {
		return m.Name == e.Name
	}
	if m.Name == e.Dir || e.Path != "" && m.Name == baseName(e.Path) {
		return true
	}
	p, err := CleanDir(m.Name)
	return err == nil && p == e.Path
}

func baseName(p string) string {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return p[i+1:]
		}
	}
	return p
}

// agree refuses a record that is not the entry's: of another name or type. The
// record of a link is that of its inode, and scanners share it between the
// links of a group; there another name is refused only in a file where entries
// may have been imitated.
func (m *Meta) agree(e Entry, link bool) error {
	switch {
	case m.HasName && !m.nameIs(e) && (!link || e.Suspect):
		want := e.Name
		if e.IsDir {
			want = e.Dir
		}
		return fmt.Errorf("the record is that of %s, not of %s", quote(m.Name), quote(want))
	case !m.HasName && e.Suspect:
		return fmt.Errorf("the record of %s has no name to prove that it is its own, and the control file is damaged above this line", quote(e.Path))
	}
	if format := m.Mode & modeFormat; format != 0 && (format == modeDir) != e.IsDir {
		what := "a file"
		if e.IsDir {
			what = "a directory"
		}
		return fmt.Errorf("the entry is %s, its record has the mode %o", what, m.Mode)
	}
	return nil
}
