package shard

import (
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// verifying returns the operation that compares what op makes.
func verifying(op engine.Op) engine.Op {
	switch op {
	case engine.OpMkdir:
		return engine.OpVerifyDir
	case engine.OpLink:
		return engine.OpVerifyLink
	case engine.OpTouch:
		return engine.OpVerifyTimes
	default:
		return engine.OpVerify
	}
}

// isLink reports whether an entry is a member of a hard-link group.
func isLink(e *protocol.EntryMsg) bool {
	op := engine.Op(e.GetOp())
	return op == engine.OpLink || op == engine.OpVerifyLink
}
