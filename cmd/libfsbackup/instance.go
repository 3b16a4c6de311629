package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// The statuses of the interface.
const (
	inProgress = 2
	failed     = 3
)

const (
	// stopWithin is how long DestroyBackupInst waits for work to stop; what then
	// still hangs in a system call ends in the background.
	stopWithin = 900 * time.Millisecond
	// stallDefault is after how long without a chance to go on a job within the
	// process fails: nobody but the caller could see that it waits. On a cluster
	// there is no limit: people see it there.
	stallDefault = 10 * time.Minute
)

// instance is one CreateBackupInst. Its methods may be called concurrently.
type instance struct {
	lib   *library
	log   *slog.Logger
	phase protocol.Phase

	mu      sync.Mutex // guards what follows
	spec    protocol.JobSpec
	meta    string // "" = none was given
	files   []protocol.FileRef
	headers announced // of files
	stall   time.Duration
	stalled bool          // stall was set by option
	busy    bool          // Start is under way
	refused error         // why the last Start failed
	run     *run          // nil before a successful Start
	decided chan struct{} // closed when run, refused or gone is set, and made anew by the next Start
	gone    bool          // it was destroyed
}

// announced is what headers say of what there is to do.
type announced struct{ dirs, files, bytes uint64 }

// run is an instance's job.
type run struct {
	i        *instance
	id       protocol.JobID
	spec     protocol.JobSpec
	files    client.Files
	stall    time.Duration // 0 = no limit
	on       *backend
	stop     context.CancelCauseFunc // stops following, not the job
	finished chan struct{}           // closed when the status is final

	mu        sync.Mutex // guards what follows
	submitted bool
	view      protocol.JobView
	err       error  // why there is no job, or nothing more is known of it
	stopping  string // why it is being cancelled
	lost      string // why the cluster cannot be asked now
}

// newInstance checks what CreateBackupInst was given.
func newInstance(l *library, source, destination, meta string, phase int, writeMeta bool) (*instance, error) {
	p := protocol.Phase(phase)
	if phase < int(protocol.PhaseCopy) || phase > int(protocol.PhaseDir) {
		return nil, fault.New(fault.Invalid, "phase %d is none of BACKUP_PHASE_COPY 1, DELETE 2, HARDLINK 3, DIR 4", phase)
	}
	if meta != "" && !path.IsAbs(meta) {
		return nil, fault.New(fault.Invalid, "metaPath %q is not an absolute path", meta)
	}
	spec := protocol.JobSpec{
		Source: source, Destination: destination, Meta: meta, Name: "libfsbackup " + p.String(), WriteMeta: writeMeta,
		// As in the reference: the caller orders its instances itself, and entries
		// that fail are figures.
		AllowOverlap: true, MaxFailures: -1,
		Threads: defaultThreads, Memory: defaultMemory,
	}
	if spec.Meta == "" {
		spec.Meta = "/"
	}
	probe := spec
	if err := probe.Normalize(); err != nil {
		return nil, err
	}
	return &instance{lib: l, log: l.log, phase: p, spec: spec, meta: meta, decided: make(chan struct{})}, nil
}

// needsMeta reports whether entries of the phase have records.
func needsMeta(p protocol.Phase) bool { return p == protocol.PhaseCopy || p == protocol.PhaseHardlink }

// errNoMeta says what the phases with records lack.
var errNoMeta = fault.New(fault.Invalid, "metaPath is missing: copy and hardlink control files need the directory of their meta files")

// configure runs f unless Start was called.
func (i *instance) configure(f func() error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.run != nil || i.busy {
		return fault.New(fault.Invalid, "the instance has been started")
	}
	return f()
}

func (i *instance) threads(read, write int) error {
	return i.configure(func() error {
		if read < 1 || write < 1 {
			return fault.New(fault.Invalid, "%d read and %d write threads: both must be at least 1", read, write)
		}
		// An entry that is copied is read and written at the same time: as many in
		// flight keep both limits.
		i.spec.Threads = min(read, write, localThreads)
		return nil
	})
}

func (i *instance) memory(bytes int) error {
	return i.configure(func() error {
		switch {
		case bytes == -1:
			i.spec.Memory = defaultMemory
		case bytes < 1:
			return fault.New(fault.Invalid, "%d bytes of memory: give a positive number, or -1 for the default", bytes)
		default:
			i.spec.Memory = int64(bytes)
		}
		return nil
	})
}

