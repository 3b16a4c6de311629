package publisher

import (
	"context"
	"errors"
	"io"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// missingMost is how many ranges of lines are told apart. Beyond that all from
// the first on count as missing.
const missingMost = 256

// Missing returns the lines of a control file that have no result in phase p,
// which is not complete: those of published shards that are not answered, and
// those behind the cursor. It is called when nothing more is published.
func (j *Job) Missing(ctx context.Context, p protocol.Phase, f state.File) ([]protocol.LineRange, error) {
	first, begun := f.Record.FirstN[p]
	cur := j.cursor
	if !begun || cur.Phase != p || f.Index > cur.File && !cur.Done {
		return []protocol.LineRange{{Phase: p, From: 1}}, nil
	}
	end := cur.Next // number of the first shard that is not the file's
	for _, o := range j.filesOf(p) {
		if n := o.Record.FirstN[p]; o.Index > f.Index && n < end {
			end = n
		}
	}
	var open []uint64
	j.p.rec.View(func(t state.Tx) {
		done := t.Phase(j.id, p).Done
		for n := first; n < end; n++ {
			if !done.Has(n) {
				open = append(open, n)
			}
		}
	})
	var out []protocol.LineRange
	if len(open) > 0 {
		err := j.Recut(ctx, p, open, func(cut *shard.Cut) error {
			if r, ok := linesOf(cut.Msg); ok {
				out = appendRange(out, r)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if f.Index == cur.File && !cur.Done {
		r := protocol.LineRange{Phase: p, From: 1}
		if len(cur.Position) > 0 {
			var pos shard.Position
			if err := rawjson.Unmarshal(cur.Position, &pos); err != nil {
				return nil, &fault.Error{Kind: fault.Corrupt, Op: "read the cursor's position in", Path: f.Path, Err: err}
			}
			more, err := j.hasMore(ctx, p, f, &pos)
			if err != nil {
				return nil, err
			}
			if !more {
				return out, nil
			}
			r.From = pos.Reader.Line
		}
		out = appendRange(out, r)
	}
	if len(out) > missingMost {
		out = []protocol.LineRange{{Phase: p, From: out[0].From}}
	}
	return out, nil
}

// linesOf is the range of lines whose entries a shard has.
func linesOf(m *protocol.ShardMsg) (r protocol.LineRange, ok bool) {
	r.Phase = protocol.Phase(m.GetPhase())
	for _, e := range m.GetEntries() {
		if e.GetLeaderOnly() {
			continue // of the shard that has the leader
		}
		if !ok || e.GetLine() < r.From {
			r.From = e.GetLine()
		}
		r.To = max(r.To, e.GetLine()+1)
		ok = true
	}
	return r, ok
}

// appendRange adds a range behind the others, and joins it with the last where
// they touch.
func appendRange(list []protocol.LineRange, r protocol.LineRange) []protocol.LineRange {
	if n := len(list); n > 0 && list[n-1].To >= r.From {
		list[n-1].To = r.To
		return list
	}
	return append(list, r)
}

// hasMore reports whether a control file has something for phase p behind pos.
func (j *Job) hasMore(ctx context.Context, p protocol.Phase, f state.File, pos *shard.Position) (bool, error) {
	meta, err := j.metaDir(ctx, p)
	if err != nil {
		return false, err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	cutter, err := shard.New(cutting(j.record(), p, meta), shard.File{Index: f.Index, Path: f.Path, Phase: f.Record.Ref.Phase, Pins: f.Record.Pins}, pos, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = cutter.Close() }() // read only
	switch _, err := cutter.Next(); {
	case errors.Is(err, io.EOF):
		return false, nil
	default:
		return err == nil, err
	}
}
