package treetest

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMutateMakesTheSameChangesForTheSameSeed(t *testing.T) {
	t.Parallel()
	var logs [2][]string
	var lists [2][]Entry
	for i := range logs {
		dir := filepath.Join(t.TempDir(), "tree")
		Random(t, dir, 7, 300)
		logs[i] = Mutate(t, dir, rand.New(rand.NewPCG(7, 7)), 400)
		lists[i] = Listing(t, dir)
	}
	if !slices.Equal(logs[0], logs[1]) || len(logs[0]) != 400 {
		t.Errorf("%d and %d changes", len(logs[0]), len(logs[1]))
	}
	// Times of what was written are those of the clock.
	for i := range lists {
		for k := range lists[i] {
			lists[i][k].MtimeNS = 0
		}
	}
	if d := Diff(lists[0], lists[1]); len(d) > 0 {
		t.Errorf("%d differences, such as %s", len(d), d[0])
	}
}

func TestMutateMakesEverySortOfChange(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "tree")
	Random(t, dir, 8, 400)
	all := strings.Join(Mutate(t, dir, rand.New(rand.NewPCG(8, 8)), 1000), "\n")
	for _, what := range []string{
		"create ", "create special", "make directory", "modify ", "append to", "rewrite in the same size", "modify and put the time back",
		"chmod", "touch ", "touch directory", "rename ", "rename over", "rename directory", "remove ", "remove tree", "make a directory of",
		"make a file of", "retarget", "link ", "link over", "break the link", "add a hole",
	} {
		if !strings.Contains("\n"+all, "\n"+what) {
			t.Errorf("no change of the sort %q", what)
		}
	}
}
