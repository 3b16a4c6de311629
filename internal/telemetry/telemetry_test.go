package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if v, ok := strings.CutPrefix(p, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestNothingIsExportedUnlessAskedFor(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name            string
		env             []string
		traces, metrics string
	}{
		{"empty environment", nil, "", ""},
		{"endpoint", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318"}, "otlp", "otlp"},
		{"endpoint of one signal", []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4318"}, "otlp", ""},
		{"exporters named", []string{"OTEL_TRACES_EXPORTER=console", "OTEL_METRICS_EXPORTER=prometheus"}, "console", "prometheus"},
		{"endpoint but none", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_TRACES_EXPORTER=none"}, "", "otlp"},
		{"disabled", []string{"OTEL_SDK_DISABLED=TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318"}, "", ""},
		{"only a protocol", []string{"OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "", ""},
	} {
		traces, err := wanted(env(tc.env...), "TRACES", "otlp", "console")
		if err != nil || traces != tc.traces {
			t.Errorf("%s: traces go to %q, %v; want %q", tc.name, traces, err, tc.traces)
		}
		metrics, err := wanted(env(tc.env...), "METRICS", "otlp", "console", "prometheus")
		if err != nil || metrics != tc.metrics {
			t.Errorf("%s: metrics go to %q, %v; want %q", tc.name, metrics, err, tc.metrics)
		}
	}
}

func TestSetupRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		`unknown exporter OTEL_TRACES_EXPORTER="zipkin" (use otlp, console or none)`:              {Getenv: env("OTEL_TRACES_EXPORTER=zipkin")},
		`unknown exporter OTEL_METRICS_EXPORTER="statsd" (use otlp, console, prometheus or none)`: {Getenv: env("OTEL_METRICS_EXPORTER=statsd")},
		`unknown log level "loud" (use debug, info, warn or error)`:                               {LogLevel: "loud"},
		`unknown log format "xml" (use text or json)`:                                             {LogFormat: "xml"},
	} {
		_, err := Setup(t.Context(), cfg)
		if !fault.Is(err, fault.Invalid) || !strings.HasSuffix(err.Error(), name) {
			t.Errorf("got %v, want an invalid one that ends in %s", err, name)
		}
	}
}

func TestLogsKeepBytesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := NewLogger(&out, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	logger.With("source", "/\xb1").WithGroup("g").Info("said", "path", "a\xff", "plain", "\ufffd", "error", errors.New("open \xff"), "list", []string{"a", "\xff"})
	const want = `"source":"/\ufffd","source_bytes":"L7E=","g":{"path":"a\ufffd","path_bytes":"Yf8=","plain":"\ufffd","error":"open \ufffd","error_bytes":"b3BlbiD/","list":["a","\ufffd"],"list_bytes":[null,"/w=="]}}` + "\n"
	if unescaped := strings.ReplaceAll(want, `\ufffd`, "\ufffd"); !strings.HasSuffix(out.String(), unescaped) {
		t.Errorf("%s, want %s", &out, unescaped)
	}
	out.Reset()
	if logger, err = NewLogger(&out, "text", "info"); err != nil {
		t.Fatal(err)
	}
	logger.Info("said", "path", "a\xff")
	if !strings.Contains(out.String(), `path="a\xff"`) {
		t.Error(&out)
	}
}

func TestLogRecordsCarryTheSpanOfTheirContext(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := NewLogger(&out, "json", "info")
	if err != nil {
		t.Fatal(err)
	}
	tp := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()))
	ctx, span := tp.Tracer("t").Start(t.Context(), "work")
	unsampledCtx := trace.ContextWithSpanContext(t.Context(), span.SpanContext().WithTraceFlags(0))

	logger = logger.With("component", "test")
	logger.InfoContext(ctx, "sampled")
	logger.InfoContext(unsampledCtx, "not sampled")
	logger.InfoContext(t.Context(), "no span")
	logger.DebugContext(ctx, "below the level")

	type line struct{ Msg, Component, Trace_id, Span_id string } // the keys as logged
	var got []line
	for d := json.NewDecoder(&out); ; {
		var l line
		if err := d.Decode(&l); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, l)
	}
	sc := span.SpanContext()
	want := []line{
		{"sampled", "test", sc.TraceID().String(), sc.SpanID().String()},
		{"not sampled", "test", "", ""},
		{"no span", "test", "", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestMetricsAreServedUnderTheirNames(t *testing.T) {
	t.Parallel()
	tel, err := Setup(t.Context(), Config{Service: "worker", Version: "v1", Instance: "w1"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := instrument.NewMetrics(tel.Providers().Meter())
	if err != nil {
		t.Fatal(err)
	}
	m.Shard(t.Context(), instrument.ShardRecord{
		Phase: "copy", Pool: "default", Worker: "w1", Outcome: instrument.Failed, Duration: 20 * time.Millisecond,
		FilesCopied: 7, DirsCopied: 2, BytesCopied: 4096, FilesFailed: 1, Links: 3,
	})
	m.Slots(t.Context(), instrument.SlotRecord{Pool: "default", Worker: "w1", Busy: 1, Limit: 4, Memory: 1 << 20})

	rec := httptest.NewRecorder()
	tel.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := rec.Body.String()
	for _, want := range []string{
		`fsbackup_files_copied_total{phase="copy",pool="default",worker="w1"} 7`,
		`fsbackup_copied_bytes_total{phase="copy",pool="default",worker="w1"} 4096`,
		`fsbackup_dirs_copied_total{phase="copy",pool="default",worker="w1"} 2`,
		`fsbackup_files_failed_total{phase="copy",pool="default",worker="w1"} 1`,
		`fsbackup_links_made_total{phase="copy",pool="default",worker="w1"} 3`,
		`fsbackup_shards_ended_total{outcome="failed",phase="copy",pool="default",worker="w1"} 1`,
		`fsbackup_shard_duration_seconds_bucket{phase="copy",pool="default",worker="w1",le="0.025"} 1`,
		`fsbackup_slots_limit{pool="default",worker="w1"} 4`,
		`fsbackup_engine_memory_bytes{pool="default",worker="w1"} 1.048576e+06`,
		`service_name="worker"`,
		`service_version="v1"`,
		`go_goroutines`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if strings.Contains(body, "fsbackup_entries_deleted_total") {
		t.Error("/metrics has a series for a figure that was never counted")
	}
	if t.Failed() {
		for line := range strings.Lines(body) {
			if strings.Contains(line, "fsbackup") || strings.Contains(line, "target_info") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestShutdownFlushesSpansAfterTheRunWasCancelled(t *testing.T) {
	t.Parallel()
	exporter := &keeper{}
	tel, err := Setup(t.Context(), Config{
		Service: "coordinator", Version: "v2", Instance: "c1",
		spanProcessors: []sdktrace.SpanProcessor{sdktrace.NewBatchSpanProcessor(exporter)},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, span := tel.Tracer().Start(ctx, "job")
	span.End()
	cancel()
	if err := tel.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if len(exporter.spans) != 1 || exporter.spans[0].Name != "job" {
		t.Fatalf("exported %v, want the one span", exporter.spans)
	}
	got := map[string]string{}
	for _, a := range exporter.spans[0].Resource.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	for k, v := range map[string]string{"service.name": "coordinator", "service.version": "v2", "service.instance.id": "c1"} {
		if got[k] != v {
			t.Errorf("resource %s = %q, want %q", k, got[k], v)
		}
	}
}

// keeper keeps spans also over its shutdown, unlike the SDK's in-memory exporter.
type keeper struct{ spans tracetest.SpanStubs }

func (k *keeper) ExportSpans(_ context.Context, s []sdktrace.ReadOnlySpan) error {
	k.spans = append(k.spans, tracetest.SpanStubsFromReadOnlySpans(s)...)
	return nil
}
func (k *keeper) Shutdown(context.Context) error { return nil }

// A collector that accepts and never answers is worse than one that refuses:
// nothing fails by itself.
func TestShutdownDoesNotWaitForASilentCollector(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		silent.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	// A port that nobody listens on: taken, and given back.
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()

	for _, tc := range []struct{ name, addr, protocol string }{
		{"silent, http", silent.Addr().String(), "http/protobuf"},
		{"silent, grpc", silent.Addr().String(), "grpc"},
		{"refused, http", refused.Addr().String(), "http/protobuf"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+tc.addr)
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", tc.protocol)
			var log syncBuffer
			start := time.Now()
			tel, err := Setup(t.Context(), Config{
				Service: "worker", LogWriter: &log, Getenv: os.Getenv, FlushTimeout: 300 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if traces, metrics := tel.Exporters(); traces != "otlp" || metrics != "otlp" {
				t.Fatalf("exporters: %q and %q, want otlp", traces, metrics)
			}
			m, err := instrument.NewMetrics(tel.Providers().Meter())
			if err != nil {
				t.Fatal(err)
			}
			m.Published(t.Context(), "copy", "default", 3)
			_, span := tel.Tracer().Start(t.Context(), "job")
			span.End()
			if err := tel.Shutdown(t.Context()); err == nil {
				t.Error("shutdown says that it flushed to a collector that never answered")
			} else if !strings.HasPrefix(err.Error(), "flush telemetry: ") {
				t.Errorf("shutdown: %v", err)
			}
			// Generous: the bound shown is "not the exporters' own minute".
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %v with a flush timeout of 300 ms", took)
			}
		})
	}
}

func TestExportErrorsAreLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger, err := NewLogger(&out, "text", "")
	if err != nil {
		t.Fatal(err)
	}
	h := &exportErrors{logger: logger}
	for range 5 {
		h.Handle(io.ErrUnexpectedEOF)
	}
	lines := slices.Collect(strings.Lines(out.String()))
	if len(lines) != 1 || !strings.Contains(lines[0], "telemetry was not exported") {
		t.Errorf("logged %q, want one line", lines)
	}
}

// syncBuffer is a log that exporters may still write to while a test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
