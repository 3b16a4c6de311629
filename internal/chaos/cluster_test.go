// Package chaos owns tests of clusters of real processes that are killed, frozen
// and cut off from one another while jobs run, by a schedule that a seed gives.
package chaos

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

// Timings of clusters under test, about a tenth of real ones (20, 30, 12 and 3
// seconds). Those of NATS cannot be scaled: a new leader of a stream takes it 4
// to 10 s.
const (
	leader    = 3 * time.Second
	heartbeat = 300 * time.Millisecond
)

// lease and ackWait are longer where what guards the end of a job is switched off:
// as in real clusters, a job can end in much less time than a lease lasts.
var lease, ackWait = func() (lease, ackWait time.Duration) {
	if guardsEnds() {
		return 6 * time.Second, 9 * time.Second
	}
	return 2 * time.Second, 3 * time.Second
}()

// slots is how many shards a worker has at once.
const slots = 2

// pace is how late bytes arrive on each way while faults are injected, so that a
// job with few entries takes long enough for all of them.
const pace = 40 * time.Millisecond

// password is with which nodes of NATS let in who connects.
const password = "let-me-in"

// cluster is NATS, coordinators and workers as processes. Each connects through
// proxies of its own.
type cluster struct {
	*client.Client

	t    testing.TB
	dir  string
	logs string
	bus  *bus.Bus
	url  string // for people and tests

	nodes    []string // client addresses of NATS
	embedded bool     // NATS is in the only coordinator
	daemons  []*daemon

	nats         []part
	confs        []string // of the nodes, with %s for the password
	coordinators map[string]part
	workers      map[string]part
	routes       []part  // between two nodes of NATS
	own          []wires // of this test, by node
}

// part is what a fault hits.
type part struct {
	name  string
	d     *daemon // nil: it has no process of its own
	wires wires   // what connects it
	node  int     // of NATS
}

