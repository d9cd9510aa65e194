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
		v := p.Decide(c.host, c.port, Owner{}, now)
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
		v := p.DecideAddr(netip.MustParseAddr(c.addr), c.port, Owner{}, now)
		checkVerdict(t, fmt.Sprintf("%s port %d", c.addr, c.port), v, c.rule, c.reason)
	}
	checkVerdict(t, "no address", p.DecideAddr(netip.Addr{}, 22, Owner{}, now), "", DirectAddress)
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

const choosing = `
egress:
  rules:
    - {name: git,       host: git.example.org, port: 443, binaries: [/usr/bin/git, /usr/lib/git-core/**]}
    - {name: any,       host: "*.example.org", port: 443, binaries: [/opt/*/bin/py*]}
    - {name: firm,      host: firm.example.com, port: 443}
    - {name: tried,     host: "*.example.com", port: 443, enforce: audit}
    - {name: soon-gone, host: ttl.example.net, port: 443, ttl: 1h}
    - {name: narrow,    cidr: 203.0.113.0/24, port: 22, binaries: [/usr/bin/ssh]}
  deny:
    - {name: no,        host: never.example.com}
    - {name: perhaps,   host: firm.example.com, enforce: audit}
`

// TestConditions: for whom a rule counts, and what is only tried out.
func TestConditions(t *testing.T) {
	p := parseT(t, choosing)
	p.Begin(now, nil)
	for _, c := range []struct {
		exe, host string
		rule      string
		reason    Reason // empty: allowed
		would     Reason
		asks      bool
	}{
		{"/usr/bin/git", "git.example.org", "git", "", "", false},
		{"/usr/lib/git-core/git-remote-http", "git.example.org", "git", "", "", false},
		{"/usr/lib/git-core/a/b", "git.example.org", "git", "", "", false},
		{"/usr/lib/git-core", "git.example.org", "", WrongProgram, "", false},
		// A rule for others is as if not written: the next one decides.
		{"/opt/conda/bin/python3", "git.example.org", "any", "", "", false},
		{"/opt/a/b/bin/python3", "git.example.org", "", WrongProgram, "", false},
		// What was removed or lies in memory is no program of the image.
		{"/usr/bin/git (deleted)", "git.example.org", "", WrongProgram, "", false},
		{"/usr/lib/git-core/git (deleted)", "git.example.org", "", WrongProgram, "", false},
		{"/memfd:git (deleted)", "git.example.org", "", WrongProgram, "", false},
		{"git", "git.example.org", "", WrongProgram, "", false},
		// An unknown owner satisfies no such rule, and is worth asking for.
		{"", "git.example.org", "", WrongProgram, "", true},
		{"", "firm.example.com", "firm", "", Denied, false},
		// Tried out: it passes, and what would have been said is told.
		{"", "x.example.com", "tried", "", NotListed, false},
		{"", "never.example.com", "no", Denied, "", false},
		{"", "ttl.example.net", "soon-gone", "", "", false},
		{"/usr/bin/ssh", "203.0.113.9", "narrow", "", "", false},
		{"/usr/bin/nc", "203.0.113.9", "", WrongProgram, "", false},
	} {
		var v Verdict
		if addr, err := netip.ParseAddr(c.host); err == nil {
			v = p.DecideAddr(addr, 22, Owner{c.exe}, now)
		} else {
			v = p.Decide(c.host, 443, Owner{c.exe}, now)
		}
		checkVerdict(t, c.host+" by "+c.exe, v, c.rule, c.reason)
		if v.Would != c.would || v.Asks != c.asks {
			t.Errorf("%s by %q: would %q, asks %v; want %q, %v", c.host, c.exe, v.Would, v.Asks, c.would, c.asks)
		}
	}
}

// TestTimeToLive: a ttl counts from Begin, less the rule's age, and not at all
// before it.
func TestTimeToLive(t *testing.T) {
	p := parseT(t, choosing)
	allowed := func(at time.Duration) bool { return p.Decide("ttl.example.net", 443, Owner{}, now.Add(at)).Allow }
	if allowed(0) {
		t.Error("a rule whose time nobody counts allows")
	}
	p.Begin(now, nil)
	if !allowed(time.Hour-1) || allowed(time.Hour) {
		t.Error("a ttl of 1h does not end after an hour")
	}
	p.Begin(now, func(*Rule) time.Duration { return 40 * time.Minute })
	if !allowed(20*time.Minute-1) || allowed(20*time.Minute) {
		t.Error("a rule that is 40 minutes old does not end 20 minutes later")
	}
}

