package instrument

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// SpansPerJob is how many ordinary shards of a job get a span, about.
const SpansPerJob = 1000

// Every returns k for a job with so many shards: one shard in k gets a span, so
// that about SpansPerJob are kept. The coordinator computes it when the job is
// admitted and sends it with each shard, so that every worker chooses alike.
func Every(shards uint64) uint64 {
	return max(1, (shards+SpansPerJob-1)/SpansPerJob)
}

// ShardAttempt names one attempt at a shard.
type ShardAttempt struct {
	Job, Phase, Pool, Worker string
	N                        uint64
	Sequence                 uint64 // stream sequence
	Delivery                 uint64 // from 1
	Every                    uint64 // one shard in Every gets a span; 0 and 1 = each
}

// ShardSpan is the trace of one attempt: a span from the start if the shard is
// one of the chosen, else a note of the time, made into a span at the end if the
// attempt failed or was a repetition.
//
// Whether a shard will fail is known at its end only, and a span that was not
// sampled when it began cannot be kept later; recording all of them to throw
// most away would cost each shard what only a few need.
type ShardSpan struct {
	tracer  trace.Tracer
	attempt ShardAttempt
	options []trace.SpanStartOption
	ctx     context.Context // the late span is started from it, in the same call tree
	start   time.Time
	span    trace.Span // nil if the shard is not one of the chosen
}

// StartShard begins the trace of an attempt. The shard is a trace of its own,
// linked to the publish span found in ctx (put there by Propagator().Extract);
// ctx must not carry the worker's own span. The context returned is for the work:
// spans begun from it belong to the shard, or are dropped with it.
func StartShard(ctx context.Context, tracer trace.Tracer, a ShardAttempt, start time.Time) (context.Context, *ShardSpan) {
	s := &ShardSpan{tracer: tracer, attempt: a, start: start, ctx: ctx}
	s.options = []trace.SpanStartOption{
		trace.WithNewRoot(),
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithTimestamp(start),
		trace.WithAttributes(
			attribute.String("job", a.Job), attribute.String("phase", a.Phase),
			attribute.String("pool", a.Pool), attribute.String("worker", a.Worker),
			attribute.Int64("shard", clamp(a.N)),
			attribute.Int64("attempt.sequence", clamp(a.Sequence)), attribute.Int64("attempt.delivery", clamp(a.Delivery)),
		),
	}
	if publish := trace.SpanContextFromContext(ctx); publish.IsValid() {
		s.options = append(s.options, trace.WithLinks(trace.Link{SpanContext: publish}))
	}
	if a.Every <= 1 || a.N%a.Every == 0 {
		ctx, s.span = tracer.Start(ctx, "shard "+a.Phase, s.options...)
		return ctx, s
	}
	return trace.ContextWithSpanContext(ctx, unsampled()), s
}

// End ends the attempt's trace at a time, with what the attempt did. An err
// becomes the span's status; it may be nil though entries failed. End is called
// once.
func (s *ShardSpan) End(at time.Time, r ShardRecord, err error) {
	failed := r.Outcome == Failed || err != nil
	if s.span == nil {
		if !failed && s.attempt.Delivery <= 1 {
			return
		}
		_, s.span = s.tracer.Start(s.ctx, "shard "+s.attempt.Phase, s.options...)
		s.span.SetAttributes(attribute.Bool("late", true))
	}
	s.span.SetAttributes(
		attribute.String("outcome", string(r.Outcome)),
		attribute.Int64("files.copied", clamp(r.FilesCopied)), attribute.Int64("dirs.copied", clamp(r.DirsCopied)),
		attribute.Int64("bytes.copied", clamp(r.BytesCopied)),
		attribute.Int64("entries.failed", clamp(r.FilesFailed+r.DirsFailed)),
	)
	switch {
	case err != nil:
		text := err.Error()
		if !utf8.ValidString(text) { // as a path in it need not be, and what is exported must
			text = strings.ToValidUTF8(text, "\ufffd")
			err = errors.New(text)
		}
		s.span.RecordError(err, trace.WithTimestamp(at))
		s.span.SetStatus(codes.Error, text)
	case failed:
		s.span.SetStatus(codes.Error, "entries failed")
	}
	s.span.End(trace.WithTimestamp(at))
}

// unsampled returns a parent under which a parent-based sampler drops every
// span. It must be valid: without a valid parent a span is a root, and kept.
func unsampled() trace.SpanContext {
	var id trace.TraceID
	var span trace.SpanID
	// crypto/rand.Read never returns an error.
	_, _ = rand.Read(id[:])
	_, _ = rand.Read(span[:])
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span})
}
