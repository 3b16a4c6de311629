package controlfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"os"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Pins hold a control file to the bytes that were admitted, in whatever part of
// it reading begins: its size, and a sum of each block. They are frozen once made.
type Pins struct {
	size  int64
	block int64  // bytes of a block, a power of two; the last block may have fewer
	sums  []byte // sumSize bytes a block
}

// A sum is the first half of a SHA-256. Something faster would find accidents as
// well, but a control file may lie where others can write, and none of them shall
// be able to make another block with the same sum.
const (
	sumSize   = 16
	minBlock  = 256 << 10
	mostPins  = 256 // blocks: 4 KiB of sums
	pinsForm  = 1   // first byte of the encoded form
	pinsFixed = 1 + 8 + 1
)

// blockFor returns the block size for a file: the whole is no more than mostPins blocks.
func blockFor(size int64) int64 {
	block := int64(minBlock)
	for size > mostPins*block {
		block *= 2
	}
	return block
}

// Encode returns the pins as bytes, for ParsePins.
func (p *Pins) Encode() []byte {
	b := make([]byte, 0, pinsFixed+len(p.sums))
	b = append(b, pinsForm)
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	b = append(b, byte(bits.TrailingZeros64(uint64(p.block))))
	return append(b, p.sums...)
}

// ParsePins is the inverse of Encode. No bytes are no pins: nil without an error.
// What is malformed is refused with kind fault.Corrupt.
func ParsePins(b []byte) (*Pins, error) {
	if len(b) == 0 {
		return nil, nil //nolint:nilnil // a file that was admitted without
	}
	bad := func(format string, args ...any) error {
		return &fault.Error{Kind: fault.Corrupt, Op: "read the pins of a control file", Err: fmt.Errorf(format, args...),
			Hint: "submit the control file again"}
	}
	if b[0] != pinsForm {
		return nil, bad("their form %d is not known", b[0])
	}
	if len(b) < pinsFixed {
		return nil, bad("they end early")
	}
	size, shift := binary.BigEndian.Uint64(b[1:]), b[9]
	if size > 1<<62 || shift > 62 {
		return nil, bad("a file of %d bytes cannot be in blocks of 2^%d", size, shift)
	}
	p := &Pins{size: int64(size), block: 1 << shift, sums: bytes.Clone(b[pinsFixed:])}
	if blocks := (size + 1<<shift - 1) >> shift; blocks > uint64(len(b)) || len(p.sums) != int(blocks)*sumSize {
		return nil, bad("%d bytes of sums for %d blocks", len(p.sums), blocks)
	}
	return p, nil
}

// pinner makes the pins of what is written to it.
type pinner struct {
	p    Pins
	hash hash.Hash
	in   int64 // bytes of the current block
}

func newPinner(block int64) *pinner { return &pinner{p: Pins{block: block}, hash: sha256.New()} }

// Write never fails.
func (w *pinner) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		part := b[:min(int64(len(b)), w.p.block-w.in)]
		w.hash.Write(part)
		b, w.in = b[len(part):], w.in+int64(len(part))
		if w.in == w.p.block {
			w.end()
		}
	}
	w.p.size += int64(n)
	return n, nil
}

func (w *pinner) end() {
	w.p.sums = append(w.p.sums, w.hash.Sum(nil)[:sumSize]...)
	w.hash.Reset()
	w.in = 0
}

// pins returns the pins of all that was written.
func (w *pinner) pins() *Pins {
	if w.in > 0 {
		w.end()
	}
	return &w.p
}

// pinned reads a file block by block and hands on no byte of a block before the
// whole of it is known to be as it was admitted.
type pinned struct {
	f    *os.File
	name string
	p    *Pins
	buf  []byte // the block in which the bytes at off are; may be shorter than the rest of it
	at   int64  // offset of buf in the file
	off  int64  // of the next byte to hand on
}

// pin holds an open file to its pins.
func pin(f *os.File, name string, p *Pins) (*pinned, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, readError(name, err)
	}
	if st.Size() != p.size {
		return nil, changed(name, "it has %d bytes, it had %d", st.Size(), p.size)
	}
	return &pinned{f: f, name: name, p: p}, nil
}

func changed(name, format string, args ...any) error {
	return &fault.Error{
		Kind: fault.Corrupt, Op: "read control file", Path: name, Hint: "put it back as it was, or submit it again",
		Err: fmt.Errorf("it was changed after it was admitted: "+format, args...),
	}
}

// Read implements io.Reader.
func (r *pinned) Read(b []byte) (int, error) {
	if r.off >= r.p.size {
		return 0, io.EOF
	}
	if r.off < r.at || r.off >= r.at+int64(len(r.buf)) {
		if err := r.load(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.buf[r.off-r.at:])
	r.off += int64(n)
	return n, nil
}

// load reads the block at off and checks it.
func (r *pinned) load() error {
	i := r.off / r.p.block
	at := i * r.p.block
	want := min(r.p.block, r.p.size-at)
	if int64(cap(r.buf)) < want {
		r.buf = make([]byte, want)
	}
	buf := r.buf[:want]
	r.buf = r.buf[:0] // nothing of it counts if an error follows
	n, err := r.f.ReadAt(buf, at)
	switch {
	case errors.Is(err, io.EOF) && int64(n) < want:
		return changed(r.name, "it ends at byte %d, it had %d", at+int64(n), r.p.size)
	case err != nil && !errors.Is(err, io.EOF):
		return readError(r.name, err)
	}
	if sum := sha256.Sum256(buf); !bytes.Equal(sum[:sumSize], r.p.sums[i*sumSize:(i+1)*sumSize]) {
		return changed(r.name, "something in its bytes %d to %d", at, at+want-1)
	}
	if at+want == r.p.size {
		var more [1]byte
		if n, _ := r.f.ReadAt(more[:], r.p.size); n > 0 {
			return changed(r.name, "it goes on behind its %d bytes", r.p.size)
		}
	}
	r.buf, r.at = buf, at
	return nil
}

// Seek implements io.Seeker, from the start only.
func (r *pinned) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 {
		return 0, fault.New(fault.Internal, "seek to %d from %d in a control file", offset, whence)
	}
	r.off = offset
	return offset, nil
}
