package scanner

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// pattern is one compiled exclude or include; see the package comment.
type pattern struct {
	dirOnly  bool
	anchored bool
	parts    []string // of an anchored pattern; else one
}

// Rule is a pattern of an ordered list, in which the last one that matches an
// entry decides.
type Rule struct {
	Pattern string `json:"pattern"`
	Include bool   `json:"include,omitempty"` // it takes back what rules before it left out
	From    string `json:"from,omitempty"`    // where it stands, "FILE:LINE"; "" = it was given by itself
}

// String names the rule as a person wrote it.
func (r Rule) String() string {
	text := strconv.Quote(r.Pattern)
	if r.From == "" {
		return text
	}
	if r.Include {
		text = strconv.Quote("!" + r.Pattern)
	}
	return text + " in " + r.From
}

// rule is a compiled Rule.
type rule struct {
	Rule
	pattern
	met atomic.Bool // an entry that the walk came to matches it
}

// filter decides which entries are left out. It is safe for concurrent use.
type filter struct {
	excludes, includes []*rule
	rules              []*rule // in order

	listed    *selection // nil = no list
	maxSize   uint64     // 0 = any
	newerThan Time       // zero = any
}

// newFilter takes the patterns of cfg, and rules, those of its files.
func newFilter(cfg *Config, rules []Rule) (*filter, error) {
	f := &filter{maxSize: uint64(cfg.MaxSize)}
	if !cfg.NewerThan.IsZero() {
		f.newerThan = Time{cfg.NewerThan.Unix(), uint32(cfg.NewerThan.Nanosecond())}
	}
	add := func(what string, r Rule, to *[]*rule) error {
		p, err := parsePattern(r.Pattern)
		if err != nil {
			if r.From != "" {
				err = fmt.Errorf("%s: %w", r.From, err)
			}
			return &fault.Error{
				Kind: fault.Invalid, Op: "read " + what + " pattern", Path: r.Pattern, Err: err,
				Hint: `patterns are made of *, ?, [a-z], ** and \ before a character to be taken as it is: fsbackup help patterns`,
			}
		}
		*to = append(*to, &rule{Rule: r, pattern: p})
		return nil
	}
	for _, text := range cfg.Excludes {
		if err := add("exclude", Rule{Pattern: text}, &f.excludes); err != nil {
			return nil, err
		}
	}
	for _, text := range cfg.Includes {
		if err := add("include", Rule{Pattern: text, Include: true}, &f.includes); err != nil {
			return nil, err
		}
	}
	for _, r := range rules {
		if err := add("exclude", r, &f.rules); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// out reports whether a pattern leaves the entry at path out; path is relative
// and never empty.
func (f *filter) out(path string, isDir bool) bool { return f.decide(path, isDir, false) }

// meet is out for an entry that is there: the patterns that match it are not in
// vain.
func (f *filter) meet(path string, isDir bool) bool { return f.decide(path, isDir, true) }

func (f *filter) decide(path string, isDir, meet bool) bool {
	out := matchAny(f.excludes, path, isDir, meet)
	if meet || !out {
		out = f.ruledOut(path, isDir, meet) || out
	}
	if !meet && !out {
		return false
	}
	return !matchAny(f.includes, path, isDir, meet) && out
}

// ruledOut reports what the ordered rules say.
func (f *filter) ruledOut(path string, isDir, meet bool) bool {
	decided, out := false, false
	for _, r := range slices.Backward(f.rules) {
		if decided && !r.unmet(meet) || !r.match(path, isDir) {
			continue
		}
		r.see(meet)
		if !decided {
			decided, out = true, !r.Include
		}
		if !meet {
			break
		}
	}
	return out
}

// matchAny reports whether a rule of the list matches. With meet it also looks at
// those behind the first that does, as long as nothing has matched them: a pattern
// is not in vain because another leaves out the same.
func matchAny(list []*rule, path string, isDir, meet bool) bool {
	found := false
	for _, r := range list {
		if found && !r.unmet(meet) || !r.match(path, isDir) {
			continue
		}
		found = true
		r.see(meet)
		if !meet {
			break
		}
	}
	return found
}

// unmet reports whether it is still to be found out that something matches.
func (r *rule) unmet(meet bool) bool { return meet && !r.met.Load() }

func (r *rule) see(meet bool) {
	if r.unmet(meet) {
		r.met.Store(true)
	}
}

// tooBigOrOld reports whether an entry that is no directory is left out for its
// size or its time.
func (f *filter) tooBigOrOld(r *Record) bool {
	return f.maxSize > 0 && r.data() > f.maxSize || f.newerThan != (Time{}) && r.Mtime.before(f.newerThan)
}

// unmatched returns the rules that nothing matched.
func (f *filter) unmatched() []Rule {
	var out []Rule
	for _, list := range [][]*rule{f.excludes, f.includes, f.rules} {
		for _, r := range list {
			if !r.met.Load() {
				out = append(out, r.Rule)
			}
		}
	}
	return out
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
		// Within a name that is not UTF-8 any byte can be where a pattern goes on; within
		// one that is, what is behind half a character is no character.
		step := 1
		if utf8.ValidString(s) {
			_, step = utf8.DecodeRuneInString(s[starS:])
		}
		starS += step
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
	r, size := character(s)
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

// character returns the first character of s and its length. A byte that is not UTF-8
// is one as well, and no other than itself: it is given a number behind all of Unicode.
func character(s string) (r rune, size int) {
	r, size = utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && size == 1 {
		r = unicode.MaxRune + 1 + rune(s[0])
	}
	return r, size
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
		c, size := character(g[i:])
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
