package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestAShortRunIsExactAndStaysInItsWindow(t *testing.T) {
	var out, errs bytes.Buffer
	code := start(t.Context(), []string{"-within", "-entries", "60000", "-per-file", "5000", "-shard-entries", "50", "-workers", "3", "-slots", "2", "-every", "100ms"}, &out, &errs)
	t.Log(out.String())
	if code != 0 || !strings.Contains(out.String(), "job completed: 60000 entries") {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}
