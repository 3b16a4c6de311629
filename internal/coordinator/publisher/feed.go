package publisher

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// feed cuts the files of phase p from the cursor on. It returns io.EOF at the end
// of a sealed list.
func (j *Job) feed(ctx context.Context, p protocol.Phase, at protocol.Cursor, out chan<- item) error {
	if p == protocol.PhaseCleanup {
		return j.feedCleanup(ctx, at, out)
	}
	rec := j.record()
	meta, err := j.metaDir(ctx, p)
	if err != nil {
		return err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	cfg := cutting(rec, p, meta)
	for i := at.File; ; i++ {
		f, err := j.nextFile(ctx, i)
		if err != nil {
			return err
		}
		if row, _ := j.p.rec.Job(j.id); !row.Cuts(p, f.Record.Ref.Phase) || f.Record.State != protocol.FileAdmitted {
			continue
		}
		if at.File != i {
			at.File, at.Position = i, nil
		}
		if at, err = j.feedFile(ctx, cfg, f, at, out); err != nil {
			return err
		}
	}
}

// nextFile waits until the i-th control file is admitted or refused. It returns
// io.EOF if the list ends before that file.
func (j *Job) nextFile(ctx context.Context, i uint32) (state.File, error) {
	var f state.File
	found := false
	err := j.p.rec.Await(ctx, j.id, func(t state.Tx, row state.Job) bool {
		f, found = t.File(j.id, i)
		if !found {
			return row.Record.Sealed && i >= row.Record.Files
		}
		// After a restart an admitted file has no path until it is found again.
		return f.Record.State == protocol.FileRefused || (f.Record.State == protocol.FileAdmitted && f.Path != "")
	})
	if err == nil && !found {
		err = io.EOF
	}
	return f, err
}

// feedFile cuts one control file and returns the cursor behind it.
func (j *Job) feedFile(ctx context.Context, cfg shard.Config, f state.File, at protocol.Cursor, out chan<- item) (protocol.Cursor, error) {
	var pos *shard.Position
	if len(at.Position) > 0 {
		pos = new(shard.Position)
		if err := rawjson.Unmarshal(at.Position, pos); err != nil {
			return at, &fault.Error{Kind: fault.Corrupt, Op: "read the cursor's position in", Path: f.Path, Err: err}
		}
	} else if err := j.noteFirst(ctx, f, cfg.Phase, at.Next); err != nil {
		return at, err
	}
	cutter, err := shard.New(cfg, shard.File{Index: f.Index, Path: f.Path, Phase: f.Record.Ref.Phase, Pins: f.Record.Pins}, pos, at.Next)
	if err != nil {
		return at, err
	}
	defer func() { _ = cutter.Close() }() // read only
	for {
		cut, err := cutter.Next()
		if errors.Is(err, io.EOF) {
			at.Position = nil
			at.File++
			return at, nil
		}
		if err != nil {
			return at, err
		}
		has := j.answered(cfg.Phase, cut.Msg.GetN())
		var s cutShard
		if !has {
			if s, err = j.pack(ctx, cut); err != nil {
				return at, err
			}
		}
		if at.Position, err = rawjson.Marshal(cut.After); err != nil {
			return at, fmt.Errorf("encode position in %q: %w", f.Path, err)
		}
		at.Next++
		at.Bytes += cut.Msg.GetDataBytes()
		if err := j.noteMark(ctx, cfg.Phase, at); err != nil {
			return at, err
		}
		s.after = at
		var next item = s
		if has {
			next = answeredShard{at}
		}
		select {
		case out <- next:
		case <-ctx.Done():
			return at, context.Cause(ctx)
		}
	}
}

// feedCleanup gives the one shard of the cleanup phase.
func (j *Job) feedCleanup(ctx context.Context, at protocol.Cursor, out chan<- item) error {
	if at.Next > 0 {
		return io.EOF
	}
	has := j.answered(protocol.PhaseCleanup, 0)
	var s cutShard
	if !has {
		var err error
		if s, err = j.pack(ctx, cleanupCut(j.record())); err != nil {
			return err
		}
	}
	at.Next++
	s.after = at
	var next item = s
	if has {
		next = answeredShard{at}
	}
	select {
	case out <- next:
		return io.EOF
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cleanupCut is that one shard.
func cleanupCut(rec protocol.JobRecord) *shard.Cut {
	return &shard.Cut{Msg: &protocol.ShardMsg{Job: string(rec.ID), Phase: uint32(protocol.PhaseCleanup), Options: options(rec.Spec)}}
}

// answered reports whether a shard has its result already. That happens only after
// the cursor was lost, when a phase is cut again from its start.
func (j *Job) answered(p protocol.Phase, n uint64) bool {
	has := false
	j.p.rec.View(func(t state.Tx) { has = t.Phase(j.id, p).Done.Has(n) })
	return has
}

// cutting is what a phase of the job is cut with, now and whenever one of its
// shards is cut again.
func cutting(rec protocol.JobRecord, p protocol.Phase, meta *controlfile.MetaDir) shard.Config {
	return shard.Config{Job: rec.ID, Phase: p, Limits: rec.Spec.Limits, Options: options(rec.Spec), Meta: meta}
}

func options(s protocol.JobSpec) *protocol.OptionsMsg {
	o := &protocol.OptionsMsg{
		Source: []byte(s.Source), Destination: []byte(s.Destination), Trim: []byte(s.Trim), WriteMeta: s.WriteMeta, Restore: s.Restore,
		SkipVanished: s.Vanished == "skip", DeleteUnchecked: s.DeleteUnchecked, CheckContents: s.CheckContents,
		SpareDirs: s.SpareDirs, DeleteEmpty: s.DeleteEmpty, TakeChanging: s.Changing == protocol.ChangingTake, FollowRootLinks: s.FollowRootLinks, ExpectTargets: s.ExpectTargets,
		Threads: uint32(s.Threads), Memory: s.Memory, ReadOnly: s.VerifyOnly,
	}
	if s.Verify == protocol.VerifyChecksum {
		o.Verify = 1
	}
	switch s.Replace {
	case "if-older":
		o.Replace = 1
	case "never":
		o.Replace = 2
	}
	switch s.Sync {
	case "none":
		o.Sync = 1
	case "file":
		o.Sync = 2
	}
	return o
}

// metaDir opens the records that phase p resolves entries by; nil where it needs none.
func (j *Job) metaDir(ctx context.Context, p protocol.Phase) (*controlfile.MetaDir, error) {
	if p.Deletes() || p == protocol.PhaseDir {
		return nil, nil
	}
	dir, err := j.p.rec.MetaDir(ctx, j.id)
	if err != nil {
		return nil, err
	}
	return controlfile.OpenMetaDir(dir), nil
}
