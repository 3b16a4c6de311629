package entry

import "fmt"

// Leader is what became of the leader of a hard-link group, for those who link to
// it. The numbers travel on the wire: append only.
type Leader uint8

const (
	// LeaderDone is a leader that is in its place: members are linked to it. It
	// stands for no leader as well.
	LeaderDone Leader = 0
	// LeaderFailed is one that could not be done: its members fail with it.
	LeaderFailed Leader = 1
	// LeaderKept is one in whose place something else is, and stays there: its
	// members are left out.
	LeaderKept Leader = 2
	// LeaderVanished is one that the source does not have any more, in a job that
	// skips such entries: its members are left out.
	LeaderVanished Leader = 3
)

var leaderNames = [...]string{LeaderDone: "done", LeaderFailed: "failed", LeaderKept: "kept", LeaderVanished: "vanished"}

// String returns the state's stable lower-case name.
func (l Leader) String() string {
	if int(l) < len(leaderNames) {
		return leaderNames[l]
	}
	return fmt.Sprintf("leader-%d", uint8(l))
}
