package integration

import (
	"fmt"
	"strings"
	"testing"
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
