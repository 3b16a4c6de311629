// Package rawjson is JSON that keeps every byte of strings. All JSON of this module goes
// through it.
//
// Paths are bytes, and JSON's strings are Unicode: encoding/json puts U+FFFD in place of
// what is not UTF-8, and what is read back is another path. Here such a string is written
// in the same, readable way, and once more beside it in base64:
//
//	{"path": "\ufffd\ufffd", "path_bytes": "sbg="}
//
// A list of strings has a list beside it, with null for those that are UTF-8:
//
//	{"allow": ["/a", "/\ufffd"], "allow_bytes": [null, "L7g="]}
//
// On reading, the bytes count. JSON in which all is UTF-8 is exactly what encoding/json
// makes of it. Strings without a name, as in maps, are names and texts; of them only the
// readable form is kept.
package rawjson

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// suffix is what the name of the bytes has besides that of the string.
const suffix = "_bytes"

// Raw is a value that is JSON already.
type Raw = json.RawMessage

// Readable returns s with U+FFFD for each byte that is not UTF-8.
func Readable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune { return r }, s)
}

// Exact returns the bytes of s where it is not UTF-8, and otherwise nil.
func Exact(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// Marshal is json.Marshal that keeps bytes.
func Marshal(v any) ([]byte, error) {
	out, err := json.Marshal(v)
	if err == nil && bytes.Contains(out, replaced) {
		out, err = encode(v)
	}
	return out, err
}

// replaced is what encoding/json writes for a byte that is not UTF-8. It writes U+FFFD
// itself as it is.
var replaced = []byte(`\ufffd`)

// MarshalIndent is json.MarshalIndent that keeps bytes.
func MarshalIndent(v any, prefix, indent string) ([]byte, error) {
	out, err := Marshal(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = json.Indent(&b, out, prefix, indent)
	return b.Bytes(), err
}

// Write writes v on one line, or indented where indent is not "", with a newline.
func Write(w io.Writer, v any, indent string) error {
	out, err := Marshal(v)
	if err == nil && indent != "" {
		out, err = MarshalIndent(Raw(out), "", indent)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(append(out, '\n'))
	return err //nolint:wrapcheck // the writer names itself
}

// Unmarshal is json.Unmarshal that takes bytes from where Marshal puts them.
func Unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil && hasBytes(data) {
		err = restoreIn(data, reflect.ValueOf(v))
	}
	return err
}

// hasBytes reports whether a name that ends as those of bytes do has a value that could
// be some. Figures have such names too.
func hasBytes(data []byte) bool {
	end := []byte(suffix + `"`)
	for {
		i := bytes.Index(data, end)
		if i < 0 {
			return false
		}
		data = data[i+len(end):]
		rest, ok := bytes.CutPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte{':'})
		if rest = bytes.TrimLeft(rest, " \t\r\n"); ok && len(rest) > 0 && (rest[0] == '"' || rest[0] == '[') {
			return true
		}
	}
}
