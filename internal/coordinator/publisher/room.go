package publisher

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

const (
	// roomWait paces looks at a shard stream that is full.
	roomWait = 100 * time.Millisecond
	// messageRoom is what a message takes in its stream besides its data.
	messageRoom = 512
)

// room keeps a tenth of the shard stream free of shards: a cursor must find room
// at any time, or a leader could not take a job over.
type room struct {
	mu       sync.Mutex
	reserved uint64 // by batches that are being published
}

// forShards is how much of a stream of so many bytes shards may take.
func forShards(maxBytes int64) uint64 { return uint64(maxBytes) - uint64(maxBytes)/10 }

// batchBytes is the most that a batch of several shards has: a stream that is
// almost full takes a small one.
func (p *Publisher) batchBytes() int {
	return int(forShards(p.cfg.QueueBytes) / 4)
}

// sizeOf is what a message takes in its stream, or a little more.
func sizeOf(m bus.Message) int { return len(m.Data) + messageRoom }

// reserve reserves room for a batch of shards. Without room the error wraps
// bus.ErrFull. Otherwise the caller publishes the batch and then calls the returned
// function: from then on the stream itself counts the bytes.
func (p *Publisher) reserve(ctx context.Context, size int) (func(), error) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	// With the lock held: what is given back is in the stream by then.
	at, err := p.cfg.Bus.StreamState(ctx, protocol.StreamShards)
	if err != nil {
		return nil, err
	}
	taken, most := at.Bytes+p.room.reserved, forShards(at.MaxBytes)
	if at.MaxBytes > 0 && taken+uint64(size) > most {
		hint := "workers make room"
		if uint64(size) > most {
			hint = "give the coordinator more with --queue-bytes"
		}
		return nil, &fault.Error{
			Kind: fault.Exhausted, Op: "publish shards", Hint: hint,
			Err: fmt.Errorf("%w: shards take %d of %d bytes, and %d more are to come", bus.ErrFull, taken, most, size),
		}
	}
	p.room.reserved += uint64(size)
	return func() {
		p.room.mu.Lock()
		defer p.room.mu.Unlock()
		p.room.reserved -= uint64(size)
	}, nil
}
