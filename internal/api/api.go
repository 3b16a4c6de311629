// Package api owns the control API: one definition of its operations, which the
// NATS and HTTP adapters offer and clients call.
package api

import (
	"context"
	"errors"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Service is what a coordinator offers. Errors are of a fault kind and travel
// with it. Submit and Append may be repeated. Lists come in pages, each of which
// fits into one message of NATS.
type Service interface {
	Submit(context.Context, protocol.SubmitRequest) (protocol.SubmitReply, error)
	Append(context.Context, protocol.AppendRequest) (protocol.SubmitReply, error)
	Job(context.Context, protocol.JobRequest) (protocol.JobView, error)
	Jobs(context.Context, protocol.JobsRequest) (protocol.JobsReply, error)
	Cancel(context.Context, protocol.JobRequest) (protocol.JobView, error)
	Pause(context.Context, protocol.JobRequest) (protocol.JobView, error)
	Resume(context.Context, protocol.JobRequest) (protocol.JobView, error)
	Drop(context.Context, protocol.JobRequest) (protocol.JobView, error)
	Failures(context.Context, protocol.FailuresRequest) (protocol.FailuresReply, error)
	Outcomes(context.Context, protocol.OutcomesRequest) (protocol.OutcomesReply, error)
	Workers(context.Context, protocol.WorkersRequest) (protocol.WorkersReply, error)
	Drain(context.Context, protocol.WorkerRequest) (protocol.WorkersReply, error)
}

// Names of the operations, as endpoints.
const (
	OpSubmit   = "submit"
	OpAppend   = "append"
	OpJob      = "job"
	OpJobs     = "jobs"
	OpCancel   = "cancel"
	OpPause    = "pause"
	OpResume   = "resume"
	OpDrop     = "drop"
	OpFailures = "failures"
	OpOutcomes = "outcomes"
	OpWorkers  = "workers"
	OpDrain    = "drain"
)

// operation is one operation with its request and reply as JSON.
type operation struct {
	name   string
	handle func(ctx context.Context, request []byte) ([]byte, error)
}

func op[Q, R any](name string, f func(context.Context, Q) (R, error)) operation {
	return operation{name, func(ctx context.Context, request []byte) ([]byte, error) {
		var q Q
		if len(request) > 0 {
			if err := rawjson.Unmarshal(request, &q); err != nil {
				return nil, fault.New(fault.Invalid, "request of %s: %w", name, err)
			}
		}
		r, err := f(ctx, q)
		if err != nil {
			return nil, err
		}
		out, err := rawjson.Marshal(r)
		if err != nil {
			return nil, fault.New(fault.Internal, "encode reply of %s: %w", name, err)
		}
		return out, nil
	}}
}

func operations(s Service) []operation {
	return []operation{
		op(OpSubmit, s.Submit), op(OpAppend, s.Append), op(OpJob, s.Job), op(OpJobs, s.Jobs), op(OpCancel, s.Cancel), op(OpPause, s.Pause),
		op(OpResume, s.Resume), op(OpDrop, s.Drop), op(OpFailures, s.Failures), op(OpOutcomes, s.Outcomes), op(OpWorkers, s.Workers),
		op(OpDrain, s.Drain),
	}
}

// reply is what travels back over NATS: either of the two.
type reply struct {
	Error *protocol.ErrorReply `json:"error,omitempty"`
	Value rawjson.Raw          `json:"value,omitempty"`
}

// ErrNotLeader means that another coordinator has the answer.
var ErrNotLeader = errors.New("not leader")

// Serve offers s over NATS until the returned function is called. Where another
// leads it says nothing: that one gets the same request.
func Serve(ctx context.Context, b *bus.Bus, s Service) (func(), error) {
	var endpoints []bus.Endpoint
	for _, o := range operations(s) {
		endpoints = append(endpoints, bus.Endpoint{Name: o.name, Handle: func(ctx context.Context, request []byte) []byte {
			var r reply
			var err error
			r.Value, err = o.handle(ctx, request)
			if errors.Is(err, ErrNotLeader) || fault.Is(err, fault.Stale) {
				return nil
			}
			if err != nil {
				r = reply{Error: errorReply(err)}
			}
			out, err := rawjson.Marshal(r)
			if err != nil {
				return []byte(`{"error":{"kind":"internal","error":"reply cannot be encoded"}}`)
			}
			return out
		}})
	}
	return b.Serve(ctx, "fsbackup", "1.0.0", protocol.SubjectAPI, endpoints)
}

func errorReply(err error) *protocol.ErrorReply {
	return &protocol.ErrorReply{Kind: fault.KindOf(err).String(), Text: err.Error()}
}

// Call asks the coordinator over NATS.
func Call[R any](ctx context.Context, b *bus.Bus, op string, request any) (R, error) {
	return callBy[R](op, request, func(subject string, data []byte) ([]byte, error) { return b.Request(ctx, subject, data) })
}

// CallLong is Call for what takes the coordinator long. It waits while the
// coordinator says, at least once in silence, that it is at work; working hears of
// that.
func CallLong[R any](ctx context.Context, b *bus.Bus, op string, request any, silence time.Duration, working func()) (R, error) {
	return callBy[R](op, request, func(subject string, data []byte) ([]byte, error) { return b.Ask(ctx, subject, data, silence, working) })
}

func callBy[R any](op string, request any, ask func(subject string, data []byte) ([]byte, error)) (R, error) {
	var zero R
	data, err := rawjson.Marshal(request)
	if err != nil {
		return zero, fault.New(fault.Internal, "encode request of %s: %w", op, err)
	}
	out, err := ask(protocol.SubjectAPI+"."+op, data)
	if errors.Is(err, bus.ErrNobody) {
		return zero, &fault.Error{Kind: fault.Unavailable, Op: "ask the coordinator", Err: errors.New("none is running on this NATS"), Hint: "start one with: coordinator --nats URL, or --store DIR --nats-listen ADDR"}
	}
	if err != nil {
		return zero, err
	}
	var r reply
	if err := rawjson.Unmarshal(out, &r); err != nil {
		return zero, fault.New(fault.Corrupt, "answer to %s: %w", op, err)
	}
	if r.Error != nil {
		return zero, fault.New(fault.ParseKind(r.Error.Kind), "%s", r.Error.Text)
	}
	var v R
	if err := rawjson.Unmarshal(r.Value, &v); err != nil {
		return zero, fault.New(fault.Corrupt, "answer to %s: %w", op, err)
	}
	return v, nil
}
