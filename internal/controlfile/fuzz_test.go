package controlfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seedControl adds the golden files of a kind, and the malformed ones.
func seedControl(f *testing.F, kind Kind) {
	f.Helper()
	for _, pattern := range []string{"testdata/*/ctrl/*.txt", "testdata/malformed/*.txt"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			if k, err := Detect(file); err == nil && k == kind {
				f.Add([]byte(readString(f, file)))
			}
		}
	}
}

// readBounded reads a control file and checks what must hold of any input:
// reading ends, physical lines are neither lost nor counted twice, no entry
// leads out of the roots, each unreadable one says why on one line.
func readBounded(t *testing.T, data []byte) []Entry {
	t.Helper()
	r, err := NewReader(bytes.NewReader(data), "fuzz.txt", 0)
	if err != nil {
		if strings.Contains(err.Error(), "\n") {
			t.Fatalf("not one line: %q", err)
		}
		return nil
	}
	var list []Entry
	for {
		before := r.Position()
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if after := r.Position(); after.Offset <= before.Offset || after.Line != e.Line+uint64(e.Lines) || e.Line != before.Line {
			t.Fatalf("entry of lines %d+%d from %+v to %+v", e.Line, e.Lines, before, after)
		}
		line := e.Line
		if e.Type == TypeBad {
			if e.Err == nil || strings.Contains(e.Err.Error(), "\n") {
				t.Fatalf("line %d: reason %v", line, e.Err)
			}
		} else {
			if e.Err != nil {
				t.Fatal(e.Err)
			}
			if len(e.Path) > MaxPath || len(e.Dir)+len(e.Name) > MaxLine {
				t.Fatalf("line %d: path of %d bytes", line, len(e.Path))
			}
			if e.Path != "" && !filepath.IsLocal(e.Path) || e.Type == TypeFile && e.Path == "" {
				t.Fatalf("line %d: path %q", line, e.Path)
			}
		}
		list = append(list, e)
	}
	if p := r.Position(); p.Offset != int64(len(data)) {
		t.Fatalf("reading ended at %d of %d", p.Offset, len(data))
	}
	return list
}

