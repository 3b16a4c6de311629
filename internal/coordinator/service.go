package coordinator

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Submit creates a job, once: repeated with the same ID it changes nothing. It
// answers with the files that this coordinator cannot read as the submitter
// described them; the submitter uploads these and submits again.
func (c *Coordinator) Submit(ctx context.Context, q protocol.SubmitRequest) (protocol.SubmitReply, error) {
	if err := c.ready(); err != nil {
		return protocol.SubmitReply{}, err
	}
	if q.Wire != protocol.WireMajor {
		return protocol.SubmitReply{}, fault.New(fault.Invalid, "client speaks wire version %d, this coordinator %d; run the same major release on both", q.Wire, protocol.WireMajor)
	}
	if _, err := protocol.ParseJobID(string(q.ID)); err != nil {
		return protocol.SubmitReply{}, err
	}
	if err := q.Spec.Normalize(); err != nil {
		return protocol.SubmitReply{}, err
	}
	var refused error
	known := false
	c.view(func(t state.Tx) {
		_, known = t.Job(q.ID)
		refused = allowedSomewhere(t, q.Spec)
	})
	if refused != nil && !known {
		return protocol.SubmitReply{}, refused
	}
	rec := protocol.JobRecord{ID: q.ID, ResultsAfter: c.fold.FoldedUpTo(), Spec: q.Spec, State: protocol.StateQueued, Sealed: q.Seal, Created: c.now()}
	created, missing, err := c.rec.Create(ctx, rec, q.Files, q.Metas)
	if err != nil {
		return protocol.SubmitReply{}, err
	}
	if created {
		c.log.Info("job submitted", "job", q.ID, "source", q.Spec.Source, "destination", q.Spec.Destination, "pool", q.Spec.Pool, "files", len(q.Files))
		c.startRunner(q.ID)
	}
	return protocol.SubmitReply{Job: q.ID, Created: created, Missing: missing}, nil
}

// allowedSomewhere refuses roots that no live worker of the pool may touch. Where
// the pool is empty it is too early to tell.
func allowedSomewhere(t state.Tx, spec protocol.JobSpec) error {
	live := 0
	var allow []string
	for w := range t.Workers() {
		if !w.Takes() || w.Beat.Pool != spec.Pool {
			continue
		}
		live++
		within := func(p string) bool {
			return slices.ContainsFunc(w.Beat.Allow, func(root string) bool { return entry.Within(root, p) })
		}
		if within(spec.Source) && within(spec.Destination) {
			return nil
		}
		allow = append(allow, w.Beat.Allow...)
	}
	if live == 0 {
		return nil
	}
	slices.Sort(allow)
	return &fault.Error{
		Kind: fault.Denied, Op: "submit a job from " + strconv.Quote(spec.Source) + " to", Path: spec.Destination,
		Err:  fmt.Errorf("no worker of pool %q may use both; allowed are %s", spec.Pool, strings.Join(slices.Compact(allow), ", ")),
		Hint: "start workers with --allow for them",
	}
}

// Append adds control files to a job that is not sealed. Repeated, it changes
// nothing.
func (c *Coordinator) Append(ctx context.Context, q protocol.AppendRequest) (protocol.SubmitReply, error) {
	if err := c.ready(); err != nil {
		return protocol.SubmitReply{}, err
	}
	missing, err := c.rec.Append(ctx, q)
	return protocol.SubmitReply{Job: q.Job, Missing: missing}, err
}

// ready returns an error unless this coordinator leads and has recovered.
func (c *Coordinator) ready() error {
	recovered := false
	select {
	case <-c.led:
		recovered = true
	default:
	}
	name := c.leader.Load()
	switch {
	case c.leads() && recovered:
		return nil
	case c.leads():
		return fault.New(fault.Transient, "coordinator %s is about to lead, it still reads what is stored", c.cfg.Name)
	case recovered || name == nil || *name == "":
		return fault.New(fault.Transient, "coordinator %s is %w any more, or not yet", c.cfg.Name, api.ErrNotLeader)
	}
	return fault.New(fault.Transient, "coordinator %s is %w, %s is", c.cfg.Name, api.ErrNotLeader, *name)
}

// Cancel ends a job: queued shards are removed, running ones abandoned.
func (c *Coordinator) Cancel(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	err := c.ready()
	if err == nil {
		err = c.beginEnding(ctx, q.Job, protocol.Ending{State: protocol.StateCancelled, Reason: "cancelled by request"})
	}
	if err != nil {
		return protocol.JobView{}, err
	}
	return c.Job(ctx, q)
}

// Pause lets running shards end and publishes no more until Resume.
func (c *Coordinator) Pause(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return c.setPaused(ctx, q, true)
}

// Resume lets a paused job go on.
func (c *Coordinator) Resume(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return c.setPaused(ctx, q, false)
}

func (c *Coordinator) setPaused(ctx context.Context, q protocol.JobRequest, paused bool) (protocol.JobView, error) {
	if err := c.ready(); err != nil {
		return protocol.JobView{}, err
	}
	err := c.rec.Change(ctx, q.Job, func(rec *protocol.JobRecord) error {
		if rec.State.Over() {
			return records.AlreadyEnded(*rec)
		}
		rec.Paused = paused
		return nil
	})
	if err != nil {
		return protocol.JobView{}, err
	}
	c.log.Info("job is paused or goes on", "job", q.Job, "paused", paused)
	c.publishEvent(q.Job, true)
	return c.Job(ctx, q)
}

// Drop forgets a job that has ended, with its results and failures.
func (c *Coordinator) Drop(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	v, err := c.Job(ctx, q)
	if err != nil {
		return v, err
	}
	if !v.State.Final() {
		return v, fault.Hinted(fault.Invalid, "cancel it first", "job %s is %s", q.Job, v.State)
	}
	if err := c.rec.Erase(ctx, q.Job); err != nil {
		return v, err
	}
	return v, c.rec.SweepObjects(ctx)
}

// Drain has a worker finish what it has, take nothing more, and leave. It hears
// so with the answer to its next heartbeat, and from then on says so itself,
// whoever leads. Repeated, it changes nothing.
func (c *Coordinator) Drain(ctx context.Context, q protocol.WorkerRequest) (protocol.WorkersReply, error) {
	if err := c.ready(); err != nil {
		return protocol.WorkersReply{}, err
	}
	if err := c.roster.Drain(q.Worker); err != nil {
		return protocol.WorkersReply{}, err
	}
	return c.Workers(ctx, protocol.WorkersRequest{Name: q.Worker})
}
