package client

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

const (
	// patience is how long a submission goes on after the last sign of life: longer
	// than it takes another coordinator to lead.
	patience = 2 * time.Minute
	// retryPause is the time between two attempts.
	retryPause = 500 * time.Millisecond
	// partFiles is how many control files one request names at most.
	partFiles = 250
)

// Files are the control and meta files of a submission, as this process sees them.
type Files struct {
	Control []protocol.FileRef
	Metas   []protocol.FileRef
}

// Step is what a submission does now.
type Step struct {
	Doing    string // "reading", "uploading", "handing over"
	Path     string // of the file that is read or uploaded
	Done, Of int    // files
	Lost     error  // why it waits for the cluster; nil: it does not
}

// Telling returns a client whose submissions tell f what they do. It is called
// from the goroutine that submits.
func (c *Client) Telling(f func(Step)) *Client {
	out := *c
	out.tell = f
	return &out
}

func (c *Client) step(s Step) {
	if c.tell != nil {
		c.tell(s)
	}
}

// submission is one call of Submit or Append.
type submission struct {
	c     *Client
	alive time.Time // of the last sign of life; zero: there was none
	now   Step      // what it does, to be told again when it goes on
}

func (s *submission) sign() { s.alive = time.Now() }

// Submit creates a job with these files. With seal the list is complete;
// otherwise Append adds to it. Files that the coordinator cannot read at their
// paths are uploaded.
//
// A leader that dies or a connection that breaks meanwhile is waited for, and
// asked again: nothing is done twice. A job whose files cannot all be handed over
// is cancelled, as far as anybody can be told.
func (c *Client) Submit(ctx context.Context, id protocol.JobID, spec protocol.JobSpec, f Files, seal bool) error {
	if err := c.describe(ctx, f.Control, f.Metas); err != nil {
		return err
	}
	s := &submission{c: c}
	// Nobody there: say so within callTimeout.
	if _, err := call[protocol.WorkersReply](ctx, c, api.OpWorkers, protocol.WorkersRequest{Limit: 1}); err != nil {
		return err
	}
	s.sign()
	q := protocol.SubmitRequest{Wire: protocol.WireMajor, ID: id, Spec: spec, Metas: f.Metas}
	n := c.fits(f.Control, q)
	q.Files, q.Seal = f.Control[:n], seal && n == len(f.Control)
	s.now = Step{Doing: "handing over", Of: len(f.Control)}
	err := s.untilThere(ctx, append(append([]protocol.FileRef{}, q.Files...), f.Metas...), func() (protocol.SubmitReply, error) {
		return ask(ctx, s, api.OpSubmit, q)
	})
	if err == nil && n < len(f.Control) {
		err = s.append(ctx, id, uint32(n), f.Control[n:], seal)
	}
	if err != nil && !c.shared && (n < len(f.Control) || passing(err) || ctx.Err() != nil) {
		return s.giveUp(ctx, id, err)
	}
	return err
}

// giveUp cancels a job that is, or may be, there and that gets no more files.
func (s *submission) giveUp(ctx context.Context, id protocol.JobID, err error) error {
	out := &fault.Error{Kind: fault.KindOf(err), Op: "submit job", Path: string(id), Err: err, Hint: "the job is cancelled, submit it again"}
	if ctx.Err() != nil {
		out.Kind, out.Err = fault.Canceled, context.Cause(ctx)
	}
	_, cerr := s.c.Cancel(context.WithoutCancel(ctx), id)
	if cerr != nil && !fault.Is(cerr, fault.NotFound) { // no job needs no cancelling
		out.Hint = "it may be there without all its files: fsbackup cancel " + string(id)
	}
	return out
}

// Append adds control files to a job that is not sealed; from is how many it has.
// It waits and asks again as Submit does.
func (c *Client) Append(ctx context.Context, id protocol.JobID, from uint32, files []protocol.FileRef, seal bool) error {
	if err := c.describe(ctx, files, nil); err != nil {
		return err
	}
	s := &submission{c: c, alive: time.Now()} // somebody has taken the job
	s.now = Step{Doing: "handing over", Of: len(files)}
	return s.append(ctx, id, from, files, seal)
}

