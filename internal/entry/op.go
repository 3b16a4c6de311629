package entry

import "fmt"

// Op is what is to be done with an entry. The numbers travel on the wire: append only.
type Op uint8

const (
	// OpRejected is an entry that could not be read. It is counted as failed and
	// nothing is done.
	OpRejected Op = 0
	// OpMkdir makes a directory (copy phase, a d line).
	OpMkdir Op = 1
	// OpCopy copies a non-directory of any type (copy phase, an f line).
	OpCopy Op = 2
	// OpUnlink removes a non-directory (delete phase, an f line).
	OpUnlink Op = 3
	// OpRemoveTree removes a directory tree (delete phase, a d line with flag 1).
	OpRemoveTree Op = 4
	// OpLink makes a member of a hard-link group. The first entry with a group
	// number in a batch is its leader.
	OpLink Op = 5
	// OpFinish gives a directory owner, mode, ACL, xattrs and times (finish
	// phase, a d line of a copy control file).
	OpFinish Op = 6
	// OpTouch gives a directory owner, mode and times (dir phase).
	OpTouch Op = 7
	// OpVerify compares a non-directory of any type with its source (verify
	// phase, an f line of a copy control file). No verifying operation changes
	// anything.
	OpVerify Op = 8
	// OpVerifyLink compares a member of a hard-link group: OpVerify, if the group
	// has no object yet to hold it against.
	OpVerifyLink Op = 9
	// OpVerifyDir compares what OpFinish gives a directory, and its names (a d
	// line of a copy control file).
	OpVerifyDir Op = 10
	// OpVerifyTimes compares what OpTouch gives a directory.
	OpVerifyTimes Op = 11
)

var opNames = [...]string{
	OpRejected: "rejected", OpMkdir: "mkdir", OpCopy: "copy", OpUnlink: "unlink", OpRemoveTree: "remove-tree", OpLink: "link",
	OpFinish: "finish", OpTouch: "touch", OpVerify: "verify", OpVerifyLink: "verify-link", OpVerifyDir: "verify-dir", OpVerifyTimes: "verify-times",
}

// String returns the operation's stable lower-case name.
func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op-%d", uint8(o))
}

// Links reports whether an entry with the operation is a member of a hard-link group.
func (o Op) Links() bool { return o == OpLink || o == OpVerifyLink }

// Verifies reports whether the operation compares and changes nothing.
func (o Op) Verifies() bool { return o >= OpVerify && o <= OpVerifyTimes }
