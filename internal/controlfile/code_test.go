package controlfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/controlfile/laxtest"
)

// tree is names of files in directories, as a scan has them.
type tree struct {
	dir   string
	files []string
}

// entries returns the lines of a kind for a tree.
func (x tree) entries(kind controlfile.Kind) []controlfile.Entry {
	meta := func(n int) controlfile.MetaRef {
		return controlfile.MetaRef{File: "meta_file_0", Offset: uint64(78 + n), Length: 120, Valid: true}
	}
	var list []controlfile.Entry
	switch kind {
	case controlfile.Copy:
		list = append(list, controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Mode: "bm", Dir: x.dir, Meta: meta(0)})
	case controlfile.Delete:
		list = append(list, controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: x.dir})
	case controlfile.Hardlink:
		list = append(list, controlfile.Entry{Type: controlfile.TypeGroup, LinkCount: uint64(len(x.files)), Inode: 7})
	case controlfile.Mtime:
		return append(list, controlfile.Entry{Type: controlfile.TypeTimes, IsDir: true, Dir: x.dir, Times: &controlfile.Times{
			Mode: 0o40755, Attr: controlfile.AttrDir, Mtime: 1_700_000_000, Ctime: -1, SubDirs: 2,
		}})
	}
	for i, name := range x.files {
		e := controlfile.Entry{Type: controlfile.TypeFile, Dir: x.dir, Name: name}
		switch kind {
		case controlfile.Copy:
			e.Mode = "bm"
			e.Meta = meta(i)
		case controlfile.Hardlink:
			e.Meta, e.FileCount = meta(i), 3
		}
		list = append(list, e)
	}
	return list
}

// pair is the plain and the coded file of a kind.
type pair struct {
	t     *testing.T
	kind  controlfile.Kind
	w     [2]*controlfile.Writer
	want  [2][]string // the paths in each
	under [2]string
}

func newPair(t *testing.T, kind controlfile.Kind) *pair {
	p := &pair{t: t, kind: kind}
	dir := t.TempDir()
	for i, version := range []string{"", kind.CodedVersion()} {
		w, err := controlfile.NewWriter(filepath.Join(dir, fmt.Sprint(i, ".txt")), controlfile.Header{Kind: kind, Version: version}, time.Unix(0, 0).UTC(), controlfile.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		p.w[i] = w
	}
	return p
}

// add writes lines where they belong, as a scan does.
func (p *pair) add(list []controlfile.Entry) {
	p.t.Helper()
	group := 0
	for _, e := range list {
		if p.kind == controlfile.Hardlink && controlfile.NeedsCode(p.kind, e) {
			group = 1
		}
	}
	for _, e := range list {
		i := group
		if p.kind != controlfile.Hardlink && controlfile.NeedsCode(p.kind, e) {
			i = 1
		}
		switch {
		case p.kind == controlfile.Hardlink || p.kind == controlfile.Mtime:
		case e.Type == controlfile.TypeDir:
			p.under[i] = e.Dir
		case p.under[i] != e.Dir:
			p.under[i] = e.Dir
			parent := controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: e.Dir}
			if p.kind == controlfile.Copy {
				parent.Mode = controlfile.ModeDeleted
			}
			if err := p.w[i].Add(parent, 0); err != nil {
				p.t.Fatal(err)
			}
		}
		if err := p.w[i].Add(e, 0); err != nil {
			p.t.Fatalf("%v, coded: %d", err, i)
		}
		if e.Type != controlfile.TypeGroup {
			p.want[i] = append(p.want[i], e.Dir+"|"+e.Name)
		}
		if i == 0 && e.Type != controlfile.TypeGroup {
			if controlfile.NeedsCode(p.kind, e) {
				p.t.Fatalf("%q|%q is not coded", e.Dir, e.Name)
			}
		}
	}
}

// check reads both files: ours finds all in them, others what is not coded.
func (p *pair) check() {
	p.t.Helper()
	for i, w := range p.w {
		if err := w.Close(); err != nil {
			p.t.Fatal(err)
		}
		b, err := os.ReadFile(w.Path())
		if err != nil {
			p.t.Fatal(err)
		}
		if _, err := controlfile.Check(w.Path(), p.kind); err != nil {
			p.t.Fatal(err)
		}
		var got []string
		for _, e := range p.ours(w.Path()) {
			got = append(got, e.Dir+"|"+e.Name)
		}
		if d := cmp.Diff(p.want[i], got); d != "" {
			p.t.Fatalf("we read, coded %d:\n%s\nin %q", i, d, b)
		}
		readers := []laxtest.Reader{{Joins: true}, {}}
		if i == 1 {
			readers = append(readers, laxtest.Reader{PassesBlanks: true})
		}
		for _, r := range readers {
			list, err := r.Read(p.kind, string(b))
			if err != nil {
				p.t.Fatalf("%+v: %v in %q", r, err, b)
			}
			p.lax(r, i == 1, list, b)
		}
	}
}

