package controlfile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Errors of entries that a control file cannot hold, for errors.Is. The file is
// unharmed and goes on without the entry; its writer reports it.
var (
	// ErrLineTooLong: the reference reader's buffer holds 4607 bytes of a line.
	ErrLineTooLong = errors.New("the entry is longer than a control file's line can be")
	// errNotBack: a defect of the writer, which a user gets to know as one.
	errNotBack = errors.New("the line does not read back as the entry")
)

// maxWrittenLine is the most bytes of one written line, line end included: the
// reference works in a buffer of 4608. Coded files are not for it.
const maxWrittenLine = 4607

func (w *Writer) maxLine() int {
	if w.g.coded {
		return MaxCodedLine
	}
	return maxWrittenLine
}

// Default limits of a written control file.
const (
	DefaultMaxEntries = 100_000
	DefaultMaxBytes   = 8 << 20
)

// Limits bound a written control file. Zero values mean the defaults.
type Limits struct {
	Entries int // lines
	Bytes   int // of the body
}

// Writer writes one control file of the newest family: copy 2.0, delete 1.0,
// hardlink with 10 columns, mtime with 11, or a coded file of these. The body is held in memory, so
// that a file is complete from the moment it has its name. Not safe for
// concurrent use.
type Writer struct {
	path   string
	header Header
	limits Limits
	g      grammar

	body    []byte
	line    []byte // scratch
	entries int

	// A directory line announces how many file lines follow, so it waits until
	// they are known.
	open     bool
	openDir  Entry
	openFile []byte
	files    uint64
}

// NewWriter returns a writer for the control file path, which must end in
// ".txt". Of h it takes the kind, the texts, and from the version whether the file
// is coded; title, timestamp and counts are its own. The time is written in its own
// location.
func NewWriter(path string, h Header, at time.Time, limits Limits) (*Writer, error) {
	if h.Kind < Copy || h.Kind > Mtime {
		return nil, fault.New(fault.Internal, "write control file %q: kind %d", path, h.Kind)
	}
	if !strings.HasSuffix(path, ".txt") {
		return nil, fault.New(fault.Internal, "write control file %q: the name does not end in .txt", path)
	}
	if limits.Entries <= 0 {
		limits.Entries = DefaultMaxEntries
	}
	if limits.Bytes <= 0 {
		limits.Bytes = DefaultMaxBytes
	}
	h.Title = h.Kind.Title()
	h.Timestamp = at.Format(TimestampLayout)
	switch {
	case h.Coded():
	case h.Kind == Copy:
		h.Version = "2.0"
	default:
		h.Version = "1.0"
	}
	h.Dirs, h.Files, h.Bytes = 0, 0, 0
	w := &Writer{path: path, header: h, limits: limits}
	w.g = grammar{kind: h.Kind, coded: h.Coded()}
	for _, label := range kinds[h.Kind].labels {
		if v := w.header.field(label); v != nil && strings.ContainsAny(*v, "\r\n") {
			return nil, fault.New(fault.Invalid, "write control file %q: the %s %q has a line end", path, label, *v)
		}
	}
	return w, nil
}

// Path returns the file's final name.
func (w *Writer) Path() string { return w.path }

// Entries returns the number of lines added.
func (w *Writer) Entries() int { return w.entries }

// Full reports whether a limit is reached; lines can still be added.
func (w *Writer) Full() bool {
	return w.entries >= w.limits.Entries || len(w.body)+len(w.openFile) >= w.limits.Bytes
}

// Add appends an entry as Reader.Next returns it; only what the kind has columns
// for is looked at. Of directories in copy files FileCount is ignored: it is
// counted. size is st_size of regular files and counts to DataSize of copy and
// hardlink files; it is ignored for entries of mode dd and mm, as the reference
// does.
//
// An entry that cannot be written leaves the file as it is: see ErrLineTooLong and
// ErrNeedsCode.
func (w *Writer) Add(e Entry, size uint64) error {
	if w.g.kind == Copy && e.Type == TypeDir {
		// The longest form of the line must fit.
		if err := w.Check(e); err != nil {
			return err
		}
		w.flush()
		w.open, w.openDir = true, e
		w.entries++
		w.header.Dirs++
		return nil
	}
	line, err := w.format(e, 0)
	if err == nil {
		err = w.check(e, line)
	}
	if err != nil {
		return err
	}
	w.entries++
	switch {
	case e.Type == TypeDir && e.Delete, e.Type == TypeTimes:
		w.header.Dirs++
	case e.Type == TypeFile:
		w.header.Files++
	}
	if e.Mode != ModeDeleted && e.Mode != "mm" {
		w.header.Bytes += size
	}
	if w.g.kind == Copy {
		w.openFile = append(w.openFile, line...)
		w.files++
		return nil
	}
	w.body = append(w.body, line...)
	return nil
}

