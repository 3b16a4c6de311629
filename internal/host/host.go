// Package host owns who this process is among hosts: the clock that runs since
// boot, the identity of a process, and whether another process of this host is
// still alive.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootTime is a clock that goes on while the machine sleeps and that nobody sets.
// Leases are measured with it: a process that was frozen or suspended sees on
// waking how long it was away.
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("host: CLOCK_BOOTTIME: " + err.Error()) // exists since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Identity names one process among all processes of all hosts. A part that could
// not be learned is empty. It is a value; two of one process are equal.
type Identity struct {
	Host      string `json:"host,omitempty"`       // name, for people: two hosts can have the same
	Boot      string `json:"boot,omitempty"`       // id that the kernel drew when it started
	Namespace string `json:"pid_ns,omitempty"`     // within which PID counts, such as pid:[4026531836]
	PID       int    `json:"pid,omitempty"`        // 0: unknown
	Start     uint64 `json:"start_time,omitempty"` // of the process, in ticks since boot: numbers are used again
}

// Self returns the identity of this process.
func Self() Identity {
	id := Identity{PID: os.Getpid()}
	id.Host, _ = os.Hostname() // without it, and what follows, less can be told of the process
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		id.Boot = strings.TrimSpace(string(boot))
	}
	id.Namespace, _ = os.Readlink("/proc/self/ns/pid")
	if s, err := readStat(id.PID); err == nil {
		id.Start = s.start
	}
	return id
}

// String names the process for people.
func (id Identity) String() string {
	switch {
	case id == Identity{}:
		return "an unknown process"
	case id.PID == 0:
		return "host " + id.Host
	}
	return fmt.Sprintf("host %s, pid %d", id.Host, id.PID)
}

// SameHost reports whether both processes run under one kernel and count their
// ids together, so that each can look the other up. Containers are hosts of
// their own. Where it cannot be told it reports false.
func (id Identity) SameHost(other Identity) bool {
	return id.Boot != "" && id.Boot == other.Boot && id.Namespace != "" && id.Namespace == other.Namespace
}

// Dead reports whether the process was one of this host and is gone: nothing that
// it began will be carried out any more. It reports false where that cannot be told.
func (id Identity) Dead() bool {
	if id.PID <= 0 || id.Start == 0 || !id.SameHost(Self()) {
		return false
	}
	// /proc may hide processes of others; a signal does not.
	if err := unix.Kill(id.PID, 0); errors.Is(err, unix.ESRCH) {
		return true
	}
	s, err := readStat(id.PID)
	switch {
	case err != nil:
		return false
	case s.start != id.Start:
		return true // the number is another's now
	}
	// A killed process stays in the list until its parent asks. While a system call
	// holds one of its threads it is not gone: the call can yet be carried out.
	return (s.state == 'Z' || s.state == 'X') && s.threads <= 1
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	state   byte
	threads int
	start   uint64
}

// readStat reads /proc/PID/stat: see proc_pid_stat(5) for its fields.
func readStat(pid int) (stat, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return stat{}, fmt.Errorf("read the state of a process: %w", err)
	}
	return parseStat(data)
}

var errStat = errors.New("the state of a process has another form than is known")

func parseStat(data []byte) (stat, error) {
	// The second field is a name in brackets that may itself hold blanks and brackets.
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return stat{}, errStat
	}
	f := strings.Fields(string(data[end+1:])) // from the third field on
	const state, threads, start = 0, 17, 19   // the fields 3, 20 and 22
	if len(f) <= start || len(f[state]) != 1 {
		return stat{}, errStat
	}
	n, err := strconv.Atoi(f[threads])
	if err != nil {
		return stat{}, fmt.Errorf("%w: threads: %w", errStat, err)
	}
	at, err := strconv.ParseUint(f[start], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("%w: start: %w", errStat, err)
	}
	return stat{state: f[state][0], threads: n, start: at}, nil
}