// TestAuditOnly: with "enforce: audit" for all of egress what is not listed
// passes and is told; what is denied, is denied.
func TestAuditOnly(t *testing.T) {
	p := parseT(t, "egress:\n  enforce: audit\n  rules:\n    - {name: a, host: a.example.org, port: 443}\n  deny:\n    - {name: b, host: b.example.org}\n")
	for _, c := range []struct {
		host          string
		rule          string
		reason, would Reason
	}{
		{"a.example.org", "a", "", ""},
		{"b.example.org", "b", Denied, ""},
		{"c.example.org", "", "", NotListed},
		{"not a name", "", BadName, ""},
	} {
		v := p.Decide(c.host, 443, Owner{}, now)
		checkVerdict(t, c.host, v, c.rule, c.reason)
		if v.Would != c.would {
			t.Errorf("%s: would %q, want %q", c.host, v.Would, c.would)
		}
	}
	if v := p.DecideAddr(netip.MustParseAddr("192.0.2.1"), 22, Owner{}, now); !v.Allow || v.Would != DirectAddress {
		t.Errorf("an address: %+v", v)
	}
}

// TestDecideDNS: which questions besides those for addresses may be asked.
func TestDecideDNS(t *testing.T) {
	p := parseT(t, "egress:\n  rules:\n    - {name: a, host: a.example.org, port: 443, dns: [TXT, SRV]}\n    - {name: b, host: a.example.org, port: 25, dns: [MX]}\n    - {host: \"*.example.org\", port: 443}\n    - {host: c.example.net, port: 443, dns: [TXT]}\n    - {host: d.example.net, port: 443, dns: [TXT], binaries: [/bin/dig]}\n    - {name: e, host: e.example.net, port: 443, dns: [TXT], enforce: audit}\n  deny:\n    - {name: c, host: c.example.net}\n")
	for _, c := range []struct {
		host, qtype, rule string
		reason            Reason
	}{
		{"A.example.org.", "TXT", "a", ""},
		{"a.example.org", "MX", "b", ""},
		{"a.example.org", "NS", "", UnsupportedType},
		{"b.example.org", "TXT", "", UnsupportedType},
		{"example.net", "TXT", "", NotListed},
		{"c.example.net", "TXT", "c", Denied},
		{"d.example.net", "TXT", "", UnsupportedType}, // anybody could have asked
		{"192.0.2.1", "TXT", "", BadName},
	} {
		checkVerdict(t, c.host+" "+c.qtype, p.DecideDNS(c.host, c.qtype, now), c.rule, c.reason)
	}
	if v := p.DecideDNS("e.example.net", "TXT", now); !v.Allow || v.Would != UnsupportedType {
		t.Errorf("a rule that is tried out: %+v", v)
	}
}

