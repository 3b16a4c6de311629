package controlfile

import (
	"strings"
)

// state says what a text is to the grammar of a kind of control file.
type state uint8

const (
	stBad      state = iota // no entry, whatever follows
	stOpen                  // not an entry yet: the name may go on behind a newline
	stComplete              // the columns of an entry, whose values are still unchecked
)

// columns is an entry split into columns; strings share the text's memory.
type columns struct {
	tag   byte   // 'd', 'f', 'i', or 't' for an mtime line
	mode  string // copy
	dir   string // hardlink f, all d, mtime
	name  string // f
	tail  [9]string
	ntail int
	// openName is set where nothing follows the name, so that lines without a
	// comma may still belong to it.
	openName bool
}

// grammar splits texts of one kind and version. cols is the number of columns
// behind the name that the file has been seen to use, 0 while it is open.
type grammar struct {
	kind  Kind
	v10   bool // copy 1.0
	coded bool // names are %-escaped, an entry is one line
	bare  bool // coded, but lines have no mark: delete files of fsbackup 1.0
	cols  int
}

// split looks at a text of one or several physical lines. For stOpen, missing
// is the least number of commas that further lines must bring before the text
// can be looked at again with another outcome.
//
// The count of commas in a name precedes it, so where a name ends is a function
// of the text before it and of nothing that a name can forge, and a first line
// of an entry that spans several is never an entry by itself, unless nothing
// follows the name (openName).
func (g *grammar) split(s string) (c columns, st state, missing int) {
	if g.coded && !g.bare {
		var ok bool
		if s, ok = strings.CutPrefix(s, codeMark); !ok {
			return c, stBad, 0
		}
	}
	switch g.kind {
	case Copy:
		return g.splitCopy(s)
	case Delete:
		return g.splitDelete(s)
	case Hardlink:
		return g.splitHardlink(s)
	default:
		return g.splitMtime(s)
	}
}

func (g *grammar) splitCopy(s string) (c columns, st state, missing int) {
	tag, rest, ok := strings.Cut(s, ",")
	if !ok || tag != "d" && tag != "f" {
		return c, stBad, 0
	}
	c.tag = tag[0]
	if c.mode, rest, ok = strings.Cut(rest, ","); !ok || c.mode == "" || strings.IndexByte(c.mode, '\n') >= 0 {
		return c, stBad, 0
	}
	var tail int
	limit := MaxName
	switch {
	case c.tag == 'd' && c.mode == ModeDeleted:
		tail, limit = 1, MaxPath
	case c.tag == 'd':
		tail, limit = 5, MaxPath
	case c.mode == ModeDeleted:
		tail, c.openName = 0, true
	case g.v10:
		tail = 3
	default:
		tail = 4
	}
	name, rest, st, missing := cutName(rest, limit, tail == 0)
	if st != stComplete {
		return c, st, missing
	}
	if c.tag == 'd' {
		c.dir = name
	} else {
		c.name = name
	}
	return c, c.cutTail(rest, tail, tail), 0
}

func (g *grammar) splitDelete(s string) (c columns, st state, missing int) {
	tag, rest, ok := strings.Cut(s, ",")
	if !ok || tag != "d" && tag != "f" {
		return c, stBad, 0
	}
	c.tag = tag[0]
	if c.tag == 'd' {
		c.dir, rest, st, missing = cutName(rest, MaxPath, false)
		if st != stComplete {
			return c, st, missing
		}
		return c, c.cutTail(rest, 1, 1), 0
	}
	c.openName = true
	c.name, _, st, missing = cutName(rest, MaxName, true)
	return c, st, missing
}

func (g *grammar) splitHardlink(s string) (c columns, st state, missing int) {
	tag, rest, ok := strings.Cut(s, ",")
	if !ok {
		return c, stBad, 0
	}
	switch tag {
	case "i":
		c.tag = 'i'
		return c, c.cutTail(rest, 2, 2), 0
	case "f":
		c.tag = 'f'
	default:
		return c, stBad, 0
	}
	if c.dir, rest, st, missing = cutName(rest, MaxPath, false); st != stComplete {
		return c, st, missing
	}
	if c.name, rest, st, missing = cutName(rest, MaxName, false); st != stComplete {
		return c, st, missing
	}
	if g.cols != 0 {
		return c, c.cutTail(rest, g.cols, g.cols), 0
	}
	return c, c.cutTail(rest, 4, 5), 0
}

func (g *grammar) splitMtime(s string) (c columns, st state, missing int) {
	c.tag = 't'
	var rest string
	if c.dir, rest, st, missing = cutName(s, MaxPath, false); st != stComplete {
		return c, st, missing
	}
	if g.cols != 0 {
		return c, c.cutTail(rest, g.cols, g.cols), 0
	}
	return c, c.cutTail(rest, 8, 9), 0
}

// cutName cuts "<N>,<name>" and the comma after it off s, where N is the number
// of commas in the name. N may not exceed limit, the most bytes that a name can
// have. With last nothing follows the name.
func cutName(s string, limit int, last bool) (name, rest string, st state, missing int) {
	count, s, ok := strings.Cut(s, ",")
	if !ok {
		return "", "", stBad, 0
	}
	n, ok := parseUint(count, uint64(limit))
	if !ok {
		return "", "", stBad, 0
	}
	want := int(n)
	if !last {
		want++
	}
	end := -1
	for i := range want {
		at := strings.IndexByte(s[end+1:], ',')
		if at < 0 {
			return "", "", stOpen, want - i
		}
		end += at + 1
	}
	if last {
		if strings.IndexByte(s[end+1:], ',') >= 0 {
			return "", "", stBad, 0
		}
		return s, "", stComplete, 0
	}
	return s[:end], s[end+1:], stComplete, 0
}

// cutTail splits the columns behind the name, of which there must be between lo
// and hi, none with a newline in it.
func (c *columns) cutTail(s string, lo, hi int) state {
	if hi == 0 {
		return stComplete
	}
	if strings.IndexByte(s, '\n') >= 0 {
		return stBad
	}
	for more := true; more; {
		if c.ntail == hi {
			return stBad
		}
		c.tail[c.ntail], s, more = strings.Cut(s, ",")
		c.ntail++
	}
	if c.ntail < lo {
		return stBad
	}
	return stComplete
}

// starts reports whether a line begins as an entry does, which is where reading
// goes on behind text that is none.
func (g *grammar) starts(s string) bool {
	if g.coded && !g.bare {
		return strings.HasPrefix(s, codeMark)
	}
	if len(s) < 2 {
		return false
	}
	switch g.kind {
	case Copy, Delete:
		return (s[0] == 'd' || s[0] == 'f') && s[1] == ','
	case Hardlink:
		return (s[0] == 'i' || s[0] == 'f') && s[1] == ','
	default:
		count, _, ok := strings.Cut(s[:min(len(s), 6)], ",")
		_, num := parseUint(count, MaxPath)
		return ok && num
	}
}

// parseUint parses plain decimal digits, at most limit.
func parseUint(s string, limit uint64) (uint64, bool) {
	if s == "" || len(s) > 20 {
		return 0, false
	}
	var n uint64
	for i := range len(s) {
		d := uint64(s[i] - '0')
		if d > 9 || n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, n <= limit
}
