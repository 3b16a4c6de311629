package worker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func mount(path, fs string, inode uint64) engine.Mount {
	return engine.Mount{Path: path, FS: fs, Inode: inode, Auto: fs == "autofs", Line: fmt.Sprint(path, fs, inode)}
}

func TestMountsAreHeldAgainstThoseOfTheFirstWorker(t *testing.T) {
	t.Parallel()
	home, media := mount("home", "ext4", 2), mount("media/x", "xfs", 64)
	auto := []engine.Mount{mount("net", "autofs", 0)}
	nfs := mount("net/data", "nfs", 7)
	for name, row := range map[string]struct {
		first, here []engine.Mount
		want        []string
	}{
		"none":               {nil, nil, nil},
		"the same":           {[]engine.Mount{home, media}, []engine.Mount{home, media}, nil},
		"one more here":      {[]engine.Mount{media}, []engine.Mount{home, media}, []string{"mounted here, not on the job's first worker: home (ext4)"}},
		"one less here":      {[]engine.Mount{home, media}, []engine.Mount{home}, []string{"mounted on the job's first worker, not here: media/x (xfs)"}},
		"another kind":       {[]engine.Mount{home}, []engine.Mount{mount("home", "nfs", 2)}, []string{"home is nfs here, ext4 on the job's first worker"}},
		"another inode":      {[]engine.Mount{home}, []engine.Mount{mount("home", "ext4", 5)}, []string{"another ext4 is mounted here than on the job's first worker: home, whose root has inode 5, not 2"}},
		"an unknown inode":   {[]engine.Mount{home}, []engine.Mount{mount("home", "ext4", 0)}, nil},
		"both":               {[]engine.Mount{home}, []engine.Mount{media}, []string{"mounted here, not on the job's first worker: media/x (xfs)", "mounted on the job's first worker, not here: home (ext4)"}},
		"not UTF-8":          {nil, []engine.Mount{mount("a\xff", "ext4", 2)}, []string{"mounted here, not on the job's first worker: a� (ext4)"}},
		"an automounter":     {nil, auto, nil},
		"what it mounts":     {auto, append(auto, nfs), nil},
		"what it unmounts":   {append(auto, nfs), auto, nil},
		"mounted by hand":    {auto, []engine.Mount{nfs}, nil},
		"mounted by it here": {[]engine.Mount{nfs}, auto, nil},
		"no automounter":     {[]engine.Mount{nfs}, nil, []string{"mounted on the job's first worker, not here: net/data (nfs)"}},
		"beside it":          {auto, append(auto, mount("net2", "nfs", 7)), []string{"mounted here, not on the job's first worker: net2 (nfs)"}},
	} {
		var got []string
		for _, d := range differences(row.here, mountList(row.first)) {
			got = append(got, d.text)
		}
		if d := cmp.Diff(row.want, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

// Of thousands of mounts not all are named in a message. Equal ones pass; where some
// differ, the worker is unfit for all of the job, and the reason is as good as can be.
func TestThousandsOfMountsAreComparedByTheirSum(t *testing.T) {
	t.Parallel()
	var all []engine.Mount
	for i := range 5000 {
		all = append(all, mount(fmt.Sprintf("%s/%04d", strings.Repeat("p", 60), i), "xfs", 64))
	}
	first := mountList(all)
	if n := len(first.List); n == 0 || n > mostMounts || first.Count != 5000 {
		t.Errorf("%d of %d are named", n, first.Count)
	}
	if d := differences(all, first); len(d) > 0 {
		t.Errorf("equal ones differ: %v", d)
	}
	for name, row := range map[string]struct {
		here []engine.Mount
		want string
	}{
		"the first is missing":     {all[1:], "mounted on the job's first worker, not here: " + all[0].Path + " (xfs)"},
		"the last is missing":      {all[:4999], "4999 file systems are mounted here, 5000 on the job's first worker, and they are not the same behind "},
		"one more than what it is": {append([]engine.Mount{mount("a", "xfs", 64)}, all...), "mounted here, not on the job's first worker: a (xfs)"},
		"nothing is mounted here":  {nil, "mounted on the job's first worker, not here: "},
	} {
		d := differences(row.here, first)
		if len(d) == 0 || !strings.HasPrefix(d[0].text, row.want) || d[0].path != "" {
			t.Errorf("%s: %v, want %q", name, d, row.want)
		}
	}
}

func TestAMountConcernsWhatIsOnItAndWhatRemovesIt(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		op    entry.Op
		path  string
		place string
		trim  string
		want  bool
	}{
		{entry.OpCopy, "home/data/f", "home/data", "", true},
		{entry.OpMkdir, "home/data", "home/data", "", true},
		{entry.OpMkdir, "home", "home/data", "", false},
		{entry.OpFinish, "", "home/data", "", false},
		{entry.OpCopy, "home/database", "home/data", "", false},
		{entry.OpRemoveTree, "home", "home/data", "", true},
		{entry.OpCopy, "home", "home/data", "", true}, // a directory in the way is removed
		{entry.OpCopy, "other", "home/data", "", false},
		{entry.OpCopy, "other", "", "", true},
		{entry.OpCopy, "srv/home/data/f", "home/data", "srv", true},
		{entry.OpCopy, "srv/home/data/f", "home/data", "srv/home", false},
		{entry.OpFinish, "srv", "home", "srv/x", false},
	} {
		b := &engine.Batch{Entries: []engine.Entry{{Op: entry.OpCopy, Path: "srv/zzz"}, {Op: row.op, Path: row.path}}}
		if got := concerns(b, row.place, row.trim); got != row.want {
			t.Errorf("%v of %q, mount at %q, trim %q: %v", row.op, row.path, row.place, row.trim, got)
		}
	}
}

// firstSaw answers claims for a job whose first worker had these mounts.
func firstSaw(src, dst []engine.Mount) func(protocol.RootsClaim) (protocol.RootsReply, error) {
	return func(c protocol.RootsClaim) (protocol.RootsReply, error) {
		m := &protocol.RootMounts{Source: mountList(src), Destination: mountList(dst)}
		return protocol.RootsReply{Nonce: "nonce", SourceInode: c.SourceInode, SourceFS: c.SourceFS, Mounts: m}, nil
	}
}

// in changes the directory of a shard's entries.
func in(dir string) shardOption {
	return func(m *protocol.ShardMsg, _ *bus.Delivery) { m.Dirs = [][]byte{[]byte(dir)} }
}

func TestAShardBeneathAnotherMountGoesToAnotherWorker(t *testing.T) {
	home := []engine.Mount{mount("home/data", "ext4", 2)}
	for name, row := range map[string]struct {
		first, here []engine.Mount
		dst         bool
		want        string
	}{
		"mounted here":                      {nil, home, false, `compare what is mounted beneath "/src": mounted here, not on the job's first worker: home/data (ext4)`},
		"not mounted here":                  {home, nil, false, `compare what is mounted beneath "/src": mounted on the job's first worker, not here: home/data (ext4)`},
		"mounted in the destination":        {nil, home, true, `compare what is mounted beneath "/dst": mounted here, not on the job's first worker: home/data (ext4)`},
		"not mounted in the destination":    {home, nil, true, `compare what is mounted beneath "/dst": mounted on the job's first worker, not here: home/data (ext4)`},
		"something else in the destination": {home, []engine.Mount{mount("home/data", "ext4", 3)}, true, `compare what is mounted beneath "/dst": another ext4 is mounted here`},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				sides := func(m []engine.Mount) (src, dst []engine.Mount) {
					if row.dst {
						return nil, m
					}
					return m, nil
				}
				r.q.claim = firstSaw(sides(row.first))
				r.x.mounts = func() (src, dst []engine.Mount) { return sides(row.here) }
				r.start()
				r.deliver("j", 1, 1, in("home/data/deep"))
				r.said("nak 101.1 0s")
				r.answered(0)
				r.wait(time.Second)
				if why := r.lastBeat().Unfit["j"]; !strings.HasPrefix(why, row.want) {
					t.Errorf("unfit for %q, want %q", why, row.want)
				}
				// It serves what is elsewhere, and the job's end.
				r.deliver("j", 2, 1, in("home"))
				r.wait(time.Minute)
				r.answered(1)
				r.deliver("j", 3, 1, cleanup)
				r.wait(time.Minute)
				r.answered(2)
			})
		})
	}
}