// Check reports the error that Add would return, and adds nothing.
func (w *Writer) Check(e Entry) error {
	line, err := w.format(e, math.MaxInt64)
	if err == nil {
		err = w.check(e, line)
	}
	return err
}

// flush writes the directory line that waits, and its files.
func (w *Writer) flush() {
	if w.open {
		line, _ := w.format(w.openDir, w.files) // has been checked by Add
		w.body = append(w.body, line...)
	}
	w.body = append(w.body, w.openFile...)
	w.open, w.openFile, w.files = false, w.openFile[:0], 0
}

// format writes the entry's line, line end included, into scratch memory.
func (w *Writer) format(e Entry, files uint64) ([]byte, error) {
	b := w.line[:0]
	if w.g.coded {
		b = append(b, codeMark...)
		e.Dir, e.Name = Escape(e.Dir), Escape(e.Name)
	} else if NeedsCode(w.g.kind, e) {
		return nil, w.refuse(e, ErrNeedsCode)
	}
	switch {
	case w.g.kind == Copy && (e.Type == TypeDir || e.Type == TypeFile):
		name := e.Name
		if e.Type == TypeDir {
			b, name = append(b, 'd', ','), e.Dir
		} else {
			b = append(b, 'f', ',')
		}
		b = append(b, e.Mode...)
		b = appendName(append(b, ','), name)
		if e.Mode != ModeDeleted {
			index, err := MetaFileIndex(e.Meta.File)
			if err != nil {
				return nil, w.refuse(e, err)
			}
			b = appendUint(b, uint64(index))
			b = appendUint(b, e.Meta.Offset)
			b = appendUint(b, uint64(e.Meta.Length))
		}
		if e.Type == TypeDir {
			b = appendUint(b, files)
		}
		if e.Mode != ModeDeleted {
			b = appendFlag(b, e.ACL)
		}
	case w.g.kind == Delete && (e.Type == TypeDir || e.Type == TypeFile):
		name, tag := e.Name, byte('f')
		if e.Type == TypeDir {
			name, tag = e.Dir, 'd'
		}
		b = appendName(append(b, tag, ','), name)
		if e.Type == TypeDir {
			b = appendFlag(b, e.Delete)
		}
	case w.g.kind == Hardlink && e.Type == TypeGroup:
		b = append(b, 'i')
		b = appendUint(b, e.LinkCount)
		b = appendUint(b, e.Inode)
	case w.g.kind == Hardlink && e.Type == TypeFile:
		b = appendName(append(b, 'f', ','), e.Dir)
		b = appendName(append(b, ','), e.Name)
		b = append(append(b, ','), e.Meta.File...)
		b = appendUint(b, e.Meta.Offset)
		b = appendUint(b, uint64(e.Meta.Length))
		b = appendFlag(b, e.ACL)
		b = appendUint(b, e.FileCount)
	case w.g.kind == Mtime && e.Type == TypeTimes && e.Times != nil:
		b = appendName(b, e.Dir)
		t := e.Times
		for _, n := range []uint32{t.Mode, t.Attr, t.UID, t.GID} {
			b = appendUint(b, uint64(n))
		}
		for _, n := range []int64{t.Ctime, t.Atime, t.Mtime, t.Btime} {
			b = appendUint(b, uint64(n)) // as the reference does: before 1970 it is two's complement
		}
		b = appendUint(b, t.SubDirs)
	default:
		return nil, fault.New(fault.Internal, "write control file %q: a %s entry in a %s file", w.path, e.Type, w.g.kind)
	}
	w.line = append(b, '\n')
	return w.line, nil
}

