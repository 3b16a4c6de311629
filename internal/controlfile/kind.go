package controlfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Kind is one of the four kinds of control files. The numbers are those of the
// phases and travel on the wire: append only. 0 means any or unknown.
type Kind uint8

// The kinds of control files.
const (
	Copy     Kind = 1 // directories and files to copy
	Delete   Kind = 2 // what is gone from the source
	Hardlink Kind = 3 // groups of links to one inode
	Mtime    Kind = 4 // owner, mode and times of directories
)

// kindInfo says what tells a kind: its title, the versions that are read and
// the labels of its header lines in the order in which they are written.
type kindInfo struct {
	name, title string
	versions    []string
	coded       string // the one of them whose names are escaped
	labels      []string
}

var kinds = [...]kindInfo{
	Copy: {"copy", "NAS Scanner Backup Control File", []string{"1.0", "2.0", "2.1"}, "2.1", []string{
		"Title", "Version", "Timestamp", "TaskId", "BackupType", "NasServer", "NasShare", "NasProtocol",
		"NasProtocolVersion", "MetadataScope", "DirectoryCount", "FileCount", "DataSize",
	}},
	Delete: {"delete", "NAS Backup Delete Control File", []string{"1.0", "1.1"}, "1.1", []string{
		"Title", "Version", "Timestamp", "TaskId", "NasServer", "NasShare", "NasProtocol",
		"NasProtocolVersion", "DirectoryDeleteCount", "FileDeleteCount",
	}},
	Hardlink: {"hardlink", "NAS Scanner HardLink Control File", []string{"1.0", "1.1"}, "1.1", []string{
		"Title", "Version", "Timestamp", "TaskId", "BackupType", "NasServer", "NasShare", "NasProtocol",
		"NasProtocolVersion", "FileCount", "DataSize",
	}},
	Mtime: {"mtime", "NAS Backup Mtime Control File", []string{"1.0", "1.1"}, "1.1", []string{
		"Title", "Version", "Timestamp", "TaskId", "BackupType", "NasServer", "NasShare", "NasProtocol",
		"NasProtocolVersion", "DirectoryMtimeSetCount",
	}},
}

// String returns the kind's stable lower-case name.
func (k Kind) String() string {
	if k >= Copy && k <= Mtime {
		return kinds[k].name
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// MarshalText implements encoding.TextMarshaler by the kind's name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Kind) UnmarshalText(text []byte) error {
	for n := Copy; n <= Mtime; n++ {
		if kinds[n].name == string(text) {
			*k = n
			return nil
		}
	}
	return fault.New(fault.Invalid, "no kind of control files is called %q", text)
}

// Title returns the title that the first line of a control file of kind k
// carries, "" for an unknown kind.
func (k Kind) Title() string {
	if k >= Copy && k <= Mtime {
		return kinds[k].title
	}
	return ""
}

// kindByTitle returns the kind with the given title.
func kindByTitle(title string) (Kind, bool) {
	for k := Copy; k <= Mtime; k++ {
		if kinds[k].title == title {
			return k, true
		}
	}
	return 0, false
}

// KindByName returns the kind that a base name such as
// "hardlink_control_0_1bc6.txt" hints at. It is a hint only: the title decides.
// Names that are not finished (".tmp") or do not end in ".txt" give none.
func KindByName(base string) (Kind, bool) {
	if !strings.HasSuffix(base, ".txt") || strings.Contains(base, "txt.tmp") {
		return 0, false
	}
	switch {
	case strings.HasPrefix(base, "hardlink_"):
		return Hardlink, true
	case strings.HasPrefix(base, "mtime_"):
		return Mtime, true
	case strings.HasPrefix(base, "delete_"):
		return Delete, true
	case strings.HasPrefix(base, "control_"):
		return Copy, true
	}
	return 0, false
}

// Detect returns the kind of the control file at path by its title, which is
// all that it reads.
func Detect(path string) (Kind, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return 0, openError(path, err)
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 512).ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return 0, &fault.Error{Kind: fault.KindOf(err), Op: "read control file", Path: path, Err: err}
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
	title, ok := strings.CutPrefix(text, "Title:")
	if k, known := kindByTitle(title); ok && known {
		return k, nil
	}
	return 0, notControlFile(path, text)
}

func openError(path string, err error) error {
	kind := fault.KindOf(err)
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err // the path is in the message already
	}
	return &fault.Error{
		Kind: kind, Op: "open control file", Path: path, Err: err,
		Hint: "name a control file that exists and that this user may read",
	}
}

func notControlFile(path, line string) error {
	return &fault.Error{
		Kind: fault.Invalid, Op: "read control file", Path: path,
		Err:  fmt.Errorf("line 1: the title is not that of a control file: %s", quote(line)),
		Hint: "control files begin with \"Title:" + kinds[Copy].title + "\" or the title of another kind",
	}
}

// quote renders text from a file for a message: on one line, printable, short.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q...", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
