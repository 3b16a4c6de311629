package protocol

import (
	"maps"
	"slices"
)

// Carrier carries a trace context in the headers of a NATS message. It is an
// OpenTelemetry TextMapCarrier over the header map itself:
//
//	propagator.Inject(ctx, protocol.Carrier(msg.Header))
//	ctx = propagator.Extract(ctx, protocol.Carrier(msg.Header))
//
// Keys are kept exactly as the propagators write them, in lower case
// (traceparent, tracestate, baggage). The carrier for HTTP headers that comes
// with OpenTelemetry rewrites them to Traceparent and so on, which a look-up in
// NATS headers, where case matters, does not find.
//
// Like the map beneath it, a Carrier is not safe for concurrent use, and Set on
// a nil Carrier panics.
type Carrier map[string][]string

// Get returns the first value of key, or "" if there is none.
func (c Carrier) Get(key string) string {
	if v := c[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Values returns every value of key. The slice belongs to the header.
func (c Carrier) Values(key string) []string { return c[key] }

// Set replaces the values of key by one.
func (c Carrier) Set(key, value string) { c[key] = []string{value} }

// Keys returns the keys in sorted order.
func (c Carrier) Keys() []string { return slices.Sorted(maps.Keys(c)) }