// enqueue adds a control file of the instance's phase.
func (i *instance) enqueue(file string) error {
	return i.configure(func() error {
		if !path.IsAbs(file) {
			return fault.New(fault.Invalid, "the control file's path %q is not absolute", file)
		}
		fi, err := os.Stat(file)
		if err == nil && !fi.Mode().IsRegular() {
			err = errors.New("it is not a regular file")
		}
		if err != nil {
			if pe, ok := errors.AsType[*os.PathError](err); ok {
				err = pe.Err
			}
			return &fault.Error{Kind: fault.KindOf(err), Op: "read control file", Path: file, Err: err}
		}
		kind, err := controlfile.Detect(file)
		if err != nil {
			return err
		}
		// Kinds are numbered as the phases are.
		if p := protocol.Phase(kind); p != i.phase {
			return fault.New(fault.Invalid, "%q is a %s control file, the instance is for %s", file, kind, i.phase)
		}
		if r, err := controlfile.Open(file, kind); err == nil { // otherwise the job refuses it
			h := r.Header()
			i.headers.dirs, i.headers.files, i.headers.bytes = i.headers.dirs+h.Dirs, i.headers.files+h.Files, i.headers.bytes+h.Bytes
			_ = r.Close() // read only
		}
		i.files = append(i.files, protocol.FileRef{Path: file, Phase: i.phase})
		return nil
	})
}

// setOption sets one of our own options.
func (i *instance) setOption(name, value string) error {
	return i.configure(func() error {
		spec := i.spec
		flag := func(p *bool) error {
			if value != "0" && value != "1" {
				return fault.New(fault.Invalid, "option %s must be 0 or 1, not %q", name, value)
			}
			*p = value == "1"
			return nil
		}
		number := func(least, most int64) (int64, error) {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < least || n > most {
				return 0, fault.New(fault.Invalid, "option %s must be a number from %d to %d, not %q", name, least, most, value)
			}
			return n, nil
		}
		var n int64
		var err error
		stall, stalled := i.stall, i.stalled
		switch name {
		case "fail_on_entry_failures":
			var on bool
			if err = flag(&on); err == nil {
				spec.MaxFailures = -1
				if on {
					spec.MaxFailures = 0
				}
			}
		case "max_failures":
			spec.MaxFailures, err = number(-1, 1<<62)
		case "fail_fast":
			err = flag(&spec.FailFast)
		case "restore":
			err = flag(&spec.Restore)
		case "delete_unchecked":
			err = flag(&spec.DeleteUnchecked)
		case "replace":
			spec.Replace = value
		case "vanished":
			spec.Vanished = value
		case "sync":
			spec.Sync = value
		case "verify":
			spec.Verify = value
		case "trim":
			spec.Trim = value
		case "name":
			spec.Name = value
		case "pool":
			spec.Pool = value
		case "priority":
			n, err = number(-4, 4)
			spec.Priority = int(n)
		case "stall_timeout":
			n, err = number(0, 1<<31)
			stall, stalled = time.Duration(n)*time.Second, true
		default:
			return fault.New(fault.Invalid, "there is no option %q", name)
		}
		if err != nil {
			return err
		}
		probe := spec
		if err := probe.Normalize(); err != nil {
			return err
		}
		i.spec, i.stall, i.stalled = spec, stall, stalled
		return nil
	})
}

// start begins the job. It returns when it is sure that there is somebody to run
// it; the submission itself goes on in the background.
func (i *instance) start(ctx context.Context, env environment) error {
	i.mu.Lock()
	if i.run != nil || i.busy {
		i.mu.Unlock()
		return fault.New(fault.Invalid, "the instance has been started already")
	}
	i.busy = true
	if i.refused != nil { // it is waited for once more
		i.refused, i.decided = nil, make(chan struct{})
	}
	r := &run{i: i, id: client.NewJobID(time.Now()), spec: i.spec, stall: i.stall, finished: make(chan struct{})}
	r.files.Control = append(r.files.Control, i.files...)
	meta, stalled := i.meta, i.stalled
	i.mu.Unlock()

	err := r.prepare(ctx, env, meta, stalled)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.busy = false
	if err == nil && i.gone {
		r.on.release()
		err = errDestroyed
	}
	if err != nil {
		i.refused = err
		i.decide()
		return err
	}
	i.run = r
	i.decide()
	follow, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	r.stop = stop
	go r.follow(follow)
	i.log.Info("started", "job", r.id, "phase", i.phase, "source", r.spec.Source, "destination", r.spec.Destination, "control_files", len(r.files.Control), "cluster", env.cluster.url != "")
	return nil
}

