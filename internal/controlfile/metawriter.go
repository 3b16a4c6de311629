package controlfile

import (
	"bufio"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// DefaultMaxMeta is the size in bytes at which the next meta file is begun.
const DefaultMaxMeta = 1 << 30

// attrPartial is a bit of the attribute word that is ours: an attribute of the
// entry could not be written to its xmeta record, so that what is there is not
// all. Readers then take ACLs and attributes from the source. The other bits
// are those of the reference, which for POSIX entries are fixed.
const (
	attrPartial = 1 << 31
	AttrFile    = 0x20 // what Meta.Attr of a non-directory carries
	AttrDir     = 0x10 // what Meta.Attr of a directory carries
)

// Field is a field of an xmeta record that this package keeps without knowing
// what it means, such as an NFS file handle.
type Field struct {
	Type  uint16
	Value []byte
}

// MetaWriter writes the pairs meta_file_N and xmeta_file_N of a scan. Not safe
// for concurrent use. Records are readable once Flush or Close has returned.
type MetaWriter struct {
	dir    string
	header Header
	stamp  string
	max    int64

	index  int // of the pair that is open; -1 before the first
	meta   output
	xmeta  output
	record []byte // scratch
}

// NewMetaWriter returns a writer of meta files in dir, which must exist. Of h it
// takes the texts that an xmeta header has. A file that has reached maxBytes (0
// = DefaultMaxMeta) is followed by the next.
func NewMetaWriter(dir string, h Header, at time.Time, maxBytes int64) *MetaWriter {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxMeta
	}
	return &MetaWriter{dir: dir, header: h, stamp: at.Format(TimestampLayout), max: maxBytes, index: -1}
}

// Files returns the number of pairs written so far.
func (w *MetaWriter) Files() int { return w.index + 1 }

// Add writes the records of an entry; m.Mode says whether it is a directory. It
// returns where the record is and how many values were left out because they
// hold a NUL byte, which the format cannot carry safely.
func (w *MetaWriter) Add(m *Meta) (ref MetaRef, dropped int, err error) {
	if w.index < 0 || w.meta.off >= w.max || w.xmeta.off >= w.max {
		if err := w.rotate(); err != nil {
			return ref, 0, err
		}
	}
	x := xmetaRef{index: uint64(w.index), offset: uint64(w.xmeta.off)}
	var b []byte
	if b, dropped = appendXmeta(w.record[:0], m); len(b) == xmetaHead {
		x.offset, b = 0, b[:0] // not even a name: no record
	}
	if len(b)-xmetaHead > maxXmeta {
		// More attributes than a reader takes: it finds them at the source.
		bare := *m
		bare.Xattrs = nil
		b, dropped = appendXmeta(w.record[:0], &bare)
		dropped += len(m.Xattrs)
	}
	if err := w.xmeta.write(b); err != nil {
		return ref, dropped, err
	}
	attr := m.Attr
	if dropped > 0 || m.Partial {
		attr |= attrPartial
	}
	ref = MetaRef{File: metaPrefix + strconv.Itoa(w.index), Offset: uint64(w.meta.off), Valid: true}
	if m.Mode&modeFormat == modeDir {
		b = appendDirNew(b[:0], m, attr, x)
	} else {
		b = appendFileNew(b[:0], m, attr, x)
	}
	ref.Length = uint32(len(b))
	w.record = b
	return ref, dropped, w.meta.write(b)
}

// Flush hands everything to the kernel and syncs it.
func (w *MetaWriter) Flush() error { return errors.Join(w.xmeta.sync(), w.meta.sync()) }

// Close syncs and closes the files.
func (w *MetaWriter) Close() error { return errors.Join(w.xmeta.close(), w.meta.close()) }

// rotate begins the next pair of files.
func (w *MetaWriter) rotate() error {
	if w.index == math.MaxUint16 {
		return fault.Hinted(fault.Unsupported, "raise the size of meta files", "write meta file in %q: 65536 files are full", w.dir)
	}
	if err := w.Close(); err != nil {
		return err
	}
	w.index++
	name := metaPrefix + strconv.Itoa(w.index)
	if err := w.meta.create(filepath.Join(w.dir, name)); err != nil {
		return err
	}
	if err := w.xmeta.create(filepath.Join(w.dir, "x"+name)); err != nil {
		return err
	}
	if err := w.meta.write([]byte("Title:" + titleMetaNew + "\nVersion:2.0\nTimestamp:" + w.stamp + "\n\n")); err != nil {
		return err
	}
	h := &w.header
	return w.xmeta.write([]byte("Title:" + titleXmeta + "\nVersion:1.0\nTimestamp:" + w.stamp +
		"\nTaskId:" + h.TaskID + "\nBackupType:" + h.BackupType + "\nNasServer:" + h.NasServer +
		"\nNasShare:" + h.NasShare + "\nNasProtocol:" + h.NasProtocol + "\nNasProtocolVersion:" + h.NasProtocolVersion +
		"\nMetadataScope:" + h.MetadataScope + "\n\n"))
}

