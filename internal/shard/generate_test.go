package shard_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// The generator writes the lines of control files itself and knows of each what
// must become of it, so that neither reader nor writer is its own witness.

// line is what the cutter must make of one line; a line that gives nothing has none.
type line struct {
	op    entry.Op
	path  string // of entries that are not rejected
	isDir bool
	data  uint64 // bytes of its regular file that are to be copied
	size  uint64 // bytes of its regular file
	mode  string
	meta  uint64 // inode of its record, 0 = none
	group int    // hard-link group in its file, from 1
}

// block is what belongs together in a file, with the lines it must give in the
// phase of the file and, for copy files, in the finish phase.
type block struct {
	text   string
	lines  []line
	finish []line
}

// record is a meta record that entries of one name share.
type record struct {
	ref  controlfile.MetaRef
	mode uint32
	size uint64
	ino  uint64
}

// records are the meta files of all generated control files.
type records struct {
	dir   string
	files map[string][]record // by name
	dirs  map[string]record   // by path
}

var (
	fileNames = []string{"a", "b,c", ",", "new\nline", "\xff\xfe", "ü", "sp ace", "d,nn,0,x", strings.Repeat("n", 255)}
	dirPaths  = []string{"/", "/src", "/src/d,e", "/src/new\ndir", "/\xff", "/src/" + strings.Repeat("long/", 60) + "end"}
)

