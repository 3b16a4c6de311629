package controlfile

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTimesBefore1970 as the reference writes them, unsigned, and as it reads them, too:
// in every column, with 10 columns and with 11.
func TestTimesBefore1970(t *testing.T) {
	t.Parallel()
	const header = "Title:NAS Backup Mtime Control File\nVersion:1.0\nTimestamp:2024-Jan-01 00:00:00\nTaskId:t\nBackupType:FULL\nNasServer:\nNasShare:\nNasProtocol:\nNasProtocolVersion:\nDirectoryMtimeSetCount:1\n\n"
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "-1": -1, "18446744073709551615": -1, "18446744071562067968": math.MinInt32,
		"9223372036854775807": math.MaxInt64, "9223372036854775808": math.MinInt64, "-9223372036854775808": math.MinInt64,
	} {
		for column := range 4 {
			for _, tail := range []string{"", ",7"} {
				cols := []string{"11", "12", "13", "14"}
				cols[column] = text
				e := only(t, header+"0,/d,16877,16,0,0,"+strings.Join(cols, ",")+tail+"\n")
				if e.Err != nil {
					t.Errorf("%s in column %d: %v", text, column, e.Err)
					continue
				}
				got := []int64{e.Times.Ctime, e.Times.Atime, e.Times.Mtime, e.Times.Btime}
				for i := range got {
					if is := int64(11 + i); i == column && got[i] != want || i != column && got[i] != is {
						t.Errorf("%s in column %d is read as %v", text, column, got)
					}
				}
			}
		}
	}
	for _, text := range []string{"18446744073709551616", "-9223372036854775809", "99999999999999999999", "+1", "--1", "-", "", "1 ", "0x1"} {
		if e := only(t, header+"0,/d,16877,16,0,0,1,2,"+text+",4,0\n"); e.Err == nil || !strings.Contains(e.Err.Error(), "not a number of seconds") {
			t.Errorf("%q is read as %+v, %v", text, e.Times, e.Err)
		}
	}
	// What is written is what the reference would have written.
	path := filepath.Join(t.TempDir(), "mtime_0_0.txt")
	w, err := NewWriter(path, Header{Kind: Mtime}, time.Unix(0, 0), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	in := Times{Mode: 0o40755, Ctime: -1, Atime: math.MinInt64, Mtime: math.MinInt32, Btime: 5, SubDirs: 3}
	if err := w.Add(Entry{Type: TypeTimes, IsDir: true, Dir: "/d", Times: &in}, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := string(w.body), fmt.Sprintf("0,/d,16877,0,0,0,%d,%d,%d,5,3\n", uint64(math.MaxUint64), uint64(1)<<63, uint64(math.MaxUint64)-math.MaxInt32); got != want {
		t.Errorf("written: %q, want %q", got, want)
	}
}

// only returns the one entry of a control file.
func only(t *testing.T, text string) Entry {
	t.Helper()
	r, err := NewReader(strings.NewReader(text), "mtime_0_0.txt", Mtime)
	if err != nil {
		t.Fatal(err)
	}
	e, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	return e
}
