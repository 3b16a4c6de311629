package coordinator

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// smallMessages starts a leader on a server whose messages have at most a
// mebibyte, as those of others have, and offers its API there.
func smallMessages(t *testing.T) (*Coordinator, *bus.Bus) {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), MaxPayload: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: s, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	c, _, stop := lead(t, b, func(cfg *Config) {
		cfg.Layout.Memory = true
		cfg.Logger = slog.New(slog.DiscardHandler)
	})
	t.Cleanup(stop)
	unserve, err := api.Serve(t.Context(), b, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unserve)
	return c, b
}

// long is a path of many bytes, that JSON makes longer.
func long(n int, of string) string { return "/" + strings.Repeat(of, n) }

func putEnded(c *Coordinator, ids ...string) {
	c.rec.Update(func(tx state.Tx) {
		for i, id := range ids {
			rec := protocol.JobRecord{
				ID: protocol.JobID(id), State: protocol.StateCompleted, Created: time.Unix(1, 0), Started: time.Unix(1, 0), Ended: time.Now(),
				Spec: protocol.JobSpec{Source: long(50+i%100, "<"), Destination: long(300, "d"), Meta: "/m", Pool: "default"},
			}
			if i%10 == 0 {
				rec.State = protocol.StateFailed
			}
			tx.PutJob(state.Job{ID: id, Record: rec, Workers: map[string]uint64{"w": 1}})
		}
	})
}

func TestTenThousandJobsAreReadInPages(t *testing.T) {
	c, b := smallMessages(t)
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = fmt.Sprintf("01job%05d", i)
	}
	putEnded(c, ids...)
	for what, ask := range map[string]func(protocol.JobsRequest) protocol.JobsReply{
		"NATS": func(q protocol.JobsRequest) protocol.JobsReply {
			r, err := api.Call[protocol.JobsReply](t.Context(), b, api.OpJobs, q)
			if err != nil {
				t.Fatal(err)
			}
			return r
		},
		"HTTP": func(q protocol.JobsRequest) protocol.JobsReply {
			var r protocol.JobsReply
			v := url.Values{"after": {q.After}}
			if q.Limit > 0 {
				v.Set("limit", fmt.Sprint(q.Limit))
			}
			w := httptest.NewRecorder()
			api.Handler(c).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/jobs?"+v.Encode(), nil))
			if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != http.StatusOK {
				t.Fatalf("%d: %v", w.Code, err)
			}
			return r
		},
	} {
		t.Run(what, func(t *testing.T) {
			var seen []string
			q := protocol.JobsRequest{}
			pages := 0
			for {
				r := ask(q)
				if data, err := json.Marshal(r); err != nil || len(data) > b.MaxPayload() {
					t.Fatalf("a page has %d bytes, %v", len(data), err)
				}
				if q.After == "" && r.Total != len(ids) {
					t.Errorf("%d jobs in all, want %d", r.Total, len(ids))
				}
				for _, v := range r.Jobs {
					seen = append(seen, string(v.ID))
					if v.Workers != nil || v.Spec.Source == "" {
						t.Fatalf("%s has %d workers and source %q", v.ID, len(v.Workers), v.Spec.Source)
					}
				}
				if q.After = r.Next; q.After == "" {
					break
				}
				// Meanwhile others arrive.
				putEnded(c, fmt.Sprintf("01new%05d%s", pages, what))
				pages++
			}
			want := slices.Clone(ids)
			slices.Reverse(want)
			if !slices.Equal(seen, want) {
				t.Errorf("%d jobs are seen on %d pages, want each of %d once, newest first", len(seen), pages, len(want))
			}
			for p := range pages { // as it was
				c.rec.Update(func(tx state.Tx) { tx.DropJob(protocol.JobID(fmt.Sprintf("01new%05d%s", p, what))) })
			}
		})
	}
}