func makeRecords(t *testing.T) *records {
	t.Helper()
	r := &records{dir: t.TempDir(), files: map[string][]record{}, dirs: map[string]record{}}
	w := controlfile.NewMetaWriter(r.dir, controlfile.Header{}, time.Unix(0, 0).UTC(), 0)
	ino := uint64(0)
	add := func(name string, mode uint32, size uint64) record {
		ino++
		ref, _, err := w.Add(&controlfile.Meta{Meta: entry.Meta{Mode: mode, Size: size, Inode: ino}, Type: 3, Name: name, HasName: true})
		if err != nil {
			t.Fatal(err)
		}
		return record{ref, mode, size, ino}
	}
	for _, n := range fileNames {
		r.files[n] = []record{add(n, 0o100644, 0), add(n, 0o100600, 1000), add(n, 0o100755, 70_000), add(n, 0o010644, 5)}
	}
	for _, p := range dirPaths {
		r.dirs[p] = add(p, 0o040755, 4096)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

func commas(s string) int { return strings.Count(s, ",") }

func pathOf(dir, name string) string {
	dir = strings.TrimPrefix(dir, "/")
	if dir == "" || name == "" {
		return dir + name
	}
	return dir + "/" + name
}

// data is what a regular file adds to the bytes of its shard.
func data(r record, mode string) uint64 {
	if r.mode&0o170000 != 0o100000 || mode == "mm" {
		return 0
	}
	return r.size
}

var (
	modes   = rapid.SampledFrom([]string{"nn", "bm", "dm", "mm", "fm", "??", "\xff\xfe", strings.Repeat("x", 50)})
	anyName = rapid.SampledFrom(fileNames)
	anyDir  = rapid.SampledFrom(dirPaths)
	weights = rapid.IntRange(0, 9)
)

// shown is how a mode must arrive.
func shown(mode string) string {
	switch mode {
	case "\xff\xfe":
		return "?"
	case strings.Repeat("x", 50):
		return strings.Repeat("x", 16)
	}
	return mode
}

// copyBlock is a directory line with its file lines.
func (r *records) copyBlock(t *rapid.T) block {
	var b block
	var text strings.Builder
	dir, mode := anyDir.Draw(t, "dir"), modes.Draw(t, "mode")
	d := r.dirs[dir]
	parent := true
	switch weights.Draw(t, "dir kind") {
	case 0: // gone
		fmt.Fprintf(&text, "d,dd,%d,%s,0\n", commas(dir), dir)
	case 1: // cannot be read, nor what is below it
		fmt.Fprintf(&text, "d,%s,0,/src/../x,0,%d,96,0,0\n", mode, d.ref.Offset)
		b.lines = append(b.lines, line{op: entry.OpRejected, isDir: true})
		parent = false
	case 2: // somebody else's record, or none
		off := rapid.SampledFrom([]uint64{1 << 40, r.files["a"][0].ref.Offset}).Draw(t, "offset")
		fmt.Fprintf(&text, "d,%s,%d,%s,0,%d,96,0,0\n", mode, commas(dir), dir, off)
		b.lines = append(b.lines, line{op: entry.OpRejected, isDir: true})
	default:
		fmt.Fprintf(&text, "d,%s,%d,%s,0,%d,96,0,0\n", mode, commas(dir), dir, d.ref.Offset)
		l := line{op: entry.OpMkdir, path: pathOf(dir, ""), isDir: true, mode: shown(mode), meta: d.ino}
		b.lines = append(b.lines, l)
		l.op = entry.OpFinish
		b.finish = append(b.finish, l)
	}
	for range rapid.IntRange(0, 6).Draw(t, "files") {
		l := r.copyFile(t, &text, dir)
		if l.op != entry.OpRemoveTree { // stands for nothing
			if !parent {
				l = line{op: entry.OpRejected}
			}
			b.lines = append(b.lines, l)
		} else if !parent {
			b.lines = append(b.lines, line{op: entry.OpRejected})
		}
	}
	b.text = text.String()
	return b
}

func (r *records) copyFile(t *rapid.T, text *strings.Builder, dir string) line {
	name, mode := anyName.Draw(t, "name"), modes.Draw(t, "mode")
	f := rapid.SampledFrom(r.files[name]).Draw(t, "record")
	switch weights.Draw(t, "file kind") {
	case 0:
		if name == "new\nline" { // nothing follows the name of such a line
			name = "a"
		}
		fmt.Fprintf(text, "f,dd,%d,%s\n", commas(name), name)
		return line{op: entry.OpRemoveTree}
	case 1:
		text.WriteString("f,nn,oops\n")
		return line{op: entry.OpRejected}
	case 2:
		off := rapid.SampledFrom([]uint64{1 << 40, r.dirs["/src"].ref.Offset, r.files["sp ace"][0].ref.Offset + 1}).Draw(t, "offset")
		fmt.Fprintf(text, "f,%s,%d,%s,0,%d,120,0\n", mode, commas(name), name, off)
		return line{op: entry.OpRejected}
	}
	fmt.Fprintf(text, "f,%s,%d,%s,0,%d,120,0\n", mode, commas(name), name, f.ref.Offset)
	return line{op: entry.OpCopy, path: pathOf(dir, name), data: data(f, mode), size: data(f, ""), mode: shown(mode), meta: f.ino}
}

func (r *records) deleteBlock(t *rapid.T) block {
	var b block
	var text strings.Builder
	oneLine := func(s string) bool { return !strings.Contains(s, "\n") }
	dir := anyDir.Filter(func(s string) bool { return oneLine(s) && s != "/" }).Draw(t, "dir")
	parent := true
	switch weights.Draw(t, "dir kind") {
	case 0:
		fmt.Fprintf(&text, "d,%d,%s,7\n", commas(dir), dir)
		b.lines = append(b.lines, line{op: entry.OpRejected, isDir: true})
		parent = false
	case 1, 2, 3:
		fmt.Fprintf(&text, "d,%d,%s,1\n", commas(dir), dir)
		b.lines = append(b.lines, line{op: entry.OpRemoveTree, path: pathOf(dir, ""), isDir: true})
	default:
		fmt.Fprintf(&text, "d,%d,%s,0\n", commas(dir), dir)
	}
	for range rapid.IntRange(0, 6).Draw(t, "files") {
		name := anyName.Filter(oneLine).Draw(t, "name")
		l := line{op: entry.OpUnlink, path: pathOf(dir, name)}
		if weights.Draw(t, "file kind") == 0 {
			text.WriteString("f,oops\n")
			l = line{op: entry.OpRejected}
		} else {
			fmt.Fprintf(&text, "f,%d,%s\n", commas(name), name)
		}
		if !parent {
			l = line{op: entry.OpRejected}
		}
		b.lines = append(b.lines, l)
	}
	b.text = text.String()
	return b
}

func (r *records) timesBlock(t *rapid.T) block {
	dir := anyDir.Draw(t, "dir")
	if weights.Draw(t, "kind") == 0 {
		return block{text: fmt.Sprintf("%d,%s,x,16,0,0,1,2,3,4,0\n", commas(dir), dir), lines: []line{{op: entry.OpRejected, isDir: true}}}
	}
	return block{
		text:  fmt.Sprintf("%d,%s,16877,16,7,8,1,-2,3,4,0\n", commas(dir), dir),
		lines: []line{{op: entry.OpTouch, path: pathOf(dir, ""), isDir: true}},
	}
}

// groupBlock is a hard-link group, its number still to be set; most are small,
// some go over any cap of the tests.
func (r *records) groupBlock(t *rapid.T) block {
	var b block
	var text strings.Builder
	n := rapid.IntRange(0, 4).Draw(t, "members")
	if weights.Draw(t, "size") < 3 {
		n = rapid.IntRange(5, 24).Draw(t, "members")
	}
	group := 1
	if weights.Draw(t, "group kind") == 0 {
		text.WriteString("i,x,9\n")
		b.lines = append(b.lines, line{op: entry.OpRejected})
		group = 0
	} else {
		fmt.Fprintf(&text, "i,%d,%d\n", n, rapid.Uint64Range(1, 3).Draw(t, "inode"))
	}
	// All of one inode have one record; in this family each has a name.
	name := anyName.Draw(t, "name")
	f := rapid.SampledFrom(r.files[name]).Draw(t, "record")
	badUpTo := 0 // so many of the first lines cannot be read
	if weights.Draw(t, "bad start") < 2 {
		badUpTo = rapid.IntRange(0, n).Draw(t, "bad lines")
	}
	for i := range n {
		dir := anyDir.Draw(t, "dir")
		l := line{op: entry.OpLink, path: pathOf(dir, name), data: data(f, ""), size: data(f, ""), meta: f.ino, group: group}
		switch k := weights.Draw(t, "member kind"); {
		case k == 0 || (i < badUpTo && k < 5):
			text.WriteString("f,oops\n")
			l = line{op: entry.OpRejected, group: group}
		case k == 1 || i < badUpTo:
			fmt.Fprintf(&text, "f,%d,%s,%d,%s,meta_file_0,%d,120,0,%d\n", commas(dir), dir, commas(name), name, uint64(1)<<40, n)
			l = line{op: entry.OpRejected, group: group}
		default:
			fmt.Fprintf(&text, "f,%d,%s,%d,%s,meta_file_0,%d,120,0,%d\n", commas(dir), dir, commas(name), name, f.ref.Offset, n)
			if group == 0 {
				l = line{op: entry.OpRejected}
			}
		}
		b.lines = append(b.lines, l)
	}
	b.text = text.String()
	return b
}

// kind is a phase with how its control files are made.
type kind struct {
	phase protocol.Phase
	files protocol.Phase // whose control files
	meta  bool
	block func(*records, *rapid.T) block
	empty bool // the job deletes empty directories only
}

func (k kind) String() string {
	if k.empty && k.phase == k.files {
		return k.phase.String() + " but directories"
	}
	if k.phase == k.files {
		return k.phase.String()
	}
	return k.phase.String() + " of " + k.files.String()
}

var kinds = []kind{
	{protocol.PhaseCopy, protocol.PhaseCopy, true, (*records).copyBlock, false},
	{protocol.PhaseFinish, protocol.PhaseCopy, true, (*records).copyBlock, false},
	{protocol.PhaseDelete, protocol.PhaseDelete, false, (*records).deleteBlock, false},
	{protocol.PhaseHardlink, protocol.PhaseHardlink, true, (*records).groupBlock, false},
	{protocol.PhaseDir, protocol.PhaseDir, false, (*records).timesBlock, false},
	{protocol.PhaseVerify, protocol.PhaseCopy, true, (*records).copyBlock, false},
	{protocol.PhaseVerify, protocol.PhaseHardlink, true, (*records).groupBlock, false},
	{protocol.PhaseVerify, protocol.PhaseDir, true, (*records).timesBlock, false},
	{protocol.PhaseDelete, protocol.PhaseDelete, false, (*records).deleteBlock, true},
	{protocol.PhaseRmdir, protocol.PhaseDelete, false, (*records).deleteBlock, true},
}

func (k kind) blocks(t *rapid.T, r *records) []block {
	blocks := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) block { return k.block(r, t) }), 0, 12).Draw(t, "blocks")
	for g := range blocks {
		for i := range blocks[g].lines {
			if blocks[g].lines[i].group != 0 {
				blocks[g].lines[i].group = g + 1
			}
		}
	}
	return blocks
}

