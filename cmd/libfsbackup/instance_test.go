package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestTheLogIsRotated(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	l := &logFile{most: 100, keep: 2}
	if n, err := l.Write([]byte("nowhere yet\n")); n != 12 || err != nil {
		t.Errorf("without a directory: %d, %v", n, err)
	}
	if err := l.open(dir); err != nil {
		t.Fatal(err)
	}
	line := func(i int) string { return fmt.Sprintf("line %03d %s\n", i, strings.Repeat("x", 31)) } // 41 bytes: two a file
	for i := range 11 {
		if _, err := l.Write([]byte(line(i))); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"backup.log": line(10), "backup.log.1": line(8) + line(9), "backup.log.2": line(6) + line(7)} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("%v %v", left, err)
	}
	// Opened again, it goes on where it was.
	again := &logFile{most: 100, keep: 2}
	if err := again.open(dir); err != nil {
		t.Fatal(err)
	}
	for i := 11; i < 13; i++ {
		if _, err := again.Write([]byte(line(i))); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "backup.log")); err != nil || string(got) != line(12) {
		t.Errorf("after opening again: %q, %v", got, err)
	}
	// The first writer's file was put aside by the other: it does not put the new
	// one aside as well.
	for i := 13; i < 15; i++ {
		if _, err := l.Write([]byte(line(i))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(dir, "backup.log"))
	if err != nil || !bytes.HasPrefix(got, []byte(line(12))) || !bytes.HasSuffix(got, []byte(line(14))) {
		t.Errorf("two writers: %q, %v", got, err)
	}
}

func TestTheLogHasTheLevelsOfTheInterface(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := newLibrary()
	l.log.Error("before there is a log")
	for level := -1; level <= 5; level++ {
		if err := l.initLog(filepath.Join(dir, fmt.Sprint(level)), level); err != nil {
			t.Fatal(err)
		}
		l.log.Debug("debug")
		l.log.Info("info")
		l.log.Warn("warn")
		l.log.Error("error")
		l.log.Log(t.Context(), levels[4], "critical")
	}
	for level, want := range map[int]int{-1: 5, 0: 5, 1: 4, 2: 3, 3: 2, 4: 1, 5: 1} {
		text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(level), logName))
		if err != nil || bytes.Count(text, []byte("\n")) != want || !bytes.Contains(text, []byte("critical")) || bytes.Contains(text, []byte("before")) {
			t.Errorf("level %d: %v\n%s", level, err, text)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.initLog(file, 1); err == nil {
		t.Error("a file as log directory was accepted")
	}
}

// copyInstance makes an instance that copies a small tree to dst.
func copyInstance(t *testing.T, l *library, dst string) (uint64, *instance) {
	t.Helper()
	src := treetest.At(t, filepath.Join(t.TempDir(), "src"))
	src.File("d/f", "content")
	s := scan(t, src.Path(""), 0)
	h, err := l.create(s.src, dst, s.meta, int(protocol.PhaseCopy), true)
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.find(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.enqueue(s.files[controlfile.Copy][0]); err != nil {
		t.Fatal(err)
	}
	return h, i
}

func (i *instance) mustEnd(t *testing.T, status int) {
	t.Helper()
	select {
	case <-i.run.finished:
	case <-time.After(2 * time.Minute):
		t.Fatal("the job does not end")
	}
	if got := i.status(); got != status {
		t.Fatalf("status %d, want %d: %s", got, status, i.message())
	}
}

// The cluster within the process serves one instance after the other, and goes
// when nobody has used it for a while.
func TestTheClusterWithinTheProcessComesAndGoes(t *testing.T) {
	l := newLibrary()
	var backends []*backend
	for round, idle := range []time.Duration{time.Hour, time.Millisecond, time.Hour} {
		l.mu.Lock()
		l.idle = idle
		l.mu.Unlock()
		h, i := copyInstance(t, l, filepath.Join(t.TempDir(), "dst"))
		if err := i.start(t.Context(), environment{tmpdir: built.dir}); err != nil {
			t.Fatal(err)
		}
		i.mustEnd(t, 1)
		backends = append(backends, i.run.on)
		if err := l.destroy(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			<-i.run.on.failed() // it has stopped
		}
	}
	if backends[0] != backends[1] || backends[1] == backends[2] {
		t.Error("an idle cluster is used again, one that was stopped is not")
	}
	// A cluster that ended by itself is replaced.
	if err := backends[2].local.Close(); err != nil {
		t.Fatal(err)
	}
	_, i := copyInstance(t, l, filepath.Join(t.TempDir(), "dst"))
	if err := i.start(t.Context(), environment{tmpdir: built.dir}); err != nil {
		t.Fatal(err)
	}
	i.mustEnd(t, 1)
	if i.run.on == backends[2] {
		t.Error("a cluster that has ended was used again")
	}
	if err := i.run.on.local.Close(); err != nil {
		t.Fatal(err)
	}
}

// A job within the process that cannot go on fails after a while: its caller
// only sees that it is in progress.
func TestAJobThatCannotGoOnFails(t *testing.T) {
	t.Parallel()
	if !treetest.Root() {
		t.Skip("needs root: for others Start refuses the destination")
	}
	l := newLibrary()
	h, i := copyInstance(t, l, "/proc") // nothing can be made there
	if err := i.setOption("stall_timeout", "1"); err != nil {
		t.Fatal(err)
	}
	if err := i.start(t.Context(), environment{tmpdir: built.dir}); err != nil {
		t.Fatal(err)
	}
	i.mustEnd(t, failed)
	if m := i.message(); !strings.Contains(m, "/proc") {
		t.Errorf("message: %q", m)
	}
	if err := l.destroy(t.Context(), h); err != nil {
		t.Fatal(err)
	}
}

// Everything at once from many goroutines, for the race detector.
func TestInstancesAreSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	l := newLibrary()
	var wg sync.WaitGroup
	for n := range 4 {
		h, i := copyInstance(t, l, filepath.Join(t.TempDir(), "dst"))
		for range 4 {
			wg.Go(func() {
				_ = i.threads(2, 2)                                                       // refused once it is started
				_ = i.start(t.Context(), environment{pool: "ignored", tmpdir: built.dir}) // all but one are refused
				i.wait(time.Duration(n) * 20 * time.Millisecond)
				i.figures()
				_, _ = i.failures(t.Context(), "") // the instance may be gone
				_, _, _ = i.status(), i.message(), i.jobID()
				_ = l.destroy(t.Context(), h)        // all but one are refused
				if _, err := l.find(h); err == nil { // whoever destroyed it
					t.Error("the instance is still there")
				}
			})
		}
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.instances) != 0 || len(l.backends) != 1 {
		t.Errorf("%d instances, %d backends", len(l.instances), len(l.backends))
	}
}
