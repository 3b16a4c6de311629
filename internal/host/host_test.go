package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also the child of the tests: told so, it says who it is and waits
// for the end of its input.
func TestMain(m *testing.M) {
	if os.Getenv("FSBACKUP_TEST_CHILD") != "" {
		_ = json.NewEncoder(os.Stdout).Encode(Self()) // the parent misses it
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child starts a process and returns what it says it is.
func child(t *testing.T) (*exec.Cmd, Identity) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "FSBACKUP_TEST_CHILD=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() }) // the child ends with it, if it has not
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id Identity
	if err := json.NewDecoder(out).Decode(&id); err != nil {
		t.Fatal(err)
	}
	return cmd, id
}

func TestAProcessIsDeadFromItsKillOn(t *testing.T) {
	t.Parallel()
	cmd, id := child(t)
	if id.PID != cmd.Process.Pid || id.Host == "" || id.Start == 0 || !id.SameHost(Self()) {
		t.Fatalf("the child says it is %+v; this is %+v", id, Self())
	}
	if id.Dead() {
		t.Fatal("a live process is called dead")
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The kernel tells of its end. Nobody has asked for it: it stays in the list.
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if n == 1 {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	if !id.Dead() {
		t.Fatal("a killed process is not called dead")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", id.PID)); err != nil {
		t.Fatalf("the test proves less than it should: %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	if !id.Dead() {
		t.Error("a process that is gone is not called dead")
	}
}

func TestAProcessThatHasTheNumberOfADeadOneIsNotIt(t *testing.T) {
	t.Parallel()
	_, id := child(t)
	id.Start--
	if !id.Dead() {
		t.Error("its number is used again, and it is called alive")
	}
}

func TestWhatCannotBeToldIsNotDead(t *testing.T) {
	t.Parallel()
	cmd, dead := child(t)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for what, change := range map[string]func(*Identity){
		"of another kernel":           func(id *Identity) { id.Boot = "another" },
		"of a container":              func(id *Identity) { id.Namespace = "pid:[1]" },
		"without a kernel":            func(id *Identity) { id.Boot = "" },
		"without a namespace":         func(id *Identity) { id.Namespace = "" },
		"without a number":            func(id *Identity) { id.PID = 0 },
		"of all processes of a group": func(id *Identity) { id.PID = -1 },
		"without a start":             func(id *Identity) { id.Start = 0 },
		"of which nothing is known":   func(id *Identity) { *id = Identity{} },
	} {
		id := dead
		change(&id)
		if id.Dead() {
			t.Errorf("a process %s is called dead: %+v", what, id)
		}
	}
	if !dead.Dead() {
		t.Error("what is the same in all of them is not dead")
	}
	if Self().Dead() {
		t.Error("this process is called dead")
	}
}

func TestIdentityTravels(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(Self())
	if err != nil {
		t.Fatal(err)
	}
	var back Identity
	if err := json.Unmarshal(data, &back); err != nil || back != Self() {
		t.Errorf("%s gives %+v, %v", data, back, err)
	}
}

func TestNamesOfProcessesDoNotConfuse(t *testing.T) {
	t.Parallel()
	tail := " 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 7 0 4242 1 1\n"
	for _, name := range []string{"worker", "a b", ") Z 1", "((", ") R 1 1 1 0 -1 1 1 0 0 0 0 0 0 0 20 0 1 0 1 1"} {
		got, err := parseStat([]byte("12 (" + name + ") S" + tail))
		if err != nil || got != (stat{state: 'S', threads: 7, start: 4242}) {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "12 (x", "12 (x) S 1 1", "12 (x) S 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 many 0 4242 1"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q gives %+v", bad, got)
		}
	}
}

func TestBootTimeGoesOn(t *testing.T) {
	t.Parallel()
	before := BootTime()
	if before <= 0 || BootTime() < before {
		t.Error("the clock goes backwards")
	}
}
