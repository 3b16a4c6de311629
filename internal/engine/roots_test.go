package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestLinksOnTheWayToARoot: who owns a symbolic link decides whether it is followed,
// wherever in the path of a root it stands; one that leads nowhere is named.
func TestLinksOnTheWayToARoot(t *testing.T) {
	needRoot(t)
	base := shm(t)
	real := filepath.Join(base, "real")
	must(t, os.MkdirAll(filepath.Join(real, "in"), 0o755))
	link := func(name, target string, owner int) string {
		p := filepath.Join(base, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.Symlink(target, p))
		must(t, os.Lchown(p, owner, owner))
		return p
	}
	own, foreign := link("own", real, 0), link("foreign", real, 1234)
	relative := link("deep/er/relative", "../../real", 0)
	chain := link("chain", "foreign", 0)
	dangling := link("dangling", filepath.Join(base, "mnt/disk"), 0)
	late := link("late", "dangling/x", 0)
	loop := link("loop", "loop", 0)
	notDir := put(t, filepath.Join(base, "file"), "x")
	denied := "belongs to user 1234, who is neither root nor this process's user (name the directory that it leads to, or follow links of anybody with --follow-root-links)"
	nowhere := "the symbolic link leads nowhere: to \"" + base + "/mnt/disk\": no such file or directory (mount or make what it leads to, or name another directory)"
	for _, c := range []struct {
		path, text string
		kind       fault.Kind
	}{
		{path: real}, {path: own}, {path: own + "/in"}, {path: own + "/in/../in/."}, {path: relative}, {path: relative + "/in"},
		{path: "/"}, {path: "/proc/self/cwd"}, {path: base + "//real/"},
		{foreign, denied, fault.Denied}, {foreign + "/in", denied, fault.Denied}, {chain, denied, fault.Denied},
		{foreign + "/missing", denied, fault.Denied},
		{dangling, nowhere, fault.NotFound}, {dangling + "/x/y", nowhere, fault.NotFound}, {late, nowhere, fault.NotFound},
		{loop, "too many levels", fault.Denied}, {notDir, "not a directory", fault.NotFound}, {notDir + "/x", "not a directory", fault.NotFound},
		{own + "/missing", "no such file", fault.NotFound},
	} {
		err := CheckRoot(c.path, false)
		if c.text == "" && err != nil || c.text != "" && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", c.path, err)
		}
		if err := CheckRoot(c.path, true); (err == nil) != (c.text == "" || c.text == denied && !strings.HasSuffix(c.path, "missing")) {
			t.Errorf("%s, links of anybody: %v", c.path, err)
		}
		g := newRig(t)
		for _, root := range []string{"source", "destination"} {
			spec := g.spec
			*map[string]*string{"source": &spec.Source, "destination": &spec.Destination}[root] = c.path
			j, err := g.e.OpenJob(spec)
			if err == nil {
				must(t, j.Close())
			}
			if c.text == "" && err != nil || c.text != "" && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) ||
				!strings.HasPrefix(err.Error(), "open "+root+" root \""+c.path) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%s root %s: %v", root, c.path, err)
			}
			spec.FollowRootLinks = true
			if j, err := g.e.OpenJob(spec); err == nil {
				must(t, j.Close())
			} else if c.text == "" || c.text == denied && !strings.HasSuffix(c.path, "missing") {
				t.Errorf("%s root %s, links of anybody: %v", root, c.path, err)
			}
		}
	}
}

// TestADestinationBelowALinkIsMade, but not through a link that leads nowhere or
// belongs to somebody else.
func TestADestinationBelowALinkIsMade(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	base := shm(t)
	must(t, os.Mkdir(filepath.Join(base, "disk"), 0o755))
	for name, to := range map[string]string{"backup": base + "/disk", "dangling": base + "/none", "foreign": base + "/disk"} {
		must(t, os.Symlink(to, filepath.Join(base, name)))
	}
	must(t, os.Lchown(filepath.Join(base, "foreign"), 1234, 1234))
	g.spec.CreateDest = true
	for name, want := range map[string]string{
		"backup/x": "", "dangling": "leads nowhere", "dangling/x": "leads nowhere", "foreign/y": "belongs to user 1234", "backup/a/b": "make its parent directory first",
	} {
		g.spec.Destination = filepath.Join(base, name)
		j, err := g.e.OpenJob(g.spec)
		if err == nil {
			must(t, j.Close())
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l := listing(t, base); len(l) != 1+1+3+1 || !exists(filepath.Join(base, "disk/x")) {
		t.Errorf("made:\n%s", strings.Join(l, "\n"))
	}
}

// TestUserFollowsHisOwnLinks, those of root, and no others.
func TestUserFollowsHisOwnLinks(t *testing.T) {
	dir := userDir(t)
	own := filepath.Join(t.TempDir(), "own")
	must(t, os.Symlink(dir, own))
	must(t, CheckRoot(own, false))
	must(t, CheckRoot("/proc/self/cwd", false))
	if err := CheckRoot(filepath.Join(dir, "linked/of-another"), false); !fault.Is(err, fault.Denied) {
		t.Errorf("%v", err)
	}
	must(t, CheckRoot(filepath.Join(dir, "linked/of-root"), false))
}
