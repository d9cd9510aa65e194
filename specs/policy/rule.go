package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// egress reads the rules and tells whether there was a list of those that
// allow.
func (p *parser) egress(n *yaml.Node, e *Egress) (hasRules bool) {
	seen := p.mapping(n, "egress", append([]field{
		{key: "rules", read: func(n *yaml.Node) { e.Rules = p.rules(n, "egress.rules", p.allowRule) }},
		{key: "deny", read: func(n *yaml.Node) { e.Deny = p.rules(n, "egress.deny", p.denyRule) }},
		{key: "enforce", read: func(n *yaml.Node) { e.Audit = p.enforce(n, "egress.enforce") }},
		{key: "defaults", read: func(n *yaml.Node) { p.defaults(n, &e.Defaults) }},
	}, p.misplaced("defaults", "on_unlisted", "hold", "max_connections", "max_upload", "idle_timeout")...))
	return seen["rules"] != nil
}

func (p *parser) rules(n *yaml.Node, what string, read func(*yaml.Node) Rule) []Rule {
	rules := []Rule{}
	p.list(n, what, func(item *yaml.Node) {
		if s := follow(item); s.Kind == yaml.ScalarNode {
			p.fault(item, "a rule is a mapping, not %q; write \"- %s\"", s.Value, writtenOut(s.Value))
			return
		}
		rules = append(rules, read(item))
	})
	return rules
}

// allowRule reads a rule of egress.rules. It is of use only if there was no
// fault.
func (p *parser) allowRule(n *yaml.Node) Rule {
	r := Rule{Line: n.Line}
	fields := append(p.target(&r, false), p.options(&r)...)
	fields = append(fields, p.inspection()...)
	fields = append(fields, p.later("rule", "upgrade")...)
	seen := p.mapping(n, "rule", fields)
	if seen == nil {
		return r
	}
	p.hostOrCIDR(n, seen)
	if seen["port"] == nil && seen["ports"] == nil {
		p.fault(n, "the rule needs port (or ports)")
	}
	if r.CIDR.IsValid() && within(r.CIDR, private) && !overlaps(r.CIDR, r.AllowPrivate) {
		p.fault(n, "%s is private, so the rule would allow nothing; add \"allow_private: [%s]\"", r.CIDR, r.CIDR)
	}
	if w, _ := splitHost(r.Host); len(r.DNS) > 0 && (r.Host == "" || w != exact) && seen["dns"] != nil {
		p.fault(seen["dns"], "dns needs a rule for one host: the question is asked for exactly that name")
	}
	if r.TTL > 0 && seen["expires"] != nil {
		p.fault(seen["ttl"], "the rule has both expires and ttl; write one of them")
	}
	return r
}

// denyRule reads a rule of egress.deny, where no port means every port.
func (p *parser) denyRule(n *yaml.Node) Rule {
	r := Rule{Line: n.Line}
	if seen := p.mapping(n, "deny rule", p.target(&r, true)); seen != nil {
		p.hostOrCIDR(n, seen)
	}
	return r
}

// target are the fields that both kinds of rule have.
func (p *parser) target(r *Rule, deny bool) []field {
	var first *yaml.Node // of port and ports
	ports := func(read func(*yaml.Node) []PortRange) func(*yaml.Node) {
		return func(n *yaml.Node) {
			if first != nil {
				p.fault(n, "the rule has both port and ports; write one of them")
				return
			}
			first, r.Ports = n, read(n)
		}
	}
	return []field{
		{key: "host", read: func(n *yaml.Node) { r.Host = p.host(n, deny) }},
		{key: "cidr", read: func(n *yaml.Node) { r.CIDR = p.cidr(n, deny) }},
		{key: "port", read: ports(p.port)},
		{key: "ports", read: ports(p.ports)},
		{key: "name", read: func(n *yaml.Node) { r.Name = p.name(n) }},
		{key: "expires", read: func(n *yaml.Node) { r.Expires = p.expires(n) }},
		{key: "enforce", read: func(n *yaml.Node) { r.Audit = p.enforce(n, "enforce") }},
	}
}

