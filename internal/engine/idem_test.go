package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestASecondAttemptCountsTheSame runs random batches over random trees: the
// first attempt is stopped anywhere, its leftovers stand in the way, the second
// runs through, and a third does the same work again. Second and third must
// agree in every figure and in the tree, and nothing may be left over.
func TestASecondAttemptCountsTheSame(t *testing.T) {
	base := shm(t)
	n := 0
	e, err := New(Config{})
	must(t, err)
	defer func() { must(t, e.Close()) }()
	rapid.Check(t, func(rt *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		defer func() { must(t, os.RemoveAll(dir)) }()
		g := &rig{t: t, e: e, src: filepath.Join(dir, "src"), dst: filepath.Join(dir, "dst")}
		for _, root := range []string{g.src, g.dst} {
			must(t, os.MkdirAll(root, 0o755))
			grow(rt, t, root)
		}
		g.spec = JobSpec{ID: "idem", Source: g.src, Destination: g.dst, Sync: SyncNone,
			WriteMeta:     rapid.Bool().Draw(rt, "write meta"),
			Restore:       rapid.Bool().Draw(rt, "restore"),
			CheckContents: rapid.Bool().Draw(rt, "check contents"),
			SkipVanished:  rapid.Bool().Draw(rt, "skip vanished"),
			SpareDirs:     rapid.Bool().Draw(rt, "spare dirs"),
			DeleteEmpty:   rapid.Bool().Draw(rt, "delete empty"),
			TakeChanging:  rapid.Bool().Draw(rt, "take changing"),
			Replace:       Replace(rapid.IntRange(0, 2).Draw(rt, "replace")),
			Threads:       rapid.IntRange(1, 4).Draw(rt, "threads"),
		}
		b := g.randomBatch(rt)
		j, err := e.OpenJob(g.spec)
		must(t, err)
		defer func() { must(t, j.Close()) }()
		if rapid.Bool().Draw(rt, "named") {
			j.links[j.dst.info.Dev] = fsys.LinkNone
		}
		_, _ = j.Run(t.Context(), b, newCountdown(rapid.Int64Range(0, 60).Draw(rt, "stop at"), errLost))
		second := *b
		second.Predecessors = []AttemptID{b.Attempt}
		second.Attempt.Delivery = 2
		o2, err := j.Run(t.Context(), &second, nil)
		if err != nil {
			rt.Fatal(err)
		}
		tree2 := withoutDirTimes(listing(t, g.dst))
		third := second
		third.Predecessors = []AttemptID{b.Attempt, second.Attempt}
		third.Attempt.Delivery = 3
		o3, err := j.Run(t.Context(), &third, nil)
		if err != nil {
			rt.Fatal(err)
		}
		o2.Counts.HoleBytes, o3.Counts.HoleBytes = 0, 0
		o2.Counts.ReflinkBytes, o3.Counts.ReflinkBytes = 0, 0
		if diff := cmp.Diff(o2, o3); diff != "" {
			rt.Errorf("second (-) and third (+) attempt:\n%s\nbatch: %+v", diff, b.Entries)
		}
		if diff := cmp.Diff(tree2, withoutDirTimes(listing(t, g.dst))); diff != "" && g.spec.WriteMeta {
			rt.Errorf("trees after second (-) and third (+) attempt:\n%s", diff)
		}
		total := o3.Counts.DirsCopied + o3.Counts.FilesCopied + o3.Counts.DirsFailed + o3.Counts.FilesFailed + o3.Counts.Links +
			o3.Counts.Skipped + o3.Counts.Deleted + o3.Counts.DirsFinished + o3.Counts.DirsTouched
		if total != uint64(len(b.Entries)) {
			rt.Errorf("%d entries counted, batch has %d: %+v", total, len(b.Entries), o3.Counts)
		}
		for _, l := range listing(t, g.dst) {
			if len(l) > 6 && l[:6] == "/.fsb-" {
				rt.Errorf("left over: %s", l)
			}
		}
	})
}

