package scanner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// Modes of lines, in the order of their numbers in the sort of links.
const (
	modeSame = ""   // nothing is to be done
	modeNew  = "nn" // not in the destination
	modeBoth = "bm" // data and metadata
	modeData = "dm" // data only, as far as can be told
	modeMeta = "mm" // metadata only
	modeStay = "fm" // an unchanged directory in which something changes
)

var linkModes = [...]string{modeSame, modeNew, modeBoth, modeData, modeMeta}

// emitter writes control and meta files. It is used by one goroutine.
type emitter struct {
	cfg      *Config
	layout   layout
	res      *Result
	problems *problems
	meta     *controlfile.MetaWriter
	links    *sortBuffer // members of hard-link groups, by inode
	linkDirs *sortBuffer // directories that wait to be emitted until links are; nil = none does
	written  *atomic.Uint64
	first    bool // nothing is known of the destination, and it is not looked at: all is new

	files  map[fileKind]*controlfile.Writer
	made   map[controlfile.Kind]int
	coded  int                              // coded delete files that are complete
	under  map[fileKind]string              // copy and delete files: the directory that file lines belong to
	trials map[fileKind]*controlfile.Writer // never written

	key   []byte // scratch
	value []byte // scratch
}

// fileKind tells the control files that are open at a time.
type fileKind struct {
	kind  controlfile.Kind
	coded bool // its names are escaped
}

func newEmitter(s *scan) *emitter {
	return &emitter{
		cfg: s.cfg, layout: s.layout, res: &s.res, problems: s.problems, written: &s.written,
		first: s.cfg.Committed == "" && s.cfg.Destination == "",
		files: map[fileKind]*controlfile.Writer{}, made: map[controlfile.Kind]int{}, under: map[fileKind]string{},
		trials: map[fileKind]*controlfile.Writer{},
	}
}

// checkEvery is how many records pass between two looks at the context.
const checkEvery = 4096

func (e *emitter) countType(r *Record) {
	switch r.Mode & modeFormat {
	case modeSymlink:
		e.res.Symlinks++
	case modeFifo:
		e.res.Fifos++
	case modeSocket:
		e.res.Sockets++
	case modeChar:
		e.res.CharDevs++
	case modeBlock:
		e.res.BlockDevs++
	default:
		e.res.Regular++
	}
}

// countMode counts an entry by the mode of its line.
func (e *emitter) countMode(mode string) {
	switch {
	case mode == modeSame:
		e.res.Unchanged++
	case mode == modeNew || e.first:
		e.res.New++
	case mode == modeMeta:
		e.res.MetaOnly++
	case mode == modeStay:
		e.res.Refinished++
	default:
		e.res.Modified++
	}
}

func (e *emitter) tell(op Op, mode, path string, isDir bool) {
	if e.cfg.OnChange != nil {
		e.cfg.OnChange(Change{Op: op, Mode: mode, Path: path, IsDir: isDir})
	}
}

// directory writes the lines of a directory. It reports false if they cannot
// be written, which is then a problem.
func (e *emitter) directory(r *Record, mode string) (bool, error) {
	ref, err := e.record(r, "/"+r.Dir)
	if err != nil {
		return false, err
	}
	line := controlfile.Entry{
		Type: controlfile.TypeDir, IsDir: true, Mode: mode, Dir: "/" + r.Dir, Meta: ref, ACL: r.AccessACL+r.DefaultACL != "",
	}
	ok, err := e.add(controlfile.Copy, line, 0, r.Dir)
	if err != nil || !ok {
		return false, err
	}
	e.countMode(mode)
	e.tell(OpDir, mode, r.Dir, true)
	return e.add(controlfile.Mtime, controlfile.Entry{
		Type: controlfile.TypeTimes, IsDir: true, Dir: "/" + r.Dir, Times: &controlfile.Times{
			Mode: r.Mode, Attr: controlfile.AttrDir, UID: r.UID, GID: r.GID, Ctime: r.Ctime.Sec, Atime: r.Atime.Sec,
			Mtime: r.Mtime.Sec, Btime: r.Btime.Sec, SubDirs: uint64(r.SubDirs),
		},
	}, 0, r.Dir)
}

// file writes the line of an entry that is no directory and no hard link, below
// the line of its directory.
func (e *emitter) file(r *Record, mode string) (bool, error) {
	ref, err := e.record(r, r.Name)
	if err != nil {
		return false, err
	}
	size := r.data()
	ok, err := e.add(controlfile.Copy, controlfile.Entry{
		Type: controlfile.TypeFile, Mode: mode, Dir: "/" + r.Dir, Name: r.Name, Meta: ref, ACL: r.AccessACL != "",
	}, size, r.Path())
	if err != nil || !ok {
		return false, err
	}
	e.countMode(mode)
	op := OpMeta
	if mode != modeMeta {
		op = OpCopy
		e.res.CopyBytes += size
	}
	e.tell(op, mode, r.Path(), false)
	return true, nil
}

