package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/shard"
	"github.com/fsbackup/fsbackup/internal/state"
)

// noteFirst makes durable which shard is a file's first, so that any shard can
// be cut again.
func (r *runner) noteFirst(ctx context.Context, f state.File, p protocol.Phase, n uint64) error {
	if first, ok := f.Record.FirstN[p]; ok && first == n {
		return nil
	}
	first := map[protocol.Phase]uint64{p: n}
	for k, v := range f.Record.FirstN {
		if k != p {
			first[k] = v
		}
	}
	f.Record.FirstN = first
	return r.c.saveFile(ctx, f)
}

// noteMark makes durable where the next shard begins, if it is one that has a
// mark, so that no more than protocol.MarkEvery shards are cut to have one again.
func (r *runner) noteMark(ctx context.Context, p protocol.Phase, at protocol.Cursor) error {
	if at.Next%protocol.MarkEvery != 0 {
		return nil
	}
	data, err := json.Marshal(protocol.Mark{N: at.Next, File: at.File, Position: at.Position})
	if err != nil {
		return fault.New(fault.Internal, "encode mark %d of job %s: %w", at.Next, r.id, err)
	}
	return r.c.jobs.Put(ctx, protocol.MarkKey(r.id, p, at.Next), data)
}

// recut cuts shards of phase p once more, in order of their numbers, and calls f
// with each. wanted is sorted and has no number twice.
func (r *runner) recut(ctx context.Context, p protocol.Phase, wanted []uint64, f func(*shard.Cut) error) error {
	rec := r.job().Record
	if p == protocol.PhaseCleanup {
		return f(cleanupCut(rec))
	}
	meta, err := r.metaDir(ctx, p)
	if err != nil {
		return err
	}
	if meta != nil {
		defer func() { _ = meta.Close() }() // read only
	}
	files := r.filesOf(p)
	for len(wanted) > 0 {
		i, _ := slices.BinarySearchFunc(files, wanted[0], func(f state.File, n uint64) int {
			if f.Record.FirstN[p] <= n {
				return -1
			}
			return 1
		})
		if i == 0 {
			return fault.New(fault.Internal, "shard %d of phase %s of job %s is of no control file", wanted[0], p, r.id)
		}
		file, end := files[i-1], len(wanted)
		if i < len(files) {
			end, _ = slices.BinarySearch(wanted, files[i].Record.FirstN[p])
		}
		if file.Path == "" {
			return fault.New(fault.Transient, "control file %q is not admitted yet", file.Record.Ref.Path)
		}
		if err := r.recutFile(ctx, cutting(rec, p, meta), file, wanted[:end], f); err != nil {
			return err
		}
		wanted = wanted[end:]
	}
	return nil
}

// filesOf returns the control files of which shards of phase p were published,
// in the order of these. Of several with the same first shard the last has it:
// the others have none.
func (r *runner) filesOf(p protocol.Phase) []state.File {
	var files []state.File
	r.c.view(func(t state.Tx) {
		for f := range t.Files(r.id) {
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

// recutFile is recut for shards of one control file. It begins at the nearest
// mark before each, or at the file's start.
func (r *runner) recutFile(ctx context.Context, cfg shard.Config, file state.File, wanted []uint64, f func(*shard.Cut) error) error {
	for len(wanted) > 0 {
		pos, at, err := r.nearest(ctx, cfg.Phase, file, wanted[0])
		if err != nil {
			return err
		}
		cutter, err := shard.New(cfg, shard.File{Index: file.Index, Path: file.Path, Phase: file.Record.Ref.Phase}, pos, at)
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
func (r *runner) nearest(ctx context.Context, p protocol.Phase, file state.File, n uint64) (*shard.Position, uint64, error) {
	first := file.Record.FirstN[p]
	data, _, err := r.c.jobs.Get(ctx, protocol.MarkKey(r.id, p, n))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, first, nil // before the first mark, or published before there were any
	}
	if err != nil {
		return nil, 0, err
	}
	var m protocol.Mark
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, 0, &fault.Error{Kind: fault.Corrupt, Op: "read a mark of job", Path: string(r.id), Err: err}
	}
	if m.File != file.Index || m.N < first || m.N > n {
		return nil, first, nil
	}
	pos := new(shard.Position)
	if err := json.Unmarshal(m.Position, pos); err != nil {
		return nil, 0, &fault.Error{Kind: fault.Corrupt, Op: "read a mark's position in", Path: file.Path, Err: err}
	}
	return pos, m.N, nil
}

// dropMarks removes the marks of a job that has ended.
func (c *Coordinator) dropMarks(ctx context.Context, id protocol.JobID) error {
	var keys []string
	err := c.jobs.Each(ctx, protocol.MarkKeys(id), func(key string, _ []byte, _ uint64) error {
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := c.jobs.Delete(ctx, k); err != nil {
			return err
		}
	}
	return nil
}
