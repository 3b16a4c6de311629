package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
)

// errParentGone means that a cached destination directory has been removed:
// resolve it again and repeat the entry.
var errParentGone = errors.New("the destination directory was removed meanwhile")

// errVanished marks a source that is not there (any more).
var errVanished = errors.New("vanished since the scan")

// opError names what failed at which path. A nil err gives nil.
func opError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var fe *fault.Error
	if errors.As(err, &fe) || errors.Is(err, errParentGone) {
		return err
	}
	if path == "" {
		path = "."
	}
	e := &fault.Error{Kind: fault.KindOf(err), Op: op, Path: path, Err: err}
	switch {
	case errors.Is(err, unix.ESTALE):
		// Of one object, not of a root: that one is decided by CheckRoots.
		e.Kind, e.Hint = fault.Transient, "the file server no longer knows this handle; run the job again"
	case errors.Is(err, unix.ELOOP):
		e.Hint = "a symbolic link stands in the path; links are never followed"
	case errors.Is(err, unix.EPERM):
		e.Hint = "not permitted to this worker's user, or the target is immutable or append-only (lsattr)"
	case errors.Is(err, unix.EACCES):
		e.Hint = "the worker's user lacks the permission"
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EXDEV):
		e.Hint = "a mount point is in the way; mounts are not crossed"
	}
	return e
}

// sourceError is opError for reading the source: what is missing has vanished,
// and a full disk can't be meant.
func sourceError(op, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return &fault.Error{Kind: fault.NotFound, Op: op, Path: path, Err: fmt.Errorf("%w: %w", errVanished, err)}
	}
	err = opError(op, path, err)
	var fe *fault.Error
	if errors.As(err, &fe) && fe.Kind == fault.Exhausted {
		fe.Kind = fault.Transient
	}
	return err
}

// stopsBatch reports whether the batch as a whole must go back.
func stopsBatch(err error) bool {
	switch fault.KindOf(err) {
	case fault.Stale, fault.Canceled, fault.Exhausted:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// failure renders err as the failure of entry i.
func (r *run) failure(e *Entry, err error) Failure {
	f := Failure{File: e.File, Line: e.Line, Path: e.Path, IsDir: isDirOp(e), Errno: int(errnoOf(err)),
		Kind: uint8(fault.KindOf(err)), Reason: err.Error(), Op: "execute"}
	var fe *fault.Error
	if errors.As(err, &fe) && fe.Op != "" {
		f.Op = fe.Op
	}
	return f
}

func isDirOp(e *Entry) bool {
	switch e.Op {
	case entry.OpMkdir, entry.OpRemoveTree, entry.OpFinish, entry.OpTouch, entry.OpVerifyDir, entry.OpVerifyTimes:
		return true
	case entry.OpRejected:
		return e.IsDir
	}
	return false
}
