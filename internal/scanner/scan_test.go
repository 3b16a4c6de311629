package scanner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAScanReadsBackAsTheTreeIs(t *testing.T) {
	t.Parallel()
	root := zoo(t)
	res, got := scanTree(t, Config{Source: root})
	if res.ProblemCount != 0 || res.Vanished != 0 || res.Excluded != 0 {
		t.Fatalf("%d problems %v, %d vanished, %d excluded", res.ProblemCount, res.Problems, res.Vanished, res.Excluded)
	}
	want := lstatAll(t, root, all)
	if d := cmp.Diff(want, got.stats()); d != "" {
		t.Error(d)
	}
	if res.Dirs+res.Files() != uint64(len(want)) {
		t.Errorf("%d and %d entries in the result, %d in the tree", res.Dirs, res.Files(), len(want))
	}
	if len(got.times) != int(res.Dirs) {
		t.Errorf("%d mtime lines for %d directories", len(got.times), res.Dirs)
	}
	for path := range got.times {
		if m := got.entries[path]; m == nil || m.Mtime != got.times[path].Mtime || m.Mode != got.times[path].Mode {
			t.Errorf("mtime line of %q: %+v, record %+v", path, got.times[path], m)
		}
	}
	if n := got.times[""].SubDirs; n != uint64(len(want)) && n == 0 {
		t.Errorf("the root has %d subdirectories", n)
	}
}

func TestHardLinksComeAsWholeGroups(t *testing.T) {
	t.Parallel()
	root := zoo(t)
	res, got := scanTree(t, Config{Source: root, MaxEntries: 3})
	want := map[string][]string{"fifo": {"fifo", "links/fifo"}}
	for i := range 3 {
		var paths []string
		for link := range 3 {
			paths = append(paths, fmt.Sprintf("links/d,%d/l\n%d", link, i))
		}
		want[paths[0]] = paths
	}
	if d := cmp.Diff(want, got.groups); d != "" {
		t.Error(d)
	}
	if res.Groups != 4 || res.Links != 11 {
		t.Errorf("%d groups, %d links", res.Groups, res.Links)
	}
	for _, paths := range want {
		for _, p := range paths {
			if got.entries[p].Name != p[strings.LastIndexByte(p, '/')+1:] {
				t.Errorf("the record of %q has the name %q", p, got.entries[p].Name)
			}
		}
	}
}

func TestBytesCountAGroupOnce(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(root, "a"), "12345")
	write(t, filepath.Join(root, "b"), "123")
	if err := os.Link(filepath.Join(root, "a"), filepath.Join(root, "c")); err != nil {
		t.Fatal(err)
	}
	res, _ := scanTree(t, Config{Source: root})
	if res.Bytes != 8 || res.Regular != 3 || res.Dirs != 1 {
		t.Errorf("%+v", res)
	}
}

// TestASingleLinkOfMany: the other link lies outside of the source.
func TestASingleLinkOfMany(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "src", "a"), "x")
	if err := os.Link(filepath.Join(dir, "src", "a"), filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	res, got := scanTree(t, Config{Source: filepath.Join(dir, "src")})
	if d := cmp.Diff(map[string][]string{"a": {"a"}}, got.groups); d != "" || res.Groups != 1 {
		t.Error(d)
	}
}

