package engine

import (
	"errors"
	"strconv"
	"strings"
)

func quote(s string) string { return strconv.Quote(s) }

const (
	maxPath = 4096
	maxName = 255
)

// checkPath reports why p can't be an entry path. It repeats what the reader
// of control files refuses: the strings arrive over a network, and the *at
// calls rely on names being single components.
func checkPath(p string) error {
	if len(p) > maxPath {
		return errors.New("path is longer than 4096 bytes")
	}
	for name := range strings.SplitSeq(p, "/") {
		switch {
		case name == "":
			return errors.New("path has an empty component")
		case name == "." || name == "..":
			return errors.New("path has a . or .. component")
		case len(name) > maxName:
			return errors.New("path has a component longer than 255 bytes")
		case strings.IndexByte(name, 0) >= 0:
			return errors.New("path has a NUL byte")
		}
	}
	return nil
}

// split returns the parent directory's path, "" for the root, and the last
// component.
func split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// place says where the trim prefix puts an entry.
type place uint8

const (
	placeBelow   place = iota // beneath the prefix: path shortened
	placeAbove                // an ancestor of the prefix: has no place in the destination
	placeOutside              // elsewhere
)

// trimmed returns the destination path of an entry.
func (j *Job) trimmed(p string) (string, place) {
	if j.trim == "" || p == j.trim {
		if j.trim != "" {
			return "", placeBelow
		}
		return p, placeBelow
	}
	if rest, ok := strings.CutPrefix(p, j.trim+"/"); ok {
		return rest, placeBelow
	}
	if p == "" || strings.HasPrefix(j.trim, p+"/") {
		return "", placeAbove
	}
	return "", placeOutside
}
