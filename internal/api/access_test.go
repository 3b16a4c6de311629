package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAccess(t *testing.T) {
	t.Parallel()
	const json = "application/json"
	open, closed := Access{}, Access{Operator: "op", Reader: "ro", Names: []string{"backup.example.org"}}
	for _, tt := range []struct {
		name   string
		access Access
		method string
		path   string
		body   string
		header map[string]string
		want   int
	}{
		{"look on loopback", open, "GET", "/api/v1/jobs", "", nil, 200},
		{"change on loopback", open, "POST", "/api/v1/workers/w/drain", "", nil, 200},
		{"JSON", open, "POST", "/api/v1/jobs", "{}", map[string]string{"Content-Type": json + "; charset=utf-8"}, 200},
		{"a form", open, "POST", "/api/v1/jobs", "a=b", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415},
		{"JSON as text, which pages can send", open, "POST", "/api/v1/jobs", "{}", map[string]string{"Content-Type": "text/plain"}, 415},
		{"a body of no type", open, "POST", "/api/v1/jobs", "{}", nil, 415},
		{"a foreign page", open, "POST", "/api/v1/workers/w/drain", "", map[string]string{"Origin": "https://evil.example"}, 403},
		{"a foreign page that looks", open, "GET", "/api/v1/jobs", "", map[string]string{"Origin": "https://evil.example"}, 403},
		{"a page without an origin", open, "POST", "/api/v1/workers/w/drain", "", map[string]string{"Origin": "null"}, 403},
		{"a page of another port", open, "POST", "/api/v1/workers/w/drain", "", map[string]string{"Origin": "http://127.0.0.1:9999"}, 403},
		{"a page, as its browser says", open, "GET", "/api/v1/jobs", "", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"its own page", open, "POST", "/api/v1/workers/w/drain", "", map[string]string{"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}, 200},
		{"a name that was made to lead here", open, "GET", "/api/v1/jobs", "", map[string]string{"Host": "evil.example:8080"}, 421},
		{"localhost", open, "GET", "/api/v1/jobs", "", map[string]string{"Host": "localhost:8080"}, 200},
		{"IPv6", open, "GET", "/api/v1/jobs", "", map[string]string{"Host": "[::1]:8080"}, 200},
		{"a name that was given", closed, "GET", "/healthz", "", map[string]string{"Host": "Backup.example.org"}, 200},
		{"no token", closed, "GET", "/api/v1/jobs", "", nil, 401},
		{"no token for metrics", closed, "GET", "/metrics", "", nil, 401},
		{"health", closed, "GET", "/healthz", "", nil, 200},
		{"a wrong token", closed, "GET", "/api/v1/jobs", "", map[string]string{"Authorization": "Bearer x"}, 401},
		{"an empty token", Access{Operator: "op"}, "GET", "/api/v1/jobs", "", map[string]string{"Authorization": "Bearer "}, 401},
		{"another scheme", closed, "GET", "/api/v1/jobs", "", map[string]string{"Authorization": "Basic op"}, 401},
		{"a reader looks", closed, "GET", "/api/v1/jobs", "", map[string]string{"Authorization": "Bearer ro"}, 200},
		{"a reader changes", closed, "POST", "/api/v1/jobs/1/cancel", "", map[string]string{"Authorization": "Bearer ro"}, 403},
		{"a reader deletes", closed, "DELETE", "/api/v1/jobs/1", "", map[string]string{"Authorization": "Bearer ro"}, 403},
		{"an operator changes", closed, "POST", "/api/v1/jobs/1/cancel", "", map[string]string{"Authorization": "bearer op"}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			came := false
			h := Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came = true }), tt.access)
			r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, strings.NewReader(tt.body))
			r.Host = "127.0.0.1:8080"
			for k, v := range tt.header {
				if k == "Host" {
					r.Host = v
				}
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			res := w.Result()
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != tt.want || came != (tt.want == 200) {
				t.Errorf("status %d, handled: %v, want %d", res.StatusCode, came, tt.want)
			}
			if tt.want != 200 && (res.Header.Get("Content-Type") != "application/json" || !strings.Contains(string(body), `"error"`)) {
				t.Errorf("answer %q", body)
			}
		})
	}
}
