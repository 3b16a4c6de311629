package controlfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Bounds of what a MetaDir holds: with these, 2 MiB of pages and 16 descriptors.
const (
	metaOpenFiles = 16
	metaPages     = 2
	metaPageSize  = 64 << 10
)

// MetaDir reads records from the meta and xmeta files of one directory. Files
// are opened when they are first needed and closed when too many others have
// been used since. It is safe for concurrent use.
type MetaDir struct {
	dir string

	mu    sync.Mutex // guards what follows
	files map[string]*metaFile
	tick  uint64
}

// OpenMetaDir returns a MetaDir for dir. Nothing is touched before the first
// Lookup. The caller closes it.
func OpenMetaDir(dir string) *MetaDir {
	return &MetaDir{dir: dir, files: map[string]*metaFile{}}
}

// Close closes all files. Lookups that run meanwhile may fail; later ones open
// files again.
func (m *MetaDir) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for name, f := range m.files {
		errs = append(errs, f.close())
		delete(m.files, name)
	}
	return errors.Join(errs...)
}

// unusable is the error of a meta or xmeta file that is not there, cannot be opened or
// is no such file: of all entries that have a record in it, not of one.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

// MetaUnusable reports whether an error of Lookup is that of a whole meta or xmeta
// file, which it names, rather than of the entry.
func MetaUnusable(err error) bool {
	_, ok := errors.AsType[unusable](err)
	return ok
}

// Lookup reads and checks the record of entry e at ref: bounds, titles, that a
// name in the record is the entry's, and that both are of one type. Errors are
// *fault.Error: NotFound for a missing meta file, Corrupt for a bad record. See
// MetaUnusable.
func (m *MetaDir) Lookup(ref MetaRef, e Entry) (*Meta, error) {
	if !ref.Valid {
		return nil, m.fail(ref, fault.Invalid, errors.New("the entry has no record"))
	}
	index, err := MetaFileIndex(ref.File)
	if err != nil {
		return nil, m.fail(ref, fault.Corrupt, err)
	}
	f, err := m.acquire(metaPrefix + strconv.Itoa(int(index)))
	if err != nil {
		return nil, unusable{err}
	}
	defer m.release(f)
	var rec *Meta
	var x xmetaRef
	switch f.title {
	case titleMetaOld:
		rec, err = f.readOld(ref, e)
	case titleMetaNew:
		rec, x, err = f.readNew(ref, e)
	default:
		return nil, unusable{f.hasWrongTitle(titleMetaNew)}
	}
	if err == nil && x.offset != 0 {
		err = m.readXmeta(rec, x)
	}
	if err == nil {
		err = rec.agree(e, !e.IsDir && e.Mode == "")
	}
	if err != nil {
		if MetaUnusable(err) {
			return nil, err
		}
		kind := fault.Corrupt
		if fe := (*fault.Error)(nil); errors.As(err, &fe) {
			kind = fe.Kind
		}
		return nil, m.fail(ref, kind, err)
	}
	return rec, nil
}

func (m *MetaDir) fail(ref MetaRef, kind fault.Kind, err error) error {
	return &fault.Error{
		Kind: kind, Op: fmt.Sprintf("read the record at %d of", ref.Offset),
		Path: filepath.Join(m.dir, ref.File), Err: err,
	}
}

// readXmeta adds what the xmeta record at x holds.
func (m *MetaDir) readXmeta(rec *Meta, x xmetaRef) error {
	if x.index > 1<<16-1 {
		return fmt.Errorf("the record names xmeta file %d, more than 65535", x.index)
	}
	name := "x" + metaPrefix + strconv.FormatUint(x.index, 10)
	f, err := m.acquire(name)
	if err != nil {
		return unusable{err}
	}
	defer m.release(f)
	if f.title != titleXmeta {
		return unusable{f.hasWrongTitle(titleXmeta)}
	}
	if err := f.readXmeta(rec, x.offset); err != nil {
		return fmt.Errorf("%s at %d: %w", name, x.offset, err)
	}
	return nil
}

