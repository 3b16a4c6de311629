// Package client owns how people and libraries use a cluster: submitting jobs,
// following them, and starting a cluster of one within the process.
package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// callTimeout is how long one request may take; people get an answer within it.
const callTimeout = 5 * time.Second

// Client talks to the leading coordinator. Its methods may be called concurrently.
type Client struct {
	bus *bus.Bus
	// shared says that coordinator and client see the same files: in one process.
	shared bool
}

// New returns a client on a connection, which stays the caller's.
func New(b *bus.Bus) *Client { return &Client{bus: b} }

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

// Files are the control and meta files of a submission, as this process sees them.
type Files struct {
	Control []protocol.FileRef
	Metas   []protocol.FileRef
}

// Submit creates a job with these files. With seal the list is complete;
// otherwise Append adds to it. Files that the coordinator cannot read at their
// paths are uploaded.
func (c *Client) Submit(ctx context.Context, id protocol.JobID, spec protocol.JobSpec, f Files, seal bool) error {
	if err := c.describe(f.Control); err != nil {
		return err
	}
	if err := c.describe(f.Metas); err != nil {
		return err
	}
	first := f.Control
	if len(first) > appendMost {
		first = first[:appendMost]
	}
	q := protocol.SubmitRequest{Wire: protocol.WireMajor, ID: id, Spec: spec, Files: first, Metas: f.Metas, Seal: seal && len(first) == len(f.Control)}
	if err := c.untilThere(ctx, append(append([]protocol.FileRef{}, first...), f.Metas...), func() (protocol.SubmitReply, error) {
		return c.submit(ctx, q)
	}); err != nil {
		return err
	}
	if len(first) == len(f.Control) {
		return nil
	}
	return c.append(ctx, id, uint32(len(first)), f.Control[len(first):], seal)
}

// submit allows the coordinator the time to read what it is to compare.
func (c *Client) submit(ctx context.Context, q protocol.SubmitRequest) (protocol.SubmitReply, error) {
	if _, err := c.Workers(ctx); err != nil {
		return protocol.SubmitReply{}, err // nobody there: say so within callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return api.Call[protocol.SubmitReply](ctx, c.bus, api.OpSubmit, q)
}

// appendMost is how many control files one request names.
const appendMost = 1000

// Append adds control files to a job that is not sealed; from is how many it has.
func (c *Client) Append(ctx context.Context, id protocol.JobID, from uint32, files []protocol.FileRef, seal bool) error {
	if err := c.describe(files); err != nil {
		return err
	}
	return c.append(ctx, id, from, files, seal)
}

func (c *Client) append(ctx context.Context, id protocol.JobID, from uint32, files []protocol.FileRef, seal bool) error {
	for {
		part := files[:min(len(files), appendMost)]
		files = files[len(part):]
		q := protocol.AppendRequest{Job: id, From: from, Files: part, Seal: seal && len(files) == 0}
		if err := c.untilThere(ctx, part, func() (protocol.SubmitReply, error) {
			return call[protocol.SubmitReply](ctx, c, api.OpAppend, q)
		}); err != nil {
			return err
		}
		from += uint32(len(part))
		if len(files) == 0 {
			return nil
		}
	}
}

// untilThere asks, uploads what the answer misses, and asks again.
func (c *Client) untilThere(ctx context.Context, files []protocol.FileRef, ask func() (protocol.SubmitReply, error)) error {
	uploaded := map[string]bool{}
	for {
		r, err := ask()
		if err != nil || len(r.Missing) == 0 {
			return err
		}
		missing := map[string]bool{}
		for _, p := range r.Missing {
			if uploaded[p] {
				return fault.New(fault.Internal, "the coordinator still misses %q after its upload", p)
			}
			missing[p], uploaded[p] = true, true
		}
		for _, f := range files {
			if missing[f.Path] {
				if err := c.upload(ctx, f); err != nil {
					return err
				}
			}
		}
	}
}

func (c *Client) upload(ctx context.Context, f protocol.FileRef) error {
	objects, err := c.bus.Objects(ctx, protocol.BucketObjects)
	if err != nil {
		return err
	}
	file, err := controlfile.OpenRegular(f.Path)
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "upload", Path: f.Path, Err: err}
	}
	defer func() { _ = file.Close() }() // read only
	return objects.Put(ctx, protocol.FileObject(f.Digest), file)
}

// describe fills in size and digest, unless both sides see the same files.
func (c *Client) describe(files []protocol.FileRef) error {
	for i := range files {
		abs, err := filepath.Abs(files[i].Path)
		if err != nil {
			return &fault.Error{Kind: fault.Invalid, Op: "resolve", Path: files[i].Path, Err: err}
		}
		files[i].Path = abs
		fi, err := os.Stat(abs)
		if err != nil {
			return &fault.Error{Kind: fault.KindOf(err), Op: "read", Path: abs, Err: err}
		}
		files[i].Size = fi.Size()
		if c.shared {
			continue
		}
		if files[i].Digest, err = coordinator.Digest(abs); err != nil {
			return err
		}
	}
	return nil
}

// Job returns a job as it is now.
func (c *Client) Job(ctx context.Context, id protocol.JobID) (protocol.JobView, error) {
	return call[protocol.JobView](ctx, c, api.OpJob, protocol.JobRequest{Job: id})
}

// Jobs returns all jobs, newest first.
func (c *Client) Jobs(ctx context.Context) ([]protocol.JobView, error) {
	r, err := call[protocol.JobsReply](ctx, c, api.OpJobs, struct{}{})
	return r.Jobs, err
}

// Workers returns the cluster's workers.
func (c *Client) Workers(ctx context.Context) (protocol.WorkersReply, error) {
	return call[protocol.WorkersReply](ctx, c, api.OpWorkers, struct{}{})
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

// pollEvery is how often Watch asks by itself, should snapshots be lost.
const pollEvery = 2 * time.Second

// Watch calls f with the job's snapshots until it is final, and returns the
// final one. Where the cluster cannot be reached it waits, and tells lost so.
func (c *Client) Watch(ctx context.Context, id protocol.JobID, f func(protocol.JobView), lost func(error)) (protocol.JobView, error) {
	views := make(chan protocol.JobView, 16)
	stop, err := c.bus.Listen(protocol.EventSubject(id), func(_ string, data []byte) []byte {
		var v protocol.JobView
		if json.Unmarshal(data, &v) == nil {
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
