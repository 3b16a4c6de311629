package protocol_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

var (
	tokens = rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`)
	phases = rapid.SampledFrom(protocol.Order(false))
)

// matches reports whether a subject matches a pattern, as a NATS server says.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, tok := range p {
		switch {
		case tok == ">":
			return len(s) > i
		case i >= len(s) || s[i] == "" || (tok != "*" && tok != s[i]):
			return false
		}
	}
	return len(p) == len(s)
}

func TestSubjectsBelongToTheirPatternsOnly(t *testing.T) {
	t.Parallel()
	patterns := []string{protocol.SubjectsShards, protocol.SubjectsCursors, protocol.SubjectsResults, protocol.SubjectsFailures}
	rapid.Check(t, func(t *rapid.T) {
		job, other := protocol.JobID(tokens.Draw(t, "job")), protocol.JobID(tokens.Draw(t, "other"))
		pool, p := tokens.Draw(t, "pool"), phases.Draw(t, "phase")
		n, seq, delivery := rapid.Uint64().Draw(t, "n"), rapid.Uint64().Draw(t, "seq"), rapid.Uint32().Draw(t, "delivery")
		subjects := []string{
			protocol.ShardSubject(protocol.ClassStandard, pool, job, p, n), protocol.CursorSubject(job),
			protocol.ResultSubject(job, p, n), protocol.FailureSubject(job, p, n, seq, delivery),
		}
		for i, s := range subjects {
			for k, pat := range patterns {
				if matches(pat, s) != (i == k) {
					t.Errorf("%q and the pattern %q", s, pat)
				}
			}
		}
		if !matches(protocol.PoolFilter(protocol.ClassStandard, pool), subjects[0]) {
			t.Errorf("the consumer of pool %q does not get %q", pool, subjects[0])
		}
		for i, of := range []func(protocol.JobID) string{protocol.JobShards, protocol.CursorSubject, protocol.JobResults, protocol.JobFailures} {
			if !matches(of(job), subjects[i]) || (other != job && matches(of(other), subjects[i])) {
				t.Errorf("%q and the patterns of its and another job", subjects[i])
			}
		}
		gotJob, gotP, gotN, ok := protocol.ParseResultSubject(subjects[2])
		if !ok || gotJob != job || gotP != p || gotN != n {
			t.Errorf("%q reads as %q %v %d %v", subjects[2], gotJob, gotP, gotN, ok)
		}
		if got, ok := protocol.JobFromKey(protocol.JobKey(job)); !ok || got != job {
			t.Errorf("key of %q reads as %q", job, got)
		}
		if !matches(protocol.FileKeys(job), protocol.FileKey(job, 7)) {
			t.Errorf("file key of %q", job)
		}
	})
}

func TestNoTwoShardsShareASubject(t *testing.T) {
	t.Parallel()
	type id struct {
		job  string
		p    protocol.Phase
		n    uint64
		s    uint64
		d    uint32
		kind int
	}
	seen := map[string]id{}
	rapid.Check(t, func(t *rapid.T) {
		// Small numbers, so that a missing separator would show.
		a := id{
			job: rapid.StringMatching(`[0-9-]{1,3}`).Draw(t, "job"), p: phases.Draw(t, "phase"), n: rapid.Uint64Range(0, 120).Draw(t, "n"),
			s: rapid.Uint64Range(0, 120).Draw(t, "s"), d: rapid.Uint32Range(0, 120).Draw(t, "d"),
		}
		j := protocol.JobID(a.job)
		for kind, name := range []string{
			protocol.FailureSubject(j, a.p, a.n, a.s, a.d), protocol.ResultSubject(j, a.p, a.n), protocol.ShardSubject("std", "p", j, a.p, a.n),
			protocol.ShardObject(j, a.p, a.n), protocol.FailureObject(j, a.p, a.n, a.s, a.d),
		} {
			b := a
			b.kind = kind
			if kind != 0 && kind != 4 {
				b.s, b.d = 0, 0
			}
			if other, ok := seen[name]; ok && other != b {
				t.Fatalf("%q is both %v and %v", name, other, b)
			}
			seen[name] = b
		}
	})
}

func TestOnlyResultSubjectsAreRead(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "fsb.result", "fsb.result.j.1", "fsb.result.j.1.2.3", "fsb.shard.j.1.2", "x.result.j.1.2", "fsb.result..1.2",
		"fsb.result.j.01.2", "fsb.result.j.1.02", "fsb.result.j.+1.2", "fsb.result.j.1.-2", "fsb.result.j.256.2", "fsb.result.j.1.18446744073709551616", "fsb.result.j.1.",
	} {
		if j, p, n, ok := protocol.ParseResultSubject(s); ok {
			t.Errorf("%q reads as %q %v %d", s, j, p, n)
		}
	}
}

func TestTokensAreSafeInSubjects(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "a.b", "*", ">", "a b", "ä", "a/b", "a\x00", "a\n", strings.Repeat("a", 65)} {
		if _, err := protocol.ParseJobID(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: error %v", s, err)
		}
	}
	for _, s := range []string{"a", "A-b_9", strings.Repeat("a", 64)} {
		if id, err := protocol.ParseJobID(s); err != nil || string(id) != s {
			t.Errorf("%q: %q, %v", s, id, err)
		}
	}
}

func TestPhasesAreReadableInJSON(t *testing.T) {
	t.Parallel()
	all := map[protocol.Phase]protocol.PhaseRecord{}
	for i, p := range protocol.Order(false) {
		all[p] = protocol.PhaseRecord{Shards: uint64(i), Complete: i%2 == 0}
		b, err := json.Marshal(p)
		if err != nil || string(b) != `"`+p.String()+`"` {
			t.Errorf("%d is %s, error %v", p, b, err)
		}
	}
	want := protocol.JobRecord{ID: "j", Phases: all}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocol.Order(false) {
		if !strings.Contains(string(b), `"`+p.String()+`":{"shards"`) {
			t.Errorf("no key for %v in %s", p, b)
		}
	}
	var got protocol.JobRecord
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var unknown protocol.Phase
	if err := json.Unmarshal([]byte(`"defrag"`), &unknown); err != nil || unknown != 0 {
		t.Errorf("an unknown phase reads as %v, error %v", unknown, err)
	}
}

func TestDeleteBeforeMovesTheCopyBehindTheDeletesOnly(t *testing.T) {
	t.Parallel()
	a, b := protocol.Order(false), protocol.Order(true)
	if a[0] != protocol.PhaseCopy || a[1] != protocol.PhaseDelete || a[2] != protocol.PhaseRmdir || a[len(a)-1] != protocol.PhaseCleanup {
		t.Errorf("order %v", a)
	}
	if len(a) != len(protocol.Phases()) {
		t.Errorf("order %v of the phases %v", a, protocol.Phases())
	}
	b = append([]protocol.Phase{b[2], b[0], b[1]}, b[3:]...)
	if !slices.Equal(a, b) {
		t.Errorf("orders %v and %v", a, b)
	}
	seen := map[protocol.Phase]bool{}
	for _, p := range a {
		if seen[p] {
			t.Errorf("%v comes twice", p)
		}
		seen[p] = true
	}
}

func TestWhichControlFilesAPhaseReads(t *testing.T) {
	t.Parallel()
	kinds := []protocol.Phase{protocol.PhaseCopy, protocol.PhaseDelete, protocol.PhaseHardlink, protocol.PhaseDir}
	for p, want := range map[protocol.Phase][]protocol.Phase{
		protocol.PhaseCopy: kinds[:1], protocol.PhaseDelete: kinds[1:2], protocol.PhaseHardlink: kinds[2:3], protocol.PhaseDir: kinds[3:],
		protocol.PhaseFinish: kinds[:1], protocol.PhaseRmdir: kinds[1:2], protocol.PhaseVerify: {protocol.PhaseCopy, protocol.PhaseHardlink, protocol.PhaseDir},
	} {
		var got []protocol.Phase
		for _, kind := range kinds {
			if p.Reads(kind) {
				got = append(got, kind)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v reads %v, want %v", p, got, want)
		}
	}
}
