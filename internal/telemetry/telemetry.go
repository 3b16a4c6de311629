package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// FlushTimeout bounds Shutdown where Config does not: an unreachable collector
// must not hold up the end of a process.
const FlushTimeout = 5 * time.Second

// Config says what to set up. Its zero value logs text from level info to
// nowhere and sends nothing.
type Config struct {
	Service  string // coordinator, worker or fsbackup
	Version  string
	Instance string // tells this process from its like: the worker's name, or host and pid

	LogWriter io.Writer // nil discards
	LogFormat string    // text (also "") or json
	LogLevel  string    // debug, info (also ""), warn, error

	// Getenv looks up the environment; nil is an empty one. cmd passes
	// os.Getenv. Only the decision whether to export is made by it; the exporters
	// themselves read the environment of the process.
	Getenv func(string) string

	FlushTimeout time.Duration // bounds Shutdown; 0 = the constant FlushTimeout

	// spanProcessors and metricReaders are added by tests.
	spanProcessors []sdktrace.SpanProcessor
	metricReaders  []sdkmetric.Reader
}

// Telemetry is what Setup made.
type Telemetry struct {
	logger    *slog.Logger
	providers instrument.Providers
	registry  *prometheus.Registry
	traces    string
	metrics   string
	flush     time.Duration
	closers   []func(context.Context) error
}

// Setup builds logging, tracing and metrics by cfg. It contacts nobody: a
// collector that is not there shows in the log once spans or metrics are due.
func Setup(ctx context.Context, cfg Config) (*Telemetry, error) {
	w := cfg.LogWriter
	if w == nil {
		w = io.Discard
	}
	logger, err := NewLogger(w, cfg.LogFormat, cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{logger: logger, flush: cfg.FlushTimeout, registry: prometheus.NewRegistry()}
	if t.flush <= 0 {
		t.flush = FlushTimeout
	}
	getenv := cfg.Getenv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	if t.traces, err = wanted(getenv, "TRACES", "otlp", "console"); err != nil {
		return nil, err
	}
	if t.metrics, err = wanted(getenv, "METRICS", "otlp", "console", "prometheus"); err != nil {
		return nil, err
	}
	if t.traces != "" || t.metrics != "" {
		// The SDK reports failed exports to this one place, a global of its own; left
		// alone it prints each of them to standard error, through the progress bar.
		otel.SetErrorHandler(&exportErrors{logger: logger.With("component", "telemetry")})
	}
	res, err := identity(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := t.setTracer(ctx, cfg, res); err != nil {
		return nil, err
	}
	if err := t.setMeter(ctx, cfg, res); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	return t, nil
}

// wanted returns the exporter that the environment asks for, "" for none. The
// package autoexport exports to localhost if nothing is set; we send nothing.
func wanted(getenv func(string) string, signal string, known ...string) (string, error) {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return "", nil
	}
	name := "OTEL_" + signal + "_EXPORTER"
	exporter := getenv(name)
	switch exporter {
	case "none":
		return "", nil
	case "":
		if getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") == "" {
			return "", nil
		}
		exporter = "otlp"
	}
	if slices.Contains(known, exporter) {
		return exporter, nil
	}
	return "", &fault.Error{
		Kind: fault.Invalid, Op: "set up telemetry",
		Err:  fmt.Errorf("unknown exporter %s=%q", name, exporter),
		Hint: "use " + strings.Join(known, ", ") + " or none",
	}
}

// identity describes the process. What OTEL_SERVICE_NAME and
// OTEL_RESOURCE_ATTRIBUTES say wins.
func identity(ctx context.Context, cfg Config) (*resource.Resource, error) {
	attrs := []attribute.KeyValue{attribute.String("service.namespace", "fsbackup")}
	for _, a := range []struct{ key, value string }{
		{"service.name", cfg.Service}, {"service.version", cfg.Version}, {"service.instance.id", cfg.Instance},
	} {
		if a.value != "" {
			attrs = append(attrs, attribute.String(a.key, a.value))
		}
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(attrs...), resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, &fault.Error{
			Kind: fault.Invalid, Op: "set up telemetry", Err: fmt.Errorf("describe this process: %w", err),
			Hint: "check OTEL_RESOURCE_ATTRIBUTES: key=value pairs, separated by commas",
		}
	}
	return res, nil
}

