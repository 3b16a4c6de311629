package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/fsbackup/fsbackup/internal/fault"
)

const (
	// headerSigns of a request asks for signs of life until the answer, and
	// headerWorking of a message says that it is one.
	headerSigns   = "Fsb-Signs"
	headerWorking = "Fsb-Working"

	// signEvery is the time between two signs of life: a fraction of what anybody
	// waits without one.
	signEvery = time.Second
)

// Ask is Request for what can take long: it waits as long as who answers says, at
// least once in silence, that it is at work, and calls working each time. Without
// an answer or a sign the error is fault.Unavailable.
func (b *Bus) Ask(ctx context.Context, subject string, data []byte, silence time.Duration, working func()) ([]byte, error) {
	ctx, release := b.connected(ctx)
	defer release()
	m := nats.NewMsg(subject)
	m.Reply, m.Data = b.nc.NewInbox(), data
	m.Header.Set(headerSigns, "1")
	sub, err := b.nc.SubscribeSync(m.Reply)
	if err != nil {
		return nil, classify("ask", subject, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // it goes with its connection otherwise
	if err := b.nc.PublishMsg(m); err != nil {
		return nil, classify("ask", subject, err)
	}
	for {
		wctx, cancel := context.WithTimeoutCause(ctx, silence, errSilent)
		r, err := sub.NextMsgWithContext(wctx)
		silent := errors.Is(context.Cause(wctx), errSilent)
		cancel()
		switch {
		case err != nil && silent:
			return nil, &fault.Error{Kind: fault.Unavailable, Op: "ask", Path: subject, Err: fmt.Errorf("%w for %s", errSilent, silence)}
		case errors.Is(err, nats.ErrNoResponders) || (err == nil && len(r.Data) == 0 && r.Header.Get("Status") == "503"):
			return nil, &fault.Error{Kind: fault.Unavailable, Op: "ask", Path: subject, Err: ErrNobody}
		case err != nil:
			return nil, classify("ask", subject, cause(ctx, err))
		case r.Header.Get(headerWorking) == "":
			return r.Data, nil
		}
		working()
	}
}

// ErrNobody means that nobody listens on a subject.
var ErrNobody = errors.New("nobody answers")

// errSilent ends a wait for somebody who says nothing.
var errSilent = errors.New("no answer and no sign of life")

// signs tells who asked, if it wants to know, that its request is being worked at,
// until the returned function is called.
func (b *Bus) signs(r micro.Request, endpoint string) (stop func()) {
	if r.Headers().Get(headerSigns) == "" {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(signEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := r.Respond(nil, micro.WithHeaders(micro.Headers{headerWorking: []string{"1"}})); err != nil {
					b.log.Debug("give a sign of life", "endpoint", endpoint, "error", err)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}