// want is what the cutter must give for the blocks, in their order.
func (k kind) want(blocks []block) []line {
	var out []line
	for _, b := range blocks {
		switch k.phase {
		case protocol.PhaseDelete, protocol.PhaseRmdir:
			for _, l := range b.lines {
				if rmdir := k.phase == protocol.PhaseRmdir; (l.op == entry.OpRemoveTree) == rmdir || (!rmdir && !k.empty) {
					out = append(out, l)
				}
			}
		case protocol.PhaseFinish:
			out = append(out, b.finish...)
		case protocol.PhaseVerify:
			for _, l := range b.lines {
				out = append(out, compared(l))
			}
		default:
			out = append(out, b.lines...)
		}
	}
	return out
}

// compared is what verifying makes of the line that a job executes as l: it reads
// all data, that of lines for metadata only as well.
func compared(l line) line {
	if op, ok := map[entry.Op]entry.Op{
		entry.OpCopy: entry.OpVerify, entry.OpMkdir: entry.OpVerifyDir, entry.OpLink: entry.OpVerifyLink, entry.OpTouch: entry.OpVerifyTimes,
	}[l.op]; ok {
		l.op, l.mode, l.data = op, "", l.size
	}
	return l
}

const common = "Timestamp:2026-Nov-23 10:28:19\nTaskId:t\n"

