package worker

import "context"

// syncGroup lets the attempts of a job share syncs: one costs the same for one
// attempt and for many. Jobs have groups of their own and so do not wait for each
// other, since a sync may hang. Its fields are guarded by jobs.mu.
//
// The kernel reports a write-back error once for each descriptor: after a sync that
// failed the next one works, though what the first was to cover is lost. Nobody can
// tell which attempt wrote what was lost. So a failed sync begins a new generation,
// and every attempt of an older one goes back: those that asked for it, those that
// wait for the next, and those that still execute, since they may have written
// before it ended. That holds with every way of syncing: a file that was synced by
// itself (--sync file) has its name from a directory that was not.
//
// Other jobs need no word of it. Each holds a descriptor of its own, opened before
// its first write (engine.Job), and Linux (5.8 and later) tells each descriptor of a
// file system of each write-back error.
type syncGroup struct {
	under      bool           // a goroutine syncs
	waiting    []chan<- error // of attempts that wait for the next sync; capacity 1 each
	generation uint64         // how many syncs have failed
	lost       error          // why the last of them did
}

// generation returns the generation of what a job writes from now on.
func (s *jobs) generation(j *openJob) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return j.syncs.generation
}

// durable waits until what an attempt wrote since it asked for its generation is
// durable: a sync that began after the call has worked, and none has failed since. It
// returns early, with the cause, if ctx ends. After an error the attempt must go back.
func (s *jobs) durable(ctx context.Context, j *openJob, generation uint64) error {
	done := make(chan error, 1)
	s.enqueue(context.WithoutCancel(ctx), j, generation, done)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enqueue has the next sync of the job report to done. Where none can help, or none
// begins any more, done gets its error at once.
func (s *jobs) enqueue(ctx context.Context, j *openJob, generation uint64, done chan<- error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		done <- ErrShutdown
		return
	case generation != j.syncs.generation:
		done <- j.syncs.lost
		return
	}
	j.syncs.waiting = append(j.syncs.waiting, done)
	if !j.syncs.under {
		j.syncs.under = true
		j.users++
		s.syncing.Go(func() { s.syncWhileAsked(ctx, j) })
	}
}

// syncWhileAsked syncs until no attempt waits. It has the job held, and releases it
// before the last group hears: an attempt that goes on may be the one that closes it.
func (s *jobs) syncWhileAsked(ctx context.Context, j *openJob) {
	for group := s.nextGroup(j); len(group) > 0; {
		err := j.roots.Sync(ctx)
		if err != nil {
			group = append(group, s.failed(j, err)...)
		}
		next := s.nextGroup(j)
		if len(next) == 0 {
			s.release(j)
		}
		for _, done := range group {
			done <- err
		}
		group = next
	}
}

// nextGroup takes the attempts that wait. With none the syncing ends.
func (s *jobs) nextGroup(j *openJob) []chan<- error {
	s.mu.Lock()
	defer s.mu.Unlock()
	group := j.syncs.waiting
	j.syncs.waiting = nil
	j.syncs.under = len(group) > 0
	return group
}

// failed begins a new generation. It returns the attempts that wait for the next sync:
// it would not help them.
func (s *jobs) failed(j *openJob, err error) []chan<- error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j.syncs.generation++
	j.syncs.lost = err
	waiting := j.syncs.waiting
	j.syncs.waiting = nil
	return waiting
}
