package protocol_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

var (
	_ propagation.TextMapCarrier = protocol.Carrier(nil)
	_ propagation.ValuesGetter   = protocol.Carrier(nil)
)

// header stands for the map type of a NATS client: a named type over the same map.
type header map[string][]string

func TestCarrierTakesAContextAcrossAMessage(t *testing.T) {
	t.Parallel()
	state, err := trace.ParseTraceState("vendor=a")
	if err != nil {
		t.Fatal(err)
	}
	sent := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    trace.TraceID{0x4b, 0xf9, 0x2f, 1},
		SpanID:     trace.SpanID{0, 0xf0, 0x67, 2},
		TraceFlags: trace.FlagsSampled,
		TraceState: state,
	})
	member, err := baggage.NewMember("tenant", "blue")
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	ctx := baggage.ContextWithBaggage(trace.ContextWithSpanContext(t.Context(), sent), bag)
	p := propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})

	h := header{"Nats-Msg-Id": {"7"}}
	p.Inject(ctx, protocol.Carrier(h))

	want := []string{"Nats-Msg-Id", "baggage", "traceparent", "tracestate"}
	if diff := cmp.Diff(want, protocol.Carrier(h).Keys()); diff != "" {
		t.Errorf("keys in the header (-want +got):\n%s", diff)
	}
	got := p.Extract(t.Context(), protocol.Carrier(h))
	if sc := trace.SpanContextFromContext(got); !sc.Equal(sent.WithRemote(true)) {
		t.Errorf("span context: got %+v, want %+v", sc, sent)
	}
	if v := baggage.FromContext(got).Member("tenant").Value(); v != "blue" {
		t.Errorf("baggage: got %q, want %q", v, "blue")
	}
}

func TestCarrierIsExactAboutCase(t *testing.T) {
	t.Parallel()
	c := protocol.Carrier{"Traceparent": {"other"}, "traceparent": {"a", "b"}, "tracestate": {}}
	if got := c.Get("traceparent"); got != "a" {
		t.Errorf("Get: got %q, want the first value of the exact key", got)
	}
	if got := c.Values("traceparent"); !cmp.Equal(got, []string{"a", "b"}) {
		t.Errorf("Values: got %q", got)
	}
	if got := c.Get("tracestate") + c.Get("baggage"); got != "" {
		t.Errorf("Get of an empty and of a missing key: got %q", got)
	}
	c.Set("traceparent", "c")
	if !cmp.Equal(c["traceparent"], []string{"c"}) || !cmp.Equal(c["Traceparent"], []string{"other"}) {
		t.Errorf("Set: got %v", c)
	}
}

func TestNilCarrierReadsAsEmpty(t *testing.T) {
	t.Parallel()
	var c protocol.Carrier
	if c.Get("traceparent") != "" || c.Keys() != nil || c.Values("x") != nil {
		t.Error("a nil carrier has content")
	}
}
