package worker

import (
	"log/slog"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

const (
	// idleJobs is how many jobs a worker keeps open besides those it works for,
	// and idleFor how long: an open job keeps its file systems from being unmounted.
	idleJobs = 16
	idleFor  = time.Minute
)

// jobs owns the roots that the worker holds. Safe for concurrent use.
type jobs struct {
	now clock
	log *slog.Logger

	syncing sync.WaitGroup // goroutines that sync; added to with mu held

	mu     sync.Mutex
	byID   map[protocol.JobID]*openJob // guarded by mu
	closed bool                        // no sync begins any more; guarded by mu
}

// openJob is a job whose roots this worker holds, or is opening.
type openJob struct {
	id    protocol.JobID
	syncs syncGroup

	opening chan struct{} // capacity 1: full while the roots are being opened and proven
	roots   roots         // nil until they are; written by the one that fills opening, before it has the job for use
	nonce   string        // likewise
	mounts  *rootMounts   // likewise; nil = the job's are not known

	users int           // attempts and syncs that use it; guarded by jobs.mu
	ended bool          // closed when the last user releases it; guarded by jobs.mu
	idle  time.Duration // boot time at which the last user released it; guarded by jobs.mu
}

func newJobs(now clock, log *slog.Logger) *jobs {
	return &jobs{now: now, log: log, byID: map[protocol.JobID]*openJob{}}
}

// hold returns the entry of a job, whose roots may not be open yet. They stay open
// until it is released.
func (s *jobs) hold(id protocol.JobID) *openJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.byID[id]
	if j == nil {
		j = &openJob{id: id, opening: make(chan struct{}, 1)}
		s.byID[id] = j
	}
	j.users++
	return j
}

// release ends a hold. The last one closes a job that has ended.
func (s *jobs) release(j *openJob) {
	s.mu.Lock()
	j.users--
	j.idle = s.now()
	unused := j.users == 0 && (j.ended || j.roots == nil)
	if unused {
		s.forget(j)
	}
	s.mu.Unlock()
	if unused {
		s.close(j)
	}
}

// end has a job closed as soon as nobody uses it, so that whoever waits for its end
// may unmount its file systems. It may be opened again: by its cleanup.
func (s *jobs) end(id protocol.JobID) {
	s.mu.Lock()
	j := s.byID[id]
	if j != nil {
		j.ended = true
		if j.users > 0 {
			j = nil
		} else {
			s.forget(j)
		}
	}
	s.mu.Unlock()
	s.close(j)
}

// closeIdle closes jobs that nobody has used for idleFor, and of the others that
// nobody uses all but idleJobs.
func (s *jobs) closeIdle() {
	now := s.now()
	var out []*openJob
	s.mu.Lock()
	unused := 0
	for _, j := range s.byID {
		if j.users > 0 {
			continue
		}
		if unused++; now-j.idle > idleFor || unused > idleJobs {
			s.forget(j)
			out = append(out, j)
		}
	}
	s.mu.Unlock()
	for _, j := range out {
		s.close(j)
	}
}

// closeAll closes all jobs but those that somebody uses: attempts that were left
// behind close theirs when they return.
func (s *jobs) closeAll() {
	var out []*openJob
	s.mu.Lock()
	for _, j := range s.byID {
		if j.ended = true; j.users == 0 {
			s.forget(j)
			out = append(out, j)
		}
	}
	s.mu.Unlock()
	for _, j := range out {
		s.close(j)
	}
}

// noMoreSyncs has no sync begin from now on. After it syncing may be waited for.
func (s *jobs) noMoreSyncs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// forget takes a job out. It is called with mu held.
func (s *jobs) forget(j *openJob) {
	if s.byID[j.id] == j {
		delete(s.byID, j.id)
	}
}

// close gives the roots of a job back that was taken out; nil is nothing.
func (s *jobs) close(j *openJob) {
	if j == nil || j.roots == nil {
		return
	}
	if err := j.roots.Close(); err != nil {
		s.log.Debug("close the roots of a job", "job", j.id, "error", err)
	}
}
