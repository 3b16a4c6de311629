package api

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// maxRequest bounds the body of an HTTP request.
const maxRequest = 8 << 20

// Handler offers s over HTTP with JSON:
//
//	GET  /healthz                   200 while the coordinator leads
//	GET  /api/v1/jobs               all jobs, newest first
//	POST /api/v1/jobs               submit (SubmitRequest)
//	GET  /api/v1/jobs/ID            one job
//	POST /api/v1/jobs/ID/files      append control files (AppendRequest)
//	POST /api/v1/jobs/ID/cancel     likewise pause and resume
//	DELETE /api/v1/jobs/ID          forget an ended job
//	GET  /api/v1/jobs/ID/failures   ?after=PAGE&limit=N
//	GET  /api/v1/workers            all workers
//	POST /api/v1/workers/NAME/drain have one finish what it has and leave
//
// Errors are an ErrorReply with a fitting status.
func Handler(s Service) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.Jobs(r.Context(), struct{}{}); err != nil {
			fail(w, err)
			return
		}
		answer(w, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /api/v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Jobs(r.Context(), struct{}{})
		respond(w, v, err)
	})
	m.HandleFunc("POST /api/v1/jobs", func(w http.ResponseWriter, r *http.Request) {
		var q protocol.SubmitRequest
		if read(w, r, &q) {
			v, err := s.Submit(r.Context(), q)
			respond(w, v, err)
		}
	})
	m.HandleFunc("GET /api/v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Job(r.Context(), job(r))
		respond(w, v, err)
	})
	m.HandleFunc("DELETE /api/v1/jobs/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Drop(r.Context(), job(r))
		respond(w, v, err)
	})
	m.HandleFunc("POST /api/v1/jobs/{id}/files", func(w http.ResponseWriter, r *http.Request) {
		var q protocol.AppendRequest
		if read(w, r, &q) {
			q.Job = job(r).Job
			v, err := s.Append(r.Context(), q)
			respond(w, v, err)
		}
	})
	m.HandleFunc("POST /api/v1/jobs/{id}/cancel", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Cancel(r.Context(), job(r))
		respond(w, v, err)
	})
	m.HandleFunc("POST /api/v1/jobs/{id}/pause", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Pause(r.Context(), job(r))
		respond(w, v, err)
	})
	m.HandleFunc("POST /api/v1/jobs/{id}/resume", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Resume(r.Context(), job(r))
		respond(w, v, err)
	})
	m.HandleFunc("GET /api/v1/jobs/{id}/failures", func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.FormValue("limit"))
		if r.FormValue("limit") != "" && err != nil {
			fail(w, fault.New(fault.Invalid, "limit %q is not a number", r.FormValue("limit")))
			return
		}
		v, err := s.Failures(r.Context(), protocol.FailuresRequest{Job: job(r).Job, After: r.FormValue("after"), Limit: limit})
		respond(w, v, err)
	})
	m.HandleFunc("GET /api/v1/workers", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Workers(r.Context(), struct{}{})
		respond(w, v, err)
	})
	m.HandleFunc("POST /api/v1/workers/{name}/drain", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Drain(r.Context(), protocol.WorkerRequest{Worker: r.PathValue("name")})
		respond(w, v, err)
	})
	return m
}

func job(r *http.Request) protocol.JobRequest {
	return protocol.JobRequest{Job: protocol.JobID(r.PathValue("id"))}
}

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, v)
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
	_ = json.NewEncoder(w).Encode(v) // a client that went away needs no answer
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
	_ = json.NewEncoder(w).Encode(errorReply(err)) // likewise
}
