package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

func dataFile(t *testing.T, data []byte) int {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	_, err = f.Write(data)
	must(t, err)
	return int(f.Fd())
}

func never() error { return nil }

func TestFirstDifference(t *testing.T) {
	base := bytes.Repeat([]byte("0123456789"), 1000)
	changed := func(at int) []byte {
		b := bytes.Clone(base)
		b[at]++
		return b
	}
	for _, c := range []struct {
		name string
		a, b []byte
		want Difference
		same bool
	}{
		{"the same", base, base, Difference{}, true},
		{"first byte", base, changed(0), Difference{0, '0', '1'}, false},
		{"in a later piece", base, changed(7777), Difference{7777, '7', '8'}, false},
		{"last byte", changed(9999), base, Difference{9999, ':', '9'}, false},
		{"a ends", base[:8000], base, Difference{8000, -1, '0'}, false},
		{"b ends in the middle of a piece", base, base[:4321], Difference{4321, '1', -1}, false},
	} {
		for _, buf := range []int{4096, 32} {
			d, same, err := FirstDifference(dataFile(t, c.a), dataFile(t, c.b), int64(len(base)), true, make([]byte, buf), never)
			if d != c.want || same != c.same || err != nil {
				t.Errorf("%s, buffer %d: %+v %v %v, want %+v %v", c.name, buf, d, same, err, c.want, c.same)
			}
		}
	}
	_, _, err := FirstDifference(dataFile(t, base), -1, 10, false, make([]byte, 64), never)
	if data := new(DataError); !errors.As(err, &data) || !data.Write || Errno(data.Err) != unix.EBADF {
		t.Errorf("a target that cannot be read: %v", err)
	}
	stop := errors.New("stop")
	long := dataFile(t, make([]byte, window+1))
	if _, _, err := FirstDifference(long, long, window+1, false, make([]byte, 1<<20), func() error { return stop }); !errors.Is(err, stop) {
		t.Errorf("check's error became %v", err)
	}
}

// TestSum holds sums against those of whole contents, holes or not.
func TestSum(t *testing.T) {
	for _, size := range []int64{0, 1, 4096, 300_000, 20 << 20} {
		for _, at := range []int64{-1, 0, size / 2, size - 1} {
			if at >= size {
				continue
			}
			want := make([]byte, size)
			fd := dataFile(t, nil)
			must(t, unix.Ftruncate(fd, size))
			if at >= 0 {
				want[at] = 'x'
				must(t, pwrite(fd, want[at:at+1], at))
			}
			for _, sparse := range []bool{false, true} {
				got, err := Sum(fd, size, sparse, make([]byte, 64<<10), never)
				if err != nil || got != xxh3.Hash128(want) {
					t.Errorf("size %d, data at %d, sparse %v: %x %v", size, at, sparse, got, err)
				}
			}
		}
	}
	if _, err := Sum(dataFile(t, []byte("ab")), 3, false, make([]byte, 16), never); !errors.Is(err, ErrShort) {
		t.Errorf("a file that ends early: %v", err)
	}
	stop := errors.New("stop")
	fd := dataFile(t, nil)
	must(t, unix.Ftruncate(fd, 3*window))
	for _, sparse := range []bool{false, true} {
		if _, err := Sum(fd, 3*window, sparse, make([]byte, 1<<20), func() error { return stop }); !errors.Is(err, stop) {
			t.Errorf("sparse %v: check's error became %v", sparse, err)
		}
	}
}

func TestEachName(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 500 {
		name := fmt.Sprintf("%0*d\n", 1+i%200, i)
		want = append(want, name)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	slices.Sort(want)
	f, err := os.Open(dir)
	must(t, err)
	defer func() { _ = f.Close() }()
	var got []string
	must(t, EachName(int(f.Fd()), make([]byte, 4096), func(name string) error {
		got = append(got, name)
		return nil
	}))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %d names, want %d", len(got), len(want))
	}
}

func TestEffectiveACL(t *testing.T) {
	for _, c := range []struct {
		acl  string
		mode uint32
		want string
	}{
		{"", 0o644, ""},
		{"u::rwx,g::r-x,o::r-x", 0o640, ""}, // no more than a mode
		{"u::rwx,u:7:rwx,g::r-x,m::rwx,o::r-x", 0o751, "u::rwx,u:7:rwx,g::r-x,m::r-x,o::--x"},
		{"u::rwx,g::r-x,g:9:-w-,o::r-x", 0o4600, "u::rw-,g::r-x,g:9:-w-,m::---,o::---"},
		{"u::rwx,g::r-x,m::rwx,o::---", 0o440, "u::r--,g::r-x,m::r--,o::---"},
	} {
		acl, err := ParseACL(c.acl)
		must(t, err)
		got := EffectiveACL(acl, c.mode)
		if s := FormatACL(got); s != c.want {
			t.Errorf("%s with mode %o is %s, want %s", c.acl, c.mode, s, c.want)
		}
		if again, err := ParseACL(FormatACL(got)); err != nil || !SameACL(again, got) {
			t.Errorf("%s does not read back: %v", FormatACL(got), err)
		}
	}
}
