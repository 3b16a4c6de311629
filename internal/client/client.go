// Package client owns how people and libraries use a cluster: submitting jobs,
// following them, and starting a cluster of one within the process.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// callTimeout is how long one request may take; people get an answer within it.
const callTimeout = 5 * time.Second

// Client talks to the leading coordinator. Its methods may be called concurrently.
type Client struct {
	bus *bus.Bus
	// shared says that coordinator and client see the same files: in one process.
	shared   bool
	patience time.Duration // of a submission, after the last sign of life
	silence  time.Duration // that a submission takes for none
	tell     func(Step)    // hears of submissions; nil: nobody does
}

// New returns a client on a connection, which stays the caller's.
func New(b *bus.Bus) *Client { return &Client{bus: b, patience: patience, silence: callTimeout} }

// NewJobID returns an id for a job that is to be submitted.
func NewJobID(now time.Time) protocol.JobID {
	return protocol.JobID(strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String()))
}

func call[R any](ctx context.Context, c *Client, op string, q any) (R, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errNoAnswer)
	defer cancel()
	r, err := api.Call[R](ctx, c.bus, op, q)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return r, errNoAnswer
	}
	return r, err
}

var errNoAnswer = fault.Hinted(fault.Unavailable, "is it overloaded, or cut off from NATS?", "the coordinator did not answer within %s", callTimeout)

// Job returns a job as it is now.
func (c *Client) Job(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpJob, protocol.JobRequest{Job: id})
}

// Jobs returns a page of jobs, newest first.
func (c *Client) Jobs(ctx context.Context, q protocol.JobsRequest) (protocol.JobsReply, error) {
	return call[protocol.JobsReply](ctx, c, api.OpJobs, q)
}

// Workers returns the cluster's workers.
func (c *Client) Workers(ctx context.Context) (protocol.WorkersReply, error) {
	var all protocol.WorkersReply
	for {
		r, err := call[protocol.WorkersReply](ctx, c, api.OpWorkers, protocol.WorkersRequest{After: all.Next})
		if err != nil {
			return r, err
		}
		all.Leader, all.Next = r.Leader, r.Next
		if all.Workers = append(all.Workers, r.Workers...); r.Next == "" {
			return all, nil
		}
	}
}

// Drain has a worker finish what it has, take nothing more, and leave.
func (c *Client) Drain(ctx context.Context, name string) (protocol.WorkersReply, error) {
	return call[protocol.WorkersReply](ctx, c, api.OpDrain, protocol.WorkerRequest{Worker: name})
}

// Cancel stops a job.
func (c *Client) Cancel(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpCancel, protocol.JobRequest{Job: id})
}

// Pause keeps a job from publishing more.
func (c *Client) Pause(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpPause, protocol.JobRequest{Job: id})
}

// Resume lets a paused job go on.
func (c *Client) Resume(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpResume, protocol.JobRequest{Job: id})
}

// Drop forgets an ended job.
func (c *Client) Drop(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpDrop, protocol.JobRequest{Job: id})
}

// Failures calls f with each failure of a job until f returns an error.
func (c *Client) Failures(ctx context.Context, id protocol.JobID, f func(protocol.FailureView) error) error {
	after := ""
	for {
		r, err := c.FailurePage(ctx, id, after)
		if err != nil {
			return err
		}
		for _, v := range r.Failures {
			if err := f(v); err != nil {
				return err
			}
		}
		if after = r.Next; after == "" {
			return nil
		}
	}
}

// FailurePage returns the failures of a job from a place on: "" first, then Next
// of the page before, until that is empty.
func (c *Client) FailurePage(ctx context.Context, id protocol.JobID, after string) (protocol.FailuresReply, error) {
	return call[protocol.FailuresReply](ctx, c, api.OpFailures, protocol.FailuresRequest{Job: id, After: after})
}

// pollEvery is how often Watch asks by itself: should snapshots be lost, and for how far
// large files are.
const pollEvery = time.Second

// Watch calls f with the job's snapshots until it is final, and returns the
// final one. Where the cluster cannot be reached it waits, and tells lost so.
func (c *Client) Watch(ctx context.Context, id protocol.JobID, f func(protocol.JobView), lost func(error)) (protocol.JobView, error) {
	views := make(chan protocol.JobView, 16)
	stop, err := c.bus.Listen(protocol.EventSubject(id), func(_ string, data []byte) []byte {
		var v protocol.JobView
		if rawjson.Unmarshal(data, &v) == nil {
			select {
			case views <- v:
			default: // the watcher is slow: the next snapshot says more
			}
		}
		return nil
	})
	if err != nil {
		return protocol.JobView{}, err
	}
	defer stop()
	poll := time.NewTimer(0)
	defer poll.Stop()
	for {
		var v protocol.JobView
		select {
		case v = <-views:
		case <-poll.C:
			var err error
			v, err = c.Job(ctx, id)
			poll.Reset(pollEvery)
			if err != nil {
				switch fault.KindOf(err) {
				case fault.Unavailable, fault.Transient:
					lost(err)
					continue
				}
				return v, err
			}
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
		f(v)
		if v.State.Final() {
			return v, nil
		}
	}
}
