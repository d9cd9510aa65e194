package policy

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Decide says whether the program by may connect to host and port at the time
// now. It refuses with BadName, Denied, NotListed or WrongProgram. What it
// costs depends on the labels of the name and on the rules for that very host,
// not on how many rules there are.
func (p *Policy) Decide(host string, port uint16, by Owner, now time.Time) Verdict {
	if p.Unconfined {
		return Verdict{Allow: true}
	}
	name, err := NormalHost(host)
	if err != nil {
		return Verdict{Reason: BadName}
	}
	return p.verdict(query{port: port, by: by, now: now, unlisted: NotListed,
		find: func(t *table, wanted func(*Rule) bool) *Rule { return t.find(name, wanted) }})
}

// DecideAddr says whether a program may connect to an address that it did not
// get by asking for a name. It refuses with Denied, DirectAddress or
// WrongProgram.
func (p *Policy) DecideAddr(addr netip.Addr, port uint16, by Owner, now time.Time) Verdict {
	if p.Unconfined {
		return Verdict{Allow: true}
	}
	return p.verdict(query{port: port, by: by, now: now, unlisted: DirectAddress,
		find: func(t *table, wanted func(*Rule) bool) *Rule { return t.findAddr(addr, wanted) }})
}

// verdict is decide, but for what "enforce: audit" of the whole policy lets pass.
func (p *Policy) verdict(q query) Verdict {
	v := p.match.decide(q)
	if p.Egress.Audit && !v.Allow && v.Reason != Denied {
		v.Allow, v.Reason, v.Would = true, "", v.Reason
	}
	return v
}

// Begin starts the time of every rule that has a ttl: age is how long the rule
// has been in force already; nil: no rule has been. Until then such a rule
// counts as expired. It is called before the policy is asked by others.
func (p *Policy) Begin(now time.Time, age func(*Rule) time.Duration) {
	for i := range p.Egress.Rules {
		r := &p.Egress.Rules[i]
		if r.TTL == 0 {
			continue
		}
		r.ends = now.Add(r.TTL)
		if age != nil {
			r.ends = r.ends.Add(-age(r))
		}
	}
}

// DecideDNS says whether a question of a type other than an address's, such as
// "TXT", may be asked for host. It refuses with BadName, Denied, NotListed or
// UnsupportedType. A rule for certain programs lets none be asked: whose question
// it is cannot be told.
func (p *Policy) DecideDNS(host, qtype string, now time.Time) Verdict {
	name, err := NormalHost(host)
	switch {
	case err != nil:
		return Verdict{Reason: BadName}
	case p.match == nil:
		return Verdict{Reason: NotListed}
	}
	if r := p.match.deny.find(name, func(r *Rule) bool { return !r.Audit && r.everyPort() && !r.expired(now) }); r != nil {
		return Verdict{Reason: Denied, Rule: r}
	}
	if r := first(p.match.allow.hosts[exact][name], func(r *Rule) bool { return slices.Contains(r.DNS, qtype) && len(r.Binaries) == 0 && !r.expired(now) }); r != nil {
		v := Verdict{Allow: true, Rule: r}
		if r.Audit {
			v.Would = UnsupportedType
		}
		return v
	}
	if !p.Listed(host) {
		return Verdict{Reason: NotListed}
	}
	return Verdict{Reason: UnsupportedType}
}

// DeniesAddr returns the deny rule that forbids an address, or nil. The
// gateway asks it of the addresses that an allowed name resolved to, so that
// "deny: cidr" holds by whatever name one goes there.
func (p *Policy) DeniesAddr(addr netip.Addr, port uint16, now time.Time) *Rule {
	if p.match == nil {
		return nil
	}
	return p.match.deny.findAddr(addr, func(r *Rule) bool { return !r.Audit && r.covers(port, now) })
}

// Listed tells whether some rule could allow host on some port at some time,
// and none denies all of it for good.
func (p *Policy) Listed(host string) bool {
	if p.Unconfined {
		return true
	}
	name, err := NormalHost(host)
	if err != nil || p.match == nil {
		return false
	}
	allowed := p.match.allow.find(name, func(*Rule) bool { return true })
	denied := p.match.deny.find(name, func(r *Rule) bool { return !r.Audit && r.everyPort() && r.Ends().IsZero() })
	return allowed != nil && denied == nil
}

// Where says where a rule is written: "policy.yaml:12", or "built-in".
func (p *Policy) Where(r *Rule) string {
	if r == nil || r.Line == 0 || p.File == "" {
		return "built-in"
	}
	return fmt.Sprintf("%s:%d", filepath.Base(p.File), r.Line)
}

// matcher finds rules by host and address. The nil matcher allows nothing.
type matcher struct {
	allow, deny table
}

func newMatcher(e *Egress) *matcher {
	return &matcher{allow: newTable(e.Rules), deny: newTable(e.Deny)}
}

// query is what a matcher is asked.
type query struct {
	find     func(t *table, wanted func(*Rule) bool) *Rule // the best rule of a table
	port     uint16
	by       Owner
	now      time.Time
	unlisted Reason // where no rule has an answer
}

// decide asks the deny rules, then those that allow, then those that are only
// tried out.
func (m *matcher) decide(q query) Verdict {
	if m == nil {
		return Verdict{Reason: q.unlisted}
	}
	if r := q.find(&m.deny, func(r *Rule) bool { return !r.Audit && r.covers(q.port, q.now) }); r != nil {
		return Verdict{Reason: Denied, Rule: r}
	}
	v := m.allows(q)
	if m.deny.audits {
		if r := q.find(&m.deny, func(r *Rule) bool { return r.Audit && r.covers(q.port, q.now) }); r != nil && v.Allow {
			v.Would = Denied
		}
	}
	return v
}

