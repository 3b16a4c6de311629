package shard_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
)

// fixture is what the cases of one test share.
type fixture struct {
	recs *records
	meta *controlfile.MetaDir
	dir  string
}

func setup(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{recs: makeRecords(t), dir: t.TempDir()}
	f.meta = controlfile.OpenMetaDir(f.recs.dir)
	t.Cleanup(func() {
		if err := f.meta.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) config(k kind, l protocol.Limits, groupCap int) shard.Config {
	cfg := shard.Config{
		Job: "j", Phase: k.phase, Limits: l, GroupCap: groupCap,
		Options: &protocol.OptionsMsg{Source: []byte("/source"), Destination: []byte("/destination"), WriteMeta: true, DeleteEmpty: k.empty},
	}
	if k.meta {
		cfg.Meta = f.meta
	}
	return cfg
}

var anyLimits = rapid.Custom(func(t *rapid.T) protocol.Limits {
	return protocol.Limits{
		Version: 1, Entries: rapid.SampledFrom([]int{1, 2, 3, 7, 2000}).Draw(t, "entries"),
		RawBytes:  rapid.SampledFrom([]int{1, 300, 900, 2500, 1 << 20}).Draw(t, "raw"),
		DataBytes: rapid.SampledFrom([]uint64{1, 1500, 80_000, 1 << 40}).Draw(t, "data"),
	}
})

const wide = 1 << 30

var noLimits = protocol.Limits{Version: 1, Entries: wide, RawBytes: wide, DataBytes: 1 << 60}

// cut cuts the rest of a file from pos.
func cut(t fataler, k kind, cfg shard.Config, path string, pos *shard.Position, n uint64) []*shard.Cut {
	t.Helper()
	c, err := shard.New(cfg, shard.File{Index: 5, Path: path, Phase: k.files}, pos, n)
	if err != nil {
		t.Fatal(err)
	}
	var out []*shard.Cut
	for {
		x, err := c.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
	if x, err := c.Next(); !errors.Is(err, io.EOF) {
		t.Fatal("after the end:", x, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

func describe(s *protocol.ShardMsg, e *protocol.EntryMsg, l line) string {
	got := line{op: entry.Op(e.GetOp()), isDir: e.GetIsDir()}
	if got.op != entry.OpRejected {
		got.path, got.mode, got.meta = string(protocol.EntryPath(s, e)), e.GetMode(), e.GetMeta().GetInode()
		got.data, got.size = l.data, l.size // held against the shard's sum
	}
	l.group = 0
	if l.op == entry.OpRejected {
		l = line{op: l.op, isDir: l.isDir}
	}
	if got != l {
		return fmt.Sprintf("line %d of the file became %+v, want %+v", e.GetLine(), got, l)
	}
	return ""
}

// own are the entries of a shard that are its own, leaders from before left out.
func own(s *protocol.ShardMsg) []*protocol.EntryMsg {
	return slices.DeleteFunc(slices.Clone(s.GetEntries()), (*protocol.EntryMsg).GetLeaderOnly)
}

func forEachKind(t *testing.T, check func(t *rapid.T, f *fixture, k kind)) {
	t.Helper()
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			f := setup(t)
			rapid.Check(t, func(t *rapid.T) { check(t, f, k) })
		})
	}
}

// Each entry of a file is in exactly one shard, in the order of the file.
func TestShardsAreTotalAndDisjoint(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		blocks := k.blocks(t, f.recs)
		want := k.want(blocks)
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 6).Draw(t, "cap"))
		first := rapid.Uint64Range(0, 1000).Draw(t, "first")
		before := uint64(0)
		for i, x := range cut(t, k, cfg, k.write(t, f.dir, blocks), nil, first) {
			s := x.Msg
			if s.GetJob() != "j" || protocol.Phase(s.GetPhase()) != k.phase || s.GetN() != first+uint64(i) || s.GetFile() != 5 || !proto.Equal(s.GetOptions(), cfg.Options) {
				t.Fatalf("shard %d is of %s %d %d %d %v", i, s.GetJob(), s.GetPhase(), s.GetN(), s.GetFile(), s.GetOptions())
			}
			if len(own(s)) == 0 {
				t.Fatalf("shard %d has no entries of its own", i)
			}
			for _, e := range own(s) {
				if len(want) == 0 {
					t.Fatalf("shard %d has an entry too many: %v", i, e)
				}
				if d := describe(s, e, want[0]); d != "" {
					t.Fatal(d)
				}
				if e.GetLine() <= before {
					t.Fatalf("line %d comes after %d", e.GetLine(), before)
				}
				before, want = e.GetLine(), want[1:]
				rejected := entry.Op(e.GetOp()) == entry.OpRejected
				if rejected != (e.GetReject() != "") || (rejected && (e.GetMeta() != nil || e.GetGroup() != 0)) {
					t.Fatalf("an entry with half a reason: %v", e)
				}
				if rejected && fault.Kind(e.GetKind()) != fault.Corrupt {
					t.Fatalf("rejected with the kind %v: %v", fault.Kind(e.GetKind()), e)
				}
				if (k.files == protocol.PhaseDelete || rejected) != (e.GetMeta() == nil) {
					t.Fatalf("metadata of %v", e)
				}
			}
			b, err := protocol.Encode(protocol.TypeShard, s)
			if err != nil {
				t.Fatal(err)
			}
			var again protocol.ShardMsg
			if err := protocol.Decode(b, protocol.TypeShard, &again); err != nil || !proto.Equal(s, &again) {
				t.Fatal("the shard is another one after the wire:", err)
			}
		}
		if len(want) > 0 {
			t.Fatalf("%d entries are in no shard, the first %+v", len(want), want[0])
		}
	})
}

