package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/micro"
)

// Endpoint answers one kind of request of a service; nil is no answer.
type Endpoint struct {
	Name   string
	Handle func(ctx context.Context, request []byte) []byte
}

// serveWithin is how long the server may take to note the endpoints.
const serveWithin = 10 * time.Second

// Serve offers a NATS micro service whose endpoints are on prefix.NAME until the
// returned function is called. Each request runs in its own goroutine.
//
// All who serve get each request: one that is frozen, and that NATS still takes
// for alive, must not be the only one to get it.
func (b *Bus) Serve(ctx context.Context, name, version, prefix string, endpoints []Endpoint) (func(), error) {
	svc, err := micro.AddService(b.nc, micro.Config{Name: name, Version: version, Description: "fsbackup control API"})
	if err != nil {
		return nil, classify("offer service", name, err)
	}
	stop := func() {
		if err := svc.Stop(); err != nil {
			b.log.Debug("stop service", "service", name, "error", err)
		}
	}
	g := svc.AddGroup(prefix)
	for _, e := range endpoints {
		h := micro.HandlerFunc(func(r micro.Request) {
			go func() {
				stop := b.signs(r, e.Name)
				out := e.Handle(ctx, r.Data())
				stop()
				if out == nil {
					return
				}
				if err := r.Respond(out); err != nil {
					b.log.Debug("answer a request", "endpoint", e.Name, "error", err)
				}
			}()
		})
		if err := g.AddEndpoint(e.Name, h, micro.WithEndpointQueueGroupDisabled()); err != nil {
			stop()
			return nil, classify("offer endpoint", e.Name, err)
		}
	}
	// When it returns, whoever asks from another connection is answered.
	if err := b.nc.FlushTimeout(serveWithin); err != nil {
		stop()
		return nil, classify("offer service", name, err)
	}
	return stop, nil
}
