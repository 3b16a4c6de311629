package protocol_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestAFailedShardFailsEachEntryOnce(t *testing.T) {
	t.Parallel()
	s := &protocol.ShardMsg{
		Job: "j", Phase: 3, N: 4, File: 5, Dirs: [][]byte{{}, []byte("a")},
		Entries: []*protocol.EntryMsg{
			{Dir: 1, Name: []byte("lead"), Line: 1, LeaderOnly: true}, {Dir: 1, Name: []byte("b"), Line: 2}, {Name: []byte("c"), Line: 3, IsDir: true}, {Line: 4, IsDir: true},
		},
	}
	res, fails := protocol.FailWhole(s, "why")
	wantRes := &protocol.ResultMsg{Job: "j", Phase: 3, N: 4, Abandoned: true, Entries: 3, Failures: 3, Counts: &protocol.CountsMsg{DirsFailed: 2, FilesFailed: 1}}
	if !proto.Equal(wantRes, res) {
		t.Errorf("result %v", res)
	}
	// Whoever is to be linked to a leader in it must not be.
	s.Entries = append(s.Entries, &protocol.EntryMsg{Op: uint32(entry.OpLink), Name: []byte("l"), Group: 1, Line: 5})
	if res, _ := protocol.FailWhole(s, "why"); entry.Leader(res.GetLeader()) != entry.LeaderFailed {
		t.Errorf("the leader is %v", entry.Leader(res.GetLeader()))
	}
	want := func(line uint64, path string, dir bool) *protocol.FailureMsg {
		return &protocol.FailureMsg{File: 5, Line: line, Path: []byte(path), Op: "execute shard", Kind: uint32(fault.Internal), Reason: "why", IsDir: dir}
	}
	wantFails := &protocol.FailuresMsg{Job: "j", Phase: 3, N: 4, Failures: []*protocol.FailureMsg{want(2, "a/b", false), want(3, "c", true), want(4, "", true)}}
	if !proto.Equal(wantFails, fails) {
		t.Errorf("failures %v", fails)
	}
}

func TestFiguresOfAFailedShardAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := genShard(t)
		res, fails := protocol.FailWhole(s, "why")
		own := 0
		for _, e := range s.GetEntries() {
			if !e.GetLeaderOnly() {
				own++
			}
		}
		c := res.GetCounts()
		if n := uint64(own); res.GetFailures() != n || res.GetEntries() != n || c.GetDirsFailed()+c.GetFilesFailed() != n || len(fails.GetFailures()) != own {
			t.Errorf("%d entries give %v and %d failures", own, res, len(fails.GetFailures()))
		}
	})
}

// A shard may come from anywhere: an index out of range is no panic.
func TestThePathOfAnEntry(t *testing.T) {
	t.Parallel()
	s := &protocol.ShardMsg{Dirs: [][]byte{nil, []byte("a/b")}}
	for _, c := range []struct {
		e    *protocol.EntryMsg
		want string
	}{
		{&protocol.EntryMsg{}, ""}, {&protocol.EntryMsg{Name: []byte("x")}, "x"}, {&protocol.EntryMsg{Dir: 1, Name: []byte("x")}, "a/b/x"},
		{&protocol.EntryMsg{Dir: 1}, "a/b"},
		{&protocol.EntryMsg{Dir: 2, Name: []byte("x")}, "x"}, {&protocol.EntryMsg{Dir: 1<<32 - 1, Name: []byte("x")}, "x"},
	} {
		if got := string(protocol.EntryPath(s, c.e)); got != c.want {
			t.Errorf("%v: %q, want %q", c.e, got, c.want)
		}
	}
}