// check refuses a line that would not read back as the entry that it is.
func (w *Writer) check(e Entry, line []byte) error {
	if len(line) > w.maxLine() {
		return w.refuse(e, ErrLineTooLong)
	}
	parent := e.Dir
	if parent == "" || e.Type == TypeGroup {
		parent = "/"
	}
	r := &Reader{name: w.path, g: w.g, dir: parent, dirSet: true, inGroup: true, metaFile: e.Meta.File}
	text := string(line[:len(line)-1])
	if strings.IndexByte(text, '\n') < 0 {
		// The usual case needs no look at what a reader makes of several lines.
		c, st, _ := r.g.split(text)
		got := Entry{Line: 1, Lines: 1}
		if st == stComplete {
			r.dirPath, _ = CleanDir(parent)
			r.build(&got, &c)
		}
		return w.same(e, got)
	}
	r.src = lineSource{r: bufio.NewReader(bytes.NewReader(line)), no: 1, max: MaxLine}
	r.dirPath, _ = CleanDir(parent)
	got, err := r.Next()
	if err != nil {
		return err
	}
	if _, err := r.src.peek(0); !errors.Is(err, io.EOF) || r.suspect {
		return w.refuse(e, errNotBack)
	}
	return w.same(e, got)
}

func (w *Writer) same(e, got Entry) error {
	switch {
	case got.Type == TypeBad && got.Err != nil:
		if fe, ok := errors.AsType[*fault.Error](got.Err); ok {
			return w.refuse(e, fe.Err)
		}
		return w.refuse(e, got.Err)
	case got.Type != e.Type || got.Name != e.Name || got.Type != TypeFile && got.Type != TypeGroup && got.Dir != e.Dir:
		return w.refuse(e, errNotBack)
	}
	return nil
}

func (w *Writer) refuse(e Entry, err error) error {
	name := e.Dir
	if e.Type == TypeFile {
		name = strings.TrimSuffix(e.Dir, "/") + "/" + e.Name
	}
	return &fault.Error{
		Kind: fault.Unsupported, Op: "write control file entry", Path: name, Err: err,
		Hint: "rename it, or move it out of the source",
	}
}

// Close writes the file: under its name with ".tmp" behind it, synced, then
// renamed. The directory is not synced. A Writer with no entries writes a file
// with a header only; do not Close one that is not wanted.
func (w *Writer) Close() error {
	w.flush()
	tmp := w.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return w.failed(err)
	}
	_, err = f.Write(w.appendHeader(nil))
	if err == nil {
		_, err = f.Write(w.body)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, w.path)
	}
	if err != nil {
		return w.failed(errors.Join(err, os.Remove(tmp)))
	}
	w.body, w.openFile = nil, nil
	return nil
}

func (w *Writer) failed(err error) error {
	return &fault.Error{
		Kind: fault.KindOf(err), Op: "write control file", Path: w.path, Err: oneLine(err),
		Hint: "make room, or choose another output directory",
	}
}

// oneLine joins the lines of an error that is made of several.
func oneLine(err error) error {
	if text := err.Error(); strings.Contains(text, "\n") {
		return fmt.Errorf("%s%w", strings.ReplaceAll(text, "\n", "; "), silent{err})
	}
	return err
}

// silent keeps an error in the tree without its text.
type silent struct{ error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.error }

func (w *Writer) appendHeader(b []byte) []byte {
	for _, label := range kinds[w.header.Kind].labels {
		b = append(append(b, label...), ':')
		if n := w.header.count(label); n != nil {
			b = strconv.AppendUint(b, *n, 10)
		} else {
			b = append(b, *w.header.field(label)...)
		}
		b = append(b, '\n')
	}
	if w.g.coded {
		b = append(b, '\n')
	}
	return append(b, '\n')
}

// appendName appends "<commas>,<name>" as every name is written.
func appendName(b []byte, name string) []byte {
	b = strconv.AppendInt(b, int64(strings.Count(name, ",")), 10)
	return append(append(b, ','), name...)
}

func appendUint(b []byte, n uint64) []byte { return strconv.AppendUint(append(b, ','), n, 10) }

func appendFlag(b []byte, set bool) []byte {
	if set {
		return append(b, ',', '1')
	}
	return append(b, ',', '0')
}
