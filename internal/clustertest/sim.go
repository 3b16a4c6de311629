package clustertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/client"
	"github.com/fsbackup/fsbackup/internal/controlfile"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

// Sim is a worker that executes nothing: it joins, takes shards of delete
// files and answers at once that all is done. What it measures is the cluster
// around it.
type Sim struct {
	Name  string
	Pool  string // "" = the default pool
	Slots int
	Bus   *bus.Bus
	// Wait is how long a request for a shard stands; 0 = a quarter of the lease.
	Wait time.Duration
	// Before is called with each shard before it is answered, in the slot that has
	// it; nil = nothing.
	Before func(Shard)
	// Dies reports whether the worker is killed by a shard: it says that it begins
	// and nothing of it after that; nil = never.
	Dies func(Shard) bool

	answered atomic.Uint64
	entries  atomic.Uint64

	mu      sync.Mutex
	running map[*bus.Delivery]protocol.Running
	told    []protocol.JobID // jobs that it is to stop
	timing  protocol.Timing
	errors  uint64
	last    error
}

// Shard is a shard that a simulated worker has.
type Shard struct {
	Job       protocol.JobID
	Phase     protocol.Phase
	N         uint64
	Delivered uint32
	Entries   int
}

// Answered returns how many shards the worker has answered, and their entries.
func (s *Sim) Answered() (shards, entries uint64) { return s.answered.Load(), s.entries.Load() }

// Run joins and answers until ctx ends, which is no error. joined is called with
// the first accepted heartbeat; nil = nothing.
func (s *Sim) Run(ctx context.Context, joined func()) error {
	if s.Pool == "" {
		s.Pool = client.DefaultPool
	}
	s.mu.Lock()
	s.running = map[*bus.Delivery]protocol.Running{}
	s.mu.Unlock()
	if err := s.beat(ctx); err != nil {
		return ended(ctx, err)
	}
	if joined != nil {
		joined()
	}
	s.mu.Lock()
	t := s.timing
	s.mu.Unlock()
	var pool *bus.Pool
	s.persist(ctx, func() error {
		err := s.Bus.EnsurePool(ctx, protocol.ClassStandard, s.Pool, t.AckWait)
		if err == nil {
			pool, err = s.Bus.Pool(ctx, protocol.ClassStandard, s.Pool)
		}
		return err
	})
	if pool == nil {
		return nil
	}
	if s.Wait == 0 {
		s.Wait = t.Lease / 4
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for bus.Sleep(ctx, t.Heartbeat) {
			s.note(ctx, s.beat(ctx))
		}
	})
	for range s.Slots {
		wg.Go(func() { s.slot(ctx, pool) })
	}
	wg.Wait()
	return nil
}

// Errors returns how often something had to be tried again, and the last reason.
func (s *Sim) Errors() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errors, s.last
}

func (s *Sim) note(ctx context.Context, err error) {
	if ended(ctx, err) != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.errors++
		s.last = err
	}
}

