package scanner

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// line is a line of a control file that does something.
type line struct {
	kind   controlfile.Kind
	path   string
	isDir  bool
	mode   string
	leader string // of a link: the first member of its group
}

// linesOf reads all that a scan wrote.
func linesOf(t *testing.T, res *Result) []line {
	t.Helper()
	readBack(t, res) // by way of admission, and with all records
	var out []line
	for _, f := range res.ControlFiles {
		r, err := controlfile.Open(f.Path, f.Kind)
		if err != nil {
			t.Fatal(err)
		}
		leader, first := "", false
		for {
			e, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || e.Type == controlfile.TypeBad {
				t.Fatal(err, e.Err)
			}
			if first && e.Type == controlfile.TypeFile {
				leader, first = e.Path, false
			}
			switch {
			case e.Type == controlfile.TypeGroup:
				first = true
			case e.Mode == controlfile.ModeDeleted, f.Kind == controlfile.Delete && e.IsDir && !e.Delete:
			default:
				out = append(out, line{kind: f.Kind, path: e.Path, isDir: e.IsDir, mode: e.Mode, leader: leader})
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// object is what the model of a destination has at a path.
type object struct {
	isDir bool
	meta  string // of a directory whose names have changed since it was finished: ""
	data  string
	inode int
}

// model is a destination that does what the engine does, and remembers it.
type model struct {
	objects map[string]object
	inodes  int
}

func newModel() *model { return &model{objects: map[string]object{"": {isDir: true}}} }

func parentOf(p string) string {
	if dir := path.Dir(p); dir != "." {
		return dir
	}
	return ""
}

func (m *model) disturb(p string) {
	o := m.objects[parentOf(p)]
	o.meta = ""
	m.objects[parentOf(p)] = o
}

func (m *model) mkdir(p string) {
	if p == "" || m.objects[p].isDir {
		return
	}
	m.mkdir(parentOf(p))
	m.removeTree(p)
	m.objects[p] = object{isDir: true}
	m.disturb(p)
}

func (m *model) removeTree(p string) {
	if _, ok := m.objects[p]; ok {
		m.disturb(p)
	}
	maps.DeleteFunc(m.objects, func(q string, _ object) bool { return q == p || strings.HasPrefix(q, p+"/") })
}

// source is what a listing says of one path.
func metaOf(e *treetest.Entry) string {
	return fmt.Sprint(e.Type, e.Mode, e.UID, e.GID, e.MtimeNS, e.Xattrs)
}

func dataOf(e *treetest.Entry) string {
	return fmt.Sprint(e.Type, e.Size, e.Rdev, e.Target, e.Content)
}

func (m *model) put(p string, o object) {
	m.mkdir(parentOf(p))
	m.removeTree(p)
	m.objects[p] = o
	m.disturb(p)
}

func (m *model) links(inode int) (n int) {
	for _, o := range m.objects {
		if !o.isDir && o.inode == inode {
			n++
		}
	}
	return n
}

// do executes a line; with src being what the source has.
func (m *model) do(l line, src map[string]*treetest.Entry) {
	e := src[l.path]
	switch l.kind {
	case controlfile.Copy:
		if l.isDir {
			m.mkdir(l.path)
			return
		}
		o := object{meta: metaOf(e), data: dataOf(e), inode: m.inodes}
		was, ok := m.objects[l.path]
		if l.mode == "mm" && ok && !was.isDir && was.data == o.data && m.links(was.inode) == 1 {
			// In place: contents are compared, as a backup does.
			was.meta = o.meta
			m.objects[l.path] = was
			return
		}
		m.inodes++
		m.put(l.path, o)
	case controlfile.Delete:
		o, ok := m.objects[l.path]
		if e != nil && (e.Type == modeDir) == l.isDir || !ok || o.isDir != l.isDir {
			return
		}
		for p := range m.objects {
			if strings.HasPrefix(p, l.path+"/") {
				return // a directory that is not empty stays
			}
		}
		m.removeTree(l.path)
	case controlfile.Hardlink:
		if l.leader == l.path {
			m.put(l.path, object{meta: metaOf(e), data: dataOf(e), inode: m.inodes})
			m.inodes++
		} else if lead, ok := m.objects[l.leader]; ok && !lead.isDir {
			m.put(l.path, lead)
		}
	}
}

// finish gives the directories of copy lines their metadata.
func (m *model) finish(l line, src map[string]*treetest.Entry) {
	if o := m.objects[l.path]; l.isDir && o.isDir && src[l.path] != nil {
		o.meta = metaOf(src[l.path])
		m.objects[l.path] = o
	}
}

// dirsLast puts delete lines in the order in which they are executed: directories
// last, and as they come.
func dirsLast(lines []line, r *rand.Rand) []line {
	var files, dirs []line
	for _, l := range lines {
		if l.isDir {
			dirs = append(dirs, l)
		} else {
			files = append(files, l)
		}
	}
	r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	return append(files, dirs...)
}

// run executes lines in the order of the phases; stop, if not negative, is after
// how many of them it is killed. Within a phase the order is any.
func (m *model) run(lines []line, list []treetest.Entry, r *rand.Rand, stop int, fails func(line) bool) []Failed {
	src := map[string]*treetest.Entry{}
	for i := range list {
		src[list[i].Path] = &list[i]
	}
	var failed []Failed
	for _, kind := range []controlfile.Kind{controlfile.Copy, controlfile.Delete, controlfile.Hardlink, 0} {
		var todo []line
		lost := map[string]bool{}
		for _, l := range lines {
			if l.kind == kind || kind == 0 && l.kind == controlfile.Copy && l.isDir {
				todo = append(todo, l)
			}
		}
		if kind == controlfile.Delete {
			todo = dirsLast(todo, r)
		} else {
			r.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
		}
		// A leader comes before its members.
		slices.SortStableFunc(todo, func(a, b line) int {
			if a.leader != b.leader {
				return strings.Compare(a.leader, b.leader)
			}
			if a.leader == "" {
				return 0
			}
			return map[bool]int{true: -1}[a.path == a.leader] - map[bool]int{true: -1}[b.path == b.leader]
		})
		for _, l := range todo {
			if stop--; stop == -1 {
				return nil
			}
			if fails != nil && fails(l) || lost[l.leader] && l.leader != "" {
				failed = append(failed, Failed{Path: l.path, Delete: kind == controlfile.Delete})
				if l.path == l.leader {
					lost[l.leader] = true
				}
				continue
			}
			if kind == 0 {
				m.finish(l, src)
			} else {
				m.do(l, src)
			}
		}
	}
	return failed
}

// differs compares the destination with the source, groups of links included.
func (m *model) differs(list []treetest.Entry) []string {
	var out []string
	inodes := map[int]uint64{}
	back := map[uint64]int{}
	for i := range list {
		e := &list[i]
		o, ok := m.objects[e.Path]
		want := object{isDir: e.Type == modeDir, meta: metaOf(e)}
		if !want.isDir {
			want.data, want.inode = dataOf(e), o.inode
		}
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("missing: %v", e))
		case o != want:
			out = append(out, fmt.Sprintf("%q: want %v, have %v", e.Path, want, o))
		case !o.isDir:
			if ino, ok := inodes[o.inode]; ok && ino != e.Inode {
				out = append(out, fmt.Sprintf("%q is linked to something else", e.Path))
			}
			if n, ok := back[e.Inode]; ok && n != o.inode {
				out = append(out, fmt.Sprintf("%q is not linked to its group", e.Path))
			}
			inodes[o.inode], back[e.Inode] = e.Inode, o.inode
		}
	}
	if len(m.objects) > len(list) {
		here := map[string]bool{}
		for i := range list {
			here[list[i].Path] = true
		}
		for p := range m.objects {
			if !here[p] {
				out = append(out, fmt.Sprintf("left over: %q", p))
			}
		}
	}
	slices.Sort(out)
	return out
}
