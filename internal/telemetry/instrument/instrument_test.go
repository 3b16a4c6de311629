package instrument_test

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

func tracer(t *testing.T) (instrument.Providers, *tracetest.InMemoryExporter) {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	return instrument.Providers{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))}, exporter
}

func TestEveryKeepsAboutAThousandShards(t *testing.T) {
	t.Parallel()
	for _, shards := range []uint64{0, 1, 999, 1000, 1001, 54_321, 5_000_000} {
		every := instrument.Every(shards)
		var kept uint64
		for n := range shards {
			if n%every == 0 {
				kept++
			}
		}
		if kept > instrument.SpansPerJob || kept < min(shards, instrument.SpansPerJob/2) {
			t.Errorf("%d shards: every %d, %d kept", shards, every, kept)
		}
	}
}

func TestChosenFailedAndRepeatedShardsGetASpan(t *testing.T) {
	t.Parallel()
	failed := errors.New("disk on fire")
	for _, tc := range []struct {
		name    string
		n       uint64
		deliver uint64
		outcome instrument.Outcome
		err     error
		spans   int
		late    bool
		status  codes.Code
	}{
		{name: "chosen", n: 20, deliver: 1, outcome: instrument.Done, spans: 1},
		{name: "not chosen", n: 21, deliver: 1, outcome: instrument.Done},
		{name: "not chosen, entries failed", n: 21, deliver: 1, outcome: instrument.Failed, spans: 1, late: true, status: codes.Error},
		{name: "not chosen, error", n: 21, deliver: 1, outcome: instrument.Returned, err: failed, spans: 1, late: true, status: codes.Error},
		{name: "not chosen, repeated", n: 21, deliver: 2, outcome: instrument.Done, spans: 1, late: true},
		{name: "chosen, entries failed", n: 20, deliver: 1, outcome: instrument.Failed, spans: 1, status: codes.Error},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, exporter := tracer(t)
			ctx, publish := p.Tracer().Start(t.Context(), "publish")
			publish.End()
			exporter.Reset()

			start := time.Unix(1_000_000, 0)
			end := start.Add(3 * time.Second)
			work, span := instrument.StartShard(ctx, p.Tracer(), instrument.ShardAttempt{
				Job: "j", Phase: "copy", Pool: "default", Worker: "w", N: tc.n, Delivery: tc.deliver, Every: 10,
			}, start)
			_, child := p.Tracer().Start(work, "child")
			child.End()
			span.End(end, instrument.ShardRecord{Outcome: tc.outcome, FilesCopied: 5}, tc.err)

			var shards, children tracetest.SpanStubs
			for _, s := range exporter.GetSpans() {
				if s.Name == "shard copy" {
					shards = append(shards, s)
				} else {
					children = append(children, s)
				}
			}
			if len(shards) != tc.spans {
				t.Fatalf("%d shard spans, want %d", len(shards), tc.spans)
			}
			if chosen := tc.n == 20; chosen != (len(children) == 1) {
				t.Errorf("%d child spans of a shard that was chosen: %v", len(children), chosen)
			}
			if tc.spans == 0 {
				return
			}
			got := shards[0]
			if !got.StartTime.Equal(start) || !got.EndTime.Equal(end) {
				t.Errorf("span from %v to %v, want %v to %v", got.StartTime, got.EndTime, start, end)
			}
			if got.Parent.IsValid() || len(got.Links) != 1 || got.Links[0].SpanContext.SpanID() != publish.SpanContext().SpanID() {
				t.Errorf("parent %v, links %v: want a trace of its own, linked to the publish span", got.Parent, got.Links)
			}
			if got.Status.Code != tc.status {
				t.Errorf("status %v, want %v", got.Status, tc.status)
			}
			attrs := attribute.NewSet(got.Attributes...)
			if v, _ := attrs.Value("outcome"); v.AsString() != string(tc.outcome) {
				t.Errorf("outcome %q, want %q", v.AsString(), tc.outcome)
			}
			if _, late := attrs.Value("late"); late != tc.late {
				t.Errorf("late: %v, want %v", late, tc.late)
			}
		})
	}
}

