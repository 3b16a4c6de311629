package protocol_test

import (
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func TestASpecGetsItsDefaults(t *testing.T) {
	t.Parallel()
	got := protocol.JobSpec{Source: "/a//b/", Destination: "/c/./d"}
	if err := got.Normalize(); err != nil {
		t.Fatal(err)
	}
	want := protocol.JobSpec{
		Source: "/a/b", Destination: "/c/d", Pool: "default", Replace: "always", Vanished: "fail", Sync: "batch", Memory: -1,
		Limits: protocol.DefaultLimits(),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestASpecIsHeldAgainstItsRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		set  func(*protocol.JobSpec)
		want []string // in the error; none = accepted
	}{
		{"relative source", func(s *protocol.JobSpec) { s.Source = "a" }, []string{"source must be an absolute path"}},
		{"no destination", func(s *protocol.JobSpec) { s.Destination = "" }, []string{"destination must be"}},
		{"both, each named", func(s *protocol.JobSpec) { s.Source, s.Destination = "a", "b" }, []string{"source", "destination"}},
		{"NUL", func(s *protocol.JobSpec) { s.Source = "/a\x00" }, []string{"source"}},
		{"not UTF-8", func(s *protocol.JobSpec) { s.Destination = "/a\xff" }, nil},
		{"trim not UTF-8", func(s *protocol.JobSpec) { s.Trim = "\xff" }, nil},
		{"trim with NUL", func(s *protocol.JobSpec) { s.Trim = "a\x00" }, []string{"trim"}},
		{"pool", func(s *protocol.JobSpec) { s.Pool = "a.b" }, []string{"pool"}},
		{"replace", func(s *protocol.JobSpec) { s.Replace = "sometimes" }, []string{"replace must be one of always, if-older, never"}},
		{"vanished", func(s *protocol.JobSpec) { s.Vanished = "x" }, []string{"vanished"}},
		{"sync", func(s *protocol.JobSpec) { s.Sync = "x" }, []string{"sync"}},
		{"verify", func(s *protocol.JobSpec) { s.Verify = "md5" }, []string{"verify must be one of none, checksum"}},
		{"verify with checksums", func(s *protocol.JobSpec) { s.Verify = "checksum" }, nil},
		{"verify none", func(s *protocol.JobSpec) { s.Verify = "none" }, nil},
		{"priority too low", func(s *protocol.JobSpec) { s.Priority = -5 }, []string{"priority"}},
		{"priority too high", func(s *protocol.JobSpec) { s.Priority = 5 }, []string{"priority"}},
		{"priority at its end", func(s *protocol.JobSpec) { s.Priority = 4 }, nil},
		{"memory", func(s *protocol.JobSpec) { s.Memory = -2 }, []string{"memory"}},
		{"memory by default", func(s *protocol.JobSpec) { s.Memory = -1 }, nil},
		{"threads", func(s *protocol.JobSpec) { s.Threads = -1 }, []string{"threads"}},
		{"limits of another version", func(s *protocol.JobSpec) { s.Limits.Version = 9 }, []string{"limits version"}},
		{"everything at once", func(s *protocol.JobSpec) { s.Sync, s.Replace, s.Threads = "x", "x", -1 }, []string{"sync", "replace", "threads"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := protocol.JobSpec{Source: "/s", Destination: "/d"}
			c.set(&s)
			err := s.Normalize()
			if len(c.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has more than one line", err)
			}
		})
	}
}

func TestLimitsAreBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want protocol.Limits }{
		{protocol.Limits{Entries: -1, RawBytes: -1}, protocol.DefaultLimits()},
		{protocol.Limits{Entries: 1, RawBytes: 1, DataBytes: 1}, protocol.Limits{Version: 1, Entries: 1, RawBytes: 16 << 10, DataBytes: 1}},
		{protocol.Limits{Entries: 1 << 30, RawBytes: 1 << 30, DataBytes: 1 << 60}, protocol.Limits{Version: 1, Entries: 100_000, RawBytes: 16 << 20, DataBytes: 1 << 60}},
	} {
		s := protocol.JobSpec{Source: "/s", Destination: "/d", Limits: c.in}
		if err := s.Normalize(); err != nil || s.Limits != c.want {
			t.Errorf("%+v became %+v, error %v", c.in, s.Limits, err)
		}
	}
}

