package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/host"
	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
)

const leaseKey = "leader"

// leaderLease is the right to lead, a key with a time to live.
type leaderLease struct {
	c     *Coordinator
	kv    *bus.KV
	rev   uint64
	value []byte
	ctx   context.Context //nolint:containedctx // its values, for the release after its end
}

// leaseValue names who leads. Two processes of one name, one of which another
// host believes to be gone, differ by instance.
type leaseValue struct {
	Name     string        `json:"name"`
	Instance string        `json:"instance,omitempty"`
	Process  host.Identity `json:"process,omitzero"`
}

// namesake is what a coordinator knows of another that holds the lease under its
// own name.
type namesake struct {
	instance string
	at       uint64 // revision of its lease when it was first seen
}

// judge reports whether the holder is gone, so that its lease may be taken over
// at once. A holder that is alive is an error. Of one on another host nothing is
// known until it renews its lease; until then judge reports neither.
func (n *namesake) judge(v leaseValue, at uint64) (gone bool, err error) {
	self := host.Self()
	switch {
	case v.Process == self, v.Process.Dead():
		return true, nil // a process has one coordinator at a time, so its others have ended
	case v.Process.SameHost(self), n.instance == v.Instance && n.at != at:
		return false, fault.Hinted(fault.Unavailable, "give each coordinator its own --name", "a coordinator named %q leads already: %s", v.Name, v.Process)
	}
	*n = namesake{v.Instance, at}
	return false, nil
}

// holds notes that the lease runs for its time from sent on, which is before the
// server began to count.
func (c *Coordinator) holds(sent time.Duration) {
	c.leadsUntil.Store(int64(sent + c.cfg.Timing.Leader))
}

// leads reports whether no other coordinator can lead yet. What it guards are
// acts that nothing else fences.
func (c *Coordinator) leads() bool { return c.cfg.Boot() < time.Duration(c.leadsUntil.Load()) }

// acquireLease waits until no other coordinator holds the lease. Another one of
// the same name that is alive is an error.
func (c *Coordinator) acquireLease(ctx context.Context) (*leaderLease, error) {
	kv, err := c.cfg.Bus.KV(ctx, protocol.BucketLease)
	if err != nil {
		return nil, err
	}
	value, err := rawjson.Marshal(leaseValue{Name: c.cfg.Name, Instance: rand.Text(), Process: host.Self()})
	if err != nil {
		return nil, fmt.Errorf("encode lease: %w", err)
	}
	said := ""
	var other namesake
	for {
		sent := c.cfg.Boot()
		rev, err := kv.Swap(ctx, leaseKey, value, 0)
		var v leaseValue
		if err != nil {
			held, at, gerr := kv.Get(ctx, leaseKey)
			switch {
			case gerr == nil && rawjson.Unmarshal(held, &v) != nil:
				v.Name = "somebody who cannot be read"
			case gerr == nil && v.Name == c.cfg.Name:
				gone, jerr := other.judge(v, at)
				if jerr != nil {
					return nil, jerr
				}
				if gone {
					rev, err = kv.Swap(ctx, leaseKey, value, at)
				}
			case gerr != nil && !errors.Is(gerr, bus.ErrNotFound):
				c.log.Warn("cannot read the leader's lease, trying again", "error", gerr)
			}
		}
		if err == nil {
			c.holds(sent)
			c.leader.Store(&c.cfg.Name)
			return &leaderLease{c: c, kv: kv, rev: rev, value: value, ctx: ctx}, nil
		}
		c.leader.Store(&v.Name)
		if said != v.Name && v.Name != "" {
			said = v.Name
			c.log.Info("standing by, another coordinator leads", "leader", v.Name, "process", v.Process)
		}
		if !bus.Sleep(ctx, c.cfg.Timing.Leader/6) {
			return nil, fault.New(fault.Canceled, "wait for the leader's lease: %w", context.Cause(ctx))
		}
	}
}

// keep renews the lease until ctx ends; it returns fault.Stale once the lease
// may have passed to another.
func (l *leaderLease) keep(ctx context.Context) error {
	ttl := l.c.cfg.Timing.Leader
	for {
		if !bus.Sleep(ctx, ttl/4) {
			return context.Cause(ctx)
		}
		sent := l.c.cfg.Boot()
		rctx, cancel := context.WithTimeout(ctx, ttl/4)
		rev, err := l.kv.Swap(rctx, leaseKey, l.value, l.rev)
		cancel()
		switch {
		case err == nil:
			l.rev = rev
			l.c.holds(sent)
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, bus.ErrConflict):
			// A renewal whose answer was lost has moved the revision itself. When it
			// was sent is not known any more, so the lease counts from the one before.
			held, at, gerr := l.kv.Get(ctx, leaseKey)
			if gerr == nil && string(held) == string(l.value) && l.c.leads() {
				l.rev = at
				continue
			}
			if gerr == nil || errors.Is(gerr, bus.ErrNotFound) {
				return fault.New(fault.Stale, "leader's lease: another coordinator has taken it, or it has ended")
			}
			err = gerr
		}
		if !l.c.leads() {
			return fault.New(fault.Stale, "leader's lease: not renewed for %s: %w", ttl, err)
		}
		l.c.log.Warn("cannot renew the leader's lease, trying again", "error", err)
	}
}

// release gives the lease up, so that a standby need not wait for its end.
func (l *leaderLease) release() {
	l.c.leadsUntil.Store(0)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 2*time.Second)
	defer cancel()
	// Only what this coordinator wrote: the lease may be another's by now.
	err := l.kv.DeleteAt(ctx, leaseKey, l.rev)
	if errors.Is(err, bus.ErrConflict) {
		// A renewal whose answer was lost has moved the revision.
		held, at, gerr := l.kv.Get(ctx, leaseKey)
		if gerr != nil || string(held) != string(l.value) {
			return
		}
		err = l.kv.DeleteAt(ctx, leaseKey, at)
	}
	if err != nil {
		l.c.log.Debug("release the leader's lease", "error", err)
	}
}