// writeBack writes the readable entries anew; what the writer takes must read
// back as the same entries.
func writeBack(t *testing.T, data []byte, list []Entry) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(data), "fuzz.txt", 0)
	if err != nil {
		return
	}
	path := filepath.Join(t.TempDir(), "x.txt")
	w, err := NewWriter(path, r.Header(), when, Limits{})
	if err != nil {
		return // a carriage return in a header value
	}
	var want []string
	skip, parent := false, ""
	for _, e := range list {
		if e.Type == TypeBad || e.Type == TypeFile && skip && w.g.kind != Hardlink {
			continue
		}
		err := w.Add(e, 0)
		if e.Type == TypeDir {
			skip, parent = err != nil, e.Dir
		}
		if err == nil {
			want = append(want, e.Type.String()+parent+"|"+e.Path+"|"+e.Mode)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	parent = ""
	for _, e := range readBounded(t, b) {
		if e.Type == TypeDir {
			parent = e.Dir
		}
		if e.Type == TypeBad {
			t.Fatalf("%v in %q", e.Err, b)
		}
		got = append(got, e.Type.String()+parent+"|"+e.Path+"|"+e.Mode)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s\nin %q", d, b)
	}
	if _, err := Check(path, 0); err != nil {
		t.Fatal(err)
	}
}

func fuzzControl(f *testing.F, kind Kind) {
	seedControl(f, kind)
	f.Fuzz(func(t *testing.T, data []byte) {
		list := readBounded(t, data)
		if len(list) > 0 {
			writeBack(t, data, list)
		}
	})
}

func FuzzCopy(f *testing.F)     { fuzzControl(f, Copy) }
func FuzzDelete(f *testing.F)   { fuzzControl(f, Delete) }
func FuzzHardlink(f *testing.F) { fuzzControl(f, Hardlink) }
func FuzzMtime(f *testing.F)    { fuzzControl(f, Mtime) }

// memFile makes a meta file of bytes.
func memFile(data []byte) (*metaFile, error) {
	f := &metaFile{path: "fuzz", f: bytes.NewReader(data), size: int64(len(data))}
	return f, f.readHeader()
}

func FuzzMeta(f *testing.F) {
	for _, file := range []string{"testdata/new/meta/latest/meta_file_0", "testdata/old/meta/latest/meta_file_0"} {
		data := []byte(readString(f, file))
		f.Add(data, uint64(78), uint16(120), "plain.txt", false)
		f.Add(data, uint64(1998), uint16(96), "/src", true)
		f.Add(data, uint64(218), uint16(97), "plain.txt", false)
	}
	f.Fuzz(func(t *testing.T, data []byte, off uint64, size uint16, name string, isDir bool) {
		file, err := memFile(data)
		if err != nil {
			return
		}
		e := Entry{Type: TypeFile, Name: name, Mode: "bm"}
		if isDir {
			e = Entry{Type: TypeDir, Dir: name, IsDir: true, Mode: "bm"}
		}
		ref := MetaRef{File: "meta_file_0", Offset: off, Length: uint32(size), Valid: true}
		if m, err := file.readOld(ref, e); err == nil && len(m.Name)+len(m.AccessACL)+len(m.DefaultACL) > int(size) {
			t.Fatalf("a record of %d bytes with %d of name and ACL", size, len(m.Name))
		}
		m, x, err := file.readNew(ref, e)
		if err != nil {
			return
		}
		// The record's bytes come back, padding and the err field excepted.
		var again []byte
		if isDir {
			again = appendDirNew(nil, m, m.Attr, x)
			m2, x2 := decodeDirNew(again)
			if d := cmp.Diff(*m, m2); d != "" || x != x2 || len(again) != sizeDirNew {
				t.Fatal(d)
			}
		} else {
			again = appendFileNew(nil, m, m.Attr, x)
			m2, x2 := decodeFileNew(again)
			if d := cmp.Diff(*m, m2); d != "" || x != x2 || len(again) != sizeFileNew {
				t.Fatal(d)
			}
		}
	})
}

func FuzzXMeta(f *testing.F) {
	for _, file := range []string{"testdata/new/meta/latest/xmeta_file_0", "testdata/quirks/xmeta_file_0"} {
		data := []byte(readString(f, file))
		for _, off := range []uint64{198, 213, 218, 241, 262, 324, 372, 402, 486, 1214, 1607} {
			f.Add(data, off)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, off uint64) {
		file, err := memFile(data)
		if err != nil {
			return
		}
		var m Meta
		if err := file.readXmeta(&m, off); err != nil {
			return
		}
		rec, dropped := appendXmeta(nil, &m)
		if dropped > 0 {
			return // a value with a NUL, which is read and never written
		}
		size, err := xmetaSize(rec)
		if err != nil || size != len(rec)-xmetaHead {
			t.Fatal(size, err)
		}
		var back Meta
		if err := back.decodeXmeta(le.Uint32(rec), rec[xmetaHead:]); err != nil {
			t.Fatal(err)
		}
		again, _ := appendXmeta(nil, &back)
		if !bytes.Equal(rec, again) {
			t.Fatalf("%q became %q", rec, again)
		}
	})
}

func FuzzACL(f *testing.F) {
	f.Add("user::rwx\nuser:1000:r-x\ngroup::r-x\ngroup:5:r--\nmask::rwx\nother::---\n", []byte("\x02\x00\x00\x00"))
	if b, err := ACLToXattr("user::rw-\ngroup::r--\nother::---\n"); err == nil {
		f.Add("user::rw-,group::r--", b)
	}
	f.Fuzz(func(t *testing.T, text string, value []byte) {
		if b, err := ACLToXattr(text); err == nil {
			canonical, err := ACLFromXattr(b)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if b2, err := ACLToXattr(canonical); err != nil || !bytes.Equal(b, b2) {
				t.Fatalf("%q: %v", canonical, err)
			}
		}
		if s, err := ACLFromXattr(value); err == nil {
			b, err := ACLToXattr(s)
			if err != nil {
				t.Fatalf("%q: %v", s, err)
			}
			if s2, err := ACLFromXattr(b); err != nil || s2 != s {
				t.Fatalf("%q became %q: %v", s, s2, err)
			}
		}
	})
}
