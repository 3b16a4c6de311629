package entry

import (
	"path"
	"strings"
)

// Within reports whether the absolute path p is root or lies in it, component by
// component: /a/b lies in /a, /ab does not. Both are cleaned first. Nothing is
// looked up: links are for the caller to resolve.
func Within(root, p string) bool {
	rest, ok := strings.CutPrefix(path.Clean(p), strings.TrimSuffix(path.Clean(root), "/"))
	return ok && (rest == "" || rest[0] == '/')
}
