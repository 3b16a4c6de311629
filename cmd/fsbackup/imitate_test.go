package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/controlfile/laxtest"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// linesOf scans a tree and returns the lines of its control files by the name
// that they end in, and their directory.
func linesOf(t *testing.T, src string) (lines map[string]string, scan string) {
	t.Helper()
	scan = filepath.Join(t.TempDir(), "scan")
	fsb(t, "scan", src, "--out", scan).want(t, 0)
	files, err := filepath.Glob(filepath.Join(scan, "ctrl", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("control files: %v, %v", files, err)
	}
	lines = map[string]string{}
	// Where each kind has the name, in lines of names without commas.
	at := map[string]int{"control": 3, "hardlink": 4, "mtime": 1}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(filepath.Base(f), "_")
		for l := range strings.Lines(string(text)) {
			if f := strings.Split(l, ","); len(f) > 4 {
				lines[kind+" "+filepath.Base(f[at[kind]])] = strings.TrimSuffix(l, "\n")
			}
		}
	}
	return lines, scan
}

// victims are what imitated lines are about: a set-id program whose metadata is
// worth having, a file and a tree that must stay, and a group of links.
func victims(t *testing.T, b treetest.Builder) {
	t.Helper()
	b.File("d/secret", "secret")
	if err := os.Chmod(b.Path("d/secret"), 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	b.Times("d/secret", time.Unix(1_000_000_000, 123))
	b.File("d/evil", "evil")
	b.File("d/precious", "keep")
	b.File("d/victim/a/b", "keep")
	b.File("d/leader", "linked")
	if err := os.Link(b.Path("d/leader"), b.Path("d/member")); err != nil {
		t.Fatal(err)
	}
}

// TestNamesThatImitateEntries backs up, changes, and restores a tree with names
// that hold whole lines of every kind of control file, true to the letter: with
// the offsets of somebody else's records in them.
func TestNamesThatImitateEntries(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	victims(t, b)
	known, _ := linesOf(t, p.src)
	for _, need := range []string{"control secret", "control d", "hardlink member", "mtime d"} {
		if known[need] == "" {
			t.Fatalf("no line of %s in %q", need, known)
		}
	}
	as := func(line, name, other string) string { return strings.Replace(known[line], name, other, 1) }
	var bad []string
	for i, line := range []string{
		as("control secret", "secret", "evil"), as("control d", "/d", "\x01evildir"), known["control precious"],
		as("hardlink member", "member", "evillink"), known["hardlink leader"], as("mtime d", "/d", "\x01evildir"),
		"i,2,77", "f,0,precious", "d,0,victim,1", "Title:NAS Scanner Backup Control File", "", "FileCount:1", "x,0,precious",
	} {
		line = strings.NewReplacer("/", "\x02", "\x01", "").Replace(line) // a name holds no slash
		// They sort after all victims, so that the offsets stay true.
		bad = append(bad, fmt.Sprintf("d/z%02d\n%s", i, line), fmt.Sprintf("d/z%02d%s\n\n%s", i, line, line))
	}
	for i, name := range bad {
		if i%5 == 4 {
			b.Dir(name)
			b.File(name+"/inner\nf,0,precious", "x")
		} else {
			b.File(name, "content of "+name)
		}
		if i%7 == 6 {
			if err := os.Link(b.Path("d/leader"), b.Path(name+" linked")); err != nil {
				t.Fatal(err)
			}
		}
	}
	now, _ := linesOf(t, p.src)
	if now["control secret"] != known["control secret"] {
		t.Fatalf("the imitated offset is not that of the record: %q, %q", known["control secret"], now["control secret"])
	}
	v := p.backup().want(t, 0).job(t)
	treetest.Same(t, p.src, p.dst)
	exact(t, v, treetest.Count(treetest.Listing(t, p.src)))

	// Half of them go, the rest changes; what they name stays.
	for i, name := range bad {
		var err error
		switch i % 4 {
		case 0, 1:
			err = os.RemoveAll(b.Path(name))
		case 2:
			err = os.Chmod(b.Path(name), 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.backup("--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)

	last := treetest.Listing(t, p.src)
	if err := os.RemoveAll(p.src); err != nil {
		t.Fatal(err)
	}
	fsb(t, "restore", p.dst, p.src).want(t, 0)
	if d := treetest.Diff(last, treetest.Listing(t, p.src)); len(d) > 0 {
		t.Fatalf("the restored tree differs:\n%s", strings.Join(d[:min(len(d), 10)], "\n"))
	}
}

// TestNamesThatOthersTakeForEntries have whole lines of their own, or parts that a laxer
// reader takes for one: they are backed up like all others, changed, removed, verified,
// restored, in whole and in part, and the files that name them say nothing to others.
func TestNamesThatOthersTakeForEntries(t *testing.T) {
	p := newPair(t)
	b := treetest.At(t, p.src)
	victims(t, b)
	known, _ := linesOf(t, p.src)
	forged := strings.ReplaceAll(strings.Replace(known["control secret"], "secret", "evil", 1), "/", "_")
	lax := []string{
		"z\n" + forged + "\nz", "new\nline,comma", "a\nf,b,c,d", "x\nf\ny", "x\nd", "i\ni,2,77", "\n\n", "b\n-1,x", "5\n5", "\r\nf,0", "GBK\n\xc4\xe3,\xff",
	}
	for i, name := range lax {
		b.File(name, "content of "+name)
		b.File("d/"+name, "content of d/"+name)
		b.File("dir"+name+"/"+name, "below")
		b.File("dir"+name+"/plain", "below")
		b.Dir("dir" + name + "/empty" + name)
		if i%2 == 0 {
			if err := os.Link(b.Path("d/leader"), b.Path("dir"+name+"/linked"+name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.File("d/one", "a group without such a name")
	if err := os.Link(b.Path("d/one"), b.Path("d/two")); err != nil {
		t.Fatal(err)
	}
	dry := fsb(t, "backup", "--dry-run", p.src, p.dst).want(t, 0)
	if strings.Contains(dry.stdout+dry.stderr, "rename it") {
		t.Errorf("a name is refused: %v", dry)
	}
	// Small files: their parents are named again and again.
	out := filepath.Join(t.TempDir(), "scan")
	fsb(t, "scan", p.src, "--out", out, "--file-entries", "7").want(t, 0)
	files, err := filepath.Glob(filepath.Join(out, "ctrl", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kind, err := controlfile.Detect(path)
		if err != nil {
			t.Fatal(err)
		}
		list, err := laxtest.Reader{Joins: true}.Read(kind, string(text))
		if err != nil {
			t.Errorf("a reader that is laxer fails with %s: %v", path, err)
		}
		for _, e := range list {
			for _, part := range append(strings.Split(e.Dir, "/"), e.Name) {
				found[part]++
			}
		}
	}
	// What imitates an entry would be one of these, or be found twice.
	if found["y"]+found["comma"]+found["member"] > 0 || found["evil"] != 1 || found["precious"] != 1 || found["two"] != 1 {
		t.Errorf("a reader that is laxer finds: %v", found)
	}

	v := p.backup("--file-entries", "7").want(t, 0).job(t)
	treetest.Same(t, p.src, p.dst)
	if v.Stats.Skipped == 0 {
		t.Error("no file goes on with a directory of the one before")
	}
	v.Stats.Skipped = 0
	exact(t, v, treetest.Count(treetest.Listing(t, p.src)))
	fsb(t, "verify", p.src, p.dst).want(t, 0)

	for i, name := range lax {
		switch i % 3 {
		case 0:
			err = os.RemoveAll(b.Path("dir" + name))
		case 1:
			err = os.Remove(b.Path("d/" + name))
		case 2:
			err = os.Chmod(b.Path("dir"+name), 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.backup("--max-delete", "100%").want(t, 0)
	treetest.Same(t, p.src, p.dst)
	if r := p.backup().want(t, 0); !strings.Contains(r.stdout+r.stderr, "unchanged") {
		t.Errorf("the next run does not say that nothing changed: %v", r)
	}

	part := filepath.Join(t.TempDir(), "part")
	fsb(t, "restore", p.dst, part, "dir"+lax[1], lax[0], "d/"+lax[2]).want(t, 0)
	for path, want := range map[string]string{"dir" + lax[1] + "/plain": "below", lax[0]: "content of " + lax[0], "d/" + lax[2]: "content of d/" + lax[2]} {
		if got, err := os.ReadFile(filepath.Join(part, path)); err != nil || string(got) != want {
			t.Errorf("%q is %q, %v", path, got, err)
		}
	}
	last := treetest.Listing(t, p.src)
	if err := os.RemoveAll(p.src); err != nil {
		t.Fatal(err)
	}
	fsb(t, "restore", p.dst, p.src).want(t, 0)
	if d := treetest.Diff(last, treetest.Listing(t, p.src)); len(d) > 0 {
		t.Fatalf("the restored tree differs:\n%s", strings.Join(d[:min(len(d), 10)], "\n"))
	}
}

// TestImitationsOfOtherScanners executes control files in which a name does
// imitate an entry, since their writer did not count its commas: the entry fails,
// it gets nobody's metadata, and a delete that could mean two things means none.
func TestImitationsOfOtherScanners(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	b := treetest.At(t, src)
	victims(t, b)
	lines, scan := linesOf(t, src)
	files, err := filepath.Glob(filepath.Join(scan, "ctrl", "control_*.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(lines["control secret"], "secret", "evil", 1)
	// As many entries as before: the line of evil is now part of a name.
	body := strings.Replace(string(text), lines["control evil"]+"\n", "f,bm,0,x\n"+forged+"\n", 1)
	if body == string(text) {
		t.Fatal("nothing was forged")
	}
	ctrl := filepath.Join(t.TempDir(), "control_0_ab.txt")
	if err := os.WriteFile(ctrl, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	r := fsb(t, "run", "--source", src, "--destination", dst, "--meta", scan, "--control", ctrl).want(t, 3)
	if !strings.Contains(r.stderr, `not of "evil"`) && !strings.Contains(r.stderr, "announces") {
		t.Errorf("the failure does not say why: %s", r.stderr)
	}
	if fi, err := os.Lstat(filepath.Join(dst, "d/evil")); err == nil && fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
		t.Errorf("evil was given the mode of another: %v", fi.Mode())
	}

	d := treetest.At(t, dst)
	victims(t, treetest.At(t, filepath.Join(dst, "only")))
	const head = "Title:NAS Backup Delete Control File\nVersion:1.0\nTimestamp:2026-Nov-23 10:00:00\nTaskId:t\nNasServer:s\nNasShare:/x\nNasProtocol:nfs\nNasProtocolVersion:3\n"
	for _, lines := range []string{
		"d,0,/only/d,0\nf,0,x\nf,0,precious\n",
		"d,0,/only/d,0\nf,0,x\nd,0,/only/d/victim,1\n",
		"d,0,/only/d,0\nf,0,x\nprecious\n",
	} {
		ctrl := filepath.Join(t.TempDir(), "delete_control_0_ab.txt")
		if err := os.WriteFile(ctrl, []byte(head+"DirectoryDeleteCount:0\nFileDeleteCount:1\n\n"+lines), 0o644); err != nil {
			t.Fatal(err)
		}
		r := fsb(t, "run", "--source", src, "--destination", dst, "--control", ctrl).want(t, 3)
		for _, name := range []string{"precious", "victim/a/b"} {
			if _, err := os.Lstat(d.Path("only/d/" + name)); err != nil {
				t.Errorf("%q: %v, %v", lines, err, r)
			}
		}
	}
}

// TestImitatedLinksAreNotMade executes a hard-link file in which a name imitates a
// member: another file would get the contents, the owner and the mode of the group.
func TestImitatedLinksAreNotMade(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	victims(t, treetest.At(t, src))
	lines, scan := linesOf(t, src)
	files, err := filepath.Glob(filepath.Join(scan, "ctrl", "hardlink_control_*.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	member := lines["hardlink member"]
	forged := strings.Replace(member, "member", "evil", 1)
	head, _, ok := strings.Cut(member, "member")
	if !ok || forged == member {
		t.Fatalf("nothing can be forged in %q", member)
	}
	body := strings.Replace(string(text), member+"\n", head+"x\n"+forged+"\n", 1)
	ctrl := filepath.Join(t.TempDir(), "hardlink_control_0_ab.txt")
	if err := os.WriteFile(ctrl, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	treetest.At(t, dst).File("d/evil", "what was there")
	r := fsb(t, "run", "--source", src, "--destination", dst, "--meta", scan, "--control", ctrl).want(t, 3)
	if !strings.Contains(r.stderr, `not of "evil"`) {
		t.Errorf("the failure does not say why: %s", r.stderr)
	}
	if got, err := os.ReadFile(filepath.Join(dst, "d/evil")); err != nil || string(got) != "what was there" {
		t.Errorf("evil is %q, %v", got, err)
	}
}

// TestEscapedNamesToDeleteLeadNowhereElse executes delete files of version 1.1,
// whose names are escaped: what an escape could smuggle in is refused, and a name
// that holds lines is a name.
func TestEscapedNamesToDeleteLeadNowhereElse(t *testing.T) {
	const head = "Title:NAS Backup Delete Control File\nVersion:1.1\nTimestamp:2026-Nov-23 10:00:00\nTaskId:t\nNasServer:s\nNasShare:/x\nNasProtocol:nfs\nNasProtocolVersion:3\n"
	src, base := t.TempDir(), t.TempDir()
	b := treetest.At(t, base)
	b.File("precious", "keep")
	b.File("dst/precious", "keep")
	victims(t, treetest.At(t, filepath.Join(base, "dst")))
	b.File("dst/d/z\nf,0,precious", "goes")
	b.Dir("dst/d/z\nd,0,victim,1")
	keep := treetest.Listing(t, base)
	run := func(exit int, dirs, files int, lines string) {
		t.Helper()
		ctrl := filepath.Join(t.TempDir(), "delete_control_0_ab.txt")
		text := fmt.Sprintf("%sDirectoryDeleteCount:%d\nFileDeleteCount:%d\n\n%s", head, dirs, files, lines)
		if err := os.WriteFile(ctrl, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		fsb(t, "run", "--source", src, "--destination", filepath.Join(base, "dst"), "--control", ctrl).want(t, exit)
	}
	for _, name := range []string{"..", "../precious", "%2E%2E", "..%2Fprecious", "%2Fprecious", "precious%00", "%", "%0", "%zz", "%0a", "precious%2", "%70recious", ""} {
		run(3, 0, 1, "d,0,/d,0\nf,0,"+name+"\n")
		run(3, 1, 0, "d,0,/d/"+name+"/../victim,1\n")
		run(3, 1, 0, "d,0,/"+strings.ReplaceAll(name, "precious", "d")+"/..,1\n")
	}
	if d := treetest.Diff(keep, treetest.Listing(t, base)); len(d) > 0 {
		t.Fatalf("changed:\n%s", strings.Join(d, "\n"))
	}
	run(0, 1, 1, "d,0,/d,0\nf,2,z%0Af,0,precious\n"+"d,3,/d/z%0Ad,0,victim,1,1\n")
	for path, left := range map[string]bool{"z\nf,0,precious": false, "z\nd,0,victim,1": false, "precious": true, "victim/a/b": true} {
		if _, err := os.Lstat(filepath.Join(base, "dst/d", path)); (err == nil) != left {
			t.Errorf("%q is there: %v", path, err == nil)
		}
	}
}
