package controlfile

import (
	"errors"
	"fmt"
	"strings"
)

var (
	errEmptyPath  = errors.New("the path is empty")
	errEmptyName  = errors.New("the file name is empty")
	errNUL        = errors.New("the path has a NUL byte")
	errEmptyPart  = errors.New("the path has an empty component")
	errSlashInRef = errors.New("the file name has a slash")
)

// CleanDir turns a directory as written in a control file into an entry path:
// no leading or trailing slash, "" for the root itself, which is written "." or
// "/". A path that is not made of plain components is refused.
func CleanDir(dir string) (string, error) {
	switch dir {
	case "":
		return "", errEmptyPath
	case ".", "/":
		return "", nil
	}
	p := strings.TrimPrefix(dir, "/")
	if len(p) == len(dir) {
		p = strings.TrimPrefix(dir, "./")
	}
	if len(p) > MaxPath {
		return "", fmt.Errorf("the path has %d bytes, more than %d", len(p), MaxPath)
	}
	for rest, more := p, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if part == "" {
			return "", errEmptyPart
		}
		if err := checkName(part); err != nil {
			return "", err
		}
	}
	return p, nil
}

// checkName refuses what cannot be one component of a path.
func checkName(name string) error {
	switch {
	case name == "":
		return errEmptyName
	case name == "." || name == "..":
		return fmt.Errorf("the path has the component %q", name)
	case len(name) > MaxName:
		return fmt.Errorf("a component of the path has %d bytes, more than %d", len(name), MaxName)
	case strings.IndexByte(name, 0) >= 0:
		return errNUL
	case strings.IndexByte(name, '/') >= 0:
		return errSlashInRef
	}
	return nil
}

// joinPath returns the entry path of a file in a cleaned directory.
func joinPath(dir, name string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	if dir == "" {
		return name, nil
	}
	if n := len(dir) + 1 + len(name); n > MaxPath {
		return "", fmt.Errorf("the path has %d bytes, more than %d", n, MaxPath)
	}
	return dir + "/" + name, nil
}
