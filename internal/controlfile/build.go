package controlfile

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

var (
	errNoParent  = errors.New("a file line before any directory line: its parent is not known")
	errBadParent = errors.New("the directory line above it could not be read: its parent is not known")
	errNoGroup   = errors.New("a link line without a readable i line above it: its group is not known")
	errManyLines = errors.New("the name spans several lines, which in a delete file cannot be told from two names")
)

// build checks the values of a complete entry and sets e, which becomes TypeBad
// where one of them is wrong.
func (r *Reader) build(e *Entry, c *columns) {
	var err error
	isDir := c.tag == 'd' || c.tag == 't'
	if r.g.coded {
		err = c.unescape()
	}
	switch {
	case err != nil:
		r.dirBad = r.dirBad || isDir
	case c.tag == 'i':
		err = r.buildGroup(e, c)
		r.inGroup = err == nil
	case r.g.kind == Hardlink:
		err = r.buildLink(e, c)
	case c.tag == 't':
		err = r.buildTimes(e, c)
	case c.tag == 'd':
		err = r.buildDir(e, c)
		r.dirBad = err != nil
	default:
		err = r.buildFile(e, c)
	}
	if err != nil {
		*e = r.bad(*e, isDir, "%w", err)
	}
}

// unescape turns the names of a coded file into what they are.
func (c *columns) unescape() error {
	var err error
	if c.dir, err = Unescape(c.dir); err != nil {
		return err
	}
	c.name, err = Unescape(c.name)
	return err
}

func (r *Reader) buildDir(e *Entry, c *columns) error {
	e.Type, e.IsDir, e.Dir, e.Mode = TypeDir, true, c.dir, c.mode
	var err error
	r.dir, r.dirSet = e.Dir, true
	if e.Path, err = CleanDir(e.Dir); err != nil {
		return err
	}
	r.dirPath = e.Path
	switch {
	case r.g.kind == Delete:
		if e.Lines > 1 {
			return errManyLines
		}
		switch c.tail[0] {
		case "0":
		case "1":
			e.Delete = true
		default:
			return fmt.Errorf("the delete flag is %s, not 0 or 1", quote(c.tail[0]))
		}
		return nil
	case c.mode == ModeDeleted:
		e.FileCount, err = column("file count", c.tail[0], math.MaxInt64)
		return err
	}
	if r.g.v10 {
		if _, err := MetaFileIndex(c.tail[0]); err != nil {
			return err
		}
		r.metaFile = c.tail[0]
		e.Meta.File = c.tail[0]
	} else if e.Meta.File, err = metaFileName(c.tail[0]); err != nil {
		return err
	}
	if err := e.setMeta(c.tail[1], c.tail[2], c.tail[4], math.MaxUint16, r.g.v10); err != nil {
		return err
	}
	e.FileCount, err = column("file count", c.tail[3], math.MaxInt64)
	return err
}

func (r *Reader) buildFile(e *Entry, c *columns) error {
	e.Type, e.Dir, e.Name, e.Mode = TypeFile, r.dir, c.name, c.mode
	switch {
	case r.dirBad:
		return errBadParent
	case !r.dirSet:
		return errNoParent
	case r.g.kind == Delete && e.Lines > 1:
		return errManyLines
	}
	var err error
	if e.Path, err = joinPath(r.dirPath, e.Name); err != nil {
		return err
	}
	if r.g.kind == Delete || c.mode == ModeDeleted {
		return nil
	}
	t := c.tail[:c.ntail]
	if r.g.v10 {
		if r.metaFile == "" {
			return errors.New("no directory line above it names a meta file")
		}
		e.Meta.File = r.metaFile
	} else {
		if e.Meta.File, err = metaFileName(t[0]); err != nil {
			return err
		}
		t = t[1:]
	}
	return e.setMeta(t[0], t[1], t[2], math.MaxUint16, r.g.v10)
}

func (r *Reader) buildGroup(e *Entry, c *columns) error {
	e.Type = TypeGroup
	var err error
	if e.LinkCount, err = column("link count", c.tail[0], math.MaxInt64); err != nil {
		return err
	}
	e.Inode, err = column("inode", c.tail[1], math.MaxUint64)
	return err
}

