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

// Reader reads the entries of one control file in order. It is not safe for
// concurrent use.
//
// Hard-link groups: an i line announces how many links follow. The number is a
// hint only, since a scan of part of a tree sees only some links of an inode:
// every f line belongs to the last i line above it, however many there are.
type Reader struct {
	name   string
	src    lineSource
	closer io.Closer
	header Header
	g      grammar

	dir      string // raw directory of the file lines that follow
	dirPath  string // the same, cleaned
	dirSet   bool
	dirBad   bool
	metaFile string
	inGroup  bool
	suspect  bool
	pending  error // an I/O error met while looking ahead
}

// Open opens the control file at path and reads its header. A file of another
// kind than want is refused with both kinds named; want 0 takes any. The caller
// closes the Reader.
func Open(path string, want Kind) (*Reader, error) { return OpenPinned(path, want, nil, nil) }

// NewReader reads a control file from rd; name is used in messages. Close does
// not close rd.
func NewReader(rd io.Reader, name string, want Kind) (*Reader, error) {
	r := &Reader{name: name}
	r.src = lineSource{r: bufio.NewReaderSize(rd, 64<<10), no: 1, max: MaxLine}
	h, err := readHeader(&r.src, name, want)
	if err != nil {
		return nil, err
	}
	r.header = h
	r.g = grammar{kind: h.Kind, v10: h.Kind == Copy && h.Version == "1.0", coded: h.Coded()}
	if r.g.coded {
		if err := r.secondBlank(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// secondBlank reads the second empty line behind the header of a coded file. Delete files
// of fsbackup 1.0 do not have it, nor the marks of their lines.
func (r *Reader) secondBlank() error {
	r.src.max = MaxCodedLine
	l, err := r.src.peek(0)
	switch {
	case err == nil && l.text == "":
		r.src.drop(1)
	case err != nil && !errors.Is(err, io.EOF):
		return readError(r.name, err)
	case r.g.kind == Delete:
		r.g.bare = true
	default:
		_, no := r.src.position()
		return headerError(r.name, no, hintRescan, "two empty lines must follow the header of a %s control file of version %s", r.g.kind, r.header.Version)
	}
	return nil
}

// OpenAt opens the control file at path and goes on behind pos, a Position of a
// Reader of the same bytes: the entries that follow are identical.
func OpenAt(path string, want Kind, pos Position) (*Reader, error) {
	return OpenPinned(path, want, &pos, nil)
}

// OpenPinned is Open, or OpenAt where pos is not nil. With pins (nil = none) the
// file must be what was admitted: each block is read whole and checked before
// anything of it becomes an entry, from the block of pos on; the header's too. A
// file that was changed is an error of kind fault.Corrupt, here or from Next. The
// Reader then holds one block in memory: 256 KiB, of files beyond 64 MiB a
// 256th part.
func OpenPinned(path string, want Kind, pos *Position, pins *Pins) (*Reader, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, openError(path, err)
	}
	r, err := newReaderAt(f, path, want, pos, pins)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r.closer = f
	return r, nil
}

func newReaderAt(f *os.File, path string, want Kind, pos *Position, pins *Pins) (*Reader, error) {
	var rd io.ReadSeeker = f
	if pins != nil {
		p, err := pin(f, path, pins)
		if err != nil {
			return nil, err
		}
		rd = p
	}
	r, err := NewReader(rd, path, want)
	if err == nil && pos != nil {
		err = r.seek(rd, *pos)
	}
	return r, err
}

func (r *Reader) seek(f io.ReadSeeker, pos Position) error {
	if begin, _ := r.src.position(); pos.Offset < begin || pos.Columns > 9 {
		return fault.New(fault.Invalid, "read control file %q: position %d lies before its entries", r.name, pos.Offset)
	}
	if _, err := f.Seek(pos.Offset, io.SeekStart); err != nil {
		return readError(r.name, err)
	}
	r.src = lineSource{r: r.src.r, off: pos.Offset, no: pos.Line, cutCR: r.src.cutCR, max: r.src.max}
	r.src.r.Reset(f)
	r.dir, r.dirSet, r.dirBad = string(pos.Dir), pos.DirSet, pos.DirBad
	if r.dirSet && !r.dirBad {
		p, err := CleanDir(r.dir)
		if err != nil {
			return fault.New(fault.Invalid, "read control file %q: position with the directory %s: %w", r.name, quote(r.dir), err)
		}
		r.dirPath = p
	}
	r.metaFile, r.inGroup, r.suspect, r.g.cols = pos.MetaFile, pos.InGroup, pos.Suspect, int(pos.Columns)
	return nil
}

// Header returns the file's header.
func (r *Reader) Header() Header { return r.header }

// Name returns the name that the Reader was opened with.
func (r *Reader) Name() string { return r.name }

// Position returns the position behind the entry that Next returned last.
func (r *Reader) Position() Position {
	p := Position{
		Dir: Raw(r.dir), DirSet: r.dirSet, DirBad: r.dirBad, MetaFile: r.metaFile,
		InGroup: r.inGroup, Columns: uint8(r.g.cols), Suspect: r.suspect,
	}
	p.Offset, p.Line = r.src.position()
	return p
}

// Close releases the file.
func (r *Reader) Close() error {
	if r.closer == nil {
		return nil
	}
	c := r.closer
	r.closer = nil
	if err := c.Close(); err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "close control file", Path: r.name, Err: err}
	}
	return nil
}

