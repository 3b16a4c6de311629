package scanner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// Time is a point in time as the kernel keeps it.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Span is what lies between two points in time, both included.
type Span struct{ From, To Time }

// Flags mark what is special about a record. The numbers are in state files:
// append only.
type Flags uint32

const (
	// FlagUnreadable marks a directory that could not be read, or not to its end:
	// what it holds is not known, which is not the same as gone.
	FlagUnreadable Flags = 1 << iota
	// FlagMountPoint marks a directory that was not entered because it lies on
	// another file system.
	FlagMountPoint
	// FlagAttrsPartial marks an entry with an ACL or extended attribute that
	// could not be read.
	FlagAttrsPartial

	// FlagDirty marks an entry that counts as changed the next time, whatever it
	// looks like.
	FlagDirty
	// FlagGone marks an entry that is not in the source any more, but may still
	// be in the destination.
	FlagGone
	// FlagExcluded marks an entry of an earlier scan that is excluded now, and is
	// kept in the destination as it is.
	FlagExcluded
	// FlagCarried marks an entry that could not be looked at: the record is that
	// of an earlier scan. With FlagGone it says that no delete line could be
	// written.
	FlagCarried
	// FlagOther marks a path at which the destination may still have an object of
	// the other kind: a directory instead of something else, or the reverse.
	FlagOther
	// FlagAgain marks an entry that is emitted whether or not it changed. Until
	// that is committed a directory may have lost its times to it, and a link its
	// group.
	FlagAgain
	// FlagUnsure marks an entry that was emitted for a job which keeps targets: its
	// copy may be an older one, of the same size and time. It is if it is still what
	// was there before, which is Copy.
	FlagUnsure
)

// Marks of records that the walk hands over and no state has: what is known of
// a path about which nothing is known.
const (
	markLater    Flags = 1 << 29 // attributes and holes were not looked at yet; not one of marks
	markUnknown  Flags = 1 << 30 // it could not be looked at
	markKeptAway Flags = 1 << 31 // a directory that the scan was told to keep away from
	marks              = markUnknown | markKeptAway
)

// Record is what a scan knows of one entry: the element of the ordered stream,
// of the sort and of the state file.
type Record struct {
	Dir  string // entry path of the parent; of a directory its own path
	Name string // "" for a directory; but see slot

	Mode, Nlink, UID, GID, BlockSize uint32
	Dev, Ino, Rdev, Size, Blocks     uint64 // Blocks of 512 bytes
	Atime, Mtime, Ctime, Btime       Time   // Btime is 0 where the file system has none
	Flags                            Flags

	// AttrHash is a hash of ACLs and extended attributes, 0 if there are none.
	AttrHash uint64

	// Copy says what the destination was seen to have as this entry's copy. Only
	// states have it.
	Copy Copy

	SubDirs uint32 // of a directory: directories in it
	Linked  uint32 // of a directory: non-directories in it with several links

	AccessACL, DefaultACL string // text form of controlfile.ACLFromXattr
	Symlink               string
	Xattrs                []entry.Xattr
	Sparse                []entry.Extent // nil = not known
}

// Copy identifies a copy in the destination: while both stay as they are, nobody has
// touched it. Of directories the number alone is kept. The zero value says that nothing
// was seen.
type Copy struct {
	Ino   uint64
	Ctime Time
}

// noCopy says that there was none.
var noCopy = Copy{Ino: math.MaxUint64}

// IsDir reports whether the record is that of a directory.
func (r *Record) IsDir() bool { return r.Mode&modeFormat == modeDir }

// slot returns the record that says in the listing of dir that name is a
// directory. The directory's own record follows much later in the order of keys,
// and what became of a path must be known where its siblings are.
func slot(dir, name string) *Record { return &Record{Dir: dir, Name: name, Mode: modeDir} }

// isLinked reports whether the entry belongs to a hard-link group.
func (r *Record) isLinked() bool { return !r.IsDir() && r.Nlink > 1 }

