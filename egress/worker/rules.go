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
	grants     map[target]control.Grant
	noUplink   bool
}

func newRules(m *control.Rules) (*rules, error) {
	p, err := policy.Parse(m.File, m.Policy)
	if err != nil {
		return nil, err
	}
	now := control.Now()
	p.Begin(time.Now(), func(r *policy.Rule) time.Duration {
		if began, ok := m.Began[r.Key()]; ok {
			return time.Duration(now - began)
		}
		return 0
	})
	r := &rules{generation: m.Generation, policy: p, noUplink: m.NoUplink, grants: map[target]control.Grant{}}
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
	if old, ok := r.grants[t]; ok && !old.Allow {
		return
	}
	r.grants[t] = g
}

// attempt is what is decided: a program's wish, as far as it is known.
type attempt struct {
	target
	by      policy.Owner // zero: unknown
	request string
	used    bool // it has had its use of a counted grant
	// waits, if not nil, tells whether another request still waits.
	waits func(request string) bool
}

// verdict is what the rules say about a target.
type verdict struct {
	allow      bool
	reason     policy.Reason // empty if allow
	would      policy.Reason // with allow: what it is let off by "enforce: audit"
	asks       bool          // with the owner known, it may be another
	where      string        // the rule, as records name it; empty: none
	rule       *policy.Rule  // nil: none, or a grant
	spends     uint64        // the grant of which it takes a use; 0: none
	rules      *rules        // that decided
	generation uint64
}

// decide never forgets a denial: the operator's, then the policy's; then what
// the policy allows passes, then what the operator granted, then what is only
// tried out.
func (r *rules) decide(a attempt, now time.Time) verdict {
	v := verdict{rules: r, generation: r.generation}
	g := r.granted(a)
	switch p := r.ask(a, now); {
	case r.noUplink:
		v.reason = policy.NoUplink
	case g != nil && !g.Allow:
		v.reason, v.where = policy.Denied, "grant"
	case p.Allow && (p.Would == "" || g == nil):
		v.allow, v.rule, v.would, v.asks, v.where = true, p.Rule, p.Would, p.Asks, r.where(p.Rule)
	case p.Reason == policy.Denied:
		v.reason, v.where = p.Reason, r.policy.Where(p.Rule)
	case g != nil:
		v.allow, v.where = true, "grant"
		if g.Counted && !a.used {
			v.spends = g.ID
		}
	default:
		v.reason, v.asks = p.Reason, p.Asks
	}
	return v
}

// where names a rule in records; what no rule allows passes by the policy's
// egress.enforce.
func (r *rules) where(rule *policy.Rule) string {
	if rule == nil && r.policy.Egress.Audit {
		return "enforce: audit"
	}
	return r.policy.Where(rule)
}

// granted returns the operator's decision that counts for an attempt, or nil.
func (r *rules) granted(a attempt) *control.Grant {
	g, ok := r.grants[a.target]
	switch {
	case !ok || g.Until != 0 && g.Ended(control.Now()):
		return nil
	case !g.Counted || a.used:
		return &g
	case g.Spent():
		return nil
	case g.Request != "" && g.Request != a.request && a.waits != nil && a.waits(g.Request):
		return nil // it is another's, who is still there to take it
	}
	return &g
}

func (r *rules) ask(a attempt, now time.Time) policy.Verdict {
	if a.host != "" {
		return r.policy.Decide(a.host, a.port, a.by, now)
	}
	return r.policy.DecideAddr(a.addr, a.port, a.by, now)
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
	if r == nil {
		return false
	}
	if r.policy.Listed(host) {
		return true
	}
	for t, g := range r.grants {
		if t.host == host && g.Allow && !g.Spent() && !g.Ended(control.Now()) {
			return true
		}
	}
	return false
}

// untilNext returns how long no rule and no grant ends; 0: none ever does. The
// clock may be set meanwhile, so that it is never longer than recheckTime.
func (r *rules) untilNext(now time.Time) time.Duration {
	var next time.Duration
	ends := func(in time.Duration) {
		if in > 0 && (next == 0 || in < next) {
			next = in
		}
	}
	for i := range r.policy.Egress.Rules {
		if e := r.policy.Egress.Rules[i].Ends(); !e.IsZero() {
			ends(e.Sub(now))
		}
	}
	for _, g := range r.grants {
		if g.Until != 0 {
			ends(time.Duration(g.Until - control.Now()))
		}
	}
	return min(next, recheckTime)
}

// uploads returns how many bytes a program may send by the verdict; 0: no bound.
func (v verdict) uploads() int64 {
	if v.rule != nil && v.rule.MaxUpload > 0 {
		return v.rule.MaxUpload
	}
	return v.rules.policy.Egress.Defaults.MaxUpload
}

// idles returns how long nothing may pass by the verdict; 0: for ever.
func (v verdict) idles() time.Duration {
	if v.rule != nil && v.rule.IdleTimeout > 0 {
		return v.rule.IdleTimeout
	}
	return v.rules.policy.Egress.Defaults.IdleTimeout
}

// flows returns how many connections may be open at once.
func (r *rules) flows() int {
	if n := r.policy.Egress.Defaults.MaxConnections; n > 0 {
		return min(n, maxFlows)
	}
	return maxFlows
}
