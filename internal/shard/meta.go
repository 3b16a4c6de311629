package shard

import (
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/entry"
)

// timesMeta returns the metadata that a line of a times file has in itself.
func timesMeta(t *controlfile.Times) *entry.Meta {
	return &entry.Meta{Mode: t.Mode, UID: t.UID, GID: t.GID, Atime: t.Atime, Mtime: t.Mtime, Ctime: t.Ctime, Btime: t.Btime}
}
