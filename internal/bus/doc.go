// Package bus owns everything that is NATS: connections, the embedded server,
// streams, atomic batches, pulls with their leases, compare-and-swap keys,
// objects and services. No other package imports nats.go or nats-server, and
// NATS errors leave it as fault kinds.
package bus
