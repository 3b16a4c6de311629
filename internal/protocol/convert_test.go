package protocol_test

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// TestCountsAndTheirMessageHaveTheSameFigures finds a figure that was added on
// one side only.
func TestCountsAndTheirMessageHaveTheSameFigures(t *testing.T) {
	t.Parallel()
	fields := (*protocol.CountsMsg)(nil).ProtoReflect().Descriptor().Fields()
	figures := entry.Figures()
	if fields.Len() != len(figures) {
		t.Errorf("the message has %d fields, there are %d figures", fields.Len(), len(figures))
	}
	for _, f := range figures {
		fd := fields.ByNumber(protoreflect.FieldNumber(f.Number))
		if fd == nil || string(fd.Name()) != f.Name || fd.Kind() != protoreflect.Uint64Kind {
			t.Errorf("figure %d, %s: the message has %v", f.Number, f.Name, fd)
		}
	}
}

func TestCountsSurviveTheWire(t *testing.T) {
	t.Parallel()
	var c entry.Counts
	v := reflect.ValueOf(&c).Elem()
	for i := range v.NumField() {
		v.Field(i).SetUint(uint64(i + 1))
	}
	m := protocol.CountsToWire(&c)
	if got := protocol.CountsFromWire(m); got != c {
		t.Errorf("sent %+v, received %+v", c, got)
	}
	// By name, against a mistake that both directions make.
	if m.GetDirsCopied() != c.DirsCopied || m.GetFilesDiffer() != c.FilesDiffer || m.GetHoleBytes() != c.HoleBytes || m.GetDirsDeleted() != c.DirsDeleted {
		t.Errorf("counts %+v became %v", c, m)
	}
	if got := protocol.CountsFromWire(nil); got != (entry.Counts{}) {
		t.Errorf("no message: %+v", got)
	}
}

func TestMetadataSurvivesTheWire(t *testing.T) {
	t.Parallel()
	bytes := rapid.SliceOfN(rapid.Byte(), 0, 9)
	text := rapid.Custom(func(t *rapid.T) string { return string(bytes.Draw(t, "text")) })
	rapid.Check(t, func(t *rapid.T) {
		m := &entry.Meta{}
		v := reflect.ValueOf(m).Elem()
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			switch f := v.Field(i); f.Kind() {
			case reflect.Uint32:
				f.SetUint(uint64(rapid.Uint32().Draw(t, name)))
			case reflect.Uint64:
				f.SetUint(rapid.Uint64().Draw(t, name))
			case reflect.Int64:
				f.SetInt(rapid.Int64().Draw(t, name))
			case reflect.Bool:
				f.SetBool(rapid.Bool().Draw(t, name))
			case reflect.String:
				f.SetString(text.Draw(t, name))
			case reflect.Slice:
			default:
				t.Fatalf("field %s: the test gives it no value", name)
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "n") {
			m.Xattrs = append(m.Xattrs, entry.Xattr{Name: text.Draw(t, "name"), Value: bytes.Draw(t, "value")})
			m.Sparse = append(m.Sparse, entry.Extent{Offset: rapid.Uint64().Draw(t, "offset"), Length: rapid.Uint64().Draw(t, "length")})
		}
		if d := cmp.Diff(m, protocol.MetaFromWire(protocol.MetaToWire(m))); d != "" {
			t.Error(d)
		}
	})
	if protocol.MetaToWire(nil) != nil || protocol.MetaFromWire(nil) != nil {
		t.Error("no metadata became some")
	}
}

func BenchmarkCountsToWire(b *testing.B) {
	c := entry.Counts{DirsCopied: 1, FilesCopied: 2, BytesCopied: 3, FilesFailed: 4}
	b.ReportAllocs()
	for b.Loop() {
		protocol.CountsToWire(&c)
	}
}

func TestTheLeadersStateSurvivesTheHeader(t *testing.T) {
	t.Parallel()
	for l := range entry.Leader(10) {
		h := map[string][]string{}
		protocol.LeaderToHeader(h, l)
		if got := protocol.LeaderFromHeader(h); got != l || len(h) > 0 != (l != entry.LeaderDone) {
			t.Errorf("%v became %v in %v", l, got, h)
		}
	}
	for _, text := range []string{"", "x", "-1", "256", "99999999999999999999"} {
		if got := protocol.LeaderFromHeader(map[string][]string{protocol.HeaderLeader: {text}}); got != entry.LeaderFailed {
			t.Errorf("%q is %v", text, got)
		}
	}
	if got := protocol.LeaderFromHeader(nil); got != entry.LeaderDone {
		t.Errorf("no header is %v", got)
	}
}