// decide lets go on who waits to learn what became of Start.
func (i *instance) decide() {
	select {
	case <-i.decided:
	default:
		close(i.decided)
	}
}

// prepare checks what can be checked before, and gets hold of what runs the job.
func (r *run) prepare(ctx context.Context, env environment, meta string, stalled bool) error {
	to := env.cluster
	if len(r.files.Control) == 0 {
		return fault.New(fault.Invalid, "no control file was enqueued")
	}
	if meta != "" {
		var err error
		r.files.Metas, err = metaFiles(meta)
		if err == nil && len(r.files.Metas) == 0 {
			err = fault.Hinted(fault.NotFound, "name the directory that holds meta_file_*", "metaPath %q has no meta files", meta)
		}
		if err != nil && needsMeta(r.i.phase) {
			return err
		}
	} else if needsMeta(r.i.phase) {
		return errNoMeta
	}
	if to.url == "" {
		to = cluster{} // credentials alone name no cluster
		if err := localRoots(r.spec); err != nil {
			return err
		}
		r.spec.Pool = client.DefaultPool
		if !stalled {
			r.stall = stallDefault
		}
	} else if r.spec.Pool == "" {
		r.spec.Pool = env.pool
	}
	if err := r.spec.Normalize(); err != nil {
		return err
	}
	on, err := r.i.lib.acquire(ctx, to, env.tmpdir)
	r.on = on
	return err
}

// localRoots makes sure that the roots are there; on a cluster its workers do.
func localRoots(spec protocol.JobSpec) error {
	fi, err := os.Stat(spec.Source)
	if err == nil && !fi.IsDir() {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		}
		return &fault.Error{Kind: fault.KindOf(err), Op: "open source", Path: spec.Source, Err: err, Hint: "is it mounted?"}
	}
	err = os.MkdirAll(spec.Destination, 0o755)
	if err == nil {
		err = unix.Faccessat(unix.AT_FDCWD, spec.Destination, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		}
		return &fault.Error{Kind: fault.KindOf(err), Op: "write to destination", Path: spec.Destination, Err: err}
	}
	return nil
}

// errDestroyed stops following a job whose instance is gone.
var errDestroyed = fault.New(fault.Canceled, "the instance was destroyed")

// follow submits the job and keeps its latest state until it is final.
func (r *run) follow(ctx context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-r.on.failed(): // nil, and so for ever, where it is a connection
			cancel(fault.New(fault.Internal, "the cluster within the process stopped: %w", r.on.local.Err()))
		case <-ended:
		}
	}()
	err := r.on.Submit(ctx, r.id, r.spec, r.files, true)
	if err == nil {
		r.mu.Lock()
		r.submitted = true
		why := r.stopping
		r.mu.Unlock()
		if why != "" { // cancelled before there was anything to cancel
			r.cancelJob(ctx)
		}
		_, err = r.on.Watch(ctx, r.id, func(v protocol.JobView) { r.note(ctx, v) }, r.noteLost)
	}
	r.end(err)
}

// note takes over a snapshot of the job.
func (r *run) note(ctx context.Context, v protocol.JobView) {
	r.mu.Lock()
	r.view, r.lost = v, ""
	stop := v.Stalled != "" && r.stall > 0 && r.stopping == "" && time.Since(v.StalledSince) >= r.stall
	if stop {
		r.stopping = v.Stalled
	}
	r.mu.Unlock()
	if stop {
		r.i.log.Error("given up: it could not go on for too long", "job", r.id, "limit", r.stall, "reason", v.Stalled)
		r.cancelJob(ctx)
	}
}

func (r *run) noteLost(err error) {
	r.mu.Lock()
	r.lost = "the cluster cannot be asked: " + err.Error()
	r.mu.Unlock()
	r.i.log.Warn("the cluster cannot be asked, trying on", "job", r.id, "error", err)
}