// TestZeroPolicy: what nobody parsed allows nothing; what is unconfined allows
// everything.
func TestZeroPolicy(t *testing.T) {
	zero, addr := new(Policy), netip.MustParseAddr("203.0.113.7")
	if zero.Decide("github.com", 443, Owner{}, now).Allow || zero.DecideAddr(addr, 443, Owner{}, now).Allow || zero.Listed("github.com") {
		t.Error("the zero policy allows something")
	}
	if zero.DeniesAddr(addr, 443, now) != nil {
		t.Error("the zero policy has a rule")
	}
	un := Unconfined()
	if !un.Decide("github.com", 443, Owner{}, now).Allow || !un.DecideAddr(addr, 443, Owner{}, now).Allow || !un.Listed("github.com") {
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
// the best. The real one must agree with it in all that it says.
func slowDecide(e *Egress, host string, port uint16, by Owner, now time.Time) Verdict {
	deny := func(audit bool) *Rule {
		return slowBest(e.Deny, host, port, now, func(r *Rule) bool { return r.Audit == audit })
	}
	mine := func(r *Rule) bool {
		for _, b := range r.Binaries {
			if b == by.Exe || b == "/bin/*" && strings.HasPrefix(by.Exe, "/bin/") {
				return true
			}
		}
		return len(r.Binaries) == 0
	}
	if r := deny(false); r != nil {
		return Verdict{Reason: Denied, Rule: r}
	}
	firm := slowBest(e.Rules, host, port, now, func(r *Rule) bool { return !r.Audit && mine(r) })
	tried := slowBest(e.Rules, host, port, now, func(r *Rule) bool { return r.Audit && mine(r) })
	foreign := func(audit bool) bool { // a rule for other programs stands before what decides
		best := slowBest(e.Rules, host, port, now, func(r *Rule) bool { return r.Audit == audit })
		return best != nil && !mine(best)
	}
	why := NotListed
	if slowBest(e.Rules, host, port, now, func(r *Rule) bool { return !r.Audit && !mine(r) }) != nil {
		why = WrongProgram
	}
	var v Verdict
	switch {
	case firm != nil:
		v = Verdict{Allow: true, Rule: firm}
	case tried != nil:
		v = Verdict{Allow: true, Rule: tried, Would: why}
	case e.Audit:
		v = Verdict{Allow: true, Would: why}
	default:
		v = Verdict{Reason: why}
	}
	if v.Allow && deny(true) != nil && (firm != nil || tried != nil) {
		v.Would = Denied
	}
	v.Asks = by == Owner{} && (foreign(false) || firm == nil && foreign(true))
	return v
}

func slowBest(rules []Rule, host string, port uint16, now time.Time, counts func(*Rule) bool) *Rule {
	var best *Rule
	bestRank := -1
	for i := range rules {
		r := &rules[i]
		portOK := len(r.Ports) == 0
		for _, pr := range r.Ports {
			portOK = portOK || pr.First <= port && port <= pr.Last
		}
		expired := !r.Expires.IsZero() && !r.Expires.After(now) || r.TTL > 0 && !r.ends.After(now)
		if rank := slowRank(r.Host, host); portOK && !expired && counts(r) && rank > bestRank {
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
		p.Egress.Audit = r.IntN(4) == 0
		p.finish(nil)
		for range 20 {
			host, port := randomName(r), uint16(1+r.IntN(4))
			by := Owner{Exe: []string{"", "/bin/a", "/bin/b", "/usr/bin/a"}[r.IntN(4)]}
			got, want := p.Decide(host, port, by, now), slowDecide(&p.Egress, host, port, by, now)
			if got != want {
				t.Fatalf("%s:%d by %q\n got %+v\nwant %+v\nof %+v\ndeny %+v", host, port, by.Exe, got, want, p.Egress.Rules, p.Egress.Deny)
			}
			if got.Allow && got.Rule != nil && !p.Listed(host) {
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
		} else if r.IntN(4) == 0 {
			rules[i].TTL, rules[i].ends = time.Hour, now.Add(time.Duration(r.IntN(3)-1)*time.Second)
		}
		rules[i].Audit = r.IntN(4) == 0
		switch r.IntN(6) {
		case 0:
			rules[i].Binaries = []string{"/bin/a"}
		case 1:
			rules[i].Binaries = []string{"/usr/bin/a", "/bin/*"}
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

// manyRules is a policy that allows n hosts and n networks, and denies as many.
func manyRules(n int) *Policy {
	var allow, deny []Rule
	for i := range n {
		w := []wildcard{exact, oneLabel, subdomain}[i%3]
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24)
		allow = append(allow, Rule{Host: fmt.Sprintf("%sh%d.example.org", w, i), Ports: []PortRange{{443, 443}}}, Rule{CIDR: network, Ports: []PortRange{{443, 443}}})
		network = netip.PrefixFrom(netip.AddrFrom4([4]byte{12, byte(i >> 8), byte(i), 0}), 24)
		deny = append(deny, Rule{Host: fmt.Sprintf("%sd%d.example.org", w, i)}, Rule{CIDR: network})
	}
	p := &Policy{Egress: Egress{Rules: allow, Deny: deny}}
	p.finish(nil)
	return p
}

// However many rules there are, a decision looks at those that could match.
func TestDecideLooksAtFewRules(t *testing.T) {
	for _, what := range []string{"h3.example.org", "a.b.h5.example.org", "x.d4.example.org", "unlisted.example.com", "11.0.3.1", "12.0.3.1", "13.0.0.1"} {
		var looked [2]int
		var said [2]string
		for i, n := range []int{10, 10_000} {
			p := manyRules(n)
			v := p.match.decide(query{port: 443, now: now, unlisted: NotListed, find: func(t *table, wanted func(*Rule) bool) *Rule {
				count := func(r *Rule) bool {
					looked[i]++
					return wanted(r)
				}
				if addr, err := netip.ParseAddr(what); err == nil {
					return t.findAddr(addr, count)
				}
				return t.find(what, count)
			}})
			said[i] = fmt.Sprint(v.Allow, v.Reason)
		}
		if looked[1] > looked[0] || said[0] != said[1] {
			t.Errorf("%s: %s after a look at %d of ten rules, %s at %d of ten thousand", what, said[0], looked[0], said[1], looked[1])
		}
	}
}

// BenchmarkDecide shows that the cost does not grow with the rules.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		p := manyRules(n)
		for _, host := range []string{"h3.example.org", "a.b.h5.example.org", "unlisted.example.com"} {
			b.Run(fmt.Sprintf("rules=%d/%s", n, host), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(host, 443, Owner{}, now)
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
