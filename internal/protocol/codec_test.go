package protocol_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

var update = flag.Bool("update", false, "write the golden envelopes of the current version anew")

func TestWhatIsEncodedIsDecoded(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				want := k.gen(t)
				b, err := protocol.Encode(k.t, want)
				if err != nil {
					t.Fatal(err)
				}
				got := k.zero()
				if err := protocol.Decode(b, k.t, got); err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(want, got) {
					t.Fatalf("sent %v, received %v", want, got)
				}
			})
		})
	}
}

func TestAChangedByteIsNoticed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom(kinds).Draw(t, "kind")
		want := k.gen(t)
		b, err := protocol.Encode(k.t, want)
		if err != nil {
			t.Fatal(err)
		}
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		got := k.zero()
		err = protocol.Decode(b, k.t, got)
		if err == nil && !proto.Equal(want, got) {
			t.Fatalf("byte %d changed: received another message without an error", i)
		}
		if err != nil && !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Invalid) {
			t.Fatalf("kind %v of %v", fault.KindOf(err), err)
		}
	})
}

func TestAMessageOfAnotherTypeIsInvalid(t *testing.T) {
	t.Parallel()
	b, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{Job: "01j"})
	if err != nil {
		t.Fatal(err)
	}
	if err := protocol.Decode(b, protocol.TypeShard, &protocol.ShardMsg{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("error %v", err)
	}
}

func TestTextThatIsNotUTF8DoesNotStopAMessage(t *testing.T) {
	t.Parallel()
	sent := &protocol.FailuresMsg{Job: "01j", Failures: []*protocol.FailureMsg{{Path: []byte("a\xff"), Reason: "open a\xff: no", Op: "copy"}}}
	b, err := protocol.Encode(protocol.TypeFailures, sent)
	if err != nil {
		t.Fatal(err)
	}
	var got protocol.FailuresMsg
	if err := protocol.Decode(b, protocol.TypeFailures, &got); err != nil {
		t.Fatal(err)
	}
	if f := got.GetFailures()[0]; f.GetReason() != "open a\uFFFD: no" || string(f.GetPath()) != "a\xff" {
		t.Errorf("received %q, %q", f.GetReason(), f.GetPath())
	}
	if sent.GetFailures()[0].GetReason() != "open a\xff: no" {
		t.Error("the sender's message was changed")
	}
}

// fixed are the messages of the golden envelopes. They never change: a new field
// gets a new version with its own messages beside the old.
func fixed() map[string]proto.Message {
	shard := &protocol.ShardMsg{
		Job: "01jz0000000000000000000000", Phase: 1, N: 7, File: 3, DataBytes: 4096, NeedsFrom: 2, NeedsTo: 3,
		Options: &protocol.OptionsMsg{Source: []byte("/src"), Destination: []byte("/dst"), Trim: []byte("home"), WriteMeta: true, Restore: true, Replace: 1, SkipVanished: true, DeleteUnchecked: true, Sync: 2, Threads: 8, Memory: 1 << 20},
		Dirs:    [][]byte{{}, []byte("a,b"), []byte("n\xff\nl")},
	}
	for i := range 12 {
		shard.Entries = append(shard.Entries, &protocol.EntryMsg{
			Op: uint32(i % 8), Dir: uint32(i % 3), Name: fmt.Appendf(nil, "file-%d\xfe", i), Mode: "nn", Group: uint64(i / 4), LeaderOnly: i == 4,
			IsDir: i%2 == 0, Reject: "why", Kind: 7, Line: uint64(20 + i),
			Meta: &protocol.MetaMsg{
				Mode: 0o100644, Nlink: 2, Uid: 1, Gid: 2, Inode: 3, Size: 4096, Rdev: 5, Atime: -6, Mtime: 7, Ctime: 8, Btime: -9, HasX: true,
				AccessAcl: []byte("user::rw-\n"), DefaultAcl: []byte("d"), Symlink: []byte("to\xff"), HasSymlink: true, Sparse: []uint64{0, 10, 20, 30},
				Xattrs: []*protocol.XattrMsg{{Name: []byte("user.a"), Value: []byte{1, 0, 2}}},
			},
		})
	}
	return map[string]proto.Message{
		"shard": shard,
		"result": &protocol.ResultMsg{
			Job: "01jz0000000000000000000000", Phase: 3, N: 9, Sequence: 11, Delivery: 2, Worker: "w1", Failures: 1, Nanos: 12, Abandoned: true, Entries: 13, FailedEntries: []byte{5},
			Counts:   &protocol.CountsMsg{DirsCopied: 1, FilesCopied: 2, BytesCopied: 3, DirsFailed: 4, FilesFailed: 5, Deleted: 6, Links: 7, Skipped: 8, ChangedWhileRead: 9, ChangedSinceScan: 10, DirsFinished: 11, DirsTouched: 12, HoleBytes: 13, ReflinkBytes: 14},
			Warnings: []*protocol.WarningMsg{{Kind: "acl", Count: 2, Example: []byte("a\xff")}},
		},
		"failures": &protocol.FailuresMsg{
			Job: "01jz0000000000000000000000", Phase: 1, N: 9, Sequence: 11, Delivery: 2, Worker: "w1",
			Failures: []*protocol.FailureMsg{{File: 1, Line: 2, Path: []byte("p\xff"), Op: "copy", Errno: 13, Kind: 5, Reason: "r", IsDir: true}},
		},
		"checkpoint": &protocol.CheckpointMsg{
			Version: 1, Job: "01jz0000000000000000000000", Sequence: 11, Figures: []byte(`{"stats":{}}`),
			Phases: []*protocol.BitsMsg{{Phase: 1, Chunks: []uint32{0, 300}, Bits: []byte{1, 2, 3}}},
		},
	}
}