// end makes the status final.
func (r *run) end(err error) {
	r.mu.Lock()
	r.err = err
	v := r.view
	r.mu.Unlock()
	close(r.finished)
	switch {
	case err != nil && !errors.Is(err, errDestroyed):
		r.i.log.Error("failed", "job", r.id, "error", err)
	case err == nil:
		r.i.log.Info("ended", "job", r.id, "state", v.State, "reason", v.Reason, "dirs", v.Stats.DirsCopied, "files", v.Stats.FilesCopied, "bytes", v.Stats.BytesCopied, "failures", v.Failures, "seconds", v.Seconds)
	}
}

func (r *run) final() bool {
	select {
	case <-r.finished:
		return true
	default:
		return false
	}
}

// started returns the job; its error says that Start was not called.
func (i *instance) started() (*run, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.run == nil {
		return nil, fault.New(fault.Invalid, "the instance has not been started")
	}
	return i.run, nil
}

// status is BACKUP_INPROGRESS from the beginning: callers poll it from one thread while
// another enqueues and starts. It is BACKUP_FAILED after a Start that failed, until
// there is another, or after a job that did.
func (i *instance) status() int {
	i.mu.Lock()
	r, refused := i.run, i.refused != nil || i.gone
	i.mu.Unlock()
	switch {
	case r == nil && refused:
		return failed
	case r == nil || !r.final():
		return inProgress
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || !r.view.State.Final() {
		return failed
	}
	return r.view.State.Status()
}

// wait returns when the status is final, or after d.
func (i *instance) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	i.mu.Lock()
	decided := i.decided
	i.mu.Unlock()
	select {
	case <-decided:
	case <-t.C:
		return
	}
	r, err := i.started()
	if err != nil {
		return // it could not be started
	}
	select {
	case <-r.finished:
	case <-t.C:
	}
}

// figures are what the interface shows of an instance.
type figures struct {
	protocol.Stats
	elapsed time.Duration
	files   int
}

// figures returns the latest figures. The nine have the meaning of the header of
// the instance's kind of control files. What is to be done is what headers say until
// the job has read the files.
func (i *instance) figures() figures {
	i.mu.Lock()
	out := figures{files: len(i.files)}
	r, h := i.run, i.headers
	i.mu.Unlock()
	var v protocol.JobView
	if r != nil {
		r.mu.Lock()
		v = r.view
		r.mu.Unlock()
	}
	out.Stats, out.elapsed = v.Stats, time.Duration(v.Seconds*float64(time.Second))
	s := &out.Stats
	switch i.phase {
	case protocol.PhaseDelete:
		s.DirsToBackup, s.FilesToBackup = s.DirsToDelete, s.FilesToDelete
		s.DirsCopied, s.FilesCopied = s.DirsDeleted, s.Deleted-min(s.DirsDeleted, s.Deleted)
		s.DirsFailed, s.FilesFailed = s.DirDeletesFailed, s.DeletesFailed-min(s.DirDeletesFailed, s.DeletesFailed)
	case protocol.PhaseCopy:
		// A directory without its metadata is not what was asked for.
		s.DirsCopied -= min(s.DirMetaFailed, s.DirsCopied)
		s.DirsFailed += s.DirMetaFailed
	}
	if v.State == "" || !v.State.Final() || s.FilesNotAdmitted > 0 {
		s.DirsToBackup, s.FilesToBackup, s.BytesToBackup = max(s.DirsToBackup, h.dirs), max(s.FilesToBackup, h.files), max(s.BytesToBackup, h.bytes)
	}
	return out
}

