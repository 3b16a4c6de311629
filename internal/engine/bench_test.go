package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/engine/fsys"
	"github.com/fsbackup/fsbackup/internal/entry"
)

const benchFiles = 1000

// benchTree makes directories of 100 files of 4 KiB.
func benchTree(b *testing.B, g *rig) []Entry {
	data := make([]byte, 4096)
	for i := range benchFiles {
		p := filepath.Join(g.src, fmt.Sprintf("d%02d/f%04d", i/100, i))
		must(b, os.MkdirAll(filepath.Dir(p), 0o755))
		must(b, os.WriteFile(p, data, 0o644))
	}
	copies, _ := g.scan()
	for i := range copies {
		copies[i].Meta.HasX = true // as our own scanner writes them
	}
	return copies
}

// fresh gives the rig an empty destination.
func (g *rig) fresh(b *testing.B) {
	must(b, os.RemoveAll(g.dst))
	must(b, os.Mkdir(g.dst, 0o755))
}

// cpu returns the processor time of the process in seconds.
func cpu(b *testing.B) float64 {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkSmallFiles copies 4 KiB files to a new destination, in turn by the
// engine with one thread and by the shortest sequence of system calls that is
// correct for a trusting program (no name is atomic, nothing is checked), and
// reports the engine's processor time per file and its ratio to the sequence's.
func BenchmarkSmallFiles(b *testing.B) {
	for _, threads := range []int{1, 4} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			g := newRigIn(b, shm(b))
			g.e.cfg.UmaskZero = true
			defer unix.Umask(unix.Umask(0))
			g.spec.Threads = threads
			copies := benchTree(b, g)
			var engine, raw float64
			for b.Loop() {
				g.fresh(b)
				batch := g.batch(1, copies...)
				start := cpu(b)
				o := g.run(batch)
				engine += cpu(b) - start
				wantFailures(b, o)

				g.fresh(b)
				start = cpu(b)
				rawCopy(b, g, copies)
				raw += cpu(b) - start
			}
			perFile := 1e6 / float64(b.N) / benchFiles
			b.ReportMetric(engine*perFile, "engine-cpu-us/file")
			b.ReportMetric(raw*perFile, "raw-cpu-us/file")
			b.ReportMetric(engine/raw, "engine/raw")
		})
	}
}

func rawCopy(b *testing.B, g *rig, entries []Entry) {
	buf := make([]byte, 256<<10)
	var dir string
	sfd, dfd := -1, -1
	for _, e := range entries {
		if e.Op == entry.OpMkdir {
			if e.Path != "" {
				must(b, unix.Mkdir(filepath.Join(g.dst, e.Path), 0o755))
			}
			continue
		}
		parent, name := split(e.Path)
		if parent != dir || sfd < 0 {
			if sfd >= 0 {
				_, _ = unix.Close(sfd), unix.Close(dfd)
			}
			var err error
			sfd, err = unix.Open(filepath.Join(g.src, parent), unix.O_PATH|unix.O_CLOEXEC, 0)
			must(b, err)
			dfd, err = unix.Open(filepath.Join(g.dst, parent), unix.O_PATH|unix.O_CLOEXEC, 0)
			must(b, err)
			dir = parent
		}
		in, err := unix.Openat(sfd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(b, err)
		out, err := unix.Openat(dfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		must(b, err)
		n, err := unix.Read(in, buf)
		must(b, err)
		_, err = unix.Write(out, buf[:n])
		must(b, err)
		must(b, unix.Close(in))
		must(b, unix.Fchown(out, 0, 0))
		ts := []unix.Timespec{{Sec: e.Meta.Atime}, {Sec: e.Meta.Mtime}}
		must(b, fsys.Node{FD: out}.Utimens(ts[0], ts[1]))
		must(b, unix.Close(out))
	}
	_, _ = unix.Close(sfd), unix.Close(dfd)
}

// BenchmarkLargeFile copies 256 MiB, holes none.
func BenchmarkLargeFile(b *testing.B) {
	g := newRigIn(b, shm(b))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i)
	}
	f, err := os.Create(filepath.Join(g.src, "f"))
	must(b, err)
	for range 256 {
		_, err := f.Write(data)
		must(b, err)
	}
	must(b, f.Close())
	e := g.copyOf("f")
	b.SetBytes(256 << 20)
	for b.Loop() {
		g.run(g.batch(1, e))
	}
}

// BenchmarkTempName is the cost of the name that only replaced targets need.
func BenchmarkTempName(b *testing.B) {
	r := &run{execution: &execution{j: &Job{spec: JobSpec{ID: "01JOB" + strconv.Itoa(1)}}, b: &Batch{}}}
	for b.Loop() {
		_ = r.tempName(AttemptID{1, 1}, 7)
	}
}

// BenchmarkDeletes deletes 1,000 files of a tree that the source has not, name by
// name, and their directories, eight levels down.
func BenchmarkDeletes(b *testing.B) {
	g := newRigIn(b, shm(b))
	g.spec.DeleteEmpty, g.spec.Threads = true, 1
	dir := "a/b/c/d/e/f/g"
	var es []Entry
	for i := range benchFiles {
		es = append(es, Entry{Op: entry.OpUnlink, Path: fmt.Sprintf("%s/d%02d/f%04d", dir, i/100, i)})
	}
	for i := range benchFiles / 100 {
		es = append(es, Entry{Op: entry.OpRemoveTree, Path: fmt.Sprintf("%s/d%02d", dir, i)})
	}
	must(b, os.MkdirAll(filepath.Join(g.src, filepath.Dir(dir)), 0o755))
	var spent float64
	for b.Loop() {
		g.fresh(b)
		for _, e := range es[:benchFiles] {
			g.target(e.Path, "")
		}
		batch := g.batch(2, es...)
		start := cpu(b)
		o := g.run(batch)
		spent += cpu(b) - start
		wantFailures(b, o)
	}
	b.ReportMetric(spent*1e6/float64(b.N)/benchFiles, "cpu-us/name")
}
