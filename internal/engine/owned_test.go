package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// everyOwner writes files of several owners, groups and modes below p in the source.
func (g *rig) everyOwner(p string) (names []string) {
	g.t.Helper()
	for _, o := range [][2]int{{0, 0}, {0, 4321}, {1234, 0}, {1234, 4321}} {
		for _, mode := range []uint32{0o644, 0o600, 0o4755, 0o2755, 0o6711, 0o1666} {
			name := fmt.Sprintf("%s/%d-%d-%o", p, o[0], o[1], mode)
			full := g.write(name, name)
			must(g.t, os.Chown(full, o[0], o[1]))
			must(g.t, unix.Chmod(full, mode))
			names = append(names, name)
		}
	}
	return names
}

// TestOwnersWhateverADirectoryGives: new files get their group from the process, the
// directory or the mount. They all have owner, group and mode of the source in the end.
func TestOwnersWhateverADirectoryGives(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name     string
		mode     uint32
		uid, gid int
		options  string // of a mount of its own
		umask    bool   // there is one
	}{
		{"plain", 0o755, 0, 0, "", false},
		{"with a umask", 0o755, 0, 0, "", true},
		{"of another group", 0o755, 0, 4321, "", false},
		{"with a group of its own", 0o2755, 0, 4321, "", false},
		{"with a group of its own that is the process's", 0o2755, 0, 0, "", false},
		{"of another user, with a group of its own", 0o2777, 1234, 4321, "", false},
		{"of a mount that gives the directory's group", 0o755, 0, 4321, "grpid", false},
		{"of such a mount, with the bit", 0o2755, 0, 4321, "grpid", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t)
			g.spec.Threads = 1
			if c.options != "" {
				g.dst = filepath.Join(treetest.LoopFS(t, "ext4", "-q"), "dst")
				must(t, os.Mkdir(g.dst, 0o755))
				must(t, unix.Mount("", filepath.Dir(g.dst), "", unix.MS_REMOUNT, c.options))
				g.spec.Destination = g.dst
			}
			if !c.umask {
				g.e.cfg.UmaskZero = true
				defer unix.Umask(unix.Umask(0))
			}
			names := g.everyOwner("d")
			d := filepath.Join(g.dst, "d")
			must(t, os.Mkdir(d, 0o700))
			must(t, os.Chown(d, c.uid, c.gid))
			must(t, unix.Chmod(d, c.mode))
			for _, named := range []bool{false, true} {
				var es []Entry
				for _, n := range names {
					es = append(es, g.scanned(n))
				}
				j, err := g.e.OpenJob(g.spec)
				must(t, err)
				if named {
					for _, n := range names {
						must(t, os.Remove(filepath.Join(g.dst, n)))
					}
					j.linkFailed(j.dst.info.Dev, fsys.LinkByProc)
				}
				o, err := j.Run(t.Context(), g.batch(1, es...), nil)
				must(t, err)
				must(t, j.Close())
				wantFailures(t, o)
				for _, n := range names {
					var src, dst unix.Stat_t
					must(t, unix.Lstat(filepath.Join(g.src, n), &src))
					must(t, unix.Lstat(filepath.Join(g.dst, n), &dst))
					if src.Uid != dst.Uid || src.Gid != dst.Gid || src.Mode != dst.Mode {
						t.Errorf("%s belongs to %d:%d and has mode %o, the source to %d:%d and %o", n, dst.Uid, dst.Gid, dst.Mode, src.Uid, src.Gid, src.Mode)
					}
				}
			}
		})
	}
}

// TestDirectoryGivesOtherRightsMeanwhile: the owner of a destination directory has new
// files in it get his group, or rights for him, while a batch fills it. He must not get
// at those of others.
func TestDirectoryGivesOtherRightsMeanwhile(t *testing.T) {
	needRoot(t)
	for name, change := range map[string]func(d string){
		"group":  func(d string) { must(t, unix.Chmod(d, 0o2755)) },
		"rights": func(d string) { setfacl(t, d, "-d", "-m", "u:1234:rwx") },
	} {
		for _, named := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, named=%v", name, named), func(t *testing.T) {
				g := newRig(t)
				g.spec.Threads = 1
				g.e.cfg.UmaskZero = true
				defer unix.Umask(unix.Umask(0))
				d := filepath.Join(g.dst, "d")
				must(t, os.Mkdir(d, 0o755))
				must(t, os.Chown(d, 1234, 4321))
				var es []Entry
				for i := range 8 {
					p := fmt.Sprintf("d/f%d", i)
					must(t, os.Chmod(g.write(p, "secret"), 0o640))
					es = append(es, g.scanned(p))
				}
				must(t, unix.Mkfifo(filepath.Join(g.src, "d/g"), 0o640))
				es = append(es, g.scanned("d/g"))
				j, err := g.e.OpenJob(g.spec)
				must(t, err)
				defer func() { must(t, j.Close()) }()
				if named {
					j.linkFailed(j.dst.info.Dev, fsys.LinkByProc)
				}
				checks := 0
				o, err := j.Run(t.Context(), g.batch(1, es...), guardFunc(func() error {
					if checks++; checks == 4 {
						change(d)
					}
					return nil
				}))
				must(t, err)
				wantFailures(t, o)
				if checks < 8 {
					t.Fatalf("%d checks", checks)
				}
				for _, e := range es {
					if diff := cmp.Diff(describe(t, filepath.Join(g.src, e.Path), "", nil), describe(t, filepath.Join(g.dst, e.Path), "", nil)); diff != "" {
						t.Errorf("%s: %s", e.Path, diff)
					}
				}
			})
		}
	}
}