// appendDirNew appends a directory record; padding is zero.
func appendDirNew(b []byte, m *Meta, attr uint32, x xmetaRef) []byte {
	b = le.AppendUint32(b, uint32(m.Type))
	for _, n := range []uint32{m.HardlinkFiles, m.SubDirs, attr, m.Mode, m.UID, m.GID, 0} {
		b = le.AppendUint32(b, n)
	}
	for _, n := range []uint64{
		m.Inode, m.Size, uint64(m.Mtime), uint64(m.Atime), uint64(m.Ctime), uint64(m.Btime), x.index, x.offset,
	} {
		b = le.AppendUint64(b, n)
	}
	return b
}

// appendFileNew appends a file record; padding and the err field are zero.
func appendFileNew(b []byte, m *Meta, attr uint32, x xmetaRef) []byte {
	b = le.AppendUint32(b, uint32(m.Type))
	for _, n := range []uint32{attr, m.Mode, m.Nlink, m.UID, m.GID} {
		b = le.AppendUint32(b, n)
	}
	for _, n := range []uint64{
		m.Inode, m.Size, 0, m.Rdev, uint64(m.Mtime), uint64(m.Ctime), uint64(m.Atime), uint64(m.Btime),
		m.BlockSize, m.Blocks, x.index, x.offset,
	} {
		b = le.AppendUint64(b, n)
	}
	return b
}

// appendXmeta appends an xmeta record, fields in the order of their types. An
// empty value is left out, as the reference counts but does not write it; so is
// one with a NUL, where the reference cuts and what follows is lost.
func appendXmeta(b []byte, m *Meta) (_ []byte, dropped int) {
	start := len(b)
	b = append(b, make([]byte, xmetaHead)...)
	count := uint32(0)
	put := func(typ uint16, parts ...string) {
		value := strings.Join(parts, "")
		switch {
		case parts[len(parts)-1] == "":
			return
		case typ != tlvFileHandle && strings.IndexByte(value, 0) >= 0, len(value) > maxTLV:
			dropped++
			return
		}
		count++
		b = le.AppendUint16(b, typ)
		b = le.AppendUint32(b, uint32(len(value)))
		b = append(b, value...)
	}
	put(tlvName, m.Name)
	put(tlvACL, "access:", m.AccessACL)
	put(tlvACL, "default:", m.DefaultACL)
	for _, x := range m.Xattrs {
		put(tlvXattr, formatXattr(x))
	}
	others := slices.SortedStableFunc(slices.Values(m.Other), func(a, b Field) int { return int(a.Type) - int(b.Type) })
	next := func(limit uint16) {
		for len(others) > 0 && others[0].Type < limit {
			put(others[0].Type, string(others[0].Value))
			others = others[1:]
		}
	}
	next(tlvSparse)
	put(tlvSparse, formatSparse(m.Sparse))
	next(tlvSymlink)
	put(tlvSymlink, m.Symlink)
	next(math.MaxUint16)
	le.PutUint32(b[start:], count)
	le.PutUint32(b[start+4:], uint32(len(b)-start-xmetaHead))
	return b, dropped
}

// output is a buffered file that is only appended to.
type output struct {
	f   *os.File
	w   *bufio.Writer
	off int64
}

func (o *output) create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return o.failed(path, err)
	}
	*o = output{f: f, w: bufio.NewWriterSize(f, 256<<10)}
	return nil
}

func (o *output) write(b []byte) error {
	n, err := o.w.Write(b)
	o.off += int64(n)
	if err != nil {
		return o.failed(o.f.Name(), err)
	}
	return nil
}

func (o *output) sync() error {
	if o.f == nil {
		return nil
	}
	err := o.w.Flush()
	if err == nil {
		err = o.f.Sync()
	}
	if err != nil {
		return o.failed(o.f.Name(), err)
	}
	return nil
}

func (o *output) close() error {
	if o.f == nil {
		return nil
	}
	err := o.sync()
	if cerr := o.f.Close(); err == nil && cerr != nil {
		err = o.failed(o.f.Name(), cerr)
	}
	o.f = nil
	return err
}

func (o *output) failed(path string, err error) error {
	return &fault.Error{
		Kind: fault.KindOf(err), Op: "write meta file", Path: path, Err: err,
		Hint: "make room, or choose another output directory",
	}
}
