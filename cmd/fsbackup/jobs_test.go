package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/fsbackup/fsbackup/internal/api"
	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// lists is a coordinator that has a number of jobs and gives them in pages of 30.
type lists struct {
	api.Service
	n int

	mu    sync.Mutex // guards what follows
	asked []protocol.JobsRequest
}

// Jobs returns a page of jobs.
func (l *lists) Jobs(_ context.Context, q protocol.JobsRequest) (protocol.JobsReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, q)
	r := protocol.JobsReply{}
	for i := l.n - 1; i >= 0; i-- {
		id := fmt.Sprintf("01job%03d", i)
		if !strings.HasPrefix(id, q.Prefix) {
			continue
		}
		r.Total++
		if q.After != "" && id >= q.After {
			continue
		}
		if len(r.Jobs) == 30 || (q.Limit > 0 && len(r.Jobs) == q.Limit) {
			r.Next = string(r.Jobs[len(r.Jobs)-1].ID)
			continue
		}
		r.Jobs = append(r.Jobs, protocol.JobView{ID: protocol.JobID(id), State: protocol.StateCompleted})
	}
	return r, nil
}

// Job returns a job.
func (l *lists) Job(_ context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return protocol.JobView{ID: q.Job, State: protocol.StateCompleted}, nil
}

// serve offers a service on a NATS of its own and returns where that is.
func serve(t *testing.T, s api.Service) string {
	t.Helper()
	server, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: server, Name: "coordinator"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	stop, err := api.Serve(t.Context(), b, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return server.URL()
}

// here runs the command in this process.
func here(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(args, os.Getenv, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func TestJobsAreListedUpToALimit(t *testing.T) {
	t.Parallel()
	l := &lists{n: 107}
	nats := "--nats=" + serve(t, l)
	for _, c := range []struct {
		args string
		jobs int
		last string
	}{
		{"", 50, "and 57 more: see them with --all, or with --limit N"},
		{"--limit 7", 7, "and 100 more: see them with --all, or with --limit N"},
		{"--limit 107", 107, ""},
		{"--all", 107, ""},
	} {
		r := here(t, append([]string{"jobs", nats}, strings.Fields(c.args)...)...).want(t, 0)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")[1:] // without the head
		if c.last != "" {
			if got := lines[len(lines)-1]; got != c.last {
				t.Errorf("jobs %s: the last line is %q", c.args, got)
			}
			lines = lines[:len(lines)-1]
		}
		if len(lines) != c.jobs || !strings.HasPrefix(lines[0], "01job106 ") || !strings.HasPrefix(lines[len(lines)-1], fmt.Sprintf("01job%03d ", 107-c.jobs)) {
			t.Errorf("jobs %s lists %d jobs, want the newest %d:\n%s", c.args, len(lines), c.jobs, r.stdout)
		}
	}
	var both struct {
		Jobs  []protocol.JobView `json:"jobs"`
		Total int                `json:"total"`
	}
	r := here(t, "jobs", nats, "--json", "--limit=40").want(t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &both); err != nil || len(both.Jobs) != 40 || both.Total != 107 {
		t.Errorf("%d of %d jobs, %v", len(both.Jobs), both.Total, err)
	}
	here(t, "jobs", nats, "--limit=0").want(t, 64)
	here(t, "jobs", nats, "--state=done").want(t, 64)
}

func TestAJobIsFoundWithoutReadingAll(t *testing.T) {
	t.Parallel()
	l := &lists{n: 107}
	nats := "--nats=" + serve(t, l)
	for arg, want := range map[string]string{"last": "job 01job106: completed", "01job042": "job 01job042: completed"} {
		if r := here(t, "status", nats, arg).want(t, 0); !strings.HasPrefix(r.stdout, want) {
			t.Errorf("status %s: %v", arg, r)
		}
	}
	if r := here(t, "status", nats, "01job04").want(t, 64); !strings.Contains(r.stderr, `10 jobs begin with "01job04"`) {
		t.Error(r)
	}
	here(t, "status", nats, "01no").want(t, 66)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.asked {
		if q.Limit != 1 {
			t.Errorf("it asks for %+v", q)
		}
	}
}
