package folder

import (
	"context"
	"errors"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Follow follows the stream of results without end, from the checkpoints on.
// caughtUp is closed once all that was stored at its start is added.
func (f *Folder) Follow(ctx context.Context, caughtUp chan<- struct{}) error {
	at, err := f.cfg.Bus.StreamState(ctx, protocol.StreamResults)
	if err != nil {
		return err
	}
	from, err := f.loadCheckpoints(ctx, at.LastSeq)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.folded = from
	f.mu.Unlock()
	waiting, err := f.cfg.Bus.HasFrom(ctx, protocol.StreamResults, protocol.SubjectsResults, from+1)
	if err != nil {
		return err
	}
	f.log.Info("results are read", "after", from, "last", at.LastSeq)
	if !waiting {
		close(caughtUp)
	}
	var batch []answer
	take := func(m bus.Stored) error {
		batch = append(batch, f.decode(m))
		// Only of what was there at the start is it known that more will come: what
		// follows later can be removed before it is read.
		if waiting && m.Pending > 0 && m.Sequence < at.LastSeq && len(batch) < foldMost {
			return nil
		}
		f.fold(ctx, batch)
		batch = batch[:0]
		if waiting && (m.Pending == 0 || m.Sequence >= at.LastSeq) {
			waiting = false
			close(caughtUp)
		}
		return nil
	}
	for {
		tail, stop := context.WithCancelCause(ctx)
		f.mu.Lock()
		f.stopTail = stop
		f.mu.Unlock()
		err := f.cfg.Bus.Tail(tail, protocol.StreamResults, protocol.SubjectsResults, from+1, take)
		stop(nil)
		if !errors.Is(err, errAnew) {
			return err
		}
		f.mu.Lock()
		from, f.folded = 0, 0
		f.mu.Unlock()
		batch = batch[:0]
	}
}

// FollowAnew has Follow read the stream from its start: it is not the one that was
// followed so far. What has been added stays, and is not added twice.
func (f *Folder) FollowAnew() {
	f.mu.Lock()
	stop := f.stopTail
	f.mu.Unlock()
	if stop != nil {
		stop(errAnew)
	}
}

var errAnew = errors.New("the result stream was made anew")

// foldMost is how many results are added to the view in one transaction at a
// start: with one each, that would take most of the time.
const foldMost = 256

// answer is a result as the stream has it.
type answer struct {
	r        *protocol.ResultMsg // nil = of no shard
	sequence uint64
	folded   bool // it was its shard's first
}

func (f *Folder) decode(m bus.Stored) answer {
	a := answer{sequence: m.Sequence}
	id, p, n, ok := protocol.ParseResultSubject(m.Subject)
	if !ok {
		f.log.Warn("result with an unknown subject ignored", "subject", m.Subject)
		return a
	}
	a.r = &protocol.ResultMsg{}
	if err := protocol.Decode(m.Data, protocol.TypeResult, a.r); err != nil {
		// It cannot be replaced, so it counts: as a failed shard of which no more
		// is known.
		f.log.Error("result cannot be read, its shard counts as failed", "job", id, "phase", p, "shard", n, "error", err)
		a.r = &protocol.ResultMsg{Failures: 1, Counts: &protocol.CountsMsg{FilesFailed: 1}}
	}
	a.r.Job, a.r.Phase, a.r.N = string(id), uint32(p), n
	return a
}

// fold adds results, in the order of the stream, to their jobs.
func (f *Folder) fold(ctx context.Context, batch []answer) {
	f.addAll(batch)
	jobs := map[protocol.JobID]bool{}
	for _, a := range batch {
		if a.folded {
			f.count(ctx, a.r)
			jobs[protocol.JobID(a.r.GetJob())] = true
		}
	}
	for id := range jobs {
		f.rec.Poke(id)
		f.cfg.Folded(ctx, id)
	}
}

// addAll adds results to the view and notes the sequence of the last, all in one
// step for whoever makes a checkpoint.
func (f *Folder) addAll(batch []answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rec.Update(func(t state.Tx) {
		for i := range batch {
			a := &batch[i]
			if a.r == nil {
				continue
			}
			var open bool
			if a.folded, open = t.Fold(a.r); open {
				f.cfg.GiveBack(protocol.JobID(a.r.GetJob()), 1)
			}
		}
	})
	f.folded = max(f.folded, batch[len(batch)-1].sequence)
	if f.sinceMany += len(batch); f.sinceMany >= f.cfg.CheckpointEvery {
		f.sinceMany = 0
		select {
		case f.due <- struct{}{}:
		default:
		}
	}
}