// TestEnvelopesOfAllVersionsAreDecoded holds the bytes of the wire: what an
// older part of the cluster has stored stays readable.
func TestEnvelopesOfAllVersionsAreDecoded(t *testing.T) {
	t.Parallel()
	const current = "testdata/v1"
	msgs := fixed()
	for _, k := range kinds {
		path := filepath.Join(current, k.name+".bin")
		if *update {
			b, err := protocol.Encode(k.t, msgs[k.name])
			if err == nil {
				err = os.WriteFile(path, b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := k.zero()
		if err := protocol.Decode(b, k.t, got); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if !proto.Equal(got, msgs[k.name]) {
			t.Errorf("%s: got %v, want %v", path, got, msgs[k.name])
		}
		if len(got.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s has fields that are no longer known", path)
		}
	}
	// Without compression the envelope is ours to the last byte.
	b, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{Job: "j", N: 5})
	if want := "FSB1\x02\x00\x00\x00\x05\x00\x00\x00d9M\xeb\x0a\x01j\x18\x05"; err != nil || string(b) != want {
		t.Errorf("got %q, want %q, error %v", b, want, err)
	}
}

// envelope wraps a payload in a header that claims size bytes with sum raw's.
func envelope(kind, flags uint8, size int, crc uint32, payload []byte) []byte {
	b := []byte{'F', 'S', 'B', '1', kind, flags, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, crc)
	return append(b, payload...)
}

func sum(raw []byte) uint32 { return crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli)) }

