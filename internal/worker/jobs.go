package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// openJob is a job whose roots this worker holds and has proven.
type openJob struct {
	eng   *engine.Job
	nonce string
	ended bool          // its last shard is done; guarded by the worker's mu
	used  time.Duration // boot time when it was last seen in use; guarded by the worker's mu

	once sync.Mutex // held while the roots are opened and proven
}

const (
	// idleJobs is how many jobs a worker keeps open besides those it works for,
	// and idleFor how long: an open job keeps its file systems from being unmounted.
	idleJobs = 16
	idleFor  = time.Minute
)

// openJob returns the job's roots, opened, allowed and proven.
func (w *Worker) openJob(ctx context.Context, id protocol.JobID, o *protocol.OptionsMsg) (*openJob, error) {
	w.mu.Lock()
	j := w.jobs[id]
	if j == nil {
		j = &openJob{}
		w.jobs[id] = j
	}
	w.mu.Unlock()
	j.once.Lock()
	defer j.once.Unlock()
	if j.eng != nil {
		return j, nil
	}
	w.closeIdle(id)
	if err := w.allowed(o.GetSource(), o.GetDestination()); err != nil {
		return nil, err
	}
	eng, err := w.cfg.Engine.OpenJob(engine.JobSpec{
		ID: string(id), Source: o.GetSource(), Destination: o.GetDestination(), Trim: o.GetTrim(), WriteMeta: o.GetWriteMeta(),
		Restore: o.GetRestore(), Replace: engine.Replace(o.GetReplace()), SkipVanished: o.GetSkipVanished(), DeleteUnchecked: o.GetDeleteUnchecked(), CheckContents: o.GetCheckContents(),
		Sync: engine.Sync(o.GetSync()), Verify: engine.Verify(o.GetVerify()), ReadOnly: o.GetReadOnly(), CreateDest: true,
		// A link within what is allowed may lead out of it.
		Permit:  func(parent string) error { return w.allowed(filepath.Join(parent, filepath.Base(o.GetDestination()))) },
		Threads: int(o.GetThreads()), Memory: max(o.GetMemory(), 0),
	})
	if err != nil {
		return nil, err
	}
	src, dst := eng.Roots()
	err = w.allowed(src.Real, dst.Real)
	if err == nil {
		j.nonce, err = w.prove(ctx, id, eng)
	}
	if err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	j.eng = eng
	w.noteFit(id)
	return j, nil
}

// allowed refuses roots outside the worker's --allow.
func (w *Worker) allowed(roots ...string) error {
	for _, p := range roots {
		// As they are written first: to look at a root may hang, and must not keep
		// a job that has nothing to do with it.
		ok := slices.ContainsFunc(w.cfg.Allow, func(root string) bool { return Within(root, p) }) ||
			slices.ContainsFunc(w.cfg.Allow, func(root string) bool {
				real, err := filepath.EvalSymlinks(root)
				return err == nil && Within(real, p)
			})
		if !ok {
			return &fault.Error{Kind: fault.Denied, Op: "use root", Path: p, Err: fmt.Errorf("worker %s allows only %s", w.cfg.Name, strings.Join(w.cfg.Allow, ", ")), Hint: "start workers with --allow for it"}
		}
	}
	return nil
}

// Within reports whether path p is root or lies in it.
func Within(root, p string) bool {
	root, p = path.Clean(root), path.Clean(p)
	return p == root || root == "/" || strings.HasPrefix(p, root+"/")
}

// prove makes sure that this worker sees the mounts that the job's first worker
// saw: the mark that it left in the destination root, and the same source root.
func (w *Worker) prove(ctx context.Context, id protocol.JobID, eng *engine.Job) (string, error) {
	src, dst := eng.Roots()
	claim := protocol.RootsClaim{Job: id, Worker: w.cfg.Name, SourceInode: src.Inode, SourceFS: strconv.FormatUint(src.FSType, 16),
		DestInode: dst.Inode, DestFS: strconv.FormatUint(dst.FSType, 16)}
	for {
		reply, err := w.claim(ctx, claim)
		if err != nil {
			return "", err
		}
		switch {
		case reply.Error != "":
			return "", fault.New(fault.Unavailable, "prove the roots of job %s: %s", id, reply.Error)
		case reply.Wait:
			if !bus.Sleep(ctx, 200*time.Millisecond) {
				return "", context.Cause(ctx)
			}
			continue
		case reply.Write:
			if err := eng.PutNonce(reply.Nonce); err != nil {
				return "", err
			}
			claim.Ready = true
			continue
		}
		if reply.SourceInode != claim.SourceInode || reply.SourceFS != claim.SourceFS {
			return "", &fault.Error{Kind: fault.Unavailable, Op: "prove source root", Path: src.Path, Err: fmt.Errorf("inode %d on file system %s is not the job's, inode %d on %s", claim.SourceInode, claim.SourceFS, reply.SourceInode, reply.SourceFS), Hint: "is the source mounted on worker " + w.cfg.Name + "?"}
		}
		if reply.ReadOnly {
			return "", sameDestination(claim, reply, dst.Path)
		}
		has, err := eng.HasNonce(reply.Nonce)
		if err != nil {
			return "", err
		}
		if !has {
			return "", &fault.Error{Kind: fault.Unavailable, Op: "prove destination root", Path: dst.Path, Err: errNoMark, Hint: "is the destination mounted on worker " + w.cfg.Name + "?"}
		}
		return reply.Nonce, nil
	}
}

