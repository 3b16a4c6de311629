package controlfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// malformed says what becomes of each damaged file: refused at admission for
// the reason given, or admitted with the entries that can be read and the
// failures listed.
var malformed = []struct {
	file    string
	refused string   // what the error of admission says; "" = admitted
	good    int      // entries that can be read, by the Reader, whatever admission says; -1 = not even the header
	bad     []string // line and reason of each entry that cannot
}{
	{"copy_bad_timestamp", `line 3: the timestamp "2026" has not the form YYYY-Mon-DD HH:MM:SS`, -1, nil},
	{"copy_blank_line_middle", "", 5, []string{"line 17: a blank line"}},
	{"copy_counts_wrong_in_header", "the header announces 2 directories and 99 files, the body has 2 directories and 3 files and 0 unreadable entries", 5, nil},
	{"copy_crlf", "", 5, nil},
	{"copy_file_before_any_dir", "", 5, []string{"line 15: a file line before any directory line"}},
	{"copy_header_empty_values", "", 5, nil},
	{"copy_header_line_missing", "line 13: the header has no TaskId line", -1, nil},
	{"copy_header_order_swapped", "", 5, nil},
	{"copy_header_truncated", `line 6: the header line "NasSer" has no colon`, -1, nil},
	{"copy_meta_index_not_number", "", 4, []string{`line 16: the meta file index is "xx", not a number from 0 to 65535`}},
	{"copy_meta_index_over_65535", "", 4, []string{`line 16: the meta file index is "65537", not a number from 0 to 65535`}},
	{"copy_newline_in_name", "", 5, nil},
	{"copy_newline_in_name_last", "the header announces 2 directories and 3 files, the body has 2 directories and 4 files", 6, nil},
	{"copy_no_blank_line", `line 14: a blank line must follow the header, not "d,bm,0,/src,0,228,76,2,0"`, -1, nil},
	{"copy_no_final_newline", "", 5, nil},
	{"copy_ok", "", 5, nil},
	{"copy_only_header", "the header announces 2 directories and 3 files, the body has 0 directories and 0 files", 0, nil},
	{"copy_short_f_comma_line", "", 5, []string{`line 16: not an entry: "f,bm"`}},
	{"copy_title_wrong", `line 1: the title is not that of a control file: "Title:Some Other Backup Control File"`, -1, nil},
	{"copy_unknown_mode", "", 5, nil},
	{"copy_unknown_type_last", "", 5, []string{`line 20: not an entry: "x,bm,0,q,0,1,2,0"`}},
	{"copy_v10_ok", "", 7, nil},
	{"copy_v20_header_with_v10_files", "", 1, []string{
		`line 15: the meta file index is "meta_file_7", not a number from 0 to 65535`,
		`line 16: not an entry: "f,bm,0,a.txt,304,90,0"`,
		`line 17: not an entry: "f,dm,1,b,c.txt,400,90,1"`,
		"line 18: the directory line above it could not be read: its parent is not known",
		`line 20: the meta file index is "meta_file_8", not a number from 0 to 65535`,
		`line 21: not an entry: "f,mm,0,z,600,80,0"`,
	}},
	{"copy_version_9", `line 2: version "9.9" of a copy control file is not known`, -1, nil},
	{"copy_wrong_comma_count_last", "", 5, []string{`line 20: not an entry: "f,dm,3,b,c.txt,0,400,90,0"`}},
	{"copy_wrong_comma_count_mid", "the header announces 2 directories and 3 files, the body has 2 directories and 1 files and 1 unreadable entries", 3, []string{
		`line 16: not an entry: "f,dm,0,b,c.txt,0,400,90,0"`,
	}},
	{"copy_zero_bytes", "line 1: the file is empty", -1, nil},
	{"delete_bad_flag", "", 0, []string{
		`line 12: the delete flag is "x", not 0 or 1`,
		"line 13: the directory line above it could not be read: its parent is not known",
		`line 14: the delete flag is "2", not 0 or 1`,
	}},
	{"hardlink_10_columns", "", 3, nil},
	{"hardlink_9_columns", "", 3, nil},
	{"hardlink_huge_dir_commas", "the header announces 2 links, the body has 0 links and 1 unreadable entries", 1, []string{
		`line 14: not an entry: "f,50000000,/src,0,a,meta_file_0,300,90,0,2"`,
	}},
	{"mtime_10_columns", "", 1, nil},
	{"mtime_11_columns", "the header announces 1 directories, the body has 2 directories and 0 unreadable entries", 2, nil},
}

