package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/state"
)

// manyResults is how many results a restart is measured with; FSBACKUP_RESULTS
// asks for another number.
const manyResults = 20_000

// startBus starts NATS on files, in memory where there is such a place: each
// message is synced, and what a disk takes for that is not what is measured.
func startBus(t testing.TB) *bus.Bus {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fsbackup-nats-") //nolint:usetesting // in memory, where TempDir is not
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in memory, and the server is stopped
	s, err := bus.StartServer(bus.ServerConfig{StoreDir: dir, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{Server: s, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// lead runs a coordinator until it leads; the function it returns stops it.
func lead(t testing.TB, b *bus.Bus, change func(*Config)) (*Coordinator, time.Duration, func()) {
	t.Helper()
	cfg := Config{Name: "c", Bus: b, Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	c, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- c.Run(ctx) }()
	select {
	case <-c.Led():
	case err := <-ended:
		t.Fatalf("the coordinator ended: %v", err)
	}
	return c, time.Since(began), func() {
		cancel(context.Canceled)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the coordinator ended with %v", err)
		}
	}
}

// putJob stores the record of a job that waits for its first control file.
func putJob(t testing.TB, b *bus.Bus, rec protocol.JobRecord) {
	t.Helper()
	data, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := b.KV(t.Context(), protocol.BucketJobs)
	if err == nil {
		err = kv.Put(t.Context(), protocol.JobKey(rec.ID), data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func waitingJob(id protocol.JobID) protocol.JobRecord {
	return protocol.JobRecord{ID: id, State: protocol.StateRunning, Spec: protocol.JobSpec{Pool: "default", Source: "/s", Destination: "/d/" + string(id)}, Created: time.Now(), Started: time.Now()}
}

// putResults stores the results of shards [from, to) and waits until they are there.
func putResults(t testing.TB, b *bus.Bus, id protocol.JobID, from, to uint64) {
	t.Helper()
	before, err := b.StreamState(t.Context(), protocol.StreamResults)
	if err != nil {
		t.Fatal(err)
	}
	for n := from; n < to; n++ {
		data, err := protocol.Encode(protocol.TypeResult, &protocol.ResultMsg{
			Job: string(id), Phase: uint32(protocol.PhaseCopy), N: n, Sequence: n + 1, Delivery: 1, Worker: fmt.Sprintf("w%d", n%8), Entries: 2000, Nanos: 1e9,
			Counts: &protocol.CountsMsg{DirsCopied: 100, FilesCopied: 1900, BytesCopied: 123_456_789},
		})
		if err == nil {
			err = b.Send(protocol.ResultSubject(id, protocol.PhaseCopy, n), data)
		}
		if err != nil {
			t.Fatal(err)
		}
		// The server drops what it cannot take in: never more than it can.
		if done := n + 1 - from; done%2000 == 0 || n+1 == to {
			for {
				at, err := b.StreamState(t.Context(), protocol.StreamResults)
				if err != nil {
					t.Fatal(err)
				}
				if at.Messages >= before.Messages+done {
					break
				}
				runtime.Gosched()
			}
		}
	}
}

// foldedJob is what is folded of a job, but for its record.
func foldedJob(t testing.TB, c *Coordinator, id protocol.JobID) (p state.Checkpoint, shards uint64) {
	t.Helper()
	c.view(func(tx state.Tx) {
		p, _ = tx.Checkpoint(id, 0)
		shards = p.Done[protocol.PhaseCopy].Count()
		if !p.Done[protocol.PhaseCopy].All(0, shards) {
			t.Errorf("job %s: the %d shards that are done have gaps", id, shards)
		}
	})
	p.Done, p.Outcomes = nil, nil
	return p, shards
}

func TestARestartReadsOnlyWhatNoCheckpointHas(t *testing.T) {
	many := uint64(manyResults)
	if s := os.Getenv("FSBACKUP_RESULTS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		many = n
	}
	b := startBus(t)
	every := func(cfg *Config) { cfg.CheckpointEvery = 1 << 40 } // counts what is read
	_, _, stop := lead(t, b, every)                              // makes the streams
	stop()
	putJob(t, b, waitingJob("j1"))
	putResults(t, b, "j1", 0, many)
	kv, err := b.KV(t.Context(), protocol.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}

	check := func(what string, c *Coordinator, want state.Checkpoint, shards uint64, read int) {
		t.Helper()
		got, n := foldedJob(t, c, "j1")
		if n != shards {
			t.Errorf("%s: %d shards have results, want %d", what, n, shards)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		if n := c.fold.SinceDue(); n != read {
			t.Errorf("%s: %d results were read, want %d", what, n, read)
		}
	}
	c, whole, stop := lead(t, b, every)
	want, shards := foldedJob(t, c, "j1")
	check("without a checkpoint", c, want, many, int(many))
	if want.Stats.FilesCopied != many*1900 || len(want.Workers) != 8 {
		t.Fatalf("folded: %+v", want)
	}
	stop() // writes a checkpoint
	data, _, err := kv.Get(t.Context(), protocol.CheckpointKey("j1"))
	if err != nil {
		t.Fatal(err)
	}
	c, quick, stop := lead(t, b, every)
	check("with a checkpoint", c, want, shards, 0)
	t.Logf("%d results: a start takes %v without a checkpoint, %v with one of %d bytes", many, whole, quick, len(data))

	// What comes after it is read, by this leader and by the next.
	stop()
	putResults(t, b, "j1", many, many+10)
	putJob(t, b, waitingJob("j2")) // without a checkpoint, as if nobody had taken one
	putResults(t, b, "j2", 0, 5)
	c, _, stop = lead(t, b, every)
	two, n := foldedJob(t, c, "j2")
	if n != 5 || two.Stats.DirsCopied != 500 {
		t.Errorf("the other job: %d shards, %+v", n, two.Stats)
	}
	want, shards = foldedJob(t, c, "j1")
	check("with a job that has none", c, want, many+10, int(many)+15)
	stop()

	// One that is damaged or of another time is not used.
	for what, bad := range map[string][]byte{
		"damaged":    data[:len(data)-1],
		"of another": mustEncode(t, state.Checkpoint{Job: "j2", Sequence: 3}),
		"ahead":      mustEncode(t, state.Checkpoint{Job: "j1", Sequence: many + 1000}),
	} {
		if err := kv.Put(t.Context(), protocol.CheckpointKey("j1"), bad); err != nil {
			t.Fatal(err)
		}
		c, _, stop = lead(t, b, every)
		check("with a checkpoint that is "+what, c, want, shards, int(many)+15)
		stop()
	}
	c, _, stop = lead(t, b, every)
	check("after that", c, want, shards, 0)
	stop()

	// Of a job that has ended none is kept, and its results are not read.
	for _, id := range []protocol.JobID{"j1", "j2"} {
		rec := waitingJob(id)
		rec.State, rec.Ended = protocol.StateCompleted, time.Now()
		putJob(t, b, rec)
	}
	c, _, stop = lead(t, b, every)
	defer stop()
	read := c.fold.SinceDue()
	if _, _, err := kv.Get(t.Context(), protocol.CheckpointKey("j1")); !errors.Is(err, bus.ErrNotFound) || read != 0 {
		t.Errorf("all jobs have ended: %d results were read, their checkpoint: %v", read, err)
	}
}

func mustEncode(t testing.TB, p state.Checkpoint) []byte {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCheckpointsAreWrittenAfterManyResultsAndWhenItIsQuiet(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"many":  func(cfg *Config) { cfg.CheckpointEvery, cfg.CheckpointQuiet = 100, time.Hour },
		"quiet": func(cfg *Config) { cfg.CheckpointEvery, cfg.CheckpointQuiet = 1<<40, 20*time.Millisecond },
	} {
		b := startBus(t)
		_, _, stop := lead(t, b, nil)
		stop()
		putJob(t, b, waitingJob("j1"))
		_, _, stop = lead(t, b, change)
		putResults(t, b, "j1", 0, 100)
		kv, err := b.KV(t.Context(), protocol.BucketJobs)
		if err != nil {
			t.Fatal(err)
		}
		at := uint64(0)
		for at != 100 {
			data, _, err := kv.Get(t.Context(), protocol.CheckpointKey("j1"))
			if errors.Is(err, bus.ErrNotFound) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			p, err := state.DecodeCheckpoint(data)
			if err != nil || p.Stats.FilesCopied != 1900*p.Sequence || p.Done[protocol.PhaseCopy].Count() != p.Sequence {
				t.Fatalf("%s: checkpoint %+v, %v", what, p, err)
			}
			at = p.Sequence
		}
		stop()
	}
}

// BenchmarkMemoryOfDoneShards reports what a shard costs that has its result.
func BenchmarkMemoryOfDoneShards(b *testing.B) {
	const shards = 500_000
	for b.Loop() {
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		st := state.New()
		_ = st.Update(func(tx state.Tx) error { tx.PutJob(state.Job{ID: "j"}); return nil })
		before := heap()
		for n := range uint64(shards) {
			_ = st.Update(func(tx state.Tx) error {
				tx.Fold(&protocol.ResultMsg{Job: "j", Phase: 1, N: n, Worker: "w", Counts: &protocol.CountsMsg{FilesCopied: 1}})
				return nil
			})
		}
		b.ReportMetric(float64(heap()-before)/shards, "B/shard")
		runtime.KeepAlive(st)
	}
}