// sameDestination is the proof where nothing may be left in the destination: the
// root's inode and type of file system are those that the first worker saw.
func sameDestination(is protocol.RootsClaim, want protocol.RootsReply, path string) error {
	if is.DestInode == want.DestInode && is.DestFS == want.DestFS {
		return nil
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "prove destination root", Path: path, Err: fmt.Errorf("inode %d on file system %s is not the job's, inode %d on %s", is.DestInode, is.DestFS, want.DestInode, want.DestFS), Hint: "is the destination mounted on worker " + is.Worker + "?"}
}

// errNoMark says that this worker does not see what the job's first one left.
var errNoMark = errors.New("the job's mark is not there")

func (w *Worker) claim(ctx context.Context, c protocol.RootsClaim) (protocol.RootsReply, error) {
	var reply protocol.RootsReply
	data, err := json.Marshal(c)
	if err != nil {
		return reply, fault.New(fault.Internal, "encode claim: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := w.cfg.Bus.Request(ctx, protocol.SubjectRoots, data)
	if err != nil {
		return reply, &fault.Error{Kind: fault.Transient, Op: "prove the roots of job", Path: string(c.Job), Err: err}
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return reply, fault.New(fault.Transient, "answer to the claim: %w", err)
	}
	return reply, nil
}

// closeIdle closes jobs that nothing runs of, beyond a few that are kept.
func (w *Worker) closeIdle(keep protocol.JobID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.jobs) <= idleJobs {
		return
	}
	busy := map[protocol.JobID]bool{keep: true}
	for a := range w.running {
		busy[a.run.Job] = true
	}
	for id, j := range w.jobs {
		if busy[id] || len(w.jobs) <= idleJobs {
			continue
		}
		if j.eng != nil {
			w.logIf("close job", j.eng.Close())
		}
		delete(w.jobs, id)
	}
}

// closeUnused closes jobs of which nothing has run for idleFor.
func (w *Worker) closeUnused(now time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for a := range w.running {
		if j := w.jobs[a.run.Job]; j != nil {
			j.used = now
		}
	}
	for id, j := range w.jobs {
		switch {
		case j.used == 0:
			j.used = now
		case now-j.used > idleFor:
			if j.eng != nil {
				w.logIf("close job", j.eng.Close())
			}
			delete(w.jobs, id)
		}
	}
}

// closeJob closes the job of its last shard a, before the result says that it is
// the last: whoever waits for the job's end may then unmount its file systems.
func (w *Worker) closeJob(a *attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.job.ended = true
	w.closeEnded(a.run.Job, a)
}

// closeEnded closes a job that has ended unless an attempt other than but still
// holds its roots: then it is called again when that one is gone. It is called
// with the lock held.
func (w *Worker) closeEnded(id protocol.JobID, but *attempt) {
	j := w.jobs[id]
	if j == nil || !j.ended {
		return
	}
	for other := range w.running {
		if other == but || other.run.Job != id {
			continue
		}
		select {
		case <-other.settled: // done, only not gone yet
		default:
			return
		}
	}
	delete(w.jobs, id)
	if j.eng != nil {
		w.logIf("close job", j.eng.Close())
	}
}

// closeJobs closes all jobs but those whose attempts were left behind: they close
// theirs when they return.
func (w *Worker) closeJobs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	busy := map[protocol.JobID]bool{}
	for a := range w.running {
		busy[a.run.Job] = true
	}
	for id, j := range w.jobs {
		if busy[id] {
			continue
		}
		if j.eng != nil {
			w.logIf("close job", j.eng.Close())
		}
		delete(w.jobs, id)
	}
}

// residentBytes is the process's resident memory; 0 where it cannot be read.
func residentBytes() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
