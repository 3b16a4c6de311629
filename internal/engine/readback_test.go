package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestCopyVerifiesWhatItWrote(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"", "ext4", "xfs", "btrfs"} {
		t.Run("on "+kind, func(t *testing.T) {
			base := t.TempDir()
			if kind != "" {
				base = treetest.LoopFS(t, kind)
			}
			g := newRigIn(t, base)
			g.spec.Verify = VerifyChecksum
			g.write("small", "small")
			g.write("d/empty", "")
			g.write("large", strings.Repeat("0123456789abcdef", 3<<16)) // cloned where that is possible
			for name, off := range map[string]int64{"front": 9 << 20, "back": 1, "both": 5 << 20} {
				f := g.write(name, "")
				must(t, os.Truncate(f, off))
				put := strings.Repeat("x", 1<<20)
				fd, err := os.OpenFile(f, os.O_WRONLY, 0)
				must(t, err)
				_, err = fd.WriteAt([]byte(put), off/2)
				must(t, err)
				must(t, fd.Close())
				must(t, os.Truncate(f, 10<<20))
			}
			must(t, os.Symlink("to", filepath.Join(g.src, "sl")))
			must(t, os.Chmod(filepath.Join(g.src, "small"), 0o400))
			g.linked("linked", "l1", "l2")
			copies, _ := g.scan()
			var es []Entry
			for _, e := range copies {
				if e.Path != "l1" && e.Path != "l2" {
					es = append(es, e)
				}
			}
			es = append(es, g.group(1, "l1", "l2")...)
			b := g.batch(1, es...)
			for range 2 {
				o := g.run(b)
				wantFailures(t, o)
				// small, empty, large, three with holes, and the group's data once.
				bytes := uint64(5 + 3<<20 + 30<<20 + 6)
				g.wantCounts(o, entry.Counts{DirsCopied: 2, FilesCopied: 8, BytesCopied: bytes, Links: 1, FilesVerified: 7, BytesVerified: bytes})
			}
			for _, p := range []string{"small", "large", "front", "back", "both"} {
				if s, d := lstat(t, filepath.Join(g.src, p)), lstat(t, filepath.Join(g.dst, p)); s.Mtim != d.Mtim || s.Atim != d.Atim {
					t.Errorf("%s: times %v %v, want %v %v", p, d.Atim, d.Mtim, s.Atim, s.Mtim)
				}
				if read(t, filepath.Join(g.src, p)) != read(t, filepath.Join(g.dst, p)) {
					t.Errorf("%s differs", p)
				}
			}
			if d := lstat(t, filepath.Join(g.dst, "front")); d.Blocks*512 > 2<<20 {
				t.Errorf("holes became %d bytes", d.Blocks*512)
			}
		})
	}
}

// TestCopyThatReadsBackOtherwiseIsNotPublished changes bytes on their way to the
// file, or back, in a process of its own. The old target stays, nothing else does.
func TestCopyThatReadsBackOtherwiseIsNotPublished(t *testing.T) {
	t.Parallel()
	needStrace(t)
	for _, named := range []bool{false, true} {
		for name, poke := range map[string]struct {
			call, how string
			nth       int // call of the batch
		}{
			"written otherwise": {"pwrite64", "poke_enter=@arg2=58", 1},
			"read otherwise":    {"pread64", "poke_exit=@arg2=58", 2}, // the first reads the source
		} {
			t.Run(fmt.Sprintf("%s, named=%v", name, named), func(t *testing.T) {
				g := newRigIn(t, shm(t))
				g.spec.Threads, g.spec.ID, g.spec.Verify = 1, "injected", VerifyChecksum
				g.write("f", "new contents")
				in := &injected{rig: g, batch: g.batch(1, g.copyOf("f")), file: filepath.Join(filepath.Dir(g.src), "batch"), named: named}
				tell := func() {
					data, err := json.Marshal(driven{Spec: in.spec, Batch: in.batch, Named: named})
					must(t, err)
					must(t, os.WriteFile(in.file, data, 0o600))
				}
				tell()
				base, total := in.calls()
				if total[poke.call] != base[poke.call]+poke.nth {
					t.Fatalf("%s is called %d times in the batch, want %d", poke.call, total[poke.call]-base[poke.call], poke.nth)
				}
				inject := func() *driven {
					d, _ := in.strace("-o", "/dev/null", "-e", "trace="+poke.call, "-e", fmt.Sprintf("inject=%s:%s:when=%d", poke.call, poke.how, total[poke.call]))
					return d
				}
				g.target("f", "old")
				d := inject()
				if d == nil || d.Err != "" {
					t.Skipf("strace cannot change memory here: %+v", d)
				}
				wantFailures(t, d.Outcome, "f")
				f := d.Outcome.Failures[0]
				if f.Op != "verify" || fault.Kind(f.Kind) != fault.Corrupt || !strings.Contains(f.Reason, "reads back with the XXH3-128 ") {
					t.Errorf("failure %+v", f)
				}
				g.wantCounts(d.Outcome, entry.Counts{FilesFailed: 1, FilesDiffer: 1})
				if got := read(t, filepath.Join(g.dst, "f")); got != "old" {
					t.Errorf("the old target is %q", got)
				}
				noTemps(t, g.dst)
				// Without verifying, the very same goes unnoticed.
				if in.spec.Verify = VerifyNone; poke.nth == 1 {
					tell()
					d = inject()
					if got := read(t, filepath.Join(g.dst, "f")); d == nil || len(d.Outcome.Failures) > 0 || got != "Xew contents" {
						t.Errorf("unverified: %q %+v", got, d)
					}
				}
			})
		}
	}
}

