package instrument

import (
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// Scope is the name under which all tracers and meters of this module are made.
const Scope = "github.com/fsbackup/fsbackup"

// Providers is what a service is given to record with. The zero value records
// nothing.
type Providers struct {
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// Tracer returns the module's tracer, a no-op if p has no provider.
func (p Providers) Tracer() trace.Tracer {
	if p.TracerProvider == nil {
		return tracenoop.NewTracerProvider().Tracer(Scope)
	}
	return p.TracerProvider.Tracer(Scope)
}

// Meter returns the module's meter, a no-op if p has no provider.
func (p Providers) Meter() metric.Meter {
	if p.MeterProvider == nil {
		return metricnoop.NewMeterProvider().Meter(Scope)
	}
	return p.MeterProvider.Meter(Scope)
}

// Propagator returns the one way in which a trace context crosses a message:
// W3C trace context and baggage. Use it with protocol.Carrier.
func Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}
