package publisher

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

func TestPriorAttemptsInAHeaderAreBounded(t *testing.T) {
	t.Parallel()
	var old []string
	for i := range 100 {
		old = append(old, fmt.Sprintf("%d.1", i))
	}
	found := orphan{200, map[string][]string{protocol.HeaderPrior: {strings.Join(old, ",")}}}
	got := strings.Split(priorAttempts(state.Open{Sequence: 200, Attempts: []state.Attempt{{Sequence: 200, Delivery: 3}}}, found), ",")
	if len(got) != maxPrior || got[maxPrior-1] != "200.4" || got[maxPrior-2] != "99.1" {
		t.Errorf("%d parts: %v", len(got), got)
	}
}
