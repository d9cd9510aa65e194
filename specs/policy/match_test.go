package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const matching = `
egress:
  rules:
    - {name: exact,     host: api.example.org, port: 443}
    - {name: one,       host: "*.example.org", ports: [443, 80]}
    - {name: deep,      host: "**.example.org", port: 443}
    - {name: longer,    host: "**.eu.example.org", port: 443}
    - {name: second,    host: api.example.org, port: 443, raw: true}
    - {name: range,     host: files.example.com, ports: [22, 8000-8100]}
    - {name: past,      host: past.example.com, port: 443, expires: 2026-11-22T12:00:00Z}
    - {name: future,    host: future.example.com, port: 443, expires: 2026-11-22T12:00:01Z}
    - {name: wide,      cidr: 203.0.113.0/24, port: 22}
    - {name: narrow,    cidr: 203.0.113.7/32, port: 22}
    - {name: six,       cidr: "2001:db8::/32", port: 22}
    - {name: blocked,   host: blocked.example.com, port: 443}
    - {name: partly,    host: partly.example.com, ports: [22, 443]}
    - {name: reopened,  host: reopened.example.com, port: 443}
  deny:
    - {name: no-blocked,  host: blocked.example.com}
    - {name: no-port,     host: partly.example.com, port: 22}
    - {name: no-below,    host: "**.secret.example.org"}
    - {name: no-reopened, host: reopened.example.com, expires: 2026-11-22T12:00:00Z}
    - {name: no-range,    cidr: 203.0.113.128/25}
    - {name: no-cloud,    cidr: 198.51.100.0/24, port: 443}
`

// TestDecide: who decides, for each kind of name, and what is said.
func TestDecide(t *testing.T) {
	p := parseT(t, matching)
	for _, c := range []struct {
		host   string
		port   uint16
		rule   string // that decides; empty: none
		reason Reason // empty: allowed
		listed bool
	}{
		// The exact host before wildcards; of equals the first.
		{"api.example.org", 443, "exact", "", true},
		{"API.Example.org.", 443, "exact", "", true},
		// A rule without the port is as if not written: the next one decides.
		{"api.example.org", 80, "one", "", true},
		{"api.example.org", 22, "", NotListed, true},
		// One label, or more; the longest literal part first.
		{"www.example.org", 443, "one", "", true},
		{"a.b.example.org", 443, "deep", "", true},
		{"a.b.example.org", 80, "", NotListed, true},
		{"fr.eu.example.org", 443, "longer", "", true},
		{"eu.example.org", 443, "one", "", true},
		// Never the bare name, never a suffix of characters.
		{"example.org", 443, "", NotListed, false},
		{"evilexample.org", 443, "", NotListed, false},
		{"example.org.evil.example", 443, "", NotListed, false},
		{"org", 443, "", NotListed, false},
		// Ports.
		{"files.example.com", 8000, "range", "", true},
		{"files.example.com", 8100, "range", "", true},
		{"files.example.com", 8101, "", NotListed, true},
		{"files.example.com", 0, "", NotListed, true},
		// Time: a rule ends at the very second. Listed does not look at it.
		{"past.example.com", 443, "", NotListed, true},
		{"future.example.com", 443, "future", "", true},
		// Deny beats all, and only where it applies.
		{"blocked.example.com", 443, "no-blocked", Denied, false},
		{"partly.example.com", 22, "no-port", Denied, true},
		{"partly.example.com", 443, "partly", "", true},
		{"x.secret.example.org", 443, "no-below", Denied, false},
		{"secret.example.org", 443, "one", "", true},
		{"reopened.example.com", 443, "reopened", "", true},
		// What is no name is refused as such.
		{"203.0.113.7", 22, "", BadName, false},
		{"api.example.org:443", 443, "", BadName, false},
		{"*.example.org", 443, "", BadName, false},
		{"", 443, "", BadName, false},
	} {
		v := p.Decide(c.host, c.port, now)
		checkVerdict(t, fmt.Sprintf("%s:%d", c.host, c.port), v, c.rule, c.reason)
		if got := p.Listed(c.host); got != c.listed {
			t.Errorf("Listed(%q) = %v", c.host, got)
		}
	}
}

