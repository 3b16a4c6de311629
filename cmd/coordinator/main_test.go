package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/clustertest"
)

// TestMain is also the coordinator that tests start as a process of its own.
func TestMain(m *testing.M) {
	os.Exit(clustertest.Main(m, func() int { return start(os.Args[1:], os.Getenv, os.Stdout, os.Stderr) }))
}

func nats(t *testing.T) *bus.Server {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// The lease is longer than the test may run: waiting for its end does not help.
func TestCoordinatorsOfOneName(t *testing.T) {
	t.Parallel()
	s := nats(t)
	coordinator := func() *clustertest.Process {
		return clustertest.Launch(t, "--nats", s.URL(), "--store", t.TempDir(), "--name", "c1", "--leader-lease", "1h")
	}
	first := coordinator()
	first.Says(t, "msg=leading")
	second := coordinator()
	if code := second.ExitCode(); code != 69 {
		t.Errorf("the second ends with exit code %d", code)
	}
	second.Says(t, `a coordinator named "c1" leads already: host `)
	second.Says(t, fmt.Sprintf("pid %d (give each coordinator its own --name)", first.PID()))
	select {
	case <-first.Ended():
		t.Error("the first has ended")
	default:
	}
	first.Kill()
	coordinator().Says(t, "msg=leading")
}

func TestAnExternalAndAnEmbeddedNATSContradict(t *testing.T) {
	for _, c := range []struct{ env, flag string }{{"FSBACKUP_NATS_URL", "--nats-listen"}, {"FSBACKUP_NATS", "--nats-listen"}, {"FSBACKUP_NATS_LISTEN", "--nats"}} {
		t.Run(c.env, func(t *testing.T) {
			t.Setenv(c.env, "127.0.0.1:4222")
			var out bytes.Buffer
			code := start([]string{c.flag, "127.0.0.1:4223", "--store", t.TempDir()}, os.Getenv, &out, &out)
			if code != 64 || !strings.Contains(out.String(), "--nats (FSBACKUP_NATS_URL)") || !strings.Contains(out.String(), "--nats-listen (FSBACKUP_NATS_LISTEN)") {
				t.Errorf("exit code %d: %s", code, out.String())
			}
		})
	}
}

func TestHealthIsThatOfTheConnection(t *testing.T) {
	t.Parallel()
	s := nats(t)
	c := clustertest.Launch(t, "--nats", s.URL(), "--store", t.TempDir(), "--name", "c1", "--leader-lease", "1h", "--http", "127.0.0.1:0")
	c.Says(t, "msg=leading")
	url := "http://" + c.Address(t, "msg=\"HTTP API\" address=") + "/healthz"
	if code := clustertest.Status(t, url); code != http.StatusOK {
		t.Errorf("the leader answers %d", code)
	}
	s.Stop()
	c.Says(t, "connection to NATS lost")
	if code := clustertest.Status(t, url); code != http.StatusServiceUnavailable { // its lease goes on for an hour
		t.Errorf("without a connection it answers %d", code)
	}
}

// TestTheHTTPAPIIsForThoseWhoMay asks coordinators on loopback and beyond it.
func TestTheHTTPAPIIsForThoseWhoMay(t *testing.T) {
	t.Parallel()
	s := nats(t)
	ask := func(method, url string, header map[string]string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			if k == "Host" {
				r.Host = v
			}
			r.Header.Set(k, v)
		}
		c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the certificate names nobody
		a, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Body.Close() // its status is all
		return a.StatusCode
	}
	local := clustertest.Launch(t, "--nats", s.URL(), "--store", t.TempDir(), "--name", "c1", "--http", "127.0.0.1:0")
	local.Says(t, "msg=leading")
	url := "http://" + local.Address(t, "msg=\"HTTP API\" address=")
	drain := url + "/api/v1/workers/w/drain"
	for _, tt := range []struct {
		method, url string
		header      map[string]string
		want        int
	}{
		{"GET", url + "/api/v1/jobs", nil, 200},
		{"POST", drain, nil, 404}, // there is no such worker
		{"POST", drain, map[string]string{"Origin": "https://page.example"}, 403},
		{"POST", drain, map[string]string{"Host": "page.example"}, 421},
		{"GET", url + "/metrics", map[string]string{"Host": "page.example"}, 421},
	} {
		if got := ask(tt.method, tt.url, tt.header); got != tt.want {
			t.Errorf("%s %s with %v: %d, want %d", tt.method, tt.url, tt.header, got, tt.want)
		}
	}

	store := t.TempDir()
	cert, key := certificate(t)
	beyond := clustertest.Launch(t, "--nats", s.URL(), "--store", store, "--name", "c2", "--http", "0.0.0.0:0", "--http-cert", cert, "--http-key", key)
	_, port, err := net.SplitHostPort(beyond.Address(t, "msg=\"HTTP API\" address="))
	if err != nil {
		t.Fatal(err)
	}
	beyond.Says(t, "file="+store+"/http-token")
	url = "https://127.0.0.1:" + port
	token := func(name string) map[string]string {
		b, err := os.ReadFile(filepath.Join(store, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(filepath.Join(store, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
		return map[string]string{"Authorization": "Bearer " + strings.TrimSpace(string(b))}
	}
	for _, tt := range []struct {
		method, path string
		header       map[string]string
		want         int
	}{
		{"GET", "/metrics", nil, 401},
		{"GET", "/metrics", token("http-read-token"), 200},
		{"POST", "/api/v1/workers/w/drain", token("http-read-token"), 403},
		{"GET", "/metrics", token("http-token"), 200},
	} {
		if got := ask(tt.method, url+tt.path, tt.header); got != tt.want {
			t.Errorf("%s %s: %d, want %d", tt.method, tt.path, got, tt.want)
		}
	}
}

// certificate makes a certificate for no name, with its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for path, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestAConnectionThatIsClosedForGoodEndsTheProcess(t *testing.T) {
	t.Parallel()
	between := clustertest.NewInterjector(t, nats(t).URL())
	c := clustertest.Launch(t, "--nats", between.URL(), "--store", t.TempDir(), "--name", "c1")
	c.Says(t, "msg=leading")
	between.Say("-ERR 'you are not wanted'")
	if code := c.ExitCode(); code != 75 {
		t.Errorf("it ends with exit code %d", code)
	}
	c.Says(t, "coordinator: stay connected to NATS at")
}
