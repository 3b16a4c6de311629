package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// clusterFlags have a cluster do the work of a command that scans here.
type clusterFlags struct {
	NATS  string `name:"nats" help:"Have the workers of a cluster do the work: its NATS URL. They must see both directories at the same paths." placeholder:"URL" group:"cluster"`
	Pool  string `help:"Workers that see both directories." default:"default" env:"FSBACKUP_POOL" group:"cluster"`
	Creds string `help:"NATS credentials file." env:"FSBACKUP_NATS_CREDS" placeholder:"FILE" type:"path" group:"cluster"`
	NKey  string `name:"nkey" help:"File with the seed of an nkey, to log in to NATS with." env:"FSBACKUP_NATS_NKEY" placeholder:"FILE" type:"path" group:"cluster"`
	CA    string `name:"tls-ca" help:"CA certificates (PEM) to trust for TLS." env:"FSBACKUP_TLS_CA" placeholder:"FILE" type:"path" group:"cluster"`
	Cert  string `name:"tls-cert" help:"Client certificate (PEM)." env:"FSBACKUP_TLS_CERT" placeholder:"FILE" type:"path" group:"cluster"`
	Key   string `name:"tls-key" help:"Key of the client certificate (PEM)." env:"FSBACKUP_TLS_KEY" placeholder:"FILE" type:"path" group:"cluster"`
}

// execute has a job done to its end, by the cluster that is named or by one of this
// process, whose own files are in dir.
func execute(a *app, local localFlags, c clusterFlags, dir string, j localJob, p *progress) (protocol.JobView, error) {
	if c.NATS == "" {
		return local.execute(a, dir, j, p)
	}
	cl, free, err := c.connect(a)
	if err != nil {
		return protocol.JobView{}, err
	}
	defer free()
	switch {
	case j.resume && j.stop:
		if _, err := cl.Cancel(a.ctx, j.id); err != nil && !fault.Is(err, fault.Invalid) { // it is ending already
			return protocol.JobView{}, err
		}
	case !j.resume:
		if err := c.submit(a, cl, &j, p); err != nil {
			if _, asked := cl.Job(context.WithoutCancel(a.ctx), j.id); fault.Is(asked, fault.NotFound) && j.refused != nil {
				err = errors.Join(err, j.refused())
			}
			return protocol.JobView{}, err
		}
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	limit := local.within(p)
	guard := newStallGuard(limit, cancel, func(v protocol.JobView) error {
		return fault.Hinted(fault.Transient, j.followHint(), "job %s: %w for %s: %s", j.id, errStalled, limit, stuck(v.Stalled))
	})
	defer guard.stop()
	v, err := cl.Watch(ctx, j.id, j.orEnd(a, cl, func(v protocol.JobView) {
		p.job(v)
		guard.look(v)
	}), p.lost)
	p.done()
	switch {
	case errors.Is(err, errStalled) && j.ended == nil:
		_ = endNow(a, cl, j.id) // it is logged
		return v, err
	case interrupted(a.ctx) && j.ended == nil:
		// Its control files go with this process.
		if err := endNow(a, cl, j.id); err != nil {
			return v, fault.Hinted(fault.Canceled, "look at it with: fsbackup status "+string(j.id), "interrupted; job %s may not have ended: %w", j.id, err)
		}
		return v, fault.New(fault.Canceled, "interrupted; job %s is ended", j.id)
	case interrupted(a.ctx):
		return v, fault.Hinted(fault.Canceled, j.followHint(), "interrupted; job %s goes on", j.id)
	case err != nil:
		return v, err
	}
	if err := j.failures(a, cl, v); err != nil {
		return v, err
	}
	if j.ended != nil {
		err = j.ended(cl, v)
	}
	return v, err
}

// followHint says what can be done about a job that goes on without this process.
func (j localJob) followHint() string {
	if j.ended == nil {
		return "the job is ended; mend that and run it again"
	}
	return "run it again to follow it to its end, or: fsbackup watch " + string(j.id) + ", fsbackup cancel " + string(j.id)
}

// orEnd returns f, before which a resumed job is ended that an interrupted run has not
// handed all its control files to: nobody else will.
func (j localJob) orEnd(a *app, cl *client.Client, f func(protocol.JobView)) func(protocol.JobView) {
	return func(v protocol.JobView) {
		if j.resume && v.StallCause == protocol.StallList {
			if _, err := cl.Cancel(a.ctx, j.id); err != nil {
				a.log.Warn("a job without all its control files cannot be ended", "job", j.id, "error", err) // asked again soon
			}
			v.Stalled, v.StallCause = "", ""
		}
		f(v)
	}
}

// connect returns a client of the cluster that is named; free releases it.
func (c clusterFlags) connect(a *app) (cl *client.Client, free func(), err error) {
	return connection{NATS: c.NATS, Creds: c.Creds, NKey: c.NKey, CA: c.CA, Cert: c.Cert, Key: c.Key}.connect(a)
}

// reach finds out whether somebody answers for the cluster that is named, before a
// scan is made for nothing.
func (c clusterFlags) reach(a *app) error {
	if c.NATS == "" {
		return nil
	}
	cl, free, err := c.connect(a)
	if err != nil {
		return err
	}
	defer free()
	_, err = cl.Workers(a.ctx)
	return err
}

// submit hands a job to the cluster, with its meta files where those cannot be read
// there.
func (c clusterFlags) submit(a *app, cl *client.Client, j *localJob, p *progress) error {
	j.spec.Pool = c.Pool
	if j.files.Metas == nil && j.spec.Meta != "" {
		var err error
		if j.files.Metas, err = metaFiles(j.spec.Meta); err != nil {
			return err
		}
	}
	err := cl.Telling(p.submission).Submit(a.ctx, j.id, j.spec, j.files, true)
	p.done()
	return err
}

// ownRights says by what rights this process acts on file systems.
func ownRights() string {
	rights := fmt.Sprintf("user %d", os.Geteuid())
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return rights
	}
	for line := range strings.Lines(string(status)) {
		if caps, ok := strings.CutPrefix(line, "CapEff:"); ok {
			rights += ", capabilities " + strings.TrimSpace(caps)
		}
	}
	return rights
}
