package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needOwnMachine skips what changes the machine for everybody on it.
func needOwnMachine(t *testing.T) {
	t.Helper()
	if os.Getenv("NEMOCLAW_VM") != "inside" {
		t.Skip("it takes a machine of its own: make test-vm runs this")
	}
}

// jump sets the machine's clock to as much later, until the test ends.
func jump(t *testing.T, by time.Duration) {
	t.Helper()
	set := func(by time.Duration) {
		now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
	}
	set(by)
	t.Cleanup(func() { set(-by) })
}

// What was given for a time lasts as long as it was given for, whatever becomes
// of the clock meanwhile; what is to end at a time ends when the clock says so.
func TestClockIsSet(t *testing.T) {
	needOwnMachine(t)
	for name, by := range map[string]time.Duration{"an hour ahead": time.Hour, "a day back": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) { testClockIsSet(t, by) })
	}
}

func testClockIsSet(t *testing.T, by time.Duration) {
	e := publicEcho(t)
	names := []string{"expires", "ttl", "short", "idle", "rate", "plain"}
	for _, name := range names {
		addr, err := e.ServeTCP(name+".example", 7000, e.echo(name))
		e.must(err)
		e.addr[name] = addr
	}
	at := time.Now().Add(30 * time.Minute).UTC().Format(time.RFC3339)
	rule := func(name, more string) string {
		return fmt.Sprintf("    - {host: %s.example, port: 7000, allow_private: [203.0.113.0/24]%s}\n", name, more)
	}
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), "echo.good.example 7000") + rule("plain", "") + rule("expires", ", expires: "+at) +
		rule("ttl", ", ttl: 30m") + rule("short", ", ttl: 20s") + rule("idle", ", idle_timeout: 10m") + rule("rate", ", rate: 2/h") +
		"  defaults: {on_unlisted: hold, hold: 5m}\n")
	main := b.up()
	is := func(want, name string) { t.Helper(); main.want(want, "dial "+name+".example:7000 hello") }

	for _, name := range names {
		main.want("ok", "open "+name+" "+name+".example:7000")
	}
	is("ok hello", "rate")
	is("ECONNRESET", "rate") // the third
	b.decides("is allowed for 30m", "approve", "--for", "30m", b.id, "public.example:7000")
	main.want("ok", "open public public.example:7000")
	b.decides("is allowed for 5s", "approve", "--for", "5s", b.id, "soon.example:7000")
	main.want("ok", "open waits other.good.example:7000")
	b.await("a connection that waits", func(l line) bool { return l.More.Verdict == "hold" })

	jump(t, by)

	// By the clock: it has passed that time, or has it still before it.
	if by > 0 {
		main.want("ECONNRESET", "hear expires")
		b.await("the end of a rule", func(l line) bool { return l.Dst.Hostname == "expires.example" && l.More.Verdict == "cut" })
	} else {
		main.want("ok", "say expires hello")
		main.want("ok hello", "hear expires")
	}
	// By how long it was given for.
	for _, name := range []string{"ttl", "idle", "plain", "rate", "public"} {
		main.want("ok", "say "+name+" hello")
		main.want("ok hello", "hear "+name)
	}
	for _, name := range []string{"ttl", "idle", "plain", "public"} {
		is("ok hello", name) // its address is asked for again, or remembered
	}
	is("ECONNRESET", "rate")
	b.await("the end of a rule", func(l line) bool { return l.Dst.Hostname == "short.example" && l.More.Verdict == "cut" })
	main.want("ECONNRESET", "hear short")
	waitFor(t, func() bool { return !strings.Contains(b.ctl("grants", b.id).stdout, "soon.example") })
	if got := b.ctl("grants", b.id); !strings.Contains(got.stdout, "public.example") {
		t.Errorf("grants: %s", got)
	}

	// What waits goes on waiting, and is let through.
	if request, waiting := b.request("other.good.example"); waiting != 1 {
		t.Errorf("%d connections wait as %s, want 1", waiting, request)
	}
	b.policy(e.policy(e.Uplink(), "other.good.example 7000"))
	main.want("ECONNRESET", "hear plain") // by the rules that were saved
	main.want("ok", "say waits hello")
	main.want("ok hello", "hear waits")

	// The log goes on, in the order of what happened.
	for _, args := range [][]string{{"audit", "verify", b.auditFile()}, {"status", b.id}, {"log", b.id}, {"list"}, {"pending"}} {
		if got := b.ctl(args...); got.code != 0 {
			t.Errorf("nemoclawctl %s: %s", strings.Join(args, " "), got)
		}
	}
	if got := b.execute(b.id, "/bin/true"); got.code != 0 {
		t.Errorf("exec: %s", got)
	}
	e.explain(b)
}
