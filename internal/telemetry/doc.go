// Package telemetry sets up logging, tracing and metrics of a process, and shuts
// them down. Only cmd calls it.
//
// # Who passes what
//
// cmd reads flags and environment, calls Setup, and hands down
//
//   - Telemetry.Logger: a *slog.Logger, to every service, which adds its
//     component with With;
//   - Telemetry.Providers: an instrument.Providers, to the coordinator and the
//     worker, which make their tracer and instruments of it (package instrument)
//     and record nothing when they get none;
//   - Telemetry.Handler: the HTTP handler for /metrics, to whoever serves HTTP.
//
// cmd defers Telemetry.Shutdown before anything else, so that it runs last, after
// the services that still record. No package below cmd touches a global of
// OpenTelemetry or Prometheus.
//
// # What is sent
//
// Nothing, unless an OTEL_ variable asks for it: a trace exporter is made if
// OTEL_TRACES_EXPORTER names one or an OTLP endpoint is set, a metric exporter
// likewise by OTEL_METRICS_EXPORTER. OTEL_SDK_DISABLED=true turns both off;
// /metrics, which sends nothing by itself, stays. Everything else that the
// OpenTelemetry specification defines (headers, protocol, sampler, batch sizes,
// resource attributes) is read by the SDK from the environment of the process,
// which is why Config.Getenv must be that same environment outside tests.
//
// Sampling is the SDK's default, parent-based, with every root kept; which
// shards become a trace at all is decided by instrument.StartShard.
package telemetry
