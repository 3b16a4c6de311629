package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Beneath the roots of a job there may be more file systems. All workers must see the
// same ones: where one of them is missing its files would go to what lies beneath, or
// count as vanished. The reference is what the job's first worker saw as it began.

const (
	// mostMounts and mostMountBytes bound the mount points that a message names, for
	// each root.
	mostMounts     = 200
	mostMountBytes = 16 << 10
)

// rootMounts are the mounts beneath a job's roots as they must be.
type rootMounts struct {
	want protocol.RootMounts
	trim string
}

func newRootMounts(m *protocol.RootMounts, trim string) *rootMounts {
	if m == nil {
		return nil // of a coordinator that does not compare them
	}
	return &rootMounts{want: *m, trim: strings.Trim(trim, "/")}
}

// mountsOf describes the mounts beneath the roots.
func mountsOf(r roots) (*protocol.RootMounts, error) {
	src, dst, err := r.Mounts()
	if err != nil {
		return nil, err
	}
	return &protocol.RootMounts{Source: mountList(src), Destination: mountList(dst)}, nil
}

func mountList(mounts []engine.Mount) protocol.MountList {
	fixed, autos := split(mounts)
	out := protocol.MountList{Count: len(fixed), Sum: sumOf(fixed)}
	size := 0
	for _, m := range fixed {
		if size += len(m.Path) + len(m.FS); len(out.List) == mostMounts || size > mostMountBytes {
			break
		}
		out.List = append(out.List, protocol.MountPoint{Path: m.Path, FS: m.FS, Inode: m.Inode})
	}
	size = 0
	for _, p := range autos {
		if size += len(p); len(out.Autos) == mostMounts || size > mostMountBytes {
			break
		}
		out.Autos = append(out.Autos, p)
	}
	return out
}

// split returns the mounts that stay, and where automounters are: what is mounted on
// these comes and goes.
func split(mounts []engine.Mount) (fixed []engine.Mount, autos []string) {
	for _, m := range mounts {
		if m.Auto {
			autos = append(autos, m.Path)
		}
	}
	for _, m := range mounts {
		if !m.Auto && !on(autos, m.Path) {
			fixed = append(fixed, m)
		}
	}
	return fixed, autos
}

// on reports whether a path is one of some directories, or lies in one.
func on(dirs []string, p string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return inside(dir, p) })
}

// inside reports whether p is dir or lies in it; both are relative to a root.
func inside(dir, p string) bool {
	rest, ok := strings.CutPrefix(p, dir)
	return ok && (dir == "" || rest == "" || rest[0] == '/')
}

