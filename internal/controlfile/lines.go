package controlfile

import (
	"bufio"
	"errors"
	"io"
	"strings"
)

// physLine is one physical line. What has been found out about it is kept, so
// that a line that is looked at again while names are joined costs nothing.
type physLine struct {
	text   string // without line end; of an over-long line the first max bytes
	no     uint64
	off    int64 // of its first byte
	end    int64 // of the first byte after its line end
	commas int
	long   bool // longer than max
	crlf   bool // a "\r" before the line end was cut off
	alone  aloneState
}

type aloneState uint8

const (
	aloneUnknown aloneState = iota
	aloneValid              // is a complete entry by itself
	aloneInvalid
)

// lineSource yields physical lines with unlimited look-ahead; its callers bound
// the look-ahead by MaxLine bytes.
type lineSource struct {
	max    int // bytes of a line
	r      *bufio.Reader
	queue  []physLine // lines looked at; those before head are consumed
	head   int
	off    int64  // of the next byte to be read
	no     uint64 // number of the next line to be read
	cutCR  bool   // body of a file with CRLF line ends
	failed error
}

// peek returns the line i places ahead, io.EOF at the end, or a read error. The
// pointer is valid until the next call.
func (s *lineSource) peek(i int) (*physLine, error) {
	for len(s.queue)-s.head <= i {
		l, err := s.read()
		if err != nil {
			return nil, err
		}
		s.queue = append(s.queue, l)
	}
	return &s.queue[s.head+i], nil
}

// drop consumes n lines that have been looked at.
func (s *lineSource) drop(n int) {
	clear(s.queue[s.head : s.head+n])
	s.head += n
	switch {
	case s.head == len(s.queue):
		s.queue, s.head = s.queue[:0], 0
	case s.head >= 256 && s.head*2 >= len(s.queue):
		m := copy(s.queue, s.queue[s.head:])
		clear(s.queue[m:])
		s.queue, s.head = s.queue[:m], 0
	}
}

// next consumes one line.
func (s *lineSource) next() (physLine, error) {
	l, err := s.peek(0)
	if err != nil {
		return physLine{}, err
	}
	line := *l
	s.drop(1)
	return line, nil
}

// position returns offset and number of the next line.
func (s *lineSource) position() (int64, uint64) {
	if s.head < len(s.queue) {
		return s.queue[s.head].off, s.queue[s.head].no
	}
	return s.off, s.no
}

func (s *lineSource) read() (physLine, error) {
	if s.failed != nil {
		return physLine{}, s.failed
	}
	l := physLine{no: s.no, off: s.off}
	raw, err := s.r.ReadSlice('\n')
	size := int64(len(raw))
	var b strings.Builder
	if errors.Is(err, bufio.ErrBufferFull) {
		// Too long by far: keep the beginning for the message, skip the rest.
		l.long = true
		b.Write(raw[:s.max])
		for errors.Is(err, bufio.ErrBufferFull) {
			raw, err = s.r.ReadSlice('\n')
			size += int64(len(raw))
		}
	} else {
		raw = trimEnd(raw)
		if len(raw) > s.max {
			l.long, raw = true, raw[:s.max]
		}
		b.Write(raw)
	}
	if err != nil {
		s.failed = err
		if !errors.Is(err, io.EOF) || size == 0 {
			return physLine{}, err //nolint:wrapcheck // wrapped with the file's name by the reader
		}
	}
	s.off += size
	s.no++
	l.end = s.off
	l.text = b.String()
	if s.cutCR {
		l.text, l.crlf = strings.CutSuffix(l.text, "\r")
	}
	l.commas = strings.Count(l.text, ",")
	return l, nil
}

func trimEnd(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		return b[:n-1]
	}
	return b
}
