package clustertest

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// mainVariable tells the binary of a test that it is to be the command.
const mainVariable = "FSBACKUP_TEST_MAIN"

// Main is the TestMain of a command: it runs the tests, or is the command itself
// where Launch has started it. It returns the exit code.
func Main(m *testing.M, command func() int) int {
	if os.Getenv(mainVariable) != "" {
		return command()
	}
	return m.Run()
}

// Process is a command that runs as a process of its own.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu   sync.Mutex // guards what follows
	out  bytes.Buffer
	news chan struct{} // closed when out grows
}

// Launch starts the command whose test this is, which must use Main. It is killed
// with the test.
func Launch(t testing.TB, args ...string) *Process {
	t.Helper()
	return LaunchWith(t, nil, args...)
}

// LaunchWith is Launch with more variables, such as NAME=VALUE, in the environment.
func LaunchWith(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	p := &Process{ended: make(chan struct{}), news: make(chan struct{})}
	p.cmd = exec.CommandContext(t.Context(), os.Args[0], args...)
	p.cmd.Env = append(append(os.Environ(), mainVariable+"=1"), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed leaves nothing behind
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // ExitCode tells
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s: %v:\n%s", strings.Join(args, " "), p.cmd.ProcessState, p.Text())
		}
	})
	return p
}

// Write takes what the process writes.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.news)
	p.news = make(chan struct{})
	return p.out.Write(b) //nolint:wrapcheck // a buffer in memory never fails
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process by SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// Signal sends the process a signal.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) } // it may have ended

// Ended is closed when the process is gone.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// ExitCode waits for the end of the process and returns its exit code, -1 after a
// signal.
func (p *Process) ExitCode() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// Text is what the process has written.
func (p *Process) Text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Address returns the address of this host that follows a text in what the process
// has written.
func (p *Process) Address(t testing.TB, after string) string {
	t.Helper()
	p.Says(t, after)
	_, rest, _ := strings.Cut(p.Text(), after)
	addr, _, _ := strings.Cut(rest, "\n")
	return addr
}

// Status is the status of the answer to an HTTP request to the process.
func Status(t testing.TB, url string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := (&http.Client{}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close() // its status is all
	return a.StatusCode
}

// Says waits until the process has written a text.
func (p *Process) Says(t testing.TB, want string) {
	t.Helper()
	for {
		p.mu.Lock()
		text, news := p.out.String(), p.news
		p.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		select {
		case <-news:
		case <-p.ended:
			if !strings.Contains(p.Text(), want) {
				t.Fatalf("the process has ended and never said %q", want)
			}
			return
		}
	}
}