var errSecondHeader = errors.New("a second header: the file was written to again after it was complete")

// Next returns the next entry, io.EOF behind the last one. Text that is no
// entry is returned as an entry of type TypeBad; any other error is one of
// reading.
func (r *Reader) Next() (Entry, error) {
	if r.pending != nil {
		return Entry{}, r.pending
	}
	first, err := r.src.next()
	if errors.Is(err, io.EOF) {
		return Entry{}, io.EOF
	} else if err != nil {
		return Entry{}, readError(r.name, err)
	}
	text, lines := first.text, 1
	var c columns
	st := stBad
	if !first.long {
		var missing int
		c, st, missing = r.g.split(text)
		if st == stOpen {
			c, st, text, lines = r.join(text, missing)
		}
	}
	if st == stComplete && c.openName {
		if more := r.trailing(len(text)); more != "" {
			// Nothing follows such a name, so lines without a comma, which are
			// no entries, can only be the rest of it.
			c.name += more
			lines += strings.Count(more, "\n")
		}
	}
	if r.pending != nil {
		return Entry{}, r.pending
	}
	e := Entry{Line: first.no, Lines: lines, Suspect: r.suspect}
	if st != stComplete {
		if e = r.damaged(e, first); r.pending != nil {
			return Entry{}, r.pending // how far the text goes is not known
		}
		return e, nil
	}
	r.build(&e, &c)
	return e, nil
}

// join appends physical lines to an open text until it is an entry. Where a
// line is an entry by itself, the text before it was none.
func (r *Reader) join(text string, missing int) (columns, state, string, int) {
	if r.g.coded {
		return columns{}, stBad, text, 1
	}
	size, seen := len(text), 0
	for i := 0; ; i++ {
		l, err := r.peek(i)
		if err != nil || l.long || r.alone(l) || size+1+len(l.text) > MaxLine {
			return columns{}, stBad, text, 1
		}
		size += 1 + len(l.text)
		seen += l.commas
		if seen < missing {
			continue
		}
		var b strings.Builder
		b.Grow(size)
		b.WriteString(text)
		for k := 0; k <= i; k++ {
			l, _ := r.peek(k)
			b.WriteByte('\n')
			b.WriteString(l.text)
		}
		c, st, more := r.g.split(b.String())
		if st == stComplete {
			r.src.drop(i + 1)
			return c, st, b.String(), i + 2
		}
		if st == stBad {
			return columns{}, stBad, text, 1
		}
		seen, missing = 0, more
	}
}

