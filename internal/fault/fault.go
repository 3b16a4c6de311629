// Package fault owns the closed set of error kinds and what each of them decides.
//
// A kind is attached where a decision differs: whether a shard goes back, an
// entry fails, a job stalls, and which exit code a command ends with. The text
// of an error is for people, its kind for the program.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Kind says what an error decides. The numbers travel on the wire: append only.
type Kind uint8

const (
	// Internal is a broken invariant; also the kind of an error without one.
	Internal Kind = iota
	// Transient is a network, time-out or no-responder error: try again.
	Transient
	// Stale means that the lease, token or revision is lost: drop the work,
	// neither ack nor nak, publish nothing.
	Stale
	// Invalid is a bad message, control file, flag or setting.
	Invalid
	// NotFound means that the named thing, often a source entry, is not there.
	NotFound
	// Denied is a permission, a root that is not allowed, or a path that escapes.
	Denied
	// Exhausted is a full disk, a quota, a read-only or stale mount: wait for room.
	Exhausted
	// Corrupt is a checksum or format mismatch.
	Corrupt
	// Canceled is a shutdown or a user's cancel.
	Canceled
	// Unsupported means that the target cannot hold what was asked.
	Unsupported
	// Changed means that a source would not hold still while it was read.
	Changed
	// Unavailable means that a service cannot be reached.
	Unavailable
	// Unsafe means that a guard stopped the work and asks for a decision.
	Unsafe
)

var kindNames = [...]string{
	Internal: "internal", Transient: "transient", Stale: "stale", Invalid: "invalid",
	NotFound: "not-found", Denied: "denied", Exhausted: "exhausted", Corrupt: "corrupt",
	Canceled: "canceled", Unsupported: "unsupported", Changed: "changed", Unavailable: "unavailable",
	Unsafe: "unsafe",
}

// String returns the kind's stable lower-case name.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ExitCode returns the exit code of a command that ends with this kind. The
// numbers follow sysexits.h where it has a fitting one.
func (k Kind) ExitCode() int {
	switch k {
	case Invalid:
		return 64
	case Corrupt:
		return 65
	case NotFound:
		return 66
	case Unavailable:
		return 69
	case Transient, Exhausted, Stale:
		return 75
	case Denied:
		return 77
	case Unsafe:
		return 78
	case Canceled:
		return 130
	case Changed, Unsupported:
		return 3
	default:
		return 70
	}
}

// Error is an error with a kind, the operation and path it happened at, and a
// hint that tells a person the way out.
type Error struct {
	Kind Kind
	Op   string // what was being done, a verb phrase such as "open control file"
	Path string // what it was done to; printed quoted
	Hint string // the way out; optional
	Err  error  // the cause; optional
}

// Error renders the error on one line: operation, path, cause, hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Path != "" {
		fmt.Fprintf(&b, " %q", e.Path)
	}
	if e.Err != nil {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(strings.ReplaceAll(e.Err.Error(), "\n", ": ")) // causes that were joined
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k with the formatted text, which may wrap with %w.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Hinted is New with a hint that tells the way out.
func Hinted(k Kind, hint, format string, args ...any) error {
	return &Error{Kind: k, Hint: hint, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of err: that of the outermost Error in its tree, else
// one derived from a context error or an errno. A nil error has no kind; callers
// must not ask.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Transient
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return FromErrno(no)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission):
		return Denied
	}
	return Internal
}

// FromErrno maps an errno to the kind that it decides.
func FromErrno(no syscall.Errno) Kind {
	switch no {
	case syscall.ENOENT, syscall.ENOTDIR:
		return NotFound
	case syscall.EACCES, syscall.EPERM, syscall.ELOOP, syscall.EXDEV:
		return Denied
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.ESTALE:
		return Exhausted
	case syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.ENAMETOOLONG:
		return Unsupported
	case syscall.EAGAIN, syscall.EINTR, syscall.ETIMEDOUT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM:
		return Transient
	case syscall.EINVAL:
		return Invalid
	}
	return Internal
}

// Is reports whether err has kind k. A nil error has none.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// ParseKind is the inverse of String; a name that is not known gives Internal.
func ParseKind(s string) Kind {
	for k, name := range kindNames {
		if name == s {
			return Kind(k)
		}
	}
	return Internal
}

// Passing reports whether waiting may explain an error away: a network, a service
// or a store that is not there now, a lack of room, memory or descriptors, or a
// device that could not be read.
func Passing(err error) bool {
	return Is(err, Transient) || Is(err, Unavailable) || Is(err, Exhausted) || errors.Is(err, syscall.EIO)
}
