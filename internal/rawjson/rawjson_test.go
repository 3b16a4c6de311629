package rawjson_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/rawjson"
)

type word string

type raw string

func (r raw) MarshalText() ([]byte, error) { return []byte(strings.ToUpper(string(r))), nil }

func (r *raw) UnmarshalText(b []byte) error {
	*r = raw(strings.ToLower(string(b)))
	return nil
}

type inner struct {
	Path  string   `json:"path"`
	Names []string `json:"names,omitempty"`
}

type custom struct{ a string }

func (c custom) MarshalJSON() ([]byte, error) { return []byte(`{"a":"<\ufffd>"}`), nil }

type embedded struct {
	In string `json:"in,omitempty"`
}

type everything struct {
	embedded
	Path    string            `json:"path"`
	Word    word              `json:"word,omitempty"`
	Plain   string            // named as the field
	Pointer *string           `json:"pointer,omitempty"`
	List    []word            `json:"list"`
	Inner   inner             `json:"inner"`
	Inners  []inner           `json:"inners,omitempty"`
	Next    *everything       `json:"next,omitempty"`
	ByKey   map[string]inner  `json:"by_key,omitempty"`
	ByNum   map[int]*inner    `json:"by_num,omitempty"`
	Text    map[string]string `json:"text,omitempty"`
	Any     any               `json:"any,omitempty"`
	Bytes   []byte            `json:"bytes"`
	Size    uint64            `json:"size_bytes"`
	Float   float64           `json:"float"`
	Time    time.Time         `json:"time,omitzero"`
	Own     raw               `json:"own"`
	Raw     rawjson.Raw       `json:"raw,omitempty"`
	Array   [2]inner          `json:"array"`
	Empty   struct{}          `json:"empty,omitzero"`
	Hidden  string            `json:"-"`
}

const gbk = "\xb1\xb8\xb7\xdd" // a name that is not UTF-8

func sample(s string) everything {
	return everything{
		embedded: embedded{s}, Path: s, Word: word(s), Plain: s, Pointer: &s, List: []word{"a", word(s), ""},
		Inner: inner{Path: s, Names: []string{s, "b"}}, Inners: []inner{{Path: "<&>"}, {Path: s}},
		Next:  &everything{Path: s, Bytes: []byte(s)},
		ByKey: map[string]inner{"a": {Path: "x"}, "b": {Path: s}}, ByNum: map[int]*inner{3: {Path: s}, 1: nil},
		Text: map[string]string{"k": "v", "z_bytes": "not base64"}, Bytes: []byte(s), Size: 7, Float: 1e30, Own: "own",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Raw: rawjson.Raw(`{"x":"\ufffd"}`),
		Array: [2]inner{{Path: s}, {Path: "\ufffd"}},
	}
}

var compare = cmp.AllowUnexported(everything{}, custom{})

func TestWhatIsNotUTF8IsReadExactly(t *testing.T) {
	t.Parallel()
	for _, s := range []string{gbk, "\xff", "a\xffb\ufffdc", "\\ufffd\xff", "utf-8 äß", "\ufffd", "", "\x00\x01\"<>&\u2028", "\xed\xa0\x80"} {
		want := sample(s)
		out, err := rawjson.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got everything
		if err := rawjson.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if d := cmp.Diff(want, got, compare); d != "" {
			t.Errorf("%q: %s\n%s", s, d, out)
		}
		indented, err := rawjson.MarshalIndent(want, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = everything{}
		if err := rawjson.Unmarshal(indented, &got); err != nil {
			t.Fatal(err)
		}
		want.Raw, got.Raw = nil, nil // indented too
		if d := cmp.Diff(want, got, compare); d != "" {
			t.Errorf("indented, %q: %s", s, d)
		}
	}
}

// Without what stands beside, all is as encoding/json writes it.
func TestTheReadableFormIsThatOfJSON(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"plain", "\ufffd ä <&>", gbk, ""} {
		v := sample(s)
		v.Any = []any{s, map[string]any{"k": s}, &inner{Path: s}, custom{"x"}, nil, 1}
		out, err := rawjson.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if s != gbk {
			if !bytes.Equal(out, want) {
				t.Errorf("%q:\n%s\nwant\n%s", s, out, want)
			}
			continue
		}
		var a, b any
		if err := json.Unmarshal(out, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(want, &b); err != nil {
			t.Fatal(err)
		}
		strip(a)
		strip(b)
		if d := cmp.Diff(b, a); d != "" {
			t.Error(d)
		}
	}
}

// strip removes what stands beside strings.
func strip(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			if strings.HasSuffix(k, "_bytes") && k != "size_bytes" {
				delete(v, k)
				continue
			}
			strip(v[k])
		}
	case []any:
		for _, x := range v {
			strip(x)
		}
	}
}

func TestTheFormOfWhatStandsBeside(t *testing.T) {
	t.Parallel()
	out, err := rawjson.Marshal(inner{Path: "/" + gbk, Names: []string{"a", "\xff"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"path":"/\ufffd\ufffd\ufffd\ufffd","path_bytes":"L7G4t90=","names":["a","\ufffd"],"names_bytes":[null,"/w=="]}`
	if string(out) != want {
		t.Errorf("%s, want %s", out, want)
	}
	var b bytes.Buffer
	if err := rawjson.Write(&b, inner{Path: "\xff"}, " "); err != nil {
		t.Fatal(err)
	}
	if want := "{\n \"path\": \"\\ufffd\",\n \"path_bytes\": \"/w==\"\n}\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if r := rawjson.Readable("a\xff\xfe\ufffdä"); r != "a\ufffd\ufffd\ufffdä" {
		t.Errorf("%q", r)
	}
}

func TestBytesAloneAreEnough(t *testing.T) {
	t.Parallel()
	var v inner
	if err := rawjson.Unmarshal([]byte(`{"path_bytes" : "L7G4t90=", "names":["a","b"], "names_bytes":[null,"/w=="]}`), &v); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(inner{Path: "/" + gbk, Names: []string{"a", "\xff"}}, v); d != "" {
		t.Error(d)
	}
	for _, in := range []string{`{"path_bytes":"?"}`, `{"names":["a"],"names_bytes":["/w==","/w=="]}`, `{"path_bytes":["/w=="]}`, `{"names":["a"],"names_bytes":"/w=="}`} {
		if err := rawjson.Unmarshal([]byte(in), &v); err == nil {
			t.Errorf("%s: not refused", in)
		}
	}
}

func FuzzStringsAreReadExactly(f *testing.F) {
	f.Add("a", gbk)
	f.Fuzz(func(t *testing.T, a, b string) {
		want := inner{Path: a, Names: []string{b, a}}
		out, err := rawjson.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got inner
		if err := rawjson.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", out, d)
		}
	})
}