// trailing consumes and returns the lines without a comma behind a complete
// entry that ends in its name.
func (r *Reader) trailing(size int) string {
	if r.g.coded {
		return ""
	}
	n := 0
	for {
		l, err := r.peek(n)
		if err != nil || l.long || l.commas > 0 || size+1+len(l.text) > MaxLine {
			break
		}
		size += 1 + len(l.text)
		n++
	}
	var b strings.Builder
	for k := range n {
		l, _ := r.peek(k)
		b.WriteByte('\n')
		b.WriteString(l.text)
	}
	r.src.drop(n)
	return b.String()
}

// peek looks ahead and remembers an error other than the end of the file.
func (r *Reader) peek(i int) (*physLine, error) {
	l, err := r.src.peek(i)
	if err != nil && !errors.Is(err, io.EOF) {
		r.pending = readError(r.name, err)
	}
	return l, err
}

// alone reports whether a physical line is an entry by itself.
func (r *Reader) alone(l *physLine) bool {
	if l.alone == aloneUnknown {
		l.alone = aloneInvalid
		if _, st, _ := r.g.split(l.text); st == stComplete && !l.long {
			l.alone = aloneValid
		}
	}
	return l.alone == aloneValid
}

// damaged returns the entry for text that is none: the line and those behind it
// that do not begin as an entry does.
func (r *Reader) damaged(e Entry, first physLine) Entry {
	e.Lines = 1
	for {
		l, err := r.peek(0)
		if err != nil || r.g.starts(l.text) || r.alone(l) {
			break
		}
		r.src.drop(1)
		e.Lines++
	}
	r.suspect = true
	text := first.text
	if r.g.coded && !r.g.bare {
		text = strings.TrimPrefix(text, codeMark)
	}
	isDir := r.g.kind == Mtime || r.g.kind != Hardlink && strings.HasPrefix(text, "d,")
	r.lose(text, isDir)
	switch {
	case first.long:
		return r.bad(e, isDir, "the line has more than %d bytes", r.src.max)
	case strings.HasPrefix(first.text, "Title:"):
		return r.bad(e, isDir, "%w", errSecondHeader)
	case first.text == "":
		return r.bad(e, isDir, "a blank line")
	}
	return r.bad(e, isDir, "not an entry: %s", quote(first.text))
}

// lose forgets what the damaged text would have set: nothing is guessed about
// the parent of the lines behind it.
func (r *Reader) lose(text string, isDir bool) {
	switch r.g.kind {
	case Copy:
		r.dirBad = r.dirBad || isDir
	case Delete:
		// A wrong parent here removes the wrong file, so any damage but that of a
		// file line counts as damage of a directory line.
		r.dirBad = r.dirBad || !strings.HasPrefix(text, "f,")
	case Hardlink:
		r.inGroup = r.inGroup && strings.HasPrefix(text, "f,")
	case Mtime:
	}
}

// bad turns e into an entry that cannot be used.
func (r *Reader) bad(e Entry, isDir bool, format string, args ...any) Entry {
	at := fmt.Sprintf("line %d", e.Line)
	if e.Lines > 1 {
		at = fmt.Sprintf("lines %d to %d", e.Line, e.Line+uint64(e.Lines)-1)
	}
	return Entry{
		Type: TypeBad, Line: e.Line, Lines: e.Lines, Suspect: e.Suspect, IsDir: isDir,
		Dir: e.Dir, Name: e.Name, Mode: e.Mode,
		Err: &fault.Error{
			Kind: fault.Corrupt, Op: "read control file", Path: r.name,
			Err: fmt.Errorf("%s: %w", at, fmt.Errorf(format, args...)),
		},
	}
}
