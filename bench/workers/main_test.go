package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestAFewWorkersJoinRestAndShareAJob(t *testing.T) {
	var out, errs bytes.Buffer
	code := start(t.Context(), []string{"-within", "-workers", "20", "-shards", "500", "-idle", "10ms"}, &out, &errs)
	t.Log(out.String())
	if code != 0 || !strings.Contains(out.String(), "20 workers with 80 slots have joined") || !strings.Contains(out.String(), "500 shards in") {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}
