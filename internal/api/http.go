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
//	GET  /api/v1/jobs/ID            one job
//	POST /api/v1/jobs/ID/files      append control files (AppendRequest)
//	POST /api/v1/jobs/ID/cancel     likewise pause and resume
//	DELETE /api/v1/jobs/ID          forget an ended job
//	GET  /api/v1/jobs/ID/failures   ?after=PAGE&limit=N
//	GET  /api/v1/jobs/ID/outcomes   ?from=INDEX: control files with lines that have no result
//	GET  /api/v1/workers            workers by name: ?limit=N&after=PAGE&name=NAME
//	POST /api/v1/workers/NAME/drain have one finish what it has and leave
//
// Lists are pages; "next" of one is PAGE of the one after it. Errors are an
// ErrorReply with a fitting status.
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
		if n, ok := limit(w, r); ok {
			v, err := s.Failures(r.Context(), protocol.FailuresRequest{Job: job(r).Job, After: r.FormValue("after"), Limit: n})
			respond(w, v, err)
		}
	})
	m.HandleFunc("GET /api/v1/jobs/{id}/outcomes", func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.ParseUint(cmp.Or(r.FormValue("from"), "0"), 10, 32)
		if err != nil {
			respond(w, nil, fault.New(fault.Invalid, "from=%q is not the index of a control file", r.FormValue("from")))
			return
		}
		v, err := s.Outcomes(r.Context(), protocol.OutcomesRequest{Job: job(r).Job, From: uint32(from)})
		respond(w, v, err)
	})
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
	return m
}

func job(r *http.Request) protocol.JobRequest {
	return protocol.JobRequest{Job: protocol.JobID(r.PathValue("id"))}
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