// Any shard can be cut again from the position before it, alone or with all
// that follow, whatever has been cut before by whom.
func TestShardsAreTheSameFromEveryPosition(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		path := k.write(t, f.dir, k.blocks(t, f.recs))
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 6).Draw(t, "cap"))
		const first = 10
		all := cut(t, k, cfg, path, nil, first)
		same := func(from int, got []*shard.Cut) {
			if len(got) != len(all)-from {
				t.Fatalf("%d shards from %d on, %d before", len(got), from, len(all)-from)
			}
			for i, x := range got {
				if !proto.Equal(x.Msg, all[from+i].Msg) {
					t.Fatalf("shard %d cut from the position before shard %d is\n%v\nnot\n%v", from+i, from, x.Msg, all[from+i].Msg)
				}
				if a, b := encode(t, x.After), encode(t, all[from+i].After); a != b {
					t.Fatalf("the position after shard %d is %s, not %s", from+i, a, b)
				}
			}
		}
		same(0, cut(t, k, cfg, path, nil, first))
		for i := range all {
			var pos shard.Position
			if err := json.Unmarshal([]byte(encode(t, all[i].After)), &pos); err != nil {
				t.Fatal(err)
			}
			same(i+1, cut(t, k, cfg, path, &pos, first+uint64(i)+1))
		}
	})
}

func encode(t fataler, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// units returns how many indivisible units a shard has: entries, or what it has
// of hard-link groups.
func units(s *protocol.ShardMsg) int {
	groups, n := map[uint64]bool{}, 0
	for _, e := range s.GetEntries() {
		if e.GetGroup() == 0 {
			n++
			continue
		}
		groups[e.GetGroup()] = true
	}
	return n + len(groups)
}

// A shard exceeds a limit only if it has nothing that could be left out.
func TestLimitsAreRespected(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		blocks := k.blocks(t, f.recs)
		if k.files == protocol.PhaseHardlink {
			// A unit may also have lines that cannot be read; the test cannot tell
			// them from others.
			blocks = slices.DeleteFunc(blocks, func(b block) bool {
				return slices.ContainsFunc(b.lines, func(l line) bool { return l.op == entry.OpRejected })
			})
		}
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 6).Draw(t, "cap"))
		for _, x := range cut(t, k, cfg, k.write(t, f.dir, blocks), nil, 0) {
			if units(x.Msg) == 1 {
				continue
			}
			if l, n := cfg.Limits, len(x.Msg.GetEntries()); n > l.Entries || proto.Size(x.Msg) > l.RawBytes || x.Msg.GetDataBytes() > l.DataBytes {
				t.Fatalf("limits %+v, but %d entries, %d raw bytes, %d bytes of data", l, n, proto.Size(x.Msg), x.Msg.GetDataBytes())
			}
		}
	})
}

