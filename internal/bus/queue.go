package bus

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Queued returns the subjects of the shard stream that match filter and have a
// message: what waits for a worker, what one has, and what nobody will ever get.
func (b *Bus) Queued(ctx context.Context, filter string) (map[string]bool, error) {
	s, err := b.js.Stream(ctx, protocol.StreamShards)
	if err != nil {
		return nil, classify("read stream", protocol.StreamShards, err)
	}
	i, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, classify("list", filter, err)
	}
	out := make(map[string]bool, len(i.State.Subjects))
	for subject := range i.State.Subjects {
		out[subject] = true
	}
	return out, nil
}
