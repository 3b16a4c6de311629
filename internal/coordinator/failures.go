package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Failures returns a page of what could not be done: refused control files
// first, then entries in the order in which their shards were answered.
func (c *Coordinator) Failures(ctx context.Context, q protocol.FailuresRequest) (protocol.FailuresReply, error) {
	var out protocol.FailuresReply
	if err := c.ready(); err != nil {
		return out, err
	}
	known := false
	c.view(func(t state.Tx) { _, known = t.Job(q.Job) })
	if !known {
		return out, records.NoSuchJob(q.Job)
	}
	at, err := parsePlace(q.After)
	if err != nil {
		return out, err
	}
	files, err := c.rec.FileRecords(ctx, q.Job)
	if err != nil {
		return out, err
	}
	room := c.newPage(q.Limit)
	if at.sequence == 0 {
		n, full := refusals(files, at.skip, room, &out)
		if full {
			out.Next = place{skip: n}.String()
			return out, nil
		}
		at = place{sequence: 1}
	}
	stream, err := c.cfg.Bus.StreamState(ctx, protocol.StreamFailures)
	if err != nil {
		return out, err
	}
	if stream.Messages == 0 || at.sequence > stream.LastSeq {
		return out, nil
	}
	any, err := c.anyStored(ctx, q.Job)
	if err != nil || !any {
		return out, err
	}
	full := errors.New("page is full")
	end := errors.New("no more")
	err = c.cfg.Bus.Tail(ctx, protocol.StreamFailures, protocol.JobFailures(q.Job), at.sequence, func(m bus.Stored) error {
		views, err := c.failuresIn(ctx, m, files)
		if err != nil {
			return err
		}
		if m.Sequence != at.sequence {
			at = place{sequence: m.Sequence}
		}
		for _, v := range views[min(at.skip, len(views)):] {
			if !room.takes(v) {
				return full
			}
			out.Failures = append(out.Failures, v)
			at.skip++
		}
		if m.Pending == 0 {
			return end
		}
		return nil
	})
	switch {
	case errors.Is(err, full):
		out.Next = at.String()
		return out, nil
	case errors.Is(err, end):
		return out, nil
	}
	return out, err
}

// place is where the next page of failures begins: after the first skip failures
// of a message, or, with sequence 0, after so many refused control files.
type place struct {
	sequence uint64
	skip     int
}

func (p place) String() string { return fmt.Sprintf("%d.%d", p.sequence, p.skip) }

func parsePlace(s string) (place, error) {
	if s == "" {
		return place{}, nil
	}
	sequence, skip, _ := strings.Cut(s, ".")
	seq, err := strconv.ParseUint(sequence, 10, 64)
	n, serr := strconv.ParseUint(skip, 10, 31)
	if err != nil || serr != nil {
		return place{}, fault.New(fault.Invalid, "page %q is not one that was given", s)
	}
	return place{seq, int(n)}, nil
}

// refusals adds the refused control files to a page, without the first skip of
// them. It returns how many are done, and whether the page is full.
func refusals(files []protocol.FileRecord, skip int, room *page, out *protocol.FailuresReply) (done int, full bool) {
	for _, f := range files {
		if f.State != protocol.FileRefused {
			continue
		}
		if done < skip {
			done++
			continue
		}
		v := protocol.FailureView{Phase: f.Ref.Phase, ControlFile: f.Ref.Path, Kind: fault.Invalid.String(), Op: "admit control file", Reason: f.Refused}
		if !room.takes(v) {
			return done, true
		}
		out.Failures = append(out.Failures, v)
		done++
	}
	return done, false
}

// anyStored reports whether the failure stream has anything of the job.
func (c *Coordinator) anyStored(ctx context.Context, id protocol.JobID) (bool, error) {
	_, err := c.cfg.Bus.Last(ctx, protocol.StreamFailures, protocol.JobFailures(id))
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// failuresIn returns the failures of one attempt if its shard's accepted result
// is that attempt's.
func (c *Coordinator) failuresIn(ctx context.Context, m bus.Stored, files []protocol.FileRecord) ([]protocol.FailureView, error) {
	data := m.Data
	if name := m.Header[protocol.HeaderObject]; len(name) > 0 {
		var err error
		if data, err = c.rec.Objects().GetBytes(ctx, name[0], protocol.MaxRaw); err != nil {
			return nil, err
		}
	}
	var msg protocol.FailuresMsg
	if err := protocol.Decode(data, protocol.TypeFailures, &msg); err != nil {
		return nil, &fault.Error{Kind: fault.Corrupt, Op: "read failures", Path: m.Subject, Err: err}
	}
	res, err := c.cfg.Bus.Last(ctx, protocol.StreamResults, protocol.ResultSubject(protocol.JobID(msg.GetJob()), protocol.Phase(msg.GetPhase()), msg.GetN()))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil // not answered yet
	}
	if err != nil {
		return nil, err
	}
	var r protocol.ResultMsg
	if err := protocol.Decode(res.Data, protocol.TypeResult, &r); err != nil {
		return nil, &fault.Error{Kind: fault.Corrupt, Op: "read result", Path: res.Subject, Err: err}
	}
	if r.GetSequence() != msg.GetSequence() || r.GetDelivery() != msg.GetDelivery() {
		return nil, nil
	}
	out := make([]protocol.FailureView, 0, len(msg.GetFailures()))
	for _, f := range msg.GetFailures() {
		v := protocol.FailureView{
			Phase: protocol.Phase(msg.GetPhase()), Line: f.GetLine(), Path: string(f.GetPath()), Op: f.GetOp(), Errno: int(f.GetErrno()),
			Kind: fault.Kind(f.GetKind()).String(), Reason: f.GetReason(), Worker: msg.GetWorker(), IsDir: f.GetIsDir(),
		}
		if i := int(f.GetFile()); i < len(files) {
			v.ControlFile = files[i].Ref.Path
		}
		out = append(out, v)
	}
	return out, nil
}