func TestMalformedFilesFailWithLineAndReason(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/malformed/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, tt := range malformed {
		known[tt.file] = true
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			path := "testdata/malformed/" + tt.file + ".txt"
			_, err := Check(path, 0)
			switch {
			case tt.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("error %v, want %q", err, tt.refused)
			case err != nil && (!strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n")):
				t.Errorf("the error is not one line that names the file: %v", err)
			case err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Corrupt:
				t.Errorf("kind %v", fault.KindOf(err))
			}
			r, err := Open(path, 0)
			if tt.good < 0 {
				if err == nil {
					t.Error("the reader accepts the header")
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			good, bad := 0, []string(nil)
			for {
				e, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				if e.Type == TypeBad {
					_, reason, _ := strings.Cut(e.Err.Error(), `.txt": `)
					bad = append(bad, reason)
				} else {
					good++
				}
			}
			for i := range min(len(bad), len(tt.bad)) {
				if strings.HasPrefix(bad[i], tt.bad[i]) {
					bad[i] = tt.bad[i]
				}
			}
			if good != tt.good {
				t.Errorf("%d entries can be read, want %d", good, tt.good)
			}
			if d := cmp.Diff(tt.bad, bad); d != "" {
				t.Errorf("failures (-want +got):\n%s", d)
			}
		})
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".txt"); !strings.Contains(name, ".dump") && !known[name] {
			t.Errorf("%s is in no table row", f)
		}
	}
}

func TestHeaderFieldsAreTakenByLabel(t *testing.T) {
	t.Parallel()
	r, err := Open("testdata/malformed/copy_header_order_swapped.txt", Copy)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h := r.Header(); h.TaskID != "task-0001" || h.BackupType != "FULL" {
		t.Errorf("task %q, type %q", h.TaskID, h.BackupType)
	}
}

func TestHeaderValuesKeepTheirColons(t *testing.T) {
	t.Parallel()
	text := strings.Replace(readString(t, "testdata/malformed/copy_ok.txt"), "192.0.2.10", "2001:db8::1", 1)
	r, err := NewReader(strings.NewReader(text), "x", Copy)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Header().NasServer; got != "2001:db8::1" {
		t.Errorf("server %q", got)
	}
}

func TestAnotherKindIsRefusedWithBothNamed(t *testing.T) {
	t.Parallel()
	_, err := Open("testdata/malformed/mtime_11_columns.txt", Delete)
	if err == nil || !strings.Contains(err.Error(), "this is a mtime control file") || !strings.Contains(err.Error(), "not a delete control file") {
		t.Error(err)
	}
	if k, err := Detect("testdata/malformed/mtime_11_columns.txt"); k != Mtime || err != nil {
		t.Error(k, err)
	}
	if _, err := Detect("testdata/malformed/copy_title_wrong.txt"); err == nil {
		t.Error("no error")
	}
}

func TestASecondHeaderIsRefused(t *testing.T) {
	t.Parallel()
	text := readString(t, "testdata/malformed/copy_ok.txt")
	_, err := check(strings.NewReader(text+text), "twice.txt", Copy, 0)
	if err == nil || !strings.Contains(err.Error(), "line 20: a second header") && !strings.Contains(err.Error(), "a second header") {
		t.Error(err)
	}
}

