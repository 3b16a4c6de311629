package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// desk takes submissions as a coordinator does, and keeps what it was given.
type desk struct {
	api.Service
	before func(from int) bool // is called before a request is looked at; false: it never is
	after  func(from int)      // is called before a request is answered

	mu        sync.Mutex // guards what follows
	files     []string
	known     bool
	sealed    bool
	cancelled bool
	requests  int
}

func (d *desk) Workers(context.Context, protocol.WorkersRequest) (protocol.WorkersReply, error) {
	return protocol.WorkersReply{}, nil
}

func (d *desk) Submit(_ context.Context, q protocol.SubmitRequest) (protocol.SubmitReply, error) {
	return d.take(0, q.Files, q.Seal)
}

func (d *desk) Append(_ context.Context, q protocol.AppendRequest) (protocol.SubmitReply, error) {
	return d.take(int(q.From), q.Files, q.Seal)
}

func (d *desk) take(from int, files []protocol.FileRef, seal bool) (protocol.SubmitReply, error) {
	if d.before != nil && !d.before(from) {
		return protocol.SubmitReply{}, fault.New(fault.Transient, "no connection")
	}
	if d.after != nil {
		defer d.after(from)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	switch {
	case d.known && len(d.files) >= from+len(files) && (d.sealed || !seal):
		return protocol.SubmitReply{}, nil
	case d.sealed || from != len(d.files):
		return protocol.SubmitReply{}, fault.New(fault.Invalid, "%d files come after %d", from, len(d.files))
	}
	for _, f := range files {
		d.files = append(d.files, f.Path)
	}
	d.known, d.sealed = true, d.sealed || seal
	return protocol.SubmitReply{}, nil
}

func (d *desk) Cancel(context.Context, protocol.JobRequest) (protocol.JobView, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancelled = true
	return protocol.JobView{}, nil
}

// cluster is NATS and a connection to it.
type cluster struct {
	t      *testing.T
	cfg    bus.ServerConfig
	server *bus.Server
}

func newCluster(t *testing.T, maxPayload int32) *cluster {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // NATS takes it, once and again
	c := &cluster{t: t, cfg: bus.ServerConfig{StoreDir: t.TempDir(), Listen: addr, MaxPayload: maxPayload}}
	c.start()
	t.Cleanup(func() { c.server.Stop() })
	return c
}

func (c *cluster) start() {
	c.t.Helper()
	var err error
	if c.server, err = bus.StartServer(c.cfg); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) connect() *bus.Bus {
	c.t.Helper()
	b, err := bus.Connect(c.t.Context(), bus.Config{URL: c.server.URL(), Name: "test"})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(b.Close)
	return b
}

// offer has d answer until the connection that it returns is closed.
func (c *cluster) offer(d *desk) *bus.Bus {
	c.t.Helper()
	b := c.connect()
	stop, err := api.Serve(c.t.Context(), b, d)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(stop)
	return b
}

// controlFiles writes n files whose paths are long.
func controlFiles(t *testing.T, n, long int) Files {
	t.Helper()
	dir := t.TempDir()
	for long > 0 {
		dir = filepath.Join(dir, strings.Repeat("d", min(long, 200)))
		long -= 200
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var f Files
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("control_%d.txt", i))
		if err := os.WriteFile(path, []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		f.Control = append(f.Control, protocol.FileRef{Path: path, Phase: protocol.PhaseCopy})
	}
	return f
}

// whole demands that the desk has each file once, in their order, and no more to come.
func (d *desk) whole(t *testing.T, f Files) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sealed || d.cancelled || len(d.files) != len(f.Control) {
		t.Fatalf("the job has %d of %d files, sealed: %v, cancelled: %v", len(d.files), len(f.Control), d.sealed, d.cancelled)
	}
	for i, ref := range f.Control {
		if d.files[i] != ref.Path {
			t.Fatalf("file %d is %s", i, d.files[i])
		}
	}
}

