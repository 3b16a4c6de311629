package scanner

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// pending holds the directories that are known and not yet read. The last one
// known is the first one read, which keeps them few; where one directory holds
// very many, the oldest go to a file. It is safe for concurrent use.
type pending struct {
	path  string
	limit int // directories in memory

	mu     sync.Mutex // guards what follows
	wake   *sync.Cond
	stack  []string
	active int // directories being read
	closed bool
	file   *os.File
	parts  []int64 // where each part of the file begins
	end    int64
	spills int
}

func newPending(dir string, limit int) *pending {
	p := &pending{path: filepath.Join(dir, "pending"), limit: max(limit, 2)}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// push adds directories.
func (p *pending) push(dirs []string) error {
	if len(dirs) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stack = append(p.stack, dirs...)
	p.wake.Broadcast()
	if len(p.stack) > p.limit {
		return p.spill()
	}
	return nil
}

// pop returns a directory to be read, after which done must be called; it waits
// while there is none but others are being read. ok is false when all is done
// or stop was called.
func (p *pending) pop() (dir string, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.closed {
			return "", false, nil
		}
		if len(p.stack) == 0 && len(p.parts) > 0 {
			if err := p.load(); err != nil {
				return "", false, err
			}
		}
		if n := len(p.stack); n > 0 {
			dir, p.stack[n-1] = p.stack[n-1], ""
			p.stack = p.stack[:n-1]
			p.active++
			return dir, true, nil
		}
		if p.active == 0 {
			return "", false, nil
		}
		p.wake.Wait()
	}
}

// waiting reports whether there are directories that nobody reads yet.
func (p *pending) waiting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.stack) > 0 || len(p.parts) > 0
}

// done ends the reading of a directory that pop returned.
func (p *pending) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active--; p.active == 0 {
		p.wake.Broadcast()
	}
}

// stop makes every pop return at once.
func (p *pending) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.wake.Broadcast()
}

// close removes the file.
func (p *pending) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return nil
	}
	err := errors.Join(p.file.Close(), os.Remove(p.path))
	p.file = nil
	if err != nil {
		return spillError(p.path, err)
	}
	return nil
}

// spill moves the older half of the stack to the end of the file.
func (p *pending) spill() error {
	if p.file == nil {
		f, err := os.OpenFile(p.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return spillError(p.path, err)
		}
		p.file = f
	}
	n := len(p.stack) / 2
	var b []byte
	for _, dir := range p.stack[:n] {
		b = binary.AppendUvarint(b, uint64(len(dir)))
		b = append(b, dir...)
	}
	if _, err := p.file.WriteAt(b, p.end); err != nil {
		return spillError(p.path, err)
	}
	p.parts = append(p.parts, p.end)
	p.end += int64(len(b))
	m := copy(p.stack, p.stack[n:])
	clear(p.stack[m:])
	p.stack = p.stack[:m]
	p.spills++
	return nil
}

// load brings the last part of the file back.
func (p *pending) load() error {
	last := len(p.parts) - 1
	begin := p.parts[last]
	b := make([]byte, p.end-begin)
	if _, err := p.file.ReadAt(b, begin); err != nil && !errors.Is(err, io.EOF) {
		return spillError(p.path, err)
	}
	d := decoder{b: b}
	for len(d.b) > 0 {
		p.stack = append(p.stack, string(d.bytes()))
	}
	if d.bad {
		return spillError(p.path, errShortRecord)
	}
	p.parts, p.end = p.parts[:last], begin
	p.wake.Broadcast()
	return nil
}
