// Command scan10m measures the scanner on a made-up tree of millions of entries:
// everything behind the system calls is the real thing. It prints one line of
// figures, with the peak of the process's resident memory.
//
// With -previous it compares with the scan in another directory, in which one
// entry of a thousand is modified, one is new and one is gone where -change says so.
//
//	go run ./bench/scan10m -shape dirs|links|single|subdirs -entries 10000000 -out DIR
//	go run ./bench/scan10m -shape dirs -entries 10000000 -previous DIR -change -out DIR2
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/scanner"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("scan10m", flag.ContinueOnError)
	fs.SetOutput(stderr)
	shape := fs.String("shape", "dirs", "dirs: 100 files a directory; links: the same, each file linked twice; single: one directory; subdirs: one directory of empty directories")
	entries := fs.Uint64("entries", 10_000_000, "entries that are no directories (subdirs: that are)")
	out := fs.String("out", "", "directory for the output; must not hold a scan")
	workers := fs.Int("workers", 0, "directories read at once; 0 = the scanner's default")
	memory := fs.Int64("memory", 0, "the scanner's memory limit in bytes; 0 = its default")
	previous := fs.String("previous", "", "output directory of the scan to compare with")
	pending := fs.Bool("pending", false, "with -previous: it is also a pending one, so that three streams are joined")
	destination := fs.Bool("destination", false, "with -previous: a destination that holds that scan is listed as well")
	change := fs.Bool("change", false, "of a thousand files one has changed, one is new and one is gone")
	if err := fs.Parse(args); err != nil {
		return 64
	}
	if *out == "" {
		fmt.Fprintln(stderr, "scan10m: no output directory (give one with -out)")
		return 64
	}
	t := &tree{shape: *shape, entries: *entries, change: *change}
	switch *shape {
	case "dirs", "links":
		t.perDir = 100
	case "single":
		t.perDir = *entries
	case "subdirs":
	default:
		fmt.Fprintf(stderr, "scan10m: no shape %q (dirs, links, single or subdirs)\n", *shape)
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	begin := time.Now()
	var walked atomic.Int64
	cfg := scanner.Config{
		Source: *shape, Out: *out, TaskID: "scan10m", Tree: t, Workers: *workers, MemoryLimit: *memory,
		Progress: func(s scanner.Stats) {
			if s.Walked {
				walked.CompareAndSwap(0, int64(time.Since(begin)))
			}
		},
	}
	if *previous != "" {
		cfg.Incremental, cfg.Committed = true, filepath.Join(*previous, "state", "entries.zst")
		if *destination {
			cfg.Destination, cfg.DestinationTree = *shape, &tree{shape: *shape, entries: *entries, perDir: t.perDir}
			cfg.Settled = scanner.Time{Sec: 1 << 40}
		}
		if *pending {
			cfg.Pending = []string{cfg.Committed}
		}
	}
	res, err := scanner.Scan(ctx, cfg)
	if err != nil {
		fmt.Fprintln(stderr, "scan10m:", err)
		return 70
	}
	peak, err := peakMemory()
	if err != nil {
		fmt.Fprintln(stderr, "scan10m:", err)
		return 70
	}
	fmt.Fprintf(stdout, "shape=%s dirs=%d files=%d groups=%d links=%d previous=%d new=%d modified=%d unchanged=%d repaired=%d gone=%d control_files=%d problems=%d walk=%.1fs total=%.1fs peak_rss=%dMiB\n",
		*shape, res.Dirs, res.Files(), res.Groups, res.Links,
		res.PreviousEntries, res.New, res.Modified, res.Unchanged, res.Repaired, res.GoneEntries, len(res.ControlFiles), res.ProblemCount,
		time.Duration(walked.Load()).Seconds(), time.Since(begin).Seconds(), peak>>10)
	return 0
}

// peakMemory returns the most resident memory that the process has had, in KiB.
func peakMemory() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read peak memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read peak memory: %w", err)
			}
			return kib, nil
		}
	}
	return 0, fmt.Errorf("read peak memory: no VmHWM in /proc/self/status")
}

