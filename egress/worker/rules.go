package worker

import (
	"net/netip"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// target is what a program connects to: a name, or an address that stands for
// none; and a port.
type target struct {
	host string     // normal form; empty: an address
	addr netip.Addr // of a target without a name
	port uint16
}

// name is the host as records and refusals show it.
func (t target) name() string {
	if t.host != "" {
		return t.host
	}
	return t.addr.String()
}

// rules are all that connections are decided by, immutable.
type rules struct {
	generation uint64
	policy     *policy.Policy
	grants     map[target]bool // true: allowed
	granted    map[string]bool // names with an allowing grant
	noUplink   bool
}

func newRules(m *control.Rules) (*rules, error) {
	p, err := policy.Parse(m.File, m.Policy)
	if err != nil {
		return nil, err
	}
	r := &rules{
		generation: m.Generation, policy: p, noUplink: m.NoUplink,
		grants: map[target]bool{}, granted: map[string]bool{},
	}
	for _, g := range m.Grants {
		r.grant(g)
	}
	return r, nil
}

// grant enters an operator's decision. Where two contradict each other the
// denial counts.
func (r *rules) grant(g control.Grant) {
	t := target{host: g.Host, port: g.Port}
	if a, err := netip.ParseAddr(g.Host); err == nil {
		t = target{addr: a.Unmap().WithZone(""), port: g.Port}
	}
	if old, ok := r.grants[t]; ok && !old {
		return
	}
	r.grants[t] = g.Allow
	if g.Allow && t.host != "" {
		r.granted[t.host] = true
	}
}

// verdict is what the rules say about a target.
type verdict struct {
	allow      bool
	reason     policy.Reason // empty if allow
	where      string        // the rule, as records name it; empty: none
	rule       *policy.Rule  // nil: none, or a grant
	rules      *rules        // that decided
	generation uint64
}

// decide never forgets a denial: the operator's, then the policy's; then what
// the policy allows passes, then what the operator granted.
func (r *rules) decide(t target, now time.Time) verdict {
	v := verdict{rules: r, generation: r.generation}
	grant, decided := r.grants[t]
	switch p := r.ask(t, now); {
	case r.noUplink:
		v.reason = policy.NoUplink
	case decided && !grant:
		v.reason, v.where = policy.Denied, "grant"
	case p.Allow:
		v.allow, v.rule, v.where = true, p.Rule, r.policy.Where(p.Rule)
	case p.Reason == policy.Denied:
		v.reason, v.where = p.Reason, r.policy.Where(p.Rule)
	case decided:
		v.allow, v.where = true, "grant"
	default:
		v.reason = p.Reason
	}
	return v
}

func (r *rules) ask(t target, now time.Time) policy.Verdict {
	if t.host != "" {
		return r.policy.Decide(t.host, t.port, policy.Owner{}, now)
	}
	return r.policy.DecideAddr(t.addr, t.port, policy.Owner{}, now)
}

// raw tells whether any protocol may pass, on ports 80 and 443 too.
func (v verdict) raw() bool { return v.rule != nil && v.rule.Raw }

// private tells whether the rule opens an address that is not globally
// reachable. A grant never does.
func (v verdict) private(addr netip.Addr) bool { return v.rule != nil && v.rule.Private(addr) }

// denies tells whether a deny rule names an address that an allowed name
// resolved to.
func (v verdict) denies(addr netip.Addr, port uint16, now time.Time) bool {
	return v.rules.policy.DeniesAddr(addr, port, now) != nil
}

// listed tells whether a connection to host could be allowed on some port.
func (r *rules) listed(host string) bool {
	return r != nil && (r.policy.Listed(host) || r.granted[host])
}

// expires returns when the next rule expires; zero: none does.
func (r *rules) expires(now time.Time) time.Time {
	var next time.Time
	for i := range r.policy.Egress.Rules {
		e := r.policy.Egress.Rules[i].Expires
		if e.After(now) && (next.IsZero() || e.Before(next)) {
			next = e
		}
	}
	return next
}
