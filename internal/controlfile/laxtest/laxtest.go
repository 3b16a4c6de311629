// Package laxtest reads control files as the two families of readers of the reference
// do: for tests of what they make of ours. They take each physical line by itself, read
// numbers as atoi does, look into columns before they have counted them, and end at an
// empty line.
package laxtest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fsbackup/fsbackup/internal/controlfile"
)

// Errors of a reader that comes to grief.
var (
	ErrCrash = errors.New("a column is looked at that the line does not have")
	ErrLoop  = errors.New("the last line is no entry, and more is read for ever")
)

// Entry is what a lax reader returns of an entry.
type Entry struct {
	Tag       string // first column; "t" in mtime files
	Mode      string // copy files
	Dir, Name string // as written
	Tail      string // the columns behind the name, joined again
}

// Reader is one of the two families.
type Reader struct {
	// Joins is the newer family: it appends the next line to one that is no entry,
	// unless the next one is. The older one leaves out what is none.
	Joins bool
	// PassesBlanks is for readers that are laxer still: an empty line is not the end.
	PassesBlanks bool
}

// headerLines is how many lines the header of a kind has. Labels are not looked at.
var headerLines = map[controlfile.Kind]int{controlfile.Copy: 13, controlfile.Delete: 10, controlfile.Hardlink: 11, controlfile.Mtime: 10}

// Read returns the entries of a control file of the newest version of its kind.
func (r Reader) Read(kind controlfile.Kind, text string) ([]Entry, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < headerLines[kind]+1 {
		return nil, fmt.Errorf("a header of %d lines", len(lines))
	}
	lines = lines[headerLines[kind]+1:]
	var list []Entry
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if line == "" {
			if r.PassesBlanks {
				continue
			}
			return list, nil
		}
		for {
			e, ok, err := parse(kind, line)
			if err != nil {
				return list, fmt.Errorf("line %q: %w", line, err)
			}
			if ok {
				list = append(list, e)
				break
			}
			if !r.Joins {
				break
			}
			if i+1 == len(lines) {
				return list, fmt.Errorf("line %q: %w", line, ErrLoop)
			}
			i++
			_, next, err := parse(kind, lines[i])
			if err != nil {
				return list, fmt.Errorf("line %q: %w", lines[i], err)
			}
			if next {
				line = lines[i] // what was no entry is dropped
			} else {
				line += "\n" + lines[i]
			}
		}
	}
	return list, nil
}

// parse takes a text for an entry, if it has as many columns as it says.
func parse(kind controlfile.Kind, text string) (e Entry, ok bool, err error) {
	c := columns(strings.Split(text, ","))
	defer func() {
		if p := recover(); p != nil {
			e, ok, err = Entry{}, false, ErrCrash
		}
	}()
	switch kind {
	case controlfile.Copy:
		e, ok = c.copyLine()
	case controlfile.Delete:
		e, ok = c.deleteLine()
	case controlfile.Hardlink:
		e, ok = c.linkLine()
	default:
		n := atoi(c[0])
		if len(c) != 11+n {
			return e, false, nil
		}
		e = Entry{Tag: "t", Dir: c.join(1, 1+n+1), Tail: c.join(1+n+1, len(c))}
		ok = true
	}
	return e, ok, nil
}

type columns []string

func (c columns) copyLine() (e Entry, ok bool) {
	e.Tag = c[0]
	if e.Tag != "d" && e.Tag != "f" {
		return e, false
	}
	e.Mode = c[1]
	n := atoi(c[2])
	fixed := 8
	switch {
	case e.Tag == "d" && e.Mode == "dd":
		fixed = 5
	case e.Tag == "d":
		fixed = 9
	case e.Mode == "dd":
		fixed = 4
	}
	if len(c) != fixed+n {
		return e, false
	}
	name := c.join(3, 3+n+1)
	e.Tail = c.join(3+n+1, len(c))
	if e.Tag == "d" {
		e.Dir = name
	} else {
		e.Name = name
	}
	return e, true
}

func (c columns) deleteLine() (e Entry, ok bool) {
	e.Tag = c[0]
	switch e.Tag {
	case "d":
		n := atoi(c[1])
		if len(c) != 4+n {
			return e, false
		}
		e.Dir, e.Tail = c.join(2, 2+n+1), c.join(2+n+1, len(c))
	case "f":
		n := atoi(c[1])
		if len(c) != 3+n {
			return e, false
		}
		e.Name = c.join(2, 2+n+1)
	default:
		return e, false
	}
	return e, true
}

func (c columns) linkLine() (e Entry, ok bool) {
	e.Tag = c[0]
	switch e.Tag {
	case "i":
		e.Tail = c.join(1, 3)
		return e, len(c) == 3
	case "f":
		nd := atoi(c[1])
		dirEnd := 2 + nd + 1
		nf := atoi(c[dirEnd])
		if len(c) != 10+nd+nf {
			return e, false
		}
		nameEnd := dirEnd + 1 + nf + 1
		e.Dir, e.Name, e.Tail = c.join(2, dirEnd), c.join(dirEnd+1, nameEnd), c.join(nameEnd, len(c))
		return e, true
	}
	return e, false
}

func (c columns) join(from, to int) string {
	if from > to {
		return "" // a loop that does not run
	}
	return strings.Join(c[from:to], ",")
}

// atoi reads a number as C does: blanks, a sign, digits; 0 without any.
func atoi(s string) int {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	neg := false
	if s != "" && (s[0] == '-' || s[0] == '+') {
		neg = s[0] == '-'
		s = s[1:]
	}
	n := 0
	for _, d := range []byte(s) {
		if d < '0' || d > '9' || n > 1<<31 {
			break
		}
		n = n*10 + int(d-'0')
	}
	if neg {
		return -n
	}
	return n
}
