package scanner

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync/atomic"
)

const (
	// blockSize is how much memory a sort buffer takes at a time.
	blockSize = 1 << 20
	// indexCost is what a pair costs beside its bytes.
	indexCost = 8
)

// sortBuffer collects pairs of key and value and sorts them by key; full ones
// become runs of a runSet. Memory is taken in blocks and used again after each
// run. Not safe for concurrent use.
type sortBuffer struct {
	runs   *runSet
	limit  *atomic.Int64 // bytes of pairs and index; it may shrink
	blocks [][]byte
	used   int      // blocks with content
	size   int      // bytes of content
	index  []uint64 // block<<32 | offset
	groups []int    // where in the index each group ends; see group
}

// fixed returns a limit that stays.
func fixed(n int) *atomic.Int64 {
	var limit atomic.Int64
	limit.Store(int64(n))
	return &limit
}

// group says that all pairs which were added since the last call come after one
// another in the order of keys, with none of another group between them: what one
// directory holds. Sorting is cheaper then. A buffer has groups for all of its pairs or
// for none.
func (s *sortBuffer) group() {
	if n := len(s.index); n > s.grouped() {
		s.groups = append(s.groups, n)
	}
}

// grouped returns where the last group ends.
func (s *sortBuffer) grouped() int {
	if len(s.groups) == 0 {
		return 0
	}
	return s.groups[len(s.groups)-1]
}

// add takes a pair; both are copied.
func (s *sortBuffer) add(key, value []byte) error {
	need := len(key) + len(value) + 2*binary.MaxVarintLen32
	limit := int(s.limit.Load())
	if s.size+need+len(s.index)*indexCost > limit && len(s.index) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	if s.used == 0 || len(s.blocks[s.used-1])+need > cap(s.blocks[s.used-1]) {
		if s.used == len(s.blocks) {
			s.blocks = append(s.blocks, make([]byte, 0, max(min(blockSize, limit), need)))
		} else if cap(s.blocks[s.used]) < need {
			s.blocks[s.used] = make([]byte, 0, need)
		}
		s.used++
	}
	b := s.blocks[s.used-1]
	before := len(b)
	s.index = append(s.index, uint64(s.used-1)<<32|uint64(before))
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	b = append(b, value...)
	s.blocks[s.used-1] = b
	s.size += len(b) - before
	return nil
}

// pair returns the pair that an index entry points to.
func (s *sortBuffer) pair(at uint64) (key, value []byte) {
	b := s.blocks[at>>32][at&(1<<32-1):]
	n, size := binary.Uvarint(b)
	b = b[size:]
	key, b = b[:n], b[n:]
	n, size = binary.Uvarint(b)
	return key, b[size : size+int(n)]
}

func (s *sortBuffer) sort() {
	if len(s.groups) > 0 {
		s.sortGroups()
		return
	}
	slices.SortFunc(s.index, func(a, b uint64) int {
		x, _ := s.pair(a)
		y, _ := s.pair(b)
		return bytes.Compare(x, y)
	})
}

// sortGroups sorts the pairs of each group and then the groups.
func (s *sortBuffer) sortGroups() {
	s.group() // what a directory had when the buffer was full
	type keyed struct {
		key []byte
		at  uint64
	}
	type span struct {
		first    []byte
		from, to int
	}
	var pairs []keyed
	spans := make([]span, 0, len(s.groups))
	from := 0
	for _, to := range s.groups {
		pairs = pairs[:0]
		for _, at := range s.index[from:to] {
			key, _ := s.pair(at)
			pairs = append(pairs, keyed{key, at})
		}
		slices.SortFunc(pairs, func(a, b keyed) int { return bytes.Compare(a.key, b.key) })
		for i, p := range pairs {
			s.index[from+i] = p.at
		}
		spans = append(spans, span{pairs[0].key, from, to})
		from = to
	}
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.first, b.first) })
	sorted := make([]uint64, 0, len(s.index))
	for _, sp := range spans {
		sorted = append(sorted, s.index[sp.from:sp.to]...)
	}
	s.index, s.groups = sorted, s.groups[:0]
}

