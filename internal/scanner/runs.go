package scanner

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/fsbackup/fsbackup/internal/fault"
)

const (
	// maxFanIn is how many runs are merged at once; with more, some are merged
	// to a longer run first. It bounds descriptors and read buffers.
	maxFanIn = 128
	// runBuffer is the read buffer of each run.
	runBuffer = 64 << 10
	// maxPair bounds what a damaged run can make its reader allocate: 64 MiB is
	// more than an entry's attributes can be.
	maxPair = 64 << 20
)

// runSet keeps the sorted runs of one sort in files of a directory. It is safe
// for concurrent use.
type runSet struct {
	dir, prefix string
	fanIn       int

	mu    sync.Mutex // guards what follows
	made  int
	paths []string
}

func newRunSet(dir, prefix string, fanIn int) *runSet {
	if fanIn < 2 {
		fanIn = maxFanIn
	}
	return &runSet{dir: dir, prefix: prefix, fanIn: fanIn}
}

// create begins a run; finish adds it to the set.
func (r *runSet) create() (*runWriter, error) {
	r.mu.Lock()
	r.made++
	path := filepath.Join(r.dir, fmt.Sprintf("%s_%06d", r.prefix, r.made))
	r.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, spillError(path, err)
	}
	return &runWriter{f: f, w: bufio.NewWriterSize(f, 256<<10)}, nil
}

func (r *runSet) finish(w *runWriter) error {
	err := w.w.Flush()
	if err = errors.Join(err, w.f.Close()); err != nil {
		return spillError(w.f.Name(), err)
	}
	r.mu.Lock()
	r.paths = append(r.paths, w.f.Name())
	r.mu.Unlock()
	return nil
}

// merge returns the pairs of all runs and of the buffers' contents in order.
// Nothing may be added meanwhile.
func (r *runSet) merge(buffers []*sortBuffer) (*merger, error) {
	for len(r.paths) > r.fanIn {
		if err := r.compact(); err != nil {
			return nil, err
		}
	}
	var sources []source
	for _, path := range r.paths {
		src, err := openRun(path)
		if err != nil {
			for _, s := range sources {
				err = errors.Join(err, s.close())
			}
			return nil, err
		}
		sources = append(sources, src)
	}
	for _, b := range buffers {
		b.sort()
		sources = append(sources, &memorySource{s: b})
	}
	return newMerger(sources)
}

// compact merges the oldest runs to one.
func (r *runSet) compact() error {
	oldest := r.paths[:r.fanIn:r.fanIn]
	r.paths = r.paths[r.fanIn:]
	var sources []source
	for _, path := range oldest {
		src, err := openRun(path)
		if err != nil {
			return err
		}
		sources = append(sources, src)
	}
	m, err := newMerger(sources)
	if err != nil {
		return err
	}
	w, err := r.create()
	if err != nil {
		return errors.Join(err, m.close())
	}
	for {
		key, value, ok, err := m.next()
		if err == nil && ok {
			err = w.add(key, value)
		}
		if err != nil {
			return errors.Join(err, m.close())
		}
		if !ok {
			return r.finish(w)
		}
	}
}

// runWriter writes pairs in the order of their keys. A key is written as the
// length of the beginning that it shares with the one before, and the rest.
type runWriter struct {
	f    *os.File
	w    *bufio.Writer
	last []byte
	head []byte // scratch
}

func (w *runWriter) add(key, value []byte) error {
	w.head = appendPairHead(w.head[:0], w.last, key, value)
	w.last = append(w.last[:0], key...)
	_, err := w.w.Write(w.head)
	if err == nil {
		_, err = w.w.Write(value)
	}
	if err != nil {
		return spillError(w.f.Name(), err)
	}
	return nil
}

// appendPairHead appends all of a pair but the value itself.
func appendPairHead(b, last, key, value []byte) []byte {
	shared := 0
	for shared < len(key) && shared < len(last) && key[shared] == last[shared] {
		shared++
	}
	b = binary.AppendUvarint(b, uint64(shared))
	b = binary.AppendUvarint(b, uint64(len(key)-shared))
	b = append(b, key[shared:]...)
	return binary.AppendUvarint(b, uint64(len(value)))
}

// pairReader reads what appendPairHead and values make.
type pairReader struct {
	r          *bufio.Reader
	key, value []byte
}

// next returns the next pair, io.EOF at the end of the input between two pairs.
func (p *pairReader) next() (key, value []byte, err error) {
	shared, err := binary.ReadUvarint(p.r)
	if err != nil {
		return nil, nil, err //nolint:wrapcheck // the callers name the file
	}
	if shared > uint64(len(p.key)) {
		return nil, nil, errShortRecord
	}
	p.key = p.key[:shared]
	if p.key, err = p.part(p.key); err == nil {
		p.value, err = p.part(p.value[:0])
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return p.key, p.value, err
}

// part appends a length and as many bytes to b.
func (p *pairReader) part(b []byte) ([]byte, error) {
	n, err := binary.ReadUvarint(p.r)
	if err != nil {
		return b, err //nolint:wrapcheck // the callers name the file
	}
	if n > maxPair {
		return b, errShortRecord
	}
	at := len(b)
	if need := at + int(n); need > cap(b) {
		grown := make([]byte, need, need+need/2+64)
		copy(grown, b)
		b = grown
	}
	b = b[:at+int(n)]
	_, err = io.ReadFull(p.r, b[at:])
	return b, err //nolint:wrapcheck // the callers name the file
}

// runSource yields the pairs of a run; close removes the file.
type runSource struct {
	f *os.File
	p pairReader
}

func openRun(path string) (*runSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, spillError(path, err)
	}
	return &runSource{f: f, p: pairReader{r: bufio.NewReaderSize(f, runBuffer)}}, nil
}

func (s *runSource) next() (key, value []byte, ok bool, err error) {
	key, value, err = s.p.next()
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, spillError(s.f.Name(), err)
	}
	return key, value, true, nil
}

func (s *runSource) close() error {
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return spillError(f.Name(), err)
	}
	return nil
}

func spillError(path string, err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return &fault.Error{
		Kind: fault.KindOf(err), Op: "sort the scan in", Path: path, Err: err,
		Hint: "make room there, or choose another directory for temporary files",
	}
}
