package worker

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// headerRoom is what a message's headers take of the payload limit.
const headerRoom = 4 << 10

// commitLoop makes executed shards durable and publishes their results. All of a
// job that are ready share one sync: it costs the same for one shard and for
// many. Jobs do not wait for each other, since a sync may hang.
func (w *Worker) commitLoop(ctx context.Context) {
	waiting := map[*openJob][]*attempt{} // by job of which a commit is under way
	done := make(chan *openJob)
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := func(j *openJob, group []*attempt) {
		waiting[j] = nil
		wg.Go(func() {
			w.commit(ctx, j, group)
			select {
			case done <- j:
			case <-ctx.Done():
			}
		})
	}
	for {
		select {
		case a := <-w.commits:
			for j, group := range w.readyWith(a) {
				if _, under := waiting[j]; under {
					waiting[j] = append(waiting[j], group...)
				} else {
					begin(j, group)
				}
			}
		case j := <-done:
			next := waiting[j]
			delete(waiting, j)
			if len(next) > 0 {
				begin(j, next)
			}
		case <-ctx.Done():
			for _, left := range waiting { // behind a sync that hangs
				for _, a := range left {
					close(a.settled)
				}
			}
			return
		}
	}
}

// readyWith returns a and all other attempts that are ready, by job.
func (w *Worker) readyWith(a *attempt) map[*openJob][]*attempt {
	ready := map[*openJob][]*attempt{a.job: {a}}
	for {
		select {
		case a := <-w.commits:
			ready[a.job] = append(ready[a.job], a)
		default:
			return ready
		}
	}
}

// commit makes what a group of a job's attempts did durable, then publishes
// their results. j is nil for those that touched no file system.
func (w *Worker) commit(ctx context.Context, j *openJob, group []*attempt) {
	var synced error
	if j != nil {
		synced = j.eng.Sync(ctx)
	}
	for _, a := range group {
		err := synced
		if err == nil && j != nil && a.run.Phase == protocol.PhaseCleanup {
			w.closeJob(a)
		}
		if err == nil {
			err = w.publish(ctx, a, results(a))
		}
		if err != nil {
			w.giveBack(a, err)
		}
		close(a.settled)
	}
}

// answer is what an attempt publishes.
type answer struct {
	result   *protocol.ResultMsg
	failures *protocol.FailuresMsg
}

// settleFailed publishes a result that fails all entries of the shard.
func (w *Worker) settleFailed(a *attempt, cause error) {
	res, fails := protocol.FailWhole(a.shard, cause.Error())
	if err := w.publish(a.base, a, answer{res, fails}); err != nil {
		w.log.Warn("result cannot be published", "job", a.run.Job, "shard", a.run.N, "error", err)
		w.logIf("nak", a.d.Nak(time.Second))
	}
}

// publish stores failures and result and acknowledges the shard. While NATS
// cannot be reached it tries again until the lease ends.
func (w *Worker) publish(ctx context.Context, a *attempt, ans answer) error {
	r, f := ans.result, ans.failures
	r.Sequence, r.Delivery, r.Worker, r.Nanos = a.run.Sequence, a.run.Delivery, w.cfg.Name, a.took.Nanoseconds()
	f.Sequence, f.Delivery, f.Worker = a.run.Sequence, a.run.Delivery, w.cfg.Name
	result, err := protocol.Encode(protocol.TypeResult, r)
	if err != nil {
		return err
	}
	defer w.noteUnsent(a.run.Job, nil)
	for {
		if err := a.Check(); err != nil {
			return err
		}
		err := w.publishOnce(ctx, a, f, bus.Message{Subject: protocol.ResultSubject(a.run.Job, a.run.Phase, a.run.N), Data: result})
		if err == nil {
			break
		}
		if w.stopping.Load() {
			return ErrShutdown
		}
		w.noteUnsent(a.run.Job, err)
		w.log.Warn("result cannot be published, trying again while the lease lasts", "job", a.run.Job, "shard", a.run.N, "error", err)
		if !bus.Sleep(ctx, 500*time.Millisecond) {
			return ErrShutdown
		}
	}
	w.mu.Lock()
	w.done++
	w.mu.Unlock()
	actx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// The result stands: without the ack the shard is delivered once more and
	// refused then.
	w.logIf("ack", a.d.Ack(actx))
	outcome := instrument.Done
	if r.GetFailures() > 0 {
		outcome = instrument.Failed
	}
	w.record(a, outcome, nil)
	return nil
}