// frame is a zstd frame of RLE blocks, each of them 128 KiB from 4 bytes. With
// content < 0 it does not say how much it holds.
func frame(content int64, blocks int, single bool) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd}
	head := byte(0)
	if content >= 0 {
		head = 2 << 6
	}
	if single {
		head |= 1 << 5
	}
	b = append(b, head)
	if !single {
		b = append(b, 17<<3) // a window of 128 MiB
	}
	if content >= 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(content))
	}
	for i := range blocks {
		h := uint32(1)<<1 | (128<<10)<<3
		if i == blocks-1 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

// bombs are messages of at most 100 bytes that claim or hold as much as they can.
func bombs(t testing.TB) map[string][]byte {
	t.Helper()
	skip := []byte{0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0x7f}
	empty := []byte{0x28, 0xb5, 0x2f, 0xfd, 1 << 5, 0, 1, 0, 0} // says 0 bytes, holds 0
	zeros := make([]byte, 128<<10)
	const half = 84 * 32
	out := map[string][]byte{
		"raw claims 4 GiB":              envelope(1, 0, 1<<32-1, 0, zeros[:84]),
		"claims 128 MiB":                envelope(1, 1, 128<<20, 0, frame(128<<20, 18, true)),
		"claims 4 GiB":                  envelope(1, 1, 1<<32-1, 0, frame(1<<32-1, 18, true)),
		"frame says 4 GiB, we say less": envelope(1, 1, half, 0, frame(1<<32-1, 18, true)),
		"frame says little, holds 2 MiB": envelope(1, 1, half, sum(zeros[:half]),
			frame(half, 18, true)),
		"window of 128 MiB": envelope(1, 1, half, sum(zeros[:half]),
			frame(half, 17, false)),
		"frame says nothing":      envelope(1, 1, half, 0, frame(-1, 19, false)),
		"second frame":            envelope(1, 1, 0, 0, append(bytes.Clone(empty), frame(-1, 15, false)...)),
		"second frame says 4 GiB": envelope(1, 1, 0, 0, append(bytes.Clone(empty), frame(1<<32-1, 15, true)...)),
		"many frames":             envelope(1, 1, 0, 0, bytes.Repeat(empty, 9)),
		"skippable frame first":   envelope(1, 1, half, 0, append(bytes.Clone(skip), frame(half, 16, true)...)),
		"skippable frame last":    envelope(1, 1, 0, 0, append(bytes.Clone(empty), skip...)),
	}
	// Right in every respect, and as expensive to decode as a message can be.
	enc, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	for name, unit := range map[string]string{
		"empty entries":                 ":\x00",
		"entries with empty records":    ":\x02*\x00",
		"entries with empty attributes": ":\x12*\x10" + strings.Repeat("z\x00", 8),
		"empty directories":             "2\x00",
		"empty extents":                 ":\x7f*\x7d\x92\x01\x7a" + strings.Repeat("\x00", 0x7a),
	} {
		for n := 84 * 64 / len(unit); n > 0; n-- {
			raw := []byte(strings.Repeat(unit, n))
			z := enc.EncodeAll(raw, nil)
			if len(z) <= 84 && len(raw) <= 64*len(z) {
				out[name] = envelope(1, 1, len(raw), sum(raw), z)
				break
			}
		}
		if out[name] == nil {
			t.Fatalf("%s: no bomb can be made", name)
		}
	}
	return out
}

// allocated returns how many bytes f allocates. Nothing else may run meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// warm makes the coders, which are kept.
func warm(t testing.TB) {
	t.Helper()
	for range 4 {
		m := &protocol.ShardMsg{Job: strings.Repeat("abcdefgh", 100)}
		b, err := protocol.Encode(protocol.TypeShard, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := protocol.Decode(b, protocol.TypeShard, m); err != nil {
			t.Fatal(err)
		}
	}
}

// Not parallel: memory is measured.
func TestAHundredBytesNeverCostAMebibyte(t *testing.T) { //nolint:paralleltest // see above
	warm(t)
	costly := uint64(0)
	for name, b := range bombs(t) {
		if len(b) > 100 {
			t.Errorf("%s has %d bytes", name, len(b))
		}
		for _, k := range kinds {
			b[4] = k.t
			var err error
			n := allocated(func() { err = protocol.Decode(b, k.t, k.zero()) })
			if n > 1<<20 {
				t.Errorf("%s as %s: %d bytes allocated, error %v", name, k.name, n, err)
			}
			costly = max(costly, n)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, b := range bombs(t) {
		for range 200 {
			c := bytes.Clone(b)
			for range 1 + r.IntN(4) {
				c[16+r.IntN(len(c)-16)] = byte(r.Uint32())
			}
			if n := allocated(func() { _ = protocol.Decode(c, protocol.TypeShard, &protocol.ShardMsg{}) }); n > 1<<20 {
				t.Fatalf("%x: %d bytes allocated", c, n)
			}
		}
	}
	t.Logf("at most %d bytes", costly)
}

func TestRepetitiveMessagesAreStillDecoded(t *testing.T) {
	t.Parallel()
	// Beyond the ratio that a receiver accepts a message is sent as it is.
	want := &protocol.ShardMsg{Job: strings.Repeat("a", 1<<20)}
	b, err := protocol.Encode(protocol.TypeShard, want)
	if err != nil {
		t.Fatal(err)
	}
	var got protocol.ShardMsg
	if err := protocol.Decode(b, protocol.TypeShard, &got); err != nil || !proto.Equal(want, &got) {
		t.Errorf("error %v", err)
	}
}

func fuzz(f *testing.F, name string) {
	for _, k := range kinds {
		if k.name != name {
			continue
		}
		golden, err := os.ReadFile(filepath.Join("testdata/v1", name+".bin"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(golden)
		for _, b := range bombs(f) {
			b[4] = k.t
			f.Add(b)
		}
		b, err := protocol.Encode(k.t, k.zero())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		warm(f)
		f.Fuzz(func(t *testing.T, b []byte) {
			m := k.zero()
			var err error
			n := allocated(func() { err = protocol.Decode(b, k.t, m) })
			// The bound of 100 bytes, carried on.
			if limit := uint64(len(b)+100) << 20 / 100; n > limit {
				t.Fatalf("%d bytes cost %d", len(b), n)
			}
			if err != nil {
				return
			}
			again, err := protocol.Encode(k.t, m)
			if err != nil {
				t.Fatal(err)
			}
			got := k.zero()
			if err := protocol.Decode(again, k.t, got); err != nil || !proto.Equal(m, got) {
				t.Fatalf("encoded again it is another message, error %v", err)
			}
		})
	}
}

func FuzzShard(f *testing.F)    { fuzz(f, "shard") }
func FuzzResult(f *testing.F)   { fuzz(f, "result") }
func FuzzFailures(f *testing.F) { fuzz(f, "failures") }

func FuzzCheckpoint(f *testing.F) { fuzz(f, "checkpoint") }
