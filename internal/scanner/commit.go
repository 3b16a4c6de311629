package scanner

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

// Failed is an entry that a job could not do.
type Failed struct {
	Path   string // entry path, as in the control file
	Delete bool   // its delete line failed
}

// FailedList yields a list, for Commit.
func FailedList(list []Failed) iter.Seq2[Failed, error] {
	return func(yield func(Failed, error) bool) {
		for _, f := range list {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// commitMemory is what Commit sorts failures in.
const commitMemory = 16 << 20

// Commit makes of the state of a scan whose job has ended the state of what the
// destination holds, at the path out: what is gone is left out, unless its
// deletion failed; what failed otherwise counts as changed the next time. The
// state files of scans before this one are of no use afterwards.
//
// failed may come in any order and name an entry more than once; nil = nothing
// failed. An error of it ends Commit. It must be complete: where a control file
// was not executed to its end, the state must not be committed at all.
//
// The file is written under another name, synced and renamed, so that after a
// crash out is the old file or the new one. newState is left alone; it may be
// the same file. Temporary files are made in the directory of out.
func Commit(newState, out string, failed iter.Seq2[Failed, error]) (err error) {
	spill, err := os.MkdirTemp(filepath.Dir(out), ".commit-*")
	if err != nil {
		return spillError(out, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(spill)) }()
	list, err := sortFailed(spill, failed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, list.m.close()) }()
	in, err := OpenState(newState)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	w, err := createState(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.abandon()) }()
	c := committer{failed: list, out: w}
	for {
		key, value, err := in.pair()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = c.record(newState, key, value)
		}
		if err != nil {
			return err
		}
	}
	if err := w.commit(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(out))
}

// Take is Commit for a state that is settled, where nothing failed.
func Take(newState, out string) error {
	tmp := out + ".tmp"
	err := os.Remove(tmp)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		if err = os.Link(newState, tmp); err == nil {
			err = os.Rename(tmp, out)
		}
	}
	if err != nil { // no hard links there
		return Commit(newState, out, nil)
	}
	return syncDir(filepath.Dir(out))
}

// What failed at a path, as the value of its keys.
const (
	copyFailed = 1 << iota
	deleteFailed
)

// failures yields what failed in the order of a state.
type failures struct {
	m    *merger
	key  []byte
	what byte
	ok   bool
}

// sortFailed sorts failures by both keys that a path can have: a line does not
// say what the destination has there.
func sortFailed(dir string, failed iter.Seq2[Failed, error]) (*failures, error) {
	runs := newRunSet(dir, "failed", 0)
	buf := &sortBuffer{runs: runs, limit: fixed(commitMemory)}
	if failed != nil {
		var key []byte
		for f, err := range failed {
			if err != nil {
				return nil, err
			}
			path := strings.Trim(f.Path, "/")
			if path == "." {
				path = ""
			}
			what := byte(copyFailed)
			if f.Delete {
				what = deleteFailed
			}
			up, name := splitPath(path)
			for _, r := range []Record{{Dir: path}, {Dir: up, Name: name}} {
				// The merger yields equal keys once, so what failed is part of them.
				key = append(appendKey(key[:0], &r), 0, 0, 0, what)
				if err := buf.add(key, nil); err != nil {
					return nil, err
				}
			}
		}
	}
	m, err := runs.merge([]*sortBuffer{buf})
	if err != nil {
		return nil, err
	}
	f := &failures{m: m}
	return f, f.advance()
}

func (f *failures) advance() error {
	key, _, ok, err := f.m.next()
	f.ok = ok
	if ok {
		f.what = key[len(key)-1]
		f.key = append(f.key[:0], key[:len(key)-4]...)
	}
	return err
}

// at returns what failed at a key; keys must come in order.
func (f *failures) at(key []byte) (what byte, err error) {
	for f.ok {
		c := bytes.Compare(f.key, key)
		if c > 0 {
			break
		}
		if c == 0 {
			what |= f.what
		}
		if err := f.advance(); err != nil {
			return 0, err
		}
	}
	return what, nil
}

// committer turns the records of a scan into those of the destination.
type committer struct {
	failed *failures
	out    *stateWriter
	kept   []byte         // key of the directory below which nothing is known to be deleted
	below  bool           // there is one
	dirs   []committedDir // from the root to the directory of the last record
	value  []byte         // scratch
}

// committedDir is a directory of the new state. One that is gone is written only if
// something in it is: that stays, and it is not empty.
type committedDir struct {
	key, value []byte
	written    bool
}

func (c *committer) record(path string, key, value []byte) error {
	var r Record
	if err := decodeNumbers(value, &r); err != nil {
		return stateError(path, err)
	}
	what, err := c.failed.at(key)
	if err != nil {
		return err
	}
	dirKey := !bytes.Contains(key, []byte{0, 0})
	if c.below = c.below && isBelow(key, c.kept); dirKey && !c.below && what != 0 && r.Flags&FlagGone != 0 {
		// The line of the directory, which covers all below it, or that of what
		// was to replace it.
		c.kept, c.below = append(c.kept[:0], key...), true
	}
	r.Flags &^= FlagAgain
	switch {
	case r.Flags&FlagGone != 0:
		if what == 0 && !c.below && r.Flags&FlagCarried == 0 {
			if dirKey {
				c.enter(key, appendState(nil, &r), false)
			}
			return nil
		}
	case what&copyFailed != 0:
		r.Flags |= FlagDirty
	case what == 0 && r.Flags&(FlagExcluded|FlagCarried) == 0:
		r.Flags &^= FlagOther
	}
	if r.IsDir() && !dirKey {
		r.Name = "/" // a slot, whatever it is called
	}
	if dirKey {
		c.enter(key, nil, true)
	} else {
		c.leave(key[:bytes.Index(key, []byte{0, 0})])
	}
	if err := c.writeDirs(); err != nil {
		return err
	}
	c.value = appendState(c.value[:0], &r)
	return c.out.add(key, c.value)
}

// leave leaves the directories that dir is not below.
func (c *committer) leave(dir []byte) {
	for len(c.dirs) > 0 && !isBelow(dir, c.dirs[len(c.dirs)-1].key) {
		c.dirs = c.dirs[:len(c.dirs)-1]
	}
}

// enter makes a directory the current one.
func (c *committer) enter(key, value []byte, written bool) {
	c.leave(key)
	c.dirs = append(c.dirs, committedDir{bytes.Clone(key), value, written})
}

// writeDirs writes the directories above a record that is written.
func (c *committer) writeDirs() error {
	for i := range c.dirs {
		if d := &c.dirs[i]; !d.written {
			d.written = true
			if err := c.out.add(d.key, d.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// isBelow reports whether a key is that of a directory or of something in it.
func isBelow(key, dir []byte) bool {
	if len(dir) == 0 {
		return true
	}
	return bytes.HasPrefix(key, dir) && (len(key) == len(dir) || key[len(dir)] == 0)
}