// persist tries until it works or ctx ends, as a worker does.
func (s *Sim) persist(ctx context.Context, f func() error) {
	for {
		err := f()
		if err == nil {
			return
		}
		s.note(ctx, err)
		if !bus.Sleep(ctx, time.Second) {
			return
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end was asked for, and what it interrupts fails
	}
	return err
}

func (s *Sim) beat(ctx context.Context) error {
	h := protocol.Heartbeat{Wire: protocol.WireMajor, Worker: s.Name, Instance: s.Name, Pool: s.Pool, Slots: s.Slots, Allow: []string{"/"}, Host: "simulated", Done: s.answered.Load()}
	s.mu.Lock()
	busy := map[protocol.JobID]bool{}
	for _, r := range s.running {
		h.Running = append(h.Running, r)
		busy[r.Job] = true
	}
	for _, id := range s.told {
		if !busy[id] {
			h.Seen = append(h.Seen, id)
		}
	}
	s.mu.Unlock()
	data, err := rawjson.Marshal(h)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := s.Bus.Request(ctx, protocol.SubjectHeartbeat, data)
	if err != nil {
		return err
	}
	var reply protocol.HeartbeatReply
	if err := rawjson.Unmarshal(out, &reply); err != nil {
		return fmt.Errorf("answer to the heartbeat: %w", err)
	}
	if reply.Refused != "" {
		return errors.New(reply.Refused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timing, s.told = reply.Timing, reply.Cancelled
	return nil
}

func (s *Sim) slot(ctx context.Context, pool *bus.Pool) {
	for ctx.Err() == nil {
		s.persist(ctx, func() error {
			d, err := pool.Next(ctx, s.Wait)
			if err == nil && d != nil {
				err = s.answer(ctx, d) // else it is delivered again
			}
			return err
		})
	}
}

func (s *Sim) answer(ctx context.Context, d *bus.Delivery) error {
	data := d.Data
	if name := d.Header[protocol.HeaderObject]; len(name) > 0 {
		objects, err := s.Bus.Objects(ctx, protocol.BucketObjects)
		if err == nil {
			data, err = objects.GetBytes(ctx, name[0], protocol.MaxRaw)
		}
		if err != nil {
			return err
		}
	}
	var m protocol.ShardMsg
	if err := protocol.Decode(data, protocol.TypeShard, &m); err != nil {
		return err
	}
	id, p := protocol.JobID(m.GetJob()), protocol.Phase(m.GetPhase())
	s.mu.Lock()
	s.running[d] = protocol.Running{Job: id, Phase: p, N: m.GetN(), Sequence: d.Sequence, Delivery: d.Delivered, Since: time.Now()}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, d)
	}()
	has := Shard{Job: id, Phase: p, N: m.GetN(), Delivered: d.Delivered, Entries: len(m.GetEntries())}
	if s.Dies != nil && s.Dies(has) {
		return s.announce(d)
	}
	if s.Before != nil {
		s.Before(has)
	}
	r := &protocol.ResultMsg{
		Job: m.GetJob(), Phase: m.GetPhase(), N: m.GetN(), Sequence: d.Sequence, Delivery: d.Delivered, Worker: s.Name,
		Entries: uint64(len(m.GetEntries())), Counts: &protocol.CountsMsg{Deleted: uint64(len(m.GetEntries()))},
	}
	for _, e := range m.GetEntries() {
		if e.GetIsDir() {
			r.Counts.DirsDeleted++
		}
	}
	result, err := protocol.Encode(protocol.TypeResult, r)
	if err != nil {
		return err
	}
	if _, err := s.Bus.PublishOnce(ctx, bus.Message{Subject: protocol.ResultSubject(id, p, m.GetN()), Data: result}); err != nil {
		return err
	}
	s.answered.Add(1)
	s.entries.Add(r.GetEntries())
	ack, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return d.Ack(ack)
}

// announce says that an attempt begins.
func (s *Sim) announce(d *bus.Delivery) error {
	s.mu.Lock()
	e := protocol.AttemptEvent{Running: s.running[d], Worker: s.Name}
	s.mu.Unlock()
	data, err := rawjson.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode attempt: %w", err)
	}
	return s.Bus.Send(protocol.SubjectAttempt, data)
}

// DeleteFile writes a control file of so many deletes to path and returns it as
// one of a submission. A job of it needs neither trees nor records.
func DeleteFile(path string, entries int) (protocol.FileRef, error) {
	ref := protocol.FileRef{Path: path, Phase: protocol.PhaseDelete}
	w, err := controlfile.NewWriter(path, controlfile.Header{Kind: controlfile.Delete}, time.Unix(1_700_000_000, 0).UTC(), controlfile.Limits{Entries: entries + 1, Bytes: 1 << 30})
	if err != nil {
		return ref, err
	}
	for i := range entries {
		if i%100 == 0 {
			err := w.Add(controlfile.Entry{Type: controlfile.TypeDir, IsDir: true, Dir: fmt.Sprintf("/some-directory-%06d", i/100)}, 0)
			if err != nil {
				return ref, err
			}
		}
		if err := w.Add(controlfile.Entry{Type: controlfile.TypeFile, Name: fmt.Sprintf("a-file-with-a-name-%09d.dat", i)}, 0); err != nil {
			return ref, err
		}
	}
	return ref, w.Close()
}
