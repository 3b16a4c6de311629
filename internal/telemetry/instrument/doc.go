// Package instrument holds the instruments that the coordinator and the workers
// record on, and the choice of the shards that get a span.
//
// It knows the OpenTelemetry interfaces only. cmd builds the providers with
// package telemetry and passes them down in a Providers; a coordinator or a
// worker without one records on no-ops.
//
// Metrics count attempts, as a machine sees them: a shard that was executed
// twice is counted twice. The statistics of a job count entries exactly and come
// from the folded results, never from here. A job's id is never an attribute:
// it would make a new time series per job.
package instrument