// inspection are the fields that need a look into TLS. They are refused with
// a sentence of their own: a rule without them allows more, and that is for a
// person to decide.
func (p *parser) inspection() []field {
	refuse := func(n *yaml.Node) {
		p.fault(n, "cannot restrict methods or paths yet: TLS inspection is not part of this version; "+
			"take this key out, and the rule allows all of host:port")
	}
	return []field{
		{key: "methods", read: refuse, hidden: true},
		{key: "paths", read: refuse, hidden: true},
		{key: "deny_paths", read: refuse, hidden: true},
		{key: "tls", hidden: true, read: func(n *yaml.Node) {
			if follow(n).Value == "terminate" {
				refuse(n)
				return
			}
			p.fault(n, "rule: tls is not supported by this version; take it out (a rule without \"raw: true\" has TLS checked on port 443)")
		}},
	}
}

func (p *parser) hostOrCIDR(n *yaml.Node, seen map[string]*yaml.Node) {
	switch {
	case seen["host"] == nil && seen["cidr"] == nil:
		p.fault(n, "the rule needs host (or cidr)")
	case seen["host"] != nil && seen["cidr"] != nil:
		p.fault(seen["cidr"], "the rule has both host and cidr; write two rules")
	}
}

// host reads a rule's host, and returns its normal form.
func (p *parser) host(n *yaml.Node, deny bool) string {
	n, s, ok := p.text(n, "host")
	if !ok {
		return ""
	}
	if prefix, ok := asPrefix(s); ok {
		p.fault(n, "host %q is an address; write \"cidr: %s\" in place of host", s, prefix)
		return ""
	}
	if strings.ContainsAny(s, "/:@[]") {
		p.fault(n, "host %q is more than a name; write \"%s\"", s, writtenOut(s))
		return ""
	}
	w, literal := splitHost(s)
	switch {
	case strings.Trim(s, "*.") == "":
		p.fault(n, "host %q would match every host; name the hosts, or a domain such as \"*.example.org\"", s)
		return ""
	case strings.Contains(literal, "*"):
		p.fault(n, "host %q: a wildcard stands only at the beginning, as \"*.\" (one label) or \"**.\" (one or more)", s)
		return ""
	}
	name, err := NormalHost(literal)
	switch a := aLabels(literal); {
	case err != nil && !isASCII(s) && a != "":
		p.fault(n, "host %q is not ASCII; write \"%s%s\"", s, w, a)
		return ""
	case err != nil:
		p.fault(n, "host %q: %v", s, err)
		return ""
	}
	if w != exact && !deny {
		if open := openBelow(w, name); open != "" {
			p.fault(n, "host %q: anyone can register a name below %q; name the hosts, or a longer domain", s, open)
			return ""
		}
	}
	return string(w) + name
}

// asPrefix reads an address, also in brackets, or a range of addresses.
func asPrefix(s string) (netip.Prefix, bool) {
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return prefix.Masked(), true
	}
	addr, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap().WithZone("")
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// writtenOut turns what people paste, such as https://example.org:8443/x, into
// the keys of a rule, or gives an example of them.
func writtenOut(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	host, port := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, port = rest[:i], rest[i+1:]
	}
	if _, ok := parsePort(port); !ok {
		port = map[string]string{"http": "80", "ssh": "22"}[scheme]
	}
	if port == "" {
		port = "443"
	}
	if prefix, ok := asPrefix(host); ok {
		return fmt.Sprintf("{cidr: %s, port: %s}", prefix, port)
	}
	if _, literal := splitHost(host); literal != "" {
		if _, err := NormalHost(literal); err == nil {
			return fmt.Sprintf("{host: %s, port: %s}", host, port)
		}
	}
	return "{host: example.org, port: 443}"
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// cidr reads a rule's range of addresses.
func (p *parser) cidr(n *yaml.Node, deny bool) netip.Prefix {
	n, prefix, ok := p.prefix(n, "cidr")
	if !ok {
		return netip.Prefix{}
	}
	if what := neverReachable(prefix); what != "" && !deny {
		p.fault(n, "cidr %s holds or lies in %s, which no policy can open", prefix, what)
	}
	return prefix
}