// Path returns the entry path.
func (r *Record) Path() string { return joinPath(r.Dir, r.Name) }

func joinPath(dir, name string) string {
	switch {
	case name == "":
		return dir
	case dir == "":
		return name
	}
	return dir + "/" + name
}

// File types of st_mode.
const (
	modeFormat  = 0o170000
	modeFifo    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

// appendKey appends the key by which records are sorted as bytes. Neither 0 nor
// "/" occurs in a name, so a 0 for "/" sorts a directory before what is below
// it and that before its next sibling; two of them before a file's name sort
// the files of a directory before its subdirectories.
func appendKey(b []byte, r *Record) []byte {
	start := len(b)
	b = append(b, r.Dir...)
	for i := start; i < len(b); i++ {
		if b[i] == '/' {
			b[i] = 0
		}
	}
	if r.Name != "" {
		b = append(b, 0, 0)
		b = append(b, r.Name...)
	}
	return b
}

// splitKey is the reverse of appendKey. last is the directory of the record
// before, which spares making the same string again for each file.
func splitKey(key []byte, last string) (dir, name string) {
	d := key
	if i := bytes.Index(key, []byte{0, 0}); i >= 0 {
		d, name = key[:i], string(key[i+2:])
	}
	if sameDir(d, last) {
		return last, name
	}
	return strings.ReplaceAll(string(d), "\x00", "/"), name
}

func sameDir(d []byte, last string) bool {
	if len(d) != len(last) {
		return false
	}
	for i := range d {
		if d[i] != last[i] && (d[i] != 0 || last[i] != '/') {
			return false
		}
	}
	return true
}

// Bits that say which optional parts follow the numbers of a record.
const (
	hasACL = 1 << iota
	hasDefaultACL
	hasSymlink
	hasXattrs
	hasSparse
	isSlot  // only flags follow
	hasCopy // in states: the copy follows the numbers
)

// appendValue appends everything of a record but its key.
func appendValue(b []byte, r *Record) []byte {
	var parts uint64
	if r.IsDir() && r.Name != "" {
		b = binary.AppendUvarint(b, isSlot)
		return binary.AppendUvarint(b, uint64(r.Flags))
	}
	for i, has := range []bool{r.AccessACL != "", r.DefaultACL != "", r.Symlink != "", len(r.Xattrs) > 0, len(r.Sparse) > 0} {
		if has {
			parts |= 1 << i
		}
	}
	b = appendHead(b, r, parts)
	if r.AccessACL != "" {
		b = appendString(b, r.AccessACL)
	}
	if r.DefaultACL != "" {
		b = appendString(b, r.DefaultACL)
	}
	if r.Symlink != "" {
		b = appendString(b, r.Symlink)
	}
	if len(r.Xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Xattrs)))
		for _, x := range r.Xattrs {
			b = appendString(b, x.Name)
			b = binary.AppendUvarint(b, uint64(len(x.Value)))
			b = append(b, x.Value...)
		}
	}
	if len(r.Sparse) > 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Sparse)))
		for _, x := range r.Sparse {
			b = binary.AppendUvarint(b, x.Offset)
			b = binary.AppendUvarint(b, x.Length)
		}
	}
	return b
}

// appendState appends what a state file keeps of a record: all but its key and
// the texts, which are only compared, by AttrHash.
func appendState(b []byte, r *Record) []byte {
	if r.IsDir() && r.Name != "" {
		return appendValue(b, r)
	}
	if r.Copy == (Copy{}) {
		return appendHead(b, r, 0)
	}
	b = appendHead(b, r, hasCopy)
	b = binary.AppendUvarint(b, r.Copy.Ino)
	b = binary.AppendVarint(b, r.Copy.Ctime.Sec)
	return binary.AppendUvarint(b, uint64(r.Copy.Ctime.Nsec))
}

