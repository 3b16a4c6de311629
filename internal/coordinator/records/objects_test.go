package records

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// start returns records on a NATS server of their own; change may set what they
// are made of.
func start(t *testing.T, change func(*Config)) (*Records, *bus.Bus) {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: t.TempDir(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: s, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.EnsureLayout(t.Context(), bus.Layout{Memory: true, LeaseTTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Bus: b, Dir: t.TempDir(), Keep: 30 * 24 * time.Hour, KeepJobs: 100, Leads: func() bool { return true }, Now: time.Now,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Changed: func(protocol.JobID, bool) {},
	}
	if change != nil {
		change(&cfg)
	}
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

func job(id protocol.JobID, s protocol.State) protocol.JobRecord {
	return protocol.JobRecord{ID: id, State: s, Spec: protocol.JobSpec{Pool: "default", Source: "/s", Destination: "/d/" + string(id)}, Created: time.Now()}
}

func create(t *testing.T, r *Records, rec protocol.JobRecord) {
	t.Helper()
	if _, _, err := r.Create(t.Context(), rec, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestObjectsThatNoJobNeedsAreRemoved(t *testing.T) {
	t.Parallel()
	var later time.Duration
	leads := true
	r, b := start(t, func(cfg *Config) {
		cfg.Now = func() time.Time { return time.Now().Add(later) }
		cfg.Leads = func() bool { return leads }
	})
	create(t, r, job("runs", protocol.StateRunning))
	create(t, r, job("ended", protocol.StateFailed))
	r.Update(func(t state.Tx) {
		t.PutFile(state.File{Job: "runs", Record: protocol.FileRecord{Object: "file/named"}})
	})
	for _, name := range []string{
		"file/named", "file/free", protocol.ShardObject("runs", 2, 0), protocol.ShardObject("ended", 2, 0), protocol.ShardObject("unknown", 2, 0),
		protocol.FailureObject("runs", 2, 0, 1, 1), protocol.FailureObject("ended", 2, 0, 1, 1), protocol.FailureObject("unknown", 2, 0, 1, 1),
	} {
		if err := r.Objects().PutBytes(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	left := func(what string, want ...string) {
		t.Helper()
		if err := r.SweepObjects(t.Context()); err != nil {
			t.Fatal(err)
		}
		objects, err := r.Objects().List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range objects {
			got = append(got, o.Name)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", what, d)
		}
	}
	left("of jobs that nobody knows", "failure/ended/2/0/1-1", "failure/runs/2/0/1-1", "file/free", "file/named", "shard/ended/2/0", "shard/runs/2/0")
	later = 25 * time.Hour
	r.placing.RLock()
	left("files while somebody submits", "failure/ended/2/0/1-1", "failure/runs/2/0/1-1", "file/free", "file/named", "shard/ended/2/0", "shard/runs/2/0")
	r.placing.RUnlock()
	left("files that nobody names", "failure/ended/2/0/1-1", "failure/runs/2/0/1-1", "file/named", "shard/ended/2/0", "shard/runs/2/0")
	if err := r.Erase(t.Context(), "ended"); err != nil {
		t.Fatal(err)
	}
	left("of a job that is forgotten", "failure/runs/2/0/1-1", "file/named", "shard/runs/2/0")
	leads = false
	r.Update(func(t state.Tx) { t.DropJob("runs") })
	left("by one that leads no more", "failure/runs/2/0/1-1", "file/named", "shard/runs/2/0")
	at, err := b.StreamState(t.Context(), "OBJ_"+protocol.BucketObjects)
	if err != nil || at.Messages != 6 {
		t.Errorf("the bucket has %d messages, want two for each of three objects (%v)", at.Messages, err)
	}
}

func TestEndedJobsAreKeptByNumberAndAge(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 31, 0, 0, 0, 0, time.UTC)
	r, b := start(t, func(cfg *Config) {
		cfg.KeepJobs, cfg.Now = 3, func() time.Time { return now }
	})
	for i, id := range []protocol.JobID{"old", "a", "b", "c", "d"} {
		rec := job(id, protocol.StateCompleted)
		rec.Ended = now.Add(time.Duration(i-10) * time.Hour)
		if id == "old" {
			rec.Ended = now.Add(-31 * 24 * time.Hour)
		}
		create(t, r, rec)
		if _, err := b.PublishOnce(t.Context(), bus.Message{Subject: protocol.ResultSubject(id, protocol.PhaseCopy, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	create(t, r, job("runs", protocol.StateRunning))
	if got := r.outdated(); !slices.Equal(got, []protocol.JobID{"old", "a"}) {
		t.Fatalf("to be forgotten are %v", got)
	}
	for _, id := range r.outdated() {
		if err := r.Erase(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.outdated(); len(got) > 0 {
		t.Errorf("still to be forgotten: %v", got)
	}
	at, err := b.StreamState(t.Context(), protocol.StreamResults)
	if err != nil || at.Messages != 3 {
		t.Errorf("%d results are left, want those of b, c and d (%v)", at.Messages, err)
	}
	for id, want := range map[protocol.JobID]bool{"old": false, "a": false, "b": true, "d": true, "runs": true} {
		if _, known := r.Job(id); known != want {
			t.Errorf("job %s is known: %v", id, known)
		}
	}
}
