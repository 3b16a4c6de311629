package scanner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// held is what the destination has at an entry's path, compared with what the entry
// is to have there.
type held uint8

const (
	// heldUnseen: the destination was not looked at, or could not be looked at there.
	heldUnseen held = iota
	// heldMissing: nothing, or an object of another type.
	heldMissing
	// heldRight: what is wanted.
	heldRight
	// heldTouched: the contents seem right; metadata is not, or somebody has touched
	// the object since the last run, so that what does not show may be wrong as well.
	heldTouched
	// heldWrong: other contents.
	heldWrong
	// heldLacking: other metadata, which the last run left so and this one would, too.
	heldLacking
)

// destination is the stream of what the destination holds. It is used by the joiner's
// goroutine once the walk is over.
type destination struct {
	tree   Tree
	fs     *fsTree // the same; nil = another tree, which has no attributes
	walker *walker
	runs   *runSet

	fsType  int64
	settled Time // see Config
	gaps    []Span

	m          *merger
	key, value []byte
	ok         bool   // there is a record
	here       bool   // it is about the current key
	rec        Record // then; only its numbers
	attrs      attrReader
}

// openDestination prepares the listing of the destination; nil if there is none.
func (s *scan) openDestination() (*destination, error) {
	if s.cfg.Destination == "" {
		return nil, nil //nolint:nilnil // no destination is no error
	}
	d := &destination{tree: s.cfg.DestinationTree, settled: s.cfg.Settled, gaps: s.cfg.Gaps}
	if d.tree == nil {
		if err := d.open(s); err != nil {
			return nil, err
		}
		d.tree = d.fs
	}
	d.walker, d.runs = newWalker(d.tree, &filter{}, s.cfg, s.layout, newProblems(s.layout.spill))
	d.runs.prefix = "destination"
	d.walker.pending.path = filepath.Join(s.layout.spill, "pending-destination")
	d.walker.hide = func(path string) bool { return !strings.Contains(path, "/") && entry.IsMark(path) }
	var err error
	if d.walker.only, err = newSelection(s.cfg.Paths); err != nil {
		return nil, errors.Join(err, d.tree.Close())
	}
	return d, nil
}

// open opens the file system.
func (d *destination) open(s *scan) error {
	t, err := openFSTree(s.cfg.Destination, false)
	if err != nil {
		return err
	}
	// Attributes are looked at one by one where history knows the rest, and not at
	// all where others have compared them.
	t.light, t.pseudo.take = s.cfg.Committed != "" || s.cfg.Suspects != nil, true
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(t.root.Fd()), &st); err != nil {
		return errors.Join(sysError("look at destination", s.cfg.Destination, err), t.Close())
	}
	d.fs, d.fsType = t, st.Type
	for _, p := range append([]string{s.cfg.Out, s.layout.spill}, s.cfg.ExcludePaths...) {
		if id, ok := identify(p); ok && id != t.rootID {
			t.skip[id] = true
		}
	}
	return nil
}

func identify(path string) (devIno, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&modeFormat != modeDir {
		return devIno{}, false
	}
	return devIno{st.Dev, st.Ino}, true
}

// start begins the stream.
func (d *destination) start() error {
	buffers := d.walker.buffers
	d.walker.buffers = nil
	var err error
	if d.m, err = d.runs.merge(buffers); err != nil {
		return err
	}
	return d.advance()
}

func (d *destination) advance() error {
	var err error
	d.key, d.value, d.ok, err = d.m.next()
	return err
}

func (d *destination) close() error {
	var err error
	if d.m != nil {
		err = d.m.close()
	}
	return errors.Join(err, d.walker.problems.finish(&Result{}), d.tree.Close())
}

// stableInodes reports whether an object keeps its inode number for as long as it
// exists: some file systems invent numbers each time they are mounted.
func (d *destination) stableInodes() bool {
	switch d.fsType {
	case unix.MSDOS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return false
	}
	return true
}

// copy returns what a state keeps of the object at the current key.
func (d *destination) copy() Copy {
	if !d.stableInodes() {
		return Copy{}
	}
	return Copy{Ino: d.rec.Ino, Ctime: d.rec.Ctime}
}