// noteUnsent notes why results of a job cannot be published, for the heartbeats;
// nil: they can.
func (w *Worker) noteUnsent(id protocol.JobID, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		delete(w.unsent, id)
	} else {
		w.unsent[id] = strings.ReplaceAll(err.Error(), "\n", ": ")
	}
}

// publishOnce stores failures first: a result that names failures must find them.
func (w *Worker) publishOnce(ctx context.Context, a *attempt, f *protocol.FailuresMsg, result bus.Message) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if len(f.GetFailures()) > 0 {
		if err := w.publishFailures(ctx, a, f); err != nil {
			return err
		}
	}
	first, err := w.cfg.Bus.PublishOnce(ctx, result)
	if err == nil && !first {
		w.log.Info("shard had its result already", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N)
	}
	return err
}

func (w *Worker) publishFailures(ctx context.Context, a *attempt, f *protocol.FailuresMsg) error {
	data, err := protocol.Encode(protocol.TypeFailures, f)
	if err != nil {
		return err
	}
	m := bus.Message{Subject: protocol.FailureSubject(a.run.Job, a.run.Phase, a.run.N, a.run.Sequence, a.run.Delivery), Header: map[string][]string{}, Data: data}
	if len(data) > w.cfg.Bus.MaxPayload()-headerRoom {
		name := protocol.FailureObject(a.run.Job, a.run.Phase, a.run.N, a.run.Sequence, a.run.Delivery)
		objects, err := w.cfg.Bus.Objects(ctx, protocol.BucketObjects)
		if err != nil {
			return err
		}
		if err := objects.PutBytes(ctx, name, data); err != nil {
			return err
		}
		m.Header[protocol.HeaderObject], m.Data = []string{name}, nil
	}
	_, err = w.cfg.Bus.Store(ctx, m)
	return err
}

// results turns the engine's outcome into messages.
func results(a *attempt) answer {
	c, s := a.outcome.Counts, a.shard
	r := &protocol.ResultMsg{
		Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN(), Failures: uint64(len(a.outcome.Failures)), Entries: uint64(len(s.GetEntries())),
		Counts: &protocol.CountsMsg{
			DirsCopied: c.DirsCopied, FilesCopied: c.FilesCopied, BytesCopied: c.BytesCopied,
			DirsFailed: c.DirsFailed, FilesFailed: c.FilesFailed, Deleted: c.Deleted, DirsDeleted: c.DirsDeleted, Links: c.Links, Skipped: c.Skipped,
			ChangedWhileRead: c.ChangedWhileRead, ChangedSinceScan: c.ChangedSinceScan,
			DirsVerified: c.DirsVerified, FilesVerified: c.FilesVerified, BytesVerified: c.BytesVerified,
			DirsDiffer: c.DirsDiffer, FilesDiffer: c.FilesDiffer, Extra: c.Extra,
			DirsFinished: c.DirsFinished, DirsTouched: c.DirsTouched, HoleBytes: c.HoleBytes, ReflinkBytes: c.ReflinkBytes,
		},
	}
	for _, x := range a.outcome.Warnings {
		r.Warnings = append(r.Warnings, &protocol.WarningMsg{Kind: x.Kind, Count: x.Count, Example: []byte(x.Example)})
	}
	f := &protocol.FailuresMsg{Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN()}
	for _, x := range a.outcome.Failures {
		f.Failures = append(f.Failures, failure(x))
	}
	return answer{r, f}
}

func failure(x engine.Failure) *protocol.FailureMsg {
	reason := x.Reason
	if reason == "" {
		reason = fault.Kind(x.Kind).String()
	}
	return &protocol.FailureMsg{
		File: x.File, Line: x.Line, Path: []byte(x.Path), Op: x.Op, Errno: int32(x.Errno), Kind: uint32(x.Kind), Reason: reason, IsDir: x.IsDir,
	}
}
