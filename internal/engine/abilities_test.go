package engine

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsbackup/fsbackup/internal/treetest"
)

func TestAbilitiesAreThoseOfTheProcess(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	a := ProcessAbilities()
	if a.EUID != uint32(os.Geteuid()) {
		t.Errorf("user %d", a.EUID)
	}
	for _, name := range a.Lacks {
		if !slices.Contains(AllAbilities(), name) {
			t.Errorf("lacks %q", name)
		}
	}
	if got, want := slices.Contains(a.Lacks, CanOwn), !capable(unix.CAP_CHOWN); got != want {
		t.Errorf("may not set owners: %v, want %v", got, want)
	}
	if (a.Groups == "") != g.e.override {
		t.Errorf("groups %q, permissions do not bind it: %v", a.Groups, g.e.override)
	}
	if again := ProcessAbilities(); fmt.Sprint(again) != fmt.Sprint(a) {
		t.Errorf("%v, then %v", a, again)
	}
}

func TestWhoOwnsWhatIsMadeIsFoundOutWithoutATrace(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	long := unix.NsecToTimespec(1_000_000_000_000_000_000)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, g.dst, []unix.Timespec{long, long}, 0))
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	owner, err := j.CreatesAs("nonce")
	if want := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid()); err != nil || owner != want {
		t.Errorf("%q, %v; want %q", owner, err, want)
	}
	left, err := os.ReadDir(g.dst)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(g.dst, &st))
	if len(left) > 0 || st.Mtim != long {
		t.Errorf("left %v, the root's mtime is %v", left, st.Mtim)
	}
}

// Where there are no nameless files, as on NFS.
func TestWhoOwnsWhatIsMadeIsFoundOutByAName(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := newRig(t)
	treetest.Faulty(t, g.dst)
	fd, err := unix.Open(g.dst, unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	if err == nil {
		must(t, unix.Close(fd))
		t.Error("it has nameless files after all")
	}
	j, err := g.e.OpenJob(g.spec)
	must(t, err)
	defer func() { must(t, j.Close()) }()
	owner, err := j.CreatesAs("nonce")
	if err != nil || owner != "0:0" {
		t.Errorf("%q, %v", owner, err)
	}
	if left, err := os.ReadDir(g.dst); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