// TestDecideAddr: an address that a program dials without a name is a matter
// of cidr rules alone.
func TestDecideAddr(t *testing.T) {
	p := parseT(t, matching)
	for _, c := range []struct {
		addr   string
		port   uint16
		rule   string
		reason Reason
	}{
		{"203.0.113.7", 22, "narrow", ""},
		{"::ffff:203.0.113.7", 22, "narrow", ""},
		{"203.0.113.8", 22, "wide", ""},
		{"203.0.113.8", 23, "", DirectAddress},
		{"203.0.114.8", 22, "", DirectAddress},
		{"203.0.113.128", 22, "no-range", Denied},
		{"198.51.100.1", 443, "no-cloud", Denied},
		{"198.51.100.1", 22, "", DirectAddress},
		{"2001:db8::1", 22, "six", ""},
		{"2001:db9::1", 22, "", DirectAddress},
	} {
		v := p.DecideAddr(netip.MustParseAddr(c.addr), c.port, now)
		checkVerdict(t, fmt.Sprintf("%s port %d", c.addr, c.port), v, c.rule, c.reason)
	}
	checkVerdict(t, "no address", p.DecideAddr(netip.Addr{}, 22, now), "", DirectAddress)
}

// TestDeniesAddr: a denied range stays closed, whatever name leads there.
func TestDeniesAddr(t *testing.T) {
	p := parseT(t, matching)
	if r := p.DeniesAddr(netip.MustParseAddr("203.0.113.200"), 443, now); r == nil || r.Name != "no-range" {
		t.Errorf("got %v", r)
	}
	if r := p.DeniesAddr(netip.MustParseAddr("203.0.113.7"), 443, now); r != nil {
		t.Errorf("got %v", r)
	}
}

// TestZeroPolicy: what nobody parsed allows nothing; what is unconfined allows
// everything.
func TestZeroPolicy(t *testing.T) {
	zero, addr := new(Policy), netip.MustParseAddr("203.0.113.7")
	if zero.Decide("github.com", 443, now).Allow || zero.DecideAddr(addr, 443, now).Allow || zero.Listed("github.com") {
		t.Error("the zero policy allows something")
	}
	if zero.DeniesAddr(addr, 443, now) != nil {
		t.Error("the zero policy has a rule")
	}
	un := Unconfined()
	if !un.Decide("github.com", 443, now).Allow || !un.DecideAddr(addr, 443, now).Allow || !un.Listed("github.com") {
		t.Error("the unconfined policy refuses something")
	}
}

// TestEveryPort: only a deny rule for each single port hides a name.
func TestEveryPort(t *testing.T) {
	for _, c := range []struct {
		ports []PortRange
		want  bool
	}{
		{nil, true},
		{[]PortRange{{1, 65535}}, true},
		{[]PortRange{{1000, 65535}, {1, 2000}}, true},
		{[]PortRange{{1000, 65535}, {1, 999}}, true},
		{[]PortRange{{1000, 65535}, {1, 998}}, false},
		{[]PortRange{{1, 65534}}, false},
		{[]PortRange{{2, 65535}}, false},
	} {
		if got := (&Rule{Ports: c.ports}).everyPort(); got != c.want {
			t.Errorf("%v: %v", c.ports, got)
		}
	}
}

// TestRuleText: how rules are named in records, and where they stand.
func TestRuleText(t *testing.T) {
	p := parseT(t, "egress:\n  rules:\n    - {host: '*.Example.org', ports: [443, 8000-8100]}\n    - {cidr: 10.0.0.0/8, port: 22, allow_private: [10.1.0.0/16]}\n  deny:\n    - {host: a.example.org}\n")
	rules := append(p.Egress.Rules, p.Egress.Deny...)
	for i, want := range []string{"*.example.org:443,8000-8100 at policy.yaml:3", "10.0.0.0/8:22 at policy.yaml:4", "a.example.org:* at policy.yaml:6"} {
		if got := rules[i].String() + " at " + p.Where(&rules[i]); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for addr, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.2.3": false, "fd00::1": false} {
		if got := rules[1].Private(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Private(%s) = %v", addr, got)
		}
	}
	built := Default()
	if got := built.Where(&built.Egress.Rules[0]) + p.Where(nil); got != "built-inbuilt-in" {
		t.Errorf("got %q", got)
	}
}