// message says why the instance failed, or what keeps it from going on.
func (i *instance) message() string {
	i.mu.Lock()
	r, refused := i.run, i.refused
	i.mu.Unlock()
	if r == nil {
		if refused != nil {
			return refused.Error()
		}
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch v := r.view; {
	case r.err != nil:
		return r.err.Error()
	case v.State.Final() && r.stopping != "":
		return r.stopping
	case v.State.Final():
		return v.Reason
	case r.lost != "":
		return r.lost
	default:
		return v.Stalled
	}
}

func (i *instance) jobID() string {
	r, err := i.started()
	if err != nil {
		return ""
	}
	return string(r.id)
}

// failures returns a page of what could not be done.
func (i *instance) failures(ctx context.Context, after string) (protocol.FailuresReply, error) {
	r, err := i.started()
	if err != nil {
		return protocol.FailuresReply{}, err
	}
	r.mu.Lock()
	submitted := r.submitted
	r.mu.Unlock()
	if !submitted {
		return protocol.FailuresReply{}, nil
	}
	return r.on.FailurePage(ctx, r.id, after)
}

// cancel stops the job; its end is waited for with the status.
func (i *instance) cancel(ctx context.Context) error {
	r, err := i.started()
	if err != nil || r.final() {
		return err
	}
	r.mu.Lock()
	again := r.stopping != ""
	if !again {
		r.stopping = "cancelled"
	}
	submitted := r.submitted
	r.mu.Unlock()
	if again || !submitted {
		return nil // follow does it as soon as there is a job
	}
	return r.requestCancel(ctx)
}

// cancelJob is requestCancel where nobody takes an error.
func (r *run) cancelJob(ctx context.Context) {
	if err := r.requestCancel(ctx); err != nil {
		r.i.log.Warn("cancel", "job", r.id, "error", err)
	}
}

// requestCancel asks the cluster to stop the job. One that has ended or was
// never made is no error.
func (r *run) requestCancel(ctx context.Context) error {
	_, err := r.on.Cancel(ctx, r.id)
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// destroy stops the job and returns when nothing of it runs any more, or after
// stopWithin: then the rest ends in the background.
func (i *instance) destroy(ctx context.Context) {
	i.mu.Lock()
	r := i.run
	i.gone = true
	i.decide()
	i.mu.Unlock()
	if r == nil { // and it never will be
		i.log.Debug("destroyed before it was started")
		return
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.dispose(context.WithoutCancel(ctx))
	}()
	t := time.NewTimer(stopWithin)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
		i.log.Warn("destroyed while work still stops, which goes on in the background", "job", r.id)
	}
}

const (
	// submitWithin is how long a submission may take to end by itself when its
	// instance is destroyed.
	submitWithin = 400 * time.Millisecond
	// disposeWithin bounds what goes on in the background where a cluster does
	// not answer.
	disposeWithin = 20 * time.Second
)

// dispose ends the job and lets go of all that belongs to it.
func (r *run) dispose(ctx context.Context) {
	defer r.on.release()
	ctx, cancel := context.WithTimeout(ctx, disposeWithin)
	defer cancel()
	if !r.final() {
		r.stopJob(ctx)
	}
	r.stop(errDestroyed)
	<-r.finished
	if r.on.local != nil {
		r.forget(ctx)
	}
}

// stopJob cancels the job and returns when nothing of it runs any more.
func (r *run) stopJob(ctx context.Context) {
	r.mu.Lock()
	submitted := r.submitted
	if r.stopping == "" {
		r.stopping = errDestroyed.Error()
	}
	r.mu.Unlock()
	patience := time.NewTimer(submitWithin)
	defer patience.Stop()
	if submitted {
		r.cancelJob(ctx)
		patience.Stop()
	}
	// Until it is submitted there is nothing to cancel: follow does it then.
	select {
	case <-r.finished:
		return
	case <-ctx.Done():
		return
	case <-patience.C:
	}
	// Files are being uploaded, or nobody answers. A request that was sent may
	// still make the job, after a cancel that found none.
	r.stop(errDestroyed)
	<-r.finished
	for ctx.Err() == nil {
		_, err := r.on.Cancel(ctx, r.id)
		if err == nil || fault.Is(err, fault.Invalid) {
			break
		}
		if !bus.Sleep(ctx, submitWithin) {
			break
		}
	}
	if _, err := r.on.Watch(ctx, r.id, func(protocol.JobView) {}, r.noteLost); err != nil && !fault.Is(err, fault.NotFound) {
		r.i.log.Warn("the job may still run", "job", r.id, "error", err)
	}
}

// forget removes what the cluster within the process remembers of the job: who
// could ask for it is gone.
func (r *run) forget(ctx context.Context) {
	if _, err := r.on.Drop(ctx, r.id); err != nil {
		r.i.log.Debug("forget", "job", r.id, "error", err)
	}
}
