package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestWorkersAreHeldAgainstWhatTheFirstOneMayDo(t *testing.T) {
	t.Parallel()
	root := protocol.Abilities{}
	user := func(uid uint32, groups string) protocol.Abilities {
		return protocol.Abilities{EUID: uid, Groups: groups, Lacks: engine.AllAbilities()}
	}
	for name, row := range map[string]struct {
		first, is         protocol.Abilities
		creates, creates1 string
		want              string // "" = fit
	}{
		"root and root":           {root, root, "0:0", "0:0", ""},
		"not known to whom":       {root, root, "", "0:0", ""},
		"squashed":                {root, root, "65534:65534", "0:0", "what it makes in the destination belongs to 65534:65534, what the job's first worker makes to 0:0"},
		"no owners":               {root, protocol.Abilities{Lacks: []string{engine.CanOwn}}, "", "", "it may not set owners, the job's first worker may"},
		"owners, and first not":   {protocol.Abilities{Lacks: []string{engine.CanOwn, engine.CanDevices}}, root, "", "", "it may set owners, make devices, the job's first worker may not"},
		"one user and the same":   {user(1000, "100 1000"), user(1000, "100 1000"), "", "", ""},
		"one user and another":    {user(1000, "1000"), user(1001, "1000"), "", "", "it runs as user 1001, the job's first worker as user 1000"},
		"one group and another":   {user(1000, "1000"), user(1000, "100 1000"), "", "", "it belongs to the groups 100 1000, the job's first worker to 1000"},
		"a namespace":             {root, protocol.Abilities{IDs: "uids 0:100000:65536", Lacks: []string{engine.CanTrusted}}, "", "", "it may not set trusted attributes, the job's first worker may; its user namespace has the ids uids 0:100000:65536, that of the job's first worker of all users"},
		"the same namespace":      {protocol.Abilities{IDs: "x"}, protocol.Abilities{IDs: "x"}, "", "", ""},
		"what nobody knows today": {protocol.Abilities{Lacks: []string{"fly"}}, root, "", "", "it may fly, the job's first worker may not"},
	} {
		err := sameAbilities("j", "w", &row.is, row.creates, protocol.RootsReply{Abilities: &row.first, Creates: row.creates1})
		got := ""
		if err != nil {
			got = err.Error()
		}
		want := ""
		if row.want != "" {
			want = `serve job "j": ` + row.want + ` (run worker w with the rights and exports that the others of its pool have, or in another pool)`
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
	if err := sameAbilities("j", "w", &root, "0:0", protocol.RootsReply{}); err != nil {
		t.Errorf("a job of a coordinator that did not ask: %v", err)
	}
}

func TestAWorkerOfOtherAbilitiesServesNothingButTheEndOfAJob(t *testing.T) {
	bubble(t, Config{Abilities: &protocol.Abilities{EUID: 7, Lacks: []string{engine.CanOwn}}}, func(r *rig) {
		r.q.claim = func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			if c.Abilities == nil || c.Abilities.EUID != 7 {
				t.Errorf("claims %+v", c.Abilities)
			}
			return protocol.RootsReply{Nonce: "nonce", SourceInode: c.SourceInode, SourceFS: c.SourceFS, Abilities: &protocol.Abilities{EUID: 7}}, nil
		}
		r.start()
		if a := r.lastBeat().Abilities; a == nil || len(a.Lacks) != 1 || a.EUID != 7 {
			t.Errorf("heartbeats say %+v", a)
		}
		r.deliver("j", 1, 1)
		r.said("nak 101.1 0s")
		r.wait(time.Second)
		if why := r.lastBeat().Unfit["j"]; !strings.Contains(why, "it may not set owners, the job's first worker may") {
			t.Errorf("unfit for %q", why)
		}
		r.deliver("j", 2, 1, cleanup)
		r.wait(time.Minute)
		r.answered(1)
	})
}

func TestTheFirstWorkerSaysWhatItMayDo(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		var claims []protocol.RootsClaim
		r.q.claim = func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			claims = append(claims, c)
			if !c.Ready {
				return protocol.RootsReply{Nonce: "n1", Write: true}, nil
			}
			return protocol.RootsReply{Nonce: "n1", SourceInode: c.SourceInode, SourceFS: c.SourceFS, Abilities: c.Abilities, Creates: c.Creates}, nil
		}
		r.start()
		r.deliver("j", 1, 1)
		r.said("ack 101.1")
		if len(claims) != 2 || claims[0].Creates != "" || claims[1].Creates != "0:0" || claims[1].Abilities == nil || claims[1].Mounts == nil {
			t.Errorf("claims %+v", claims)
		}
	})
}