// slowDecide is the matcher that one would write first: try every rule, keep
// the best. The real one must agree with it.
func slowDecide(e *Egress, host string, port uint16, now time.Time) *Rule {
	if r := slowBest(e.Deny, host, port, now); r != nil {
		return r
	}
	return slowBest(e.Rules, host, port, now)
}

func slowBest(rules []Rule, host string, port uint16, now time.Time) *Rule {
	var best *Rule
	bestRank := -1
	for i := range rules {
		r := &rules[i]
		portOK := len(r.Ports) == 0
		for _, pr := range r.Ports {
			portOK = portOK || pr.First <= port && port <= pr.Last
		}
		expired := !r.Expires.IsZero() && !r.Expires.After(now)
		if rank := slowRank(r.Host, host); portOK && !expired && rank > bestRank {
			best, bestRank = r, rank
		}
	}
	return best
}

// slowRank says how well a pattern matches a host; -1: not at all.
func slowRank(pattern, host string) int {
	ps, hs := strings.Split(pattern, "."), strings.Split(host, ".")
	switch ps[0] {
	case "**":
		literal := strings.Join(ps[1:], ".")
		if len(hs) >= len(ps) && strings.HasSuffix(host, "."+literal) {
			return 2 * len(literal)
		}
	case "*":
		literal := strings.Join(ps[1:], ".")
		if len(hs) == len(ps) && strings.HasSuffix(host, "."+literal) {
			return 2*len(literal) + 1
		}
	default:
		if pattern == host {
			return 1000
		}
	}
	return -1
}

// FuzzDecide: the matcher agrees with the slow one on random rules over a
// small set of names, which therefore often collide.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		p := &Policy{Egress: Egress{Rules: randomRules(r, r.IntN(12)), Deny: randomRules(r, r.IntN(3))}}
		p.finish(nil)
		for range 20 {
			host, port := randomName(r), uint16(1+r.IntN(4))
			got, want := p.Decide(host, port, now).Rule, slowDecide(&p.Egress, host, port, now)
			if got != want {
				t.Fatalf("%s:%d\n got %v\nwant %v\nof %v deny %v", host, port, got, want, p.Egress.Rules, p.Egress.Deny)
			}
			if p.Decide(host, port, now).Allow && !p.Listed(host) {
				t.Fatalf("%s:%d is allowed, but not listed", host, port)
			}
		}
	})
}

func randomRules(r *rand.Rand, n int) []Rule {
	rules := make([]Rule, n)
	for i := range rules {
		w := []wildcard{exact, oneLabel, subdomain}[r.IntN(3)]
		rules[i] = Rule{Host: string(w) + randomName(r), Line: i + 1}
		if first := uint16(r.IntN(4)); first > 0 {
			rules[i].Ports = []PortRange{{first, first + uint16(r.IntN(2))}}
		}
		if r.IntN(4) == 0 {
			rules[i].Expires = now.Add(time.Duration(r.IntN(3)-1) * time.Second)
		}
	}
	return rules
}

func randomName(r *rand.Rand) string {
	labels := make([]string, 1+r.IntN(4))
	for i := range labels {
		labels[i] = []string{"a", "b", "ab"}[r.IntN(3)]
	}
	return strings.Join(labels, ".")
}

// BenchmarkDecide shows that the cost does not grow with the rules.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		var rules []Rule
		for i := range n {
			w := []wildcard{exact, oneLabel, subdomain}[i%3]
			rules = append(rules, Rule{Host: fmt.Sprintf("%sh%d.example.org", w, i), Ports: []PortRange{{443, 443}}})
		}
		p := &Policy{Egress: Egress{Rules: rules}}
		p.finish(nil)
		for _, host := range []string{"h3.example.org", "a.b.h5.example.org", "unlisted.example.com"} {
			b.Run(fmt.Sprintf("rules=%d/%s", n, host), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(host, 443, now)
				}
			})
		}
	}
}

func parseT(t *testing.T, src string) *Policy {
	p, err := Parse("etc/policy.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func checkVerdict(t *testing.T, what string, v Verdict, rule string, reason Reason) {
	name := ""
	if v.Rule != nil {
		name = v.Rule.Name
	}
	if v.Allow != (reason == "") || v.Reason != reason || name != rule {
		t.Errorf("%s: got %v %q by %q; want %q by %q", what, v.Allow, v.Reason, name, reason, rule)
	}
}
