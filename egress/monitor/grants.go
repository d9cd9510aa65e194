package monitor

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// ledger keeps an operator's decisions. They are on the disk before anybody
// acts on them, so that a monitor that is killed has neither given a use twice
// nor forgotten a denial.
type ledger struct {
	dir  string
	mu   sync.Mutex // one change at a time, to its end
	kept atomic.Pointer[control.Decisions]
}

func openLedger(dir string) (*ledger, error) {
	kept, err := control.ReadDecisions(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the operator's decisions: %w", err)
	}
	l := &ledger{dir: dir}
	l.kept.Store(kept)
	return l, nil
}

// change makes a change and keeps it, or nothing of it. What change is given is
// its own.
func (l *ledger) change(change func(*control.Decisions) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := *l.kept.Load()
	now := control.Now()
	next.Grants = slices.DeleteFunc(slices.Clone(next.Grants), func(g control.Grant) bool { return g.Ended(now) })
	if err := change(&next); err != nil {
		return err
	}
	if err := control.WriteDecisions(l.dir, &next); err != nil {
		return fmt.Errorf("cannot keep the decision: %w", err)
	}
	l.kept.Store(&next)
	return nil
}

// grants returns those that count, in the order in which they were given.
func (l *ledger) grants() []control.Grant {
	now := control.Now()
	return slices.DeleteFunc(append([]control.Grant{}, l.kept.Load().Grants...), func(g control.Grant) bool { return g.Ended(now) })
}

func (l *ledger) began() map[string]control.Uptime { return l.kept.Load().Began }

// begin notes since when the rules of a policy that have a ttl are in force.
// One that was there before goes on; one that comes back begins anew.
func (l *ledger) begin(p *policy.Policy) error {
	began, changed := map[string]control.Uptime{}, false
	old, now := l.began(), control.Now()
	for i := range p.Egress.Rules {
		r := &p.Egress.Rules[i]
		if r.TTL == 0 {
			continue
		}
		since, ok := old[r.Key()]
		if !ok {
			since, changed = now, true
		}
		began[r.Key()] = since
	}
	if changed || len(began) != len(old) {
		if err := l.change(func(d *control.Decisions) error { d.Began = began; return nil }); err != nil {
			return err
		}
	}
	p.Begin(time.Now(), func(r *policy.Rule) time.Duration { return time.Duration(now - began[r.Key()]) })
	return nil
}

// errFull is why no more is decided.
var errFull = fmt.Errorf("cannot keep more than %d decisions: revoke some, or change the policy instead", control.MaxGrants)

// add puts g in the place of an older grant for the same host and port, and
// returns it with its number.
func add(d *control.Decisions, g control.Grant) (control.Grant, error) {
	d.Grants = slices.DeleteFunc(d.Grants, func(o control.Grant) bool { return o.Host == g.Host && o.Port == g.Port })
	if len(d.Grants) >= control.MaxGrants {
		d.Grants = slices.DeleteFunc(d.Grants, func(o control.Grant) bool { return o.Spent() })
	}
	if len(d.Grants) >= control.MaxGrants {
		return g, errFull
	}
	d.Last++
	g.ID = d.Last
	d.Grants = append(d.Grants, g)
	return g, nil
}

// take removes the grant with a number, or the one for a host and port.
func take(d *control.Decisions, id uint64, host string, port uint16) (control.Grant, error) {
	i := slices.IndexFunc(d.Grants, func(g control.Grant) bool {
		return g.ID == id || id == 0 && g.Host == host && g.Port == port
	})
	if i < 0 {
		return control.Grant{}, errors.New("cannot revoke: there is no such grant")
	}
	g := d.Grants[i]
	d.Grants = slices.Delete(d.Grants, i, i+1)
	return g, nil
}

// spend gives a worker one use of a counted grant. It is the only place where
// one is taken away, and it is gone before the worker hears of it.
func (m *Monitor) spend(u *control.Use) (answer control.Used, last bool) {
	answer.N = u.N
	err := m.ledger.change(func(d *control.Decisions) error {
		i := slices.IndexFunc(d.Grants, func(g control.Grant) bool { return g.ID == u.Grant })
		if i < 0 || !d.Grants[i].Allow || !d.Grants[i].Counted || d.Grants[i].Spent() {
			return errors.New("the approval is used up")
		}
		d.Grants[i].Uses--
		last = d.Grants[i].Spent()
		return nil
	})
	if err != nil {
		answer.Fault = err.Error()
	}
	return answer, last
}
