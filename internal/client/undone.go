package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/coordinator"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/scanner"
	"github.com/fsbackup/fsbackup/internal/shard"
)

// ErrUndoneUnknown means that what a job has not done cannot be told exactly.
var ErrUndoneUnknown = errors.New("what the job has not done is not known exactly")

// errEnough ends a list of which no more is wanted.
var errEnough = errors.New("no more are wanted")

// Undone yields the entries of a job that has ended which it has not done: those
// that failed, and those that have no accepted result. That the job's record
// tells, whatever the job's state. An entry may come more than once. The last item
// may be an error: it wraps ErrUndoneUnknown where the entries cannot be named.
//
// Entries without a result are read from the job's control files, at their paths.
// They cannot be named where a file is not there any more, was changed or refused.
func (c *Client) Undone(ctx context.Context, v protocol.JobView) iter.Seq2[scanner.Failed, error] {
	return func(yield func(scanner.Failed, error) bool) {
		give := func(path string, gone bool) error {
			if !yield(scanner.Failed{Path: strings.Trim(path, "/"), Delete: gone}, nil) {
				return errEnough
			}
			return nil
		}
		err := c.failed(ctx, v, give)
		if err == nil && !v.Answered && !mutant.Off(mutant.Answered) {
			err = c.unattempted(ctx, v.ID, give)
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(scanner.Failed{}, err)
		}
	}
}

// failed gives the entries that failed, all of which must be known.
func (c *Client) failed(ctx context.Context, v protocol.JobView, give func(path string, gone bool) error) error {
	known := uint64(0)
	err := c.Failures(ctx, v.ID, func(f protocol.FailureView) error {
		known++
		return give(f.Path, f.Phase.Deletes())
	})
	if err == nil && known < v.Failures {
		err = fault.New(fault.Corrupt, "%w: of %d failures of job %s %d are listed", ErrUndoneUnknown, v.Failures, v.ID, known)
	}
	return err
}

// unattempted gives the entries without an accepted result.
func (c *Client) unattempted(ctx context.Context, id protocol.JobID, give func(path string, gone bool) error) error {
	q := protocol.OutcomesRequest{Job: id}
	for {
		r, err := call[protocol.OutcomesReply](ctx, c, api.OpOutcomes, q)
		if err != nil {
			return err
		}
		for _, file := range r.Files {
			if err := unattemptedIn(file, give); err != nil {
				return err
			}
		}
		if q.From = r.Next; q.From == 0 {
			return nil
		}
	}
}

func unattemptedIn(file protocol.FileView, give func(path string, gone bool) error) error {
	unknown := func(why error) error {
		return fault.New(fault.Corrupt, "%w: control file %q: %w", ErrUndoneUnknown, file.Path, why)
	}
	if file.Digest == "" {
		return unknown(fmt.Errorf("it was not admitted: %s", file.State))
	}
	is, err := coordinator.Digest(file.Path)
	if err != nil {
		return unknown(err)
	}
	if is != file.Digest {
		return unknown(errors.New("it is not what was admitted"))
	}
	r, err := controlfile.Open(file.Path, shard.KindOf(file.Phase))
	if err != nil {
		return unknown(err)
	}
	defer func() { _ = r.Close() }() // read only
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unknown(err)
		}
		if !isMissing(file, e) {
			continue
		}
		if e.Type == controlfile.TypeBad {
			return unknown(e.Err)
		}
		if err := give(e.Path, file.Phase == protocol.PhaseDelete); err != nil {
			return err
		}
	}
}

// isMissing reports whether an entry is one that has no result in a phase that
// does something with it.
func isMissing(file protocol.FileView, e controlfile.Entry) bool {
	switch {
	case e.Type == controlfile.TypeGroup, e.Mode == controlfile.ModeDeleted:
		return false
	case file.Phase == protocol.PhaseDelete && e.Type == controlfile.TypeDir && !e.Delete:
		return false // names the parent of the lines that follow
	case file.Outcome == nil:
		return true
	}
	for _, m := range file.Outcome.Missing {
		if m.Phase == protocol.PhaseFinish && !e.IsDir {
			continue
		}
		if m.Phase == protocol.PhaseRmdir && e.Type != controlfile.TypeDir {
			continue // of the delete phase, as are lines that cannot be read
		}
		if e.Line >= m.From && (m.To == 0 || e.Line < m.To) {
			return true
		}
	}
	return false
}
