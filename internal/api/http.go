package api

import (
	"cmp"
	"io"
	"net/http"
	"strconv"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// maxRequest bounds the body of an HTTP request.
const maxRequest = 8 << 20

// Handler offers s over HTTP with JSON:
//
//	GET  /healthz                   200 while the coordinator leads
//	GET  /api/v1/jobs               jobs, newest first: ?limit=N&after=PAGE&state=S&prefix=ID
//	POST /api/v1/jobs               submit (SubmitRequest)
//	GET  /api/v1/jobs/ID            one job; "last" is the newest one, here and below
//	POST /api/v1/jobs/ID/files      append control files (AppendRequest)
//	POST /api/v1/jobs/ID/cancel     likewise pause and resume
//	DELETE /api/v1/jobs/ID          forget an ended job
//	GET  /api/v1/jobs/ID/failures   ?after=PAGE&limit=N
//	GET  /api/v1/jobs/ID/outcomes   ?from=INDEX: control files with lines that have no result
//	GET  /api/v1/workers            workers by name: ?limit=N&after=PAGE&name=NAME
//	POST /api/v1/workers/NAME/drain have one finish what it has and leave
//
// Lists are pages; "next" of one is PAGE of the one after it. Errors are an
// ErrorReply with a fitting status, also for paths and methods that there are not.
func Handler(s Service) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.Workers(r.Context(), protocol.WorkersRequest{Limit: 1}); err != nil {
			fail(w, err)
			return
		}
		answer(w, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /api/v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := limit(w, r); ok {
			v, err := s.Jobs(r.Context(), protocol.JobsRequest{Limit: n, After: r.FormValue("after"), State: protocol.State(r.FormValue("state")), Prefix: r.FormValue("prefix")})
			respond(w, v, err)
		}
	})
	m.HandleFunc("POST /api/v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		var q protocol.SubmitRequest
		if read(w, r, &q) {
			v, err := s.Submit(r.Context(), q)
			respond(w, v, err)
		}
	})
	m.HandleFunc("GET /api/v1/jobs/{id}", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		v, err := s.Job(r.Context(), q)
		respond(w, v, err)
	}))
	m.HandleFunc("DELETE /api/v1/jobs/{id}", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		v, err := s.Drop(r.Context(), q)
		respond(w, v, err)
	}))
	m.HandleFunc("POST /api/v1/jobs/{id}/files", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		var a protocol.AppendRequest
		if read(w, r, &a) {
			a.Job = q.Job
			v, err := s.Append(r.Context(), a)
			respond(w, v, err)
		}
	}))
	m.HandleFunc("POST /api/v1/jobs/{id}/cancel", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		v, err := s.Cancel(r.Context(), q)
		respond(w, v, err)
	}))
	m.HandleFunc("POST /api/v1/jobs/{id}/pause", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		v, err := s.Pause(r.Context(), q)
		respond(w, v, err)
	}))
	m.HandleFunc("POST /api/v1/jobs/{id}/resume", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		v, err := s.Resume(r.Context(), q)
		respond(w, v, err)
	}))
	m.HandleFunc("GET /api/v1/jobs/{id}/failures", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		if n, ok := limit(w, r); ok {
			v, err := s.Failures(r.Context(), protocol.FailuresRequest{Job: q.Job, After: r.FormValue("after"), Limit: n})
			respond(w, v, err)
		}
	}))
	m.HandleFunc("GET /api/v1/jobs/{id}/outcomes", withJob(s, func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest) {
		from, err := strconv.ParseUint(cmp.Or(r.FormValue("from"), "0"), 10, 32)
		if err != nil {
			respond(w, nil, fault.New(fault.Invalid, "from=%q is not the index of a control file", r.FormValue("from")))
			return
		}
		v, err := s.Outcomes(r.Context(), protocol.OutcomesRequest{Job: q.Job, From: uint32(from)})
		respond(w, v, err)
	}))
	m.HandleFunc("GET /api/v1/workers", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := limit(w, r); ok {
			v, err := s.Workers(r.Context(), protocol.WorkersRequest{Limit: n, After: r.FormValue("after"), Name: r.FormValue("name")})
			respond(w, v, err)
		}
	})
	m.HandleFunc("POST /api/v1/workers/{name}/drain", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Drain(r.Context(), protocol.WorkerRequest{Worker: r.PathValue("name")})
		respond(w, v, err)
	})
	return explained(m)
}

// explained answers what m has no handler for in JSON.
func explained(m *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := m.Handler(r); pattern == "" {
			w = &explainer{ResponseWriter: w, r: r}
		}
		m.ServeHTTP(w, r)
	})
}

// explainer replaces the text of an answer that the router itself gives.
type explainer struct {
	http.ResponseWriter
	r *http.Request
}

// WriteHeader implements http.ResponseWriter.
func (e *explainer) WriteHeader(status int) {
	e.Header().Set("Content-Type", "application/json")
	e.Header().Del("Content-Length")
	e.ResponseWriter.WriteHeader(status)
	err := fault.New(fault.NotFound, "there is no %s", e.r.URL.Path)
	if status == http.StatusMethodNotAllowed {
		err = fault.New(fault.Invalid, "%s is not possible for %s, which takes %s", e.r.Method, e.r.URL.Path, e.Header().Get("Allow"))
	}
	writeError(e.ResponseWriter, err)
}

// Write implements io.Writer: what the router says is said already.
func (e *explainer) Write(p []byte) (int, error) { return len(p), nil }

// lastJob names the newest job.
const lastJob = "last"

// withJob has f answer for the job that the path names.
func withJob(s Service, f func(w http.ResponseWriter, r *http.Request, q protocol.JobRequest)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if id == lastJob {
			jobs, err := s.Jobs(r.Context(), protocol.JobsRequest{Limit: 1})
			if err == nil && len(jobs.Jobs) == 0 {
				err = fault.New(fault.NotFound, "there is no job")
			}
			if err != nil {
				fail(w, err)
				return
			}
			id = string(jobs.Jobs[0].ID)
		}
		f(w, r, protocol.JobRequest{Job: protocol.JobID(id)})
	}
}

// limit returns how many items a page may have, 0 where the request does not say.
// It reports false where it has refused the request.
func limit(w http.ResponseWriter, r *http.Request) (n int, ok bool) {
	text := r.FormValue("limit")
	if text == "" {
		return 0, true
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		fail(w, fault.New(fault.Invalid, "limit %q is no number of items", text))
		return 0, false
	}
	return n, true
}

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		err = rawjson.Unmarshal(body, v)
	}
	if err != nil {
		fail(w, fault.New(fault.Invalid, "request body: %w", err))
	}
	return err == nil
}

func respond(w http.ResponseWriter, v any, err error) {
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, v)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = rawjson.Write(w, v, "") // a client that went away needs no answer
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch fault.KindOf(err) {
	case fault.Invalid:
		status = http.StatusBadRequest
	case fault.NotFound:
		status = http.StatusNotFound
	case fault.Denied:
		status = http.StatusForbidden
	case fault.Transient, fault.Unavailable, fault.Exhausted:
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeError(w, err)
}

func writeError(w http.ResponseWriter, err error) {
	_ = rawjson.Write(w, errorReply(err), "") // a client that went away needs no answer
}
