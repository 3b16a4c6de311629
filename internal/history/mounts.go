package history

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// MountsBelow returns the mount points below the directory at path, relative to it and
// sorted. An automounter's own are none: what is mounted there comes and goes.
func MountsBelow(path string) ([]string, error) {
	const table = "/proc/self/mountinfo" // proc(5)
	data, err := os.ReadFile(table)
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: "look for mounts in", Path: table, Err: cause(err)}
	}
	root := strings.TrimSuffix(realPath(path), "/") + "/"
	automounted := map[string]bool{}
	var out []string
	for line := range strings.Lines(string(data)) {
		head, tail, _ := strings.Cut(line, " - ")
		fields := strings.Split(head, " ") // not at what Unicode calls a space: a path may have it
		if len(fields) < 5 {
			continue
		}
		below, ok := strings.CutPrefix(unescape(fields[4]), root)
		switch {
		case !ok || below == "":
		case strings.HasPrefix(tail, "autofs "):
			automounted[below] = true
		default:
			out = append(out, below)
		}
	}
	out = slices.DeleteFunc(out, func(m string) bool {
		for p := m; p != "."; p = filepath.Dir(p) {
			if automounted[p] {
				return true
			}
		}
		return false
	})
	slices.Sort(out)
	return slices.Compact(out), nil
}

// unescape decodes \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
