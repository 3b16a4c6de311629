package engine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
)

func setfacl(t *testing.T, p string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("setfacl"); err != nil {
		t.Skip("needs setfacl")
	}
	out, err := exec.Command("setfacl", append(args, p)...).CombinedOutput()
	if err != nil {
		t.Fatalf("setfacl %v %s: %v %s", args, p, err, out)
	}
}

func kindsOf(o *Outcome) []string {
	var kinds []string
	for _, w := range o.Warnings {
		kinds = append(kinds, w.Kind)
	}
	return kinds
}

// metaZoo adds ACLs and extended attributes of every kind.
func (g *rig) metaZoo(t *testing.T) {
	f := g.write("d/f", "x")
	setfacl(t, f, "-m", "u:1000:rwx,g:2000:r-x,m::r-x")
	must(t, unix.Setxattr(f, "user.comment", []byte("bin\x00ary"), 0))
	must(t, unix.Setxattr(f, "user.empty", nil, 0))
	d := filepath.Join(g.src, "d")
	setfacl(t, d, "-m", "u:1000:rwx", "-m", "d:u:1000:rwx,d:g:2000:r-x")
	must(t, unix.Setxattr(d, "user.dir", bytes.Repeat([]byte("v"), 2000), 0))
	// Made under a default ACL: in the destination they inherit what they must not have.
	plain := g.write("d/plain", "x")
	setfacl(t, plain, "-b")
	must(t, unix.Chmod(plain, 0o604))
	must(t, os.MkdirAll(filepath.Join(d, "sub"), 0o755))
	setfacl(t, filepath.Join(d, "sub"), "-b", "-k")
	must(t, unix.Mkfifo(filepath.Join(d, "fifo"), 0o600))
	setfacl(t, filepath.Join(d, "fifo"), "-b")
	if os.Geteuid() == 0 {
		must(t, os.Chown(f, 12, 34))
		must(t, unix.Chmod(f, 0o6755))
		must(t, unix.Setxattr(f, "trusted.t", []byte("1"), 0))
		must(t, unix.Setxattr(f, "security.capability",
			[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
		must(t, os.Symlink("f", filepath.Join(d, "link")))
		must(t, unix.Lsetxattr(filepath.Join(d, "link"), "trusted.l", []byte("2"), 0))
	}
}

func TestACLsAndXattrsFromTheSource(t *testing.T) {
	g := newRig(t)
	g.metaZoo(t)
	o, f := g.backup()
	g.same()
	if k := append(kindsOf(o), kindsOf(f)...); len(k) > 0 {
		t.Errorf("warnings %v", k)
	}
	g.backup() // over existing objects that have them already
	g.same()
}

func TestInheritedACLsAreRemoved(t *testing.T) {
	g := newRig(t)
	g.metaZoo(t)
	must(t, os.Mkdir(filepath.Join(g.dst, "d"), 0o755))
	setfacl(t, filepath.Join(g.dst, "d"), "-m", "d:u:4711:rwx,d:m::rwx")
	must(t, unix.Setxattr(filepath.Join(g.dst, "d"), "user.excess", []byte("1"), 0))
	g.backup()
	g.same()
}

func TestACLsAndXattrsFromTheRecord(t *testing.T) {
	g := newRig(t)
	f := g.write("d/f", "x")
	must(t, unix.Setxattr(f, "user.source", []byte("not the record's"), 0))
	e, d := g.copyOf("d/f"), g.copyOf("d")
	e.Meta.HasX = true
	e.Meta.AccessACL = "user::rw-\nuser:1000:rwx\ngroup::r--\nmask::rw-\nother::---\n"
	e.Meta.Xattrs = []entry.Xattr{{Name: "user.b", Value: []byte{0, 1}}, {Name: "user.a"}, {Name: "system.evil", Value: []byte("x")}}
	d.Meta.HasX = true
	d.Meta.AccessACL = "u::rwx,g::r-x,o::r-x"
	d.Meta.DefaultACL = "user::rwx,group::r-x,other::---"
	d.Op = entry.OpFinish
	o := g.run(g.batch(1, e))
	fo := g.run(g.batch(6, d))
	wantFailures(t, o)
	wantFailures(t, fo)
	names, err := fsysNode(t, filepath.Join(g.dst, "d/f")).Listxattr()
	must(t, err)
	slices.Sort(names)
	if want := []string{fsys.XattrAccessACL, "user.a", "user.b"}; !slices.Equal(names, want) {
		t.Errorf("attributes %v, want %v", names, want)
	}
	names, err = fsysNode(t, filepath.Join(g.dst, "d")).Listxattr()
	must(t, err)
	if !slices.Equal(names, []string{fsys.XattrDefaultACL}) {
		t.Errorf("directory's attributes %v", names)
	}
}

func fsysNode(t *testing.T, p string) fsys.Node {
	t.Helper()
	fd, err := unix.Open(p, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fsys.Node{FD: fd, Path: true}
}

func TestUnreadableACLIsAWarning(t *testing.T) {
	g := newRig(t)
	g.write("a", "x")
	g.write("b", "x")
	a, b := g.copyOf("a"), g.copyOf("b")
	for _, e := range []*Entry{&a, &b} {
		e.Meta.HasX = true
		e.Meta.AccessACL = "A::OWNER@:rwatTnNcCy"
	}
	o := g.run(g.batch(1, a, b))
	wantFailures(t, o)
	if len(o.Warnings) != 1 || o.Warnings[0] != (Warning{Kind: WarnACLUnreadable, Count: 2, Example: "a"}) {
		t.Errorf("warnings %+v", o.Warnings)
	}
}

func TestHolesStayHoles(t *testing.T) {
	g := newRig(t)
	for name, data := range map[string][]int64{"middle": {32 << 20}, "none": nil, "ends": {0, 64<<20 - 4096}} {
		f, err := os.Create(filepath.Join(g.src, name))
		must(t, err)
		must(t, f.Truncate(64<<20))
		for _, off := range data {
			_, err := f.WriteAt([]byte(strings.Repeat("d", 4096)), off)
			must(t, err)
		}
		must(t, f.Close())
	}
	g.e.bufs = newBuffers(1 << 20)
	copies, _ := g.scan()
	o := g.run(g.batch(1, copies...))
	wantFailures(t, o)
	if o.Counts.HoleBytes == 0 && o.Counts.ReflinkBytes == 0 {
		t.Error("no hole was counted")
	}
	for _, name := range []string{"middle", "none", "ends"} {
		s, d := lstat(t, filepath.Join(g.src, name)), lstat(t, filepath.Join(g.dst, name))
		if d.Size != s.Size || d.Blocks > s.Blocks+64 {
			t.Errorf("%s: size %d, blocks %d; source has %d, %d", name, d.Size, d.Blocks, s.Size, s.Blocks)
		}
		out, err := exec.Command("cmp", filepath.Join(g.src, name), filepath.Join(g.dst, name)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %s", name, out)
		}
	}
}
