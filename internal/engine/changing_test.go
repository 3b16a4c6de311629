package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// pattern is what a source holds that changes: every prefix of it is a state
// that the source may have been in, and nothing else is.
func pattern(size int) string { return strings.Repeat("0123456789abcdefghijklmno", size/25+1)[:size] }

// changesOfSources are what may happen to the file p while it is read. Each works
// any number of times; n is the number of the call.
var changesOfSources = map[string]func(p string, size int, n int64) error{
	"grown": func(p string, size int, n int64) error {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(pattern(int(st.Size()) + 1000)[st.Size():])
		return errors.Join(err, f.Close())
	},
	"shrunk": func(p string, size int, n int64) error {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		return os.Truncate(p, st.Size()*3/4)
	},
	"truncated": func(p string, size int, n int64) error {
		if n%2 == 1 {
			return os.Truncate(p, 0)
		}
		return os.WriteFile(p, []byte(pattern(size)), 0o644)
	},
	"replaced": func(p string, size int, n int64) error {
		if err := os.WriteFile(p+".new", []byte(pattern(size/2+int(n)%100)), 0o644); err != nil {
			return err
		}
		return os.Rename(p+".new", p)
	},
	"deleted": func(p string, size int, n int64) error {
		if n%2 == 1 {
			return os.Remove(p)
		}
		return os.WriteFile(p, []byte(pattern(size)), 0o644)
	},
	"renamed": func(p string, size int, n int64) error {
		from, to := p, p+".away"
		if n%2 == 0 {
			from, to = to, from
		}
		return os.Rename(from, to)
	},
}

// stateOf fails unless the target holds a state of the source, or is not there
// and the outcome says why.
func (g *rig) stateOf(what string, o *Outcome) {
	g.t.Helper()
	got, err := os.ReadFile(filepath.Join(g.dst, "f"))
	for _, f := range o.Failures {
		kind := fault.Kind(f.Kind)
		if f.Path != "f" || kind != fault.Changed && (kind != fault.NotFound || f.Errno != int(unix.ENOENT)) {
			g.t.Errorf("%s: %+v", what, f)
		}
	}
	switch {
	case err != nil && len(o.Failures) == 0:
		g.t.Errorf("%s: it is not there and nothing says so", what)
	case err == nil && string(got) != pattern(len(got)):
		g.t.Errorf("%s: the target of %d bytes is no state of the source", what, len(got))
	}
	noTemps(g.t, g.dst)
}

// TestSourcesThatChangeWhileTheyAreRead changes the source in each way at each
// check of the guard, which lie between the looks at it, once and every time.
// The target is the source before or after, whole, with the time of that state;
// a source that never holds still fails and leaves nothing.
func TestSourcesThatChangeWhileTheyAreRead(t *testing.T) {
	const size = 9 << 20 // there is a check amid the data
	for name, change := range changesOfSources {
		t.Run(name, func(t *testing.T) {
			rereads := 0
			for k := int64(1); ; k++ {
				g := newRig(t)
				p := g.write("f", pattern(size))
				old := lstat(t, p)
				checks := int64(0)
				o, err := g.try(g.batch(1, g.copyOf("f")), guardFunc(func() error {
					if checks++; checks == k {
						return change(p, size, 1)
					}
					return nil
				}))
				must(t, err)
				if checks < k {
					break // there are no more
				}
				what := fmt.Sprintf("%s at check %d", name, k)
				g.stateOf(what, o)
				rereads += int(o.Counts.ChangedWhileRead)
				if len(o.Failures) > 0 {
					continue
				}
				target := lstat(t, filepath.Join(g.dst, "f"))
				now := old
				if exists(p) {
					now = lstat(t, p)
				}
				was := target.Size == old.Size && target.Mtim == old.Mtim
				is := target.Size == now.Size && target.Mtim == now.Mtim
				if !was && !is {
					t.Errorf("%s: the target has size %d and time %v", what, target.Size, target.Mtim)
				}
			}
			if rereads == 0 && name != "deleted" && name != "renamed" {
				t.Error("no change was met amid a read")
			}
			if name == "deleted" || name == "renamed" {
				return // what is gone does not go again
			}
			const large = 48 << 20 // shrunk each time it is still read in pieces
			g := newRig(t)
			p := g.write("f", pattern(large))
			n := int64(0)
			o, err := g.try(g.batch(1, g.copyOf("f")), guardFunc(func() error { n++; return change(p, large, n) }))
			must(t, err)
			if name == "truncated" && len(o.Failures) == 0 { // an empty file is read at once
				g.stateOf(name, o)
				return
			}
			wantFailures(t, o, "f")
			g.wantCounts(o, entry.Counts{FilesFailed: 1, ChangedWhileRead: 1})
			if l := listing(t, g.dst); len(l) != 1 {
				t.Errorf("left: %v", l)
			}
		})
	}
}

// TestWritersThatRunAlong change a source in each way as fast as they can while
// it is copied over and over.
func TestWritersThatRunAlong(t *testing.T) {
	const size = 1 << 20
	for name, change := range changesOfSources {
		t.Run(name, func(t *testing.T) {
			g := newRig(t)
			p := g.write("f", pattern(size))
			e := g.copyOf("f")
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var changed atomic.Int64
			wg.Go(func() {
				for n := int64(1); ctx.Err() == nil; n++ {
					if err := change(p, size, n); err != nil {
						t.Error(err)
						return
					}
					changed.Store(n)
					if st, err := os.Stat(p); err == nil && (st.Size() < size/8 && name == "shrunk" || st.Size() > 2*size) {
						must(t, os.WriteFile(p+".new", []byte(pattern(size)), 0o644))
						must(t, os.Rename(p+".new", p))
					}
				}
			})
			rounds := 40
			if long() {
				rounds = 1000
			}
			said := 0
			for range rounds {
				must(t, os.RemoveAll(filepath.Join(g.dst, "f")))
				o := g.run(g.batch(1, e))
				g.stateOf(name, o)
				said += len(o.Failures) + int(o.Counts.ChangedWhileRead+o.Counts.ChangedSinceScan)
			}
			stop()
			wg.Wait()
			t.Logf("%d changes, %d of %d copies said so", changed.Load(), said, rounds)
			if said == 0 {
				t.Error("no copy met a change")
			}
		})
	}
}
