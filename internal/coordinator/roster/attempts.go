package roster

import (
	"slices"

	"github.com/fsbackup/fsbackup/internal/protocol"
	"github.com/fsbackup/fsbackup/internal/rawjson"
	"github.com/fsbackup/fsbackup/internal/state"
)

// Attempt notes the announced start or end of an attempt.
func (r *Roster) Attempt(data []byte) {
	var e protocol.AttemptEvent
	if err := rawjson.Unmarshal(data, &e); err != nil {
		r.log.Warn("attempt event cannot be read", "error", err)
		return
	}
	r.noteAttempt(e)
}

// noteAttempt notes an event of an attempt, which may come more than once.
func (r *Roster) noteAttempt(e protocol.AttemptEvent) {
	news := false
	r.rec.Update(func(t state.Tx) {
		o, ok := t.Open(e.Job, e.Phase, e.N)
		if !ok {
			return
		}
		o.Attempts = slices.Clone(o.Attempts)
		i := slices.IndexFunc(o.Attempts, func(a state.Attempt) bool {
			return a.Sequence == e.Sequence && a.Delivery == e.Delivery
		})
		if i < 0 {
			o.Attempts = append(o.Attempts, state.Attempt{Sequence: e.Sequence, Delivery: e.Delivery})
			i = len(o.Attempts) - 1
		}
		a := &o.Attempts[i]
		a.Worker, a.Instance = e.Worker, e.Instance
		if e.End {
			news = !a.Ended
			a.Ended, a.Reason, a.Kind, a.Executed = true, e.Reason, e.Kind, e.Executed
		} else {
			a.Started = r.cfg.Now()
		}
		if len(o.Attempts) > 64 {
			o.Attempts = o.Attempts[len(o.Attempts)-64:]
		}
		t.PutOpen(o)
	})
	if news {
		r.log.Info("shard handed back", "job", e.Job, "phase", e.Phase, "shard", e.N, "worker", e.Worker, "delivery", e.Delivery, "reason", e.Reason)
	}
}
