package protocol_test

import (
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// raw draws bytes as names have them: any but NUL and slash, valid UTF-8 or not.
func raw(t *rapid.T, label string) []byte {
	return rapid.SliceOfN(rapid.Byte().Filter(func(b byte) bool { return b != 0 && b != '/' }), 1, 40).Draw(t, label)
}

func genMeta(t *rapid.T) *protocol.MetaMsg {
	m := &protocol.MetaMsg{
		Mode: rapid.Uint32().Draw(t, "mode"), Uid: rapid.Uint32().Draw(t, "uid"), Inode: rapid.Uint64().Draw(t, "inode"),
		Size: rapid.Uint64().Draw(t, "size"), Mtime: rapid.Int64().Draw(t, "mtime"), HasX: rapid.Bool().Draw(t, "has_x"),
		Sparse: rapid.SliceOfN(rapid.Uint64(), 0, 6).Draw(t, "sparse"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "xattrs") {
		m.Xattrs = append(m.Xattrs, &protocol.XattrMsg{Name: raw(t, "xattr"), Value: raw(t, "value")})
	}
	return m
}

func genShard(t *rapid.T) *protocol.ShardMsg {
	s := &protocol.ShardMsg{
		Job: "01j", Phase: rapid.Uint32Range(1, 7).Draw(t, "phase"), N: rapid.Uint64().Draw(t, "n"), File: rapid.Uint32().Draw(t, "file"),
		Options:   &protocol.OptionsMsg{Source: raw(t, "source"), Destination: raw(t, "destination"), Trim: raw(t, "trim"), WriteMeta: true, Memory: -1},
		NeedsFrom: rapid.Uint64().Draw(t, "from"), NeedsTo: rapid.Uint64().Draw(t, "to"), DataBytes: rapid.Uint64().Draw(t, "data"),
		Dirs: [][]byte{nil},
	}
	for range rapid.IntRange(0, 4).Draw(t, "dirs") {
		s.Dirs = append(s.Dirs, raw(t, "dir"))
	}
	for range rapid.IntRange(0, 30).Draw(t, "entries") {
		e := &protocol.EntryMsg{
			Op: rapid.Uint32Range(0, 7).Draw(t, "op"), Dir: uint32(rapid.IntRange(0, len(s.Dirs)-1).Draw(t, "dir")), Name: raw(t, "name"),
			Group: rapid.Uint64Range(0, 3).Draw(t, "group"), IsDir: rapid.Bool().Draw(t, "is_dir"),
			LeaderOnly: rapid.Bool().Draw(t, "leader_only"), Line: rapid.Uint64().Draw(t, "line"),
		}
		if rapid.Bool().Draw(t, "has_meta") {
			e.Meta = genMeta(t)
		}
		s.Entries = append(s.Entries, e)
	}
	return s
}

func genResult(t *rapid.T) *protocol.ResultMsg {
	r := &protocol.ResultMsg{
		Job: "01j", Phase: rapid.Uint32Range(1, 7).Draw(t, "phase"), N: rapid.Uint64().Draw(t, "n"), Sequence: rapid.Uint64().Draw(t, "seq"),
		Delivery: rapid.Uint32().Draw(t, "delivery"), Worker: "w1", Failures: rapid.Uint64().Draw(t, "failures"), Nanos: rapid.Int64().Draw(t, "nanos"),
		Counts: &protocol.CountsMsg{FilesCopied: rapid.Uint64().Draw(t, "files"), BytesCopied: rapid.Uint64().Draw(t, "bytes")},
	}
	for range rapid.IntRange(0, 3).Draw(t, "warnings") {
		r.Warnings = append(r.Warnings, &protocol.WarningMsg{Kind: "acl", Count: rapid.Uint64().Draw(t, "count"), Example: raw(t, "example")})
	}
	return r
}

func genFailures(t *rapid.T) *protocol.FailuresMsg {
	f := &protocol.FailuresMsg{Job: "01j", Phase: 1, N: rapid.Uint64().Draw(t, "n"), Worker: "w1"}
	for range rapid.IntRange(0, 20).Draw(t, "failures") {
		f.Failures = append(f.Failures, &protocol.FailureMsg{
			Line: rapid.Uint64().Draw(t, "line"), Path: raw(t, "path"), Op: "copy", Errno: rapid.Int32().Draw(t, "errno"),
			Kind: rapid.Uint32Range(0, 12).Draw(t, "kind"), Reason: rapid.String().Draw(t, "reason"),
		})
	}
	return f
}

func genCheckpoint(t *rapid.T) *protocol.CheckpointMsg {
	c := &protocol.CheckpointMsg{Version: 1, Job: "01j", Sequence: rapid.Uint64().Draw(t, "seq"), Figures: raw(t, "figures")}
	for range rapid.IntRange(0, 3).Draw(t, "phases") {
		c.Phases = append(c.Phases, &protocol.BitsMsg{Phase: rapid.Uint32Range(1, 7).Draw(t, "phase"), Chunks: rapid.SliceOfN(rapid.Uint32(), 0, 4).Draw(t, "chunks"), Bits: raw(t, "bits")})
	}
	return c
}

// kinds are the messages that travel in envelopes.
var kinds = []struct {
	name string
	t    uint8
	zero func() proto.Message
	gen  func(*rapid.T) proto.Message
}{
	{"shard", protocol.TypeShard, func() proto.Message { return &protocol.ShardMsg{} }, func(t *rapid.T) proto.Message { return genShard(t) }},
	{"result", protocol.TypeResult, func() proto.Message { return &protocol.ResultMsg{} }, func(t *rapid.T) proto.Message { return genResult(t) }},
	{"failures", protocol.TypeFailures, func() proto.Message { return &protocol.FailuresMsg{} }, func(t *rapid.T) proto.Message { return genFailures(t) }},
	{"checkpoint", protocol.TypeCheckpoint, func() proto.Message { return &protocol.CheckpointMsg{} }, func(t *rapid.T) proto.Message { return genCheckpoint(t) }},
}