func sumOf(mounts []engine.Mount) string {
	h := sha256.New()
	for _, m := range mounts {
		fmt.Fprintf(h, "%s\x00%s\x00%d\n", m.Path, m.FS, m.Inode)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// difference is a place where something else is mounted than on the job's first
// worker. Its path is "" where the place is not known: then it is anywhere.
type difference struct{ path, text string }

// differences compares the mounts beneath a root with those of the job.
func differences(here []engine.Mount, want protocol.MountList) []difference {
	fixed, autos := split(here)
	if sumOf(fixed) == want.Sum {
		return nil
	}
	whole := len(want.List) == want.Count
	var out []difference
	add := func(path, format string, args ...any) {
		out = append(out, difference{path, fmt.Sprintf(format, args...)})
	}
	listed := map[string]protocol.MountPoint{}
	last := ""
	for _, m := range want.List {
		listed[m.Path] = m
		last = m.Path
	}
	for _, m := range fixed {
		path := rawjson.Readable(m.Path) // for people
		is, ok := listed[m.Path]
		delete(listed, m.Path)
		switch {
		case !ok && !whole && m.Path > last: // it may be one that the job has
		case !ok && on(want.Autos, m.Path): // mounted there as well, when it is asked for
		case !ok:
			add(m.Path, "mounted here, not on the job's first worker: %s (%s)", path, m.FS)
		case is.FS != m.FS:
			add(m.Path, "%s is %s here, %s on the job's first worker", path, m.FS, is.FS)
		case is.Inode != m.Inode && is.Inode != 0 && m.Inode != 0:
			add(m.Path, "another %s is mounted here than on the job's first worker: %s, whose root has inode %d, not %d", m.FS, path, m.Inode, is.Inode)
		}
	}
	for _, m := range want.List {
		if _, missing := listed[m.Path]; missing && !on(autos, m.Path) {
			add(m.Path, "mounted on the job's first worker, not here: %s (%s)", rawjson.Readable(m.Path), m.FS)
		}
	}
	if !whole {
		// More may differ than what is named: which paths are affected is not known.
		if len(out) == 0 {
			add("", "%d file systems are mounted here, %d on the job's first worker, and they are not the same behind %s", len(fixed), want.Count, rawjson.Readable(last))
		}
		for i := range out {
			out[i].path = ""
		}
	}
	return out
}

// mounted is a look at the mounts beneath both roots.
type mounted struct{ src, dst []engine.Mount }

// checkMounts returns an error if what is mounted beneath the roots is not what the job
// has, at a place that concerns the batch. It returns what is mounted.
func (j *openJob) checkMounts(b *engine.Batch) (mounted, error) {
	var now mounted
	if j.mounts == nil {
		return now, nil
	}
	var err error
	if now.src, now.dst, err = j.roots.Mounts(); err != nil {
		return now, err
	}
	src, dst := j.roots.Roots()
	if err := j.mounts.check(b, now.src, j.mounts.want.Source, src.Path, ""); err != nil {
		return now, err
	}
	return now, j.mounts.check(b, now.dst, j.mounts.want.Destination, dst.Path, j.mounts.trim)
}

func (m *rootMounts) check(b *engine.Batch, here []engine.Mount, want protocol.MountList, root, trim string) error {
	var found []difference
	for _, d := range differences(here, want) {
		if concerns(b, d.path, trim) {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return nil
	}
	text := found[0].text
	if n := len(found) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "compare what is mounted beneath", Path: root, Err: errors.New(text), Hint: "have the same mounted on all workers, as it was when the job began"}
}

// stillMounted returns an error if something was mounted or unmounted since a look, at
// a place that concerns the batch: its entries may have seen what was not the job's.
func (j *openJob) stillMounted(b *engine.Batch, before mounted) error {
	if j.mounts == nil {
		return nil
	}
	now, err := j.checkMounts(b)
	if err != nil {
		return err
	}
	src, dst := j.roots.Roots()
	if err := unchanged(b, before.src, now.src, src.Path, ""); err != nil {
		return err
	}
	return unchanged(b, before.dst, now.dst, dst.Path, j.mounts.trim)
}

func unchanged(b *engine.Batch, before, now []engine.Mount, root, trim string) error {
	if len(before) == len(now) && (len(now) == 0 || &before[0] == &now[0]) {
		return nil // nothing was looked at anew
	}
	was, _ := split(before)
	is, _ := split(now)
	lines := map[string]bool{}
	for _, m := range is {
		lines[m.Line] = true
	}
	for _, m := range was {
		if !lines[m.Line] && concerns(b, m.Path, trim) {
			return &fault.Error{Kind: fault.Transient, Op: "compare what is mounted beneath", Path: root, Err: fmt.Errorf("%s (%s) was mounted anew while the shard was executed", rawjson.Readable(m.Path), m.FS), Hint: "it is executed again"}
		}
	}
	return nil
}

// concerns reports whether an entry of the batch is, or lies in, what is mounted at a
// place beneath a root, or removes what has the place in it.
func concerns(b *engine.Batch, place, trim string) bool {
	if place == "" {
		return true
	}
	for _, e := range b.Entries {
		p := trimmed(e.Path, trim)
		if inside(place, p) {
			return true
		}
		switch e.Op {
		case entry.OpMkdir, entry.OpFinish, entry.OpTouch, entry.OpVerifyDir, entry.OpVerifyTimes:
		default:
			if inside(p, place) {
				return true
			}
		}
	}
	return false
}

// trimmed is where an entry is beneath the destination root.
func trimmed(p, trim string) string {
	switch {
	case trim == "":
		return p
	case inside(p, trim):
		return ""
	}
	return strings.TrimPrefix(p, trim+"/")
}
