package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/entry"
)

// TestChangingSourcesAreTaken: with TakeChanging a source that changes each time it is
// read is what was read last, says so, counts the same again, and is copied by the
// next run, which finds it quiet.
func TestChangingSourcesAreTaken(t *testing.T) {
	const size = 48 << 20 // there are checks amid the data
	for _, name := range []string{"grown", "shrunk"} {
		for _, verify := range []Verify{VerifyNone, VerifyChecksum} {
			for _, replace := range []Replace{ReplaceAlways, ReplaceIfOlder} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					g := newRig(t)
					g.spec.TakeChanging, g.spec.Verify, g.spec.Replace = true, verify, replace
					p := g.write("f", pattern(size))
					n := int64(0)
					change := guardFunc(func() error { n++; return changesOfSources[name](p, size, n) })
					b := g.batch(1, g.copyOf("f"))
					for range 2 {
						o, err := g.try(b, change)
						must(t, err)
						wantFailures(t, o)
						target, now := lstat(t, filepath.Join(g.dst, "f")), lstat(t, p)
						want := entry.Counts{FilesCopied: 1, BytesCopied: uint64(target.Size), ChangedWhileRead: 1, ChangedSinceScan: 1, ChangingTaken: 1}
						if verify != VerifyNone {
							want.FilesVerified, want.BytesVerified = 1, want.BytesCopied
						}
						g.wantCounts(o, want)
						wantWarning(t, o, WarnTaken, 1, "f")
						if got := read(t, filepath.Join(g.dst, "f")); got != pattern(len(got)) || target.Size == 0 {
							t.Errorf("the target of %d bytes holds what the source never held", len(got))
						}
						if target.Mtim == now.Mtim || !older(target.Mtim, now.Mtim) {
							t.Errorf("the target has the time %v, the source %v", target.Mtim, now.Mtim)
						}
						noTemps(t, g.dst)
						must(t, os.WriteFile(p, []byte(pattern(size)), 0o644))
						b.Predecessors = []AttemptID{b.Attempt}
						b.Attempt.Delivery++
					}
					o := g.run(g.batch(1, g.copyOf("f")))
					wantFailures(t, o)
					if o.Counts.FilesCopied != 1 || o.Counts.ChangingTaken+o.Counts.ChangedWhileRead > 0 {
						t.Errorf("the next run counts %+v", o.Counts)
					}
					if target, now := lstat(t, filepath.Join(g.dst, "f")), lstat(t, p); target.Mtim != now.Mtim || target.Size != size {
						t.Errorf("the next run leaves %+v, the source is %+v", target, now)
					}
				})
			}
		}
	}
}

// TestAChangingSparseSourceIsTakenToItsEnd: what is read ends where the source ends
// now, holes before that end included.
func TestAChangingSparseSourceIsTakenToItsEnd(t *testing.T) {
	for _, verify := range []Verify{VerifyNone, VerifyChecksum} {
		g := newRig(t)
		g.spec.TakeChanging, g.spec.Verify = true, verify
		p := g.write("f", "")
		end := int64(64 << 20)
		cut := func() {
			end -= 1 << 20
			must(t, os.Truncate(p, end))
		}
		must(t, os.Truncate(p, end))
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		must(t, err)
		for off := int64(0); off < end; off += 4 << 20 {
			_, err := f.WriteAt([]byte(strings.Repeat("d", 2<<20)), off)
			must(t, err)
		}
		must(t, f.Close())
		o, err := g.try(g.batch(1, g.copyOf("f")), guardFunc(func() error { cut(); return nil }))
		must(t, err)
		wantFailures(t, o)
		if o.Counts.ChangingTaken != 1 {
			t.Errorf("counts %+v", o.Counts)
		}
		got := read(t, filepath.Join(g.dst, "f"))
		for i := range got {
			if want := "d\x00"[i>>21&1]; got[i] != want {
				t.Fatalf("byte %d is %q, want %q", i, got[i], want)
			}
		}
	}
}

// TestAPolicyThatKeepsIsKeptForWhatChanges: what is not to be replaced is not, and
// metadata alone is not enough for contents that changed.
func TestAPolicyThatKeepsIsKeptForWhatChanges(t *testing.T) {
	g := newRig(t)
	g.spec.TakeChanging, g.spec.Replace = true, ReplaceNever
	p := g.write("f", pattern(20<<20))
	g.target("f", "own")
	n := int64(0)
	o, err := g.try(g.batch(1, g.copyOf("f")), guardFunc(func() error { n++; return changesOfSources["grown"](p, 0, n) }))
	must(t, err)
	g.wantCounts(o, entry.Counts{Skipped: 1})
	if read(t, filepath.Join(g.dst, "f")) != "own" {
		t.Error("it was replaced")
	}
}

func TestTheFailureOfAChangingSourceNamesTheOption(t *testing.T) {
	g := newRig(t)
	p := g.write("f", pattern(20<<20))
	n := int64(0)
	o, err := g.try(g.batch(1, g.copyOf("f")), guardFunc(func() error { n++; return changesOfSources["grown"](p, 0, n) }))
	must(t, err)
	wantFailures(t, o, "f")
	if len(o.Failures) == 1 && !strings.Contains(o.Failures[0].Reason, "--changing take") {
		t.Errorf("%+v", o.Failures[0])
	}
}