func appendHead(b []byte, r *Record, parts uint64) []byte {
	for _, n := range [...]uint64{
		parts, uint64(r.Flags), uint64(r.Mode), uint64(r.Nlink), uint64(r.UID), uint64(r.GID), uint64(r.BlockSize),
		r.Dev, r.Ino, r.Rdev, r.Size, r.Blocks, uint64(r.SubDirs), uint64(r.Linked),
	} {
		b = binary.AppendUvarint(b, n)
	}
	for _, t := range [...]Time{r.Atime, r.Mtime, r.Ctime, r.Btime} {
		b = binary.AppendVarint(b, t.Sec)
		b = binary.AppendUvarint(b, uint64(t.Nsec))
	}
	return binary.AppendUvarint(b, r.AttrHash)
}

// hashAttrs returns what AttrHash is to be. The order in which a file system
// lists attributes says nothing.
func hashAttrs(r *Record) uint64 {
	if r.AccessACL == "" && r.DefaultACL == "" && len(r.Xattrs) == 0 {
		return 0
	}
	b := appendString(appendString(nil, r.AccessACL), r.DefaultACL)
	xattrs := slices.SortedFunc(slices.Values(r.Xattrs), func(x, y entry.Xattr) int { return strings.Compare(x.Name, y.Name) })
	for _, x := range xattrs {
		b = binary.AppendUvarint(appendString(b, x.Name), uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	return xxh3.Hash(b)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errShortRecord = errors.New("a record of the scan is damaged")

// decoder takes values off a record; the first failure sticks.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

// decodeHead decodes the numbers of a record, and leaves d at the texts. It
// shares no memory with what it decodes, and makes none.
func decodeHead(d *decoder, r *Record) (parts uint64) {
	parts = d.uint()
	r.Flags = Flags(d.uint())
	if parts&isSlot != 0 {
		dir, name, flags := r.Dir, r.Name, r.Flags
		*r = Record{Dir: dir, Name: name, Mode: modeDir, Flags: flags}
		return 0
	}
	for _, p := range [...]*uint32{&r.Mode, &r.Nlink, &r.UID, &r.GID, &r.BlockSize} {
		*p = uint32(d.uint())
	}
	for _, p := range [...]*uint64{&r.Dev, &r.Ino, &r.Rdev, &r.Size, &r.Blocks} {
		*p = d.uint()
	}
	r.SubDirs, r.Linked = uint32(d.uint()), uint32(d.uint())
	for _, t := range [...]*Time{&r.Atime, &r.Mtime, &r.Ctime, &r.Btime} {
		t.Sec = d.int()
		t.Nsec = uint32(d.uint())
	}
	r.AttrHash = d.uint()
	if parts&hasCopy != 0 {
		r.Copy.Ino, r.Copy.Ctime.Sec, r.Copy.Ctime.Nsec = d.uint(), d.int(), uint32(d.uint())
	}
	return parts
}

// decodeNumbers decodes the numbers of a record only.
func decodeNumbers(b []byte, r *Record) error {
	d := decoder{b: b}
	if decodeHead(&d, r); d.bad {
		return errShortRecord
	}
	return nil
}

// decodeValue is the reverse of appendValue; the record shares no memory with b.
func decodeValue(b []byte, r *Record) error {
	d := decoder{b: b}
	parts := decodeHead(&d, r)
	if parts&hasACL != 0 {
		r.AccessACL = string(d.bytes())
	}
	if parts&hasDefaultACL != 0 {
		r.DefaultACL = string(d.bytes())
	}
	if parts&hasSymlink != 0 {
		r.Symlink = string(d.bytes())
	}
	if parts&hasXattrs != 0 {
		for n := d.uint(); n > 0 && !d.bad; n-- {
			r.Xattrs = append(r.Xattrs, entry.Xattr{Name: string(d.bytes()), Value: bytes.Clone(d.bytes())})
		}
	}
	if parts&hasSparse != 0 {
		for n := d.uint(); n > 0 && !d.bad; n-- {
			r.Sparse = append(r.Sparse, entry.Extent{Offset: d.uint(), Length: d.uint()})
		}
	}
	if d.bad || len(d.b) > 0 {
		return errShortRecord
	}
	return nil
}