func TestNamesHint(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Kind{
		"control_0_1bc67b19a0b71000.txt": Copy, "hardlink_control_0_a.txt": Hardlink, "hardlink_0_a.txt": Hardlink,
		"delete_control_-1_522e392813b066.txt": Delete, "delete_1_a.txt": Delete, "mtime_-1_a.txt": Mtime,
		"control_0_a.txt.tmp": 0, "meta_file_0": 0, "other.txt": 0,
	} {
		if got, ok := KindByName(name); got != want || ok != (want != 0) {
			t.Errorf("%s: %v %v", name, got, ok)
		}
	}
}

// TestDeleteFilesOfOthersAreNeverGuessedAt: a name with a newline could stand
// for another file, and a lost directory line for another parent.
func TestDeleteFilesOfOthersAreNeverGuessedAt(t *testing.T) {
	t.Parallel()
	const head = "Title:NAS Backup Delete Control File\nVersion:1.0\nTimestamp:2026-Nov-23 10:00:00\nTaskId:t\nNasServer:s\nNasShare:/x\nNasProtocol:nfs\nNasProtocolVersion:3\n"
	for _, tt := range []struct {
		name, body string
		counts     string
		refused    bool
		good       []string // paths that would be deleted
	}{
		{"names that imitate lines raise the count", "d,0,/a,0\nf,0,x\nf,0,precious\n", "0,1", true, nil},
		{"a continuation makes its entry unusable", "d,0,/a,0\nf,0,new\nline\nf,0,b\n", "0,2", false, []string{"a/b"}},
		{"a blank continuation too", "d,0,/a,0\nf,0,new\n\nf,0,b\n", "0,2", false, []string{"a/b"}},
		{"a damaged parent takes its files along", "d,0,/a,0\nf,0,b\nd,x,/c,0\nf,0,d\nd,0,/e,0\nf,0,g\n", "0,3", false, []string{"a/b", "e/g"}},
		{"damage that could be a parent does so too", "d,0,/a,0\nf,0,b\nX,0,/c,0\nf,0,d\n", "0,3", false, []string{"a/b"}},
		{"a parent with a newline too", "d,0,/a\nb,0\nf,0,d\n", "0,1", false, nil},
		{"a missing line is a disagreement", "d,0,/a,0\nf,0,b\n", "0,2", true, nil},
		{"the root cannot be named by accident", "d,0,,1\nd,0,/../a,1\nd,0,a//b,1\n", "3,0", false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dirs, files, _ := strings.Cut(tt.counts, ",")
			text := head + "DirectoryDeleteCount:" + dirs + "\nFileDeleteCount:" + files + "\n\n" + tt.body
			_, err := check(strings.NewReader(text), "d.txt", Delete, 0)
			if (err != nil) != tt.refused {
				t.Errorf("admission: %v, want refused %v", err, tt.refused)
			}
			if tt.refused {
				return
			}
			var good []string
			for _, e := range readAll(t, text) {
				if e.Type == TypeFile || e.Type == TypeDir && e.Delete {
					good = append(good, e.Path)
				}
			}
			if d := cmp.Diff(tt.good, good); d != "" {
				t.Errorf("deleted (-want +got):\n%s", d)
			}
		})
	}
}

// TestAnImitatedEntryGetsNobodysMetadata: a name that holds a whole line leaves
// damaged text, and the record that the line points to has another name.
func TestAnImitatedEntryGetsNobodysMetadata(t *testing.T) {
	t.Parallel()
	text := readString(t, "testdata/new/ctrl/control_0_0123456789abcdef.txt")
	text += "f,bm,9,x\nf,nn,0,evil,0,78,120,0\n"
	md := OpenMetaDir("testdata/new/meta/latest")
	defer md.Close()
	for _, e := range readAll(t, text) {
		if e.Name == "evil" {
			if m, err := md.Lookup(e.Meta, e); err == nil || !strings.Contains(err.Error(), `the record is that of "plain.txt", not of "evil"`) {
				t.Errorf("record %v, error %v", m, err)
			}
			if !e.Suspect {
				t.Error("the entry is not marked")
			}
			return
		}
	}
	t.Fatal("no such entry")
}

func readString(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// readAll returns all entries of a control file given as text.
func readAll(t testing.TB, text string) []Entry {
	t.Helper()
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
