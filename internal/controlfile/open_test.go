package controlfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestFIFOsAndDevicesAreNotOpened names a FIFO, whose reader waits for a writer
// that never comes, a device and a directory wherever a file is read.
func TestFIFOsAndDevicesAreNotOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "meta_file_0")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "control_0_f.txt")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	closing := func(f interface{ Close() error }, err error) error {
		if err == nil {
			return errors.Join(errors.New("opened"), f.Close())
		}
		return err
	}
	for _, path := range []string{fifo, link, "/dev/zero", dir} {
		for name, f := range map[string]func() error{
			"open":    func() error { return closing(Open(path, Copy)) },
			"open at": func() error { return closing(OpenAt(path, Copy, Position{Offset: 300})) },
			"check":   func() error { _, err := Check(path, Copy); return err },
			"detect":  func() error { _, err := Detect(path); return err },
		} {
			err := f()
			if err == nil || !strings.Contains(err.Error(), "not a regular file") || !strings.Contains(err.Error(), filepath.Base(path)) {
				t.Errorf("%s %s: %v", name, path, err)
			}
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s %s: %v", name, path, fault.KindOf(err))
			}
		}
	}
	for link, to := range map[string]string{"meta_file_1": "/dev/zero", "meta_file_2": dir} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	md := OpenMetaDir(dir)
	for _, name := range []string{"meta_file_0", "meta_file_1", "meta_file_2"} {
		_, err := md.Lookup(MetaRef{File: name, Offset: 64, Length: 120, Valid: true}, Entry{Type: TypeFile, Mode: "bm", Name: "f", Path: "f"})
		if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), "not a regular file") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := md.Close(); err != nil {
		t.Error(err)
	}
	// A writer would succeed had anybody opened it to read.
	if fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		t.Error("the fifo has a reader")
		_ = unix.Close(fd)
	}
}
