package scanner

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// maxItem bounds a line of a list, far above the longest path.
const maxItem = 1 << 20

// compares reports whether the scan is compared with earlier ones.
func (c *Config) compares() bool {
	return c.Committed != "" || len(c.Pending) > 0 || c.Destination != ""
}

// filter returns the filter that the configuration asks for, with what its files
// hold.
func (c *Config) filter() (*filter, error) {
	var rules []Rule
	for _, name := range c.ExcludeFrom {
		err := c.items(name, '\n', func(line string, n int) error {
			if r, ok := parseRule(line); ok {
				r.From = fmt.Sprintf("%s:%d", listName(name), n)
				rules = append(rules, r)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	f, err := newFilter(c, rules)
	if err != nil || c.ListFile == "" {
		return f, err
	}
	f.listed, err = c.list()
	return f, err
}

// parseRule reads a line of a file of rules; ok is false where it holds none.
func parseRule(line string) (r Rule, ok bool) {
	if strings.Trim(line, " \t") == "" || line[0] == '#' { // other spaces may be a name, in some encoding
		return r, false
	}
	r.Pattern, r.Include = strings.CutPrefix(line, "!")
	return r, true
}

// list reads ListFile.
func (c *Config) list() (*selection, error) {
	var paths []string
	end := byte('\n')
	if c.ListNUL {
		end = 0
	}
	err := c.items(c.ListFile, end, func(item string, n int) error {
		if item == "" {
			return nil
		}
		p := path.Clean(item) // "./a//b/", as find and shells write it
		if _, err := newSelection([]string{p}); err != nil {
			return fmt.Errorf("%s:%d: %w", listName(c.ListFile), n, err)
		}
		paths = append(paths, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, &fault.Error{
			Kind: fault.Invalid, Op: "read the list of paths", Path: listName(c.ListFile), Err: errors.New("it names none"),
			Hint: "name one path a line, relative to the source",
		}
	}
	return newSelection(paths)
}

// items calls f for each item of a list and its number from 1 on. A line may end
// with CRLF. A NUL in a line is refused: it is the sign of another kind of list.
func (c *Config) items(name string, end byte, f func(item string, n int) error) (err error) {
	failed := func(err error) error {
		if fe := (*fault.Error)(nil); errors.As(err, &fe) && fe.Kind == fault.Invalid {
			return err
		}
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		}
		kind := fault.KindOf(err)
		if errors.Is(err, syscall.EISDIR) {
			kind = fault.Invalid
		}
		return &fault.Error{Kind: kind, Op: "read list", Path: listName(name), Err: err, Hint: "name a file that can be read, or - for the standard input"}
	}
	in := c.Stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return failed(err)
		}
		defer file.Close()
		in = file
	} else if in == nil {
		return failed(fault.New(fault.Invalid, "read list: there is no standard input"))
	}
	n := 0
	for item, err := range split(in, end) {
		if err != nil {
			return failed(err)
		}
		n++
		if end == '\n' {
			if n == 1 {
				item = strings.TrimPrefix(item, "\ufeff")
			}
			item = strings.TrimSuffix(item, "\r")
			if strings.IndexByte(item, 0) >= 0 {
				return &fault.Error{
					Kind: fault.Invalid, Op: "read list", Path: listName(name), Err: fmt.Errorf("line %d has a NUL byte", n),
					Hint: "write one item a line; a list of paths may be separated by NULs with --from0",
				}
			}
		}
		if err := f(item, n); err != nil {
			return failed(err)
		}
	}
	return nil
}

// split yields what is between separators; the last item may lack one.
func split(in io.Reader, end byte) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		s := bufio.NewScanner(in)
		s.Buffer(nil, maxItem)
		s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
			if i := bytes.IndexByte(data, end); i >= 0 {
				return i + 1, data[:i], nil
			}
			if atEOF && len(data) > 0 {
				return len(data), data, nil
			}
			return 0, nil, nil
		})
		for s.Scan() {
			if !yield(s.Text(), nil) {
				return
			}
		}
		if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield("", fault.New(fault.Invalid, "read list: a line has more than %d bytes", maxItem))
		} else if err != nil {
			yield("", err)
		}
	}
}

func listName(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

// asked reports whether the scan was asked about what earlier ones know at path.
// With a list that is what is below the paths in it. Of a listed path that is not
// there nobody knows whether it is gone or was never right.
func (f *filter) asked(path string) bool { return f.listed == nil || f.listed.within(path) }

// absent yields the listed paths that the walk did not come to, but for those that
// a pattern leaves out.
func (f *filter) absent() iter.Seq[string] {
	return func(yield func(string) bool) {
		if f.listed == nil {
			return
		}
		for _, path := range f.listed.unseen() {
			if !f.outAbove(path) && !yield(path) {
				return
			}
		}
	}
}

func (f *filter) outAbove(path string) bool {
	for path, _ = splitPath(path); path != ""; path, _ = splitPath(path) {
		if f.out(path, true) {
			return true
		}
	}
	return false
}
