package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/engine"
	"github.com/fsbackup/fsbackup/internal/entry"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/telemetry/instrument"
)

// The clocks of these tests: heartbeats each 3 s, leases of 20 s, AckWait 30 s.
var timing = protocol.DefaultTiming()

var errAway = fault.New(fault.Transient, "not connected")

// fakeQueue is a queue and a coordinator. Set its functions before the worker starts,
// or with mu held.
type fakeQueue struct {
	shards chan *bus.Delivery

	mu         sync.Mutex
	join       func() error                                              // nil = works
	bind       func() error                                              // nil = works
	next       func() error                                              // an error for the next pull; nil = none
	publish    func(context.Context, publication) (bool, error)          // nil = it is the first
	inProgress func(context.Context, *bus.Delivery) error                // nil = confirmed
	heartbeat  func(protocol.Heartbeat) (protocol.HeartbeatReply, error) // nil = accepted
	claim      func(protocol.RootsClaim) (protocol.RootsReply, error)    // nil = proven
	object     func(string) ([]byte, error)                              // nil = none
	poke       func()                                                    // of Listen
	said       []string                                                  // "ack 1.1", "nak 1.1 5s", "term 1.1"
	told       []protocol.AttemptEvent                                   // announced
	beats      []protocol.Heartbeat
	results    []*protocol.ResultMsg
	failures   []*protocol.FailuresMsg
	joins      int
	confirmed  map[string]int // in-progress signals by delivery
	pulls      []time.Time
}

func deliveryName(d *bus.Delivery) string { return fmt.Sprintf("%d.%d", d.Sequence, d.Delivered) }

func (q *fakeQueue) Join(context.Context, time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.joins++
	if q.join != nil {
		return q.join()
	}
	return nil
}

func (q *fakeQueue) Bind(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bind != nil {
		return q.bind()
	}
	return nil
}

