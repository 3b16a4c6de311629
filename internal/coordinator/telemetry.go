package coordinator

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	mnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tnoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// telemetry holds the coordinator's tracer and instruments.
type telemetry struct {
	tracer  trace.Tracer
	results metric.Int64Counter
	batches metric.Int64Counter
	shards  metric.Int64Counter
}

func newTelemetry(tp trace.TracerProvider, mp metric.MeterProvider) (*telemetry, error) {
	if tp == nil {
		tp = tnoop.NewTracerProvider()
	}
	if mp == nil {
		mp = mnoop.NewMeterProvider()
	}
	const scope = "github.com/fsbackup/fsbackup/internal/coordinator"
	m := mp.Meter(scope)
	t := &telemetry{tracer: tp.Tracer(scope)}
	var err error
	counter := func(name, text string) metric.Int64Counter {
		c, cerr := m.Int64Counter(name, metric.WithDescription(text))
		if cerr != nil {
			err = fmt.Errorf("instrument %s: %w", name, cerr)
		}
		return c
	}
	t.results = counter("fsbackup.results.folded", "results added to their jobs")
	t.batches = counter("fsbackup.batches.published", "atomic batches of shards")
	t.shards = counter("fsbackup.shards.published", "shards made available to workers")
	return t, err
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

func (t *telemetry) startBatch(ctx context.Context, id protocol.JobID, p protocol.Phase, shards int) (context.Context, trace.Span) {
	t.batches.Add(ctx, 1)
	t.shards.Add(ctx, int64(shards), metric.WithAttributes(attribute.String("phase", p.String())))
	return t.tracer.Start(ctx, "publish", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("fsbackup.job", string(id)), attribute.String("fsbackup.phase", p.String()), attribute.Int("fsbackup.shards", shards)))
}

func (t *telemetry) folded(ctx context.Context, p protocol.Phase, r *protocol.ResultMsg) {
	outcome := "done"
	if r.GetFailures() > 0 {
		outcome = "failures"
	}
	t.results.Add(ctx, 1, metric.WithAttributes(attribute.String("phase", p.String()), attribute.String("outcome", outcome)))
}
