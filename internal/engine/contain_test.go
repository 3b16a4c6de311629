package engine

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// bothResolvers runs f with openat2 and with the component walk.
func bothResolvers(t *testing.T, f func(t *testing.T, g *rig)) {
	t.Run("openat2", func(t *testing.T) { f(t, newRig(t)) })
	t.Run("walk", func(t *testing.T) {
		g := newRig(t)
		g.e.resolver = fsys.NewWalkResolver()
		f(t, g)
	})
}

func TestEverythingWorksWithBothResolvers(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		g.zoo()
		g.backup()
		g.same()
		copies, _ := g.scan()
		var gone []Entry
		for _, e := range copies[1:] {
			op := entry.OpUnlink
			if e.Op == entry.OpMkdir {
				op = entry.OpRemoveTree
			}
			gone = append(gone, Entry{Op: op, Path: e.Path})
		}
		g.spec.DeleteUnchecked = true
		wantFailures(t, g.run(g.batch(2, gone...)))
		if l := listing(t, g.dst); len(l) != 1 {
			t.Errorf("left: %v", l)
		}
	})
}

// TestPlantedLinks puts symbolic links where source and destination parents
// are expected and runs every operation through them.
func TestPlantedLinks(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		outside := shm(t)
		put(t, filepath.Join(outside, "f"), "precious")
		put(t, filepath.Join(outside, "d/f"), "precious")
		before := listing(t, outside)
		for _, root := range []string{g.src, g.dst} {
			must(t, os.Symlink(outside, filepath.Join(root, "p")))
			must(t, os.Symlink("/", filepath.Join(root, "slash")))
			must(t, os.Symlink("../", filepath.Join(root, "up")))
		}
		m := &entry.Meta{Mode: unix.S_IFREG | 0o777, UID: 1, GID: 1, Mtime: 1}
		dm := &entry.Meta{Mode: unix.S_IFDIR | 0o777, UID: 1, GID: 1, Mtime: 1}
		var es []Entry
		for _, p := range []string{"p/f", "p/d/f", "slash" + outside + "/f", "up/" + filepath.Base(filepath.Dir(outside)) + "/f"} {
			dir, _ := split(p)
			es = append(es, file(p), tree(dir), Entry{Op: entry.OpFinish, Path: dir, Meta: dm}, Entry{Op: entry.OpTouch, Path: dir, Meta: dm},
				Entry{Op: entry.OpCopy, Path: p, Meta: m}, Entry{Op: entry.OpLink, Group: 1, Path: p, Meta: m})
		}
		g.run(g.batch(1, es...))
		if diff := cmp.Diff(before, listing(t, outside)); diff != "" {
			t.Errorf("changed outside the roots:\n%s", diff)
		}
	})
}

// TestSourceLinksAreNotFollowed plants a link to a secret in the source.
func TestSourceLinksAreNotFollowed(t *testing.T) {
	bothResolvers(t, func(t *testing.T, g *rig) {
		secret := shm(t)
		put(t, filepath.Join(secret, "f"), "secret")
		must(t, os.Symlink(secret, filepath.Join(g.src, "d")))
		o := g.run(g.batch(1, Entry{Op: entry.OpCopy, Path: "d/f", Meta: metaOf(t, filepath.Join(secret, "f"))}))
		wantFailures(t, o, "d/f")
		if len(o.Failures) == 1 && o.Failures[0].Kind != uint8(fault.Denied) {
			t.Errorf("%+v", o.Failures[0])
		}
		if exists(filepath.Join(g.dst, "d/f")) {
			t.Error("copied through a link")
		}
	})
}

// swapEnv tells a re-executed test binary to exchange two names in a tight loop
// until its standard input ends. Its value is one name a line.
const swapEnv = "FSBACKUP_ENGINE_TEST_SWAP"

// swap is that process.
func swap(names string) {
	a, b, _ := strings.Cut(names, "\n")
	go func() {
		for {
			_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin) // it ends with its parent
}

// swapping exchanges two names in a tight loop until the function that it returns
// is called, in this process or in one of its own.
func swapping(t *testing.T, apart bool, a, b string) (stop func()) {
	if !apart {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		})
		return func() { cancel(); wg.Wait() }
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), swapEnv+"="+a+"\n"+b)
	end, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	before := inode(t, a)
	for inode(t, a) == before && t.Context().Err() == nil { // until it does so
		runtime.Gosched()
	}
	return func() {
		must(t, end.Close())
		must(t, cmd.Wait())
	}
}