// TestWhatIsLeftInPlaceIsVerified by policy, or because only its metadata is to
// change.
func TestWhatIsLeftInPlaceIsVerified(t *testing.T) {
	when := unix.Timespec{Sec: 1e9, Nsec: 5}
	for _, c := range []struct {
		name    string
		replace Replace
		mode    string
		target  string
		want    entry.Counts
		says    string // of the failure
	}{
		{"never, the same", ReplaceNever, "bm", "same", entry.Counts{FilesCopied: 1, BytesCopied: 4, FilesVerified: 1, BytesVerified: 4}, ""},
		{"never, other contents", ReplaceNever, "bm", "sane", entry.Counts{FilesFailed: 1, FilesDiffer: 1}, "byte 2 of 4 on: 0x6e, the source has 0x6d (the replace policy keeps it)"},
		{"if older, other contents", ReplaceIfOlder, "bm", "sane", entry.Counts{FilesFailed: 1, FilesDiffer: 1}, "the replace policy keeps it"},
		{"metadata only, the same", ReplaceAlways, "mm", "same", entry.Counts{FilesCopied: 1, FilesVerified: 1, BytesVerified: 4}, ""},
		{"metadata only, other contents", ReplaceAlways, "mm", "sane", entry.Counts{FilesCopied: 1, FilesVerified: 1, BytesVerified: 4}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			g.spec.Verify, g.spec.Replace = VerifyChecksum, c.replace
			setTimes(t, g.write("f", "same"), when, when)
			setTimes(t, g.target("f", c.target), when, when)
			e := g.copyOf("f")
			e.Mode = c.mode
			for range 2 {
				o := g.run(g.batch(1, e))
				g.wantCounts(o, c.want)
				if c.says == "" {
					wantFailures(t, o)
					continue
				}
				wantFailures(t, o, "f")
				if f := o.Failures[0]; f.Op != "verify" || !strings.Contains(f.Reason, c.says) {
					t.Errorf("failure %+v", f)
				}
			}
			want := "same"
			if c.says != "" {
				want = c.target
			}
			if got := read(t, filepath.Join(g.dst, "f")); got != want {
				t.Errorf("the target is %q", got)
			}
		})
	}
}

// TestVerifiedCopyByAnOrdinaryUser reads back what is not readable by its mode.
func TestUserVerifiedCopy(t *testing.T) {
	userDir(t)
	g := newRig(t)
	g.spec.Verify = VerifyChecksum
	f := g.write("f", "x")
	copies := []Entry{g.copyOf("f")}
	copies[0].Meta.Mode = unix.S_IFREG | 0o200
	g.spec.Restore = true // by the record
	o := g.run(g.batch(1, copies...))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{FilesCopied: 1, BytesCopied: 1, FilesVerified: 1, BytesVerified: 1})
	if m := lstat(t, filepath.Join(g.dst, "f")).Mode & 0o777; m != 0o200 {
		t.Errorf("mode of %s is %o", f, m)
	}
}

// TestUserVerify takes for a loss what this user's copy would lose, and nothing
// else.
func TestUserVerify(t *testing.T) {
	dir := userDir(t)
	g := newRig(t)
	g.write("own", "x")
	g.spec.Source = filepath.Join(dir, "foreign")
	e := Entry{Op: entry.OpVerify, Path: "f", Meta: metaOf(t, filepath.Join(dir, "foreign/f"))}
	cp := e
	cp.Op, cp.Mode = entry.OpCopy, "bm"
	wantFailures(t, g.run(g.batch(1, cp)))
	o := g.run(g.batch(5, e))
	wantFailures(t, o)
	if k := kindsOf(o); !slices.Equal(k, []string{WarnOwner, WarnSetID, WarnXattrNotPermitted}) {
		t.Errorf("warnings %v", k)
	}
	must(t, os.Chmod(filepath.Join(g.dst, "f"), 0o600))
	o = g.run(g.batch(5, e))
	wantFailures(t, o, "f")
	if r := o.Failures[0].Reason; !strings.Contains(r, "mode is 0600, the source has 0755") {
		t.Errorf("reason %q", r)
	}
}