func (q *fakeQueue) Next(ctx context.Context, wait time.Duration) (*bus.Delivery, error) {
	q.mu.Lock()
	q.pulls = append(q.pulls, time.Now())
	next := q.next
	q.mu.Unlock()
	if next != nil {
		if err := next(); err != nil {
			return nil, err
		}
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case d := <-q.shards:
		return d, nil
	case <-t.C:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (q *fakeQueue) Object(_ context.Context, name string) ([]byte, error) {
	if q.object == nil {
		return nil, fault.New(fault.NotFound, "no object %s", name)
	}
	return q.object(name)
}

func (q *fakeQueue) Publish(ctx context.Context, p publication) (bool, error) {
	q.mu.Lock()
	publish := q.publish
	q.mu.Unlock()
	first := true
	if publish != nil {
		var err error
		if first, err = publish(ctx, p); err != nil {
			return false, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var r protocol.ResultMsg
	if err := protocol.Decode(p.result.Data, protocol.TypeResult, &r); err != nil {
		panic(err)
	}
	q.results = append(q.results, &r)
	if p.failures != nil {
		var f protocol.FailuresMsg
		if err := protocol.Decode(p.failures.Data, protocol.TypeFailures, &f); err != nil {
			panic(err)
		}
		q.failures = append(q.failures, &f)
	}
	return first, nil
}

func (q *fakeQueue) InProgress(ctx context.Context, d *bus.Delivery) error {
	q.mu.Lock()
	f := q.inProgress
	q.mu.Unlock()
	if f != nil {
		if err := f(ctx, d); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.confirmed[deliveryName(d)]++
	return nil
}

func (q *fakeQueue) say(what string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.said = append(q.said, what)
	return nil
}

func (q *fakeQueue) Ack(_ context.Context, d *bus.Delivery) error {
	return q.say("ack " + deliveryName(d))
}

func (q *fakeQueue) Nak(d *bus.Delivery, delay time.Duration) error {
	return q.say(fmt.Sprintf("nak %s %s", deliveryName(d), delay))
}

func (q *fakeQueue) Term(d *bus.Delivery, _ string) error { return q.say("term " + deliveryName(d)) }

func (q *fakeQueue) Send(subject string, data []byte) error {
	var e protocol.AttemptEvent
	if err := json.Unmarshal(data, &e); err != nil || subject != protocol.SubjectAttempt {
		panic(subject)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told = append(q.told, e)
	return nil
}

func (q *fakeQueue) Request(_ context.Context, subject string, data []byte) ([]byte, error) {
	switch subject {
	case protocol.SubjectHeartbeat:
		var h protocol.Heartbeat
		if err := json.Unmarshal(data, &h); err != nil {
			panic(err)
		}
		q.mu.Lock()
		q.beats = append(q.beats, h)
		f := q.heartbeat
		q.mu.Unlock()
		reply := protocol.HeartbeatReply{Wire: protocol.WireMajor, Leader: "c", Timing: timing}
		if f != nil {
			var err error
			if reply, err = f(h); err != nil {
				return nil, err
			}
		}
		return json.Marshal(reply)
	case protocol.SubjectRoots:
		var c protocol.RootsClaim
		if err := json.Unmarshal(data, &c); err != nil {
			panic(err)
		}
		reply := protocol.RootsReply{Nonce: "nonce", SourceInode: c.SourceInode, SourceFS: c.SourceFS}
		if q.claim != nil {
			var err error
			if reply, err = q.claim(c); err != nil {
				return nil, err
			}
		}
		return json.Marshal(reply)
	}
	panic(subject)
}

func (q *fakeQueue) Listen(_ string, f func()) (func(), error) {
	q.poke = f
	return func() {}, nil
}

// set changes the queue while a worker uses it.
func (q *fakeQueue) set(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

// fakeExec opens roots whose batches do what run says.
type fakeExec struct {
	mu   sync.Mutex
	run  func(ctx context.Context, job string, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) // nil = all is copied
	sync func(job string) error                                                                          // nil = works
	open func(engine.JobSpec) error                                                                      // nil = works
	// mounts is what is mounted beneath the roots; nil = nothing
	mounts func() (src, dst []engine.Mount)
	check  func() error // of CheckRoots; nil = right
	hung   []engine.Operation
	opens  map[string]int
	shut   map[string]int
	syncs  map[string]int
	marks  map[string]bool // nonces in the destination
}

type fakeRoots struct {
	x   *fakeExec
	job string
}

func (x *fakeExec) Open(spec engine.JobSpec) (roots, error) {
	x.mu.Lock()
	open := x.open
	x.mu.Unlock()
	if open != nil {
		if err := open(spec); err != nil {
			return nil, err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.opens[spec.ID]++
	return &fakeRoots{x, spec.ID}, nil
}

func (x *fakeExec) Copying(int64, int) []engine.File { return nil }

func (x *fakeExec) Threads() int { return 4 }

func (x *fakeExec) Hung(time.Duration) []engine.Operation {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.hung)
}

func (x *fakeExec) Abilities() engine.Abilities { return engine.Abilities{} }

func (r *fakeRoots) CreatesAs(string) (string, error) { return "0:0", nil }

func (r *fakeRoots) Roots() (src, dst engine.RootInfo) {
	return engine.RootInfo{Path: "/src", Real: "/src", Inode: 1, FSType: 2}, engine.RootInfo{Path: "/dst", Real: "/dst", Inode: 3, FSType: 4}
}

func (r *fakeRoots) Mounts() (src, dst []engine.Mount, err error) {
	r.x.mu.Lock()
	f := r.x.mounts
	r.x.mu.Unlock()
	if f == nil {
		return nil, nil, nil
	}
	src, dst = f()
	return src, dst, nil
}

func (r *fakeRoots) CheckRoots() error {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	if r.x.check != nil {
		return r.x.check()
	}
	return nil
}

func (r *fakeRoots) mark(nonce string, there bool) error {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	r.x.marks[nonce] = there
	return nil
}

func (r *fakeRoots) PutNonce(nonce string) error    { return r.mark(nonce, true) }
func (r *fakeRoots) RemoveNonce(nonce string) error { return r.mark(nonce, false) }

func (r *fakeRoots) HasNonce(nonce string) (bool, error) {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	return r.x.marks[nonce], nil
}

func (r *fakeRoots) Run(ctx context.Context, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) {
	r.x.mu.Lock()
	run := r.x.run
	r.x.mu.Unlock()
	if run == nil {
		return copied(b), nil
	}
	return run(ctx, r.job, b, g)
}

func (r *fakeRoots) Sync(context.Context) error {
	r.x.mu.Lock()
	r.x.syncs[r.job]++
	sync := r.x.sync
	r.x.mu.Unlock()
	if sync != nil {
		return sync(r.job)
	}
	return nil
}

func (r *fakeRoots) Close() error {
	r.x.mu.Lock()
	defer r.x.mu.Unlock()
	r.x.shut[r.job]++
	return nil
}

func copied(b *engine.Batch) *engine.Outcome {
	return &engine.Outcome{Counts: entry.Counts{FilesCopied: uint64(len(b.Entries))}}
}

// until returns a run that goes on until the channel is closed, or the attempt ends.
func until(c <-chan struct{}) func(context.Context, string, *engine.Batch, engine.Guard) (*engine.Outcome, error) {
	return func(ctx context.Context, _ string, b *engine.Batch, g engine.Guard) (*engine.Outcome, error) {
		select {
		case <-c:
		case <-ctx.Done():
			return nil, &fault.Error{Kind: fault.Canceled, Op: "run batch", Err: context.Cause(ctx)}
		}
		if err := g.Check(); err != nil {
			return nil, err
		}
		return copied(b), nil
	}
}

// rig is a worker with its fakes, in a bubble of synctest.
type rig struct {
	t       *testing.T
	q       *fakeQueue
	x       *fakeExec
	w       *Worker
	asleep  atomic.Int64    // nanoseconds that the machine slept: only the boot clock counts them
	ctx     context.Context //nolint:containedctx // of Run
	stop    context.CancelCauseFunc
	started bool
	done    chan struct{}
	err     error // of Run; after done

	reader *sdkmetric.ManualReader
	spans  *tracetest.InMemoryExporter
}

// bubble runs a test of a worker in a bubble of synctest. The worker is stopped at
// its end.
func bubble(t *testing.T, cfg Config, test func(r *rig)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		r := &rig{
			t: t, done: make(chan struct{}), reader: sdkmetric.NewManualReader(), spans: tracetest.NewInMemoryExporter(),
			q: &fakeQueue{shards: make(chan *bus.Delivery, 100), confirmed: map[string]int{}},
			x: &fakeExec{opens: map[string]int{}, shut: map[string]int{}, syncs: map[string]int{}, marks: map[string]bool{"nonce": true}},
		}
		cfg.Name, cfg.Pool = "w", "p"
		if cfg.Allow == nil {
			cfg.Allow = []string{"/"}
		}
		cfg.BootTime = func() time.Duration { return time.Hour + time.Since(began) + time.Duration(r.asleep.Load()) }
		cfg.Record = instrument.Providers{
			MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader)),
			TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans)),
		}
		var err error
		if r.w, err = newWorker(cfg, r.q, r.x); err != nil {
			t.Fatal(err)
		}
		r.ctx, r.stop = context.WithCancelCause(t.Context())
		defer func() {
			if !r.started {
				return
			}
			r.stop(ErrShutdown)
			<-r.done
			r.noneTwice()
		}()
		test(r)
	})
}

// begin runs the worker.
func (r *rig) begin() {
	r.started = true
	go func() {
		defer close(r.done)
		r.err = r.w.Run(r.ctx)
	}()
}

// start runs the worker and waits until it has joined.
func (r *rig) start() {
	r.t.Helper()
	r.begin()
	select {
	case <-r.w.Ready():
	case <-r.done:
		r.t.Fatalf("the worker ended: %v", r.err)
	}
	synctest.Wait()
}

// shardOption changes a shard and its delivery.
type shardOption func(*protocol.ShardMsg, *bus.Delivery)

// deliver puts a delivery of a shard of two files into the queue.
func (r *rig) deliver(job string, n uint64, delivery uint32, opts ...shardOption) *bus.Delivery {
	r.t.Helper()
	m := &protocol.ShardMsg{
		Job: job, Phase: uint32(protocol.PhaseCopy), N: n, Dirs: [][]byte{[]byte("dir")},
		Options: &protocol.OptionsMsg{Source: []byte("/src"), Destination: []byte("/dst")},
		Entries: []*protocol.EntryMsg{{Op: uint32(entry.OpCopy), Name: []byte("a"), Line: 1}, {Op: uint32(entry.OpCopy), Name: []byte("b"), Line: 2}},
	}
	d := &bus.Delivery{Sequence: 100 + n, Delivered: delivery, Header: map[string][]string{protocol.HeaderWire: {strconv.Itoa(protocol.WireMajor)}}}
	for _, o := range opts {
		o(m, d)
	}
	data, err := protocol.Encode(protocol.TypeShard, m)
	if err != nil {
		r.t.Fatal(err)
	}
	if d.Subject == "" {
		d.Subject = protocol.ShardSubject(protocol.ClassStandard, "p", protocol.JobID(job), protocol.Phase(m.GetPhase()), n)
	}
	if d.Data == nil {
		d.Data = data
	}
	r.q.shards <- d
	return d
}

func cleanup(m *protocol.ShardMsg, _ *bus.Delivery) {
	m.Phase, m.Entries = uint32(protocol.PhaseCleanup), nil
}

// wait lets so much time pass, and what it brings.
func (r *rig) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// said fails the test unless exactly this was said of deliveries, in any order.
func (r *rig) said(want ...string) {
	r.t.Helper()
	synctest.Wait()
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	got := slices.Sorted(slices.Values(r.q.said))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Errorf("said %q, want %q", got, want)
	}
}

// answered fails the test unless so many results were published.
func (r *rig) answered(want int) {
	r.t.Helper()
	synctest.Wait()
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if len(r.q.results) != want {
		r.t.Errorf("%d results were published, want %d: %v", len(r.q.results), want, r.q.results)
	}
}

// outcomes fails the test unless attempts were recorded like this: "done 2", ...
func (r *rig) outcomes(want ...string) {
	r.t.Helper()
	synctest.Wait()
	var got []string
	for o, n := range r.recorded() {
		got = append(got, fmt.Sprintf("%s %d", o, n))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Errorf("recorded %q, want %q", got, want)
	}
	n := int64(0)
	for _, k := range r.recorded() {
		n += k
	}
	if spans := len(r.spans.GetSpans()); int64(spans) != n {
		r.t.Errorf("%d spans of %d attempts", spans, n)
	}
}

// recorded returns the metric of ended attempts, by outcome.
func (r *rig) recorded() map[string]int64 {
	r.t.Helper()
	var rm metricdata.ResourceMetrics
	if err := r.reader.Collect(context.WithoutCancel(r.t.Context()), &rm); err != nil {
		r.t.Fatal(err)
	}
	out := map[string]int64{}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			if data, ok := m.Data.(metricdata.Sum[int64]); ok && m.Name == "fsbackup.shards.ended" {
				for _, p := range data.DataPoints {
					v, _ := p.Attributes.Value(attribute.Key("outcome"))
					out[v.AsString()] += p.Value
				}
			}
		}
	}
	return out
}

