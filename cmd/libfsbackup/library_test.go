package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// built is what the tests of a run share: the library, the daemons and the
// programs, each built when it is first asked for.
var built struct {
	dir   string
	mu    sync.Mutex
	done  map[string]error
	paths map[string]string
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fsbackup-lib-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }() // in the temporary directory
		built.dir, built.done, built.paths = dir, map[string]error{}, map[string]string{}
		return m.Run()
	}())
}

// once runs a build step and fails every test that needs it if it fails.
func once(t *testing.T, what string, f func() error) {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	err, done := built.done[what]
	if !done {
		err = f()
		built.done[what] = err
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: %v", tool, err)
		}
	}
}

// makeLib returns the directory that `make lib` filled.
func makeLib(t *testing.T) string {
	t.Helper()
	need(t, "make", "gcc", "ld", "objcopy")
	dist := filepath.Join(built.dir, "dist")
	once(t, "make lib", func() error {
		return command("make", "-C", "../..", "lib", "DIST="+dist, "PREFIX=/usr")
	})
	return dist
}

// program compiles a C or C++ program against the shared library.
func program(t *testing.T, source string, flags ...string) string {
	t.Helper()
	dist := makeLib(t)
	compiler, std := "gcc", "-std=c99"
	if filepath.Ext(source) == ".cc" {
		compiler, std = "g++", "-std=c++11"
	}
	need(t, compiler)
	name := strings.NewReplacer("/", "_", ".", "_").Replace(source + strings.Join(flags, ""))
	out := filepath.Join(built.dir, name)
	once(t, "compile "+name, func() error {
		if std == "-std=c99" && strings.HasPrefix(source, "testdata/") {
			std = "-std=gnu11" // threads, atomics
		}
		args := append([]string{"-Wall", "-Wextra", "-Werror", std, "-g", "-O1", "-I", dist, "-o", out, source}, flags...)
		return command(compiler, append(args, "-L"+dist, "-lfsbackup", "-pthread", "-ldl", "-Wl,-rpath,"+dist)...)
	})
	return out
}

// runProgram runs a program that must succeed, and returns its standard output.
func runProgram(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tmp := t.TempDir()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(withoutCluster(), append([]string{"TMPDIR=" + tmp}, env...)...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n--- stdout\n%s--- stderr\n%s", cmd, err, &out, &errs)
	}
	if errs.Len() > 0 {
		t.Errorf("%s wrote to standard error:\n%s", filepath.Base(name), &errs)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("%s left %v in its temporary directory (%v)", filepath.Base(name), left, err)
	}
	return out.String()
}

// withoutCluster is the environment without what would name a cluster.
func withoutCluster() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "FSBACKUP_") || strings.HasPrefix(e, "OTEL_")
	})
}

// scanned is a tree and its scan.
type scanned struct {
	src, meta, ctrl string
	files           map[controlfile.Kind][]string
}

func scan(t *testing.T, src string, entries int) scanned {
	t.Helper()
	res, err := scanner.Scan(t.Context(), scanner.Config{Source: src, Out: filepath.Join(t.TempDir(), "scan"), MaxEntries: entries})
	if err != nil {
		t.Fatal(err)
	}
	if res.ProblemCount > 0 {
		t.Fatalf("scan: %v", res.Problems)
	}
	s := scanned{src: src, meta: res.MetaDir, ctrl: res.ControlDir, files: map[controlfile.Kind][]string{}}
	for _, f := range res.ControlFiles {
		s.files[f.Kind] = append(s.files[f.Kind], f.Path)
	}
	return s
}

// all returns every control file, in the order of the phases.
func (s scanned) all() []string {
	return slices.Concat(s.files[controlfile.Copy], s.files[controlfile.Delete], s.files[controlfile.Hardlink], s.files[controlfile.Mtime])
}

