package scanner

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// pattern is one compiled exclude or include; see the package comment.
type pattern struct {
	dirOnly  bool
	anchored bool
	parts    []string // of an anchored pattern; else one
}

// filter decides which entries are left out. It is read-only after its making
// and safe for concurrent use.
type filter struct {
	excludes, includes []pattern
}

func newFilter(excludes, includes []string) (*filter, error) {
	f := &filter{}
	for _, set := range []struct {
		what string
		in   []string
		out  *[]pattern
	}{{"exclude", excludes, &f.excludes}, {"include", includes, &f.includes}} {
		for _, text := range set.in {
			p, err := parsePattern(text)
			if err != nil {
				return nil, &fault.Error{
					Kind: fault.Invalid, Op: "read " + set.what + " pattern", Path: text, Err: err,
					Hint: `patterns are made of *, ?, [a-z], ** and \ before a character to be taken as it is`,
				}
			}
			*set.out = append(*set.out, p)
		}
	}
	return f, nil
}

// out reports whether the entry at path, relative and never empty, is left out.
func (f *filter) out(path string, isDir bool) bool {
	return matchAny(f.excludes, path, isDir) && !matchAny(f.includes, path, isDir)
}

func matchAny(list []pattern, path string, isDir bool) bool {
	for i := range list {
		if list[i].match(path, isDir) {
			return true
		}
	}
	return false
}

func parsePattern(text string) (pattern, error) {
	var p pattern
	rest := text
	if t, ok := strings.CutSuffix(rest, "/"); ok && !strings.HasSuffix(t, `\`) {
		p.dirOnly, rest = true, t
	}
	if t, ok := strings.CutPrefix(rest, "/"); ok {
		p.anchored, rest = true, t
	}
	if rest == "" {
		return p, fmt.Errorf("it matches nothing")
	}
	p.parts = strings.Split(rest, "/")
	p.anchored = p.anchored || len(p.parts) > 1
	for _, part := range p.parts {
		if part == "" || part == "." || part == ".." {
			return p, fmt.Errorf("the component %q is never part of a path", part)
		}
		if err := checkGlob(part); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *pattern) match(path string, isDir bool) bool {
	if p.dirOnly && !isDir {
		return false
	}
	if !p.anchored {
		return p.parts[0] == "**" || glob(p.parts[0], path[strings.LastIndexByte(path, '/')+1:])
	}
	return matchParts(p.parts, path, true)
}

// matchParts matches components; more says that path, even if empty, still has
// a component to match.
func matchParts(parts []string, path string, more bool) bool {
	for len(parts) > 0 {
		if parts[0] == "**" {
			for len(parts) > 0 && parts[0] == "**" {
				parts = parts[1:]
			}
			if len(parts) == 0 {
				// At the end it stands for what is below, not for the directory.
				return more
			}
			for ; more; _, path, more = strings.Cut(path, "/") {
				if matchParts(parts, path, true) {
					return true
				}
			}
			return false
		}
		if !more {
			return false
		}
		var part string
		part, path, more = strings.Cut(path, "/")
		if !glob(parts[0], part) {
			return false
		}
		parts = parts[1:]
	}
	return !more
}

// checkGlob refuses what glob could not make sense of.
func checkGlob(g string) error {
	for i := 0; i < len(g); i++ {
		switch g[i] {
		case '\\':
			if i++; i == len(g) {
				return fmt.Errorf("nothing follows the last backslash")
			}
		case '[':
			_, n, ok := class(g[i:], 0)
			if !ok {
				return fmt.Errorf("the set %q has no end", g[i:])
			}
			i += n - 1
		}
	}
	return nil
}

// glob matches one component. A star is tried again only from the last one on,
// which keeps the time within the product of both lengths.
func glob(g, s string) bool {
	starG, starS := -1, 0
	gi, si := 0, 0
	for si < len(s) || gi < len(g) {
		if gi < len(g) {
			if g[gi] == '*' {
				starG, starS = gi, si
				gi++
				continue
			}
			if n, m, ok := matchOne(g[gi:], s[si:]); ok {
				gi, si = gi+n, si+m
				continue
			}
		}
		if starG < 0 || starS >= len(s) {
			return false
		}
		starS++
		gi, si = starG+1, starS
	}
	return true
}

// matchOne matches the first element of g, which is no star, with the first
// character of s; it returns how many bytes of each were used.
func matchOne(g, s string) (n, m int, ok bool) {
	if s == "" {
		return 0, 0, false
	}
	r, size := utf8.DecodeRuneInString(s) // an invalid byte is a character too
	switch g[0] {
	case '?':
		return 1, size, true
	case '[':
		in, n, _ := class(g, r)
		return n, size, in
	case '\\':
		return 2, 1, g[1] == s[0]
	}
	return 1, 1, g[0] == s[0]
}

// class looks whether r is in the set at the beginning of g, which is n bytes
// long. A "]" that comes first is itself part of the set.
func class(g string, r rune) (in bool, n int, ok bool) {
	i := 1
	negated := i < len(g) && (g[i] == '!' || g[i] == '^')
	if negated {
		i++
	}
	one := func() (rune, bool) {
		if i < len(g) && g[i] == '\\' {
			i++
		}
		if i >= len(g) {
			return 0, false
		}
		c, size := utf8.DecodeRuneInString(g[i:])
		i += size
		return c, true
	}
	for first := true; ; first = false {
		if i >= len(g) {
			return false, 0, false
		}
		if g[i] == ']' && !first {
			return in != negated, i + 1, true
		}
		lo, ok := one()
		hi := lo
		if ok && i+1 < len(g) && g[i] == '-' && g[i+1] != ']' {
			i++
			hi, ok = one()
		}
		if !ok {
			return false, 0, false
		}
		in = in || lo <= r && r <= hi
	}
}
