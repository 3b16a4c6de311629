package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Error codes of the JetStream API that decide something here. They are in the
// server's errors.json; nats.go names only some of them.
const (
	codeWrongLastSequence     jetstream.ErrorCode = 10071 // compare-and-swap lost
	codeWrongLastSequenceRepl jetstream.ErrorCode = 10164 // the same, found by a replicated stream
	codeStreamStoreFailed     jetstream.ErrorCode = 10077 // a limit refuses the message
	codeNotFound              jetstream.ErrorCode = 10037
	codeStreamNotFound        jetstream.ErrorCode = 10059
	codeConsumerNotFound      jetstream.ErrorCode = 10014
	codeConsumerDoesNotExist  jetstream.ErrorCode = 10149
	codeInsufficientResources jetstream.ErrorCode = 10023
	codeStorageExceeded       jetstream.ErrorCode = 10047
	codeAccountExceeded       jetstream.ErrorCode = 10002
)

// ErrConflict means that a compare-and-swap lost: somebody else wrote.
var ErrConflict = errors.New("another writer came first")

// ErrExists means that the stream has a message on a subject that takes one.
var ErrExists = errors.New("exists already")

// ErrNotFound means that a key, object or message does not exist, while the stream
// that would have it does.
var ErrNotFound = errors.New("not found")

// ErrNoStream means that a stream, bucket or consumer is gone, or that no server
// answers for it: nothing is known of what it had. Bus.EnsureLayout and
// Bus.EnsurePool make them.
var ErrNoStream = errors.New("no server has the stream")

// ErrGone comes with ErrNoStream where a server says that the stream or consumer is
// not there. Without it nobody may have answered, as while a server starts.
var ErrGone = errors.New("it does not exist")

// ErrFull means that a stream is at its limit.
var ErrFull = errors.New("stream is full")

// ErrClosed means that the connection is closed for good: see Bus.Closed.
var ErrClosed = nats.ErrConnectionClosed

// errNotConnected means that the connection is being made again.
var errNotConnected = errors.New("not connected to NATS")

// classify wraps err with the kind that it decides.
func classify(op, name string, err error) error {
	if err == nil {
		return nil
	}
	wrap := func(k fault.Kind, cause error) error {
		return &fault.Error{Kind: k, Op: op, Path: name, Err: cause}
	}
	var js jetstream.JetStreamError
	if errors.As(err, &js) && js.APIError() != nil {
		switch js.APIError().ErrorCode {
		case codeWrongLastSequence, codeWrongLastSequenceRepl:
			return wrap(fault.Stale, errors.Join(ErrConflict, err))
		case codeNotFound:
			return wrap(fault.NotFound, errors.Join(ErrNotFound, err))
		case codeStreamNotFound, codeConsumerNotFound, codeConsumerDoesNotExist:
			return wrap(fault.Unavailable, errors.Join(ErrNoStream, ErrGone, err))
		case codeInsufficientResources, codeStorageExceeded, codeAccountExceeded:
			return wrap(fault.Exhausted, errors.Join(ErrFull, err))
		}
	}
	switch {
	case noStream(err):
		return wrap(fault.Unavailable, errors.Join(ErrNoStream, err))
	case errors.Is(err, jetstream.ErrKeyExists):
		return wrap(fault.Stale, errors.Join(ErrConflict, err))
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted), errors.Is(err, jetstream.ErrObjectNotFound), errors.Is(err, jetstream.ErrMsgNotFound), errors.Is(err, jetstream.ErrNoKeysFound):
		return wrap(fault.NotFound, errors.Join(ErrNotFound, err))
	case errors.Is(err, context.Canceled):
		return wrap(fault.Canceled, err)
	case errors.Is(err, nats.ErrReconnectBufExceeded):
		return wrap(fault.Transient, errNotConnected) // the library speaks of its buffer, which has no room here
	case errors.Is(err, nats.ErrMaxPayload):
		return wrap(fault.Invalid, err)
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrPermissionViolation):
		return wrap(fault.Denied, err)
	case errors.Is(err, nats.ErrNoServers):
		return wrap(fault.Unavailable, err)
	}
	return wrap(fault.Transient, err)
}

// noStream reports whether err, which has no code of the server, says that a stream
// or consumer is gone or that nobody answers for it.
func noStream(err error) bool {
	for _, is := range []error{
		jetstream.ErrBucketNotFound, jetstream.ErrNoStreamResponse, jetstream.ErrConsumerDeleted, nats.ErrNoResponders,
		nats.ErrStreamNotFound, nats.ErrConsumerNotFound, // what the library calls them where it follows a stream
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}
