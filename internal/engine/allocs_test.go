//go:build !race

package engine

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAllocationsPerEntry fails if an entry of a kind allocates more than it did. What a
// batch allocates once is not counted: it is executed with n entries and with twice as
// many. (The race detector allocates for itself.)
func TestAllocationsPerEntry(t *testing.T) {
	needRoot(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer unix.Umask(unix.Umask(0))
	const n = 256
	for _, k := range callKinds {
		t.Run(k.name, func(t *testing.T) {
			got := float64(k.allocations(t, 2*n)-k.allocations(t, n)) / n
			t.Logf("%.3g of at most %d", got, k.allocs)
			if got > float64(k.allocs)+0.5 { // each 16th is the first of a slice, and maps grow
				t.Errorf("%.3g allocations an entry, they were %d", got, k.allocs)
			}
		})
	}
}

// allocations returns how often a batch of n entries allocates.
func (k *callKind) allocations(t *testing.T, n int) int64 {
	t.Helper()
	g := newRigIn(t, shm(t))
	g.e.cfg.UmaskZero = true
	batch := k.batch(g, n)
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o, err := j.Run(t.Context(), batch, nil)
	runtime.ReadMemStats(&after)
	must(t, err)
	wantFailures(t, o)
	return int64(after.Mallocs - before.Mallocs)
}
