package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// newID returns an identifier that sorts by time.
func newID(now time.Time) string {
	return strings.ToLower(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
}

// Submit creates a job, once: repeated with the same ID it changes nothing. It
// answers with the files that this coordinator cannot read as the submitter
// described them; the submitter uploads these and submits again.
func (c *Coordinator) Submit(ctx context.Context, q protocol.SubmitRequest) (protocol.SubmitReply, error) {
	if err := c.ready(); err != nil {
		return protocol.SubmitReply{}, err
	}
	if q.Wire != protocol.WireMajor {
		return protocol.SubmitReply{}, fault.New(fault.Invalid, "client speaks wire version %d, this coordinator %d; run the same major release on both", q.Wire, protocol.WireMajor)
	}
	if _, err := protocol.ParseJobID(string(q.ID)); err != nil {
		return protocol.SubmitReply{}, err
	}
	if err := q.Spec.Normalize(); err != nil {
		return protocol.SubmitReply{}, err
	}
	known := false
	var refused error
	c.view(func(t state.Tx) {
		_, known = t.Job(q.ID)
		refused = allowedSomewhere(t, q.Spec)
	})
	if known {
		return protocol.SubmitReply{Job: q.ID}, nil
	}
	if refused != nil {
		return protocol.SubmitReply{}, refused
	}
	c.placing.RLock()
	defer c.placing.RUnlock()
	recs, missing, err := c.place(ctx, 0, q.Files)
	if err != nil {
		return protocol.SubmitReply{}, err
	}
	metas, missingMetas, err := c.placeMetas(ctx, q.Metas)
	if err != nil {
		return protocol.SubmitReply{}, err
	}
	if missing = append(missing, missingMetas...); len(missing) > 0 {
		return protocol.SubmitReply{Job: q.ID, Missing: missing}, nil
	}
	rec := protocol.JobRecord{ID: q.ID, ResultsAfter: c.foldedUpTo(), Spec: q.Spec, State: protocol.StateQueued, Sealed: q.Seal, Files: uint32(len(recs)), Created: c.now(), Metas: metas}
	if err := c.storeFiles(ctx, q.ID, recs); err != nil {
		return protocol.SubmitReply{}, err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return protocol.SubmitReply{}, fault.New(fault.Internal, "encode record of job %s: %w", q.ID, err)
	}
	rev, err := c.swapRecord(ctx, q.ID, rec, data, 0)
	if err != nil {
		return protocol.SubmitReply{}, err
	}
	row := newRow(rec, rev)
	c.showFiles(q.ID, recs, &row)
	c.log.Info("job submitted", "job", q.ID, "source", q.Spec.Source, "destination", q.Spec.Destination, "pool", q.Spec.Pool, "files", len(recs))
	c.startRunner(q.ID)
	return protocol.SubmitReply{Job: q.ID, Created: true}, nil
}

// allowedSomewhere refuses roots that no live worker of the pool may touch. Where
// the pool is empty it is too early to tell.
func allowedSomewhere(t state.Tx, spec protocol.JobSpec) error {
	live := 0
	var allow []string
	for w := range t.Workers() {
		if !w.Takes() || w.Beat.Pool != spec.Pool {
			continue
		}
		live++
		within := func(p string) bool {
			return slices.ContainsFunc(w.Beat.Allow, func(root string) bool { return contains(root, p) })
		}
		if within(spec.Source) && within(spec.Destination) {
			return nil
		}
		allow = append(allow, w.Beat.Allow...)
	}
	if live == 0 {
		return nil
	}
	slices.Sort(allow)
	return &fault.Error{
		Kind: fault.Denied, Op: "submit a job from " + strconv.Quote(spec.Source) + " to", Path: spec.Destination,
		Err:  fmt.Errorf("no worker of pool %q may use both; allowed are %s", spec.Pool, strings.Join(slices.Compact(allow), ", ")),
		Hint: "start workers with --allow for them",
	}
}

// Append adds control files to a job that is not sealed. Repeated, it changes
// nothing.
func (c *Coordinator) Append(ctx context.Context, q protocol.AppendRequest) (protocol.SubmitReply, error) {
	if err := c.ready(); err != nil {
		return protocol.SubmitReply{}, err
	}
	var rec protocol.JobRecord
	known := false
	c.view(func(t state.Tx) {
		j, ok := t.Job(q.Job)
		rec, known = j.Record, ok
	})
	switch {
	case !known:
		return protocol.SubmitReply{}, noSuchJob(q.Job)
	case rec.State.Final() || rec.State == protocol.StateCancelling:
		return protocol.SubmitReply{}, alreadyEnded(rec)
	case rec.Files >= q.From+uint32(len(q.Files)) && (rec.Sealed || !q.Seal):
		return protocol.SubmitReply{Job: q.Job}, nil
	case rec.Sealed:
		return protocol.SubmitReply{}, fault.New(fault.Invalid, "job %s is sealed: it takes no more control files", q.Job)
	case q.From != rec.Files && len(q.Files) > 0:
		return protocol.SubmitReply{}, fault.New(fault.Invalid, "job %s has %d control files, the next cannot be number %d", q.Job, rec.Files, q.From)
	}
	c.placing.RLock()
	defer c.placing.RUnlock()
	recs, missing, err := c.place(ctx, rec.Files, q.Files)
	if err != nil || len(missing) > 0 {
		return protocol.SubmitReply{Job: q.Job, Missing: missing}, err
	}
	if err := c.storeFiles(ctx, q.Job, recs); err != nil {
		return protocol.SubmitReply{}, err
	}
	var row state.Job
	c.view(func(t state.Tx) { row, _ = t.Job(q.Job) })
	c.showFiles(q.Job, recs, &row)
	err = c.save(ctx, q.Job, func(r *protocol.JobRecord) {
		r.Files = rec.Files + uint32(len(recs))
		r.Sealed = r.Sealed || q.Seal
	})
	return protocol.SubmitReply{Job: q.Job}, err
}

// place finds where each submitted control file can be read.
func (c *Coordinator) place(ctx context.Context, from uint32, files []protocol.FileRef) (recs []protocol.FileRecord, missing []string, err error) {
	for i, ref := range files {
		if err := ref.Check(); err != nil {
			return nil, nil, err
		}
		rec := protocol.FileRecord{Index: from + uint32(i), Ref: ref, State: protocol.FilePending}
		if ref.Digest != "" && !c.sees(ref) {
			if rec.Object = protocol.FileObject(ref.Digest); rec.Object != "" {
				has, err := c.objects.Has(ctx, rec.Object)
				if err != nil {
					return nil, nil, err
				}
				if !has {
					missing = append(missing, ref.Path)
				}
			}
		}
		recs = append(recs, rec)
	}
	return recs, missing, nil
}

// placeMetas returns the meta files that must be taken from the object bucket:
// none if all of them are here.
func (c *Coordinator) placeMetas(ctx context.Context, metas []protocol.FileRef) (uploaded []protocol.FileRef, missing []string, err error) {
	here := true
	for _, ref := range metas {
		if err := ref.Check(); err != nil {
			return nil, nil, err
		}
		here = here && (ref.Digest == "" || c.sees(ref))
	}
	if here {
		return nil, nil, nil
	}
	for _, ref := range metas {
		has, err := c.objects.Has(ctx, protocol.FileObject(ref.Digest))
		if err != nil {
			return nil, nil, err
		}
		if !has {
			missing = append(missing, ref.Path)
		}
	}
	return metas, missing, nil
}

// sees reports whether this coordinator reads the same bytes at a file's path.
func (c *Coordinator) sees(ref protocol.FileRef) bool {
	fi, err := os.Stat(ref.Path)
	if err != nil || fi.Size() != ref.Size {
		return false
	}
	got, err := Digest(ref.Path)
	return err == nil && got == ref.Digest
}

func (c *Coordinator) storeFiles(ctx context.Context, job protocol.JobID, recs []protocol.FileRecord) error {
	for _, rec := range recs {
		data, err := json.Marshal(rec)
		if err != nil {
			return fault.New(fault.Internal, "encode record of %q: %w", rec.Ref.Path, err)
		}
		if err := c.jobs.Put(ctx, protocol.FileKey(job, rec.Index), data); err != nil {
			return err
		}
	}
	return nil
}

// showFiles makes control files visible, together with their job's row.
func (c *Coordinator) showFiles(job protocol.JobID, recs []protocol.FileRecord, row *state.Job) {
	c.update(func(t state.Tx) {
		if cur, ok := t.Job(job); ok {
			row = &cur
		}
		for _, rec := range recs {
			row.HasCopy = row.HasCopy || rec.Ref.Phase == protocol.PhaseCopy
			t.PutFile(state.File{Job: string(job), Index: rec.Index, Record: rec})
		}
		t.PutJob(*row)
	})
}

// ready returns an error unless this coordinator leads and has recovered.
func (c *Coordinator) ready() error {
	recovered := false
	select {
	case <-c.led:
		recovered = true
	default:
	}
	name := c.leader.Load()
	switch {
	case c.leads() && recovered:
		return nil
	case c.leads():
		return fault.New(fault.Transient, "coordinator %s is about to lead, it still reads what is stored", c.cfg.Name)
	case recovered || name == nil || *name == "":
		return fault.New(fault.Transient, "coordinator %s is %w any more, or not yet", c.cfg.Name, api.ErrNotLeader)
	}
	return fault.New(fault.Transient, "coordinator %s is %w, %s is", c.cfg.Name, api.ErrNotLeader, *name)
}

// Cancel stops a job: queued shards are removed, running ones abandoned.
func (c *Coordinator) Cancel(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	err := c.ready()
	if err == nil {
		err = c.cancelJob(ctx, q.Job, "cancelled by request", false)
	}
	if err != nil {
		return protocol.JobView{}, err
	}
	return c.Job(ctx, q)
}

// Pause lets running shards end and publishes no more until Resume.
func (c *Coordinator) Pause(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return c.setPaused(ctx, q, true)
}

// Resume lets a paused job go on.
func (c *Coordinator) Resume(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return c.setPaused(ctx, q, false)
}

func (c *Coordinator) setPaused(ctx context.Context, q protocol.JobRequest, paused bool) (protocol.JobView, error) {
	if err := c.ready(); err != nil {
		return protocol.JobView{}, err
	}
	err := c.transition(ctx, q.Job, func(rec *protocol.JobRecord) error {
		if rec.State.Final() || rec.State == protocol.StateCancelling {
			return alreadyEnded(*rec)
		}
		rec.Paused = paused
		return nil
	})
	if err != nil {
		return protocol.JobView{}, err
	}
	c.log.Info("job is paused or goes on", "job", q.Job, "paused", paused)
	c.publishEvent(q.Job, true)
	return c.Job(ctx, q)
}

// Drop forgets a job that has ended, with its results and failures.
func (c *Coordinator) Drop(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	v, err := c.Job(ctx, q)
	if err != nil {
		return v, err
	}
	if !v.State.Final() {
		return v, fault.Hinted(fault.Invalid, "cancel it first", "job %s is %s", q.Job, v.State)
	}
	if err := c.erase(ctx, q.Job, true); err != nil {
		return v, err
	}
	return v, c.sweepObjects(ctx)
}

// erase removes what streams hold of an ended job, and with record the job itself.
func (c *Coordinator) erase(ctx context.Context, id protocol.JobID, record bool) error {
	for stream, subject := range map[string]string{
		protocol.StreamResults:  protocol.JobResults(id),
		protocol.StreamFailures: protocol.JobFailures(id),
		protocol.StreamShards:   protocol.CursorSubject(id),
	} {
		if err := c.cfg.Bus.Purge(ctx, stream, subject, 0); err != nil {
			return err
		}
	}
	c.dropCheckpoint(ctx, id)
	if err := c.dropMarks(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir(id)); err != nil {
		return fmt.Errorf("remove the files of job %s: %w", id, err)
	}
	if !record {
		return nil
	}
	var keys []string
	err := c.jobs.Each(ctx, protocol.FileKeys(id), func(key string, _ []byte, _ uint64) error {
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range append(keys, protocol.JobKey(id)) {
		if err := c.jobs.Delete(ctx, k); err != nil {
			return err
		}
	}
	c.update(func(t state.Tx) { t.DropJob(id) })
	return nil
}