// newCluster starts all processes and waits until they have joined.
func newCluster(t testing.TB, logs string, embedded bool) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), logs: logs, embedded: embedded, coordinators: map[string]part{}, workers: map[string]part{}}
	store := c.storeDir()
	timing := []string{"--lease", lease.String(), "--ack-wait", ackWait.String(), "--leader-lease", leader.String(), "--heartbeat", heartbeat.String()}
	if embedded {
		c.nodes = []string{freeAddr(t)}
		c.own = make([]wires, 1)
		c.coordinators["c1"] = part{name: "c1", d: c.start("c1", "coordinator", append(timing, "--name", "c1", "--store", store, "--nats-listen", c.nodes[0])...)}
	} else {
		c.startNATS(store)
		for i := range 2 {
			name := fmt.Sprintf("c%d", i+1)
			urls, ws := c.link()
			c.coordinators[name] = part{name: name, wires: ws, d: c.start(name, "coordinator",
				append(timing, "--name", name, "--nats", urls, "--replicas", "3", "--store", filepath.Join(c.dir, name))...)}
		}
	}
	for i := range 3 {
		name := fmt.Sprintf("w%d", i+1)
		urls, ws := c.link()
		c.workers[name] = part{name: name, wires: ws, d: c.start(name, "worker",
			"--name", name, "--nats", urls, "--allow", c.dir, "--slots", strconv.Itoa(slots), "--read-threads", "1", "--write-threads", "1")}
	}
	urls, own := c.link()
	own.slow(0)
	for i, w := range own {
		c.own[i] = append(c.own[i], w)
	}
	c.url = urls
	log := slog.New(slog.NewTextHandler(c.logFile("client"), nil))
	b, err := bus.Connect(t.Context(), bus.Config{URL: urls, Name: "chaos", Patient: true, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	c.bus, c.Client = b, client.New(b)
	c.untilAll(len(c.workers))
	return c
}

// logFile makes a log file of this process's own.
func (c *cluster) logFile(name string) *os.File {
	c.t.Helper()
	f, err := os.Create(filepath.Join(c.logs, name+".log"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = f.Close() })
	return f
}

// storeDir returns a directory in memory where there is one: NATS syncs each
// message, and what processes lose when they are killed does not depend on disks.
func (c *cluster) storeDir() string {
	c.t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-chaos-") // in memory, where TempDir is not
	if err != nil {
		return filepath.Join(c.dir, "store")
	}
	c.t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in memory
	return dir
}

// startNATS starts three nodes. Each pair of them has one route, through a proxy:
// what NATS tells its nodes of one another leads nowhere.
func (c *cluster) startNATS(store string) {
	c.t.Helper()
	const nodes = 3
	var routeAddr [nodes]string
	c.own = make([]wires, nodes)
	for i := range nodes {
		c.nodes = append(c.nodes, freeAddr(c.t))
		routeAddr[i] = freeAddr(c.t)
	}
	var between [nodes]wires
	for i := range nodes {
		// A ring of three: one route for each pair.
		next := (i + 1) % nodes
		w := newWire(c.t, routeAddr[next], 0)
		between[i], between[next] = append(between[i], w), append(between[next], w)
		c.routes = append(c.routes, part{name: fmt.Sprintf("n%d-n%d", i+1, next+1), wires: wires{w}})
		name := fmt.Sprintf("n%d", i+1)
		conf := fmt.Sprintf("server_name: %s\nlisten: %q\nmax_payload: 8MB\nping_interval: \"10s\"\nping_max: 3\n"+
			"authorization { user: chaos, password: %%s }\n"+
			"jetstream { store_dir: %q, sync_interval: always }\n"+
			"cluster { name: chaos, listen: %q, cluster_advertise: \"127.0.0.1:9\", no_advertise: true, routes: [ %q ] }\n",
			name, c.nodes[i], filepath.Join(store, name), routeAddr[i], "nats://"+w.addr())
		c.confs = append(c.confs, conf)
		c.configure(i, password)
		c.nats = append(c.nats, part{name: name, node: i, d: c.start(name, "nats-server", "--config", c.confFile(i))})
	}
	for i := range c.nats {
		c.nats[i].wires = between[i]
	}
}

func (c *cluster) confFile(node int) string {
	return filepath.Join(c.dir, fmt.Sprintf("n%d.conf", node+1))
}

// configure writes a node's configuration in one step: a node may start any moment.
func (c *cluster) configure(node int, password string) {
	c.t.Helper()
	file := c.confFile(node)
	err := os.WriteFile(file+".new", fmt.Appendf(nil, c.confs[node], password), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		c.t.Error(err) // a fault may be injected on a goroutine of its own
	}
}

// accept has all nodes of NATS take logins with one password only, those that are
// down or frozen as soon as they run.
func (c *cluster) accept(password string) {
	c.t.Helper()
	for i, n := range c.nats {
		c.configure(i, password)
		n.d.signal(syscall.SIGHUP)
	}
}

// link makes one proxy for each node of NATS, and returns their URLs.
func (c *cluster) link() (string, wires) {
	c.t.Helper()
	var urls []string
	var ws wires
	login := ""
	if c.nats != nil {
		login = "chaos:" + password + "@"
	}
	for i, n := range c.nodes {
		w := newWire(c.t, n, pace)
		urls, ws = append(urls, "nats://"+login+w.addr()), append(ws, w)
		if c.nats != nil {
			c.nats[i].wires = append(c.nats[i].wires, w)
		}
	}
	return strings.Join(urls, ","), ws
}

// slow sets how late bytes arrive at coordinators and workers.
func (c *cluster) slow(latency time.Duration) {
	for _, parts := range []map[string]part{c.coordinators, c.workers} {
		for _, p := range parts {
			p.wires.slow(latency)
		}
	}
}

// untilAll waits until so many workers are live.
func (c *cluster) untilAll(n int) protocol.WorkersReply {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	var last protocol.WorkersReply
	var lastErr error
	for {
		live := 0
		r, err := c.Workers(ctx)
		for _, w := range r.Workers {
			if w.State == "live" {
				live++
			}
		}
		if err == nil && live == n {
			return r
		}
		last, lastErr = r, err
		if !bus.Sleep(ctx, 50*time.Millisecond) {
			c.dump("")
			c.t.Fatalf("there are not %d live workers: %+v, %v", n, last, lastErr)
		}
	}
}
