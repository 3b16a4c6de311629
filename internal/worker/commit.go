package worker

import (
	"context"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// commit makes durable what an attempt did and publishes its result. ctx is that of
// the attempt; base outlives it.
func (w *Worker) commit(ctx, base context.Context, a *attempt) error {
	if a.job != nil { // else it touched no file system
		if err := w.jobs.durable(ctx, a.job, a.generation); err != nil {
			return err
		}
		// Before the result: the last one says that the job is over, and whoever waits
		// for that may then unmount its file systems.
		if a.run.Phase == protocol.PhaseCleanup {
			w.jobs.end(a.run.Job)
		}
		w.release(a)
	}
	return w.publish(ctx, base, a, results(a))
}

// answer is what an attempt publishes.
type answer struct {
	result   *protocol.ResultMsg
	failures *protocol.FailuresMsg
}

const (
	publishTime  = 5 * time.Second        // for one try to publish
	publishPause = 500 * time.Millisecond // between tries
	ackTime      = 5 * time.Second
)

// publish stores failures and result, acknowledges the shard and concludes the
// attempt. While the cluster takes no results it tries again, until the lease or ctx
// ends. With an error the attempt is not concluded.
func (w *Worker) publish(ctx, base context.Context, a *attempt, ans answer) error {
	p, err := w.pack(a, ans)
	if err != nil {
		return err
	}
	defer w.member.noteUnsent(a.run.Job, nil)
	outcome := instrument.Done
	if ans.result.GetFailures() > 0 {
		outcome = instrument.Failed
	}
	for tries := 1; ; tries++ {
		if err := a.Check(); err != nil {
			return err
		}
		first, err := w.publishOnce(base, p)
		if err == nil {
			if !first {
				w.log.Info("shard had its result already", "job", a.run.Job, "phase", a.run.Phase, "shard", a.run.N)
			}
			if !first && tries == 1 { // else it may be this attempt's own, of a try whose answer was lost
				outcome = instrument.Stale
			}
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.member.noteUnsent(a.run.Job, err)
		w.log.Warn("result cannot be published, trying again while the lease lasts", "job", a.run.Job, "shard", a.run.N, "error", err)
		if !bus.Sleep(ctx, publishPause) {
			return context.Cause(ctx)
		}
	}
	w.conclude(base, a, outcome, nil, func() {
		w.member.noteAnswered()
		// The result stands: without the ack the shard is delivered once more and
		// refused then.
		if !a.lapsed() {
			actx, cancel := context.WithTimeout(base, ackTime)
			defer cancel()
			w.logIf("ack", w.queue.Ack(actx, a.d))
		}
	})
	return nil
}

// publishOnce is one try.
func (w *Worker) publishOnce(ctx context.Context, p publication) (first bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	return w.queue.Publish(ctx, p)
}

// pack makes the messages of an answer.
func (w *Worker) pack(a *attempt, ans answer) (publication, error) {
	r, f, run := ans.result, ans.failures, a.run
	r.Sequence, r.Delivery, r.Worker, r.Nanos = run.Sequence, run.Delivery, w.cfg.Name, a.took.Nanoseconds()
	f.Sequence, f.Delivery, f.Worker = run.Sequence, run.Delivery, w.cfg.Name
	data, err := protocol.Encode(protocol.TypeResult, r)
	if err != nil {
		return publication{}, err
	}
	p := publication{result: bus.Message{Subject: protocol.ResultSubject(run.Job, run.Phase, run.N), Data: data}}
	if len(f.GetFailures()) > 0 {
		if data, err = protocol.Encode(protocol.TypeFailures, f); err != nil {
			return publication{}, err
		}
		p.failures = &bus.Message{Subject: protocol.FailureSubject(run.Job, run.Phase, run.N, run.Sequence, run.Delivery), Data: data}
		p.object = protocol.FailureObject(run.Job, run.Phase, run.N, run.Sequence, run.Delivery)
	}
	return p, nil
}
