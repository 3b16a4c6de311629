package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// A worker in a container may do less than one beside it: the job says who may not
// what, and it is not left to chance which files get their owners.
func TestWorkersOfAPoolThatMayDoDifferentThings(t *testing.T) {
	if !treetest.Root() {
		t.Skip("capabilities can only be taken from root")
	}
	src, dst, scan := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst"), filepath.Join(t.TempDir(), "scan")
	treetest.Random(t, src, 24, 300)
	if err := os.Mkdir(dst, 0o755); err != nil {
		t.Fatal(err)
	}
	flag := cluster(t, 1, filepath.Dir(src), filepath.Dir(dst))
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	fsb(t, "submit", flag, "--source", src, "--destination", dst, "--meta", scan, "--control", scan, "--shard-entries", "1", "--max-shards", "1").want(t, 0)
	until(t, func(r result) bool { return r.code == 0 && len(r.job(t).Workers) > 0 }, "status", flag, "last", "--json")
	fsb(t, "pause", flag, "last").want(t, 0)
	cmd := exec.Command("setpriv", "--bounding-set", "-chown,-sys_admin", filepath.Join(bin, "worker"), flag, "--name", "confined", "--allow", "/")
	if err := cmd.Start(); err != nil {
		t.Skipf("no setpriv here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was told to stop
	})
	r := until(t, func(r result) bool { return strings.Contains(r.stdout, "confined") }, "workers", flag)
	if !strings.Contains(r.stdout, "all but owners,trusted") {
		t.Errorf("the list of workers does not say what it may not do:\n%s", r.stdout)
	}
	fsb(t, "resume", flag, "last").want(t, 0)
	v := fsb(t, "watch", flag, "last", "--json").want(t, 0).job(t)
	treetest.Same(t, src, dst)
	exact(t, v, treetest.Count(treetest.Listing(t, src)))
	if v.Workers["confined"] != 0 {
		t.Errorf("shards were answered by %v", v.Workers)
	}
}

func TestAbilitiesAsPeopleSeeThem(t *testing.T) {
	t.Parallel()
	for want, a := range map[string]*protocol.Abilities{
		"? ?": nil, "0 all": {}, "0 all but owners,trusted": {Lacks: []string{"owners", "trusted"}},
		"1000 own files only":        {EUID: 1000, Lacks: []string{"read-all", "write-all", "owners", "any-owner", "devices", "trusted", "file-caps"}},
		"0 all (ids of a namespace)": {IDs: "uids 0:100000:65536"},
	} {
		if uid, can := abilities(a); uid+" "+can != want {
			t.Errorf("%q, want %q", uid+" "+can, want)
		}
	}
}
