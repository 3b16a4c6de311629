package controlfile

import "encoding/base64"

// Limits of what is read, all from the file systems and the format: a path and
// a component are the kernel's PATH_MAX and NAME_MAX.
const (
	// MaxLine is the most bytes of one logical line (an entry whose name holds
	// newlines spans several physical lines), line ends included.
	MaxLine = 8 << 10
	// MaxCodedLine is the same in coded files: two paths, each byte of them escaped.
	MaxCodedLine = 16 << 10
	// MaxPath is the most bytes of an entry path.
	MaxPath = 4096
	// MaxName is the most bytes of one component of an entry path.
	MaxName = 255
)

// Type says what an entry is.
type Type uint8

// The types of entries.
const (
	TypeBad   Type = iota // text that is no entry, or one that must not be executed; Err says why
	TypeDir               // a d line
	TypeFile              // an f line: anything that is not a directory
	TypeGroup             // an i line: the head of a hard-link group
	TypeTimes             // a line of an mtime control file
)

// String returns the type's stable lower-case name.
func (t Type) String() string {
	switch t {
	case TypeDir:
		return "dir"
	case TypeFile:
		return "file"
	case TypeGroup:
		return "group"
	case TypeTimes:
		return "times"
	default:
		return "bad"
	}
}

// ModeDeleted is the mode column of entries that are gone; they are skipped by
// the copy phase and have no record.
const ModeDeleted = "dd"

// MetaRef says where an entry's record is.
type MetaRef struct {
	File   string // meta_file_N
	Offset uint64 // bytes from the beginning of the file, its header included
	Length uint32 // bytes; records of fixed length carry it for information only
	Valid  bool   // false where the entry has no record
}

// Times are the columns of an mtime line. Times are seconds since the epoch.
type Times struct {
	Mode, Attr, UID, GID       uint32
	Ctime, Atime, Mtime, Btime int64
	SubDirs                    uint64 // 0 in files with 10 columns
}

// Entry is one entry of a control file. It shares no memory with the reader and
// stays valid for ever.
type Entry struct {
	Type  Type
	Line  uint64 // 1-based physical line where it begins
	Lines int    // physical lines that it spans

	Mode  string // mode column of copy entries: bm, dm, mm, nn, fm, dd or one that is not known
	Dir   string // raw directory as written; for files their parent's
	Name  string // base name as written (files)
	Path  string // entry path: components joined by "/", "" = the root itself
	IsDir bool   // a directory; for TypeBad: counts as a directory

	Meta      MetaRef
	ACL       bool   // the aclFlag column
	FileCount uint64 // d lines of copy files: file lines announced; f lines of hardlink files: links in the directory

	Delete bool // d lines of delete files: the directory itself goes (flag 1)

	LinkCount uint64 // i lines: links announced; a hint, see Reader
	Inode     uint64 // i lines

	Times *Times // mtime lines

	// Suspect is set once damaged text has been met in the file. A name that
	// holds newlines can imitate entries, but never without leaving such text
	// before them, so an entry without this mark was written as what it seems.
	Suspect bool

	Err error // TypeBad: a *fault.Error, one line with file, line and reason
}

// Raw is a string of any bytes. As JSON or text it is base64, because names are
// not always valid UTF-8 and JSON would silently change them.
type Raw string

// MarshalText implements encoding.TextMarshaler.
func (s Raw) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, []byte(s)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Raw) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return err //nolint:wrapcheck // the JSON decoder names the field
	}
	*s = Raw(b)
	return nil
}

// Position is everything that OpenAt needs to go on after an entry. It is
// comparable and JSON-serialisable, and valid only for the very bytes that it
// was taken from: compare Summary.Digest.
type Position struct {
	Offset   int64  `json:"offset"`              // of the next physical line
	Line     uint64 `json:"line"`                // its number, 1-based
	Dir      Raw    `json:"dir,omitempty"`       // parent of the file lines that follow
	DirSet   bool   `json:"dir_set,omitempty"`   // a directory line has been read
	DirBad   bool   `json:"dir_bad,omitempty"`   // the last directory line could not be read
	MetaFile string `json:"meta_file,omitempty"` // copy 1.0: what file lines inherit
	InGroup  bool   `json:"in_group,omitempty"`  // hardlink: below a valid i line
	Columns  uint8  `json:"columns,omitempty"`   // hardlink, mtime: the file's column count, once known
	Suspect  bool   `json:"suspect,omitempty"`   // damaged text has been met
}