// TestSwappingComponents exchanges a destination directory and a link that
// leads out, in a tight loop, while every operation runs through it. The link
// leads to a directory with the same names, or to the root of everything.
func TestSwappingComponents(t *testing.T) {
	for _, c := range []struct {
		name  string
		apart bool // by another process
		slash bool // the link leads to /, where the entries' names are those of outside
	}{{"beside it", false, false}, {"by another process", true, false}, {"by another process, for the root directory", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			bothResolvers(t, func(t *testing.T, g *rig) { swapped(t, g, c.apart, c.slash) })
		})
	}
}

func swapped(t *testing.T, g *rig, apart, slash bool) {
	outside := shm(t)
	put(t, filepath.Join(outside, "sub/f"), "precious")
	put(t, filepath.Join(outside, "f"), "precious")
	before := listing(t, outside)
	in, leads := "d", outside
	if slash {
		in, leads = "d"+outside, "/"
	}
	g.write(in+"/sub/f", "from the source")
	g.write(in+"/f", "from the source")
	g.target(in+"/sub/f", "x")
	must(t, os.Symlink(leads, filepath.Join(g.dst, "swap")))
	d, other := filepath.Join(g.dst, "d"), filepath.Join(g.dst, "swap")
	stop := swapping(t, apart, d, other)
	fin := g.copyOf(in + "/sub")
	fin.Op = entry.OpFinish
	touch := fin
	touch.Op = entry.OpTouch
	link := g.group(1, in+"/f", in+"/sub/f")
	g.spec.DeleteUnchecked = true
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	rounds := 300
	if long() {
		rounds = 10_000
	}
	for range rounds {
		b := g.batch(1, g.copyOf(in+"/sub/f"), g.copyOf(in+"/f"), fin, touch, file(in+"/sub/f"), link[0], link[1], tree(in+"/sub"), file(in+"/f"))
		if _, err := j.Run(t.Context(), b, nil); err != nil && !fault.Is(err, fault.Stale) {
			t.Fatal(err)
		}
		for _, p := range []string{d, other} { // the link was replaced or removed: put it back
			if !exists(p) {
				_ = os.Symlink(leads, p)
			}
		}
	}
	stop()
	if diff := cmp.Diff(before, listing(t, outside)); diff != "" {
		t.Errorf("changed outside the roots:\n%s", diff)
	}
}

// TestFIFOAndDevicesAreNeverRead has source files become a FIFO, with and without
// a writer, and devices with a driver and without: they are copied as what they are,
// nobody waits, and nothing is read from them.
func TestFIFOAndDevicesAreNeverRead(t *testing.T) {
	needRoot(t)
	g := newRig(t)
	names := []string{"fifo", "full", "null", "gone"}
	var es []Entry
	for _, p := range names {
		g.write(p, "was a file")
		es = append(es, g.copyOf(p))
		must(t, os.Remove(filepath.Join(g.src, p)))
	}
	must(t, unix.Mkfifo(filepath.Join(g.src, "fifo"), 0o600))
	must(t, unix.Mkfifo(filepath.Join(g.src, "full"), 0o600))
	must(t, unix.Mknod(filepath.Join(g.src, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(g.src, "gone"), unix.S_IFCHR|0o600, int(unix.Mkdev(240, 250)))) // no driver: open gives ENXIO
	both, err := os.OpenFile(filepath.Join(g.src, "full"), os.O_RDWR, 0)
	must(t, err)
	defer func() { must(t, both.Close()) }()
	_, err = both.WriteString("for somebody else")
	must(t, err)
	o := g.run(g.batch(1, es...))
	wantFailures(t, o)
	g.wantCounts(o, entry.Counts{FilesCopied: 4, ChangedSinceScan: 4})
	for _, p := range names {
		var src, dst unix.Stat_t
		must(t, unix.Lstat(filepath.Join(g.src, p), &src))
		must(t, unix.Lstat(filepath.Join(g.dst, p), &dst))
		if src.Mode != dst.Mode || src.Rdev != dst.Rdev {
			t.Errorf("%s is %o %x, the source %o %x", p, dst.Mode, dst.Rdev, src.Mode, src.Rdev)
		}
	}
	got := make([]byte, 64)
	n, err := both.Read(got)
	must(t, err)
	if string(got[:n]) != "for somebody else" {
		t.Errorf("%q is left in the fifo", got[:n])
	}
}

// TestFIFOAndDevicesAreNeverOpened that were scanned as what they are: the open of a
// FIFO would wake its writer.
func TestFIFOAndDevicesAreNeverOpened(t *testing.T) {
	g := newRig(t)
	fifo := filepath.Join(g.src, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	es := []Entry{g.copyOf("fifo")}
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(g.src, "tty"), unix.S_IFCHR|0o600, int(unix.Mkdev(240, 250)))) // no driver: open gives ENXIO
		es = append(es, g.copyOf("tty"))
	}
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		if w, err := os.OpenFile(fifo, os.O_WRONLY, 0); err == nil {
			_ = w.Close()
		}
	}()
	for range 100 {
		wantFailures(t, g.run(g.batch(1, es...)))
	}
	select {
	case <-woken:
		t.Error("the fifo had a reader")
	default:
	}
	r, err := os.OpenFile(fifo, os.O_RDONLY, 0) // waits for the writer, if it has not come yet
	must(t, err)
	<-woken
	must(t, r.Close())
}

