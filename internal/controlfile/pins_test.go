package controlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/fault"
)

func pinsOf(data []byte, block int64) *Pins {
	w := newPinner(block)
	_, _ = w.Write(data)
	return w.pins()
}

// shown is an entry as text, with all that is executed of it.
func shown(e Entry) string {
	s := fmt.Sprint(e.Type, e.Line, e.Lines, " ", e.Mode, e.Path, "|", e.Name, e.Meta.Offset, e.Meta.Length, e.Delete, e.Inode, e.Err)
	if e.Times != nil {
		s += fmt.Sprint(*e.Times)
	}
	return s
}

// rest returns what follows in r, the position before each entry, and how it ended.
func rest(r *Reader) (list []string, at []Position, err error) {
	for {
		p := r.Position()
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list, at, nil
		} else if err != nil {
			return list, at, err
		}
		list, at = append(list, shown(e)), append(at, p)
	}
}

func readPinned(path string, pos *Position, p *Pins) ([]string, error) {
	r, err := OpenPinned(path, 0, pos, p)
	if err != nil {
		return nil, err
	}
	list, _, err := rest(r)
	return list, errors.Join(err, r.Close())
}

// refused checks that err is what a changed file is refused with.
func refused(t interface {
	Helper()
	Errorf(string, ...any)
}, err error, path string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.Corrupt || e.Path != path || e.Op != "read control file" || e.Hint == "" ||
		!strings.Contains(err.Error(), "changed after it was admitted") {
		t.Errorf("error %v", err)
	}
}

// goldenOf returns the contents of a control file of each kind, damage included.
func goldenOf(t testing.TB) map[Kind][][]byte {
	t.Helper()
	out := map[Kind][][]byte{}
	for _, pattern := range []string{"testdata/*/ctrl/*.txt", "testdata/malformed/*.txt"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if k, err := Detect(f); err == nil {
				data := []byte(readString(t, f))
				if _, err := NewReader(bytes.NewReader(data), f, k); err == nil {
					out[k] = append(out[k], data)
				}
			}
		}
	}
	for _, k := range []Kind{Copy, Delete, Hardlink, Mtime} {
		if len(out[k]) == 0 {
			t.Fatalf("no golden %v file", k)
		}
	}
	return out
}

// TestAChangedByteNeverBecomesAnEntry changes one byte of a file that was
// admitted, and leaves its size and times. From the block on in which reading
// begins it is an error, and what came out before is what was admitted.
func TestAChangedByteNeverBecomesAnEntry(t *testing.T) {
	t.Parallel()
	for kind, files := range goldenOf(t) {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "control.txt")
			rapid.Check(t, func(t *rapid.T) {
				data := rapid.SampledFrom(files).Draw(t, "file")
				block := int64(1) << rapid.IntRange(3, 11).Draw(t, "block")
				pins := pinsOf(data, block)
				r, err := NewReader(bytes.NewReader(data), path, kind)
				if err != nil {
					t.Fatal(err)
				}
				want, at, err := rest(r)
				if err != nil {
					t.Fatal(err)
				}
				var pos *Position
				begin := int64(0)
				if n := rapid.IntRange(-1, len(at)-1).Draw(t, "begin"); n >= 0 {
					pos, want = &at[n], want[n:]
					begin = pos.Offset / block * block
				}
				i := rapid.IntRange(0, len(data)-1).Draw(t, "byte")
				edited := slices.Clone(data)
				edited[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "xor"))
				for _, content := range [][]byte{data, edited} {
					if err := os.WriteFile(path, content, 0o600); err != nil {
						t.Fatal(err)
					}
					if err := os.Chtimes(path, when, when); err != nil {
						t.Fatal(err)
					}
					got, err := readPinned(path, pos, pins)
					switch {
					case err != nil:
						refused(t, err, path)
						if bytes.Equal(content, data) {
							t.Error("nothing was changed")
						}
						if len(got) > len(want) {
							t.Fatalf("%d entries, there are %d", len(got), len(want))
						}
						if !slices.Equal(want[:len(got)], got) {
							t.Error(cmp.Diff(want[:len(got)], got))
						}
					case int64(i) >= begin && !bytes.Equal(content, data):
						t.Errorf("byte %d was changed, reading began at %d, and nothing was said", i, begin)
					case !slices.Equal(want, got):
						t.Error(cmp.Diff(want, got))
					}
				}
			})
		})
	}
}

