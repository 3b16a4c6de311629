package protocol_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Every string of every message travels byte by byte: any may be a path, or hold one.
func TestMessagesKeepBytesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	for _, message := range []any{
		protocol.JobRecord{}, protocol.FileRecord{}, protocol.Heartbeat{}, protocol.HeartbeatReply{}, protocol.AttemptEvent{},
		protocol.RootsClaim{}, protocol.RootsReply{}, protocol.JobView{}, protocol.WorkersReply{}, protocol.JobsReply{}, protocol.FailuresReply{},
		protocol.OutcomesReply{}, protocol.SubmitRequest{}, protocol.SubmitReply{}, protocol.AppendRequest{}, protocol.ErrorReply{},
	} {
		kind := reflect.TypeOf(message)
		t.Run(kind.Name(), func(t *testing.T) {
			t.Parallel()
			for _, s := range []string{"plain", "/\xb1\xb8\xb7\xdd", "\xff\ufffd"} {
				want := reflect.New(kind)
				fill(want.Elem(), s)
				out, err := rawjson.Marshal(want.Interface())
				if err != nil {
					t.Fatal(err)
				}
				got := reflect.New(kind)
				if err := rawjson.Unmarshal(out, got.Interface()); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if d := cmp.Diff(want.Interface(), got.Interface()); d != "" {
					t.Errorf("%q: %s", s, d)
				}
				if same, err := json.Marshal(want.Interface()); s == "plain" && (err != nil || string(same) != string(out)) {
					t.Errorf("what is UTF-8 is not what it was:\n%s\n%s", out, same)
				}
			}
		})
	}
}

// A field of text has to be UTF-8, or its message is changed or refused. These are words,
// ids and texts for people; a path or a name of an entry is of the type bytes.
func TestNoFieldOfTextIsAPath(t *testing.T) {
	t.Parallel()
	text := []string{"job", "worker", "mode", "reject", "kind", "op", "reason"}
	messages := (*protocol.ShardMsg)(nil).ProtoReflect().Descriptor().ParentFile().Messages()
	for i := range messages.Len() {
		fields := messages.Get(i).Fields()
		for j := range fields.Len() {
			if f := fields.Get(j); f.Kind() == protoreflect.StringKind && !slices.Contains(text, string(f.Name())) {
				t.Errorf("%s is text: make it bytes if it can be a path, or else list it here", f.FullName())
			}
		}
	}
}

// fill sets all that v has, each string to s but those of maps: they are names and texts.
func fill(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), s)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), s)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, "key")
		if value.Kind() == reflect.String {
			s = "text"
		}
		fill(value, s)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1e9, 5).UTC()))
			return
		}
		for _, f := range v.Fields() {
			fill(f, s)
		}
	default:
		panic(v.Type().String())
	}
}