// A coordinator that works on each request for longer than a silent one is waited
// for is no silent one.
func TestACoordinatorThatIsAtWorkIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	signs := make(chan struct{}, 1000)
	d := &desk{before: func(int) bool {
		for range 3 { // signs of life that have arrived, a second apart
			<-signs
		}
		return true
	}}
	c.offer(d)
	cl := New(c.connect())
	cl.silence = 1500 * time.Millisecond
	told := map[string]bool{}
	asked := 0
	f := controlFiles(t, 2*partFiles, 0)
	err := cl.Telling(func(s Step) {
		told[s.Doing] = true
		if s.Doing != "handing over" {
			return
		}
		d.mu.Lock()
		first := d.requests == asked // the step before the request
		if first {
			asked++
		}
		d.mu.Unlock()
		if !first {
			signs <- struct{}{}
		}
	}).Submit(t.Context(), "01job", protocol.JobSpec{}, f, true)
	if err != nil {
		t.Fatal(err)
	}
	d.whole(t, f)
	if d.requests != 2 {
		t.Errorf("it asked %d times, want once for each part", d.requests)
	}
	if !told["reading"] || !told["handing over"] {
		t.Errorf("it told %v", told)
	}
}

func TestASilentCoordinatorIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	b := c.connect()
	stop, err := b.Listen(protocol.SubjectAPI+"."+api.OpAppend, func(string, []byte) []byte { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	cl := New(c.connect())
	cl.silence, cl.patience = 100*time.Millisecond, 0
	if err := cl.Append(t.Context(), "01job", 0, nil, true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("it ended with %v", err)
	}
}

func TestACommandThatFindsNobodyGivesUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	lost := 0
	err := New(c.connect()).Telling(func(s Step) {
		if s.Lost != nil {
			lost++
		}
	}).Submit(t.Context(), "01job", protocol.JobSpec{}, controlFiles(t, 1, 0), true)
	if !fault.Is(err, fault.Unavailable) || lost > 0 {
		t.Errorf("after waiting %d times it ended with %v", lost, err)
	}
}

func TestALeaderThatDiesInMidSubmissionIsFollowedByTheNext(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before it has stored the files", "before its answer"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 0)
			var once sync.Once
			var first *bus.Bus
			d := &desk{}
			// It dies with the second part, once.
			die := func(from int) (died bool) {
				if from == partFiles {
					once.Do(func() { first.Close(); died = true })
				}
				return died
			}
			if when == "before its answer" {
				d.after = func(from int) { die(from) }
			} else {
				d.before = func(from int) bool { return !die(from) }
			}
			first = c.offer(d)
			cl := New(c.connect())
			cl.silence = 500 * time.Millisecond
			f := controlFiles(t, 3*partFiles+7, 0)
			waited := false
			err := cl.Telling(func(s Step) {
				if s.Lost != nil && !waited {
					waited = true
					c.offer(d) // the next one leads, and knows what the first has stored
				}
			}).Submit(t.Context(), "01job", protocol.JobSpec{}, f, true)
			if err != nil || !waited {
				t.Fatalf("it ended with %v, and has waited: %v", err, waited)
			}
			d.whole(t, f)
		})
	}
}

func TestAConnectionThatBreaksInMidSubmissionIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	var once sync.Once
	d := &desk{before: func(from int) bool {
		if from == partFiles {
			once.Do(func() { c.server.Stop(); c.start() })
		}
		return true
	}}
	c.offer(d)
	f := controlFiles(t, 3*partFiles, 0)
	lost := 0
	err := New(c.connect()).Telling(func(s Step) {
		if s.Lost != nil {
			lost++
		}
	}).Submit(t.Context(), "01job", protocol.JobSpec{}, f, true)
	if err != nil || lost == 0 {
		t.Fatalf("it ended with %v, and has waited %d times", err, lost)
	}
	d.whole(t, f)
}

func TestAJobThatCannotBeHandedOverIsCancelled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	d := &desk{}
	ctx, cancel := context.WithCancel(t.Context())
	d.before = func(from int) bool {
		if from > 0 {
			cancel() // somebody interrupts it
		}
		return from == 0
	}
	c.offer(d)
	if err := New(c.connect()).Submit(ctx, "01job", protocol.JobSpec{}, controlFiles(t, 3*partFiles, 0), true); !fault.Is(err, fault.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if !d.cancelled || d.sealed {
		t.Errorf("cancelled: %v, sealed: %v", d.cancelled, d.sealed)
	}
}

func TestRequestsFitIntoSmallMessages(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 64<<10)
	d := &desk{}
	c.offer(d)
	f := controlFiles(t, 200, 2000)
	if err := New(c.connect()).Submit(t.Context(), "01job", protocol.JobSpec{}, f, true); err != nil {
		t.Fatal(err)
	}
	d.whole(t, f)
	if d.requests < 5 {
		t.Errorf("%d requests of at most 64 KiB for 200 names of 2 KiB", d.requests)
	}
}
