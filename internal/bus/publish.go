package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/mutant"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Message is a message to publish. The bus does not keep it.
type Message struct {
	Subject string
	Header  map[string][]string
	Data    []byte
	// Expect is what must be the sequence of the last message on the subject, 0 =
	// there is none; nil = whatever. Only batches look at it.
	Expect *uint64
}

// MaxBatch is the most messages that one atomic batch can have.
const MaxBatch = 1000

// PublishBatch stores msgs and then cursor in the shard stream, all or nothing,
// and only if the last message on the cursor's subject has sequence expect (0 =
// there is none). It returns the cursor's sequence; the messages before it have
// the sequences just below. A message on a subject that has one takes its place.
// Where expect, or that of a message, is wrong the error wraps ErrConflict, where
// the stream has no room ErrFull. After any other error the caller must read the
// cursor to learn whether the batch was stored.
func (b *Bus) PublishBatch(ctx context.Context, msgs []Message, cursor Message, expect uint64) (uint64, error) {
	if len(msgs)+1 > MaxBatch {
		return 0, fault.New(fault.Internal, "batch of %d messages, at most %d are possible", len(msgs)+1, MaxBatch)
	}
	id := nuid.Next()
	build := func(m Message, i int) *nats.Msg {
		h := nats.Header{}
		maps.Copy(h, m.Header)
		h["Nats-Batch-Id"] = []string{id}
		h["Nats-Batch-Sequence"] = []string{strconv.Itoa(i + 1)}
		if m.Expect != nil && !mutant.Off(mutant.Fence) {
			h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(*m.Expect, 10)}
		}
		return &nats.Msg{Subject: m.Subject, Header: h, Data: m.Data}
	}
	for i, m := range msgs {
		if err := b.nc.PublishMsg(build(m, i)); err != nil {
			return 0, classify("publish", m.Subject, err)
		}
	}
	cursor.Expect = &expect
	last := build(cursor, len(msgs))
	last.Header["Nats-Batch-Commit"] = []string{"1"}
	rctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	rctx, release := b.connected(rctx)
	defer release()
	reply, err := b.nc.RequestMsgWithContext(rctx, last)
	if err = cause(rctx, err); err != nil {
		return 0, classify("commit batch", cursor.Subject, err)
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
		Count int                 `json:"count"`
	}
	if err := rawjson.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fault.New(fault.Transient, "commit batch %q: answer %q: %w", cursor.Subject, reply.Data, err)
	}
	if ack.Error != nil {
		return 0, batchError(cursor.Subject, ack.Error)
	}
	if ack.Count != len(msgs)+1 {
		return 0, fault.New(fault.Internal, "commit batch %q: %d of %d messages stored", cursor.Subject, ack.Count, len(msgs)+1)
	}
	return ack.Seq, nil
}

func batchError(subject string, e *jetstream.APIError) error {
	switch e.ErrorCode {
	case codeWrongLastSequence, codeWrongLastSequenceRepl:
		return &fault.Error{Kind: fault.Stale, Op: "commit batch", Path: subject, Err: errors.Join(ErrConflict, e)}
	case codeStreamStoreFailed, codeInsufficientResources, codeStorageExceeded, codeAccountExceeded:
		return &fault.Error{Kind: fault.Exhausted, Op: "commit batch", Path: subject, Err: errors.Join(ErrFull, e)}
	}
	return &fault.Error{Kind: fault.Transient, Op: "commit batch", Path: subject, Err: e}
}

// PublishOnce stores a message on a subject of a stream that refuses a second.
// It reports false if the subject had one already.
func (b *Bus) PublishOnce(ctx context.Context, m Message) (bool, error) {
	pctx, release := b.connected(ctx)
	_, err := b.js.PublishMsg(pctx, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
	err = cause(pctx, err)
	release()
	if err == nil {
		return true, nil
	}
	var js jetstream.JetStreamError
	if errors.As(err, &js) && js.APIError() != nil && js.APIError().ErrorCode == codeStreamStoreFailed {
		// 10077 is any limit. The message itself tells whether it was this one.
		if _, lerr := b.Last(ctx, streamOf(m.Subject), m.Subject); lerr == nil {
			return false, nil
		}
		return false, &fault.Error{Kind: fault.Exhausted, Op: "publish", Path: m.Subject, Err: errors.Join(ErrFull, err)}
	}
	return false, classify("publish", m.Subject, err)
}

func streamOf(subject string) string {
	switch {
	case len(subject) > 11 && subject[:11] == "fsb.result.":
		return protocol.StreamResults
	case len(subject) > 12 && subject[:12] == "fsb.failure.":
		return protocol.StreamFailures
	}
	return protocol.StreamShards
}

// Store stores a message, in place of one that its subject has.
func (b *Bus) Store(ctx context.Context, m Message) (uint64, error) {
	ack, err := b.js.PublishMsg(ctx, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
	if err != nil {
		return 0, classify("publish", m.Subject, err)
	}
	return ack.Sequence, nil
}

// Send publishes a core message: to whoever listens now.
func (b *Bus) Send(subject string, data []byte) error {
	return classify("send", subject, b.nc.Publish(subject, data))
}

// Request sends data and waits for the answer. With nobody there the error is
// fault.Unavailable at once.
func (b *Bus) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	m, err := b.nc.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, &fault.Error{Kind: fault.Unavailable, Op: "ask", Path: subject, Err: ErrNobody}
	}
	if err != nil {
		return nil, classify("ask", subject, err)
	}
	return m.Data, nil
}

// Listen calls f with each core message of a subject, one after the other, until
// the returned function is called. A non-nil answer is sent to requests.
func (b *Bus) Listen(subject string, f func(subject string, data []byte) []byte) (func(), error) {
	sub, err := b.nc.Subscribe(subject, func(m *nats.Msg) {
		if out := f(m.Subject, m.Data); out != nil && m.Reply != "" {
			if err := m.Respond(out); err != nil {
				b.log.Debug("answer a request", "subject", subject, "error", err)
			}
		}
	})
	if err != nil {
		return nil, classify("listen", subject, err)
	}
	if err := b.nc.FlushTimeout(5 * time.Second); err != nil {
		return nil, classify("listen", subject, err)
	}
	return func() {
		if err := sub.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			b.log.Debug("stop listening", "subject", subject, "error", fmt.Errorf("unsubscribe: %w", err))
		}
	}, nil
}
