package coordinator

import (
	"context"
	"strings"

	"github.com/fsbackup/fsbackup/internal/coordinator/records"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// page bounds a reply: it must fit into one message, whatever its limit is.
type page struct {
	items int // that it may still take
	bytes int // likewise
	empty bool
}

// mostItems is how many items a page has at most.
const mostItems = 1000

// newPage is a page of at most limit items, 0 = mostItems. A sixteenth of the
// message is for what travels around them.
func (c *Coordinator) newPage(limit int) *page {
	if limit <= 0 || limit > mostItems {
		limit = mostItems
	}
	most := c.cfg.Bus.MaxPayload()
	return &page{items: limit, bytes: most - most/16, empty: true}
}

// takes reports whether the page has room for v, and takes it. An empty page takes
// anything: what does not fit there fits nowhere.
func (p *page) takes(v any) bool {
	data, err := rawjson.Marshal(v)
	size := len(data) + 1
	if err != nil || p.items == 0 || (size > p.bytes && !p.empty) {
		return false
	}
	p.items--
	p.bytes -= size
	p.empty = false
	return true
}

// Jobs returns a page of jobs, newest first: by their ids, which begin with the
// time. A job that arrives while pages are read changes none of them.
func (c *Coordinator) Jobs(_ context.Context, q protocol.JobsRequest) (protocol.JobsReply, error) {
	var out protocol.JobsReply
	if err := c.ready(); err != nil {
		return out, err
	}
	if err := q.Check(); err != nil {
		return out, err
	}
	now, room := c.now(), c.newPage(q.Limit)
	c.view(func(t state.Tx) {
		var ids []protocol.JobID // oldest first, as they are stored
		for j := range t.Jobs() {
			if !strings.HasPrefix(j.ID, q.Prefix) || (q.State != "" && shownState(j.Record) != q.State) {
				continue
			}
			out.Total++
			if q.After == "" || j.ID < q.After {
				ids = append(ids, j.Record.ID)
			}
		}
		for len(ids) > 0 {
			last := len(ids) - 1
			j, _ := t.Job(ids[last]) // of the same view
			v := c.jobView(t, j, now)
			v.Phases, v.Warnings, v.Workers, v.Spec.Trace, v.Large = nil, nil, nil, nil, nil
			if !room.takes(v) {
				break
			}
			out.Jobs = append(out.Jobs, v)
			ids = ids[:last]
		}
		if len(ids) > 0 && len(out.Jobs) > 0 {
			out.Next = string(out.Jobs[len(out.Jobs)-1].ID)
		}
	})
	return out, nil
}

// Workers returns a page of the workers that were seen in the last minutes.
func (c *Coordinator) Workers(_ context.Context, q protocol.WorkersRequest) (protocol.WorkersReply, error) {
	out := protocol.WorkersReply{Leader: c.cfg.Name}
	if err := c.ready(); err != nil {
		return out, err
	}
	room := c.newPage(q.Limit)
	c.view(func(t state.Tx) {
		for w := range t.Workers() {
			if w.Name <= q.After || (q.Name != "" && w.Name != q.Name) {
				continue
			}
			v := workerView(w)
			if !room.takes(v) {
				out.Next = out.Workers[len(out.Workers)-1].Name
				return
			}
			out.Workers = append(out.Workers, v)
		}
	})
	return out, nil
}

func workerView(w state.Worker) protocol.WorkerView {
	v := protocol.WorkerView{
		Name: w.Name, Pool: w.Beat.Pool, Host: w.Beat.Host, Version: w.Beat.Version, Slots: w.Beat.Slots,
		Running: w.Beat.Running, Allow: w.Beat.Allow, LastSeen: w.LastSeen, State: "live", Done: w.Beat.Done, RSS: w.Beat.RSS, Threads: w.Beat.Threads, Unfit: w.Beat.Unfit, Hung: w.Beat.Hung,
		Abilities: w.Beat.Abilities,
	}
	switch {
	case w.Beat.Leaving:
		v.State = "left"
	case w.Lost:
		v.State = "lost"
	case !w.Takes():
		v.State = "drained"
	}
	return v
}

// Outcomes returns a page of the control files of a job that has ended of which
// not every entry has an accepted result. The answer fits into one message.
func (c *Coordinator) Outcomes(ctx context.Context, q protocol.OutcomesRequest) (protocol.OutcomesReply, error) {
	var out protocol.OutcomesReply
	if err := c.ready(); err != nil {
		return out, err
	}
	j, known := c.rec.Job(q.Job)
	switch {
	case !known:
		return out, records.NoSuchJob(q.Job)
	case !j.Record.State.Final():
		return out, fault.Hinted(fault.Invalid, "wait for its end", "job %s is %s", q.Job, j.Record.State)
	case j.Record.Answered:
		return out, nil
	}
	files, err := c.rec.FileRecords(ctx, q.Job)
	if err != nil {
		return out, err
	}
	room := c.newPage(0)
	for _, f := range files {
		if f.Index < q.From || f.Outcome != nil && f.Outcome.Complete {
			continue
		}
		v := protocol.FileView{Index: f.Index, Phase: f.Ref.Phase, Path: f.Ref.Path, State: f.State, Refused: f.Refused, Outcome: f.Outcome}
		if f.State == protocol.FileAdmitted {
			v.Digest = f.Ref.Digest
		}
		if !room.takes(v) {
			out.Next = f.Index
			break
		}
		out.Files = append(out.Files, v)
	}
	return out, nil
}
