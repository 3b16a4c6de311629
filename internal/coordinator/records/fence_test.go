package records

import (
	"testing"

	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Another coordinator has taken the jobs over. What the one before still writes is
// refused, of jobs as of control files, and changes nothing.
func TestWritesOfACoordinatorThatLeadsNoMoreAreRefused(t *testing.T) {
	t.Parallel()
	old, b := start(t, nil)
	rec := job("j", protocol.StateRunning)
	if _, _, err := old.Create(t.Context(), rec, []protocol.FileRef{{Path: "/c", Phase: protocol.PhaseCopy}}, nil); err != nil {
		t.Fatal(err)
	}
	next, err := New(t.Context(), Config{Bus: b, Dir: t.TempDir(), Leads: func() bool { return true }, Now: old.cfg.Now, Logger: old.log, Changed: func(protocol.JobID, bool) {}})
	if err != nil {
		t.Fatal(err)
	}
	alive, err := next.Load(t.Context())
	if err != nil || len(alive) != 1 {
		t.Fatalf("%v, %v", alive, err)
	}
	admit := func(r *Records, as string) error {
		return r.ChangeFile(t.Context(), "j", 0, "", func(f *protocol.FileRecord) { f.State = as })
	}
	if err := admit(next, protocol.FileRefused); err != nil {
		t.Fatal(err)
	}
	if err := admit(old, protocol.FileAdmitted); !fault.Is(err, fault.Stale) {
		t.Errorf("a control file: %v", err)
	}
	if err := old.Save(t.Context(), "j", func(r *protocol.JobRecord) { r.State = protocol.StateFailed }); !fault.Is(err, fault.Stale) {
		t.Errorf("a job: %v", err)
	}
	files, err := next.FileRecords(t.Context(), "j")
	if err != nil || len(files) != 1 || files[0].State != protocol.FileRefused {
		t.Errorf("the control file is %+v, %v", files, err)
	}
}

// The order in which the store took the jobs stays with them.
func TestTheOrderOfJobsIsThatOfTheStore(t *testing.T) {
	t.Parallel()
	r, b := start(t, nil)
	for _, id := range []protocol.JobID{"z", "a"} {
		create(t, r, job(id, protocol.StateQueued))
	}
	check := func(r *Records) {
		t.Helper()
		r.View(func(tx state.Tx) {
			z, _ := tx.Job("z")
			a, _ := tx.Job("a")
			if z.Order() == 0 || z.Order() >= a.Order() {
				t.Errorf("z is at %d, a at %d", z.Order(), a.Order())
			}
		})
	}
	check(r)
	if err := r.Save(t.Context(), "z", func(rec *protocol.JobRecord) { rec.State = protocol.StateRunning }); err != nil {
		t.Fatal(err)
	}
	check(r)
	next, err := New(t.Context(), Config{Bus: b, Dir: t.TempDir(), Leads: func() bool { return true }, Now: r.cfg.Now, Logger: r.log, Changed: func(protocol.JobID, bool) {}})
	if err == nil {
		_, err = next.Load(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	check(next)
}
