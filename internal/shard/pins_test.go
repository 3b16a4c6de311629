package shard_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/shard"
)

// pinsOf encodes pins in blocks of 1<<shift bytes by itself: those of real files
// have 256 KiB, and the form in which they are stored stays readable.
func pinsOf(data []byte, shift int) []byte {
	b := binary.BigEndian.AppendUint64([]byte{1}, uint64(len(data)))
	b = append(b, byte(shift))
	for part := range slices.Chunk(data, 1<<shift) {
		sum := sha256.Sum256(part)
		b = append(b, sum[:16]...)
	}
	return b
}

// cutPinned is cut of a file that may have been changed.
func cutPinned(k kind, cfg shard.Config, path string, pins []byte, pos *shard.Position, n uint64) (out []*shard.Cut, err error) {
	c, err := shard.New(cfg, shard.File{Index: 5, Path: path, Phase: k.files, Pins: pins}, pos, n)
	if err != nil {
		return nil, err
	}
	for {
		x, err := c.Next()
		if errors.Is(err, io.EOF) {
			return out, c.Close()
		}
		if err != nil {
			return out, errors.Join(err, c.Close())
		}
		out = append(out, x)
	}
}

func refused(t *rapid.T, err error, path string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.Corrupt || e.Op != "read control file" || e.Path != path || e.Hint == "" ||
		!strings.Contains(err.Error(), "changed after it was admitted") {
		t.Fatalf("error %v", err)
	}
}

// What is cut is what was admitted: a change to a control file of any kind, from
// the block on in which cutting begins, is an error before it is in a shard.
func TestNoShardHasAnythingOfAChange(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		path := k.write(t, f.dir, k.blocks(t, f.recs))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 6).Draw(t, "cap"))
		const first = 10
		want := cut(t, k, cfg, path, nil, first)
		shift := rapid.IntRange(4, 12).Draw(t, "shift")
		pins := pinsOf(data, shift)
		var pos *shard.Position
		n, begin := uint64(first), int64(0)
		if i := rapid.IntRange(0, len(want)).Draw(t, "shards before"); i > 0 {
			pos = &want[i-1].After
			want, n, begin = want[i:], n+uint64(i), pos.Reader.Offset
		}
		begin &^= 1<<shift - 1
		prefix := func(got []*shard.Cut) {
			if len(got) > len(want) {
				t.Fatalf("%d shards, there are %d", len(got), len(want))
			}
			for i, x := range got {
				if !proto.Equal(x.Msg, want[i].Msg) || encode(t, x.After) != encode(t, want[i].After) {
					t.Fatalf("shard %d is\n%v\nnot\n%v", i, x.Msg, want[i].Msg)
				}
			}
		}
		put := func(b []byte) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
		i := rapid.IntRange(0, len(data)-1).Draw(t, "byte")
		edited := slices.Clone(data)
		edited[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "xor"))
		// Behind the last shard nothing is read any more.
		mustSay := int64(i) >= begin && len(want) > 0
		what := rapid.SampledFrom([]string{"nothing", "edited", "edited", "replaced", "appended", "truncated", "emptied", "removed"}).Draw(t, "what")
		switch what {
		case "edited":
			put(edited)
		case "replaced":
			real := path
			path += ".new"
			put(edited)
			if err := os.Rename(path, real); err != nil {
				t.Fatal(err)
			}
			path = real
		case "appended":
			put(append(slices.Clone(data), '\n'))
		case "truncated":
			put(data[:len(data)-1])
		case "emptied":
			put(nil)
		case "removed":
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		got, err := cutPinned(k, cfg, path, pins, pos, n)
		prefix(got)
		switch what {
		case "nothing":
			if err != nil || len(got) != len(want) {
				t.Fatalf("%d of %d shards, %v", len(got), len(want), err)
			}
		case "edited", "replaced":
			if err != nil {
				refused(t, err, path)
			} else if mustSay || len(got) != len(want) {
				t.Fatalf("byte %d was changed, cutting began at %d, and nothing was said", i, begin)
			}
		case "removed":
			if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), filepath.Base(path)) {
				t.Fatal(err)
			}
		default:
			if refused(t, err, path); len(got) > 0 {
				t.Fatalf("%d shards", len(got))
			}
		}
	})
}

// TestPinsOfAdmissionAreWhatTheCutterTakes joins the two ends.
func TestPinsOfAdmissionAreWhatTheCutterTakes(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		path := k.write(t, f.dir, k.blocks(t, f.recs))
		sum, err := controlfile.Check(path, shard.KindOf(k.files))
		if sum.Pins == nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b := sum.Pins.Encode(); string(b) != string(pinsOf(data, 18)) {
			t.Fatalf("pins %x", b)
		}
		cfg := f.config(k, anyLimits.Draw(t, "limits"), 0)
		if _, err := cutPinned(k, cfg, path, sum.Pins.Encode(), nil, 0); err != nil {
			t.Fatal(err)
		}
	})
	c, err := shard.New(shard.Config{}, shard.File{Path: "x", Pins: []byte{9}}, nil, 0)
	if !fault.Is(err, fault.Corrupt) {
		t.Error(c, err)
	}
}