func (r *Reader) buildLink(e *Entry, c *columns) error {
	e.Type, e.Dir, e.Name = TypeFile, c.dir, c.name
	// Which of the two families wrote the file shows in its first link line; a
	// line of the other one behind it is damage.
	r.g.cols = c.ntail
	if !r.inGroup {
		return errNoGroup
	}
	dir, err := CleanDir(c.dir)
	if err != nil {
		return err
	}
	if e.Path, err = joinPath(dir, c.name); err != nil {
		return err
	}
	if _, err := MetaFileIndex(c.tail[0]); err != nil {
		return err
	}
	e.Meta.File = c.tail[0]
	if err := e.setMeta(c.tail[1], c.tail[2], c.tail[3], math.MaxUint32, c.ntail == 4); err != nil {
		return err
	}
	if c.ntail == 5 {
		e.FileCount, err = column("link count of the directory", c.tail[4], math.MaxInt64)
	}
	return err
}

func (r *Reader) buildTimes(e *Entry, c *columns) error {
	e.Type, e.IsDir, e.Dir = TypeTimes, true, c.dir
	r.g.cols = c.ntail
	var err error
	if e.Path, err = CleanDir(c.dir); err != nil {
		return err
	}
	t := &Times{}
	for i, dst := range []*uint32{&t.Mode, &t.Attr, &t.UID, &t.GID} {
		n, err := column([]string{"mode", "attribute", "owner", "group"}[i], c.tail[i], math.MaxUint32)
		if err != nil {
			return err
		}
		*dst = uint32(n)
	}
	for i, dst := range []*int64{&t.Ctime, &t.Atime, &t.Mtime, &t.Btime} {
		var ok bool
		if *dst, ok = parseSeconds(c.tail[4+i]); !ok {
			return fmt.Errorf("the %s is %s, not a number of seconds", []string{"ctime", "atime", "mtime", "btime"}[i], quote(c.tail[4+i]))
		}
	}
	if c.ntail == 9 {
		if t.SubDirs, err = column("count of directories", c.tail[8], math.MaxInt64); err != nil {
			return err
		}
	}
	e.Times = t
	return nil
}

// parseSeconds parses a time column. The reference writes times as unsigned numbers of
// 64 bits, those before 1970 as two's complement, and also reads negative ones.
func parseSeconds(s string) (int64, bool) {
	if strings.HasPrefix(s, "-") {
		n, err := strconv.ParseInt(s, 10, 64)
		return n, err == nil
	}
	n, ok := parseUint(s, math.MaxUint64)
	return int64(n), ok
}

// setMeta sets the record's place and the ACL flag. Named records, which is
// what the older families have, cannot be empty.
func (e *Entry) setMeta(offset, length, acl string, maxLength uint64, named bool) error {
	var err error
	if e.Meta.Offset, err = column("meta offset", offset, math.MaxInt64); err != nil {
		return err
	}
	n, err := column("meta length", length, maxLength)
	if err != nil {
		return err
	}
	if n == 0 && named {
		return errors.New("the meta length is 0: there is no record")
	}
	e.Meta.Length = uint32(n)
	switch acl {
	case "0":
	case "1":
		e.ACL = true
	default:
		return fmt.Errorf("the ACL flag is %s, not 0 or 1", quote(acl))
	}
	e.Meta.Valid = true
	return nil
}

// column parses a number; limit is the largest that fits.
func column(what, s string, limit uint64) (uint64, error) {
	n, ok := parseUint(s, limit)
	if !ok {
		return 0, fmt.Errorf("the %s is %s, not a number from 0 to %d", what, quote(s), limit)
	}
	return n, nil
}

const metaPrefix = "meta_file_"

// metaFileName returns the meta file of an index column.
func metaFileName(index string) (string, error) {
	n, err := column("meta file index", index, math.MaxUint16)
	if err != nil {
		return "", err
	}
	return metaPrefix + strconv.FormatUint(n, 10), nil
}

// MetaFileIndex returns N of "meta_file_N". Any other name is refused: it could
// lead out of the meta directory.
func MetaFileIndex(name string) (uint16, error) {
	index, ok := strings.CutPrefix(name, metaPrefix)
	n, num := parseUint(index, math.MaxUint16)
	if !ok || !num {
		return 0, fmt.Errorf("the meta file is %s, not meta_file_0 to meta_file_65535", quote(name))
	}
	return uint16(n), nil
}
