package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// errNoMark says that this worker does not see what the job's first one left.
var errNoMark = errors.New("the job's mark is not there")

// openJob returns a job whose roots are open, allowed and proven. The caller
// releases it.
// For its cleanup a worker needs no more than the right roots.
func (w *Worker) openJob(ctx context.Context, id protocol.JobID, o *protocol.OptionsMsg, cleanup bool) (*openJob, error) {
	w.jobs.closeIdle()
	j := w.jobs.hold(id)
	err := w.openRoots(ctx, j, o, cleanup)
	if err != nil {
		w.jobs.release(j)
		return nil, err
	}
	return j, nil
}

// openRoots opens and proves the roots of a job that is held, unless they are. Of
// several attempts one does it, and the others wait.
func (w *Worker) openRoots(ctx context.Context, j *openJob, o *protocol.OptionsMsg, cleanup bool) error {
	select {
	case j.opening <- struct{}{}:
		defer func() { <-j.opening }()
	case <-ctx.Done(): // the one that opens may hang
		return context.Cause(ctx)
	}
	if j.roots != nil {
		return nil
	}
	source, destination, trim := string(o.GetSource()), string(o.GetDestination()), string(o.GetTrim())
	if err := w.allowed(source, destination); err != nil {
		return err
	}
	r, err := w.exec.Open(engine.JobSpec{
		ID: string(j.id), Source: source, Destination: destination, Trim: trim, WriteMeta: o.GetWriteMeta(),
		Restore: o.GetRestore(), Replace: engine.Replace(o.GetReplace()), SkipVanished: o.GetSkipVanished(), DeleteUnchecked: o.GetDeleteUnchecked(), CheckContents: o.GetCheckContents(),
		SpareDirs: o.GetSpareDirs(), DeleteEmpty: o.GetDeleteEmpty(), TakeChanging: o.GetTakeChanging(), FollowRootLinks: o.GetFollowRootLinks(), ExpectTargets: o.GetExpectTargets(),
		Sync: engine.Sync(o.GetSync()), Verify: engine.Verify(o.GetVerify()), ReadOnly: o.GetReadOnly(), CreateDest: true,
		// A link within what is allowed may lead out of it.
		Permit:  func(parent string) error { return w.allowed(filepath.Join(parent, filepath.Base(destination))) },
		Threads: int(o.GetThreads()), Memory: max(o.GetMemory(), 0),
	})
	if err != nil {
		return err
	}
	src, dst := r.Roots()
	err = w.allowed(src.Real, dst.Real)
	if err == nil {
		j.nonce, j.mounts, err = w.prove(ctx, j, r, trim, cleanup)
	}
	if err != nil {
		return errors.Join(err, r.Close())
	}
	j.roots = r
	w.member.noteFit(j.id)
	return nil
}

// allowed refuses roots outside the worker's --allow.
func (w *Worker) allowed(roots ...string) error {
	for _, p := range roots {
		// As they are written first: to look at a root may hang, and must not keep
		// a job that has nothing to do with it.
		ok := slices.ContainsFunc(w.cfg.Allow, func(root string) bool { return entry.Within(root, p) }) ||
			slices.ContainsFunc(w.cfg.Allow, func(root string) bool {
				real, err := filepath.EvalSymlinks(root)
				if errors.Is(err, fs.ErrNotExist) { // a destination that is yet to be made
					if real, err = filepath.EvalSymlinks(filepath.Dir(root)); err == nil {
						real = filepath.Join(real, filepath.Base(root))
					}
				}
				return err == nil && entry.Within(real, p)
			})
		if !ok {
			return &fault.Error{Kind: fault.Denied, Op: "use root", Path: p, Err: fmt.Errorf("worker %s allows only %s", w.cfg.Name, strings.Join(w.cfg.Allow, ", ")), Hint: "start workers with --allow for it"}
		}
	}
	return nil
}