// data returns the size that counts as data.
func (r *Record) data() uint64 {
	if r.Mode&modeFormat == modeRegular {
		return r.Size
	}
	return 0
}

// holds reports whether a control file can hold the line of an entry that is no
// directory; if not that is a problem. It comes before anything else is written
// because of the entry.
func (e *emitter) holds(kind controlfile.Kind, dir, name string) (bool, error) {
	if kind == controlfile.Copy {
		return true, nil // a name is never too long
	}
	line := controlfile.Entry{
		Type: controlfile.TypeFile, Mode: modeBoth, Dir: "/" + dir, Name: name, FileCount: 1<<32 - 1,
		Meta: controlfile.MetaRef{File: "meta_file_65535", Offset: 1<<63 - 1, Length: 1<<16 - 1, Valid: true},
	}
	w, err := e.trial(kindOf(kind, line))
	if err != nil {
		return false, err
	}
	err = w.Check(line)
	return err == nil, e.refused(joinPath(dir, name), err)
}

// kindOf returns which control file of a kind a line belongs to.
func kindOf(kind controlfile.Kind, line controlfile.Entry) fileKind {
	return fileKind{kind, controlfile.NeedsCode(kind, line)}
}

// trial returns a writer to try lines with.
func (e *emitter) trial(k fileKind) (*controlfile.Writer, error) {
	if w := e.trials[k]; w != nil {
		return w, nil
	}
	w, err := controlfile.NewWriter(filepath.Join(e.layout.ctrl, "never-written.txt"), e.headerOf(k), e.cfg.Now, controlfile.Limits{})
	if err == nil {
		e.trials[k] = w
	}
	return w, err
}

// refused makes a problem of the refusal of a line; other errors it returns.
func (e *emitter) refused(path string, err error) error {
	if err != nil && fault.Is(err, fault.Unsupported) {
		e.problems.add(path, err)
		return nil
	}
	return err
}

// deletes reports whether a control file can hold the delete line of what is gone; if
// not that is a problem.
func (e *emitter) deletes(dir, name string, isDir bool) (bool, error) {
	line := deleteLine(dir, name, isDir)
	w, err := e.trial(kindOf(controlfile.Delete, line))
	if err != nil {
		return false, err
	}
	err = w.Check(line)
	return err == nil, e.refused(joinPath(dir, name), err)
}

// deleteLine returns the line that removes what is gone.
func deleteLine(dir, name string, isDir bool) controlfile.Entry {
	if isDir {
		return controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: "/" + joinPath(dir, name), Delete: true}
	}
	return controlfile.Entry{Type: controlfile.TypeFile, Dir: "/" + dir, Name: name}
}

// remove writes the delete line of what is gone. It reports false if that cannot
// be written, which is then a problem.
func (e *emitter) remove(dir, name string, isDir bool) (bool, error) {
	path := joinPath(dir, name)
	ok, err := e.add(controlfile.Delete, deleteLine(dir, name, isDir), 0, path)
	if err != nil || !ok {
		return false, err
	}
	if isDir {
		e.res.DeletedDirs++
	} else {
		e.res.DeletedFiles++
	}
	e.tell(OpDelete, "", path, isDir)
	return true, nil
}

// member is an entry on its way to the sort by inode.
type member struct {
	inode   devIno
	linked  uint32 // members of groups in its directory
	mode    string // what its line would be if it had one
	adopted bool   // no earlier scan knew it
	at      devIno // what the destination has as it; zero = not known
}

// memberAdopted marks the byte of a member's mode.
const memberAdopted = 0x80

// link passes an entry on to the sort by inode. With modeSame it is written only if
// another member of its group is, or if its group is not one in the destination.
func (e *emitter) link(key, value []byte, m member) error {
	e.key = binary.BigEndian.AppendUint64(e.key[:0], m.inode.dev)
	e.key = binary.BigEndian.AppendUint64(e.key, m.inode.ino)
	e.key = append(e.key, key...)
	e.value = binary.AppendUvarint(e.value[:0], uint64(m.linked))
	e.value = binary.AppendUvarint(e.value, m.at.dev)
	e.value = binary.AppendUvarint(e.value, m.at.ino)
	mode := byte(slices.Index(linkModes[:], m.mode))
	if m.adopted {
		mode |= memberAdopted
	}
	e.value = append(e.value, mode)
	e.value = append(e.value, value...)
	return e.links.add(e.key, e.value)
}

// record writes the meta and xmeta records of an entry.
func (e *emitter) record(r *Record, name string) (controlfile.MetaRef, error) {
	m := controlfile.Meta{
		Meta: entry.Meta{
			Mode: r.Mode, Nlink: r.Nlink, UID: r.UID, GID: r.GID, Inode: r.Ino, Size: r.Size, Rdev: r.Rdev,
			Atime: r.Atime.Sec, Mtime: r.Mtime.Sec, Ctime: r.Ctime.Sec, Btime: r.Btime.Sec,
			AccessACL: r.AccessACL, DefaultACL: r.DefaultACL, Xattrs: r.Xattrs, Symlink: r.Symlink, Sparse: r.Sparse,
		},
		Type: controlfile.MetaTypeUnix, Attr: controlfile.AttrFile, BlockSize: uint64(r.BlockSize), Blocks: r.Blocks, Name: name,
		Partial: r.Flags&FlagAttrsPartial != 0,
	}
	if r.IsDir() {
		m.Attr, m.HardlinkFiles, m.SubDirs = controlfile.AttrDir, r.Linked, r.SubDirs
	}
	ref, dropped, err := e.meta.Add(&m)
	if dropped > 0 || m.Partial {
		e.res.AttrsPartial++
	}
	return ref, err
}