const largeLines = 20_000

// large returns a control file of several blocks, without damage.
func large(kind Kind) []byte {
	var b bytes.Buffer
	version := kinds[kind].versions[0]
	switch kind {
	case Copy:
		version = "2.0"
		fmt.Fprintf(&b, "d,bm,0,/src,0,228,96,%d,0\n", largeLines)
	case Delete:
		b.WriteString("d,0,/src,0\n")
	}
	for i := range largeLines {
		switch kind {
		case Copy:
			fmt.Fprintf(&b, "f,bm,0,some-file-name-of-some-length-%d.dat,0,%d,120,0\n", i, 300+120*i)
		case Delete:
			fmt.Fprintf(&b, "f,0,some-file-name-of-some-length-%d.dat\n", i)
		case Hardlink:
			if i%4 == 0 {
				fmt.Fprintf(&b, "i,4,%d\n", i)
			}
			fmt.Fprintf(&b, "f,0,/src,0,some-file-name-of-some-length-%d.dat,meta_file_0,%d,120,0,1\n", i, 300+120*i)
		case Mtime:
			fmt.Fprintf(&b, "0,/src/some-directory-of-some-length-%d,16877,16,0,0,1,2,3,4,0\n", i)
		}
	}
	h := Header{Kind: kind, Title: kind.Title(), Version: version, Timestamp: when.Format(TimestampLayout), TaskID: "t"}
	w := &Writer{header: h}
	return append(w.appendHeader(nil), b.Bytes()...)
}

// TestFilesThatWereChangedAreRefused goes over what can happen to a file of
// several blocks between its admission and its cutting, for each kind of file
// and each place where reading can begin.
func TestFilesThatWereChangedAreRefused(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Copy, Delete, Hardlink, Mtime} {
		data := large(kind)
		pins, err := ParsePins(pinsOf(data, blockFor(int64(len(data)))).Encode())
		if err != nil {
			t.Fatal(err)
		}
		if len(data) < 3*minBlock {
			t.Fatalf("%v: %d bytes are no three blocks", kind, len(data))
		}
		r, err := NewReader(bytes.NewReader(data), "x", kind)
		if err != nil {
			t.Fatal(err)
		}
		want, at, err := rest(r)
		if err != nil || len(want) < largeLines || slices.ContainsFunc(want, func(s string) bool { return strings.HasPrefix(s, "bad") }) {
			t.Fatal(kind, len(want), err)
		}
		edit := func(i int) func(*testing.T, string) {
			return func(t *testing.T, path string) {
				b := slices.Clone(data)
				b[i] ^= 1
				write(t, path, b)
			}
		}
		for _, row := range []struct {
			name string
			do   func(*testing.T, string)
		}{
			{"edited in the header", edit(2)},
			{"edited in the middle", edit(len(data) / 2)},
			{"edited in the last block", edit(len(data) - 2)},
			{"appended to", func(t *testing.T, p string) { write(t, p, append(slices.Clone(data), "f,x\n"...)) }},
			{"truncated", func(t *testing.T, p string) { write(t, p, data[:len(data)-1]) }},
			{"truncated to nothing", func(t *testing.T, p string) { write(t, p, nil) }},
			{"replaced", func(t *testing.T, p string) {
				b := bytes.Replace(data, []byte("length-19999"), []byte("length-99999"), 1)
				write(t, p+".new", b)
				if err := os.Rename(p+".new", p); err != nil {
					t.Fatal(err)
				}
			}},
		} {
			t.Run(kind.String()+" "+row.name, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "control.txt")
				for _, begin := range []int{-1, len(at) / 4, len(at) - 1} {
					write(t, path, data)
					pos, want := (*Position)(nil), want
					if begin >= 0 {
						pos, want = &at[begin], want[begin:]
					}
					got, err := readPinned(path, pos, pins)
					if err != nil || !slices.Equal(want, got) {
						t.Fatalf("as it was: %v, %d entries", err, len(got))
					}
					row.do(t, path)
					got, err = readPinned(path, pos, pins)
					if strings.Contains(row.name, "middle") && begin == len(at)-1 {
						// What is before the block in which reading begins is not read.
						if err != nil || !slices.Equal(want, got) {
							t.Errorf("edited before: %v, %d entries", err, len(got))
						}
						continue
					}
					refused(t, err, path)
					if !slices.Equal(want[:min(len(got), len(want))], got) {
						t.Errorf("%d entries, not all as they were", len(got))
					}
				}
			})
		}
	}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
}

