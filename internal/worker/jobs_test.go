package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func (x *fakeExec) counts(job string) (opens, shut int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.opens[job], x.shut[job]
}

func TestRootsAreOpenedOnceForAJob(t *testing.T) {
	bubble(t, Config{Slots: 4}, func(r *rig) {
		asked := 0
		r.q.claim = func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			if asked++; asked < 10 {
				return protocol.RootsReply{Wait: true}, nil
			}
			return protocol.RootsReply{Nonce: "nonce", SourceInode: c.SourceInode, SourceFS: c.SourceFS}, nil
		}
		r.start()
		for n := range uint64(20) {
			r.deliver("j", n, 1)
		}
		r.wait(10 * time.Second)
		r.answered(20)
		if opens, shut := r.x.counts("j"); opens != 1 || shut != 0 {
			t.Errorf("opened %d times, closed %d times", opens, shut)
		}
		r.wait(idleFor + timing.Heartbeat)
		if _, shut := r.x.counts("j"); shut != 1 {
			t.Error("an idle job stays open")
		}
		r.deliver("j", 30, 1)
		r.answered(21)
	})
}

func TestOnlySoManyIdleJobsStayOpen(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.start()
		for n := range uint64(3 * idleJobs) {
			r.deliver(fmt.Sprintf("j%d", n), n, 1)
		}
		r.wait(0)
		r.answered(3 * idleJobs)
		open := 0
		for job := range r.x.opens {
			opens, shut := r.x.counts(job)
			open += opens - shut
		}
		if open > idleJobs+1 {
			t.Errorf("%d jobs are open", open)
		}
	})
}

// TestCancelledJobIsClosed once nothing runs of it.
func TestCancelledJobIsClosed(t *testing.T) {
	bubble(t, Config{}, func(r *rig) {
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		r.q.set(func() {
			r.q.heartbeat = func(protocol.Heartbeat) (protocol.HeartbeatReply, error) {
				return protocol.HeartbeatReply{Timing: timing, Cancelled: []protocol.JobID{"j", "unknown"}}, nil
			}
		})
		r.wait(timing.Heartbeat)
		if _, shut := r.x.counts("j"); shut != 1 {
			t.Error("it is open")
		}
	})
}

// TestRootsAreProven shows what a worker makes of the coordinator's answers.
func TestRootsAreProven(t *testing.T) {
	same := func(c protocol.RootsClaim) protocol.RootsReply {
		return protocol.RootsReply{Nonce: "nonce", SourceInode: c.SourceInode, SourceFS: c.SourceFS, DestInode: c.DestInode, DestFS: c.DestFS}
	}
	for name, tc := range map[string]struct {
		claim func(protocol.RootsClaim) (protocol.RootsReply, error)
		want  string // of the reason; "" = it is done
	}{
		"the first worker writes the mark": {claim: func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			if !c.Ready {
				return protocol.RootsReply{Nonce: "mine", Write: true}, nil
			}
			reply := same(c)
			reply.Nonce = "mine"
			return reply, nil
		}},
		"a job that changes nothing": {claim: func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			reply := same(c)
			reply.ReadOnly = true
			return reply, nil
		}},
		"another destination": {want: "prove destination root", claim: func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			reply := same(c)
			reply.ReadOnly, reply.DestInode = true, 77
			return reply, nil
		}},
		"another source": {want: "prove source root", claim: func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			reply := same(c)
			reply.SourceInode = 77
			return reply, nil
		}},
		"no mark": {want: "the job's mark is not there", claim: func(c protocol.RootsClaim) (protocol.RootsReply, error) {
			reply := same(c)
			reply.Nonce = "elsewhere"
			return reply, nil
		}},
		"an error": {want: "it is over", claim: func(protocol.RootsClaim) (protocol.RootsReply, error) {
			return protocol.RootsReply{Error: "it is over"}, nil
		}},
		"no answer": {want: "not connected", claim: func(protocol.RootsClaim) (protocol.RootsReply, error) { return protocol.RootsReply{}, errAway }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Slots: 1}, func(r *rig) {
				r.q.claim = tc.claim
				r.start()
				r.deliver("j", 1, 1)
				r.wait(0)
				if tc.want == "" {
					r.said("ack 101.1")
					return
				}
				r.said("nak 101.1 0s")
				if e := r.ends(); len(e) != 1 || !strings.Contains(e[0].Reason, tc.want) {
					t.Errorf("%+v", e)
				}
				if opens, shut := r.x.counts("j"); opens != shut {
					t.Error("the roots are left open")
				}
			})
		})
	}
}

func TestRootsThatAreNotAllowedAreRefused(t *testing.T) {
	bubble(t, Config{Slots: 1, Allow: []string{"/srv", "/src"}}, func(r *rig) {
		r.start()
		r.deliver("j", 1, 1)
		r.wait(0)
		r.said("nak 101.1 0s")
		if e := r.ends(); len(e) != 1 || e[0].Kind != fault.Denied.String() || !strings.Contains(e[0].Reason, `use root "/dst": worker w allows only /srv, /src (start workers with --allow for it)`) {
			t.Errorf("%+v", e)
		}
	})
}

// A root that is allowed may be a link: what it leads to counts.
func TestAllowedRootMayBeALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "real"), 0o755), os.Symlink("real", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{Name: "w", Pool: "p", Allow: []string{filepath.Join(dir, "link")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.allowed(filepath.Join(dir, "real/below")); err != nil {
		t.Error(err)
	}
	if err := w.allowed(filepath.Join(dir, "reality")); err == nil {
		t.Error("a neighbour is allowed")
	}
}

func TestUnmountedRootGivesShardsBack(t *testing.T) {
	bubble(t, Config{Slots: 1}, func(r *rig) {
		r.start()
		r.x.mu.Lock()
		r.x.check = func() error { return fault.New(fault.Unavailable, "unmounted") }
		r.x.mu.Unlock()
		r.deliver("j", 1, 1)
		r.wait(0)
		r.said("nak 101.1 0s")
		r.wait(timing.Heartbeat)
		if why := r.lastBeat().Unfit["j"]; why != "unmounted" {
			t.Errorf("%q", why)
		}
	})
}

// TestOptionsReachTheEngine of those that a worker passes on or decides.
func TestOptionsReachTheEngine(t *testing.T) {
	bubble(t, Config{Allow: []string{"/src", "/dst"}}, func(r *rig) {
		r.x.open = func(s engine.JobSpec) error {
			if s.ID != "j" || s.Source != "/src" || s.Destination != "/dst" || s.Trim != "a" || !s.WriteMeta || s.Sync != engine.SyncFile || s.Memory != 0 || !s.CreateDest {
				t.Errorf("%+v", s)
			}
			if s.Permit("/") != nil || s.Permit("/elsewhere") == nil {
				t.Error("it permits the wrong parents")
			}
			return nil
		}
		r.start()
		r.deliver("j", 1, 1, func(m *protocol.ShardMsg, _ *bus.Delivery) {
			m.Options.Trim, m.Options.WriteMeta, m.Options.Sync, m.Options.Memory = []byte("a"), true, uint32(engine.SyncFile), -1
		})
		r.said("ack 101.1")
	})
}