// TestReferencesToFilesNameNothingElse: a coordinator makes a name of its own
// from what a reference says.
func TestReferencesToFilesNameNothingElse(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0a", 32)
	for _, r := range []protocol.FileRef{{Path: "/c/control_0.txt"}, {Path: "/c/control_0.txt", Digest: sum}} {
		if err := r.Check(); err != nil {
			t.Error(err)
		}
	}
	for _, r := range []protocol.FileRef{
		{Path: ""}, {Path: "control_0.txt"}, {Path: "/"}, {Path: "/c/.."}, {Path: "/c/\x00"},
		{Path: "/c/f", Digest: "../../../etc/cron.d/f"}, {Path: "/c/f", Digest: "/etc/passwd"}, {Path: "/c/f", Digest: ".."},
		{Path: "/c/f", Digest: sum[1:]}, {Path: "/c/f", Digest: sum + "00"}, {Path: "/c/f", Digest: sum[:62] + "/x"},
	} {
		if err := r.Check(); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// TestAHundredBytesOfASpecNeverCostAMebibyte, and limits that a spec asks for are
// no sizes that anybody allocates.
func TestAHundredBytesOfASpecNeverCostAMebibyte(t *testing.T) { //nolint:paralleltest // memory is measured
	for _, text := range []string{
		`{"source":"/s","destination":"/d","threads":9223372036854775807,"memory":9223372036854775807}`,
		`{"source":"/s","destination":"/d","limits":{"entries":2147483647,"raw_bytes":2147483647}}`,
		`{"source":"/` + strings.Repeat("../", 20) + `","destination":"/"}`,
		strings.Repeat("[", 100), `{"trace":` + strings.Repeat(`{"a":`, 18), `{"source":"` + strings.Repeat(`\u0000`, 14),
	} {
		if len(text) > 100 {
			t.Errorf("%q has %d bytes", text, len(text))
		}
		n := allocated(func() {
			var s protocol.JobSpec
			if json.Unmarshal([]byte(text), &s) == nil {
				_ = s.Normalize()
			}
		})
		if n > 1<<20 {
			t.Errorf("%q costs %d bytes", text, n)
		}
	}
}

// FuzzJobSpec holds that a spec that is accepted is canonical: neither a second
// look nor the way over the wire changes it.
func FuzzJobSpec(f *testing.F) {
	f.Add([]byte(`{"source":"/s","destination":"/d"}`))
	f.Add([]byte(`{"source":"/s/../..","destination":"//d/.","pool":"p","priority":4,"memory":-1,"limits":{"version":1,"raw_bytes":-5}}`))
	f.Add([]byte(`{"source":"/\ud800","destination":"/d","trim":"a/b","sync":"none","trace":{"traceparent":"x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s protocol.JobSpec
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if err := s.Normalize(); err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("kind of %v", err)
			}
			return
		}
		if !path.IsAbs(s.Source) || !path.IsAbs(s.Destination) || protocol.CheckToken("pool", s.Pool) != nil {
			t.Errorf("accepted %+v", s)
		}
		again := s
		if err := again.Normalize(); err != nil {
			t.Errorf("refused at the second look: %v", err)
		}
		wire, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got protocol.JobSpec
		if err := json.Unmarshal(wire, &got); err != nil {
			t.Fatal(err)
		}
		if len(s.Trace) == 0 { // {} and nothing are one
			s.Trace, again.Trace = nil, nil
		}
		if d := cmp.Diff(s, again) + cmp.Diff(s, got); d != "" {
			t.Error(d)
		}
	})
}

func TestEveryStateHasItsStatus(t *testing.T) {
	t.Parallel()
	for s, want := range map[protocol.State]int{
		protocol.StateQueued: 2, protocol.StateRunning: 2, protocol.StatePaused: 2, protocol.StateCancelling: 2, protocol.StateEnding: 2,
		protocol.StateCompleted: 1, protocol.StateFailed: 3, protocol.StateCancelled: 3,
	} {
		if s.Status() != want || s.Final() != (want != 2) {
			t.Errorf("%s: status %d, final %v", s, s.Status(), s.Final())
		}
	}
}

func TestFailuresAreEntriesAndControlFiles(t *testing.T) {
	t.Parallel()
	s := protocol.Stats{DirsFailed: 1, FilesFailed: 10, DeletesFailed: 100, DirMetaFailed: 1000, FilesRefused: 10000, Skipped: 7, ShardsRepeated: 7}
	if s.Failures() != 11111 {
		t.Errorf("%d failures", s.Failures())
	}
}