// add appends a line to the control file of a kind, which it begins or changes
// for the next one when needed. A line that cannot be written is a problem of
// its entry; ok is then false.
func (e *emitter) add(kind controlfile.Kind, line controlfile.Entry, size uint64, path string) (ok bool, err error) {
	k := kindOf(kind, line)
	w, err := e.writer(k)
	if err != nil {
		return false, err
	}
	if line.Type == controlfile.TypeFile {
		if err := e.name(k, w, line.Dir); err != nil {
			return false, e.refused(path, err)
		}
	}
	if err := w.Add(line, size); err != nil {
		return false, e.refused(path, err)
	}
	switch {
	case line.Delete:
		delete(e.under, k) // readers take it for the parent of what follows
	case line.Type == controlfile.TypeDir:
		e.under[k] = line.Dir
	}
	e.written.Add(1)
	return true, nil
}

// name makes dir the directory of the file lines to come: unless it is that already, by
// a line that only names it.
func (e *emitter) name(k fileKind, w *controlfile.Writer, dir string) error {
	if under, ok := e.under[k]; ok && under == dir {
		return nil
	}
	line := controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: dir}
	if k.kind == controlfile.Copy {
		line.Mode = controlfile.ModeDeleted
	}
	err := w.Add(line, 0)
	if err == nil {
		e.under[k] = dir
	}
	return err
}

// writer returns the control file of a kind that has room.
func (e *emitter) writer(k fileKind) (*controlfile.Writer, error) {
	w := e.files[k]
	if w != nil && !w.Full() {
		return w, nil
	}
	if err := e.finish(k); err != nil {
		return nil, err
	}
	n := e.made[k.kind]
	e.made[k.kind]++
	w, err := controlfile.NewWriter(filepath.Join(e.layout.ctrl, fileName(e.cfg, k.kind, n)), e.headerOf(k), e.cfg.Now,
		controlfile.Limits{Entries: e.cfg.MaxEntries, Bytes: e.cfg.MaxBytes})
	if err == nil {
		e.files[k] = w
	}
	return w, err
}

// fileName returns the name of the n-th control file of a kind. The number in it
// is the same for the same scan, and another for another.
func fileName(cfg *Config, kind controlfile.Kind, n int) string {
	id := xxh3.HashString(fmt.Sprintf("%s\x00%d\x00%d\x00%d", cfg.TaskID, cfg.Now.UnixNano(), kind, n))
	prefix := map[controlfile.Kind]string{
		controlfile.Copy: "control", controlfile.Delete: "delete_control",
		controlfile.Hardlink: "hardlink_control", controlfile.Mtime: "mtime",
	}[kind]
	return fmt.Sprintf("%s_%d_%016x.txt", prefix, n, id)
}

func (e *emitter) header(kind controlfile.Kind) controlfile.Header {
	return controlfile.Header{
		Kind: kind, TaskID: e.cfg.TaskID, BackupType: e.cfg.BackupType, NasServer: e.cfg.Server, NasShare: e.cfg.Share,
		NasProtocol: e.cfg.Protocol, NasProtocolVersion: e.cfg.ProtocolVersion, MetadataScope: "folder-and-files",
	}
}

func (e *emitter) headerOf(k fileKind) controlfile.Header {
	h := e.header(k.kind)
	if k.coded {
		h.Version = k.kind.CodedVersion()
	}
	return h
}

// finishAll completes the control files of some kinds.
func (e *emitter) finishAll(kinds ...controlfile.Kind) error {
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, e.finish(fileKind{kind: kind}), e.finish(fileKind{kind, true}))
	}
	return errors.Join(errs...)
}

// finish completes the control file of a kind. The meta files are made readable
// first: whoever is told of the file may read its records at once.
func (e *emitter) finish(k fileKind) error {
	w := e.files[k]
	if w == nil {
		return nil
	}
	delete(e.files, k)
	delete(e.under, k)
	if err := e.meta.Flush(); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	made := ControlFile{k.kind, w.Path()}
	if k.coded && k.kind == controlfile.Delete {
		// Before the others: what it names is below directories that those name.
		e.res.ControlFiles = slices.Insert(e.res.ControlFiles, e.coded, made)
		e.coded++
	} else {
		e.res.ControlFiles = append(e.res.ControlFiles, made)
	}
	if e.cfg.OnControlFile != nil {
		e.cfg.OnControlFile(k.kind, w.Path())
	}
	return nil
}
