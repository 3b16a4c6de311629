package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/fsbackup/fsbackup/internal/bus"
	"github.com/fsbackup/fsbackup/internal/fault"
	"github.com/fsbackup/fsbackup/internal/protocol"
)

const leaseKey = "leader"

// leaderLease is the right to lead, a key with a time to live.
type leaderLease struct {
	c   *Coordinator
	kv  *bus.KV
	rev uint64
	ctx context.Context //nolint:containedctx // its values, for the release after its end
}

type leaseValue struct {
	Name string `json:"name"`
}

// acquireLease waits until no other coordinator holds the lease.
func (c *Coordinator) acquireLease(ctx context.Context) (*leaderLease, error) {
	kv, err := c.cfg.Bus.KV(ctx, protocol.BucketLease)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(leaseValue{Name: c.cfg.Name})
	if err != nil {
		return nil, fmt.Errorf("encode lease: %w", err)
	}
	said := ""
	for {
		rev, err := kv.Swap(ctx, leaseKey, value, 0)
		if err == nil {
			return &leaderLease{c: c, kv: kv, rev: rev, ctx: ctx}, nil
		}
		held, rev, gerr := kv.Get(ctx, leaseKey)
		var v leaseValue
		if gerr == nil && json.Unmarshal(held, &v) == nil {
			if v.Name == c.cfg.Name {
				// Left by this coordinator's previous process: names are unique.
				if rev, err = kv.Swap(ctx, leaseKey, value, rev); err == nil {
					return &leaderLease{c: c, kv: kv, rev: rev, ctx: ctx}, nil
				}
			} else if said != v.Name {
				said = v.Name
				c.log.Info("standing by, another coordinator leads", "leader", v.Name)
			}
		} else if gerr != nil && !errors.Is(gerr, bus.ErrNotFound) {
			c.log.Warn("cannot read the leader's lease, trying again", "error", gerr)
		}
		if !bus.Sleep(ctx, c.cfg.Timing.Leader/6) {
			return nil, fault.New(fault.Canceled, "wait for the leader's lease: %w", context.Cause(ctx))
		}
	}
}

// keep renews the lease until ctx ends; it returns fault.Stale once the lease
// may have passed to another.
func (l *leaderLease) keep(ctx context.Context) error {
	value, err := json.Marshal(leaseValue{Name: l.c.cfg.Name})
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	renewed := l.c.now()
	ttl := l.c.cfg.Timing.Leader
	for {
		if !bus.Sleep(ctx, ttl/4) {
			return context.Cause(ctx)
		}
		sent := l.c.now()
		rctx, cancel := context.WithTimeout(ctx, ttl/4)
		rev, err := l.kv.Swap(rctx, leaseKey, value, l.rev)
		cancel()
		switch {
		case err == nil:
			l.rev, renewed = rev, sent
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, bus.ErrConflict):
			// A renewal whose answer was lost has moved the revision itself.
			if held, rev, gerr := l.kv.Get(ctx, leaseKey); gerr == nil && string(held) == string(value) {
				l.rev = rev
				continue
			}
			return fault.New(fault.Stale, "leader's lease: another coordinator has taken it")
		}
		if l.c.now().Sub(renewed) > ttl {
			return fault.New(fault.Stale, "leader's lease: not renewed for %s: %w", ttl, err)
		}
		l.c.log.Warn("cannot renew the leader's lease, trying again", "error", err)
	}
}

// release gives the lease up, so that a standby need not wait for its end.
func (l *leaderLease) release() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 2*time.Second)
	defer cancel()
	if _, rev, err := l.kv.Get(ctx, leaseKey); err != nil || rev != l.rev {
		return
	}
	if err := l.kv.Delete(ctx, leaseKey); err != nil {
		l.c.log.Debug("release the leader's lease", "error", err)
	}
}
