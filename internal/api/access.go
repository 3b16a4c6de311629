package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// Access says who may use the HTTP API.
type Access struct {
	// Operator and Reader are the tokens of those who may do everything, and of those
	// who may only look. With neither, nobody is asked for one: that is for a listener
	// that only this host can reach.
	Operator, Reader string
	// Names are further names of this host, in Host headers. IP addresses, localhost
	// and what the host calls itself are taken always.
	Names []string
}

// Protect has only those use h who may, and keeps web pages of others out: a browser of
// somebody who may would else send their requests for them.
//
//   - The Host header must be a name of this host. A page whose name was made to lead
//     here says another.
//   - The Origin header of a browser must be this very server.
//   - A body must be application/json, which no page of others can send unasked.
//   - With tokens, everything but GET /healthz needs one as "Authorization: Bearer", and
//     everything but GET and HEAD that of an operator.
func Protect(h http.Handler, a Access) http.Handler {
	names := map[string]bool{"localhost": true}
	if host, err := os.Hostname(); err == nil {
		names[strings.ToLower(host)] = true
		short, _, _ := strings.Cut(host, ".")
		names[strings.ToLower(short)] = true
	}
	for _, n := range a.Names {
		names[strings.ToLower(n)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch host := hostOf(r.Host); {
		case !isIP(host) && !names[strings.ToLower(host)]:
			refuse(w, http.StatusMisdirectedRequest, "the Host header names %q, which is no name of this coordinator: use its IP address, or add the name with --http-name", r.Host)
		case foreign(r):
			refuse(w, http.StatusForbidden, "the request comes from a page of %q", r.Header.Get("Origin"))
		case r.ContentLength != 0 && !isJSON(r.Header.Get("Content-Type")):
			refuse(w, http.StatusUnsupportedMediaType, "the body is %q: send it as application/json", r.Header.Get("Content-Type"))
		default:
			if a.permits(w, r) {
				h.ServeHTTP(w, r)
			}
		}
	})
}

// permits reports whether the request has the token that it needs; else it refuses it.
func (a *Access) permits(w http.ResponseWriter, r *http.Request) bool {
	if a.Operator == "" && a.Reader == "" || r.URL.Path == "/healthz" {
		return true
	}
	looks := r.Method == http.MethodGet || r.Method == http.MethodHead
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = ""
	}
	switch {
	case same(token, a.Operator):
		return true
	case same(token, a.Reader):
		if looks {
			return true
		}
		refuse(w, http.StatusForbidden, "this token may only look: use the operator's")
	default:
		w.Header().Set("WWW-Authenticate", `Bearer realm="fsbackup"`)
		refuse(w, http.StatusUnauthorized, "a token is needed: send it as \"Authorization: Bearer TOKEN\"")
	}
	return false
}

// same compares tokens in a time that says nothing of them. An empty one is none.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return want != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// foreign reports whether a browser sends the request for a page of somebody else.
func foreign(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // another port of this host is another server
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || !strings.EqualFold(u.Host, r.Host) || (u.Scheme != "http" && u.Scheme != "https")
}

// hostOf returns what a Host header says without its port.
func hostOf(header string) string {
	if host, _, err := net.SplitHostPort(header); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(header, "["), "]")
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && t == "application/json"
}

// refuse answers with a status of its own.
func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeError(w, fault.New(fault.Denied, format, args...))
}