// acquire returns the file, open; release gives it back.
func (m *MetaDir) acquire(name string) (*metaFile, error) {
	m.mu.Lock()
	f := m.files[name]
	if f == nil {
		f = &metaFile{path: filepath.Join(m.dir, name)}
		m.files[name] = f
		m.evict(f)
	}
	m.tick++
	f.used = m.tick
	f.refs++
	m.mu.Unlock()
	if err := f.open(); err != nil {
		m.release(f)
		return nil, err
	}
	return f, nil
}

func (m *MetaDir) release(f *metaFile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f.refs--
}

// evict forgets the file that was used the longest time ago, if there are too
// many, keep excepted. One in use stays for now.
func (m *MetaDir) evict(keep *metaFile) {
	for len(m.files) > metaOpenFiles {
		var oldest string
		for name, f := range m.files {
			if f != keep && f.refs == 0 && (oldest == "" || f.used < m.files[oldest].used) {
				oldest = name
			}
		}
		if oldest == "" {
			return
		}
		// Only read from: an error of closing it loses nothing.
		_ = m.files[oldest].close()
		delete(m.files, oldest)
	}
}

// metaFile is one open meta or xmeta file.
type metaFile struct {
	path string
	refs int    // guarded by MetaDir.mu
	used uint64 // guarded by MetaDir.mu

	mu     sync.Mutex // guards what follows
	f      io.ReaderAt
	closer io.Closer
	size   int64
	title  string
	body   int64 // where the first record can be
	pages  [metaPages]metaPage
	turn   int
}

type metaPage struct {
	off  int64
	data []byte
}

func (f *metaFile) open() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f != nil {
		return nil
	}
	file, err := OpenRegular(f.path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return &fault.Error{Kind: fault.NotFound, Op: "open meta file", Path: f.path, Err: errors.New("it does not exist"),
				Hint: "name the directory with the meta files of the same scan"}
		}
		kind := fault.KindOf(err)
		if errors.Is(err, errNotRegular) {
			kind, err = fault.Corrupt, errNotRegular
		}
		return &fault.Error{Kind: kind, Op: "open meta file", Path: f.path, Err: err}
	}
	st, err := file.Stat()
	if err == nil {
		f.f, f.size = file, st.Size()
		err = f.readHeader()
	}
	if err != nil {
		f.f, f.pages = nil, [metaPages]metaPage{}
		return errors.Join(&fault.Error{Kind: fault.Corrupt, Op: "open meta file", Path: f.path, Err: err}, file.Close())
	}
	f.closer = file
	return nil
}

func (f *metaFile) hasWrongTitle(want string) error {
	return &fault.Error{Kind: fault.Corrupt, Op: "read meta file", Path: f.path, Err: fmt.Errorf("it has the title %s, not %q", quote(f.title), want)}
}

func (f *metaFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closer == nil {
		return nil
	}
	err := f.closer.Close()
	f.f, f.closer, f.pages = nil, nil, [metaPages]metaPage{}
	if err != nil {
		return &fault.Error{Kind: fault.KindOf(err), Op: "close meta file", Path: f.path, Err: err}
	}
	return nil
}

// readHeader finds title and version, and where the header ends: at the first
// empty line, within 4 KiB.
func (f *metaFile) readHeader() error {
	head, err := f.read(0, int(min(f.size, 4<<10)))
	if err != nil {
		return err
	}
	end := bytes.Index(head, []byte("\n\n"))
	if end < 0 {
		return errors.New("it has no header that ends in a blank line")
	}
	lines := strings.Split(string(head[:end]), "\n")
	title, ok := strings.CutPrefix(lines[0], "Title:")
	if !ok || len(lines) < 3 {
		return errors.New("it does not begin with the header of a meta file")
	}
	version, ok := strings.CutPrefix(lines[1], "Version:")
	want := map[string]string{titleMetaOld: "1.0", titleMetaNew: "2.0", titleXmeta: "1.0"}[title]
	switch {
	case want == "":
		return fmt.Errorf("its title is %s, not that of a meta file", quote(title))
	case !ok || version != want:
		return fmt.Errorf("its version is %s; only %s can be read", quote(version), want)
	}
	f.title, f.body = title, int64(end)+2
	return nil
}