// tree is the made-up tree. Directory i of a shape with several is
// "dir-<i/1000>/dir-<i>"; names come in an order that is not theirs.
type tree struct {
	shape           string
	entries, perDir uint64
	change          bool
}

const (
	modeDir  = 0o040755
	modeFile = 0o100644
)

func (t *tree) Close() error { return nil }

func (t *tree) Open(dir string) (*scanner.Record, scanner.DirReader, error) {
	rec := &scanner.Record{Mode: modeDir, Nlink: 2, Dev: 1, Ino: 1, Size: 4096, BlockSize: 4096, Mtime: scanner.Time{Sec: 1_700_000_000, Nsec: 5}}
	r := &reader{t: t}
	dirs := uint64(0)
	if t.perDir > 0 {
		dirs = (t.entries + t.perDir - 1) / t.perDir
	}
	switch parts := strings.Split(dir, "/"); {
	case t.shape == "subdirs" && dir == "":
		r.subdirs, r.prefix = t.entries, "some-directory-"
	case t.shape == "subdirs":
	case t.shape == "single":
		r.files = t.entries
	case dir == "":
		r.subdirs, r.prefix = (dirs+999)/1000, "dir-"
	case len(parts) == 1:
		n, err := number(dir)
		if err != nil {
			return nil, nil, err
		}
		r.from, r.subdirs, r.prefix = n*1000, min(1000, dirs-n*1000), "dir-"
	default:
		n, err := number(parts[1])
		if err != nil {
			return nil, nil, err
		}
		r.from, r.files = n*t.perDir, min(t.perDir, t.entries-n*t.perDir)
	}
	return rec, r, nil
}

func number(name string) (uint64, error) {
	n, err := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("directory %q is not of this tree: %w", name, err)
	}
	return n, nil
}

type reader struct {
	t                           *tree
	prefix                      string
	from, subdirs, files, given uint64
	found                       []scanner.Found
}

func (r *reader) Close() error { return nil }

func (r *reader) Next(func(string, bool) bool) ([]scanner.Found, error) {
	total := max(r.subdirs, r.files)
	if r.given == total {
		return nil, io.EOF
	}
	r.found = r.found[:0]
	for ; r.given < total && len(r.found) < 1000; r.given++ {
		if r.subdirs > 0 {
			r.found = append(r.found, scanner.Found{Name: r.prefix + strconv.FormatUint(r.from+r.given, 10), IsDir: true})
			continue
		}
		// The order of a real directory is that of hashes.
		i := r.from + (r.given*7919)%total
		if total%7919 == 0 {
			i = r.from + r.given
		}
		f := scanner.Found{Name: "file-with-a-name-" + strconv.FormatUint(i, 36) + ".dat", Rec: scanner.Record{
			Mode: modeFile, Nlink: 1, UID: 1000, GID: 1000, Dev: 1, Ino: 100 + i, Size: i % 1_000_000, Blocks: i%2000 + 1, BlockSize: 4096,
			Mtime: scanner.Time{Sec: 1_700_000_000 + int64(i%10_000_000), Nsec: uint32(i % 1e9)},
			Ctime: scanner.Time{Sec: 1_700_000_000 + int64(i%10_000_000), Nsec: uint32(i % 1e9)},
			Atime: scanner.Time{Sec: 1_700_000_000 + int64(i%10_000_000), Nsec: uint32(i % 1e9)},
			Btime: scanner.Time{Sec: 1_700_000_000, Nsec: uint32(i % 1e9)},
		}}
		if r.t.change && i%1000 == 1 {
			continue
		}
		if r.t.change && i%1000 == 2 {
			f.Name = "new-" + f.Name
			r.found = append(r.found, f)
			f.Name = strings.TrimPrefix(f.Name, "new-")
		}
		if r.t.change && i%1000 == 3 {
			f.Rec.Size++
			f.Rec.Mtime.Sec++
			f.Rec.Ctime.Sec++
		}
		if r.t.shape == "links" {
			// Its other name lies half the tree away.
			f.Rec.Nlink, f.Rec.Ino = 2, 100+i%(r.t.entries/2)
		}
		r.found = append(r.found, f)
	}
	return r.found, nil
}
