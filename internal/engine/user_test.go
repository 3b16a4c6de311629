package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// asUserEnv tells a re-executed test binary that it runs as an ordinary user;
// its value is the directory that it may write in.
const asUserEnv = "FSBACKUP_ENGINE_TEST_AS_USER"

const ordinary = 65534

// TestAsOrdinaryUser runs the tests of this file whose names begin with TestUser
// in a child without privileges.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getenv(asUserEnv) != "" {
		t.Skip("this is the child")
	}
	needRoot(t)
	dir := shm(t)
	must(t, os.Chown(dir, ordinary, ordinary))
	must(t, os.Chmod(dir, 0o755))
	// What only root can prepare: a file of another owner, readable to all.
	foreign := put(t, filepath.Join(dir, "foreign/f"), "x")
	must(t, os.Chown(foreign, 1234, 4321))
	must(t, unix.Chmod(foreign, 0o6755))
	must(t, unix.Setxattr(foreign, "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	must(t, unix.Mknod(filepath.Join(dir, "foreign/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	// A second name of the file, in the source and not yet in the destination.
	must(t, os.MkdirAll(filepath.Join(dir, "linked/src"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "linked/dst"), 0o755))
	must(t, os.Chown(filepath.Join(dir, "linked/dst"), ordinary, ordinary))
	for _, root := range []string{"src", "dst"} {
		must(t, os.WriteFile(filepath.Join(dir, "linked", root, "1"), []byte("abc"), 0o644))
	}
	must(t, os.Link(filepath.Join(dir, "linked/src/1"), filepath.Join(dir, "linked/src/2")))
	for name, owner := range map[string]int{"of-root": 0, "of-another": 1234} {
		must(t, os.Symlink("src", filepath.Join(dir, "linked", name)))
		must(t, os.Lchown(filepath.Join(dir, "linked", name), owner, owner))
	}
	// Of another owner in a group that is the user's as well, and what somebody made
	// of it: with a group that a copy by this user would not leave so.
	for name, gid := range map[string]int{"foreign/grouped": ordinary, "made/grouped": 4321} {
		f := put(t, filepath.Join(dir, name), "x")
		must(t, os.Chown(f, 1234, gid))
		must(t, unix.Chmod(f, 0o755))
		setTimes(t, f, unix.Timespec{Sec: 1e9}, unix.Timespec{Sec: 1e9})
	}
	must(t, os.Chown(filepath.Join(dir, "made/grouped"), ordinary, 4321))
	unreadable := put(t, filepath.Join(dir, "foreign/secret"), "x")
	must(t, os.Chmod(unreadable, 0o600))

	out, err := asUser(t, dir, "^TestUserForeign|^TestUserUnwritable|^TestUserDeletes|^TestUserLinks|^TestUserRoots|^TestUserFollows|^TestBackup|^TestGuard|^TestReplacePolicies|^TestHardLink|^TestDeleteIsTypeSafe")
	if err != nil || !strings.Contains(out, "--- PASS: TestUserForeign") {
		t.Errorf("%v\n%s", err, out)
	}
}

// asUser runs tests in a child without privileges that may write in dir.
func asUser(t *testing.T, dir, tests string) (out string, err error) {
	t.Helper()
	bin, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	exe := filepath.Join(dir, "engine.test")
	must(t, os.WriteFile(exe, bin, 0o755))
	cmd := exec.Command(exe, "-test.run", tests, "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{asUserEnv + "=" + dir, "TMPDIR=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinary, Gid: ordinary}}
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// TestEveryFileSystemAsOrdinaryUser is TestEveryFileSystem in a child without
// privileges: all that such a user may have is kept, and nothing is lost.
func TestEveryFileSystemAsOrdinaryUser(t *testing.T) {
	if os.Getenv(asUserEnv) != "" {
		t.Skip("this is the child")
	}
	needRoot(t)
	for kind, dir := range fileSystems() {
		t.Run(kind, func(t *testing.T) {
			d := dir(t)
			must(t, os.Chown(d, ordinary, ordinary))
			must(t, os.Chmod(d, 0o755))
			out, err := asUser(t, d, "^TestUserKeepsEverything$")
			if err != nil || !strings.Contains(out, "--- PASS: TestUserKeepsEverything") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestUserKeepsEverything(t *testing.T) {
	g := newRigIn(t, filepath.Join(userDir(t), "trees"))
	g.zoo()
	g.metaZoo(t)
	for range 2 {
		o, f := g.backup()
		if k := append(kindsOf(o), kindsOf(f)...); len(k) > 0 {
			t.Errorf("warnings %v", k)
		}
		g.same()
	}
	noTemps(t, g.dst)
}

func userDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(asUserEnv)
	if dir == "" {
		t.Skip("runs in the child of TestAsOrdinaryUser")
	}
	if os.Geteuid() != ordinary {
		t.Fatal("not the ordinary user")
	}
	return dir
}

func TestUserForeignOwnersAreWarnings(t *testing.T) {
	g := &rig{t: t, src: filepath.Join(userDir(t), "foreign"), dst: t.TempDir()}
	e, err := New(Config{})
	must(t, err)
	g.e = e
	g.spec = JobSpec{ID: "j", Source: g.src, Destination: g.dst, WriteMeta: true}
	o := g.run(g.batch(1, g.copyOf("f"), g.copyOf("null"), g.copyOf("secret")))
	wantFailures(t, o, "null", "secret")
	for _, f := range o.Failures {
		if f.Kind != uint8(fault.Denied) {
			t.Errorf("%+v", f)
		}
	}
	kinds := strings.Join(kindsOf(o), " ")
	if kinds != WarnOwner+" "+WarnSetID+" "+WarnXattrNotPermitted {
		t.Errorf("warnings %q", kinds)
	}
	st := lstat(t, filepath.Join(g.dst, "f"))
	if st.Mode&0o7777 != 0o755 || st.Uid != ordinary {
		t.Errorf("mode %o owner %d: set-id bits for another owner", st.Mode&0o7777, st.Uid)
	}
	if src := lstat(t, filepath.Join(g.src, "f")); st.Mtim != src.Mtim {
		t.Error("times differ")
	}
	// Who compares as this user counts the same, and only what a copy would mend
	// as a difference.
	grouped := g.copyOf("grouped")
	wantFailures(t, g.run(g.batch(1, grouped)))
	verify := func(es ...Entry) *Outcome {
		for i := range es {
			es[i].Op, es[i].Mode = entry.OpVerify, ""
		}
		return g.run(g.batch(5, es...))
	}
	v := verify(g.copyOf("f"), grouped)
	wantFailures(t, v)
	if d := cmp.Diff(map[string]uint64{WarnOwner: 2, WarnSetID: 1, WarnXattrNotPermitted: 1}, losses(v)); d != "" {
		t.Error(d)
	}
	g.dst = filepath.Join(userDir(t), "made")
	g.spec.Destination = g.dst
	v = verify(grouped)
	wantFailures(t, v, "grouped")
	if !strings.Contains(v.Failures[0].Reason, "owner is 65534:4321, the source has 1234:65534") {
		t.Errorf("%+v", v.Failures)
	}
}

func TestUserUnwritableDirectories(t *testing.T) {
	userDir(t)
	g := newRig(t)
	must(t, os.Chmod(g.write("a/b/f", "new"), 0o400))
	must(t, unix.Setxattr(filepath.Join(g.src, "a/b"), "user.x", []byte("1"), 0))
	g.write("a/g", "new")
	lock := func(root string) {
		for _, d := range []string{"a/b", "a"} {
			must(t, os.Chmod(filepath.Join(root, d), 0o555))
		}
	}
	lock(g.src)
	t.Cleanup(func() {
		for _, root := range []string{g.src, g.dst} {
			_ = exec.Command("chmod", "-R", "u+rwx", root).Run()
		}
	})
	g.backup()
	g.same()
	// Again, over directories that refuse, the inner one not even searchable.
	must(t, os.Chmod(filepath.Join(g.dst, "a/b"), 0))
	g.backup()
	g.same()
	// Metadata alone, in a file that refuses.
	e := g.copyOf("a/b/f")
	e.Mode = "mm"
	e.Meta.HasX = true
	e.Meta.Xattrs = []entry.Xattr{{Name: "user.y", Value: []byte("2")}}
	o := g.run(g.batch(1, e))
	wantFailures(t, o)
	if len(o.Warnings) > 0 {
		t.Errorf("warnings %+v", o.Warnings)
	}
	// Links and deletes.
	lock(g.dst)
	must(t, os.Chmod(filepath.Join(g.src, "a"), 0o755))
	must(t, os.Link(filepath.Join(g.src, "a/g"), filepath.Join(g.src, "a/h")))
	wantFailures(t, g.run(g.batch(3, g.group(1, "a/g", "a/h")...)))
	g.oneInode("a/g", "a/h")
	lock(g.dst)
	must(t, os.Chmod(filepath.Join(g.dst, "a/b"), 0))
	g.spec.DeleteUnchecked = true
	o = g.run(g.batch(2, file("a/g"), tree("a")))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{Deleted: 2, DirsDeleted: 1})
	if exists(filepath.Join(g.dst, "a")) {
		t.Error("still there")
	}
}
