package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Warnings tells what is most likely not meant in a policy that is valid, in
// the order in which it stands: rules that have expired, that are there twice,
// or that another decides everything for; a list that allows nothing. src is
// what the policy was parsed from; it is shown.
func (p *Policy) Warnings(src []byte, now time.Time) Faults {
	w := newParser(p.File, src)
	if len(p.Egress.Rules) == 0 && !p.Unconfined {
		w.warn(emptyRulesLine(w.lines), "egress.rules is empty: every connection is refused")
	}
	for _, list := range [][]Rule{p.Egress.Deny, p.Egress.Rules} {
		w.repeated(list)
		for i := range list {
			if r := &list[i]; r.Line > 0 && !r.Expires.IsZero() && r.expired(now) {
				w.warn(r.Line, "the rule %s has expired (%s): it is as if it were not written", r, r.Expires.Format(time.RFC3339))
			}
		}
	}
	for i := range p.Egress.Rules {
		if r := &p.Egress.Rules[i]; r.Line > 0 {
			if d := p.deniedWhole(r); d != nil {
				w.warn(r.Line, "the rule %s allows nothing: a deny rule covers it (%s)", r, writtenAt(d))
			}
			if len(r.DNS) > 0 && len(r.Binaries) > 0 {
				w.warn(r.Line, "the rule %s lets no question of its dns pass: which program asks cannot be told; write a rule without binaries for dns", r)
			}
		}
	}
	if err := w.err(); err == nil {
		return nil
	}
	return w.faults
}

// warn is faultAt, under the first character of the line.
func (p *parser) warn(line int, format string, args ...any) {
	col := 1
	if line <= len(p.lines) {
		text := p.lines[line-1]
		col += len(text) - len(strings.TrimLeft(text, " -"))
	}
	p.faultAt(line, col, format, args...)
}

// emptyRulesLine finds the key rules, or says the first line.
func emptyRulesLine(lines []string) int {
	return 1 + max(0, slices.IndexFunc(lines, func(s string) bool { return strings.Contains(s, "rules:") }))
}

// repeated warns of rules that those for the same hosts before them leave
// nothing to decide.
func (p *parser) repeated(list []Rule) {
	const compared = 64 // with as many rules for the same hosts
	before := map[string][]*Rule{}
	for i := range list {
		r := &list[i]
		key := r.Host + "|" + r.CIDR.String()
		for _, b := range before[key] {
			if r.Line == 0 || !b.decidesAllOf(r) {
				continue
			}
			what := "is never reached"
			if sameButName(b, r) {
				what = "is there twice"
			}
			p.warn(r.Line, "the rule %s %s: %s decides first (%s)", r, what, b, writtenAt(b))
			break
		}
		if len(before[key]) < compared {
			before[key] = append(before[key], r)
		}
	}
}

// decidesAllOf tells whether a rule for the same hosts, standing before other,
// decides whatever other matches, for good.
func (r *Rule) decidesAllOf(other *Rule) bool {
	return r.Expires.IsZero() && r.TTL == 0 && (!r.Audit || other.Audit) &&
		(len(r.Binaries) == 0 || slices.Equal(r.Binaries, other.Binaries)) &&
		len(other.DNS) == 0 && r.coversPorts(other.Ports)
}

// coversPorts tells whether a rule matches every port of the ranges.
func (r *Rule) coversPorts(ranges []PortRange) bool {
	if r.everyPort() {
		return true
	}
	return len(ranges) > 0 && !slices.ContainsFunc(ranges, func(pr PortRange) bool {
		return !slices.ContainsFunc(r.Ports, func(own PortRange) bool { return own.First <= pr.First && pr.Last <= own.Last })
	})
}

func sameButName(a, b *Rule) bool {
	x, y := *a, *b
	x.Name, y.Name, x.Line, y.Line, x.ends, y.ends = "", "", 0, 0, time.Time{}, time.Time{}
	return reflect.DeepEqual(x, y)
}

// deniedWhole returns a deny rule that matches, for good, all that r does.
func (p *Policy) deniedWhole(r *Rule) *Rule {
	for _, d := range p.match.deny.around(r) {
		if !d.Audit && d.Expires.IsZero() && d.coversPorts(r.Ports) {
			return d
		}
	}
	return nil
}

// around returns the rules whose host or cidr matches all that r's does.
func (t *table) around(r *Rule) (list []*Rule) {
	if r.CIDR.IsValid() {
		for bits := r.CIDR.Bits(); bits >= 0; bits-- {
			list = append(list, t.cidrs[netip.PrefixFrom(r.CIDR.Addr(), bits).Masked()]...)
		}
		return list
	}
	w, literal := splitHost(r.Host)
	list = append(list, t.hosts[w][literal]...)
	_, rest, more := strings.Cut(literal, ".")
	switch w {
	case exact:
		list = append(list, t.hosts[oneLabel][rest]...)
	case oneLabel:
		list = append(list, t.hosts[subdomain][literal]...)
	}
	for ; more; _, rest, more = strings.Cut(rest, ".") {
		list = append(list, t.hosts[subdomain][rest]...)
	}
	return list
}

// Options returns what a rule says beyond its target, as it would be written:
// "binaries: /usr/bin/git; rate: 20/s", or "".
func (r *Rule) Options() string {
	var words []string
	add := func(is bool, format string, args ...any) {
		if is {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(r.Audit, "enforce: audit")
	add(r.Raw, "raw: true")
	add(len(r.AllowPrivate) > 0, "allow_private: %v", r.AllowPrivate)
	add(len(r.Binaries) > 0, "binaries: %s", strings.Join(r.Binaries, " "))
	add(r.MaxConnections > 0, "max_connections: %d", r.MaxConnections)
	add(r.Rate.Count > 0, "rate: %s", r.Rate)
	add(r.MaxUpload > 0, "max_upload: %d bytes", r.MaxUpload)
	add(r.IdleTimeout > 0, "idle_timeout: %s", r.IdleTimeout)
	add(r.TTL > 0, "ttl: %s", r.TTL)
	add(!r.Expires.IsZero(), "expires: %s", r.Expires.Format(time.RFC3339))
	add(len(r.DNS) > 0, "dns: %s", strings.Join(r.DNS, " "))
	return strings.Join(words, "; ")
}

// Key tells a rule from others, and is the same wherever it is written.
func (r *Rule) Key() string { return r.String() + " " + r.Options() }