func (s *submission) append(ctx context.Context, id protocol.JobID, from uint32, files []protocol.FileRef, seal bool) error {
	for {
		q := protocol.AppendRequest{Job: id, From: from}
		n := s.c.fits(files, q)
		part := files[:n]
		files = files[n:]
		q.Files, q.Seal = part, seal && len(files) == 0
		s.now.Done = s.now.Of - len(part) - len(files)
		if err := s.untilThere(ctx, part, func() (protocol.SubmitReply, error) { return ask(ctx, s, api.OpAppend, q) }); err != nil {
			return err
		}
		from += uint32(len(part))
		if len(files) == 0 {
			return nil
		}
	}
}

// fits is how many of files one request can name besides what it has: at least one,
// if there is one.
func (c *Client) fits(files []protocol.FileRef, request any) int {
	left := c.bus.MaxPayload() * 15 / 16
	if data, err := rawjson.Marshal(request); err == nil { // else the request itself tells
		left -= len(data)
	}
	for i, f := range files[:min(len(files), partFiles)] {
		data, err := rawjson.Marshal(f)
		if left -= len(data) + 1; i > 0 && (err != nil || left < 0) {
			return i
		}
	}
	return min(len(files), partFiles)
}

// ask makes one request, and waits as long as the coordinator is at work.
func ask(ctx context.Context, s *submission, op string, q any) (protocol.SubmitReply, error) {
	r, err := api.CallLong[protocol.SubmitReply](ctx, s.c.bus, op, q, s.c.silence, func() {
		s.sign()
		s.c.step(s.now)
	})
	if err == nil {
		s.sign()
	}
	return r, err
}

// untilThere asks, uploads what the answer misses, and asks again.
func (s *submission) untilThere(ctx context.Context, files []protocol.FileRef, ask func() (protocol.SubmitReply, error)) error {
	uploaded := map[string]bool{}
	for {
		s.c.step(s.now)
		var r protocol.SubmitReply
		err := s.persist(ctx, func() (err error) { r, err = ask(); return err })
		if err != nil || len(r.Missing) == 0 {
			return err
		}
		missing := map[string]bool{}
		for _, p := range r.Missing {
			if uploaded[p] {
				return fault.New(fault.Internal, "the coordinator still misses %q after its upload", p)
			}
			missing[p] = true
		}
		for _, f := range files {
			if !missing[f.Path] || uploaded[f.Path] {
				continue
			}
			s.c.step(Step{Doing: "uploading", Path: f.Path, Done: len(uploaded), Of: len(uploaded) + len(missing)})
			if err := s.persist(ctx, func() error { return s.c.upload(ctx, f) }); err != nil {
				return err
			}
			s.sign()
			uploaded[f.Path] = true
			delete(missing, f.Path)
		}
	}
}

// persist calls f until it succeeds or fails for good, or until there was no sign
// of life for the client's patience.
func (s *submission) persist(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || !passing(err) || ctx.Err() != nil || time.Since(s.alive) >= s.c.patience {
			return err
		}
		waiting := s.now
		waiting.Lost = err
		s.c.step(waiting)
		if !bus.Sleep(ctx, retryPause) {
			return err
		}
	}
}

// passing reports whether another attempt may succeed.
func passing(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Transient)
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
func (c *Client) describe(ctx context.Context, lists ...[]protocol.FileRef) error {
	done, of := 0, 0
	for _, files := range lists {
		of += len(files)
	}
	for _, files := range lists {
		for i := range files {
			if ctx.Err() != nil {
				return fault.New(fault.Canceled, "read control files: %w", context.Cause(ctx))
			}
			c.step(Step{Doing: "reading", Path: files[i].Path, Done: done, Of: of})
			if err := c.describeOne(&files[i]); err != nil {
				return err
			}
			done++
		}
	}
	return nil
}

func (c *Client) describeOne(f *protocol.FileRef) error {
	abs, err := filepath.Abs(f.Path)
	if err != nil {
		return &fault.Error{Kind: fault.Invalid, Op: "resolve", Path: f.Path, Err: err}
	}
	f.Path = abs
	fi, err := os.Stat(abs)
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "read", Path: abs, Err: err}
	}
	f.Size = fi.Size()
	if c.shared {
		return nil
	}
	f.Digest, err = coordinator.Digest(abs)
	return err
}