// The sum of the shards' data is that of the regular files to copy, a group once.
func TestDataIsCountedOnce(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		blocks := k.blocks(t, f.recs)
		want, seen := uint64(0), map[int]bool{}
		for _, l := range k.want(blocks) {
			link := l.op == entry.OpLink || l.op == entry.OpVerifyLink
			if link && seen[l.group] {
				continue
			}
			seen[l.group] = seen[l.group] || link
			want += l.data
		}
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 6).Draw(t, "cap"))
		got := uint64(0)
		for _, x := range cut(t, k, cfg, k.write(t, f.dir, blocks), nil, 0) {
			got += x.Msg.GetDataBytes()
		}
		if got != want {
			t.Fatalf("shards have %d bytes of data, the file %d", got, want)
		}
	})
}

func TestWithoutLimitsThereIsOneShard(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		blocks := k.blocks(t, f.recs)
		got := cut(t, k, f.config(k, noLimits, 0), k.write(t, f.dir, blocks), nil, 0)
		if want := min(len(k.want(blocks)), 1); len(got) != want {
			t.Fatalf("%d shards, want %d", len(got), want)
		}
	})
}

// A group that is not larger than the cap is whole. A larger one goes on in
// shards of up to cap members that need the shard of its leader and repeat the
// leader to link to.
func TestHardLinkGroupsAreWholeUpToTheCap(t *testing.T) {
	t.Parallel()
	f := setup(t)
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom([]kind{kinds[3], kinds[6]}).Draw(t, "kind")
		blocks := k.blocks(t, f.recs)
		want := k.want(blocks)
		limit := rapid.IntRange(1, 6).Draw(t, "cap")
		const first = 100
		cuts := cut(t, k, f.config(k, anyLimits.Draw(t, "limits"), limit), k.write(t, f.dir, blocks), nil, first)

		type place struct{ n, group uint64 }
		places := map[int]map[place]bool{} // of a group of the file
		leaderOf := map[int]*protocol.EntryMsg{}
		leaderAt := map[int]place{}
		leaderPath := map[int]string{}
		size := map[int]int{}
		for _, l := range want {
			size[l.group]++
		}
		for _, x := range cuts {
			s := x.Msg
			owners, members := map[uint64]int{}, map[uint64]int{}
			entries := s.GetEntries()
			repeated := entries[0].GetLeaderOnly()
			if repeated {
				entries = entries[1:]
			}
			if repeated != (s.GetNeedsTo() > s.GetNeedsFrom()) {
				t.Fatalf("shard %d repeats a leader: %v, needs [%d,%d)", s.GetN(), repeated, s.GetNeedsFrom(), s.GetNeedsTo())
			}
			for _, e := range entries {
				l := want[0]
				want = want[1:]
				if e.GetLeaderOnly() {
					t.Fatalf("shard %d repeats a leader in its middle", s.GetN())
				}
				if entry.Op(e.GetOp()) == entry.OpRejected {
					continue
				}
				if g, ok := owners[e.GetGroup()]; ok && g != l.group {
					t.Fatalf("shard %d has the groups %d and %d of the file as one", s.GetN(), g, l.group)
				}
				at := place{s.GetN(), e.GetGroup()}
				owners[e.GetGroup()] = l.group
				members[e.GetGroup()]++
				if places[l.group] == nil {
					places[l.group] = map[place]bool{}
					leaderOf[l.group], leaderAt[l.group], leaderPath[l.group] = e, at, string(protocol.EntryPath(s, e))
				} else if at != leaderAt[l.group] {
					// Beside its leader only if the shard says so.
					lead := s.GetEntries()[0]
					if !repeated || lead.GetGroup() != e.GetGroup() || string(protocol.EntryPath(s, lead)) != leaderPath[l.group] ||
						!proto.Equal(lead.GetMeta(), leaderOf[l.group].GetMeta()) || s.GetNeedsFrom() != leaderAt[l.group].n || s.GetNeedsTo() != leaderAt[l.group].n+1 {
						t.Fatalf("shard %d goes on with a group whose leader is in shard %d: needs [%d,%d), begins with %v", s.GetN(), leaderAt[l.group].n, s.GetNeedsFrom(), s.GetNeedsTo(), lead)
					}
				}
				places[l.group][at] = true
			}
			for g := range maps.Keys(owners) {
				if g == 0 || g > uint64(len(s.GetEntries())) {
					t.Fatalf("shard %d has the group number %d", s.GetN(), g)
				}
				if members[g] > limit {
					t.Fatalf("shard %d has %d members of a group, the cap is %d", s.GetN(), members[g], limit)
				}
			}
		}
		for g, p := range places {
			if len(p) > 1 && size[g] <= limit {
				t.Fatalf("a group of %d lines is in %d pieces, the cap is %d", size[g], len(p), limit)
			}
		}
	})
}

