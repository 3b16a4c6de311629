package entry

import "strings"

// MarkPrefix begins the names of the marks that jobs leave in the root of their
// destination while they run. See IsMark.
const MarkPrefix = ".fsbackup-"

// markLength is that of crypto/rand.Text, of which marks are made, in lower case.
const markLength = 26

// IsMark reports whether a name in the root of a destination is that of a job's mark,
// or of what a worker has made beside it for a moment. Jobs that were killed leave
// them; they are nobody's files.
func IsMark(name string) bool {
	rest, ok := strings.CutPrefix(name, MarkPrefix)
	if !ok || len(rest) < markLength {
		return false
	}
	for _, c := range []byte(rest[:markLength]) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return len(rest) == markLength || rest[markLength] == '-'
}