func TestAttributesAndHolesAreInTheRecords(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := zoo(t)
	acl, err := controlfile.ACLToXattr("user::rwx\nuser:7:r--\ngroup::r-x\nmask::r-x\nother::---\n")
	if err != nil {
		t.Fatal(err)
	}
	type attr struct {
		path, name string
		value      []byte
	}
	for _, a := range []attr{
		{"plain", "user.a", []byte("value")},
		{"plain", "user.empty", nil},
		{"locked", "user.b", []byte("x")},
		{"dangling", "trusted.t", []byte("on a symlink")},
		{"fifo", "trusted.f", []byte("on a fifo")},
		{"empty", "user.d", []byte("on a directory")},
		{"empty", aclAccess, acl},
		{"empty", aclDefault, acl},
		{"setid", "user.nul", []byte("a\x00b")},
	} {
		if err := unix.Lsetxattr(filepath.Join(root, a.path), a.name, a.value, 0); err != nil {
			t.Skipf("the file system takes no attribute %s: %v", a.name, err)
		}
	}
	res, got := scanTree(t, Config{Source: root})
	xattrs := func(path string) map[string]string {
		out := map[string]string{}
		for _, x := range got.entries[path].Xattrs {
			if !strings.HasPrefix(x.Name, "security.") { // depends on the host
				out[x.Name] = string(x.Value)
			}
		}
		return out
	}
	for path, want := range map[string]map[string]string{
		"plain": {"user.a": "value", "user.empty": ""}, "locked": {"user.b": "x"}, "empty": {"user.d": "on a directory"},
		"dangling": {"trusted.t": "on a symlink"}, "fifo": {"trusted.f": "on a fifo"}, "setid": {}, "1960": {},
	} {
		if d := cmp.Diff(want, xattrs(path)); d != "" {
			t.Errorf("%s: %s", path, d)
		}
		if m := got.entries[path]; m.HasX != (path != "setid") {
			t.Errorf("%s: HasX is %v", path, m.HasX)
		}
	}
	if res.AttrsPartial != 1 {
		t.Errorf("%d entries with partial attributes", res.AttrsPartial)
	}
	const text = "user::rwx\nuser:7:r--\ngroup::r-x\nmask::r-x\nother::---\n"
	if m := got.entries["empty"]; m.AccessACL != text || m.DefaultACL != text {
		t.Errorf("ACLs %q and %q", m.AccessACL, m.DefaultACL)
	}
	var data uint64
	for _, x := range got.entries["sparse"].Sparse {
		data += x.Length
	}
	if sp := got.entries["sparse"]; len(sp.Sparse) == 0 || data >= 4<<20 {
		t.Errorf("extents %v", sp.Sparse)
	}
}

func TestExcludedEntriesAreLeftOut(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, p := range []string{"a.o", "keep.o", "b.c", "sub/a.o", "sub/tmp/x", "tmp/x", "sub/deep/core", "cache/x"} {
		write(t, filepath.Join(root, p), p)
	}
	res, got := scanTree(t, Config{
		Source: root, Excludes: []string{"*.o", "/tmp/", "sub/**/core", "cache"}, Includes: []string{"keep.o"},
	})
	var paths []string
	for p := range got.entries {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	if d := cmp.Diff([]string{"", "b.c", "keep.o", "sub", "sub/deep", "sub/tmp", "sub/tmp/x"}, paths); d != "" {
		t.Error(d)
	}
	if res.Excluded != 5 {
		t.Errorf("%d excluded", res.Excluded)
	}
}

func TestTheOutputInsideTheSourceIsLeftOut(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(root, "a"), "x")
	write(t, filepath.Join(root, "dest", "b"), "x")
	link := filepath.Join(t.TempDir(), "other-name")
	if err := os.Symlink(filepath.Join(root, "dest"), link); err != nil {
		t.Fatal(err)
	}
	_, got := scanTree(t, Config{
		Source: root, Out: filepath.Join(root, "out"),
		ExcludePaths: []string{link + "/.", filepath.Join(root, "not-there-yet")},
	})
	if len(got.entries) != 2 || got.entries["a"] == nil {
		t.Errorf("%v", got.stats())
	}
}