// prove makes sure that this worker sees the roots that the job's first worker saw: the
// mark that it left in the destination root, and the same source root. It returns the
// mark's name, and what was mounted beneath the roots: attempts compare that. Except for
// a cleanup, the worker must be able to do what the first one is.
func (w *Worker) prove(ctx context.Context, j *openJob, r roots, trim string, cleanup bool) (string, *rootMounts, error) {
	src, dst := r.Roots()
	mounts, err := mountsOf(r)
	if err != nil {
		return "", nil, err
	}
	claim := protocol.RootsClaim{
		Mounts: mounts, Abilities: w.cfg.Abilities,
		Job: j.id, Worker: w.cfg.Name, SourceInode: src.Inode, SourceFS: strconv.FormatUint(src.FSType, 16),
		DestInode: dst.Inode, DestFS: strconv.FormatUint(dst.FSType, 16),
	}
	for {
		reply, err := w.claim(ctx, claim)
		if err != nil {
			return "", nil, err
		}
		switch {
		case reply.Error != "":
			return "", nil, fault.New(fault.Unavailable, "prove the roots of job %s: %s", j.id, reply.Error)
		case reply.Wait:
			if !bus.Sleep(ctx, 200*time.Millisecond) {
				return "", nil, context.Cause(ctx)
			}
			continue
		case reply.Write:
			claim.Removed = w.removeStale(r, reply.Stale)
			if err := r.PutNonce(reply.Nonce); err != nil {
				return "", nil, err
			}
			claim.Ready, claim.Creates = true, w.createsAs(j.id, r, reply.Nonce)
			continue
		}
		if reply.SourceInode != claim.SourceInode || reply.SourceFS != claim.SourceFS {
			return "", nil, &fault.Error{Kind: fault.Unavailable, Op: "prove source root", Path: src.Path, Err: fmt.Errorf("inode %d on file system %s is not the job's, inode %d on %s", claim.SourceInode, claim.SourceFS, reply.SourceInode, reply.SourceFS), Hint: "is the source mounted on worker " + w.cfg.Name + "?"}
		}
		if reply.ReadOnly {
			err := sameDestination(claim, reply, dst.Path)
			if err == nil {
				err = sameAbilities(j.id, w.cfg.Name, w.cfg.Abilities, "", reply)
			}
			return "", newRootMounts(reply.Mounts, trim), err
		}
		has, err := r.HasNonce(reply.Nonce)
		if err != nil {
			return "", nil, err
		}
		if !has {
			return "", nil, &fault.Error{Kind: fault.Unavailable, Op: "prove destination root", Path: dst.Path, Err: errNoMark, Hint: "is the destination mounted on worker " + w.cfg.Name + "?"}
		}
		if !cleanup {
			// Only now: nothing is made in what may be another file system.
			if claim.Creates == "" && reply.Creates != "" {
				claim.Creates = w.createsAs(j.id, r, reply.Nonce)
			}
			if err := sameAbilities(j.id, w.cfg.Name, w.cfg.Abilities, claim.Creates, reply); err != nil {
				return "", nil, err
			}
		}
		return reply.Nonce, newRootMounts(reply.Mounts, trim), nil
	}
}

// removeStale removes marks of ended jobs, and returns those that it has removed.
func (w *Worker) removeStale(r roots, nonces []string) (removed []string) {
	for _, nonce := range nonces {
		has, err := r.HasNonce(nonce)
		if err == nil && has {
			err = r.RemoveNonce(nonce)
		}
		switch {
		case err != nil:
			w.log.Warn("the mark of an ended job cannot be removed, the next job tries again", "nonce", nonce, "error", err)
		case has:
			removed = append(removed, nonce)
		}
	}
	return removed
}

// createsAs returns to whom belongs what this worker makes in the destination; "" where
// that cannot be told: shards will say why it can make nothing there.
func (w *Worker) createsAs(id protocol.JobID, r roots, nonce string) string {
	owner, err := r.CreatesAs(nonce)
	if err != nil {
		w.log.Debug("it cannot be told to whom belongs what is made in the destination", "job", id, "error", err)
	}
	return owner
}

// sameDestination is the proof where nothing may be left in the destination: the
// root's inode and type of file system are those that the first worker saw.
func sameDestination(is protocol.RootsClaim, want protocol.RootsReply, path string) error {
	if is.DestInode == want.DestInode && is.DestFS == want.DestFS {
		return nil
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "prove destination root", Path: path, Err: fmt.Errorf("inode %d on file system %s is not the job's, inode %d on %s", is.DestInode, is.DestFS, want.DestInode, want.DestFS), Hint: "is the destination mounted on worker " + is.Worker + "?"}
}

// claim asks the coordinator what this worker must find in a job's roots.
func (w *Worker) claim(ctx context.Context, c protocol.RootsClaim) (protocol.RootsReply, error) {
	var reply protocol.RootsReply
	data, err := rawjson.Marshal(c)
	if err != nil {
		return reply, fault.New(fault.Internal, "encode claim: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := w.queue.Request(ctx, protocol.SubjectRoots, data)
	if err != nil {
		return reply, &fault.Error{Kind: fault.Transient, Op: "prove the roots of job", Path: string(c.Job), Err: err}
	}
	if err := rawjson.Unmarshal(out, &reply); err != nil {
		return reply, fault.New(fault.Transient, "answer to the claim: %w", err)
	}
	return reply, nil
}
