package rig

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/coordinator"
)

// offer runs a coordinator, and its API once it leads.
func offer(ctx context.Context, b *bus.Bus, co *coordinator.Coordinator) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return co.Run(ctx) })
	g.Go(func() error {
		select {
		case <-co.Led():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		stop, err := api.Serve(ctx, b, co)
		if err != nil {
			return err
		}
		defer stop()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	return g.Wait()
}
