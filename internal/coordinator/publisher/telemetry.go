package publisher

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	mnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tnoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// telemetry holds the publisher's tracer and instruments.
type telemetry struct {
	tracer  trace.Tracer
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
	if t.batches, err = m.Int64Counter("fsbackup.batches.published", metric.WithDescription("atomic batches of shards")); err != nil {
		return nil, fmt.Errorf("instrument fsbackup.batches.published: %w", err)
	}
	if t.shards, err = m.Int64Counter("fsbackup.shards.published", metric.WithDescription("shards made available to workers")); err != nil {
		return nil, fmt.Errorf("instrument fsbackup.shards.published: %w", err)
	}
	return t, nil
}

func (t *telemetry) startBatch(ctx context.Context, id protocol.JobID, p protocol.Phase, shards int) (context.Context, trace.Span) {
	t.batches.Add(ctx, 1)
	t.shards.Add(ctx, int64(shards), metric.WithAttributes(attribute.String("phase", p.String())))
	return t.tracer.Start(ctx, "publish", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("fsbackup.job", string(id)), attribute.String("fsbackup.phase", p.String()), attribute.Int("fsbackup.shards", shards)))
}
