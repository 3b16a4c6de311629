package chaos

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// daemon is a process that is started again whenever it ends, as a service
// manager would.
type daemon struct {
	name string
	args []string
	env  []string
	log  *os.File

	mu      sync.Mutex
	cmd     *exec.Cmd
	stopped bool          // it is not to be started again
	pause   time.Duration // before the next start
	ended   chan struct{} // closed when it is stopped and gone
}

// restartPause is how long a service manager waits before it starts a daemon again.
const restartPause = 200 * time.Millisecond

// start starts a binary that is stopped with the test.
func (c *cluster) start(name, bin string, args ...string) *daemon {
	c.t.Helper()
	log, err := os.Create(filepath.Join(c.logs, name+".log"))
	if err != nil {
		c.t.Fatal(err)
	}
	d := &daemon{name: name, args: append([]string{filepath.Join(binaries, bin)}, args...), log: log, pause: restartPause, ended: make(chan struct{})}
	if d.env = os.Environ(); mutantName != "" {
		d.env = append(d.env, "FSBACKUP_MUTANT="+mutantName)
	}
	go d.run()
	c.daemons = append(c.daemons, d)
	c.t.Cleanup(func() {
		d.mu.Lock()
		d.stopped = true
		d.mu.Unlock()
		d.signal(syscall.SIGKILL)
		<-d.ended
		_ = log.Close() // written by the process
	})
	return d
}

func (d *daemon) run() {
	defer close(d.ended)
	for {
		cmd := exec.Command(d.args[0], d.args[1:]...) // ended by signals
		cmd.Env, cmd.Stdout, cmd.Stderr = d.env, d.log, d.log
		// A test that is killed leaves no processes behind.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		d.mu.Lock()
		if d.stopped {
			d.mu.Unlock()
			return
		}
		err := cmd.Start()
		d.cmd = cmd
		d.mu.Unlock()
		if err == nil {
			err = cmd.Wait()
		}
		d.mu.Lock()
		pause := d.pause
		d.pause = restartPause
		d.mu.Unlock()
		fmt.Fprintf(d.log, "=== %s %s ended: %v\n", time.Now().Format(time.TimeOnly+".000"), d.name, err)
		time.Sleep(pause)
	}
}

// signal sends a signal to the process that runs now.
func (d *daemon) signal(s syscall.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil && d.cmd.Process != nil {
		_ = d.cmd.Process.Signal(s) // it may just have ended
	}
}

// end has the process end by a signal, and start again after a pause.
func (d *daemon) end(s syscall.Signal, pause time.Duration) {
	d.mu.Lock()
	d.pause = pause
	d.mu.Unlock()
	d.signal(s)
}

// said is how often the daemon has logged a text.
func (d *daemon) said(t *testing.T, text string) int {
	t.Helper()
	log, err := os.ReadFile(d.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(log, []byte(text))
}

// nextPort is where the search for free ports begins: below those that the
// system gives to outgoing connections, so that a daemon that is down for a
// moment finds its port free again.
var nextPort = func() *atomic.Int64 {
	var n atomic.Int64
	n.Store(12000 + rand.Int64N(15000))
	return &n
}()

// freeAddr returns an address of this host that nothing listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l := listen(t)
	_ = l.Close() // taken again at once
	return l.Addr().String()
}

// listen listens on an address that was free. A process that is being started
// may hold one that was closed a moment ago.
func listen(t testing.TB) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.FormatInt(nextPort.Add(1), 10))
		if l, err := lc.Listen(t.Context(), "tcp", addr); err == nil {
			return l
		}
	}
	t.Fatal("no port is free")
	return nil
}
