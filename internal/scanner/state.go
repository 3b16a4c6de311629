package scanner

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// The state file is the ordered stream itself: a magic line, then pairs as in a
// sort run, all compressed; at the end a pair head of a shared length that no
// key can have, and the number of records, so that a file that was cut short is
// never taken for a smaller tree. Version 1 knew no slots and no hashes, version 2 no
// copies; it is read all the same.
const (
	stateName  = "entries.zst"
	stateMagic = "fsbackup scan state 3\n"
	stateOlder = "fsbackup scan state 2\n"
	stateEnd   = 1 << 40
)

// stateWriter writes a state file: under its name with ".tmp", renamed by commit.
type stateWriter struct {
	path string
	f    *os.File
	buf  *bufio.Writer
	z    *zstd.Encoder
	last []byte
	head []byte // scratch
	n    uint64
}

func createState(path string) (*stateWriter, error) {
	// What a killed process has left may be a second name of another state, see Take.
	if err := os.Remove(path + ".tmp"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, stateError(path, err)
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return nil, stateError(path, err)
	}
	s := &stateWriter{path: path, f: f, buf: bufio.NewWriterSize(f, 256<<10)}
	s.z, err = zstd.NewWriter(s.buf, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err == nil {
		_, err = s.z.Write([]byte(stateMagic))
	}
	if err != nil {
		return nil, stateError(path, errors.Join(err, f.Close()))
	}
	return s, nil
}

func (s *stateWriter) add(key, value []byte) error {
	s.head = appendPairHead(s.head[:0], s.last, key, value)
	s.last = append(s.last[:0], key...)
	s.n++
	_, err := s.z.Write(s.head)
	if err == nil {
		_, err = s.z.Write(value)
	}
	if err != nil {
		return stateError(s.path, err)
	}
	return nil
}

// commit completes the file and gives it its name.
func (s *stateWriter) commit() error {
	end := binary.AppendUvarint(nil, stateEnd)
	_, err := s.z.Write(binary.AppendUvarint(end, s.n))
	err = errors.Join(err, s.z.Close(), s.buf.Flush())
	if err == nil {
		err = s.f.Sync()
	}
	f := s.f
	s.f = nil
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(s.path+".tmp", s.path)
	}
	if err != nil {
		return stateError(s.path, err)
	}
	return nil
}

// abandon removes an incomplete file; it does nothing after commit.
func (s *stateWriter) abandon() error {
	if s.f == nil {
		return nil
	}
	_ = s.z.Close() // what it could still write is thrown away
	f := s.f
	s.f = nil
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// State reads the state file of an earlier scan: its records in the order of
// the scan. Not safe for concurrent use.
type State struct {
	path string
	f    *os.File
	z    *zstd.Decoder
	p    pairReader
	n    uint64
	done bool
	dir  string
	last []byte
}

// OpenState opens a state file. The caller closes the State.
func OpenState(path string) (*State, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stateError(path, err)
	}
	s := &State{path: path, f: f}
	s.z, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, errors.Join(stateError(path, err), f.Close())
	}
	s.p.r = bufio.NewReaderSize(s.z, 64<<10)
	magic := make([]byte, len(stateMagic))
	switch _, err := io.ReadFull(s.p.r, magic); {
	case err != nil:
		return nil, errors.Join(stateError(path, err), s.Close())
	case string(magic) != stateMagic && string(magic) != stateOlder:
		return nil, errors.Join(stateError(path, errStateVersion), s.Close())
	}
	return s, nil
}

// Next returns the next record, io.EOF behind the last one of a complete file.
func (s *State) Next() (*Record, error) {
	for {
		key, value, err := s.pair()
		if err != nil {
			return nil, err
		}
		r := &Record{}
		if err := decodeValue(value, r); err != nil {
			return nil, stateError(s.path, err)
		}
		r.Dir, r.Name = splitKey(key, s.dir)
		s.dir = r.Dir
		if r.IsDir() && r.Name != "" {
			continue // a slot
		}
		return r, nil
	}
}

// pair returns the next key and value, valid until the next call; io.EOF behind
// the last ones of a complete file.
func (s *State) pair() (key, value []byte, err error) {
	if s.done {
		return nil, nil, io.EOF
	}
	if end, err := s.end(); err != nil || end {
		return nil, nil, err
	}
	s.last = append(s.last[:0], s.p.key...)
	key, value, err = s.p.next()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && s.n > 0 && bytes.Compare(key, s.last) <= 0 {
		err = errShortRecord
	}
	if err != nil {
		return nil, nil, stateError(s.path, err)
	}
	s.n++
	return key, value, nil
}

// end reports whether the end mark comes, with the right count.
func (s *State) end() (bool, error) {
	b, err := s.p.r.Peek(2 * binary.MaxVarintLen64)
	if err != nil && !errors.Is(err, io.EOF) { // among them the checksum's, which comes last
		return false, stateError(s.path, err)
	}
	shared, size := binary.Uvarint(b)
	if size <= 0 || shared != stateEnd {
		return false, nil
	}
	n, more := binary.Uvarint(b[size:])
	if more <= 0 || n != s.n || len(b) != size+more {
		return false, stateError(s.path, errShortRecord)
	}
	s.done = true
	return true, io.EOF
}

// Close releases the file.
func (s *State) Close() error {
	s.z.Close()
	if err := s.f.Close(); err != nil {
		return stateError(s.path, err)
	}
	return nil
}

var (
	errShort        = errors.New("the file ends too early")
	errStateVersion = errors.New("it is not a state file, or one of another version of this program")
)

// stateError is an error at a state file. What is not the file system's is
// damage: no part of such a file can be relied on.
func stateError(path string, err error) error {
	e := &fault.Error{Kind: fault.Corrupt, Op: "state file of the scan", Path: path, Err: err, Hint: "run a full backup; it writes a new one"}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		e.Err = errShort
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		e.Kind, e.Err = fault.KindOf(err), no
		if e.Kind != fault.NotFound {
			e.Hint = "make room for it and let this user read and write it"
		}
	}
	return e
}
