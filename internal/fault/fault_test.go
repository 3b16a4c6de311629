package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
)

// TestNumbersAndNamesOfKindsStay: both travel on the wire.
func TestNumbersAndNamesOfKindsStay(t *testing.T) {
	t.Parallel()
	for n, want := range []string{
		"internal", "transient", "stale", "invalid", "not-found", "denied", "exhausted", "corrupt", "canceled", "unsupported", "changed", "unavailable", "unsafe",
	} {
		if got := fault.Kind(n).String(); got != want {
			t.Errorf("kind %d is %q, was %q", n, got, want)
		}
	}
	if got := fault.Kind(200).String(); got != "kind-200" {
		t.Errorf("a kind of a newer version is %q", got)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for k, want := range map[fault.Kind]int{
		fault.Internal: 70, fault.Transient: 75, fault.Stale: 75, fault.Invalid: 64, fault.NotFound: 66, fault.Denied: 77, fault.Exhausted: 75,
		fault.Corrupt: 65, fault.Canceled: 130, fault.Unsupported: 3, fault.Changed: 3, fault.Unavailable: 69, fault.Unsafe: 78, fault.Kind(200): 70,
	} {
		if got := k.ExitCode(); got != want {
			t.Errorf("%v exits with %d, want %d", k, got, want)
		}
	}
}

func TestTheKindOfAnError(t *testing.T) {
	t.Parallel()
	_, missing := os.Open(t.TempDir() + "/none")
	own := fault.New(fault.Corrupt, "damaged: %w", syscall.ENOENT)
	for _, c := range []struct {
		name string
		err  error
		want fault.Kind
	}{
		{"own", own, fault.Corrupt},
		{"wrapped", fmt.Errorf("read: %w", own), fault.Corrupt},
		{"the outermost of two", fault.New(fault.Denied, "no: %w", own), fault.Denied},
		{"joined", errors.Join(errors.New("x"), own), fault.Corrupt},
		{"cancelled", fmt.Errorf("x: %w", context.Canceled), fault.Canceled},
		{"deadline", context.DeadlineExceeded, fault.Transient},
		{"errno in a path error", missing, fault.NotFound},
		{"not exist without errno", fs.ErrNotExist, fault.NotFound},
		{"permission without errno", fs.ErrPermission, fault.Denied},
		{"nothing known", errors.New("x"), fault.Internal},
	} {
		if got := fault.KindOf(c.err); got != c.want || !fault.Is(c.err, c.want) || fault.Is(c.err, fault.Unsafe) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if fault.Is(nil, fault.Internal) {
		t.Error("no error has a kind")
	}
}

func TestErrnosDecide(t *testing.T) {
	t.Parallel()
	for kind, errnos := range map[fault.Kind][]syscall.Errno{
		fault.NotFound:    {syscall.ENOENT, syscall.ENOTDIR},
		fault.Denied:      {syscall.EACCES, syscall.EPERM, syscall.ELOOP, syscall.EXDEV},
		fault.Exhausted:   {syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.ESTALE},
		fault.Unsupported: {syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EMLINK, syscall.ENAMETOOLONG},
		fault.Transient:   {syscall.EAGAIN, syscall.EINTR, syscall.ETIMEDOUT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM},
		fault.Invalid:     {syscall.EINVAL},
		fault.Internal:    {syscall.EBADF, syscall.EFAULT},
	} {
		for _, no := range errnos {
			if got := fault.FromErrno(no); got != kind {
				t.Errorf("%v is %v, want %v", no, got, kind)
			}
		}
	}
}

func TestAnErrorIsOneLineWithItsWayOut(t *testing.T) {
	t.Parallel()
	cause := errors.New("no room")
	for want, err := range map[string]error{
		`open "a\nb": no room (make some)`: &fault.Error{Op: "open", Path: "a\nb", Err: cause, Hint: "make some"},
		`open "x"`:                         &fault.Error{Op: "open", Path: "x"},
		`no room`:                          &fault.Error{Err: cause},
		`7: no room (wait)`:                fault.Hinted(fault.Exhausted, "wait", "%d: %w", 7, cause),
	} {
		if got := err.Error(); got != want || strings.Contains(got, "\n") {
			t.Errorf("got %q, want %q", got, want)
		}
		if want != `open "x"` && !errors.Is(err, cause) {
			t.Errorf("%q has lost its cause", want)
		}
	}
}
