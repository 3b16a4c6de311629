// Package args parses command lines, and keeps what they say byte by byte.
//
// A path is bytes. The parser of kong takes strings through JSON and splits lists by
// characters, and both turn what is not UTF-8 into U+FFFD: another path, which may be
// there. So its mappers of strings are replaced here, for flags, arguments, variables of
// the environment and defaults alike.
package args

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// New returns a parser for the command line that grammar describes. It refuses a
// grammar with a kind of value of which it cannot say that its bytes are kept.
func New(grammar any, options ...kong.Option) (*kong.Kong, error) {
	p, err := kong.New(grammar, append([]kong.Option{
		kong.KindMapper(reflect.String, kong.MapperFunc(text)),
		kong.TypeMapper(reflect.TypeFor[[]string](), kong.MapperFunc(list)),
		kong.NamedMapper("path", kong.MapperFunc(path)),
	}, options...)...)
	if err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	err = kong.Visit(p.Model, func(node kong.Visitable, next kong.Next) error {
		switch n := node.(type) {
		case *kong.Flag:
			err = check(n.Value)
		case *kong.Value:
			err = check(n)
		default:
			err = nil
		}
		return next(err)
	})
	if err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	return p, nil
}

// check refuses what kong would take through JSON although it can hold a path. A type
// that parses itself from text has checked its text, and is no path.
func check(v *kong.Value) error {
	t := v.Target.Type()
	switch {
	case v.Tag.Type == "path" && t.Kind() == reflect.String, v.Tag.Type == "":
	case v.Tag.Type == "counter":
		return nil
	default:
		return fmt.Errorf("%s: type %q is not known to keep bytes; add a mapper that does", v.Summary(), v.Tag.Type)
	}
	switch t.Kind() {
	case reflect.Map, reflect.Pointer, reflect.Interface:
		return fmt.Errorf("%s: a %s is not known to keep bytes; add a mapper that does", v.Summary(), t)
	case reflect.Slice:
		if t != reflect.TypeFor[[]string]() {
			return fmt.Errorf("%s: a list of %s is not known to keep bytes; use []string", v.Summary(), t.Elem())
		}
	}
	return nil
}

// value takes the next value as it was given.
func value(ctx *kong.DecodeContext, what string) (string, error) {
	t, err := ctx.Scan.PopValue(what)
	if err != nil {
		return "", err //nolint:wrapcheck // the parser looks for its type, and names the flag
	}
	s, ok := t.Value.(string)
	if !ok {
		return "", fmt.Errorf("expected %s but got %v (%T)", what, t.Value, t.Value)
	}
	return s, nil
}

func text(ctx *kong.DecodeContext, target reflect.Value) error {
	s, err := value(ctx, "string")
	if err == nil {
		target.SetString(s)
	}
	return err
}

// path makes what it is given absolute. Nothing where there is a default is nothing.
func path(ctx *kong.DecodeContext, target reflect.Value) error {
	s, err := value(ctx, "file")
	if err != nil {
		return err
	}
	if ctx.Value.HasDefault && s == "" {
		return nil
	}
	if s != "-" {
		s = kong.ExpandPath(s)
	}
	target.SetString(s)
	return nil
}

// list takes one value of a flag, split at its separator, or all that is left of the
// arguments.
func list(ctx *kong.DecodeContext, target reflect.Value) error {
	var all []string
	if ctx.Value.Flag != nil {
		t := ctx.Scan.Pop()
		s, ok := t.Value.(string)
		if t.IsEOL() || !ok {
			return fmt.Errorf("missing value, expecting \"<arg>\"")
		}
		all = split(s, ctx.Value.Tag.Sep)
	} else {
		for _, t := range ctx.Scan.PopWhile(func(t kong.Token) bool { return t.IsValue() }) {
			s, ok := t.Value.(string)
			if !ok {
				return fmt.Errorf("expected string but got %v (%T)", t.Value, t.Value)
			}
			all = append(all, s)
		}
	}
	for _, s := range all {
		target.Set(reflect.Append(target, reflect.ValueOf(s)))
	}
	return nil
}

// split cuts s at sep, unless a backslash stands before it; -1 is no separator.
func split(s string, sep rune) []string {
	if sep == -1 {
		return []string{s}
	}
	cut := string(sep)
	var out []string
	var part strings.Builder
	for s != "" {
		switch {
		case strings.HasPrefix(s, `\`+cut):
			part.WriteString(cut)
			s = s[1+len(cut):]
		case s[0] == '\\' && len(s) > 1:
			// It stands for itself, and so does what follows.
			part.WriteString(s[:2])
			s = s[2:]
		case strings.HasPrefix(s, cut):
			out = append(out, part.String())
			part.Reset()
			s = s[len(cut):]
		default:
			part.WriteByte(s[0])
			s = s[1:]
		}
	}
	if part.Len() > 0 {
		out = append(out, part.String())
	}
	return out
}
