package worker

import (
	"context"
	"time"

	"github.com/fsbackup/fsbackup/internal/engine"
)

// executor is what a worker needs of the engine. Its methods may be called
// concurrently.
type executor interface {
	// Open opens the roots of a job and holds them until Close.
	Open(spec engine.JobSpec) (roots, error)
	// Abilities returns what the process may do. It does not change.
	Abilities() engine.Abilities
	// Hung returns the operations without progress for the given time, the oldest
	// first, and gives their places to others.
	Hung(patience time.Duration) []engine.Operation
	// Copying returns files of at least size bytes that are being copied, the largest
	// first and at most so many.
	Copying(size int64, most int) []engine.File
	// Threads returns how many entries at once are found worthwhile just now.
	Threads() int
}

// roots are the two roots of a job. No call may be under way when Close is called.
type roots interface {
	Roots() (src, dst engine.RootInfo)
	CheckRoots() error
	// Mounts returns what is mounted beneath the roots, sorted by path.
	Mounts() (src, dst []engine.Mount, err error)
	PutNonce(nonce string) error
	// CreatesAs returns to whom belongs what is made in the destination.
	CreatesAs(nonce string) (owner string, err error)
	HasNonce(nonce string) (bool, error)
	RemoveNonce(nonce string) error
	Run(ctx context.Context, b *engine.Batch, g engine.Guard) (*engine.Outcome, error)
	Sync(ctx context.Context) error
	Close() error
}

// engineExecutor is the executor on file systems.
type engineExecutor struct{ e *engine.Engine }

func (x engineExecutor) Open(spec engine.JobSpec) (roots, error) {
	j, err := x.e.OpenJob(spec)
	if err != nil {
		return nil, err
	}
	return j, nil
}

func (x engineExecutor) Hung(patience time.Duration) []engine.Operation { return x.e.Hung(patience) }

func (x engineExecutor) Copying(size int64, most int) []engine.File { return x.e.Copying(size, most) }

func (x engineExecutor) Threads() int { return x.e.Threads() }

func (x engineExecutor) Abilities() engine.Abilities { return engine.ProcessAbilities() }
