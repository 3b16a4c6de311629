package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
)

func setTimes(t testing.TB, p string, atime, mtime unix.Timespec) {
	t.Helper()
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
}

// zoo fills the source with every type and every awkward name.
func (g *rig) zoo() {
	t := g.t
	g.write("plain", "hello")
	g.write("empty", "")
	g.write("d1/d2/deep", strings.Repeat("x", 70000))
	g.write("big", strings.Repeat("0123456789abcdef", 200000))
	g.write("new\nline,comma", "n")
	g.write("bad\xff\xfeutf8", "b")
	g.write(strings.Repeat("n", 255), "long")
	g.write(strings.Repeat("l/", 40)+"leaf", "40 levels")
	must(t, os.Mkdir(filepath.Join(g.src, "emptydir"), 0o750))
	must(t, os.Symlink("plain", filepath.Join(g.src, "link")))
	must(t, os.Symlink("/nonexistent/"+strings.Repeat("y", 300), filepath.Join(g.src, "dangling")))
	must(t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o640))
	must(t, unix.Mknod(filepath.Join(g.src, "sock"), unix.S_IFSOCK|0o600, 0))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(g.src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(t, unix.Mknod(filepath.Join(g.src, "block"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 200))))
		must(t, os.Chown(g.write("owned", "o"), 1234, 4321))
		suid := g.write("suid", "s")
		must(t, os.Chown(suid, 1234, 4321))
		must(t, unix.Chmod(suid, 0o6755))
		must(t, unix.Lchown(filepath.Join(g.src, "link"), 77, 88))
		must(t, os.Chown(filepath.Join(g.src, "d1"), 55, 66))
	}
	unreadable := uint32(0o400)
	if os.Geteuid() == 0 {
		unreadable = 0
	}
	must(t, unix.Chmod(g.write("mode0", "z"), unreadable))
	must(t, unix.Chmod(filepath.Join(g.src, "d1/d2"), 0o1777))
	old := unix.Timespec{Sec: -300000000, Nsec: 123456789}
	far := unix.Timespec{Sec: 2240000000, Nsec: 987654321}
	setTimes(t, g.write("old", "1960"), old, old)
	setTimes(t, g.write("far", "2040"), far, far)
	setTimes(t, filepath.Join(g.src, "link"), old, far)
	setTimes(t, filepath.Join(g.src, "fifo"), far, old)
	setTimes(t, filepath.Join(g.src, "d1"), far, old)
}

func TestBackupOfEveryTypeIsIdentical(t *testing.T) {
	g := newRig(t)
	g.zoo()
	o, f := g.backup()
	g.same()
	noTemps(t, g.dst)
	if len(o.Warnings)+len(f.Warnings) > 0 {
		t.Errorf("warnings: %v %v", o.Warnings, f.Warnings)
	}
	copies, _ := g.scan()
	want := entry.Counts{}
	for _, e := range copies {
		if e.Op == entry.OpMkdir {
			want.DirsCopied++
			continue
		}
		want.FilesCopied++
		if e.Meta.Mode&unix.S_IFMT == unix.S_IFREG {
			want.BytesCopied += e.Meta.Size
		}
	}
	g.wantCounts(o, want)
}

func TestBackupOverExistingTargetsIsIdentical(t *testing.T) {
	g := newRig(t)
	g.zoo()
	first, _ := g.backup()
	second, _ := g.backup()
	g.same()
	noTemps(t, g.dst)
	first.Counts.HoleBytes, second.Counts.HoleBytes = 0, 0
	g.wantCounts(second, first.Counts)
}
