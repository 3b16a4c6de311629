package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestScratchOfDeadProcessesIsSwept: it goes with the next that is made, that of the
// living stays, and so does what only looks like it.
func TestScratchOfDeadProcessesIsSwept(t *testing.T) {
	base := t.TempDir()
	living, err := MakeScratch(base)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := MakeScratch(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dead.Dir, "a", "b"), 0o700), os.WriteFile(filepath.Join(dead.Dir, "a", "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil { // as the kernel does at the end of a process
		t.Fatal(err)
	}
	precious := filepath.Join(base, "precious")
	if err := errors.Join(
		os.Mkdir(precious, 0o700), os.WriteFile(filepath.Join(precious, "f"), nil, 0o600),
		os.Symlink(precious, filepath.Join(base, scratchPrefix+"link")),
		os.WriteFile(filepath.Join(base, scratchPrefix+"file"), nil, 0o600),
		os.Mkdir(filepath.Join(base, "fsbackup-other"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		other := filepath.Join(base, scratchPrefix+"of-another")
		if err := errors.Join(os.Mkdir(other, 0o700), os.Chown(other, 77, 77)); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := os.Lstat(other); err != nil {
				t.Errorf("that of another user: %v", err)
			}
		}()
	}
	next, err := MakeScratch(base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dead.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("that of a dead process: %v", err)
	}
	for _, path := range []string{living.Dir, next.Dir, filepath.Join(precious, "f"), filepath.Join(base, scratchPrefix+"link"), filepath.Join(base, scratchPrefix+"file"), filepath.Join(base, "fsbackup-other")} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(living.Remove(), next.Remove()); err != nil {
		t.Error(err)
	}
}

// TestScratchIsNeverSweptWhileItIsMade: many processes come at once.
func TestScratchIsNeverSweptWhileItIsMade(t *testing.T) {
	base := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				s, err := MakeScratch(base)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(s.Dir, "f"), nil, 0o600); err != nil {
					t.Error(err)
				}
				if err := s.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestScratchThatCannotBeMadeSaysWhere(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := MakeScratch(missing); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("it says %v", err)
	}
}