func (t *Telemetry) setTracer(ctx context.Context, cfg Config, res *resource.Resource) error {
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	for _, p := range cfg.spanProcessors {
		opts = append(opts, sdktrace.WithSpanProcessor(p))
	}
	if t.traces != "" {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return exporterError("trace", err)
		}
		opts = append(opts, sdktrace.WithBatcher(exporter))
	} else if len(cfg.spanProcessors) == 0 {
		t.providers.TracerProvider = tracenoop.NewTracerProvider()
		return nil
	}
	tp := sdktrace.NewTracerProvider(opts...)
	t.providers.TracerProvider = tp
	t.closers = append(t.closers, tp.Shutdown)
	return nil
}

func (t *Telemetry) setMeter(ctx context.Context, cfg Config, res *resource.Resource) error {
	t.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prom, err := promexporter.New(promexporter.WithRegisterer(t.registry), promexporter.WithoutScopeInfo())
	if err != nil {
		return fmt.Errorf("make the exporter for /metrics: %w", err)
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(prom)}
	for _, r := range cfg.metricReaders {
		opts = append(opts, sdkmetric.WithReader(r))
	}
	if t.metrics != "" {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return exporterError("metric", err)
		}
		opts = append(opts, sdkmetric.WithReader(reader))
	}
	mp := sdkmetric.NewMeterProvider(opts...)
	t.providers.MeterProvider = mp
	t.closers = append(t.closers, mp.Shutdown)
	return nil
}

func exporterError(signal string, err error) error {
	return &fault.Error{
		Kind: fault.Invalid, Op: "set up telemetry", Err: fmt.Errorf("make the %s exporter: %w", signal, err),
		Hint: "check the OTEL_EXPORTER_ variables, or set OTEL_SDK_DISABLED=true",
	}
}

// Logger returns the process's logger.
func (t *Telemetry) Logger() *slog.Logger { return t.logger }

// Providers returns what services record with.
func (t *Telemetry) Providers() instrument.Providers { return t.providers }

// Tracer returns the tracer for spans of cmd itself.
func (t *Telemetry) Tracer() trace.Tracer { return t.providers.Tracer() }

// Exporters says where traces and metrics are sent, for the log line of a
// daemon's start: "" is nowhere.
func (t *Telemetry) Exporters() (traces, metrics string) { return t.traces, t.metrics }

// Handler serves the metrics in the Prometheus text format.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		ErrorLog: promLog{t.logger.With("component", "telemetry")},
	})
}

// Shutdown sends what is still held and ends the exporters. It returns within
// the flush timeout, or by the deadline of ctx if that is earlier; a mere
// cancellation of ctx is ignored, since at the end of a daemon its context is
// cancelled already. What could not be sent is lost and the error says so; it is
// no reason for another exit code.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	until := time.Now().Add(t.flush)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	defer cancel()

	// All at once: a collector that hangs on spans shall not use up the time of
	// the metrics.
	errs := make([]error, len(t.closers))
	var wg sync.WaitGroup
	for i, closer := range t.closers {
		wg.Go(func() { errs[i] = closer(ctx) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("flush telemetry: %w", err)
		}
		return nil
	case <-ctx.Done():
		// An exporter that does not honour its context is left behind; the
		// process is about to end.
		return fmt.Errorf("flush telemetry: %w", ctx.Err())
	}
}

// exportErrors logs failed exports, one a minute at most: a collector that is
// down fails each batch in the same way.
type exportErrors struct {
	logger *slog.Logger
	mu     sync.Mutex
	next   time.Time
	hidden int
}

// Handle implements otel.ErrorHandler.
func (e *exportErrors) Handle(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if now.Before(e.next) {
		e.hidden++
		return
	}
	e.logger.Warn("telemetry was not exported", "error", err, "alike_since_last", e.hidden)
	e.next, e.hidden = now.Add(time.Minute), 0
}

// promLog lets promhttp report errors while it gathers.
type promLog struct{ logger *slog.Logger }

// Println implements promhttp.Logger.
func (p promLog) Println(v ...any) {
	p.logger.Warn("metrics were not served", "error", strings.TrimSpace(fmt.Sprintln(v...)))
}