func TestOneFileSystemStopsAtMounts(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	write(t, filepath.Join(root, "mnt", "below"), "hidden")
	if err := unix.Mount("none", filepath.Join(root, "mnt"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(root, "mnt"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(root, "mnt", "file"), "x")
	write(t, filepath.Join(root, "other"), "x")
	res, got := scanTree(t, Config{Source: root, OneFileSystem: true})
	if res.MountPoints != 1 || got.entries["mnt"] == nil || got.entries["mnt/file"] != nil || got.entries["other"] == nil {
		t.Errorf("%d mount points, %v", res.MountPoints, got.stats())
	}
	_, got = scanTree(t, Config{Source: root})
	if got.entries["mnt/file"] == nil {
		t.Error("the mount is not entered without the option")
	}
}

// TestTheOutputIsTheSameForAnyNumberOfWorkers, also when every buffer is so
// small that it spills again and again and runs are merged in passes.
func TestTheOutputIsTheSameForAnyNumberOfWorkers(t *testing.T) {
	t.Parallel()
	root := zoo(t)
	for i := range 300 {
		write(t, filepath.Join(root, fmt.Sprintf("many/%d/%d", i%17, i)), fmt.Sprint(i))
	}
	for i := range 200 {
		p := filepath.Join(root, fmt.Sprintf("many/linked-%d", i))
		write(t, p, "x")
		if err := os.Link(p, p+"-again"); err != nil {
			t.Fatal(err)
		}
	}
	lstatAll(t, root, all) // access times change with the first look, not the next
	var first map[string]string
	for _, c := range []Config{
		{Workers: 1}, {Workers: 2}, {Workers: 8},
		{Workers: 1, MemoryLimit: 4096, fanIn: 2}, {Workers: 8, MemoryLimit: 16 << 10, fanIn: 3},
	} {
		c.Source, c.MaxEntries, c.Out, c.ClockTick = root, 100, filepath.Join(t.TempDir(), "out"), -1
		var seen []string
		c.OnControlFile = func(kind controlfile.Kind, path string) { seen = append(seen, path) }
		res, got := scanTree(t, c)
		if got.parents == 0 {
			t.Error("no directory was continued in another file")
		}
		if len(seen) != len(res.ControlFiles) {
			t.Errorf("%d files reported of %d", len(seen), len(res.ControlFiles))
		}
		files := contents(t, c.Out)
		if first == nil {
			first = files
			if d := cmp.Diff(lstatAll(t, root, all), got.stats()); d != "" {
				t.Error(d)
			}
			continue
		}
		for name, text := range first {
			if files[name] != text {
				t.Errorf("%d workers, %d bytes: %s differs", c.Workers, c.MemoryLimit, name)
			}
		}
		if len(files) != len(first) {
			t.Errorf("%d files, not %d", len(files), len(first))
		}
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheStateFileHoldsTheWholeStream(t *testing.T) {
	t.Parallel()
	root := zoo(t)
	res, got := scanTree(t, Config{Source: root})
	s, err := OpenState(res.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n, lastKey := 0, ""
	for {
		r, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		m := got.entries[r.Path()]
		if m == nil || m.Mode != r.Mode || m.Inode != r.Ino || m.Mtime != r.Mtime.Sec || r.IsDir() != (r.Name == "") {
			t.Errorf("%q: %+v, record %+v", r.Path(), r, m)
		}
		key := string(appendKey(nil, r))
		if n > 0 && key <= lastKey {
			t.Errorf("%q comes after %q", key, lastKey)
		}
		lastKey = key
		n++
	}
	if n != len(got.entries) {
		t.Errorf("%d records of %d entries", n, len(got.entries))
	}
	b, err := os.ReadFile(res.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	write(t, cut, string(b[:len(b)*3/4]))
	s2, err := OpenState(cut)
	if err == nil {
		for err == nil {
			_, err = s2.Next()
		}
		_ = s2.Close()
	}
	if !fault.Is(err, fault.Corrupt) {
		t.Errorf("a file that was cut short: %v", err)
	}
}

func TestUnusableSourcesAreOneLineErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "x")
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cfg  Config
		kind fault.Kind
		text string
	}{
		{"missing", Config{Source: filepath.Join(dir, "nope")}, fault.NotFound, "open source"},
		{"a file", Config{Source: filepath.Join(dir, "file")}, fault.NotFound, "not a directory"},
		{"empty", Config{Source: filepath.Join(dir, "empty")}, fault.Unsafe, "the source is empty"},
		{"no source", Config{}, fault.Invalid, "no source"},
		{"bad pattern", Config{Source: dir, Excludes: []string{"[a"}}, fault.Invalid, "the set"},
		{"bad number", Config{Source: dir, Workers: -1}, fault.Invalid, "workers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.cfg.Out = filepath.Join(t.TempDir(), "out")
			_, err := Scan(t.Context(), tt.cfg)
			if !fault.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.text) || strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	bare := t.TempDir()
	if _, err := Scan(t.Context(), Config{Source: bare, Out: filepath.Join(bare, "out")}); !fault.Is(err, fault.Unsafe) {
		t.Errorf("a source that holds nothing but the output: %v", err)
	}
	out := filepath.Join(t.TempDir(), "out")
	res, _ := scanTree(t, Config{Source: filepath.Join(dir, "empty"), Out: out, AllowEmpty: true})
	if res.Dirs != 1 {
		t.Errorf("%+v", res)
	}
	if _, err := Scan(t.Context(), Config{Source: dir, Out: out}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a second scan into the same directory: %v", err)
	}
}

func TestAScanCanBeCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := filepath.Join(t.TempDir(), "out")
	if _, err := Scan(ctx, Config{Source: zoo(t), Out: out}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(out + "/.scan-*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// TestNamesThatImitateLinesAreCoded: such names are in the scan, in files of a version
// of their own, and everything else is where it was.
func TestNamesThatImitateLinesAreCoded(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	evil := "x\nf,bm,0,evil,0,78,120,0\ny"
	for _, name := range []string{evil, "d/" + evil, "linked", "good", "new\nline", "di\nd,r/a", "di\nd,r/b\nd", "di\nd,r/" + evil} {
		write(t, filepath.Join(root, name), name)
	}
	for i, name := range []string{"d/" + evil + "2", "z"} {
		if err := os.Link(filepath.Join(root, []string{"linked", "good"}[i]), filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, most := range []int{0, 2} {
		res, got := scanTree(t, Config{Source: root, MaxEntries: most})
		if res.ProblemCount != 0 {
			t.Fatalf("%d problems: %v", res.ProblemCount, res.Problems)
		}
		if len(got.entries) != 13 || got.entries["d/"+evil] == nil {
			t.Errorf("%v", got.stats())
		}
		want := map[string]int{"copy false": 3, "copy true": 6, "hardlink false": 2, "hardlink true": 2, "mtime false": 2, "mtime true": 1}
		lines := map[string]int{}
		for _, f := range res.ControlFiles {
			r, err := controlfile.Open(f.Path, f.Kind)
			if err != nil {
				t.Fatal(err)
			}
			h := r.Header()
			for {
				e, err := r.Next()
				if err != nil {
					break
				}
				if e.Type != controlfile.TypeGroup && e.Mode != controlfile.ModeDeleted {
					lines[fmt.Sprint(f.Kind, " ", h.Coded())]++
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if d := cmp.Diff(want, lines); d != "" {
			t.Error(d)
		}
	}
}

func TestPseudoFileSystemsBelowTheSourceAreNotEntered(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "src")
	for _, d := range []string{"proc", "sub/proc", "real"} {
		write(t, filepath.Join(root, d, "hidden"), "x")
	}
	mount := func(kind, at, data string) {
		at = filepath.Join(root, at)
		if err := unix.Mount("none", at, kind, 0, data); err != nil {
			t.Skipf("cannot mount: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount("proc", "proc", "")
	mount("proc", "sub/proc", "")
	mount("tmpfs", "real", "size=1m")
	write(t, filepath.Join(root, "real", "file"), "x")
	res, got := scanTree(t, Config{Source: root})
	if d := cmp.Diff("proc real real/file sub sub/proc", strings.Join(got.paths(), " ")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Pseudo{{"proc", "proc"}, {"sub/proc", "proc"}}, res.PseudoSkipped); d != "" || res.MountPoints != 0 {
		t.Errorf("%d mount points %s", res.MountPoints, d)
	}
	// One that is named is taken, and so are all if that is asked for.
	named, _ := scanTree(t, Config{Source: filepath.Join(root, "proc"), Excludes: []string{"/*/*"}})
	if len(named.PseudoSkipped) > 0 || named.Dirs < 3 {
		t.Errorf("a source that is such a file system: %d directories", named.Dirs)
	}
	all, _ := scanTree(t, Config{Source: root, PseudoFS: true, Excludes: []string{"/proc/*", "/sub/proc/*"}})
	if all.PseudoSkipped != nil || all.Excluded < 20 {
		t.Errorf("%d excluded", all.Excluded)
	}
}
