package main

import (
	"context"
	"fmt"
	"io"
	"runtime/pprof"
	"time"
)

// shutdownTimeout is how long the process may take to end once it was told to.
const shutdownTimeout = 20 * time.Second

// watch calls exit with a dump of all goroutines if the returned function is not
// called within d of the end of ctx.
func watch(ctx context.Context, d time.Duration, stderr io.Writer, exit func()) func() {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ended:
		case <-t.C:
			fmt.Fprintf(stderr, "coordinator: has not ended %s after %v; what it is doing:\n", d, context.Cause(ctx))
			_ = pprof.Lookup("goroutine").WriteTo(stderr, 2) // nobody else could be told
			exit()
		}
	})
	return func() { stop(); close(ended) }
}
