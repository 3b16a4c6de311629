package controlfile

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/differences.txt anew")

// TestReadsWhatTheReferenceReads compares the reader with dumps of what the
// reference implementation's own readers saw. testdata/differences.txt lists
// all differences: "+" is what only this reader sees, "-" what only the
// reference saw. There are three causes. Its delete reader cuts names at a
// newline, so that another file would be deleted: refused here. Its old reader
// loses entries with a newline in the name, and puts the files of a lost
// directory under the one before it. Its old reader reads none of the mtime
// lines that its old writer writes.
func TestReadsWhatTheReferenceReads(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	entryNumber := regexp.MustCompile(`(?m)^entry \d+ (ret=2)?`)
	for _, family := range []string{"new", "old"} {
		files, err := filepath.Glob("testdata/" + family + "/ctrl/*.txt")
		if err != nil || len(files) != 5 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			root := "testdata/" + family + "/"
			base := filepath.Base(file)
			want, err := os.ReadFile(root + strings.TrimSuffix(base, ".txt") + ".dump.txt")
			if err != nil {
				t.Fatal(err)
			}
			got := dump(t, file, root+"meta/latest", family == "old")
			fmt.Fprintf(&all, "%s/%s\n", family, base)
			all.WriteString(lineDiff(strings.TrimRight(entryNumber.ReplaceAllString(string(want), ""), "\n"), strings.TrimRight(got, "\n")))
		}
	}
	const path = "testdata/differences.txt"
	if *update {
		if err := os.WriteFile(path, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(all.String(), "\n")); d != "" {
		t.Error("the differences to the reference are others than listed (-listed +found):\n" + d)
	}
}

// lineDiff returns the lines that only a has, marked "-", and only b, marked "+".
func lineDiff(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	common := make([][]int, len(x)+1) // longest common subsequence of the rests
	for i := range common {
		common[i] = make([]int, len(y)+1)
	}
	for i := range slices.Backward(x) {
		for j := range slices.Backward(y) {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&out, "- %s\n", x[i])
			i++
		default:
			fmt.Fprintf(&out, "+ %s\n", y[j])
			j++
		}
	}
	return out.String()
}

// dump renders a control file as the dumps do, without entry numbers.
func dump(t *testing.T, path, metaDir string, old bool) string {
	t.Helper()
	r, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	md := OpenMetaDir(metaDir)
	defer md.Close()
	var b strings.Builder
	out := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	h := r.Header()
	out("open=0\nheader title=%s\nheader version=%s\nheader timestamp=%s\nheader taskId=%s", esc(h.Title), esc(h.Version), esc(h.Timestamp), esc(h.TaskID))
	out("header nasServer=%s\nheader nasShare=%s\nheader proto=%s\nheader protoVersion=%s", esc(h.NasServer), esc(h.NasShare), esc(h.NasProtocol), esc(h.NasProtocolVersion))
	if h.Kind != Delete {
		out("header backupType=%s", esc(h.BackupType))
	}
	switch h.Kind {
	case Copy:
		out("header metaDataScope=%s\nheader dirs=%d files=%d dataSize=%d", esc(h.MetadataScope), h.Dirs, h.Files, h.Bytes)
	case Delete:
		out("header delDirs=%d delFiles=%d", h.Dirs, h.Files)
	case Hardlink:
		out("header files=%d dataSize=%d", h.Files, h.Bytes)
	case Mtime:
		out("header dirs=%d", h.Dirs)
	}
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		dumpEntry(t, out, h.Kind, e, old)
		if e.Meta.Valid && h.Kind == Copy {
			dumpMeta(t, out, metaDir, md, e, old)
		}
	}
	return b.String()
}