// noneTwice holds at the end of each test: a delivery was answered at most once, and
// each attempt that began was recorded once, by metric and by span.
func (r *rig) noneTwice() {
	r.t.Helper()
	synctest.Wait()
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	answers := map[string]int{}
	for _, s := range r.q.said {
		answers[strings.Fields(s)[1]]++
	}
	for d, n := range answers {
		if n > 1 {
			r.t.Errorf("delivery %s was answered %d times: %q", d, n, r.q.said)
		}
	}
	begun, recorded := 0, int64(0)
	for _, e := range r.q.told {
		if !e.End {
			begun++
		}
	}
	for _, n := range r.recorded() {
		recorded += n
	}
	if int64(begun) != recorded || len(r.spans.GetSpans()) != begun {
		r.t.Errorf("%d attempts, %d recorded: %v; %d spans", begun, recorded, r.recorded(), len(r.spans.GetSpans()))
	}
}

// ends returns the announced ends.
func (r *rig) ends() []protocol.AttemptEvent {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.q.told), func(e protocol.AttemptEvent) bool { return !e.End })
}

// lastBeat returns the last heartbeat.
func (r *rig) lastBeat() protocol.Heartbeat {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.q.beats[len(r.q.beats)-1]
}

func (r *rig) beats() int {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return len(r.q.beats)
}

func (r *rig) joins() int {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.q.joins
}

func (r *rig) confirmations(delivery string) int {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.q.confirmed[delivery]
}