// Something is mounted, or mounted anew, while a shard is executed: what was done is
// no result.
func TestAMountThatComesWhileAShardIsExecutedVoidsIt(t *testing.T) {
	home := []engine.Mount{mount("home/data", "ext4", 2)}
	anew := []engine.Mount{home[0]}
	anew[0].Line = "another"
	for name, row := range map[string]struct {
		before, after []engine.Mount
		said          string
		unfit         bool
	}{
		"mounted":      {nil, home, "nak 101.1 0s", true},
		"unmounted":    {home, nil, "nak 101.1 0s", true},
		"mounted anew": {home, anew, "nak 101.1 0s", false},
		"elsewhere":    {home, append([]engine.Mount{mount("a", "ext4", 2)}, home...), "ack 101.1", false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(r *rig) {
				r.q.claim = firstSaw(row.before, nil)
				now := row.before
				r.x.mounts = func() (src, dst []engine.Mount) { return now, nil }
				r.x.run = func(_ context.Context, _ string, b *engine.Batch, _ engine.Guard) (*engine.Outcome, error) {
					r.x.mu.Lock()
					defer r.x.mu.Unlock()
					now = row.after
					return copied(b), nil
				}
				r.start()
				r.deliver("j", 1, 1, in("home/data"))
				r.said(row.said)
				r.wait(time.Second)
				if why := r.lastBeat().Unfit["j"]; (why != "") != row.unfit {
					t.Errorf("unfit for %q", why)
				}
			})
		})
	}
}