// TestSwappingAFileForAFIFO does so in a loop while the file is copied.
func TestSwappingAFileForAFIFO(t *testing.T) {
	g := newRig(t)
	f := g.write("f", "regular")
	other := filepath.Join(g.src, "other")
	must(t, unix.Mkfifo(other, 0o600))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
		}
	})
	e := Entry{Op: entry.OpCopy, Path: "f", Meta: &entry.Meta{Mode: unix.S_IFREG | 0o644, Size: 7}}
	rounds := 500
	if long() {
		rounds = 10_000
	}
	for range rounds {
		o := g.run(g.batch(1, e))
		for _, f := range o.Failures {
			if f.Kind != uint8(fault.Changed) && f.Kind != uint8(fault.NotFound) {
				t.Fatalf("%+v", f)
			}
		}
	}
	stop()
	wg.Wait()
	noTemps(t, g.dst)
}

// TestFIFOsAndDevicesInTheDestinationAreNeverOpened puts them where a file, and
// where a directory, is expected, and has every operation meet them.
func TestFIFOsAndDevicesInTheDestinationAreNeverOpened(t *testing.T) {
	needRoot(t)
	for kind, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "device without a driver": unix.S_IFCHR} {
		t.Run(kind, func(t *testing.T) {
			bothResolvers(t, func(t *testing.T, g *rig) {
				g.spec.CheckContents = true
				plant := func(p string) string {
					full := filepath.Join(g.dst, p)
					must(t, os.RemoveAll(full))
					must(t, os.MkdirAll(filepath.Dir(full), 0o755))
					must(t, unix.Mknod(full, mode|0o666, int(unix.Mkdev(240, 250)))) // no driver: open gives ENXIO
					return full
				}
				for _, p := range []string{"f", "d/f", "h1", "h2"} {
					g.write(p, "contents")
				}
				meta := g.copyOf("f")
				meta.Mode = "mm"
				dir := g.copyOf("d")
				verify, below, verifyDir, finish, touch := g.copyOf("f"), g.copyOf("d/f"), dir, dir, dir
				verify.Op, below.Op, verifyDir.Op, finish.Op, touch.Op = entry.OpVerify, entry.OpVerify, entry.OpVerifyDir, entry.OpFinish, entry.OpTouch
				for name, c := range map[string]struct {
					at     string
					es     []Entry
					failed bool
				}{
					"copy":        {"f", []Entry{g.copyOf("f")}, false},
					"metadata":    {"f", []Entry{meta}, false},
					"parent":      {"d", []Entry{g.copyOf("d/f")}, false},
					"make":        {"d", []Entry{dir}, false},
					"link":        {"h2", g.group(1, "h1", "h2"), false},
					"leader":      {"h1", g.group(1, "h1", "h2"), false},
					"delete":      {"f", []Entry{file("f"), file("f/below")}, false},
					"delete tree": {"d", []Entry{tree("d"), tree("d/below")}, false},
					"finish":      {"d", []Entry{finish}, true},
					"touch":       {"d", []Entry{touch}, true},
					"verify":      {"f", []Entry{verify}, true},
					"verify tree": {"d", []Entry{verifyDir, below}, true},
				} {
					full := plant(c.at)
					o := g.run(g.batch(1, c.es...))
					if failed := len(o.Failures) > 0; failed != c.failed {
						t.Errorf("%s: %+v", name, o.Failures)
					}
					for _, f := range o.Failures {
						if f.Errno == int(unix.ENXIO) {
							t.Errorf("%s: it was opened: %+v", name, f)
						}
					}
					must(t, os.RemoveAll(full))
				}
			})
		})
	}
}

func TestReasonsAreOneLine(t *testing.T) {
	g := newRig(t)
	o := g.run(g.batch(1, Entry{Op: entry.OpCopy, Path: "no\nsuch/fi\nle", Meta: &entry.Meta{}}))
	if len(o.Failures) != 1 || strings.Contains(o.Failures[0].Reason, "\n") || !strings.Contains(o.Failures[0].Reason, `no\nsuch`) {
		t.Errorf("%+v", o.Failures)
	}
}