func (p *parser) allowPrivate(n *yaml.Node) []netip.Prefix {
	var prefixes []netip.Prefix
	p.list(n, "allow_private", func(n *yaml.Node) {
		n, prefix, ok := p.prefix(n, "allow_private")
		if !ok {
			return
		}
		for _, never := range never {
			if within(prefix, []netip.Prefix{never.prefix}) {
				p.fault(n, "allow_private: %s lies in %s, which no policy can open", prefix, never.what)
				return
			}
		}
		prefixes = append(prefixes, prefix)
	})
	return prefixes
}

// prefix reads a range of addresses whose text says all that it means.
func (p *parser) prefix(n *yaml.Node, what string) (*yaml.Node, netip.Prefix, bool) {
	n, s, ok := p.text(n, what)
	if !ok {
		return n, netip.Prefix{}, false
	}
	prefix, err := netip.ParsePrefix(s)
	if err == nil && prefix.Masked() == prefix {
		return n, prefix, true
	}
	if want, ok := asPrefix(s); ok {
		p.fault(n, "%s: write %q as %s", what, s, want)
	} else {
		p.fault(n, "%s: %q is not a range of addresses, such as 203.0.113.0/24 or 2001:db8::/32", what, s)
	}
	return n, netip.Prefix{}, false
}

func overlaps(prefix netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if o.Overlaps(prefix) {
			return true
		}
	}
	return false
}

// port reads the key port: one number.
func (p *parser) port(n *yaml.Node) []PortRange {
	if follow(n).Kind == yaml.SequenceNode {
		p.fault(n, "port is one number; write \"ports: [...]\" for several")
		return nil
	}
	n, s, ok := p.text(n, "port")
	if !ok {
		return nil
	}
	if _, ok := parseRange(s); ok && strings.Contains(s, "-") {
		p.fault(n, "port is one number; write \"ports: [%s]\"", s)
		return nil
	}
	number, ok := parsePort(s)
	if !ok {
		p.fault(n, "port %q is not a number from 1 to 65535", s)
		return nil
	}
	return []PortRange{{number, number}}
}

// ports reads the key ports: numbers and ranges.
func (p *parser) ports(n *yaml.Node) []PortRange {
	var ranges []PortRange
	before := len(p.faults)
	p.list(n, "ports", func(n *yaml.Node) {
		n, s, ok := p.text(n, "ports")
		if !ok {
			return
		}
		r, ok := parseRange(s)
		if !ok {
			p.fault(n, "ports: %q is neither a number from 1 to 65535 nor a range such as 8000-8100", s)
			return
		}
		ranges = append(ranges, r)
	})
	if len(ranges) == 0 && len(p.faults) == before {
		p.fault(n, "ports is empty; name at least one")
	}
	return ranges
}

func parseRange(s string) (PortRange, bool) {
	low, high, isRange := strings.Cut(s, "-")
	first, ok := parsePort(low)
	if !isRange {
		return PortRange{first, first}, ok
	}
	last, ok2 := parsePort(high)
	return PortRange{first, last}, ok && ok2 && first <= last
}

// parsePort reads a port from 1 to 65535 in plain decimal digits, so that no
// reader takes 0443 for an octal number.
func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, false
	}
	return uint16(n), true
}

// maxRuleName bounds, in characters, what a record repeats each time.
const maxRuleName = 64

func (p *parser) name(n *yaml.Node) string {
	n, s, ok := p.text(n, "name")
	switch {
	case !ok:
		return ""
	case utf8.RuneCountInString(s) > maxRuleName:
		p.fault(n, "name has more than %d characters", maxRuleName)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		p.fault(n, "name %q must be printable", s)
	}
	return s
}

func (p *parser) expires(n *yaml.Node) time.Time {
	n, s, ok := p.text(n, "expires")
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.IsZero() {
		p.fault(n, "expires %q is not a time such as 2027-01-31T18:00:00Z", s)
		return time.Time{}
	}
	return t.UTC()
}
