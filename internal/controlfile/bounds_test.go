package controlfile

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// allocated returns how many bytes f allocates. Nothing else may run meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// cheap fails if f, which decodes a hundred bytes or a hundred after a header,
// allocates more than a MiB.
func cheap(t *testing.T, what string, data []byte, f func()) uint64 {
	t.Helper()
	n := allocated(f)
	if n > 1<<20 {
		t.Fatalf("%s: %q costs %d bytes", what, data, n)
	}
	return n
}

// bodies are a hundred bytes that claim much, and variations of them.
func bodies(lines ...string) [][]byte {
	var out [][]byte
	r := rand.New(rand.NewPCG(3, 4))
	for _, l := range lines {
		b := []byte(strings.Repeat(l, 100/len(l)+1))[:100]
		out = append(out, b)
		for range 20 {
			c := bytes.Clone(b)
			for range 1 + r.IntN(6) {
				c[r.IntN(len(c))] = byte(r.Uint32())
			}
			out = append(out, c[:1+r.IntN(len(c))])
		}
	}
	return out
}

// TestAHundredBytesOfAControlFileNeverCostAMebibyte holds for whole files of that
// size, and for what follows a header that is right. readBounded also fails on
// an entry that takes nothing off the input, so that no loop is endless.
func TestAHundredBytesOfAControlFileNeverCostAMebibyte(t *testing.T) { //nolint:paralleltest // memory is measured
	most := uint64(0)
	list := bodies("\n", ",", "d,nn,4294967295,x,0,0,0,0,0\n", "f,nn,0,x,65535,18446744073709551615,4294967295,0\n",
		"f,4294967295,x\n", "d,999999999999,x,1\n", "i,4294967295,1\n", "i,1,1\nf,9,x,9,y,meta_file_65535,1,1,0,1\n",
		"4294967295,x,16877,0,0,0,0,0,0,0,0\n", "f,%", "d,0,/%00%0a,1\n", "\x00", "\xff\n", "f,nn,0,a\n")
	files, err := filepath.Glob("testdata/*/ctrl/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	headers := []string{""}
	for _, f := range files {
		head, _, ok := strings.Cut(readString(t, f), "\n\n")
		if ok {
			headers = append(headers, head+"\n\n", head+"\n", head[:min(100, len(head))])
		}
	}
	for _, h := range headers {
		for _, b := range list {
			data := append([]byte(h), b...)
			most = max(most, cheap(t, "control file", data, func() { readBounded(t, data) }))
		}
	}
	t.Logf("at most %d bytes", most)
}

// TestAHundredBytesOfMetadataNeverCostAMebibyte has records and their fields say
// that they are as long as they can.
func TestAHundredBytesOfMetadataNeverCostAMebibyte(t *testing.T) { //nolint:paralleltest // memory is measured
	most := uint64(0)
	list := bodies("\xff", "\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\xff\xff\xff\xff", "\x01\x00\x00\x00\xff\xff\x3f\x00\x05\x00\xf0\xff\x3f\x00",
		"\xff\xff\xff\x7f\x0c\x00\x00\x00\x05\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00", "\x02\x00\x00\x00\x18\x00\x00\x000,1;",
		"\x10\x00\x00\x00\x50\x00\x00\x00\x03\x00\x05\x00\x00\x001&a0&", "\x03\x00\x00\x00\x00\x00\x00\x00")
	for _, pattern := range []string{"testdata/*/meta/latest/*meta_file_0", "testdata/quirks/xmeta_file_0"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, files, err)
		}
		for _, name := range files {
			head, _, _ := strings.Cut(readString(t, name), "\n\n")
			for _, b := range list {
				data := append([]byte(head+"\n\n"), b...)
				for _, at := range []int{0, 1, 7, len(b), 1 << 40} {
					off := uint64(len(head) + 2 + at)
					most = max(most, cheap(t, name, data, func() {
						f, err := memFile(data)
						if err != nil {
							return
						}
						ref := MetaRef{File: "meta_file_0", Offset: off, Length: 1<<32 - 1, Valid: true}
						for _, e := range []Entry{{Type: TypeFile, Name: "f", Mode: "bm"}, {Type: TypeDir, Dir: "d", IsDir: true, Mode: "bm"}} {
							_, _ = f.readOld(ref, e)
							_, _, _ = f.readNew(ref, e)
						}
						var m Meta
						_ = f.readXmeta(&m, off)
					}))
				}
			}
		}
	}
	t.Logf("at most %d bytes", most)
}
