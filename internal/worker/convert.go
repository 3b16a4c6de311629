package worker

import (
	"slices"
	"strconv"
	"strings"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// maxPrior bounds the earlier deliveries whose temporary names are looked for.
const maxPrior = 64

// batch turns a shard's message into what the engine executes.
func batch(s *protocol.ShardMsg, d *bus.Delivery) (*engine.Batch, error) {
	b := &engine.Batch{
		Phase: uint8(s.GetPhase()), N: s.GetN(), Attempt: engine.AttemptID{Sequence: d.Sequence, Delivery: d.Delivered},
		Entries: make([]engine.Entry, 0, len(s.GetEntries())),
		Leader:  protocol.LeaderFromHeader(d.Header),
	}
	// Every delivery before this one may have left temporary names. Beyond a
	// bound they are deliveries that were handed back unexecuted, for hours.
	for i := max(1, d.Delivered-min(d.Delivered, maxPrior)); i < d.Delivered; i++ {
		b.Predecessors = append(b.Predecessors, engine.AttemptID{Sequence: d.Sequence, Delivery: i})
	}
	b.Predecessors = append(b.Predecessors, priorAttempts(d.Header)...)
	dirs := make([]string, len(s.GetDirs()))
	for i, p := range s.GetDirs() {
		dirs[i] = string(p)
	}
	for _, e := range s.GetEntries() {
		if int(e.GetDir()) >= len(dirs) {
			return nil, fault.New(fault.Corrupt, "entry of line %d refers to directory %d of %d", e.GetLine(), e.GetDir(), len(dirs))
		}
		path := dirs[e.GetDir()]
		if name := string(e.GetName()); name != "" {
			if path != "" {
				path += "/"
			}
			path += name
		}
		b.Entries = append(b.Entries, engine.Entry{
			Op: entry.Op(e.GetOp()), Mode: e.GetMode(), Path: path, Meta: protocol.MetaFromWire(e.GetMeta()), Group: e.GetGroup(), LeaderOnly: e.GetLeaderOnly(),
			IsDir: e.GetIsDir(), Reject: e.GetReject(), Kind: uint8(e.GetKind()), File: s.GetFile(), Line: e.GetLine(),
		})
	}
	return b, nil
}

// priorAttempts reads the attempts at earlier messages of a shard that was
// published again: sequence.deliveries, comma-separated, the newest last. It returns
// the newest maxPrior of them.
func priorAttempts(h map[string][]string) []engine.AttemptID {
	v := h[protocol.HeaderPrior]
	if len(v) == 0 {
		return nil
	}
	var out []engine.AttemptID
	for rest, more := v[0], true; more && len(out) < maxPrior; {
		var part string
		if i := strings.LastIndexByte(rest, ','); i >= 0 {
			rest, part = rest[:i], rest[i+1:]
		} else {
			part, more = rest, false
		}
		seq, n, ok := strings.Cut(part, ".")
		s, err1 := strconv.ParseUint(seq, 10, 64)
		last, err2 := strconv.ParseUint(n, 10, 16)
		if !ok || err1 != nil || err2 != nil {
			continue
		}
		for i := uint32(last); i >= 1 && len(out) < maxPrior; i-- {
			out = append(out, engine.AttemptID{Sequence: s, Delivery: i})
		}
	}
	slices.Reverse(out)
	return out
}

// results turns the engine's outcome into messages.
func results(a *attempt) answer {
	s := a.shard
	r := &protocol.ResultMsg{
		Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN(), Failures: uint64(len(a.outcome.Failures)), Entries: uint64(len(s.GetEntries())),
		Counts: protocol.CountsToWire(&a.outcome.Counts), Leader: uint32(a.outcome.Leader),
	}
	for _, x := range a.outcome.Warnings {
		r.Warnings = append(r.Warnings, &protocol.WarningMsg{Kind: x.Kind, Count: x.Count, Example: []byte(x.Example)})
	}
	f := &protocol.FailuresMsg{Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN()}
	for _, x := range a.outcome.Failures {
		f.Failures = append(f.Failures, failure(x))
	}
	return answer{r, f}
}

// failure turns a failure of the engine into its message.
func failure(x engine.Failure) *protocol.FailureMsg {
	reason := x.Reason
	if reason == "" {
		reason = fault.Kind(x.Kind).String()
	}
	return &protocol.FailureMsg{
		File: x.File, Line: x.Line, Path: []byte(x.Path), Op: x.Op, Errno: int32(x.Errno), Kind: uint32(x.Kind), Reason: reason, IsDir: x.IsDir,
	}
}