var dirTime = regexp.MustCompile(`( mode=4.*) mtime=\S+`)

// withoutDirTimes leaves out what every copy into a directory changes.
func withoutDirTimes(lines []string) []string {
	for i, l := range lines {
		lines[i] = dirTime.ReplaceAllString(l, "$1")
	}
	return lines
}

var treeNames = []string{"a", "b", "c", "d", "a/x", "a/y", "b/x", "b/x/z", "c/q"}

// grow makes a random tree of the few names, so that everything meets everything.
func grow(rt *rapid.T, t *testing.T, root string) {
	for _, name := range treeNames {
		p := filepath.Join(root, name)
		if st, err := os.Lstat(filepath.Dir(p)); err != nil || !st.IsDir() {
			continue
		}
		when := unix.Timespec{Sec: int64(rapid.IntRange(1, 3).Draw(rt, "time")) * 1e8, Nsec: 7}
		switch rapid.IntRange(0, 5).Draw(rt, name) {
		case 0:
			continue
		case 1:
			must(t, unix.Mkfifo(p, 0o600))
		case 2:
			must(t, os.Symlink("/nowhere", p))
		case 3:
			must(t, os.WriteFile(p, []byte(fmt.Sprint(when.Sec)), 0o640))
		default:
			must(t, os.Mkdir(p, 0o755))
		}
		setTimes(t, p, when, when)
	}
}

func (g *rig) randomBatch(rt *rapid.T) *Batch {
	phase := uint8(rapid.SampledFrom([]int{1, 1, 2, 3, 4, 6}).Draw(rt, "phase"))
	names := rapid.Permutation(treeNames).Draw(rt, "order")
	names = names[:rapid.IntRange(1, len(names)).Draw(rt, "entries")]
	if phase == 2 && g.spec.DeleteEmpty { // as files have them: what is in a directory before it
		slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) })
	}
	mode := uint32(0o604)
	if !treetest.Root() {
		mode = 0o704 // what it is given to may be a directory, which is listed
	}
	var es []Entry
	for i, p := range names {
		e := Entry{Path: p, Mode: rapid.SampledFrom([]string{"bm", "mm", "nn"}).Draw(rt, "mode"),
			Meta: &entry.Meta{Mode: unix.S_IFREG | mode, Size: 3, Mtime: 2e8, Atime: 1}}
		var st unix.Stat_t
		isDir := false
		if unix.Lstat(filepath.Join(g.src, p), &st) == nil {
			e.Meta = metaOf(g.t, filepath.Join(g.src, p))
			isDir = fsys.Type(st.Mode) == unix.S_IFDIR
		}
		switch phase {
		case 1:
			e.Op = entry.OpCopy
			if isDir {
				e.Op = entry.OpMkdir
			}
		case 2:
			e.Op = rapid.SampledFrom([]entry.Op{entry.OpUnlink, entry.OpRemoveTree}).Draw(rt, "op")
		case 3:
			e.Op, e.Group = entry.OpLink, uint64(1+i%2)
		case 4:
			e.Op = entry.OpTouch
		case 6:
			e.Op = entry.OpFinish
		}
		es = append(es, e)
	}
	// A control file names no object both below and in place of another.
	b := g.batch(phase, es...)
	if phase == 1 || phase == 3 {
		b.Entries = consistent(b.Entries)
	}
	return b
}

// consistent drops entries below one that is no directory.
func consistent(es []Entry) []Entry {
	var out []Entry
	for i := range es {
		below := false
		for j := range es {
			below = below || es[j].Op != entry.OpMkdir && len(es[i].Path) > len(es[j].Path) && es[i].Path[:len(es[j].Path)+1] == es[j].Path+"/"
		}
		if !below {
			out = append(out, es[i])
		}
	}
	return out
}
