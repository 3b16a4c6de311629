package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// MissingFromLayout returns the names of the streams that EnsureLayout makes, also
// of those behind buckets, and that are not there.
func (b *Bus) MissingFromLayout(ctx context.Context) ([]string, error) {
	var out []string
	for _, name := range []string{
		protocol.StreamShards, protocol.StreamResults, protocol.StreamFailures,
		"KV_" + protocol.BucketJobs, "KV_" + protocol.BucketLease, "OBJ_" + protocol.BucketObjects,
	} {
		_, err := b.js.Stream(ctx, name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			out = append(out, name)
		case err != nil:
			return nil, classify("read stream", name, err)
		}
	}
	return out, nil
}