// bytes returns n bytes at off, which must be a place where records are.
func (f *metaFile) bytes(off uint64, n int) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return nil, errors.New("the meta file was closed")
	}
	if off < uint64(f.body) || off > uint64(f.size) || uint64(n) > uint64(f.size)-off {
		return nil, fmt.Errorf("%d bytes at %d do not lie between the header's end at %d and the file's end at %d", n, off, f.body, f.size)
	}
	return f.read(int64(off), n)
}

// read returns a copy of n bytes at off, through the pages if it is small.
func (f *metaFile) read(off int64, n int) ([]byte, error) {
	out := make([]byte, n)
	if n > metaPageSize {
		return out, f.readAt(out, off)
	}
	for done := 0; done < n; {
		at := off + int64(done)
		page, err := f.page(at - at%metaPageSize)
		if err != nil {
			return nil, err
		}
		if at-page.off >= int64(len(page.data)) {
			return nil, io.ErrUnexpectedEOF
		}
		done += copy(out[done:], page.data[at-page.off:])
	}
	return out, nil
}

func (f *metaFile) page(off int64) (*metaPage, error) {
	for i := range f.pages {
		if p := &f.pages[i]; p.data != nil && p.off == off {
			return p, nil
		}
	}
	p := &f.pages[f.turn]
	f.turn = (f.turn + 1) % metaPages
	if cap(p.data) < metaPageSize {
		p.data = make([]byte, metaPageSize)
	}
	data := p.data[:min(metaPageSize, f.size-off)]
	p.data = nil
	if err := f.readAt(data, off); err != nil {
		return nil, err
	}
	p.off, p.data = off, data
	return p, nil
}

func (f *metaFile) readAt(b []byte, off int64) error {
	n, err := f.f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the file shrank: %w", io.ErrUnexpectedEOF)
	}
	return &fault.Error{Kind: fault.KindOf(err), Op: "read meta file", Path: f.path, Err: err}
}

// readOld reads a named record, whose length only the entry knows.
func (f *metaFile) readOld(ref MetaRef, e Entry) (*Meta, error) {
	if ref.Length == 0 || ref.Length > 1<<16-1 {
		return nil, fmt.Errorf("the entry says that its record has %d bytes, not 1 to 65535", ref.Length)
	}
	b, err := f.bytes(ref.Offset, int(ref.Length))
	if err != nil {
		return nil, err
	}
	return decodeOld(b, e)
}

// readNew reads a fixed record; the entry's length is ignored, as the reference
// does.
func (f *metaFile) readNew(ref MetaRef, e Entry) (*Meta, xmetaRef, error) {
	size := sizeFileNew
	if e.IsDir {
		size = sizeDirNew
	}
	b, err := f.bytes(ref.Offset, size)
	if err != nil {
		return nil, xmetaRef{}, err
	}
	var m Meta
	var x xmetaRef
	if e.IsDir {
		m, x = decodeDirNew(b)
	} else {
		m, x = decodeFileNew(b)
	}
	return &m, x, nil
}

func (f *metaFile) readXmeta(rec *Meta, off uint64) error {
	head, err := f.bytes(off, xmetaHead)
	if err != nil {
		return err
	}
	size, err := xmetaSize(head)
	if err != nil {
		return err
	}
	b, err := f.bytes(off+xmetaHead, size)
	if err != nil {
		return err
	}
	return rec.decodeXmeta(le.Uint32(head), b)
}