var headers = map[protocol.Phase]string{
	protocol.PhaseCopy: "Title:NAS Scanner Backup Control File\nVersion:2.0\n" + common +
		"BackupType:FULL\nNasServer:s\nNasShare:/s\nNasProtocol:nfs\nNasProtocolVersion:3\nMetadataScope:folder-and-files\nDirectoryCount:0\nFileCount:0\nDataSize:0\n\n",
	protocol.PhaseDelete: "Title:NAS Backup Delete Control File\nVersion:1.0\n" + common +
		"NasServer:s\nNasShare:/s\nNasProtocol:nfs\nNasProtocolVersion:3\nDirectoryDeleteCount:0\nFileDeleteCount:0\n\n",
	protocol.PhaseHardlink: "Title:NAS Scanner HardLink Control File\nVersion:1.0\n" + common +
		"BackupType:FULL\nNasServer:s\nNasShare:/s\nNasProtocol:nfs\nNasProtocolVersion:3\nFileCount:0\nDataSize:0\n\n",
	protocol.PhaseDir: "Title:NAS Backup Mtime Control File\nVersion:1.0\n" + common +
		"BackupType:FULL\nNasServer:s\nNasShare:/s\nNasProtocol:nfs\nNasProtocolVersion:3\nDirectoryMtimeSetCount:0\n\n",
}

// fataler is a test, or a rapid one.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func (k kind) write(t fataler, dir string, blocks []block) string {
	t.Helper()
	var text strings.Builder
	text.WriteString(headers[k.files])
	for _, b := range blocks {
		text.WriteString(b.text)
	}
	path := filepath.Join(dir, "control_0_1.txt")
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
