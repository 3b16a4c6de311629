package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// verified returns the entry that compares what e copies.
func verifying(e Entry) Entry {
	e.Op, e.Mode = entry.OpVerify, ""
	return e
}

// TestMadeUpFilesAreReadToTheirEnd: files of proc say that they are empty, those of
// sysfs that they have a page. What can be read is copied and compared, bytes are
// counted by the size that says so.
func TestMadeUpFilesAreReadToTheirEnd(t *testing.T) {
	for _, c := range []struct {
		root, path string
		size       uint64
	}{
		{"/proc", "version", 0}, {"/proc", "sys/kernel/ostype", 0}, {"/proc", "filesystems", 0},
		{"/sys", "kernel/mm/transparent_hugepage/defrag", 4096},
	} {
		for _, verify := range []Verify{VerifyNone, VerifyChecksum} {
			p := filepath.Join(c.root, c.path)
			want, err := os.ReadFile(p)
			if err != nil {
				t.Logf("%s cannot be read here", p)
				continue
			}
			g := newRig(t)
			g.src, g.spec.Source, g.spec.Verify = c.root, c.root, verify
			e := g.copyOf(c.path)
			if e.Meta.Size != c.size || len(want) == 0 {
				t.Errorf("%s has size %d and %d bytes", p, e.Meta.Size, len(want))
			}
			for _, named := range []bool{false, true} {
				counts := entry.Counts{FilesCopied: 1, BytesCopied: c.size}
				if verify == VerifyChecksum {
					counts.FilesVerified, counts.BytesVerified = 1, c.size
				}
				o := g.twice(t, named, g.batch(1, e))
				wantFailures(t, o)
				counts.ChangedSinceScan = o.Counts.ChangedSinceScan // proc makes up times as well
				g.wantCounts(o, counts)
				if got := read(t, filepath.Join(g.dst, c.path)); got != string(want) {
					t.Errorf("%s holds %q, its copy %q", p, want, got)
				}
			}
			o := g.run(g.batch(5, verifying(e)))
			wantFailures(t, o)
			if o.Counts.FilesVerified != 1 || o.Counts.BytesVerified != c.size {
				t.Errorf("%+v", o.Counts)
			}
			for _, other := range []string{string(want) + "x", string(want[:len(want)-1]), "", strings.Repeat("z", len(want))} {
				st := lstat(t, filepath.Join(g.dst, c.path))
				must(t, os.Chmod(filepath.Join(g.dst, c.path), 0o600)) // an ordinary user's file as well
				g.target(c.path, other)
				must(t, os.Chmod(filepath.Join(g.dst, c.path), os.FileMode(st.Mode&0o777)))
				setTimes(t, filepath.Join(g.dst, c.path), st.Atim, st.Mtim)
				if o := g.run(g.batch(5, verifying(e))); o.Counts.FilesDiffer != 1 {
					t.Errorf("%s is compared with %q: %+v", p, other, o.Counts)
				}
			}
		}
	}
}

// TestFilesThatOnlySeemEmpty are those of a file system that does not know the size of
// what it has not fetched yet.
func TestFilesThatOnlySeemEmpty(t *testing.T) {
	t.Parallel()
	for _, replace := range []Replace{ReplaceAlways, ReplaceIfOlder, ReplaceNever} {
		g := newRigIn(t, shm(t))
		g.spec.Replace = replace
		src := treetest.Faulty(t, g.src)
		g.write("f", strings.Repeat("0123456789", 100_000))
		g.write("none", "")
		src.Inject(func(c treetest.Call) treetest.Fault { return treetest.Fault{Empty: true} })
		es := []Entry{g.copyOf("f"), g.copyOf("none")}
		if es[0].Meta.Size != 0 {
			t.Fatal("its size is told")
		}
		o := g.twice(t, false, g.batch(1, es...))
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{FilesCopied: 2})
		if got := read(t, filepath.Join(g.dst, "f")); len(got) != 1_000_000 {
			t.Errorf("%d bytes were copied", len(got))
		}
		for i := range es {
			es[i].Mode = "mm"
		}
		wantFailures(t, g.run(g.batch(1, es...)))
		o = g.run(g.batch(5, verifying(es[0]), verifying(es[1])))
		wantFailures(t, o)
		g.wantCounts(o, entry.Counts{FilesVerified: 2})
	}
}

func TestSizesThatAreTrustedAndThoseThatAreNot(t *testing.T) {
	for magic, want := range map[uint32]sizeTrust{
		unix.EXT4_SUPER_MAGIC: sizeTrue, unix.XFS_SUPER_MAGIC: sizeTrue, unix.TMPFS_MAGIC: sizeTrue, unix.NFS_SUPER_MAGIC: sizeTrue,
		unix.BTRFS_SUPER_MAGIC: sizeTrue, unix.CIFS_SUPER_MAGIC: sizeTrue, unix.SMB2_SUPER_MAGIC: sizeTrue,
		unix.PROC_SUPER_MAGIC: sizeNone, unix.SYSFS_MAGIC: sizeNone, unix.CGROUP2_SUPER_MAGIC: sizeNone, unix.DEBUGFS_MAGIC: sizeNone,
		unix.FUSE_SUPER_MAGIC: sizeMost, unix.V9FS_MAGIC: sizeMost, 0x12345678: sizeMost,
	} {
		if got := sizeTrustOf(magic); got != want {
			t.Errorf("%#x: %d, want %d", magic, got, want)
		}
	}
}