func (m *matcher) allows(q query) Verdict {
	others := false // rules that match are for other programs
	find := func(audit bool) *Rule {
		return q.find(&m.allow, func(r *Rule) bool {
			if r.Audit != audit || !r.covers(q.port, q.now) {
				return false
			}
			if !r.permits(q.by) {
				others = true
				return false
			}
			return true
		})
	}
	v := Verdict{Reason: q.unlisted}
	if v.Rule = find(false); v.Rule != nil {
		v.Allow, v.Reason = true, ""
	} else if others {
		v.Reason = WrongProgram
	}
	if !v.Allow && m.allow.audits {
		if v.Rule = find(true); v.Rule != nil {
			v.Allow, v.Reason, v.Would = true, "", v.Reason
		}
	}
	v.Asks = others && q.by == Owner{}
	return v
}

// table holds rules by what they match; the rules of one key stand in the
// order in which they are written.
type table struct {
	hosts map[wildcard]map[string][]*Rule // by the literal part
	cidrs map[netip.Prefix][]*Rule
	bits4 []int // the lengths of cidrs, longest first
	bits6 []int

	audits bool // some rule is only tried out
}

func newTable(rules []Rule) table {
	t := table{
		hosts: map[wildcard]map[string][]*Rule{exact: {}, oneLabel: {}, subdomain: {}},
		cidrs: map[netip.Prefix][]*Rule{},
	}
	for i := range rules {
		r := &rules[i]
		t.audits = t.audits || r.Audit
		if r.Host != "" {
			w, literal := splitHost(r.Host)
			t.hosts[w][literal] = append(t.hosts[w][literal], r)
			continue
		}
		t.cidrs[r.CIDR] = append(t.cidrs[r.CIDR], r)
		if r.CIDR.Addr().Is4() {
			t.bits4 = append(t.bits4, r.CIDR.Bits())
		} else {
			t.bits6 = append(t.bits6, r.CIDR.Bits())
		}
	}
	t.bits4, t.bits6 = longestFirst(t.bits4), longestFirst(t.bits6)
	return t
}

func longestFirst(bits []int) []int {
	slices.Sort(bits)
	bits = slices.Compact(bits)
	slices.Reverse(bits)
	return bits
}

// find returns the first rule for name that is wanted: exact host first, then
// wildcards by the length of their literal part.
func (t *table) find(name string, wanted func(*Rule) bool) *Rule {
	if r := first(t.hosts[exact][name], wanted); r != nil {
		return r
	}
	_, rest, more := strings.Cut(name, ".")
	if r := first(t.hosts[oneLabel][rest], wanted); r != nil {
		return r
	}
	for ; more; _, rest, more = strings.Cut(rest, ".") {
		if r := first(t.hosts[subdomain][rest], wanted); r != nil {
			return r
		}
	}
	return nil
}

// findAddr returns the first rule for addr that is wanted, the longest prefix
// first.
func (t *table) findAddr(addr netip.Addr, wanted func(*Rule) bool) *Rule {
	addr = addr.Unmap().WithZone("")
	lengths := t.bits6
	if addr.Is4() {
		lengths = t.bits4
	}
	for _, bits := range lengths {
		prefix, err := addr.Prefix(bits)
		if err != nil { // not an address at all
			return nil
		}
		if r := first(t.cidrs[prefix], wanted); r != nil {
			return r
		}
	}
	return nil
}

func first(rules []*Rule, wanted func(*Rule) bool) *Rule {
	for _, r := range rules {
		if wanted(r) {
			return r
		}
	}
	return nil
}

// covers tells whether a rule that matches the host counts for port and now.
func (r *Rule) covers(port uint16, now time.Time) bool {
	return !r.expired(now) && (len(r.Ports) == 0 || inRanges(port, r.Ports))
}

func (r *Rule) expired(now time.Time) bool {
	return !r.Expires.IsZero() && !now.Before(r.Expires) || r.TTL > 0 && !now.Before(r.ends)
}

// Ends returns when the rule stops to count, by expires or ttl; zero: never.
func (r *Rule) Ends() time.Time {
	if r.TTL > 0 {
		return r.ends
	}
	return r.Expires
}

func inRanges(port uint16, ranges []PortRange) bool {
	for _, pr := range ranges {
		if pr.First <= port && port <= pr.Last {
			return true
		}
	}
	return false
}

// everyPort tells whether the ranges leave no port out.
func (r *Rule) everyPort() bool {
	if len(r.Ports) == 0 {
		return true
	}
	ranges := slices.Clone(r.Ports)
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	next := 1 // the lowest port not yet covered
	for _, pr := range ranges {
		if int(pr.First) > next {
			return false
		}
		next = max(next, int(pr.Last)+1)
	}
	return next > 65535
}

// Private tells whether allow_private opens addr, which is not globally
// reachable, to this rule.
func (r *Rule) Private(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(r.AllowPrivate, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// String returns what the rule matches: "*.example.org:443,8000-8100"; "*"
// stands for every port.
func (r Rule) String() string {
	target := r.Host
	if target == "" {
		target = r.CIDR.String()
	}
	ports := make([]string, len(r.Ports))
	for i, pr := range r.Ports {
		ports[i] = pr.String()
	}
	if len(ports) == 0 {
		ports = []string{"*"}
	}
	return target + ":" + strings.Join(ports, ",")
}

// String returns "443" or "8000-8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
