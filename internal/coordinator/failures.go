package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/fsbackup/fsbackup/internal/bus"
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
		return out, noSuchJob(q.Job)
	}
	limit := q.Limit
	if limit <= 0 || limit > 1000 {
		limit = 1000
	}
	files, err := c.fileRecords(ctx, q.Job)
	if err != nil {
		return out, err
	}
	after := uint64(0)
	if q.After == "" {
		for _, f := range files {
			if f.State == protocol.FileRefused {
				out.Failures = append(out.Failures, protocol.FailureView{Phase: f.Ref.Phase, ControlFile: f.Ref.Path, Kind: fault.Invalid.String(), Op: "admit control file", Reason: f.Refused})
			}
		}
	} else if after, err = strconv.ParseUint(q.After, 10, 64); err != nil {
		return out, fault.New(fault.Invalid, "page %q is not one that was given", q.After)
	}
	full := errors.New("page is full")
	end := errors.New("no more")
	last := uint64(0)
	at, err := c.cfg.Bus.StreamState(ctx, protocol.StreamFailures)
	if err != nil {
		return out, err
	}
	if at.Messages == 0 || after >= at.LastSeq {
		return out, nil
	}
	any, err := c.anyStored(ctx, q.Job)
	if err != nil || !any {
		return out, err
	}
	err = c.cfg.Bus.Tail(ctx, protocol.StreamFailures, protocol.JobFailures(q.Job), after+1, func(m bus.Stored) error {
		views, err := c.failuresIn(ctx, m, files)
		if err != nil {
			return err
		}
		out.Failures = append(out.Failures, views...)
		last = m.Sequence
		switch {
		case m.Pending == 0:
			return end
		case len(out.Failures) >= limit:
			return full
		}
		return nil
	})
	switch {
	case errors.Is(err, full):
		out.Next = strconv.FormatUint(last, 10)
		return out, nil
	case errors.Is(err, end):
		return out, nil
	}
	return out, err
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
		if data, err = c.objects.GetBytes(ctx, name[0], protocol.MaxRaw); err != nil {
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
		if !utf8.ValidString(v.Path) {
			v.PathBytes, v.Path = f.GetPath(), strings.ToValidUTF8(v.Path, "�")
		}
		if i := int(f.GetFile()); i < len(files) {
			v.ControlFile = files[i].Ref.Path
		}
		out = append(out, v)
	}
	return out, nil
}

// fileRecords returns the control files of a job by index.
func (c *Coordinator) fileRecords(ctx context.Context, id protocol.JobID) ([]protocol.FileRecord, error) {
	var out []protocol.FileRecord
	err := c.jobs.Each(ctx, protocol.FileKeys(id), func(key string, value []byte, _ uint64) error {
		var rec protocol.FileRecord
		if err := json.Unmarshal(value, &rec); err != nil {
			return &fault.Error{Kind: fault.Corrupt, Op: "read control file record", Path: key, Err: err}
		}
		out = append(out, rec)
		return nil
	})
	slices.SortFunc(out, func(a, b protocol.FileRecord) int { return int(a.Index) - int(b.Index) })
	return out, err
}