// untouched reports whether the object at the current key is what the last run left
// there, as far as can be told. moved says that a directory above it may have been
// renamed, which the object itself does not show.
func (d *destination) untouched(was Copy, moved bool) bool {
	switch {
	case !d.stableInodes():
		return true
	case was != Copy{}:
		return was == d.copy()
	case d.settled != Time{}:
		return !moved && !d.disturbed()
	}
	return true
}

// disturbed reports whether the object at the current key was changed when no job of
// ours was at work.
func (d *destination) disturbed() bool {
	at := d.rec.Ctime
	return d.settled.before(at) || slices.ContainsFunc(d.gaps, func(g Span) bool { return !at.before(g.From) && !g.To.before(at) })
}

// keptTime reports whether an object that was given the time want has it, on a file
// system that keeps whole units of 100 ns, 1 µs, 1 ms, 1 s or 2 s.
func keptTime(want, got Time) bool {
	if want == got {
		return true
	}
	if got.Nsec == 0 && (want.Sec == got.Sec || want.Sec&^1 == got.Sec) {
		return true
	}
	if want.Sec != got.Sec {
		return false
	}
	for _, unit := range []uint32{100, 1000, 1_000_000} {
		if want.Nsec-want.Nsec%unit == got.Nsec {
			return true
		}
	}
	return false
}

// keepsFiner reports whether the object at the current key has less of the time want
// than its file system keeps of the time of its last change.
func (d *destination) keepsFiner(want Time) bool {
	got := d.rec.Mtime
	if want == got || !d.stableInodes() { // FAT keeps more of that
		return false
	}
	for _, unit := range []uint32{1e9, 1e6, 1000, 100} {
		if got.Nsec%unit == 0 {
			return d.rec.Ctime.Nsec%unit != 0
		}
	}
	return false
}

// heldAs compares what the destination has at the current key with the entry r of
// this scan; value is r's record as a whole, lv its directory's level, its own for a
// directory. knowing says whether its directory's contents in the destination are
// known, known whether history has r.
func (j *joiner) heldAs(r *Record, value []byte, lv *level, knowing, known bool) held {
	d := j.dest
	switch {
	case d == nil || !knowing || d.here && d.rec.Flags&marks != 0:
		return heldUnseen
	case !d.here || d.rec.Mode&modeFormat != r.Mode&modeFormat:
		return heldMissing
	}
	h := &d.rec
	var was Copy
	if known && j.committed != nil && j.committed.here && !r.IsDir() { // of directories the number alone is kept
		was = j.committed.rec.Copy
	}
	// Only files hold what does not show; a guess is not worth copying a group of links again.
	moved := r.Mode&modeFormat == modeRegular && (lv.another || lv.moved && !r.isLinked())
	untouched := known && d.untouched(was, moved)
	if known && j.committed.rec.Flags&FlagUnsure != 0 && !r.IsDir() {
		switch {
		case was == Copy{}: // nobody knows what was there before
			return heldTouched
		case was == d.copy():
			return heldWrong // it was not written
		case d.disturbed():
			return heldTouched
		}
		untouched = true // since it was written
	}
	mtime := keptTime(r.Mtime, h.Mtime)
	// A time that is not r's may be that of what has been brought here with its directory.
	lacking := untouched && j.e.cfg.SameMeans && (mtime || was != Copy{} || !lv.altered)
	switch r.Mode & modeFormat {
	case modeRegular:
		if r.Size != h.Size {
			return heldWrong
		}
		switch cfg := j.e.cfg; {
		case cfg.NoMeta && known && !untouched, cfg.NoMeta && !known && !mtime:
			return heldWrong // its time says nothing
		case cfg.NoMeta || mtime:
		case lacking && !cfg.KeptTargets:
			return j.lack(LackTime)
		default:
			return heldWrong
		}
	case modeSymlink:
		if !sameTarget(value, d.value) {
			return heldWrong
		}
	case modeChar, modeBlock:
		if r.Rdev != h.Rdev {
			return heldWrong
		}
	}
	if j.e.cfg.NoMeta {
		return heldRight
	}
	why := r.lacks(h)
	if why == "" && !mtime {
		why = LackTime
	}
	if why == "" && r.AttrHash != h.AttrHash && (!known || j.e.cfg.CheckAttrs) && !j.sameAttrs(value) {
		why = LackAttrs
	}
	switch {
	case !known && j.e.cfg.Checksum && r.Mode&modeFormat == modeRegular && r.Size > 0:
		return heldTouched
	case why == "" && !known && d.keepsFiner(r.Mtime):
		return heldTouched // tools have cut it off
	case why == "" && (!known || untouched):
		return heldRight
	case why != "" && why != lackMode && lacking:
		return j.lack(why)
	}
	return heldTouched
}

