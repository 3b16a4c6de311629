package clustertest

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
)

// manyFiles scans a tree into so many control files that they are handed over in
// several requests.
func manyFiles(t *testing.T, source string) (client.Files, string) {
	t.Helper()
	res, err := scanner.Scan(t.Context(), scanner.Config{Source: source, Out: filepath.Join(t.TempDir(), "scan"), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	var files client.Files
	for _, f := range res.ControlFiles {
		files.Control = append(files.Control, protocol.FileRef{Path: f.Path, Phase: phaseOf[f.Kind]})
	}
	if len(files.Control) < 600 {
		t.Fatalf("%d control files are too few for this test", len(files.Control))
	}
	return files, res.MetaDir
}

// In the middle of a submission the leader is cut off, or NATS is started again:
// the same call hands all files over, each once.
func TestASubmissionOutlivesItsLeaderAndItsConnection(t *testing.T) {
	t.Parallel()
	for what, strike := range map[string]func(*Cluster){
		"leader": func(c *Cluster) { c.KillCoordinator() },
		"NATS":   func(c *Cluster) { c.RestartNATS() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := NewOn(t, Timing(), bus.ServerConfig{Listen: "127.0.0.1:0"})
			src, dst := roots(t, 20, 600)
			c.StartWorker("w")
			if what == "leader" {
				c.StartStandby("spare", nil)
			}
			files, meta := manyFiles(t, src)
			id, struck := client.NewJobID(time.Now()), false
			err := c.Telling(func(s client.Step) {
				if s.Doing == "handing over" && s.Done > 0 && !struck {
					struck = true
					strike(c)
				}
			}).Submit(t.Context(), id, protocol.JobSpec{Source: src, Destination: dst, Meta: meta, WriteMeta: true}, files, true)
			if err != nil || !struck {
				t.Fatalf("it ended with %v, and was struck: %v", err, struck)
			}
			v := c.Wait(id)
			v.Stats.Skipped = 0 // each file names the directory of its entry again
			whole(t, v, src, dst)
		})
	}
}
