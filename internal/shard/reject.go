package shard

import (
	"errors"

	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

func reject(m *protocol.EntryMsg, err error, e controlfile.Entry) (*protocol.EntryMsg, string) {
	m.Op = uint32(entry.OpRejected)
	m.Meta = nil
	m.Kind = uint32(fault.KindOf(err))
	m.Reject = reason(err)
	if e.Type == controlfile.TypeBad {
		// The path cannot be trusted and is only shown: as it is written.
		m.Name = []byte(e.Dir)
		if e.Name != "" {
			m.Name = []byte(e.Dir + "/" + e.Name)
		}
		return m, ""
	}
	dir, name := split(e.Path)
	m.Name = []byte(name)
	return m, dir
}

// reason is the cause of err without the file and line that a failure names anyway.
func reason(err error) string {
	for {
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Err == nil {
			return err.Error()
		}
		if _, deeper := errors.AsType[*fault.Error](e.Err); !deeper {
			text := e.Err.Error()
			if e.Hint != "" {
				text += " (" + e.Hint + ")"
			}
			return text
		}
		err = e.Err
	}
}
