// Package mutant owns the switches that turn single defences off, to show that
// tests notice. Only builds with the tag chaosmutant have them; in all others Off
// is constant, and what it guards is compiled away.
package mutant

// Defence is something without which a fault does harm.
type Defence string

// Defences.
const (
	Results   Defence = "results"   // one result a shard: the server refuses a second, a bit counts it once
	Fence     Defence = "fence"     // a batch is stored only where its cursor is the last
	Lease     Defence = "lease"     // a worker looks at its lease before each entry and each call that changes names
	Reconcile Defence = "reconcile" // shards that got lost in the queue are published again
	Quiet     Defence = "quiet"     // a job ends only when no attempt at its shards can act any more
	Answered  Defence = "answered"  // the history takes for done what has a result, not what a job's end suggests
)