func TestJobsAreFoundByStateAndByTheBeginningOfTheirIDs(t *testing.T) {
	t.Parallel()
	c, _ := smallMessages(t)
	putEnded(c, "01a0", "01a1", "01b0", "01b1")
	c.rec.Update(func(tx state.Tx) {
		tx.PutJob(state.Job{ID: "01c0", Record: protocol.JobRecord{ID: "01c0", State: protocol.StateRunning, Paused: true}})
	})
	for _, q := range []struct {
		q     protocol.JobsRequest
		total int
		want  string
	}{
		{protocol.JobsRequest{Limit: 1}, 5, "01c0"},
		{protocol.JobsRequest{Prefix: "01a"}, 2, "01a1 01a0"},
		{protocol.JobsRequest{Prefix: "01a", Limit: 1}, 2, "01a1"},
		{protocol.JobsRequest{Prefix: "02"}, 0, ""},
		{protocol.JobsRequest{State: protocol.StateFailed}, 1, "01a0"},
		{protocol.JobsRequest{State: protocol.StatePaused}, 1, "01c0"},
		{protocol.JobsRequest{State: protocol.StateRunning}, 0, ""},
		{protocol.JobsRequest{After: "01b1"}, 5, "01b0 01a1 01a0"},
	} {
		r, err := c.Jobs(t.Context(), q.q)
		var got []string
		for _, v := range r.Jobs {
			got = append(got, string(v.ID))
		}
		if err != nil || r.Total != q.total || strings.Join(got, " ") != q.want {
			t.Errorf("%+v: %v of %d, %v; want %s of %d", q.q, got, r.Total, err, q.want, q.total)
		}
	}
	if _, err := c.Jobs(t.Context(), protocol.JobsRequest{State: "done"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a state that is none: %v", err)
	}
}

func TestThousandsOfWorkersAreReadInPages(t *testing.T) {
	t.Parallel()
	c, b := smallMessages(t)
	const n = 1500
	c.rec.Update(func(tx state.Tx) {
		for i := range n {
			name := fmt.Sprintf("w%05d", i)
			tx.PutWorker(state.Worker{Name: name, LastSeen: time.Now(), Beat: protocol.Heartbeat{Worker: name, Instance: name, Allow: []string{long(1000, "a")}, Slots: 4}})
		}
	})
	q, seen := protocol.WorkersRequest{}, 0
	for {
		r, err := api.Call[protocol.WorkersReply](t.Context(), b, api.OpWorkers, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range r.Workers {
			if v.Name != fmt.Sprintf("w%05d", seen) {
				t.Fatalf("%s is number %d", v.Name, seen)
			}
			seen++
		}
		if q.After = r.Next; q.After == "" {
			break
		}
	}
	if seen != n {
		t.Errorf("%d workers are seen, want %d", seen, n)
	}
	r, err := c.Drain(t.Context(), protocol.WorkerRequest{Worker: "w00007"})
	if err != nil || len(r.Workers) != 1 || r.Workers[0].Name != "w00007" || r.Workers[0].State != "drained" {
		t.Errorf("a worker that is drained: %d workers, %v", len(r.Workers), err)
	}
}

// One shard can have more failures than a message has room.
func TestFailuresOfLongPathsAreReadInPages(t *testing.T) {
	t.Parallel()
	c, b := smallMessages(t)
	ctx := t.Context()
	job := protocol.JobID("01job")
	putEnded(c, string(job))
	const refused, shards, each = 300, 3, 120
	kv, err := b.KV(ctx, protocol.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(refused) {
		rec := protocol.FileRecord{Index: i, State: protocol.FileRefused, Ref: protocol.FileRef{Path: fmt.Sprintf("/c%d%s", i, long(4000, "c")), Phase: protocol.PhaseCopy}, Refused: "no title"}
		data, err := json.Marshal(rec)
		if err == nil {
			err = kv.Put(ctx, protocol.FileKey(job, i), data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(shards) {
		msg := &protocol.FailuresMsg{Job: string(job), Phase: uint32(protocol.PhaseCopy), N: n, Sequence: n + 1, Delivery: 1, Worker: "w"}
		for i := range each {
			msg.Failures = append(msg.Failures, &protocol.FailureMsg{Path: fmt.Appendf(nil, "/%d/%d/%s", n, i, long(3000, "\x01")), Line: uint64(i + 1), Op: "copy", Reason: "gone", Kind: uint32(fault.NotFound)})
		}
		data, err := protocol.Encode(protocol.TypeFailures, msg)
		if err != nil {
			t.Fatal(err)
		}
		// It is too large for a message itself.
		if err := c.rec.Objects().PutBytes(ctx, fmt.Sprint("failures", n), data); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Store(ctx, bus.Message{
			Subject: protocol.FailureSubject(job, protocol.PhaseCopy, n, n+1, 1), Header: map[string][]string{protocol.HeaderObject: {fmt.Sprint("failures", n)}},
		}); err != nil {
			t.Fatal(err)
		}
		res, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{Job: string(job), Phase: uint32(protocol.PhaseCopy), N: n, Sequence: n + 1, Delivery: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.PublishOnce(ctx, bus.Message{Subject: protocol.ResultSubject(job, protocol.PhaseCopy, n), Data: res}); err != nil {
			t.Fatal(err)
		}
	}
	for _, limit := range []int{0, 40} {
		q, seen := protocol.FailuresRequest{Job: job, Limit: limit}, map[string]int{}
		for {
			r, err := api.Call[protocol.FailuresReply](ctx, b, api.OpFailures, q)
			if err != nil {
				t.Fatalf("after %d failures: %v", len(seen), err)
			}
			if limit > 0 && len(r.Failures) > limit {
				t.Fatalf("a page of %d, at most %d were asked for", len(r.Failures), limit)
			}
			for _, f := range r.Failures {
				seen[f.ControlFile[:min(len(f.ControlFile), 10)]+f.Path]++
			}
			if q.After = r.Next; q.After == "" || (limit > 0 && len(seen) > refused+each+each/2) {
				break
			}
		}
		if want := refused + shards*each; limit == 0 && len(seen) != want {
			t.Errorf("%d failures are seen, want %d", len(seen), want)
		}
		for f, n := range seen {
			if n != 1 {
				t.Fatalf("%.40q is seen %d times", f, n)
			}
		}
	}
	if _, err := c.Failures(ctx, protocol.FailuresRequest{Job: job, After: "7"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a page that was never given: %v", err)
	}
}