// A shard of directories to delete needs the one before, of whichever file.
func TestShardsOfDirectoriesToDeleteComeOneAfterAnother(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		if k.files != protocol.PhaseDelete {
			return
		}
		first := rapid.Uint64Range(0, 2).Draw(t, "first")
		for _, x := range cut(t, k, f.config(k, anyLimits.Draw(t, "limits"), 3), k.write(t, f.dir, k.blocks(t, f.recs)), nil, first) {
			var from, to uint64
			if n := x.Msg.GetN(); k.phase == protocol.PhaseRmdir && n > 0 {
				from, to = n-1, n
			}
			if x.Msg.GetNeedsFrom() != from || x.Msg.GetNeedsTo() != to {
				t.Fatalf("shard %d of %v needs [%d,%d), want [%d,%d)", x.Msg.GetN(), k, x.Msg.GetNeedsFrom(), x.Msg.GetNeedsTo(), from, to)
			}
		}
	})
}

// The sets of entries do not depend on the order of directories, nor on that of
// the files in one.
func TestTheOrderOfDirectoriesAndFilesIsIrrelevant(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		blocks := k.blocks(t, f.recs)
		set := func(blocks []block, l protocol.Limits) map[string]int {
			out := map[string]int{}
			for _, x := range cut(t, k, f.config(k, l, 0), k.write(t, f.dir, blocks), nil, 0) {
				for _, e := range own(x.Msg) {
					e := proto.CloneOf(e)
					key := string(protocol.EntryPath(x.Msg, e))
					e.Dir, e.Line, e.Group, e.Name, e.Reject = 0, 0, 0, nil, ""
					out[fmt.Sprint(key, e)]++
				}
			}
			return out
		}
		a := set(blocks, anyLimits.Draw(t, "limits"))
		b := set(rapid.Permutation(blocks).Draw(t, "order"), anyLimits.Draw(t, "limits"))
		if !maps.Equal(a, b) {
			t.Fatalf("entries\n%v\nin another order\n%v", a, b)
		}
	})
}

// The result of a shard says what became of the leader of its last group. That
// must be the one that later shards link to.
func TestTheGroupThatGoesOnIsTheLastOfItsLeadersShard(t *testing.T) {
	t.Parallel()
	forEachKind(t, func(t *rapid.T, f *fixture, k kind) {
		if k.files != protocol.PhaseHardlink {
			return
		}
		cfg := f.config(k, anyLimits.Draw(t, "limits"), rapid.IntRange(1, 4).Draw(t, "cap"))
		const first = 10
		all := cut(t, k, cfg, k.write(t, f.dir, k.blocks(t, f.recs)), nil, first)
		for _, x := range all {
			if x.Msg.GetNeedsTo() == 0 {
				continue
			}
			needed := all[x.Msg.GetNeedsFrom()-first].Msg
			var leader *protocol.EntryMsg // the first of the group with the highest number
			for _, e := range needed.GetEntries() {
				if e.GetGroup() > 0 && (leader == nil || e.GetGroup() > leader.GetGroup()) {
					leader = e
				}
			}
			link := x.Msg.GetEntries()[0]
			if leader == nil || leader.GetLeaderOnly() || !link.GetLeaderOnly() || leader.GetLine() != link.GetLine() {
				t.Fatalf("shard %d links to %v, the last leader of shard %d is %v", x.Msg.GetN(), link, needed.GetN(), leader)
			}
		}
	})
}
