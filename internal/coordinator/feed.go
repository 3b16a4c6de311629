package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// feed cuts the files of phase p from the cursor on. It returns io.EOF at the end
// of a sealed list.
func (r *runner) feed(ctx context.Context, p protocol.Phase, at protocol.Cursor, out chan<- ready) error {
	if p == protocol.PhaseCleanup {
		return r.feedCleanup(ctx, at, out)
	}
	rec := r.job().Record
	meta, err := r.metaDir(ctx, p)
	if err != nil {
		return err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	cfg := cutting(rec, p, meta)
	for i := at.File; ; i++ {
		f, err := r.nextFile(ctx, i)
		if err != nil {
			return err
		}
		if !cutBy(r.job(), f.Record.Ref.Phase, p) || f.Record.State != protocol.FileAdmitted {
			continue
		}
		if at.File != i {
			at.File, at.Position = i, nil
		}
		if at, err = r.feedFile(ctx, cfg, f, at, out); err != nil {
			return err
		}
	}
}

// nextFile waits until the i-th control file is admitted or refused; io.EOF
// where the list ends before it.
func (r *runner) nextFile(ctx context.Context, i uint32) (state.File, error) {
	var f state.File
	found := false
	err := r.await(ctx, func(t state.Tx, j state.Job) bool {
		f, found = t.File(r.id, i)
		if !found {
			return j.Record.Sealed && i >= j.Record.Files
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
func (r *runner) feedFile(ctx context.Context, cfg shard.Config, f state.File, at protocol.Cursor, out chan<- ready) (protocol.Cursor, error) {
	var pos *shard.Position
	if len(at.Position) > 0 {
		pos = new(shard.Position)
		if err := json.Unmarshal(at.Position, pos); err != nil {
			return at, &fault.Error{Kind: fault.Corrupt, Op: "read the cursor's position in", Path: f.Path, Err: err}
		}
	} else if err := r.noteFirst(ctx, f, cfg.Phase, at.Next); err != nil {
		return at, err
	}
	cutter, err := shard.New(cfg, shard.File{Index: f.Index, Path: f.Path, Phase: f.Record.Ref.Phase}, pos, at.Next)
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
		item := ready{answered: r.answered(cfg.Phase, cut.Msg.GetN())}
		if !item.answered {
			if item, err = r.pack(ctx, cut); err != nil {
				return at, err
			}
		}
		if at.Position, err = json.Marshal(cut.After); err != nil {
			return at, fmt.Errorf("encode position in %q: %w", f.Path, err)
		}
		at.Next++
		at.Bytes += cut.Msg.GetDataBytes()
		item.after = at
		if err := r.noteMark(ctx, cfg.Phase, at); err != nil {
			return at, err
		}
		select {
		case out <- item:
		case <-ctx.Done():
			return at, context.Cause(ctx)
		}
	}
}

// feedCleanup gives the one shard of the cleanup phase.
func (r *runner) feedCleanup(ctx context.Context, at protocol.Cursor, out chan<- ready) error {
	if at.Next > 0 {
		return io.EOF
	}
	if r.answered(protocol.PhaseCleanup, 0) {
		at.Next++
		select {
		case out <- ready{answered: true, after: at}:
			return io.EOF
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	item, err := r.pack(ctx, cleanupCut(r.job().Record))
	if err != nil {
		return err
	}
	at.Next++
	item.after = at
	select {
	case out <- item:
		return io.EOF
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cleanupCut is that one shard.
func cleanupCut(rec protocol.JobRecord) *shard.Cut {
	return &shard.Cut{Msg: &protocol.ShardMsg{Job: string(rec.ID), Phase: uint32(protocol.PhaseCleanup), Options: options(rec.Spec)}}
}

// answered reports whether a shard has its result: of those that are to be
// published, only where the cursor was lost and the phase is cut from its start.
func (r *runner) answered(p protocol.Phase, n uint64) bool {
	has := false
	r.c.view(func(t state.Tx) { has = t.Phase(r.id, p).Done.Has(n) })
	return has
}

// cutting is what a phase of the job is cut with, now and whenever one of its
// shards is cut again.
func cutting(rec protocol.JobRecord, p protocol.Phase, meta *controlfile.MetaDir) shard.Config {
	return shard.Config{Job: rec.ID, Phase: p, Limits: rec.Spec.Limits, Options: options(rec.Spec), Meta: meta}
}

func options(s protocol.JobSpec) *protocol.OptionsMsg {
	o := &protocol.OptionsMsg{
		Source: s.Source, Destination: s.Destination, Trim: s.Trim, WriteMeta: s.WriteMeta, Restore: s.Restore,
		SkipVanished: s.Vanished == "skip", DeleteUnchecked: s.DeleteUnchecked, CheckContents: s.CheckContents,
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
func (r *runner) metaDir(ctx context.Context, p protocol.Phase) (*controlfile.MetaDir, error) {
	if p == protocol.PhaseDelete || p == protocol.PhaseDir {
		return nil, nil
	}
	dir, err := r.metaPath(ctx)
	if err != nil {
		return nil, err
	}
	return controlfile.OpenMetaDir(dir), nil
}
