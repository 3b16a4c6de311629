package clustertest

import (
	"cmp"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// Held is a job that cannot end before the test lets it: it has been given only some
// of its control files. However fast the job is, and however slow the test, what is to
// happen to it happens in its middle.
type Held struct {
	ID    protocol.JobID
	Files client.Files // all of them
	// Again is how many of their directories are named only for the sake of what
	// follows: an earlier file has them.
	Again uint64

	c     *Cluster
	given int
}

// Hold scans a tree and submits its backup as id ("" = a new one), with change applied
// to the spec and less than half of its control files.
func (c *Cluster) Hold(id protocol.JobID, source, destination string, change func(*protocol.JobSpec)) *Held {
	c.t.Helper()
	res, err := scanner.Scan(c.t.Context(), scanner.Config{Source: source, Out: filepath.Join(c.t.TempDir(), "scan"), MaxEntries: 50})
	if err != nil {
		c.t.Fatal(err)
	}
	if id == "" {
		id = client.NewJobID(time.Now())
	}
	h := &Held{c: c, ID: id}
	for _, f := range res.ControlFiles {
		h.Files.Control = append(h.Files.Control, protocol.FileRef{Path: f.Path, Phase: phaseOf[f.Kind]})
		h.count(f.Path)
	}
	// What the job is given while it is held is for its copy phase.
	slices.SortStableFunc(h.Files.Control, func(a, b protocol.FileRef) int { return cmp.Compare(a.Phase, b.Phase) })
	spec := protocol.JobSpec{Source: source, Destination: destination, Meta: res.MetaDir, WriteMeta: true}
	if change != nil {
		change(&spec)
	}
	h.given = 5
	if len(h.Files.Control) < 3*h.given || h.Files.Control[2*h.given].Phase != protocol.PhaseCopy {
		c.t.Fatalf("the tree is too small: %d control files", len(h.Files.Control))
	}
	first := client.Files{Control: append([]protocol.FileRef{}, h.Files.Control[:h.given]...)}
	if err := c.Client.Submit(c.t.Context(), id, spec, first, false); err != nil {
		c.t.Fatal(err)
	}
	return h
}

// More gives the job one more control file, so that it has something to do just now.
// It reports false once there is none but the last.
func (h *Held) More() bool {
	h.c.t.Helper()
	if h.given >= len(h.Files.Control)-1 {
		return false
	}
	h.give(1, false)
	return true
}

// Release gives the job the rest: from now on it may end.
func (h *Held) Release() {
	h.c.t.Helper()
	h.give(len(h.Files.Control)-h.given, true)
}

func (h *Held) give(n int, seal bool) {
	h.c.t.Helper()
	part := append([]protocol.FileRef{}, h.Files.Control[h.given:h.given+n]...)
	if err := h.c.Append(h.c.t.Context(), h.ID, uint32(h.given), part, seal); err != nil {
		h.c.t.Fatal(err)
	}
	h.given += n
}

func (h *Held) count(path string) {
	h.c.t.Helper()
	r, err := controlfile.Open(path, 0)
	if err != nil {
		h.c.t.Fatal(err)
	}
	defer func() { _ = r.Close() }() // read only
	head := r.Header()
	coded := head.Coded()
	for {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			h.c.t.Fatal(err)
		case e.IsDir && e.Mode == controlfile.ModeDeleted && !coded:
			h.Again++
		}
	}
}
