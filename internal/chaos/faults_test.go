package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/fsbackup/fsbackup/internal/protocol"
)

// disturbance is a kind of fault on a kind of component.
type disturbance struct{ component, kind string }

// Kinds of faults. A frozen process and a stalled connection are so for longer
// than leases last.
const (
	kill   = "killed"         // SIGKILL, started again
	term   = "terminated"     // SIGTERM, started again
	freeze = "frozen"         // SIGSTOP, SIGCONT
	cut    = "cut off"        // connections end, and new ones are refused
	stall  = "black hole"     // bytes are held back, and arrive after all
	hole   = "hole and reset" // bytes are held back and never arrive
	reset  = "reset"          // connections end, and new ones are taken
	refuse = "logins refused" // connections end, and new ones are told that the password is wrong
)

// Components.
const (
	aWorker  = "worker"
	theLead  = "leader"
	aStandby = "standby"
	aNode    = "NATS node"
	aRoute   = "NATS route"
	allNATS  = "NATS"
)

// disturbances lists all that a cluster can suffer.
func (c *cluster) disturbances() []disturbance {
	var out []disturbance
	add := func(component string, kinds ...string) {
		for _, k := range kinds {
			out = append(out, disturbance{component, k})
		}
	}
	add(aWorker, kill, term, freeze, cut, stall, hole, reset)
	add(theLead, kill, term, freeze)
	if !c.embedded {
		add(theLead, cut, stall, hole, reset)
		add(aStandby, kill, freeze)
		add(aNode, kill, term, freeze, cut, stall, hole)
		add(aRoute, cut, stall, hole, reset)
		add(allNATS, refuse)
	}
	return out
}

// measured is a fault that a job got over.
type measured struct {
	disturbance
	recovery time.Duration // from its end, or the kill, to the next result
	pause    time.Duration // the longest time without a result from its begin on
}

// table collects what all seeds measured.
type table struct {
	mu   sync.Mutex
	rows []measured
}

func (x *table) add(m measured) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.rows = append(x.rows, m)
}

// String renders count, median and maximum of each disturbance.
func (x *table) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	by := map[disturbance][]measured{}
	for _, m := range x.rows {
		by[m.disturbance] = append(by[m.disturbance], m)
	}
	keys := make([]disturbance, 0, len(by))
	for k := range by {
		keys = append(keys, k)
	}
	order := []string{aWorker, theLead, aStandby, aNode, aRoute, allNATS}
	slices.SortFunc(keys, func(a, b disturbance) int {
		if d := slices.Index(order, a.component) - slices.Index(order, b.component); d != 0 {
			return d
		}
		return strings.Compare(a.kind, b.kind)
	})
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 4, 1, ' ', 0)
	fmt.Fprintln(w, "| component\t| fault\t| count\t| median\t| maximum\t| longest pause\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|")
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	for _, k := range keys {
		var recovery []time.Duration
		var pause time.Duration
		for _, m := range by[k] {
			recovery = append(recovery, m.recovery)
			pause = max(pause, m.pause)
		}
		slices.Sort(recovery)
		fmt.Fprintf(w, "| %s\t| %s\t| %d\t| %s\t| %s\t| %s\t|\n", k.component, k.kind, len(recovery),
			seconds(recovery[len(recovery)/2]), seconds(recovery[len(recovery)-1]), seconds(pause))
	}
	_ = w.Flush() // into memory
	return out.String()
}

// pick chooses the part that a disturbance hits: of workers one that has work.
func (c *cluster) pick(r *rand.Rand, component string) (part, bool) {
	switch component {
	case aNode:
		return c.nats[r.IntN(len(c.nats))], true
	case allNATS:
		return part{name: allNATS}, true
	case aRoute:
		return c.routes[r.IntN(len(c.routes))], true
	case aWorker:
		if v, err := c.Workers(c.t.Context()); err == nil {
			var busy []part
			for _, w := range v.Workers {
				if len(w.Running) > 0 && w.State == "live" {
					busy = append(busy, c.workers[w.Name])
				}
			}
			if len(busy) > 0 {
				return busy[r.IntN(len(busy))], true
			}
		}
		return c.workers[fmt.Sprintf("w%d", 1+r.IntN(len(c.workers)))], true
	}
	v, err := c.Workers(c.t.Context())
	if err != nil {
		return part{}, false
	}
	for name, p := range c.coordinators {
		if (name == v.Leader) == (component == theLead) {
			return p, true
		}
	}
	return part{}, false
}

// inject does one fault to its end. It returns when it began, and from when on
// the job could recover.
func (c *cluster) inject(r *rand.Rand, d disturbance, p part) (began, ended time.Time) {
	// Longer than a lease and than the time to the next delivery.
	lasts := ackWait + time.Duration(r.Int64N(int64(3*time.Second)))
	began = time.Now()
	avoid := func(bool) {}
	if d.component == aNode {
		// This test only looks on: it goes to another node.
		avoid = func(away bool) {
			if away {
				c.own[p.node].cut()
			} else {
				c.own[p.node].heal()
			}
		}
	}
	switch d.kind {
	case kill:
		p.d.end(syscall.SIGKILL, time.Duration(r.Int64N(int64(4*time.Second))))
		return began, began
	case term:
		p.d.end(syscall.SIGTERM, time.Duration(r.Int64N(int64(2*time.Second))))
		return began, began
	case freeze:
		p.d.signal(syscall.SIGSTOP)
		avoid(true)
		c.wait(lasts)
		p.d.signal(syscall.SIGCONT)
	case cut:
		p.wires.cut()
		c.wait(lasts)
	case refuse:
		c.accept("nobody-knows")
		c.wait(lasts)
		c.accept(password)
	case stall, hole:
		p.wires.stall()
		avoid(true)
		c.wait(lasts)
		if d.kind == hole {
			p.wires.reset()
		}
	case reset:
		p.wires.reset()
		return began, began
	}
	p.wires.heal()
	avoid(false)
	return began, time.Now()
}

// wait lets a fault last.
func (c *cluster) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.t.Context().Done():
	}
}

// dump writes what a person needs to see why a job does not go on: its state,
// and what every process is doing.
func (c *cluster) dump(id protocol.JobID) {
	c.t.Helper()
	for _, args := range [][]string{{"status", "--json", string(id)}, {"workers", "--json"}, {"failures", string(id)}} {
		if id == "" && args[0] != "workers" {
			continue
		}
		out, err := c.fsb(append(args, "--nats", c.url)...)
		name := "dump-" + args[0]
		if _, werr := fmt.Fprintf(c.logFile(name), "%s\n%v\n", out, err); werr != nil {
			c.t.Logf("%s: %v", name, werr)
		}
	}
	for _, d := range c.daemons {
		d.mu.Lock()
		d.stopped = true
		d.mu.Unlock()
		d.signal(syscall.SIGCONT)
		d.signal(syscall.SIGQUIT)
	}
	for _, d := range c.daemons {
		select {
		case <-d.ended:
		case <-time.After(5 * time.Second):
		}
	}
}

// keepLogs prints where the logs of a failed test are, and removes others.
func keepLogs(t testing.TB, dir string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of all processes: %s", dir)
			return
		}
		_ = os.RemoveAll(dir) // in the temporary directory
	})
}
