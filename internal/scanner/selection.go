package scanner

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// selection is a choice of entries of a tree, what is below them and their
// parents; nil is all of the tree. It is safe for concurrent use.
type selection struct {
	want    map[string]bool // the entries
	parents map[string]bool // the directories above them, the root included

	mu   sync.Mutex // guards what follows
	seen map[string]bool
}

// newSelection takes paths relative to the root, which is "", "." or "/"; leading and
// trailing slashes do not count.
func newSelection(paths []string) (*selection, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	p := &selection{want: map[string]bool{}, parents: map[string]bool{"": true}, seen: map[string]bool{"": true}}
	for _, text := range paths {
		path := text
		if t := strings.TrimRight(text, "/"); t != "" {
			path = t
		}
		path, err := controlfile.CleanDir(path)
		if err != nil {
			return nil, &fault.Error{
				Kind: fault.Invalid, Op: "select", Path: text, Err: err, Hint: "name a path relative to the root of the scan",
			}
		}
		p.want[path] = true
		for path != "" {
			path, _ = splitPath(path)
			p.parents[path] = true
		}
	}
	return p, nil
}

// has reports whether the entry is in the selection, as one of its parents too.
func (p *selection) has(path string, isDir bool) bool {
	return p == nil || isDir && p.parents[path] || p.below(path)
}

// note takes note of an entry that is there.
func (p *selection) note(path string) {
	if p == nil || !p.want[path] {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[path] = true
}

// below reports whether the entry is one of those named, or below one.
func (p *selection) below(path string) bool {
	for !p.want[path] {
		if path == "" {
			return false
		}
		path, _ = splitPath(path)
	}
	return true
}

// within reports whether the entry is below one of those named, itself not counted.
func (p *selection) within(path string) bool {
	if p.want[""] {
		return true
	}
	for path != "" {
		if path, _ = splitPath(path); p.want[path] {
			return true
		}
	}
	return false
}

// unseen returns the named paths that have not been met, in order.
func (p *selection) unseen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var miss []string
	for path := range p.want {
		if !p.seen[path] {
			miss = append(miss, path)
		}
	}
	slices.Sort(miss)
	return miss
}

// missing returns an error that names a path that has not been met.
func (p *selection) missing(op, where string) error {
	if p == nil {
		return nil
	}
	miss := p.unseen()
	if len(miss) == 0 {
		return nil
	}
	return &fault.Error{
		Kind: fault.NotFound, Op: op, Path: miss[0], Err: errors.New("it is not in " + where),
		Hint: "name paths as they are below the root, and none that is excluded",
	}
}

// splitPath returns the directory of an entry path and the name in it.
func splitPath(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}
