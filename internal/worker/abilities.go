package worker

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// mayDo says an ability for people.
func mayDo(ability string) string {
	switch ability {
	case engine.CanReadAll:
		return "read what permissions forbid"
	case engine.CanWriteAll:
		return "change what permissions forbid"
	case engine.CanOwn:
		return "set owners"
	case engine.CanActAs:
		return "act as the owner of all files"
	case engine.CanDevices:
		return "make devices"
	case engine.CanTrusted:
		return "set trusted attributes"
	case engine.CanFileCaps:
		return "set file capabilities"
	}
	return ability
}

// sameAbilities returns an error unless this worker may do what the job's first worker
// may, and no more: else it would depend on who gets a shard what becomes of its
// entries. What is not known is not compared.
func sameAbilities(id protocol.JobID, worker string, is *protocol.Abilities, creates string, reply protocol.RootsReply) error {
	var why []string
	add := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	if first := reply.Abilities; first != nil && is != nil {
		var more, less []string
		for _, a := range first.Lacks {
			if !slices.Contains(is.Lacks, a) {
				more = append(more, mayDo(a))
			}
		}
		for _, a := range is.Lacks {
			if !slices.Contains(first.Lacks, a) {
				less = append(less, mayDo(a))
			}
		}
		if len(more) > 0 {
			add("it may %s, the job's first worker may not", strings.Join(more, ", "))
		}
		if len(less) > 0 {
			add("it may not %s, the job's first worker may", strings.Join(less, ", "))
		}
		if is.EUID != first.EUID {
			add("it runs as user %d, the job's first worker as user %d", is.EUID, first.EUID)
		}
		if is.Groups != first.Groups && is.Groups != "" && first.Groups != "" {
			add("it belongs to the groups %s, the job's first worker to %s", is.Groups, first.Groups)
		}
		if is.IDs != first.IDs {
			add("its user namespace has the ids %s, that of the job's first worker %s", orAll(is.IDs), orAll(first.IDs))
		}
	}
	if creates != "" && reply.Creates != "" && creates != reply.Creates {
		add("what it makes in the destination belongs to %s, what the job's first worker makes to %s", creates, reply.Creates)
	}
	if len(why) == 0 {
		return nil
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "serve job", Path: string(id), Err: errors.New(strings.Join(why, "; ")), Hint: "run worker " + worker + " with the rights and exports that the others of its pool have, or in another pool"}
}

func orAll(s string) string {
	if s == "" {
		return "of all users"
	}
	return s
}