// spill writes the content to a run and empties the buffer.
func (s *sortBuffer) spill() error {
	s.sort()
	w, err := s.runs.create()
	if err != nil {
		return err
	}
	for _, at := range s.index {
		if err := w.add(s.pair(at)); err != nil {
			return err
		}
	}
	if err := s.runs.finish(w); err != nil {
		return err
	}
	if most := int(s.limit.Load())/blockSize + 1; len(s.blocks) > most { // it has shrunk
		s.blocks = slices.Delete(s.blocks, most, len(s.blocks))
	}
	for i := range s.blocks {
		s.blocks[i] = s.blocks[i][:0]
	}
	s.index, s.groups, s.used, s.size = s.index[:0], s.groups[:0], 0, 0
	return nil
}

// source yields pairs in the order of their keys. What next returns is valid
// until the next call; ok is false at the end.
type source interface {
	next() (key, value []byte, ok bool, err error)
	close() error
}

// memorySource yields the content of a sorted buffer.
type memorySource struct {
	s *sortBuffer
	i int
}

func (m *memorySource) next() (key, value []byte, ok bool, err error) {
	if m.i == len(m.s.index) {
		m.s.blocks, m.s.index, m.i = nil, nil, 0 // free it while the others go on
		return nil, nil, false, nil
	}
	key, value = m.s.pair(m.s.index[m.i])
	m.i++
	return key, value, true, nil
}

func (m *memorySource) close() error { return nil }

// merger yields the pairs of several sources in the order of their keys; of
// equal keys, which a directory that changes while it is read can produce, only
// the first.
type merger struct {
	heap    []*mergeItem
	last    []byte // key of the pair before
	started bool   // there was one, and its source is on top and to be moved on
}

type mergeItem struct {
	src        source
	n          int // place among the sources, which decides between equal keys
	key, value []byte
}

// newMerger takes the sources over: it closes each at its end, or all on close.
func newMerger(sources []source) (*merger, error) {
	m := &merger{}
	for i, src := range sources {
		it := &mergeItem{src: src, n: i}
		m.heap = append(m.heap, it)
	}
	for i := 0; i < len(m.heap); {
		ok, err := m.heap[i].advance()
		if err != nil {
			return nil, closeAll(err, m.heap)
		}
		if ok {
			i++
			continue
		}
		m.heap = slices.Delete(m.heap, i, i+1)
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m, nil
}

func closeAll(err error, items []*mergeItem) error {
	for _, it := range items {
		if cerr := it.src.close(); err == nil {
			err = cerr
		}
	}
	return err
}

// advance reads the next pair; at the end it closes the source.
func (it *mergeItem) advance() (bool, error) {
	var ok bool
	var err error
	it.key, it.value, ok, err = it.src.next()
	if err == nil && !ok {
		err = it.src.close()
	}
	return ok, err
}

func (m *merger) less(i, j int) bool {
	a, b := m.heap[i], m.heap[j]
	if c := bytes.Compare(a.key, b.key); c != 0 {
		return c < 0
	}
	return a.n < b.n
}

func (m *merger) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(m.heap) {
			return
		}
		if c+1 < len(m.heap) && m.less(c+1, c) {
			c++
		}
		if !m.less(c, i) {
			return
		}
		m.heap[i], m.heap[c] = m.heap[c], m.heap[i]
		i = c
	}
}

// next returns the next pair. The source of the one before is moved on only
// now, so that what was returned stays valid until this call.
func (m *merger) next() (key, value []byte, ok bool, err error) {
	for {
		again := m.started
		if again {
			if ok, err = m.heap[0].advance(); err != nil {
				return nil, nil, false, err
			}
			if !ok {
				n := len(m.heap) - 1
				m.heap[0], m.heap[n] = m.heap[n], nil
				m.heap = m.heap[:n]
			}
			m.down(0)
		}
		if len(m.heap) == 0 {
			m.started = false
			return nil, nil, false, nil
		}
		m.started = true
		top := m.heap[0]
		if again && bytes.Equal(top.key, m.last) {
			continue
		}
		m.last = append(m.last[:0], top.key...)
		return top.key, top.value, true, nil
	}
}

func (m *merger) close() error { return closeAll(nil, m.heap) }