// addDelete writes a delete control file beside the others: a directory tree and
// a file.
func (s *scanned) addDelete(t *testing.T, tree, file string) string {
	t.Helper()
	path := filepath.Join(s.ctrl, "delete_control_0_abcdef.txt")
	text := "Title:NAS Backup Delete Control File\nVersion:1.0\nTimestamp:2024-Jan-01 00:00:00\nTaskId:t\nNasServer:\nNasShare:\nNasProtocol:\nNasProtocolVersion:\nDirectoryDeleteCount:1\nFileDeleteCount:1\n\n" +
		fmt.Sprintf("d,%d,/%s,1\n", strings.Count(tree, ","), tree) + "d,0,/,0\n" + fmt.Sprintf("f,%d,%s\n", strings.Count(file, ","), file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.files[controlfile.Delete] = append(s.files[controlfile.Delete], path)
	return path
}

// everything is a nasty tree with its scan, and a destination with remains that
// a delete control file names.
func everything(t *testing.T) (s scanned, dst string) {
	t.Helper()
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	treetest.Nasty(t, src)
	s = scan(t, src, 0)
	old := treetest.At(t, dst)
	old.File("gone/tree/x", "old")
	old.File("gone,file", "old")
	s.addDelete(t, "gone", "gone,file")
	return s, dst
}

// figures are what the programs print of a tree with everything in it.
func wantFigures(t *testing.T, s scanned, out string) {
	t.Helper()
	f := treetest.Count(treetest.Listing(t, s.src))
	groups := map[string]uint64{}
	sizes := map[string]uint64{}
	var linked, linkedBytes uint64
	for _, e := range treetest.Listing(t, s.src) {
		if e.Group != "" {
			groups[e.Group]++
			sizes[e.Group] = 0
			if e.Type == syscall.S_IFREG {
				sizes[e.Group] = uint64(e.Size)
			}
			linked++
		}
	}
	for _, n := range sizes {
		linkedBytes += n
	}
	want := []string{
		fmt.Sprintf("copy: status 1, directories %d/%d, files %d/%d, bytes %d/%d, failed 0+0", f.Dirs, f.Dirs, f.Files-linked, f.Files-linked, f.Bytes-linkedBytes, f.Bytes-linkedBytes),
		"delete: status 1, directories 1/1, files 1/1, bytes 0/0, failed 0+0",
		fmt.Sprintf("hardlink: status 1, directories 0/0, files %d/%d, bytes %d/%d, failed 0+0", linked, linked, linkedBytes, linkedBytes),
		fmt.Sprintf("dir: status 1, directories %d/%d, files 0/0, bytes 0/0, failed 0+0", f.Dirs, f.Dirs),
	}
	if got := strings.TrimSpace(out); got != strings.Join(want, "\n") {
		t.Errorf("figures:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// ---- Clusters ----

func daemons(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(built.dir, "bin")
	once(t, "build the daemons", func() error {
		if err := os.Mkdir(bin, 0o755); err != nil {
			return err
		}
		return command("go", "build", "-o", bin+"/", "../coordinator", "../worker", "../fsbackup")
	})
	return bin
}

// startCluster starts a coordinator with NATS and workers as processes and
// returns the URL.
func startCluster(t *testing.T, workers int, allow ...string) string {
	t.Helper()
	bin := daemons(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	url := "nats://" + addr
	fsb := filepath.Join(bin, "fsbackup")
	startDaemon(t, filepath.Join(bin, "coordinator"), "--store", t.TempDir(), "--nats-listen", addr, "--name", "c1")
	await(t, func(string) bool { return true }, fsb, "workers", "--nats", url)
	for i := range workers {
		args := []string{"--nats", url, "--name", fmt.Sprintf("w%d", i+1)}
		for _, a := range allow {
			args = append(args, "--allow", a)
		}
		startDaemon(t, filepath.Join(bin, "worker"), args...)
	}
	await(t, func(out string) bool { return strings.Count(out, " live ") == workers }, fsb, "workers", "--nats", url)
	return url
}

// startDaemon starts a daemon that is stopped with the test.
func startDaemon(t *testing.T, name string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &log, &log, withoutCluster()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		err := cmd.Wait()
		if t.Failed() || err != nil {
			t.Logf("--- log of %s (%v)\n%s", filepath.Base(name), err, &log)
		}
	})
}

// await runs a command until it succeeds with the output that is waited for:
// processes have no event that a test could wait on.
func await(t *testing.T, ok func(string) bool, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = withoutCluster()
		out, err := cmd.CombinedOutput()
		if err == nil && ok(string(out)) {
			return string(out)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: never gave what was waited for; last: %v\n%s", cmd, err, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ---- What is built ----

func TestTheLibraryExportsTheInterfaceOnly(t *testing.T) {
	t.Parallel()
	dist := makeLib(t)
	need(t, "nm")
	header, err := os.ReadFile("../../include/fsbackup.h")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, part := range strings.Split(string(header), "FSBACKUP_API ")[1:] {
		decl, _, _ := strings.Cut(part, "(")
		if f := strings.Fields(strings.ReplaceAll(decl, "*", " ")); len(f) > 1 {
			want = append(want, f[len(f)-1])
		}
	}
	slices.Sort(want)
	if len(want) < 17 {
		t.Fatalf("the header declares only %q", want)
	}
	for _, c := range []struct {
		file, flag string
	}{{"libfsbackup.so", "-D"}, {"libfsbackup.a", "-g"}} {
		out, err := exec.Command("nm", c.flag, "--defined-only", filepath.Join(dist, c.file)).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) != 3 || f[1] == "A" {
				continue // the version's own name is absolute
			}
			name, _, _ := strings.Cut(f[2], "@")
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s exports\n%q\nwant\n%q", c.file, got, want)
		}
		t.Logf("%s exports %d symbols, those of the header", c.file, len(got))
	}
	out, err := exec.Command("readelf", "-d", filepath.Join(dist, "libfsbackup.so")).Output()
	if err != nil || !strings.Contains(string(out), "soname: [libfsbackup.so.1]") {
		t.Errorf("soname: %v\n%s", err, out)
	}
}

func TestInstallPutsEverythingInItsPlace(t *testing.T) {
	t.Parallel()
	dist := makeLib(t)
	root := t.TempDir()
	if err := command("make", "-C", "../..", "install", "DIST="+dist, "PREFIX=/usr", "DESTDIR="+root); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"lib/libfsbackup.so", "lib/libfsbackup.so.1", "lib/libfsbackup.so." + libraryVersion(t), "lib/libfsbackup.a", "lib/pkgconfig/fsbackup.pc", "include/fsbackup.h"} {
		if _, err := os.Stat(filepath.Join(root, "usr", f)); err != nil {
			t.Error(err)
		}
	}
	need(t, "pkg-config")
	cmd := exec.Command("pkg-config", "--cflags", "--libs", "fsbackup")
	cmd.Env = append(os.Environ(), "PKG_CONFIG_PATH="+filepath.Join(root, "usr/lib/pkgconfig"), "PKG_CONFIG_SYSROOT_DIR="+root)
	flags, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	// The one command of the manual, with what pkg-config says instead of /usr.
	out := filepath.Join(t.TempDir(), "backup")
	if err := command("gcc", slices.Concat([]string{"-o", out, "../../examples/c/backup.c"}, strings.Fields(string(flags)))...); err != nil {
		t.Fatal(err)
	}
	// And without the shared library.
	static := filepath.Join(t.TempDir(), "static")
	if err := command("gcc", "-o", static, "-I"+filepath.Join(root, "usr/include"), "../../examples/c/backup.c", filepath.Join(root, "usr/lib/libfsbackup.a"), "-lpthread"); err != nil {
		t.Fatal(err)
	}
	s, dst := everything(t)
	wantFigures(t, s, runProgram(t, nil, static, s.src, dst, s.meta, s.ctrl))
	treetest.Same(t, s.src, dst)
}

// The header's own assertions hold the layout; here it is compiled alone, in
// every language that it is for.
func TestTheHeaderStandsAlone(t *testing.T) {
	t.Parallel()
	need(t, "gcc", "g++")
	for _, c := range [][]string{
		{"gcc", "-std=c99", "-xc"}, {"gcc", "-std=c11", "-xc"}, {"gcc", "-std=c17", "-xc"},
		{"g++", "-std=c++11", "-xc++"}, {"g++", "-std=c++17", "-xc++"}, {"g++", "-std=c++20", "-xc++"},
	} {
		src := filepath.Join(t.TempDir(), "use")
		// Twice, with the constants where only constant expressions may stand.
		text := "#include <fsbackup.h>\n#include <fsbackup.h>\nstatic int of(int s) { switch (s) { case BACKUP_COMPLETED: return 1; case BACKUP_PHASE_DIR: return 4; } return 0; }\nint main(void) { BackupStatistics s; struct BackupStats_S *p = &s; int a[BACKUP_PHASE_HARDLINK]; (void)p; (void)a; return of(BACKUP_FAILED); }\n"
		if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append(slices.Clone(c[1:]), "-Wall", "-Wextra", "-Werror", "-pedantic", "-I../../include", "-fsyntax-only", src)
		if err := command(c[0], args...); err != nil {
			t.Error(err)
		}
	}
}

// ---- What it does ----

func TestSevenStepsInCLocal(t *testing.T) {
	t.Parallel()
	s, dst := everything(t)
	logs := filepath.Join(t.TempDir(), "made", "log")
	wantFigures(t, s, runProgram(t, nil, program(t, "../../examples/c/backup.c", "-pedantic"), s.src, dst, s.meta, s.ctrl, logs))
	treetest.Same(t, s.src, dst)
	text, err := os.ReadFile(filepath.Join(logs, "backup.log"))
	if err != nil || !strings.Contains(string(text), `msg="job has ended"`) || strings.Contains(string(text), "level=DEBUG") {
		t.Errorf("log at level info: %v\n%s", err, text)
	}
}

func TestSevenStepsInCppLocal(t *testing.T) {
	t.Parallel()
	s, dst := everything(t)
	wantFigures(t, s, runProgram(t, nil, program(t, "../../examples/c/backup.cc", "-pedantic"), append([]string{s.src, dst, s.meta}, s.all()...)...))
	treetest.Same(t, s.src, dst)
}

// The same programs, and the same results, with nothing but the environment
// changed.
func TestSevenStepsOnACluster(t *testing.T) {
	t.Parallel()
	s1, dst1 := everything(t)
	s2, dst2 := everything(t)
	url := startCluster(t, 2, s1.src, dst1, s2.src, dst2)
	env := []string{"FSBACKUP_NATS_URL=" + url}
	wantFigures(t, s1, runProgram(t, env, program(t, "../../examples/c/backup.c", "-pedantic"), s1.src, dst1, s1.meta, s1.ctrl))
	treetest.Same(t, s1.src, dst1)
	wantFigures(t, s2, runProgram(t, env, program(t, "../../examples/c/backup.cc", "-pedantic"), append([]string{s2.src, dst2, s2.meta}, s2.all()...)...))
	treetest.Same(t, s2.src, dst2)
	out := await(t, func(string) bool { return true }, filepath.Join(daemons(t), "fsbackup"), "jobs", "--nats", url)
	if strings.Count(out, "completed") != 8 {
		t.Error("the cluster does not show the eight jobs as completed")
	}
	t.Logf("jobs of the cluster:\n%s", out)
}

func TestNoClusterIsAnErrorOfStart(t *testing.T) {
	t.Parallel()
	s, dst := everything(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // nobody listens there now
	cmd := exec.Command(program(t, "../../examples/c/backup.c", "-pedantic"), s.src, dst, s.meta, s.ctrl)
	cmd.Env = append(withoutCluster(), "FSBACKUP_NATS_URL=nats://"+addr)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(out), "connect to NATS at") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWhatTheOriginalCrashedOn(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	src := treetest.At(t, filepath.Join(base, "src"))
	for i := range 40 {
		src.File(fmt.Sprintf("d%d/f", i), "content")
	}
	src.File("gone0", "x")
	src.File("gone1", "x")
	s := scan(t, src.Path(""), 20) // several control files
	copies := s.files[controlfile.Copy]
	if len(copies) < 3 {
		t.Fatalf("control files: %q", copies)
	}
	text, err := os.ReadFile(copies[0])
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(base, "control_9_bad.txt")
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err := os.WriteFile(bad, []byte(strings.Join(lines[:len(lines)-1], "\n")+"\n"), 0o600); err != nil { // one entry less than announced
		t.Fatal(err)
	}
	empty, scratch := t.TempDir(), t.TempDir()
	del := s.addDelete(t, "gone", "file")
	out := runProgram(t, nil, program(t, "testdata/edges.c"), append([]string{s.src, filepath.Join(base, "dst"), s.meta, empty, scratch, del, bad}, copies...)...)
	if want := "files 42 dirs 41\n"; out != want {
		t.Errorf("several control files: %q, want %q", out, want)
	}
}

func TestWhileItRuns(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	src := treetest.At(t, filepath.Join(base, "src"))
	content := map[string]bool{}
	for i := range 12_000 {
		text := fmt.Sprintf("file %d", i)
		src.File(fmt.Sprintf("d%03d/f%d", i/100, i), text)
		content[text] = true
	}
	for i := range 4 {
		text := strings.Repeat(fmt.Sprintf("big %d ", i), 4<<20)
		src.File(fmt.Sprintf("d%03d/big%d", i*50, i), text)
		content[text] = true
	}
	s := scan(t, src.Path(""), 0)
	dst := filepath.Join(base, "dst")
	out := runProgram(t, nil, program(t, "testdata/running.c"), append([]string{s.src, s.meta, dst}, s.files[controlfile.Copy]...)...)
	t.Log(out)
	treetest.Same(t, s.src, filepath.Join(dst, "one"))
	treetest.Same(t, s.src, filepath.Join(dst, "two"))
	// Whatever was stopped has whole files only, and nothing of ours.
	for _, name := range []string{"destroyed", "cancelled", "atonce", "readers"} {
		files := 0
		err := filepath.WalkDir(filepath.Join(dst, name), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			if strings.HasPrefix(d.Name(), ".fsb") {
				t.Errorf("left behind: %s", p)
			}
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if !content[string(text)] {
				t.Errorf("%s is no file of the source: %d bytes", p, len(text))
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if files == 12_004 && name != "atonce" {
			t.Errorf("%s: nothing was stopped", name)
		}
		t.Logf("%s: %d of 12004 files were copied, all whole", name, files)
	}
}

func small(t *testing.T, files int) (s scanned, dst string) {
	t.Helper()
	base := t.TempDir()
	src := treetest.At(t, filepath.Join(base, "src"))
	for i := range files {
		src.File(fmt.Sprintf("d%d/f%d", i/50, i), "content")
	}
	return scan(t, src.Path(""), 0), filepath.Join(base, "dst")
}

func TestTheHostKeepsItsSignalsAndChildren(t *testing.T) {
	t.Parallel()
	s, dst := small(t, 6_000)
	lib := filepath.Join(makeLib(t), "libfsbackup.so.1")
	t.Log(runProgram(t, nil, program(t, "testdata/host.c", "-I../../include"), lib, s.src, dst, s.meta, s.files[controlfile.Copy][0]))
	treetest.Same(t, s.src, dst)
}

func TestNothingGrows(t *testing.T) {
	t.Parallel()
	s, dst := small(t, 20)
	t.Log(runProgram(t, nil, program(t, "testdata/cycles.c"), s.src, dst, s.meta, s.files[controlfile.Copy][0], "10000", "300"))
}

// sanitized compiles a program with a sanitizer, if this compiler has it.
func sanitized(t *testing.T, source, sanitizer string) string {
	t.Helper()
	need(t, "gcc")
	probe := filepath.Join(t.TempDir(), "probe.c")
	if err := os.WriteFile(probe, []byte("int main(void) { return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := command("gcc", "-fsanitize="+sanitizer, "-o", probe+".out", probe); err != nil {
		t.Skipf("the compiler has no -fsanitize=%s: %v", sanitizer, err)
	}
	if err := command(probe + ".out"); err != nil {
		t.Skipf("-fsanitize=%s does not work on this machine: %v", sanitizer, err)
	}
	return program(t, source, "-fsanitize="+sanitizer)
}

// The C side under sanitizers; the Go side has the race detector in its own
// tests. The address sanitizer looks for leaks as well.
func TestSanitizers(t *testing.T) {
	t.Parallel()
	for _, sanitizer := range []string{"address", "thread", "undefined"} {
		t.Run(sanitizer, func(t *testing.T) {
			t.Parallel()
			s, dst := everything(t)
			env := []string{"TSAN_OPTIONS=halt_on_error=1", "UBSAN_OPTIONS=halt_on_error=1"}
			wantFigures(t, s, runProgram(t, env, sanitized(t, "../../examples/c/backup.c", sanitizer), s.src, dst, s.meta, s.ctrl))
			treetest.Same(t, s.src, dst)
			s, dst = small(t, 200)
			t.Log(runProgram(t, env, sanitized(t, "testdata/cycles.c", sanitizer), s.src, dst, s.meta, s.files[controlfile.Copy][0], "200", "10"))
			runProgram(t, env, sanitized(t, "testdata/threads.c", sanitizer), s.src, dst, s.meta, s.files[controlfile.Copy][0], filepath.Join(t.TempDir(), "log"))
		})
	}
}

// Valgrind does not understand the Go runtime's memory and reports much about
// it; what C allocated and lost it knows exactly.
func TestValgrindFindsNoLeak(t *testing.T) {
	t.Parallel()
	need(t, "valgrind")
	s, dst := small(t, 20)
	prog := program(t, "testdata/cycles.c")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "valgrind", "--leak-check=full", "--undef-value-errors=no", prog, s.src, dst, s.meta, s.files[controlfile.Copy][0], "20", "2")
	// Go chooses by the processor, and valgrind does not know all that it has.
	cmd.Env = append(withoutCluster(), "TMPDIR="+t.TempDir(), "GODEBUG=cpu.rdtscp=off,cpu.avx512f=off,cpu.avx512bw=off,cpu.avx512vl=off")
	out, err := cmd.CombinedOutput()
	text := string(out)
	if strings.Contains(text, "unhandled instruction bytes") {
		t.Skipf("valgrind does not know an instruction of this processor:\n%s", text)
	}
	if err != nil || !strings.Contains(text, "started: 2 cycles") {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{"definitely lost: 0 bytes in 0 blocks", "indirectly lost: 0 bytes in 0 blocks"} {
		if !strings.Contains(text, want) && !strings.Contains(text, "no leaks are possible") {
			t.Errorf("valgrind does not say %q:\n%s", want, text)
		}
	}
}
