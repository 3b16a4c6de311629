package args_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/cmd/internal/args"
)

// gbk is a name in GBK, which is not UTF-8.
const gbk = "\xb1\xb8\xb7\xdd"

type grammar struct {
	Name string   `env:"ARGS_TEST_NAME" short:"n"`
	File string   `type:"path" env:"ARGS_TEST_FILE"`
	List []string `sep:":" env:"ARGS_TEST_LIST"`
	One  []string `sep:"none"`
	Kind string   `enum:"a,b" default:"a"`
	Set  string   `default:"x\xff"`

	Source string   `arg:"" optional:""`
	Rest   []string `arg:"" optional:""`
}

func parse(t *testing.T, line ...string) grammar {
	t.Helper()
	var g grammar
	p, err := args.New(&g, kong.Name("test"), kong.Writers(io.Discard, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse(line); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestArgumentsAreKeptByteByByte(t *testing.T) {
	t.Parallel()
	var every []byte
	for b := 1; b < 256; b++ {
		every = append(every, byte(b))
	}
	all := string(every)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got := parse(t, "--name="+all, "--file", gbk, "--list", gbk+":\\:\xff\\"+gbk+":b", "--one", all, "--one", gbk, "--", all, gbk, "-\xff")
	want := grammar{
		Name: all, File: filepath.Join(wd, gbk), List: []string{gbk, ":\xff\\" + gbk, "b"}, One: []string{all, gbk}, Kind: "a", Set: "x\xff",
		Source: all, Rest: []string{gbk, "-\xff"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := parse(t, "-n\xff"+gbk); got.Name != "\xff"+gbk {
		t.Errorf("short flag: %q", got.Name)
	}
}

func TestTheEnvironmentIsKeptByteByByte(t *testing.T) {
	t.Setenv("ARGS_TEST_NAME", gbk)
	t.Setenv("ARGS_TEST_FILE", "/"+gbk)
	t.Setenv("ARGS_TEST_LIST", "/"+gbk+":/\xff")
	got := parse(t)
	want := grammar{Name: gbk, File: "/" + gbk, List: []string{"/" + gbk, "/\xff"}, Kind: "a", Set: "x\xff"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Lists are split as kong does where all is UTF-8.
func TestListsAreSplitAsBefore(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "a", "a:b", `a\:b:c`, ":", "a:", ":a", `a\`, `a\\:b`, `\x:y`, "ä:ö"} {
		got := parse(t, "--list="+in).List
		want := kong.SplitEscaped(in, ':')
		if d := cmp.Diff(strings.Join(want, "|"), strings.Join(got, "|")); d != "" || len(got) != len(want) {
			t.Errorf("%q: %q, before %q", in, got, want)
		}
	}
}

func TestErrorsAreThoseOfTheParser(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"--kind c":     "must be one of",
		"--name --one": "perhaps try",
		"--list":       "missing value",
	} {
		var g grammar
		p, err := args.New(&g, kong.Writers(io.Discard, io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Parse(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

func TestAGrammarThatMayChangeBytesIsRefused(t *testing.T) {
	t.Parallel()
	for name, g := range map[string]any{
		"map":        &struct{ A map[string]string }{},
		"named type": &struct{ A []pathname }{},
		"existingdir": &struct {
			A string `type:"existingdir"`
		}{},
		"in a command": &struct {
			C struct {
				A *string `arg:""`
			} `cmd:""`
		}{},
	} {
		if _, err := args.New(g); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

type pathname string