func dumpEntry(t *testing.T, out func(string, ...any), kind Kind, e Entry, old bool) {
	t.Helper()
	idx := 0
	if e.Meta.Valid {
		n, err := MetaFileIndex(e.Meta.File)
		if err != nil {
			t.Fatal(err)
		}
		idx = int(n)
	}
	acl := 0
	if e.ACL {
		acl = 1
	}
	switch {
	case e.Type == TypeBad:
		_, reason, _ := strings.Cut(e.Err.Error(), `.txt": `)
		out("bad: %s", reason)
	case kind == Copy && e.IsDir:
		files := e.FileCount
		if e.Mode == ModeDeleted {
			files = 0 // the reference does not keep it
		}
		out("dir mode=%s name=%s meta=%s idx=%d off=%d len=%d files=%d acl=%d", esc(e.Mode), esc(e.Dir), esc(e.Meta.File), idx, e.Meta.Offset, e.Meta.Length, files, acl)
	case kind == Copy:
		out("file mode=%s name=%s meta=%s idx=%d off=%d len=%d acl=%d", esc(e.Mode), esc(e.Name), esc(e.Meta.File), idx, e.Meta.Offset, e.Meta.Length, acl)
	case kind == Delete && e.IsDir:
		del := 0
		if e.Delete {
			del = 1
		}
		out("dir path=%s isDel=%d", esc(e.Dir), del)
	case kind == Delete:
		out("file name=%s", esc(e.Name))
	case e.Type == TypeGroup:
		out("inode links=%d inode=%d", e.LinkCount, e.Inode)
	case kind == Hardlink && old:
		out("link dir=%s file=%s meta=%s off=%d len=%d acl=%d", esc(e.Dir), esc(e.Name), esc(e.Meta.File), e.Meta.Offset, e.Meta.Length, acl)
	case kind == Hardlink:
		out("link dir=%s file=%s meta=%s off=%d len=%d acl=%d hlFilesCnt=%d", esc(e.Dir), esc(e.Name), esc(e.Meta.File), e.Meta.Offset, e.Meta.Length, acl, e.FileCount)
	case kind == Mtime:
		m := e.Times
		out("path=%s mode=%o attr=%d uid=%d gid=%d c=%d a=%d m=%d b=%d subDirs=%d", esc(e.Dir), m.Mode, m.Attr, m.UID, m.GID, m.Ctime, m.Atime, m.Mtime, m.Btime, m.SubDirs)
	}
}

func dumpMeta(t *testing.T, out func(string, ...any), dir string, md *MetaDir, e Entry, old bool) {
	t.Helper()
	m, err := md.Lookup(e.Meta, e)
	if err != nil {
		t.Fatal(err)
	}
	times := fmt.Sprintf("m=%d a=%d c=%d b=%d", m.Mtime, m.Atime, m.Ctime, m.Btime)
	if old {
		acl := fmt.Sprintf("aclSize=%d acl=%s", len(m.AccessACL), esc(m.AccessACL))
		if e.IsDir {
			out("  meta ret=0 path=%s ino=%d size=%d %s attr=%d mode=%o uid=%d gid=%d %s", esc(m.Name), m.Inode, m.Size, times, m.Attr, m.Mode, m.UID, m.GID, acl)
		} else {
			out("  meta ret=0 name=%s ino=%d size=%d rdev=%d %s attr=%d mode=%o nlink=%d uid=%d gid=%d %s", esc(m.Name), m.Inode, m.Size, m.Rdev, times, m.Attr, m.Mode, m.Nlink, m.UID, m.GID, acl)
		}
		return
	}
	raw, err := os.ReadFile(filepath.Join(dir, e.Meta.File))
	if err != nil {
		t.Fatal(err)
	}
	if e.IsDir {
		_, x := decodeDirNew(raw[e.Meta.Offset:])
		out("  meta ret=0 type=%d hl=%d sub=%d ino=%d size=%d %s attr=%d mode=%o uid=%d gid=%d xidx=%d xoff=%d", m.Type, m.HardlinkFiles, m.SubDirs, m.Inode, m.Size, times, m.Attr, m.Mode, m.UID, m.GID, x.index, x.offset)
	} else {
		_, x := decodeFileNew(raw[e.Meta.Offset:])
		out("  meta ret=0 type=%d ino=%d size=%d err=0 rdev=%d %s blksize=%d blocks=%d attr=%d mode=%o nlink=%d uid=%d gid=%d xidx=%d xoff=%d", m.Type, m.Inode, m.Size, m.Rdev, times, m.BlockSize, m.Blocks, m.Attr, m.Mode, m.Nlink, m.UID, m.GID, x.index, x.offset)
	}
	rec, _ := appendXmeta(nil, m)
	out("  xmeta ret=0 n=%d", le.Uint32(rec))
	var parsed []string
	for b := rec[xmetaHead:]; len(b) > 0; {
		n := le.Uint32(b[2:])
		out("    type=%d value=%s", le.Uint16(b), esc(string(b[tlvHead:tlvHead+n])))
		b = b[tlvHead+n:]
	}
	for _, x := range m.Xattrs {
		parsed = append(parsed, fmt.Sprintf("    parsed-xattr %s=%s", esc(x.Name), esc(string(x.Value))))
	}
	for _, x := range m.Sparse {
		parsed = append(parsed, fmt.Sprintf("    parsed-sparse %d,%d", x.Offset, x.Length))
	}
	for _, p := range parsed {
		out("%s", p)
	}
}

// esc quotes bytes as the dumps do.
func esc(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
