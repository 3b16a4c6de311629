package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestACoordinatorThatDoesNotEndIsEnded(t *testing.T) {
	t.Parallel()
	for _, stuck := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var out bytes.Buffer
			exited := false
			ctx, cancel := context.WithCancelCause(t.Context())
			done := watch(ctx, time.Minute, &out, func() { exited = true })
			cancel(errors.New("lease lost"))
			time.Sleep(59 * time.Second) // of the bubble's clock
			if !stuck {
				done()
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if exited != stuck || strings.Contains(out.String(), "lease lost") != stuck || strings.Contains(out.String(), "TestACoordinatorThatDoesNotEndIsEnded") != stuck {
				t.Errorf("stuck: %v, exited: %v, said: %s", stuck, exited, out.String())
			}
		})
	}
}
