// Package protocol owns what travels between the parts of a cluster: messages
// and their codec, subjects, and the names of streams, consumers and buckets.
// It is pure: no I/O, no clock.
package protocol

// WireMajor is the version of the wire format. Parts with the same major
// interoperate; another major is refused with both numbers named.
const WireMajor = 1