// What copies can lack. They are kinds of warnings of jobs as well.
const (
	LackOwner = "owner-not-permitted"
	LackSetID = "setid-dropped"
	LackTime  = "time-out-of-range"
	LackAttrs = "attributes-lost"

	lackMode = "mode" // never left so by a run
)

func (j *joiner) lack(why string) held {
	j.lacks = why
	return heldLacking
}

// lacks says which of owner and mode the copy h of an entry does not have as it should.
func (r *Record) lacks(h *Record) string {
	const setIDs = unix.S_ISUID | unix.S_ISGID
	symlink := r.Mode&modeFormat == modeSymlink
	switch {
	case r.UID != h.UID || r.GID != h.GID:
		return LackOwner
	case symlink || r.Mode == h.Mode:
		return ""
	case r.Mode&^setIDs == h.Mode&^setIDs:
		return LackSetID
	}
	return lackMode
}

// sameTarget compares the targets of two symbolic links.
func sameTarget(a, b []byte) bool {
	var x, y Record
	return decodeValue(a, &x) == nil && decodeValue(b, &y) == nil && x.Symlink == y.Symlink
}

// sameAttrs compares the ACLs and attributes that are copied of the entry at the
// current key with those in the destination.
func (j *joiner) sameAttrs(value []byte) bool {
	var have Record
	want, err := j.whole(value)
	if err != nil {
		return false
	}
	d := j.dest
	if d.fs == nil {
		return true
	}
	if !d.fs.light {
		if decodeValue(d.value, &have) != nil {
			return false
		}
	} else {
		dir, name := splitKey(d.key, "")
		fd, err := d.fs.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		if name == "" {
			name = "."
		}
		d.attrs.readAt(fd, name, &have)
	}
	return copiedHash(&want) == copiedHash(&have)
}

// copiedHash is hashAttrs of what a backup copies.
func copiedHash(r *Record) uint64 {
	c := Record{AccessACL: r.AccessACL, DefaultACL: r.DefaultACL}
	for _, x := range r.Xattrs {
		ns, _, _ := strings.Cut(x.Name, ".")
		if slices.Contains([]string{"user", "trusted", "security"}, ns) {
			c.Xattrs = append(c.Xattrs, entry.Xattr{Name: x.Name, Value: x.Value})
		}
	}
	return hashAttrs(&c)
}

// wayOut collects what has to be deleted where a directory stands in the way of
// something else. Whether all in it is ours and gone is only known when its listing
// has been gone through; until then nothing of it is to be deleted.
type wayOut struct {
	lines *sortBuffer // by the way's number and the order in which they came
	n     uint64
	bad   []bool // by number: something in it is to stay
	used  []bool // by number: it has lines
}

// open begins a way and returns its number, from 1.
func (w *wayOut) open() int {
	w.bad, w.used = append(w.bad, false), append(w.used, false)
	return len(w.bad)
}

// add keeps a delete line back.
func (w *wayOut) add(way int, dir, name string, isDir bool) error {
	w.used[way-1] = true
	key := binary.BigEndian.AppendUint64(nil, w.n)
	w.n++
	value := binary.AppendUvarint(nil, uint64(way))
	kind := byte('f')
	if isDir {
		kind = 'd'
	}
	value = append(append(append(append(value, kind), dir...), 0), name...)
	return w.lines.add(key, value)
}

// clear writes the lines of the ways that are free.
func (w *wayOut) clear(m *merger, remove func(dir, name string, isDir bool) (bool, error)) (free int, err error) {
	for i, bad := range w.bad {
		if !bad && w.used[i] {
			free++
		}
	}
	for {
		_, value, ok, err := m.next()
		if err != nil || !ok {
			return free, err
		}
		way, n := binary.Uvarint(value)
		if n <= 0 || way == 0 || way > uint64(len(w.bad)) {
			return free, errShortRecord
		}
		if w.bad[way-1] {
			continue
		}
		dir, name, _ := bytes.Cut(value[n+1:], []byte{0})
		if _, err := remove(string(dir), string(name), value[n] == 'd'); err != nil {
			return free, err
		}
	}
}
