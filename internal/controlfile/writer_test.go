package controlfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// when is the time in the headers of testdata/new.
var when = time.Date(2026, 11, 23, 10, 28, 19, 0, time.UTC)

// TestWritesWhatTheReferenceWrites gives the writer the entries of the
// reference's files and wants the same bytes.
func TestWritesWhatTheReferenceWrites(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"control_0_0123456789abcdef.txt", "control_1_empty.txt",
		"hardlink_control_0_0123456789abcdef.txt", "mtime_0_0123456789abcdef.txt",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// What is risky to readers of the reference has no place in such a file.
			want := strings.NewReplacer(
				"f,bm,0,two\n\nbreaks,0,4350,120,0\n", "", "line,0,4590,96,3,0", "line,0,4590,96,2,0", "FileCount:37", "FileCount:36",
				"f,0,/src/nl\nd,0,l 1,meta_file_0,78,120,0,3\n", "", "f,0,/src/nl\nd,0,k:3,meta_file_0,438,120,0,3\n", "",
				"f,0,/src/nl\nd,0,-j,meta_file_0,798,120,0,3\n", "", "FileCount:9", "FileCount:6",
			).Replace(readString(t, "testdata/new/ctrl/"+name))
			r, err := NewReader(strings.NewReader(want), name, 0)
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), name)
			w, err := NewWriter(out, r.Header(), when, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range readAll(t, want) {
				// The sizes are not in the file; their sum is.
				var size uint64
				if kind := r.Header().Kind; kind == Copy && i == 1 || kind == Hardlink && i == 1 {
					size = r.Header().Bytes
				}
				if err := w.Add(e, size); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, readString(t, out)); d != "" {
				t.Error(d)
			}
			if left, _ := filepath.Glob(filepath.Dir(out) + "/*.tmp"); left != nil {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestWritesTheDeleteFileOfTheReference has its entries by hand: those of the
// reference's file that span lines cannot be read, and are not written either.
func TestWritesTheDeleteFileOfTheReference(t *testing.T) {
	t.Parallel()
	want := readString(t, "testdata/new/ctrl/delete_control_0_0123456789abcdef.txt")
	want = strings.NewReplacer("f,0,new\nline.txt\n", "", "d,0,/src/nl\ndir,1\n", "", "FileDeleteCount:4", "FileDeleteCount:3", "DirectoryDeleteCount:3", "DirectoryDeleteCount:2").Replace(want)
	r, err := NewReader(strings.NewReader(want), "d", Delete)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "delete_control_0_a.txt")
	w, err := NewWriter(out, r.Header(), when, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range readAll(t, want) {
		if err := w.Add(e, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(Entry{Type: TypeFile, Dir: "/src", Name: "new\nline"}, 0); !errors.Is(err, ErrNeedsCode) {
		t.Errorf("error %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, readString(t, out)); d != "" {
		t.Error(d)
	}
}

// TestWritesTheMetaFilesOfTheReference gives the writer the records of the
// reference's meta files, in their order, and wants the same bytes; padding is
// masked, because there the reference writes whatever its memory held.
func TestWritesTheMetaFilesOfTheReference(t *testing.T) {
	t.Parallel()
	const dir = "testdata/new/meta/latest/"
	wantMeta, wantX := []byte(readString(t, dir+"meta_file_0")), readString(t, dir+"xmeta_file_0")
	md := OpenMetaDir(dir)
	defer md.Close()
	out := t.TempDir()
	h := Header{
		TaskID: "task-0001", BackupType: "FULL", NasServer: "192.0.2.10", NasShare: "/share1", NasProtocol: "nfs",
		NasProtocolVersion: "3", MetadataScope: "folder-and-files",
	}
	w := NewMetaWriter(out, h, when, 0)
	byOffset := map[uint64]Entry{}
	for _, e := range readAll(t, readString(t, "testdata/new/ctrl/control_0_0123456789abcdef.txt")) {
		if e.Meta.Valid {
			byOffset[e.Meta.Offset] = e
		}
	}
	for off := uint64(78); off < uint64(len(wantMeta)); {
		e, ok := byOffset[off]
		if !ok {
			t.Fatalf("no entry for the record at %d", off)
		}
		m, err := md.Lookup(e.Meta, e)
		if err != nil {
			t.Fatal(err)
		}
		ref, dropped, err := w.Add(m)
		if err != nil || dropped != 0 || ref != e.Meta {
			t.Fatalf("ref %v, want %v; %d dropped, %v", ref, e.Meta, dropped, err)
		}
		wantMeta[off+2], wantMeta[off+3] = 0, 0
		if e.IsDir {
			copy(wantMeta[off+28:], []byte{0, 0, 0, 0})
		}
		off += uint64(ref.Length)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readString(t, filepath.Join(out, "meta_file_0")); got != string(wantMeta) {
		t.Errorf("meta file of %d bytes differs from the reference's of %d", len(got), len(wantMeta))
	}
	if got := readString(t, filepath.Join(out, "xmeta_file_0")); got != wantX {
		t.Errorf("xmeta file of %d bytes differs from the reference's of %d", len(got), len(wantX))
	}
}

func TestMetaFilesRotate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := NewMetaWriter(dir, Header{TaskID: "t"}, when, 400)
	var refs []MetaRef
	for i := range 10 {
		ref, _, err := w.Add(&Meta{Meta: entry.Meta{Mode: 0o100600, Inode: uint64(i)}, Name: fmt.Sprint("n", i)})
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Files() < 3 {
		t.Fatalf("%d files", w.Files())
	}
	md := OpenMetaDir(dir)
	defer md.Close()
	for i, ref := range refs {
		m, err := md.Lookup(ref, Entry{Type: TypeFile, Mode: "bm", Name: fmt.Sprint("n", i)})
		if err != nil || m.Inode != uint64(i) || !m.HasX {
			t.Errorf("record %d: %+v, %v", i, m, err)
		}
	}
}

// TestAValueWithNULIsLeftOutAndSaid: and the record then does not claim to hold
// all attributes.
func TestAValueWithNULIsLeftOutAndSaid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := NewMetaWriter(dir, Header{}, when, 0)
	in := &Meta{
		Meta: entry.Meta{
			Mode:   0o100600,
			Xattrs: []entry.Xattr{{Name: "user.a", Value: []byte("x")}, {Name: "user.b", Value: []byte("\x00\x01")}, {Name: "user.empty"}},
		},
		Attr: AttrFile, Name: "n",
	}
	ref, dropped, err := w.Add(in)
	if err != nil || dropped != 1 {
		t.Fatal(dropped, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	md := OpenMetaDir(dir)
	defer md.Close()
	m, err := md.Lookup(ref, Entry{Type: TypeFile, Mode: "bm", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if m.HasX || m.Attr != AttrFile {
		t.Errorf("HasX %v, attr %#x", m.HasX, m.Attr)
	}
	want := []entry.Xattr{{Name: "user.a", Value: []byte("x")}, {Name: "user.empty", Value: []byte{}}}
	if d := cmp.Diff(want, m.Xattrs); d != "" {
		t.Error(d)
	}
}

func TestUnwritableEntriesAreRefusedByKind(t *testing.T) {
	t.Parallel()
	w, err := NewWriter(filepath.Join(t.TempDir(), "control_0_a.txt"), Header{Kind: Copy}, when, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	meta := MetaRef{File: "meta_file_0", Offset: 78, Length: 120, Valid: true}
	long := strings.Repeat("a/", 2300) + "b"
	for _, tt := range []struct {
		e    Entry
		want error
	}{
		{Entry{Type: TypeDir, Mode: "bm", Dir: "/" + long, Meta: meta}, ErrLineTooLong},
		{Entry{Type: TypeFile, Mode: "bm", Dir: "/", Name: "x\nf,bm,0,evil,0,78,120,0\ny", Meta: meta}, ErrNeedsCode},
		{Entry{Type: TypeFile, Mode: "bm", Dir: "/", Name: "x\nf,bm,0,evil", Meta: meta}, ErrNeedsCode},
	} {
		err := w.Add(tt.e, 0)
		if !errors.Is(err, tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v, want %v", tt.e.Name, err, tt.want)
		}
	}
	if w.Entries() != 0 {
		t.Errorf("%d entries", w.Entries())
	}
}

// names yields any name that a file can have.
func names() *rapid.Generator[string] {
	special := rapid.StringMatching(`[dfi0-9,\n\r%:x\\ -]{1,40}`)
	raw := rapid.Map(rapid.SliceOfN(rapid.Byte(), 1, 255), func(b []byte) string { return string(b) })
	long := rapid.Map(rapid.SampledFrom([]string{",", "\n", "a", "é"}), func(s string) string {
		return strings.Repeat(s, 255)[:255]
	})
	return rapid.OneOf(special, raw, long).Filter(func(s string) bool { return checkName(s) == nil })
}

func genDir(t *rapid.T) string {
	return "/" + strings.Join(rapid.SliceOfN(names(), 0, 4).Draw(t, "dir"), "/")
}

func genRef(t *rapid.T) MetaRef {
	n := rapid.Uint64Range(0, 1<<40).Draw(t, "n")
	return MetaRef{File: fmt.Sprint("meta_file_", n%65536), Offset: n, Length: uint32(n%65535 + 1), Valid: true}
}

// genEntries yields entries of a kind as a scan would write them.
func genEntries(t *rapid.T, kind Kind) []Entry {
	var list []Entry
	mode := rapid.SampledFrom([]string{"bm", "dd", "mm", "nn", "zz"})
	for range rapid.IntRange(0, 4).Draw(t, "dirs") {
		dir := genDir(t)
		files := rapid.SliceOfN(names(), 0, 4).Draw(t, "files")
		switch kind {
		case Copy:
			e := Entry{Type: TypeDir, IsDir: true, Mode: mode.Draw(t, "mode"), Dir: dir}
			if e.Mode != ModeDeleted {
				e.Meta, e.ACL = genRef(t), rapid.Bool().Draw(t, "acl")
			}
			list = append(list, e)
			for _, name := range files {
				e := Entry{Type: TypeFile, Mode: mode.Draw(t, "mode"), Dir: dir, Name: name}
				if e.Mode != ModeDeleted {
					e.Meta = genRef(t)
				}
				list = append(list, e)
			}
		case Delete:
			list = append(list, Entry{Type: TypeDir, IsDir: true, Dir: dir, Delete: rapid.Bool().Draw(t, "delete")})
			for _, name := range files {
				list = append(list, Entry{Type: TypeFile, Dir: dir, Name: name})
			}
		case Hardlink:
			list = append(list, Entry{Type: TypeGroup, LinkCount: uint64(len(files)), Inode: rapid.Uint64().Draw(t, "inode")})
			for _, name := range files {
				list = append(list, Entry{Type: TypeFile, Dir: dir, Name: name, Meta: genRef(t), FileCount: 3})
			}
		case Mtime:
			n := rapid.Int64().Draw(t, "n")
			list = append(list, Entry{Type: TypeTimes, IsDir: true, Dir: dir, Times: &Times{
				Mode: uint32(n), Attr: AttrDir, UID: uint32(n >> 8), GID: 1, Ctime: n, Atime: -n, Mtime: 0, Btime: n / 2, SubDirs: 7,
			}})
		}
	}
	return list
}

// writeText writes what of the entries can be written; it returns these and the
// file's text.
func writeText(t *rapid.T, dir string, kind Kind, version string, list []Entry) ([]Entry, string, string) {
	path := filepath.Join(dir, "x.txt")
	w, err := NewWriter(path, Header{Kind: kind, Version: version, TaskID: "t"}, when, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var written []Entry
	last := -1 // index of the directory that file lines belong to
	skip := false
	for _, e := range list {
		if e.Type == TypeFile && skip {
			continue
		}
		if err := w.Add(e, 0); err != nil {
			if !errors.Is(err, ErrNeedsCode) && !errors.Is(err, ErrLineTooLong) {
				t.Fatal(err)
			}
			skip = skip || e.Type == TypeDir
			continue
		}
		if e.Type == TypeDir {
			last, skip = len(written), false
		} else if kind == Copy {
			written[last].FileCount++
		}
		written = append(written, e)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return written, string(b), path
}

// TestWhatIsWrittenReadsBack for names with commas, newlines, carriage returns,
// invalid UTF-8 and full length, in all kinds.
func TestWhatIsWrittenReadsBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		kind := Kind(rapid.IntRange(int(Copy), int(Mtime)).Draw(t, "kind"))
		version := rapid.SampledFrom([]string{"1.0", kind.CodedVersion()}).Draw(t, "version")
		want, text, path := writeText(t, dir, kind, version, genEntries(t, kind))
		got := readAllOrDie(t, text)
		for i := range got {
			if i < len(want) {
				want[i].Line, want[i].Lines, want[i].Path = got[i].Line, got[i].Lines, got[i].Path
			}
			if got[i].Err != nil {
				t.Fatalf("%v in\n%q", got[i].Err, text)
			}
			if kind == Delete && got[i].Lines > 1 {
				t.Fatalf("a delete entry of %d lines", got[i].Lines)
			}
			if p := strings.TrimPrefix(got[i].Dir+"/"+got[i].Name, "/"); got[i].Type == TypeFile && strings.TrimPrefix(p, "/") != got[i].Path {
				t.Fatalf("path %q of %q", got[i].Path, p)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%s\nin %q", d, text)
		}
		if s, err := Check(path, kind); err != nil || s.Entries() != uint64(len(got)) {
			t.Fatalf("admission: %v, %d entries, want %d", err, s.Entries(), len(got))
		}
	})
}

// TestReadingGoesOnAtEveryPosition also across JSON.
func TestReadingGoesOnAtEveryPosition(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/ctrl/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("testdata/malformed/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, more...) {
		all, err := Open(file, 0)
		if err != nil {
			continue // no header, or a dump
		}
		var list []Entry
		positions := []Position{all.Position()}
		for {
			e, err := all.Next()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			list = append(list, e)
			positions = append(positions, all.Position())
		}
		if err := all.Close(); err != nil {
			t.Fatal(err)
		}
		for i, pos := range positions {
			b, err := json.Marshal(pos)
			if err != nil {
				t.Fatal(err)
			}
			var back Position
			if err := json.Unmarshal(b, &back); err != nil || back != pos {
				t.Fatalf("%s: %+v is %+v as JSON: %v", file, pos, back, err)
			}
			r, err := OpenAt(file, 0, back)
			if err != nil {
				t.Fatal(err)
			}
			for k := i; ; k++ {
				e, err := r.Next()
				if errors.Is(err, io.EOF) {
					if k != len(list) {
						t.Errorf("%s from %d: ends at entry %d of %d", file, i, k, len(list))
					}
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if k >= len(list) || !cmp.Equal(render(list[k]), render(e)) {
					t.Fatalf("%s from %d: entry %d is %+v, want %+v", file, i, k, e, list[k])
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// render makes entries comparable whose errors are pointers.
func render(e Entry) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %v", e.Err, e.Times)
	e.Err, e.Times = nil, nil
	fmt.Fprintf(&b, "%+v", e)
	return b.String()
}

func readAllOrDie(t *rapid.T, text string) []Entry {
	r, err := NewReader(strings.NewReader(text), "text.txt", 0)
	if err != nil {
		t.Fatal(err)
	}
	var list []Entry
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
}
