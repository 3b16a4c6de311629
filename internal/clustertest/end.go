package clustertest

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/history"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/treetest"
)

// Ends are the ways in which an End has its job end.
var Ends = []string{"at its first failure", "with failures", "without its control files", "with control files that were edited", "cancelled", "as it should"}

// End is a job that ends in one of the ways in which jobs end, with the history that
// the next run of the backup begins with.
type End struct {
	Way string
	ID  protocol.JobID

	t     testing.TB
	c     *client.Client
	r     *rand.Rand
	src   string
	pair  *history.Pair
	scan  *history.Scan
	files client.Files
}

// Begin scans a tree for a backup to dst, as the command does, and submits it, with
// change applied to the spec. The history is below state.
func Begin(t testing.TB, c *client.Client, r *rand.Rand, way, src, dst, state string, change func(*protocol.JobSpec)) *End {
	t.Helper()
	e := &End{Way: way, t: t, c: c, r: r, src: src}
	var err error
	if e.pair, err = history.Open(state, src, dst); err != nil {
		t.Fatal(err)
	}
	if e.scan, err = e.pair.Begin(time.Now(), false); err != nil {
		t.Fatal(err)
	}
	// Control files of a few entries: of some all is done when the job ends, of
	// others nothing.
	res, err := scanner.Scan(t.Context(), scanner.Config{Source: src, Out: e.scan.Dir, MaxEntries: 300})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range res.ControlFiles {
		e.files.Control = append(e.files.Control, protocol.FileRef{Path: f.Path, Phase: phaseOf[f.Kind]})
	}
	e.ID = client.NewJobID(time.Now())
	if err := e.scan.MarkPending(e.ID, res); err != nil {
		t.Fatal(err)
	}
	spec := protocol.JobSpec{Source: src, Destination: dst, Meta: res.MetaDir, WriteMeta: true, CheckContents: true, FailFast: way == Ends[0]}
	if change != nil {
		change(&spec)
	}
	if way == Ends[0] || way == Ends[1] {
		e.removeSome()
	}
	e.persist(func(ctx context.Context) error { return c.Submit(ctx, e.ID, spec, e.files, true) })
	return e
}

// removeSome takes a few files out of the source that the scan has seen.
func (e *End) removeSome() {
	e.t.Helper()
	var regular []string
	for _, f := range treetest.Listing(e.t, e.src) {
		if f.Type == syscall.S_IFREG {
			regular = append(regular, filepath.Join(e.src, f.Path))
		}
	}
	for range 3 {
		err := os.Remove(regular[e.r.IntN(len(regular))])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.t.Fatal(err)
		}
	}
}

// Strike does what is to end the job while it runs. It reports whether that is a
// cancel.
func (e *End) Strike() (cancelled bool) {
	e.t.Helper()
	switch e.Way {
	case Ends[2]:
		for _, f := range e.files.Control {
			if err := os.Remove(f.Path); err != nil {
				e.t.Fatal(err)
			}
		}
	case Ends[3]:
		for _, f := range e.files.Control {
			e.edit(f.Path)
		}
	case Ends[4]:
		e.persist(func(ctx context.Context) error {
			_, err := e.c.Cancel(ctx, e.ID)
			if fault.Is(err, fault.Invalid) {
				return nil // it is ending
			}
			return err
		})
		return true
	}
	return false
}

// edit changes the last byte of a name in a control file, and nothing else of it.
func (e *End) edit(path string) {
	e.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		e.t.Fatal(err)
	}
	at := len(data) - 2
	data[at] ^= 1
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data[at:], int64(at))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// Settle holds the statistics of the job, which has ended, and makes of it what the
// command does: what the destination has is committed, or the scan stays pending.
func (e *End) Settle(v protocol.JobView) {
	e.t.Helper()
	s := v.Stats
	if s.DirsToBackup+s.FilesToBackup != s.DirsCopied+s.FilesCopied+s.DirsFailed+s.FilesFailed+s.SkippedToBackup+s.NotAttempted {
		e.t.Errorf("a job that ended %s has statistics that leave entries out, or have some twice: %+v", e.Way, s)
	}
	if v.State == protocol.StateCompleted && (s.Unattempted() > 0 || !v.Answered) {
		e.t.Errorf("a job that ended %s is completed, and not all was attempted: %+v", e.Way, s)
	}
	known := true
	e.persist(func(ctx context.Context) error {
		err := e.pair.Commit(e.scan, e.c.Undone(ctx, v), time.Now(), true, history.Ending{})
		if errors.Is(err, client.ErrUndoneUnknown) {
			known = false
			return nil
		}
		return err
	})
	e.t.Logf("a job ended %s: %s (%s), %d not attempted, all of that is known: %v", e.Way, v.State, v.Reason, s.NotAttempted, known)
	if err := e.pair.Close(); err != nil {
		e.t.Fatal(err)
	}
}

// Unqueued holds that no worker can get a shard of the job, which has ended: what is
// queued has its result already, and is gone as soon as its worker, or the one that
// gets it after that worker's death, has acknowledged it.
func (e *End) Unqueued(b *bus.Bus) {
	e.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for first := true; ; first = false {
		var queued map[string]bool
		e.persist(func(ctx context.Context) (err error) {
			queued, err = b.Queued(ctx, protocol.JobShards(e.ID))
			return err
		})
		for subject := range queued {
			if first && !e.answered(b, subject) {
				e.t.Errorf("a job ended %s with shards in the queue: %q has no result", e.Way, subject)
			}
		}
		if len(queued) == 0 {
			return
		}
		if time.Now().After(deadline) || !bus.Sleep(e.t.Context(), 100*time.Millisecond) {
			e.t.Errorf("a job ended %s with shards in the queue: %v", e.Way, queued)
			return
		}
	}
}

// answered reports whether what is queued has a result. The server that is asked may
// be a moment behind.
func (e *End) answered(b *bus.Bus, subject string) bool {
	e.t.Helper()
	_, shard, _ := strings.Cut(subject, string(e.ID))
	for range 10 {
		_, err := b.Last(e.t.Context(), protocol.StreamResults, "fsb.result."+string(e.ID)+shard)
		if err == nil {
			return true
		}
		bus.Sleep(e.t.Context(), 100*time.Millisecond)
	}
	return false
}

// persist tries until it works: the cluster is being disturbed.
func (e *End) persist(f func(context.Context) error) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if !fault.Passing(err) && !fault.Is(err, fault.Stale) || !bus.Sleep(ctx, 200*time.Millisecond) {
			e.t.Fatal(err)
		}
	}
}
