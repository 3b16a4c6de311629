package scanner

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// problems collects what could not be scanned: the first ones in memory, all of
// them in a file that is made when the first one comes. It is safe for
// concurrent use.
type problems struct {
	path string

	mu    sync.Mutex // guards what follows
	count uint64
	first []Problem
	f     *os.File
	w     *bufio.Writer
	err   error // of writing the file; the scan then fails
}

func newProblems(out string) *problems { return &problems{path: filepath.Join(out, problemFile)} }

// add takes a problem at an entry path.
func (p *problems) add(path string, err error) {
	if fe := (*fault.Error)(nil); !errors.As(err, &fe) || fe.Path == "" {
		err = &fault.Error{Kind: fault.KindOf(err), Op: "scan", Path: orDot(path), Err: err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if len(p.first) < maxProblems {
		p.first = append(p.first, Problem{path, err})
	}
	if p.f == nil && p.err == nil {
		p.f, p.err = os.Create(p.path)
		p.w = bufio.NewWriter(p.f)
	}
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%s\t%s\n", controlfile.Escape(orDot(path)), strings.ReplaceAll(err.Error(), "\n", " "))
	}
}

func orDot(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func (p *problems) number() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// finish closes the file and sets what the result says about problems.
func (p *problems) finish(r *Result) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ProblemCount, r.Problems = p.count, p.first
	slices.SortFunc(r.Problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Err.Error(), b.Err.Error()))
	})
	if p.f == nil && p.err == nil {
		return nil
	}
	err := p.err
	if p.f != nil {
		err = errors.Join(err, p.w.Flush(), p.f.Close())
	}
	r.ProblemFile = p.path
	if err != nil {
		return outError(p.path, err)
	}
	return nil
}
