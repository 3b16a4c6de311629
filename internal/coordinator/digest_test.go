package coordinator

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestControlFileThatIsAFIFOHoldsNobody: a job names its control files by their
// paths, and whoever may submit one chooses what is there.
func TestControlFileThatIsAFIFOHoldsNobody(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "control_0_f.txt")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero"} {
		_, err := Digest(path)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
