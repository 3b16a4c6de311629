package publisher

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// noteFirst makes durable which shard is a file's first, so that any shard can
// be cut again.
func (j *Job) noteFirst(ctx context.Context, f state.File, p protocol.Phase, n uint64) error {
	if first, ok := f.Record.FirstN[p]; ok && first == n {
		return nil
	}
	return j.p.rec.ChangeFile(ctx, j.id, f.Index, "", func(rec *protocol.FileRecord) {
		if rec.FirstN == nil {
			rec.FirstN = map[protocol.Phase]uint64{}
		}
		rec.FirstN[p] = n
	})
}

// noteMark makes durable where the next shard begins, if it is one that has a
// mark, so that no more than protocol.MarkEvery shards are cut to have one again.
func (j *Job) noteMark(ctx context.Context, p protocol.Phase, at protocol.Cursor) error {
	if at.Next%protocol.MarkEvery != 0 {
		return nil
	}
	return j.p.rec.PutMark(ctx, j.id, p, protocol.Mark{N: at.Next, File: at.File, Position: at.Position})
}

// Recut cuts shards of phase p once more, in order of their numbers, and calls f
// with each. wanted is sorted and has no number twice.
func (j *Job) Recut(ctx context.Context, p protocol.Phase, wanted []uint64, f func(*shard.Cut) error) error {
	rec := j.record()
	if p == protocol.PhaseCleanup {
		return f(cleanupCut(rec))
	}
	meta, err := j.metaDir(ctx, p)
	if err != nil {
		return err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	files := j.filesOf(p)
	for len(wanted) > 0 {
		i, _ := slices.BinarySearchFunc(files, wanted[0], func(f state.File, n uint64) int {
			if f.Record.FirstN[p] <= n {
				return -1
			}
			return 1
		})
		if i == 0 {
			return fault.New(fault.Internal, "shard %d of phase %s of job %s is of no control file", wanted[0], p, j.id)
		}
		file, end := files[i-1], len(wanted)
		if i < len(files) {
			end, _ = slices.BinarySearch(wanted, files[i].Record.FirstN[p])
		}
		if file.Path == "" {
			return fault.New(fault.Transient, "control file %q is not admitted yet", file.Record.Ref.Path)
		}
		if err := j.recutFile(ctx, cutting(rec, p, meta), file, wanted[:end], f); err != nil {
			return err
		}
		wanted = wanted[end:]
	}
	return nil
}

// filesOf returns the control files that have published shards of phase p, in the
// order of the shards. If several files have the same first shard, it belongs to
// the last one. The others have no shards.
func (j *Job) filesOf(p protocol.Phase) []state.File {
	var files []state.File
	j.p.rec.View(func(t state.Tx) {
		for f := range t.Files(j.id) {
			if _, ok := f.Record.FirstN[p]; ok {
				files = append(files, f)
			}
		}
	})
	slices.SortFunc(files, func(a, b state.File) int {
		return cmp.Or(cmp.Compare(a.Record.FirstN[p], b.Record.FirstN[p]), cmp.Compare(a.Index, b.Index))
	})
	return files
}

// recutFile is Recut for shards of one control file. It begins at the nearest mark
// before each shard, or at the start of the file.
func (j *Job) recutFile(ctx context.Context, cfg shard.Config, file state.File, wanted []uint64, f func(*shard.Cut) error) error {
	for len(wanted) > 0 {
		pos, at, err := j.nearest(ctx, cfg.Phase, file, wanted[0])
		if err != nil {
			return err
		}
		cutter, err := shard.New(cfg, shard.File{Index: file.Index, Path: file.Path, Phase: file.Record.Ref.Phase, Pins: file.Record.Pins}, pos, at)
		if err != nil {
			return err
		}
		// Those before the next mark are cut in one go.
		end, _ := slices.BinarySearch(wanted, wanted[0]-wanted[0]%protocol.MarkEvery+protocol.MarkEvery)
		err = cutOf(cutter, wanted[:end], f)
		if err := errors.Join(err, cutter.Close()); err != nil {
			return err
		}
		wanted = wanted[end:]
	}
	return nil
}

func cutOf(cutter *shard.Cutter, wanted []uint64, f func(*shard.Cut) error) error {
	for len(wanted) > 0 {
		cut, err := cutter.Next()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Corrupt, "shard %d is not in its control file any more", wanted[0])
		}
		if err != nil {
			return err
		}
		if cut.Msg.GetN() != wanted[0] {
			continue
		}
		wanted = wanted[1:]
		if err := f(cut); err != nil {
			return err
		}
	}
	return nil
}

// nearest returns from where to cut a file to come to shard n, and the number of
// the shard that is there.
func (j *Job) nearest(ctx context.Context, p protocol.Phase, file state.File, n uint64) (*shard.Position, uint64, error) {
	first := file.Record.FirstN[p]
	m, ok, err := j.p.rec.Mark(ctx, j.id, p, n)
	if err != nil {
		return nil, 0, err
	}
	if !ok || m.File != file.Index || m.N < first || m.N > n {
		return nil, first, nil // before the first mark, or published before there were any
	}
	pos := new(shard.Position)
	if err := rawjson.Unmarshal(m.Position, pos); err != nil {
		return nil, 0, &fault.Error{Kind: fault.Corrupt, Op: "read a mark's position in", Path: file.Path, Err: err}
	}
	return pos, m.N, nil
}
