package controlfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestLinksOfOthersMayShareARecord: scanners write one record for an inode. In a
// file where entries may have been imitated, the name decides again.
func TestLinksOfOthersMayShareARecord(t *testing.T) {
	t.Parallel()
	md := OpenMetaDir("testdata/new/meta/latest")
	defer md.Close()
	n := 0
	for _, e := range readAll(t, readString(t, "testdata/new/ctrl/hardlink_control_0_0123456789abcdef.txt")) {
		if e.Type != TypeFile {
			continue
		}
		n++
		if _, err := md.Lookup(e.Meta, e); err != nil {
			t.Errorf("%q: %v", e.Path, err)
		}
		e.Suspect = true
		if _, err := md.Lookup(e.Meta, e); err == nil {
			t.Errorf("%q gets a record with another name", e.Path)
		}
	}
	if n != 9 {
		t.Errorf("%d links", n)
	}
}

func TestBadReferencesAreFailuresOfTheirEntry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"meta_file_1": "Title:Something Else\nVersion:1.0\nTimestamp:x\n\n",
		"meta_file_2": "Title:" + titleMetaNew + "\nVersion:9.0\nTimestamp:x\n\n",
		"meta_file_3": "no header",
		"meta_file_0": readString(t, "testdata/new/meta/latest/meta_file_0"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	md := OpenMetaDir(dir)
	defer md.Close()
	file := Entry{Type: TypeFile, Mode: "bm", Name: "plain.txt", Path: "src/plain.txt"}
	for _, tt := range []struct {
		ref  MetaRef
		e    Entry
		kind fault.Kind
		text string
	}{
		{MetaRef{}, file, fault.Invalid, "no record"},
		{MetaRef{File: "meta_file_7", Valid: true}, file, fault.NotFound, "does not exist"},
		{MetaRef{File: "../meta_file_0", Valid: true}, file, fault.Corrupt, "not meta_file_0 to"},
		{MetaRef{File: "meta_file_1", Offset: 80, Valid: true}, file, fault.Corrupt, `title is "Something Else"`},
		{MetaRef{File: "meta_file_2", Offset: 80, Valid: true}, file, fault.Corrupt, "only 2.0 can be read"},
		{MetaRef{File: "meta_file_3", Offset: 80, Valid: true}, file, fault.Corrupt, "no header"},
		{MetaRef{File: "meta_file_0", Offset: 10, Valid: true}, file, fault.Corrupt, "do not lie between"},
		{MetaRef{File: "meta_file_0", Offset: 5200, Valid: true}, file, fault.Corrupt, "do not lie between"},
		{MetaRef{File: "meta_file_0", Offset: 1 << 62, Valid: true}, file, fault.Corrupt, "do not lie between"},
		// The header of meta_file_0 is right, but there is no xmeta file here.
		{MetaRef{File: "meta_file_0", Offset: 78, Valid: true}, file, fault.NotFound, "xmeta_file_0"},
	} {
		m, err := md.Lookup(tt.ref, tt.e)
		if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, %v", tt.ref, m, err)
		}
	}
	real := OpenMetaDir("testdata/new/meta/latest")
	defer real.Close()
	asDir := Entry{Type: TypeDir, IsDir: true, Mode: "bm", Dir: "/plain.txt", Path: "plain.txt"}
	if _, err := real.Lookup(MetaRef{File: "meta_file_0", Offset: 78, Valid: true}, asDir); err == nil {
		t.Error("a directory gets a file's record")
	}
}

// TestMetaDirIsBoundedAndConcurrent reads from more files than it keeps open.
func TestMetaDirIsBoundedAndConcurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := NewMetaWriter(dir, Header{TaskID: "t"}, when, 3000)
	type item struct {
		ref  MetaRef
		name string
	}
	var items []item
	for i := range 1000 {
		name := fmt.Sprint("name-", i)
		ref, _, err := w.Add(&Meta{Meta: entry.Meta{Mode: 0o100644, Inode: uint64(i)}, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item{ref, name})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Files() < 2*metaOpenFiles {
		t.Fatalf("%d files", w.Files())
	}
	md := OpenMetaDir(dir)
	var g sync.WaitGroup
	for k := range 8 {
		g.Go(func() {
			for i := range items {
				i = (i*7 + k*131) % len(items)
				m, err := md.Lookup(items[i].ref, Entry{Type: TypeFile, Mode: "bm", Name: items[i].name})
				if err != nil || m.Inode != uint64(i) {
					t.Errorf("record %d: %+v, %v", i, m, err)
					return
				}
			}
		})
	}
	g.Wait()
	if len(md.files) > metaOpenFiles+8 {
		t.Errorf("%d files are open", len(md.files))
	}
	if err := md.Close(); err != nil {
		t.Error(err)
	}
}

func BenchmarkCheck(b *testing.B) {
	text := readString(b, "testdata/malformed/copy_ok.txt")
	head := text[:strings.Index(text, "\n\n")+2]
	head = strings.Replace(head, "FileCount:3", "FileCount:100000", 1)
	head = strings.Replace(head, "DirectoryCount:2", "DirectoryCount:1", 1)
	var s strings.Builder
	s.WriteString(head + "d,bm,0,/src,0,228,96,100000,0\n")
	for i := range 100000 {
		fmt.Fprintf(&s, "f,bm,0,some-file-name-%d.dat,0,%d,120,0\n", i, 300+120*i)
	}
	b.SetBytes(int64(s.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := check(strings.NewReader(s.String()), "b", Copy, int64(s.Len())); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	dir := b.TempDir()
	w := NewMetaWriter(dir, Header{TaskID: "t"}, when, 0)
	var refs []MetaRef
	for i := range 100000 {
		ref, _, err := w.Add(&Meta{Meta: entry.Meta{Mode: 0o100644, Inode: uint64(i)}, Name: "some-file-name.dat"})
		if err != nil {
			b.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	md := OpenMetaDir(dir)
	defer md.Close()
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := md.Lookup(refs[i], Entry{Type: TypeFile, Mode: "bm", Name: "some-file-name.dat"}); err != nil {
			b.Fatal(err)
		}
		i = (i + 1) % len(refs)
	}
}
