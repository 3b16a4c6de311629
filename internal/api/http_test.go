package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// oneJob is a service that knows one job, and says what it was asked for.
type oneJob struct {
	Service
	id protocol.JobID
}

func (s oneJob) Jobs(context.Context, protocol.JobsRequest) (r protocol.JobsReply, err error) {
	if s.id != "" {
		r.Jobs = append(r.Jobs, protocol.JobView{ID: s.id})
	}
	return r, nil
}

func (s oneJob) Job(_ context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	if q.Job != s.id {
		return protocol.JobView{}, fault.New(fault.NotFound, "no job %s", q.Job)
	}
	return protocol.JobView{ID: s.id}, nil
}

func (s oneJob) Cancel(ctx context.Context, q protocol.JobRequest) (protocol.JobView, error) {
	return s.Job(ctx, q)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method, path string
		job          protocol.JobID
		status       int
		says         string
	}{
		{"GET", "/api/v1/jobs/01a", "01a", 200, `"id":"01a"`},
		{"GET", "/api/v1/jobs/last", "01a", 200, `"id":"01a"`},
		{"POST", "/api/v1/jobs/last/cancel", "01a", 200, `"id":"01a"`},
		{"GET", "/api/v1/jobs/last", "", 404, "there is no job"},
		{"GET", "/api/v1/jobs/01b", "01a", 404, "no job 01b"},
		{"GET", "/api/v1/none", "01a", 404, "there is no /api/v1/none"},
		{"GET", "/", "01a", 404, "there is no /"},
		{"PUT", "/api/v1/jobs/01a", "01a", 405, "takes DELETE, GET, HEAD"},
		{"GET", "/api/v1/jobs/01a/cancel", "01a", 405, "takes POST"},
	} {
		w := httptest.NewRecorder()
		Handler(oneJob{id: tt.job}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, http.NoBody))
		body := strings.ReplaceAll(w.Body.String(), " ", "")
		if w.Code != tt.status || w.Header().Get("Content-Type") != "application/json" || !strings.Contains(body, strings.ReplaceAll(tt.says, " ", "")) {
			t.Errorf("%s %s: %d %s %s", tt.method, tt.path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
		if w.Code == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" {
			t.Errorf("%s %s: it does not say what it allows", tt.method, tt.path)
		}
	}
}
