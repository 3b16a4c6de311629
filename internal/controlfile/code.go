package controlfile

import (
	"errors"
	"strings"
)

// Names with a line end, in files of others' grammar.
//
// A name is written raw, so one with a line end makes an entry of several physical
// lines. Our own reader knows where such a name ends. Those of the reference guess:
// they take each line by itself, read numbers as atoi does, index columns before they
// count them, and end at an empty line. To them a part of a name can be an entry, the
// end of the file or a crash.
//
// A name that can do that goes into a coded file: a control file of a version of its own
// (copy 2.1, others 1.1) whose names are escaped, so that each entry is one line. A
// reader that does not know the version finds nothing there:
//
//   - Behind the header come two empty lines. The second one is the end to it.
//   - The first column of each line is codeMark, which no grammar knows. So nothing is
//     executed either by a reader that passes over empty lines, and no escaped name is
//     ever taken for a real one that is spelled like it.

// codeMark begins each line of a coded file.
const codeMark = "%,"

// ErrNeedsCode is the error of an entry that only a coded file can hold.
var ErrNeedsCode = errors.New("the name has a line end, which needs a control file of another version")

// CodedVersion returns the version of coded control files of kind k.
func (k Kind) CodedVersion() string {
	if k >= Copy && k <= Mtime {
		return kinds[k].coded
	}
	return ""
}

// Coded reports whether the names in the file are escaped.
func (h *Header) Coded() bool { return h.Version != "" && h.Version == h.Kind.CodedVersion() }

// NeedsCode reports whether an entry of a control file of kind k must be written into a
// coded file. The parent of a file in a copy or delete file counts, too: a line of its
// own names it.
func NeedsCode(k Kind, e Entry) bool {
	if strings.IndexByte(e.Dir, '\n') < 0 && strings.IndexByte(e.Name, '\n') < 0 {
		return false
	}
	switch k {
	case Copy:
		return risky(e.Dir, "df") || e.Type == TypeFile && risky(e.Name, "df")
	case Hardlink:
		// The columns of the directory and of the name are looked for before the
		// line is known to have them, so a directory must be on one line.
		return e.Type == TypeFile && (strings.IndexByte(e.Dir, '\n') >= 0 || risky(e.Name, "if"))
	case Mtime:
		return riskyTimes(e.Dir)
	default:
		// Nothing follows the name of a file to delete, so its first line is another
		// name to everybody.
		return true
	}
}

// risky reports whether a line of a name, behind its first, is empty or has one of the
// tags as its first column.
func risky(name, tags string) bool {
	_, rest, more := strings.Cut(name, "\n")
	for more {
		var line string
		line, rest, more = strings.Cut(rest, "\n")
		first, _, _ := strings.Cut(line, ",")
		if line == "" && more || len(first) == 1 && strings.Contains(tags, first) {
			return true
		}
	}
	return false
}

// riskyTimes is risky for mtime files, whose lines have no tag: what is read from the
// first column as a number says how many columns there are to be, and without a number
// that is 0. A line is harmless if it has no comma and does not begin as a number does.
func riskyTimes(name string) bool {
	_, rest, more := strings.Cut(name, "\n")
	for more {
		var line string
		line, rest, more = strings.Cut(rest, "\n")
		if line == "" || strings.IndexByte(line, ',') >= 0 || strings.IndexByte("0123456789+- \t\v\f\r", line[0]) >= 0 {
			return true
		}
	}
	return false
}