// TestFilesThatChangeWhileTheyAreRead: what is open already is held to its pins
// as well.
func TestFilesThatChangeWhileTheyAreRead(t *testing.T) {
	t.Parallel()
	data := large(Delete)
	pins := pinsOf(data, minBlock)
	for name, do := range map[string]func(path string) error{
		"appended to": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("f,x\n")
			return errors.Join(err, f.Close())
		},
		"truncated": func(path string) error { return os.Truncate(path, int64(len(data)-1)) },
		"edited": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("X"), int64(len(data)-5))
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "control.txt")
			write(t, path, data)
			r, err := OpenPinned(path, Delete, nil, pins)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := do(path); err != nil {
				t.Fatal(err)
			}
			_, _, err = rest(r)
			refused(t, err, path)
		})
	}
}

func TestAPinnedFileThatVanishedIsNotFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "control.txt")
	_, err := OpenPinned(path, Copy, nil, pinsOf(nil, minBlock))
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
}

func TestAdmissionPinsAFile(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/ctrl/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		s, err := Check(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		data := []byte(readString(t, path))
		if d := cmp.Diff(pinsOf(data, minBlock), s.Pins, cmp.AllowUnexported(Pins{})); d != "" {
			t.Errorf("%s:\n%s", path, d)
		}
		if _, err := readPinned(path, nil, s.Pins); err != nil {
			t.Error(err)
		}
	}
}

func TestTheSizeOfBlocks(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]int64{
		0: minBlock, 1: minBlock, 64 << 20: minBlock, 64<<20 + 1: 2 * minBlock, 128 << 20: 2 * minBlock, 10 << 30: 64 << 20, 1 << 62: 1 << 54,
	} {
		got := blockFor(size)
		if got != want || (size+got-1)/got > mostPins {
			t.Errorf("%d bytes in blocks of %d, want %d", size, got, want)
		}
	}
}

func FuzzParsePins(f *testing.F) {
	for _, n := range []int{0, 1, 99, 1000} {
		f.Add(pinsOf(make([]byte, n), 64).Encode())
	}
	f.Add([]byte{pinsForm, 255, 255, 255, 255, 255, 255, 255, 255, 62})
	f.Add([]byte{pinsForm, 0x40, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePins(b)
		if err != nil {
			if p != nil || !fault.Is(err, fault.Corrupt) {
				t.Fatal(p, err)
			}
			return
		}
		if p == nil {
			if len(b) > 0 {
				t.Fatal("no pins")
			}
			return
		}
		if !bytes.Equal(p.Encode(), b) {
			t.Fatalf("%x became %x", b, p.Encode())
		}
	})
}

// BenchmarkReader shows what pins cost: the same file with and without.
func BenchmarkReader(b *testing.B) {
	data := large(Copy)
	path := filepath.Join(b.TempDir(), "control.txt")
	write(b, path, data)
	for name, pins := range map[string]*Pins{"free": nil, "pinned": pinsOf(data, minBlock)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				r, err := OpenPinned(path, Copy, nil, pins)
				if err != nil {
					b.Fatal(err)
				}
				for {
					if _, err := r.Next(); err != nil {
						break
					}
				}
				_ = r.Close()
			}
		})
	}
}