// ours returns the entries that our reader finds, without those that only name something.
func (p *pair) ours(path string) []controlfile.Entry {
	p.t.Helper()
	r, err := controlfile.Open(path, p.kind)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	var list []controlfile.Entry
	for {
		e, err := r.Next()
		if err != nil {
			return list
		}
		switch {
		case e.Type == controlfile.TypeBad:
			p.t.Fatal(e.Err)
		case e.Type == controlfile.TypeGroup, e.Mode == controlfile.ModeDeleted:
		case p.kind == controlfile.Delete && e.IsDir && h(r).Coded() && !wanted(p.want[1], e):
		default:
			list = append(list, e)
		}
	}
}

func h(r *controlfile.Reader) *controlfile.Header { h := r.Header(); return &h }

// wanted reports whether a parent's line was written for its own sake.
func wanted(want []string, e controlfile.Entry) bool {
	return slices.Contains(want, e.Dir+"|")
}

// lax holds what another reader found against what is in the file.
func (p *pair) lax(r laxtest.Reader, coded bool, list []laxtest.Entry, text []byte) {
	p.t.Helper()
	var got []string
	dir := ""
	for _, e := range list {
		switch {
		case e.Tag == "i":
			continue
		case e.Tag == "d":
			dir = e.Dir
		case e.Tag == "f" && p.kind != controlfile.Hardlink:
			e.Dir = dir
		}
		got = append(got, e.Dir+"|"+e.Name)
	}
	want := p.want[0]
	if coded {
		want = nil
	} else if !r.Joins {
		want = p.older()
	}
	if d := cmp.Diff(want, got); d != "" {
		p.t.Fatalf("%+v reads, coded %v:\n%s\nin %q", r, coded, d, text)
	}
}

// older returns what a reader finds that joins no lines: it loses names with a line end,
// in whatever file they are. To the files of such a directory it gives the directory
// before. It reads no metadata of the family that is written, so that harms nobody.
func (p *pair) older() []string {
	var want []string
	dir := ""
	for _, w := range p.want[0] {
		d, name, _ := strings.Cut(w, "|")
		isDir := name == "" && p.kind != controlfile.Hardlink
		switch broken := strings.Contains(d, "\n"); {
		case strings.Contains(name, "\n"), broken && isDir:
			continue
		case broken:
			d = dir
		case isDir:
			dir = d
		}
		want = append(want, d+"|"+name)
	}
	return want
}

// FuzzLaxReaders writes names into control files of a kind as a scan does. A reader of
// the reference must find there what is there, and of a coded file nothing.
func FuzzLaxReaders(f *testing.F) {
	for _, s := range []string{
		"a/b\nc/d,e", "new\nline,comma/x", "d/a\nf,b,c,d", "d/x\nf\ny", "d/x\nd", "d/i\ni,1,2", "x\n\ny/\n/z\n", "x\n-1/a", "5\n5,5,5,5,5/a\nf,bm,0,b,0,1,2,0",
		"a\nf,0,b,0,c,meta_file_0,78,120,0,3/l", "n\n0,a,1,2,3,4,5,6,7,8,9/l", "\n+0/\r\n", "a\n /b", "d/Title:x\n\nd,0,z,1", "f/f\nfoo", "\nd,/\nf,",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 3000 {
			return
		}
		var trees []tree
		for part := range strings.SplitSeq(string(data), "//") {
			names := strings.Split(part, "/")
			for _, n := range names {
				if n == "" || n == "." || n == ".." || len(n) > controlfile.MaxName || strings.ContainsAny(n, "\x00|") {
					return
				}
			}
			trees = append(trees, tree{"/" + names[0], names[1:]})
		}
		for kind := controlfile.Copy; kind <= controlfile.Mtime; kind++ {
			p := newPair(t, kind)
			for _, x := range trees {
				if kind != controlfile.Hardlink || len(x.files) > 0 {
					p.add(x.entries(kind))
				}
			}
			p.check()
		}
	})
}