func TestErrorsOfSpansAreUTF8(t *testing.T) {
	t.Parallel()
	p, exporter := tracer(t)
	_, span := instrument.StartShard(t.Context(), p.Tracer(), instrument.ShardAttempt{Job: "j", Phase: "copy", Delivery: 1, Every: 1}, time.Unix(1, 0))
	span.End(time.Unix(2, 0), instrument.ShardRecord{Outcome: instrument.Returned}, errors.New("open \xff"))
	for _, s := range exporter.GetSpans() {
		said := s.Status.Description
		for _, e := range s.Events {
			for _, a := range e.Attributes {
				said += a.Value.String()
			}
		}
		if !utf8.ValidString(said) || !strings.Contains(said, "open \ufffd") {
			t.Errorf("%q", said)
		}
	}
}

func TestUnsampledShardsPassNoTraceOn(t *testing.T) {
	t.Parallel()
	p, _ := tracer(t)
	ctx, _ := instrument.StartShard(t.Context(), p.Tracer(), instrument.ShardAttempt{Phase: "copy", N: 3, Delivery: 1, Every: 10}, time.Unix(1, 0))
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() || sc.IsSampled() {
		t.Errorf("span context %+v, want a valid one that is not sampled", sc)
	}
}

func TestZeroProvidersRecordNothing(t *testing.T) {
	t.Parallel()
	var p instrument.Providers
	m, err := instrument.NewMetrics(p.Meter())
	if err != nil {
		t.Fatal(err)
	}
	m.Shard(t.Context(), instrument.ShardRecord{FilesCopied: 1})
	m.Published(t.Context(), "copy", "default", 1)
	m.Slots(t.Context(), instrument.SlotRecord{})
	m.Cluster(t.Context(), instrument.ClusterRecord{})
	_, span := instrument.StartShard(t.Context(), p.Tracer(), instrument.ShardAttempt{}, time.Unix(1, 0))
	span.End(time.Unix(2, 0), instrument.ShardRecord{Outcome: instrument.Failed}, nil)
}

func TestMetricsCountByPhasePoolAndWorker(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	p := instrument.Providers{MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))}
	m, err := instrument.NewMetrics(p.Meter())
	if err != nil {
		t.Fatal(err)
	}
	for _, outcome := range []instrument.Outcome{instrument.Done, instrument.Done, instrument.Stale} {
		m.Shard(t.Context(), instrument.ShardRecord{
			Phase: "copy", Pool: "p", Worker: "w", Outcome: outcome, Duration: time.Second,
			FilesCopied: 10, BytesCopied: 4096, Deleted: 1,
		})
	}
	m.Cluster(t.Context(), instrument.ClusterRecord{Jobs: 1, Workers: 2, OpenShards: 3})
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range rm.ScopeMetrics[0].Metrics {
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, d := range data.DataPoints {
				name := m.Name + " " + m.Unit
				if v, ok := d.Attributes.Value("outcome"); ok {
					name += " " + v.AsString()
				}
				got[name] = d.Value
			}
		case metricdata.Gauge[int64]:
			got[m.Name+" "+m.Unit] = data.DataPoints[0].Value
		case metricdata.Histogram[float64]:
			got[m.Name+" "+m.Unit] = int64(data.DataPoints[0].Count)
		}
	}
	want := map[string]int64{
		"fsbackup.files.copied {file}":        30,
		"fsbackup.copied By":                  12288,
		"fsbackup.entries.deleted {entry}":    3,
		"fsbackup.shards.ended {shard} done":  2,
		"fsbackup.shards.ended {shard} stale": 1,
		"fsbackup.shard.duration s":           3,
		"fsbackup.jobs.running {job}":         1,
		"fsbackup.workers.live {worker}":      2,
		"fsbackup.shards.open {shard}":        3,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
