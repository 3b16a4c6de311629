package shard

import (
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// verifying returns the operation that compares what op makes.
func verifying(op entry.Op) entry.Op {
	switch op {
	case entry.OpMkdir:
		return entry.OpVerifyDir
	case entry.OpLink:
		return entry.OpVerifyLink
	case entry.OpTouch:
		return entry.OpVerifyTimes
	default:
		return entry.OpVerify
	}
}

// isLink reports whether an entry is a member of a hard-link group.
func isLink(e *protocol.EntryMsg) bool {
	return entry.Op(e.GetOp()).Links()
}
