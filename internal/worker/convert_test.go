package worker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestPriorAttemptsAreTheNewest(t *testing.T) {
	t.Parallel()
	read := func(header string) []engine.AttemptID {
		return priorAttempts(map[string][]string{protocol.HeaderPrior: {header}})
	}
	want := []engine.AttemptID{{Sequence: 7, Delivery: 1}, {Sequence: 7, Delivery: 2}, {Sequence: 9, Delivery: 1}}
	for _, header := range []string{"7.2,9.1", "rubbish,7.2,,8.-1,9.1", "7.2,8.0,9.1", "7.2,8.99999999999,9.1"} {
		if diff := cmp.Diff(want, read(header)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", header, diff)
		}
	}
	if got := priorAttempts(nil); got != nil {
		t.Errorf("without a header: %v", got)
	}
	hostile := read(strings.Repeat("5.65535,", 10_000) + "6.65535,7.2")
	if n := len(hostile); n != maxPrior || cap(hostile) > 2*maxPrior {
		t.Errorf("%d attempts, room for %d", n, cap(hostile))
	}
	if hostile[0].Sequence != 6 || hostile[maxPrior-1] != (engine.AttemptID{Sequence: 7, Delivery: 2}) || hostile[maxPrior-3] != (engine.AttemptID{Sequence: 6, Delivery: 65535}) {
		t.Errorf("%v", hostile)
	}
}
