package protocol

import (
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// FailWhole returns the outcome of a shard all of whose entries failed for one
// reason, the leader of a hard-link group that goes on after it included. The caller sets the attempt: sequence, delivery and worker of both.
func FailWhole(s *ShardMsg, reason string) (*ResultMsg, *FailuresMsg) {
	res := &ResultMsg{Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN(), Abandoned: true, Counts: &CountsMsg{}}
	fails := &FailuresMsg{Job: s.GetJob(), Phase: s.GetPhase(), N: s.GetN()}
	for _, e := range s.GetEntries() {
		if e.GetLeaderOnly() {
			continue // counted by the shard that has the leader
		}
		if entry.Op(e.GetOp()).Links() {
			res.Leader = uint32(entry.LeaderFailed)
		}
		res.Entries++
		res.Failures++
		if e.GetIsDir() {
			res.Counts.DirsFailed++
		} else {
			res.Counts.FilesFailed++
		}
		fails.Failures = append(fails.Failures, &FailureMsg{
			File: s.GetFile(), Line: e.GetLine(), Path: EntryPath(s, e), Op: "execute shard",
			Kind: uint32(fault.Internal), Reason: reason, IsDir: e.GetIsDir(),
		})
	}
	return res, fails
}
