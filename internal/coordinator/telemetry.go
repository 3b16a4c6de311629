package coordinator

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tnoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// telemetry has the spans of jobs and of their phases.
type telemetry struct{ tracer trace.Tracer }

func newTelemetry(tp trace.TracerProvider) *telemetry {
	if tp == nil {
		tp = tnoop.NewTracerProvider()
	}
	return &telemetry{tracer: tp.Tracer("github.com/fsbackup/fsbackup/internal/coordinator")}
}

func (t *telemetry) startJob(ctx context.Context, rec protocol.JobRecord) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(rec.Spec.Trace))
	return t.tracer.Start(ctx, "job", trace.WithAttributes(
		attribute.String("fsbackup.job", string(rec.ID)),
		attribute.String("fsbackup.pool", rec.Spec.Pool),
		attribute.Int64("fsbackup.epoch", int64(rec.Epoch)),
	))
}

func (t *telemetry) startPhase(ctx context.Context, id protocol.JobID, p protocol.Phase) (context.Context, trace.Span) {
	return t.tracer.Start(ctx, "phase "+p.String(), trace.WithAttributes(
		attribute.String("fsbackup.job", string(id)), attribute.String("fsbackup.phase", p.String())))
}
