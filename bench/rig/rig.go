// Package rig owns what the programs that measure a coordinator have in common:
// NATS and the coordinator as processes of their own, and what these take.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/coordinator"
)

// Rig is a cluster without workers.
type Rig struct {
	Dir string // scratch; the caller removes it
	URL string // of NATS; "" where all is in this process

	server *bus.Server
	coord  *exec.Cmd
	stops  []func() error
}

// Start builds NATS and the coordinator and starts them as processes, with all
// that they store below dir.
func Start(ctx context.Context, dir string, flags ...string) (*Rig, error) {
	r := &Rig{Dir: dir}
	bin := filepath.Join(dir, "bin")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "github.com/fsbackup/fsbackup/cmd/coordinator", "github.com/nats-io/nats-server/v2")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build: %w: %s", err, out)
	}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	r.URL = "nats://127.0.0.1:" + port
	conf := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("listen: \"127.0.0.1:%s\"\nmax_payload: 8MB\njetstream { store_dir: %q, sync_interval: always }\n", port, filepath.Join(dir, "nats"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	if _, err := r.spawn("nats", filepath.Join(bin, "nats-server"), "--config", conf); err != nil {
		return nil, err
	}
	if err := r.untilConnected(ctx); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	args := append([]string{"--nats", r.URL, "--name", "measured", "--store", filepath.Join(dir, "coordinator"), "--log-level", "warn"}, flags...)
	if r.coord, err = r.spawn("coordinator", filepath.Join(bin, "coordinator"), args...); err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// StartWithin starts both within this process: for tests, which measure nothing.
func StartWithin(ctx context.Context, dir string) (*Rig, error) {
	r := &Rig{Dir: dir}
	var err error
	if r.server, err = bus.StartServer(bus.ServerConfig{StoreDir: filepath.Join(dir, "nats"), Name: "rig"}); err != nil {
		return nil, err
	}
	r.stops = append(r.stops, func() error { r.server.Stop(); return nil })
	b, err := r.Connect(ctx, "coordinator")
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	co, err := coordinator.New(ctx, coordinator.Config{Name: "within", Bus: b, Dir: filepath.Join(dir, "coordinator")})
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- offer(ctx, b, co) }()
	r.stops = append(r.stops, func() error {
		cancel()
		err := <-ended
		b.Close()
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
	return r, nil
}

// Stop ends what was started, the last first.
func (r *Rig) Stop() error {
	var errs []error
	for len(r.stops) > 0 {
		last := len(r.stops) - 1
		errs = append(errs, r.stops[last]())
		r.stops = r.stops[:last]
	}
	return errors.Join(errs...)
}

func (r *Rig) spawn(name, bin string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(bin, args...) //nolint:noctx // ended by a signal
	log, err := os.Create(filepath.Join(r.Dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	r.stops = append(r.stops, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		err := cmd.Wait()
		if data, rerr := os.ReadFile(log.Name()); rerr == nil && name == "coordinator" && len(bytes.TrimSpace(data)) > 0 {
			fmt.Fprintf(os.Stderr, "%s said:\n%s", name, data)
		}
		_ = log.Close() // written by the process
		if name == "nats" {
			return nil // it gives its signal as its exit code
		}
		if err != nil {
			return fmt.Errorf("%s ended: %w", name, err)
		}
		return nil
	})
	return cmd, nil
}

func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }() // taken again at once
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return "", fmt.Errorf("port of %s: %w", l.Addr(), err)
	}
	return port, nil
}

// Connect connects to the rig's NATS.
func (r *Rig) Connect(ctx context.Context, name string) (*bus.Bus, error) {
	return bus.Connect(ctx, bus.Config{Server: r.server, URL: r.URL, Name: name})
}

func (r *Rig) untilConnected(ctx context.Context) error {
	var err error
	for range 100 {
		var b *bus.Bus
		if b, err = r.Connect(ctx, "probe"); err == nil {
			b.Close()
			return nil
		}
		if !bus.Sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	return err
}

// Client waits until the coordinator leads.
func (r *Rig) Client(ctx context.Context) (*client.Client, *bus.Bus, error) {
	b, err := r.Connect(ctx, "client")
	if err != nil {
		return nil, nil, err
	}
	c := client.New(b)
	for range 300 {
		if _, err = c.Workers(ctx); err == nil {
			return c, b, nil
		}
		if !bus.Sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	b.Close()
	return nil, nil, err
}

// Usage is what a process has taken.
type Usage struct {
	RSS, Peak int64 // bytes
	CPU       time.Duration
}

// Coordinator returns what the coordinator has taken: nothing where it is in
// this process.
func (r *Rig) Coordinator() (Usage, error) {
	if r.coord == nil {
		return Usage{}, nil
	}
	var u Usage
	dir := filepath.Join("/proc", strconv.Itoa(r.coord.Process.Pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, fmt.Errorf("memory of the coordinator: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64) // of other lines it is no number
		switch f[0] {
		case "VmRSS:":
			u.RSS = n << 10
		case "VmHWM:":
			u.Peak = n << 10
		}
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, fmt.Errorf("time of the coordinator: %w", err)
	}
	// After the name, which may have blanks: state is field 3, utime 14, stime 15.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return u, fmt.Errorf("time of the coordinator: %q", stat)
	}
	for _, s := range f[11:13] {
		ticks, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return u, fmt.Errorf("time of the coordinator: %w", err)
		}
		u.CPU += time.Duration(ticks) * time.Second / 100 // USER_HZ of Linux
	}
	return u, nil
}
