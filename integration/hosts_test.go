package integration

import (
	"fmt"
	"strings"
	"testing"

	"nemoclaw/integration/world"
)

// A name of the hosts file that the engine made is a name for rules, though the
// program looks it up itself and dials the address; one that a program could
// have written is not.
func TestHostsFile(t *testing.T) {
	e := newEarth(t)
	for _, c := range []struct {
		name, options string
		echo, evil    string
	}{
		{"the engine's", "ro", "ok hello", "ECONNRESET"},
		{"writable from inside", "rw", "ECONNRESET", "ECONNRESET"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			b.policy(e.policy(e.Uplink(), "model.internal 7000", "elsewhere.internal 7000"))
			at := func(name string) string { return e.addr[name].String() }
			b.write("hosts", fmt.Sprintf("127.0.0.1 localhost\n%s other.internal model.internal\n%s unlisted.internal\n10.77.0.1 elsewhere.internal\n", at("echo.good.example"), at("echo.evil.example")))
			b.volume(b.path("hosts"), "/etc/hosts", "bind", c.options)
			main := b.up()
			for _, k := range []*talk{main, b.exec()} {
				k.want(c.echo, "dial model.internal:7000 hello")
				k.want(c.echo, "dial "+at("echo.good.example")+":7000 hello")
				k.want(c.evil, "dial unlisted.internal:7000 hello")
				k.want("ECONNRESET", "dial "+at("echo.good.example")+":7001 hello")
				k.want("ECONNRESET", "dial elsewhere.internal:7000 hello") // a private address, and the rule names others
			}
			if c.options != "ro" {
				return
			}
			b.await("the name", func(l line) bool { return l.More.Verdict == "allow" && l.Dst.Hostname == "model.internal" })
			b.await("the name of what is not listed", func(l line) bool { return l.More.Reason == "not-listed" && l.Dst.Hostname == "unlisted.internal" })
			b.await("the private address", func(l line) bool {
				return l.More.Reason == "private-address" && strings.HasPrefix(l.Dst.Hostname, "elsewhere.")
			})
		})
	}
}

// Kubernetes' search domains with ndots:5 make programs complete every name
// first: completions that no rule names do not exist, so that they come to the
// name itself, and one that a rule names is reached by its short name. Nobody is
// asked for anything else, and a line that names no server spoils nothing.
func TestSearchDomains(t *testing.T) {
	e := newEarth(t)
	const db = "db.ns.svc.cluster.local"
	var err error
	e.addr[db], err = e.ServeTCP(db, 7000, e.echo(db))
	e.must(err)
	b := newBox(t)
	b.policy(strings.Replace(e.policy(e.Uplink(), "echo.good.example 7000", db+" 7000"), "dns: ["+world.Nameserver.String()+"]", "dns: []", 1))
	b.write("resolv.conf", fmt.Sprintf("nameserver dns.example\nnameserver %s\nsearch ns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", world.Nameserver))
	b.volume(b.path("resolv.conf"), "/etc/resolv.conf", "bind", "ro")
	main := b.up()
	for _, k := range []*talk{main, b.exec()} {
		k.want("ok hello", "dial echo.good.example:7000 hello")
		k.want("ok hello", "dial db:7000 hello")
		k.want("ok hello", "dial "+db+":7000 hello")
		k.want("ECONNRESET", "dial echo.evil.example:7000 hello")
	}
	b.await("a completion", func(l line) bool {
		return l.More.Reason == "search-domain" && l.Dst.Hostname == "echo.good.example.svc.cluster.local"
	})
	for _, q := range e.Questions() {
		if q != "echo.good.example" && q != db {
			t.Errorf("the name server was asked for %s", q)
		}
	}
}
