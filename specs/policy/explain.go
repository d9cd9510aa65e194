package policy

import (
	"net/netip"
	"slices"
	"time"
)

// Step is a rule that was looked at on the way to a verdict.
type Step struct {
	Rule *Rule
	Deny bool   // a deny rule
	Why  string // what came of it: "decides", "not for port 22", ...
}

// What comes of a rule.
const (
	decides    = "decides"
	notReached = "not reached"
	triedOut   = "is tried out: would deny"
)

// Explain is Decide, or DecideAddr where host is an address, with every rule
// for that host in the order in which they are looked at.
func (p *Policy) Explain(host string, port uint16, by Owner, now time.Time) (Verdict, []Step) {
	var v Verdict
	visit := func(t *table, see func(*Rule)) {
		all := func(r *Rule) bool { see(r); return false }
		if addr, err := netip.ParseAddr(host); err == nil {
			t.findAddr(addr, all)
		} else if name, err := NormalHost(host); err == nil {
			t.find(name, all)
		}
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		v = p.DecideAddr(addr, port, by, now)
	} else {
		v = p.Decide(host, port, by, now)
	}
	if p.match == nil {
		return v, nil
	}
	var steps []Step
	visit(&p.match.deny, func(r *Rule) {
		steps = append(steps, Step{r, true, r.came(v, port, by, now)})
	})
	visit(&p.match.allow, func(r *Rule) {
		steps = append(steps, Step{r, false, r.came(v, port, by, now)})
	})
	// Rules that are only tried out come after all others that allow.
	slices.SortStableFunc(steps, func(a, b Step) int { return a.stage() - b.stage() })
	return v, steps
}

func (s Step) stage() int {
	switch {
	case s.Deny:
		return 0
	case !s.Rule.Audit:
		return 1
	}
	return 2
}

// came tells what came of a rule on the way to v.
func (r *Rule) came(v Verdict, port uint16, by Owner, now time.Time) string {
	switch {
	case r == v.Rule:
		return decides
	case r.expired(now):
		return "has expired"
	case !r.covers(port, now):
		return "is not for this port"
	case len(r.Binaries) > 0 && !r.permits(by):
		if by.Exe == "" {
			return "is for certain programs, and which it is was not said"
		}
		return "is for other programs"
	case r.Audit && v.Would == Denied:
		return triedOut
	}
	return notReached
}
