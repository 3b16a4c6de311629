package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

// seen is what of a table is visible beneath /r, as "path type".
func seen(table string) []string {
	var out []string
	for _, m := range beneath(visible(parseMounts([]byte(table))), "/r", nil) {
		out = append(out, m.Path+" "+m.FS)
	}
	return out
}

func TestMountsAreThoseThatPathsLeadTo(t *testing.T) {
	t.Parallel()
	const top = "20 1 0:1 / / rw - ext4 /dev/a rw\n"
	for name, row := range map[string]struct {
		table string
		want  []string
	}{
		"none": {top, nil},
		"one beneath, one beside, the root itself": {top +
			"21 20 0:2 / /r rw - xfs /dev/b rw\n22 21 0:3 / /r/a rw shared:3 master:4 - ext4 /dev/c rw\n23 20 0:4 / /rest rw - ext4 /dev/d rw\n", []string{"a ext4"}},
		"sorted, with names that need quoting": {top +
			`21 20 0:2 / /r/z rw - xfs x rw` + "\n" + `22 20 0:3 / /r/a\040b\134c rw - xfs x rw` + "\n", []string{`a b\c xfs`, "z xfs"}},
		"the topmost of several": {top +
			"21 20 0:2 / /r/a rw - xfs x rw\n22 21 0:3 / /r/a rw - ext4 x rw\n", []string{"a ext4"}},
		"hidden by one above it": {top +
			"21 20 0:2 / /r/a/b rw - xfs x rw\n22 20 0:3 / /r/a rw - ext4 x rw\n23 20 0:4 / /r/a.b rw - ext4 x rw\n24 21 0:5 / /r/a/b/c rw - xfs x rw\n", []string{"a ext4", "a.b ext4"}},
		"within what is on top": {top +
			"21 20 0:2 / /r/a rw - xfs x rw\n22 21 0:3 / /r/a/b rw - xfs x rw\n23 21 0:4 / /r/a rw - ext4 x rw\n24 23 0:5 / /r/a/c rw - tmpfs x rw\n", []string{"a ext4", "a/c tmpfs"}},
		"all hidden with the root": {top +
			"21 20 0:2 / /r/a rw - xfs x rw\n22 20 0:3 / /r rw - ext4 x rw\n", nil},
		"an automounter's layers and what is on them": {top +
			"21 20 0:2 / /r/home rw - autofs auto.home rw\n22 21 0:3 / /r/home/u rw - nfs4 s:/u rw\n23 20 0:4 / /r/d rw - autofs auto.d rw\n24 23 0:5 / /r/d rw - nfs s:/d rw\n", []string{"d autofs", "d nfs", "home autofs", "home/u nfs"}},
		"a process in a chroot":       {"21 7 0:2 / /r/a rw - xfs x rw\n22 7 0:2 / /r/a/b rw - xfs x rw\n", []string{"a xfs"}},
		"lines that cannot be read":   {top + "x\n21 20 0:2 /\n21 a 0:2 / /r/a rw - xfs x rw\n22 20 0:2 / /r/b rw\n\n23 20 0:3 / /r/c rw - xfs", []string{"c xfs"}},
		"a table that is in a circle": {"20 21 0:1 / /r/a rw - xfs x rw\n21 20 0:1 / /r/a/b rw - xfs x rw\n", nil},
	} {
		if d := cmp.Diff(row.want, seen(row.table)); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

func TestThousandsOfMountsAreReadInOrder(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	table.WriteString("1 0 0:1 / / rw - ext4 x rw\n")
	for i := range 5000 {
		fmt.Fprintf(&table, "%d 1 0:1 / /r/m%04d rw - xfs x rw\n", 5001-i, 4999-i)
	}
	got := seen(table.String())
	if len(got) != 5000 || got[0] != "m0000 xfs" || got[4999] != "m4999 xfs" {
		t.Errorf("%d mounts", len(got))
	}
}

func FuzzMountTables(f *testing.F) {
	f.Add([]byte("20 1 0:1 / / rw - ext4 /dev/a rw\n21 20 0:2 / /r rw - xfs /dev/b rw\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		rows := parseMounts(table)
		if n := len(visible(rows)); n > len(rows) {
			t.Errorf("%d of %d mounts are visible", n, len(rows))
		}
	})
}

// The kernel's own table: a look sees what was mounted and unmounted before it, in the
// very next call, and costs nothing else.
func TestAMountBeneathARootIsSeenAtOnce(t *testing.T) {
	if !treetest.Root() {
		t.Skip("mounting needs root")
	}
	g := newRig(t)
	at := filepath.Join(g.src, "with blank")
	must(t, os.MkdirAll(filepath.Join(at, "in it"), 0o755))
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	look := func(want ...string) []Mount {
		t.Helper()
		src, dst, err := j.Mounts()
		must(t, err)
		var got []string
		for _, m := range src {
			got = append(got, m.Path+" "+m.FS)
		}
		if d := cmp.Diff(want, got); d != "" || len(dst) > 0 {
			t.Errorf("beneath the source:\n%sbeneath the destination: %v", d, dst)
		}
		return src
	}
	look()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs tmpfs mounts: %v", err)
	}
	defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
	is := look("with blank tmpfs")
	var st unix.Stat_t
	must(t, unix.Stat(at, &st))
	if is[0].Inode != st.Ino {
		t.Errorf("its root has inode %d, told as %d", st.Ino, is[0].Inode)
	}
	if again := look("with blank tmpfs"); &again[0] != &is[0] {
		t.Error("it is looked at again where nothing has changed")
	}
	must(t, unix.Unmount(at, 0))
	look()
}
