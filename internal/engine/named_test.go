package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// TestNamelessFilesThatTakeNoMetadata: a file system makes nameless files, and finds
// files by their names when it is to change them. Then names are used, from the second
// file on without a try.
func TestNamelessFilesThatTakeNoMetadata(t *testing.T) {
	t.Parallel()
	g := newRigIn(t, shm(t))
	g.spec.Threads = 1
	dst := treetest.Faulty(t, g.dst)
	nameless := 0
	dst.Inject(func(c treetest.Call) treetest.Fault {
		if c.Op == "tmpfile" {
			nameless++
		}
		return treetest.Fault{Nameless: true}
	})
	for _, p := range []string{"a", "b", "c"} {
		f := g.write(p, p)
		must(t, os.Chown(f, 1234, 4321))
		must(t, unix.Chmod(f, 0o4751))
		must(t, unix.Setxattr(f, "user.x", []byte("1"), 0))
	}
	o := g.twice(t, false, g.batch(1, g.copyOf("a"), g.copyOf("b"), g.copyOf("c")))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{FilesCopied: 3, BytesCopied: 3})
	if len(o.Warnings) > 0 || nameless != 1 {
		t.Errorf("%d nameless files were made, warnings %+v", nameless, o.Warnings)
	}
	if src, got := below(t, g.src), below(t, dst.Stored); strings.Join(src, "\n") != strings.Join(got, "\n") {
		t.Errorf("source\n%s\nstored\n%s", strings.Join(src, "\n"), strings.Join(got, "\n"))
	}
	noTemps(t, dst.Stored)
}

// TestWhatANamedFileIsRefusedAsWellIsTriedOnce: the reason was not the missing name, and
// nameless files go on being used.
func TestWhatANamedFileIsRefusedAsWellIsTriedOnce(t *testing.T) {
	g := newRig(t)
	mount(t, "ramfs", g.dst, "ramfs", 0, "") // has no attributes
	for _, p := range []string{"a", "b", "c"} {
		must(t, unix.Setxattr(g.write(p, p), "user.x", []byte("1"), 0))
	}
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	o, err := j.Run(t.Context(), g.batch(1, g.copyOf("a"), g.copyOf("b"), g.copyOf("c")), nil)
	must(t, err)
	wantFailures(t, o)
	wantWarning(t, o, WarnXattrUnsupported, 3, "a")
	if j.linkMethod(j.dst.info.Dev) == fsys.LinkNone {
		t.Error("nameless files were given up")
	}
	noTemps(t, g.dst)
}

// TestAppendOnlyDirectoriesKeepNothing: names in them can be neither replaced nor taken
// away, so no temporary one is made. What is new and can be made at once is.
func TestAppendOnlyDirectoriesKeepNothing(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4"} {
		for _, named := range []bool{false, true} {
			base := shm
			if kind == "ext4" {
				base = func(t testing.TB) string { return treetest.LoopFS(t, "ext4", "-q") }
			}
			g := newRigIn(t, base(t))
			for _, p := range []string{"d/new", "d/old", "d/1"} {
				g.write(p, "new")
			}
			must(t, os.Symlink("x", filepath.Join(g.src, "d/link")))
			must(t, os.Link(filepath.Join(g.src, "d/1"), filepath.Join(g.src, "d/2")))
			g.target("d/old", "old")
			g.target("d/2", "old")
			d := filepath.Join(g.dst, "d")
			chattr(t, "+a", d)
			g.spec.Threads = 1
			es := append([]Entry{g.copyOf("d/new"), g.copyOf("d/old"), g.copyOf("d/link")}, g.group(1, "d/1", "d/2")...)
			o := g.twice(t, named, g.batch(1, es...))
			want := []string{"d/old", "d/link", "d/2"}
			if named {
				want = []string{"d/new", "d/old", "d/link", "d/1", "d/2"}
			}
			wantFailures(t, o, want...)
			for _, f := range o.Failures {
				if f.Errno != int(unix.EPERM) || !strings.Contains(f.Reason, "append-only; take that from it with chattr -i -a") {
					t.Errorf("%+v", f)
				}
			}
			if !named && read(t, filepath.Join(d, "new")) != "new" {
				t.Error("what is new was not made")
			}
			noTemps(t, g.dst)
		}
	}
}

// TestAnAppendOnlyRootGetsNoMark, which could not be taken away again.
func TestAnAppendOnlyRootGetsNoMark(t *testing.T) {
	g := newRig(t)
	chattr(t, "+a", g.dst)
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	if err := j.PutNonce("x"); err == nil || !strings.Contains(err.Error(), "append-only") {
		t.Errorf("put: %v", err)
	}
	must(t, j.RemoveNonce("x"))
	if l := listing(t, g.dst); len(l) != 1 {
		t.Errorf("left: %v", l)
	}
}

// TestUserRootsThatRefuse: the destination root has got the mode of the source root,
// which its owner may not write in. The next run can all the same, leaves that mode,
// and its mark comes and goes.
func TestUserRootsThatRefuse(t *testing.T) {
	userDir(t)
	g := newRig(t)
	g.write("f", "1")
	g.write("d/g", "1")
	must(t, os.Mkdir(filepath.Join(g.src, "empty"), 0o755))
	must(t, os.Chmod(g.src, 0o555))
	t.Cleanup(func() { _ = exec.Command("chmod", "u+rwx", g.src, g.dst).Run() })
	g.backup()
	g.same()
	must(t, os.Chmod(g.src, 0o755))
	g.write("f", "22")
	g.write("new", "22")
	must(t, os.RemoveAll(filepath.Join(g.src, "d")))
	must(t, os.RemoveAll(filepath.Join(g.src, "empty")))
	must(t, os.Chmod(g.src, 0o555))
	for _, empty := range []bool{false, true} {
		must(t, unix.Chmod(g.dst, 0o555))
		before := lstat(t, g.dst)
		j, err := g.e.OpenJob(g.spec)
		must(t, err)
		must(t, j.PutNonce("x"))
		has, err := j.HasNonce("x")
		must(t, err)
		if st := lstat(t, g.dst); !has || st.Mode != before.Mode || st.Mtim != before.Mtim {
			t.Errorf("mark %v, mode %o", has, st.Mode)
		}
		must(t, j.RemoveNonce("x"))
		must(t, j.Close())
		if st := lstat(t, g.dst); st.Mode != before.Mode || st.Mtim != before.Mtim {
			t.Errorf("mode %o", st.Mode)
		}
		g.spec.DeleteEmpty = empty
		wantFailures(t, g.run(g.batch(2, file("d/g"), tree("d"), tree("empty"))))
		g.backup()
		g.same()
	}
}
