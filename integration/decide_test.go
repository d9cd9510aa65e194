package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// decides runs a command of the console that must succeed and say so.
func (b *box) decides(said string, args ...string) {
	b.t.Helper()
	if got := b.ctl(args...); got.code != 0 || !strings.Contains(got.stdout, said) {
		b.t.Fatalf("nemoclawctl %s: %s, want %q", strings.Join(args, " "), got, said)
	}
}

// request is the connection that pending shows for a host.
func (b *box) request(host string) (request string, waiting int) {
	b.t.Helper()
	got := b.ctl("pending", "--json", b.id)
	var list []struct {
		Host, Request string
		Waiting       int
	}
	b.must(json.Unmarshal([]byte(got.stdout), &list))
	for _, p := range list {
		if p.Host == host {
			return p.Request, p.Waiting
		}
	}
	b.t.Fatalf("%s is not pending: %s", host, got.stdout)
	return "", 0
}

// publicEcho is a world whose public.example answers on ports 7000 and 7001 at an
// address that an approval can open.
func publicEcho(t *testing.T) *earth {
	e := newEarth(t)
	e.must(e.HostAt("public.example", public))
	for _, port := range []uint16{7000, 7001} {
		e.must(e.ServeAddr(public, port, e.echo("public.example")))
	}
	return e
}

// An operator's decisions, as a program in a sandbox feels them.
func TestDecisions(t *testing.T) {
	e := publicEcho(t)
	b, main := e.sandbox("echo.good.example 7000")
	const dial, what = "dial public.example:7000 hello", "public.example:7000"
	refused := func() {
		t.Helper()
		main.want("ECONNRESET", dial)
	}
	refused()

	// Once: the next one, and no other.
	b.decides("is allowed once", "approve", "--once", b.id, what)
	main.want("ok hello", dial)
	refused()

	// So many. A worker that dies gives none back.
	b.decides("is allowed 2 times", "approve", "--uses", "2", b.id, what)
	main.want("ok hello", dial)
	kill(t, b.worker())
	main.want("ok hello", dial)
	refused()
	if got := b.ctl("grants", b.id); !strings.Contains(got.stdout, "no more: it is used up") {
		t.Errorf("grants: %s", got)
	}

	// For a time. What is open then is cut.
	b.decides("is allowed for 2s", "approve", "--for", "2s", b.id, what)
	main.want("ok", "open timed "+what)
	main.want("ECONNRESET", "hear timed")
	refused()

	// Until the sandbox ends, or it is taken back.
	b.decides("until the sandbox ends", "approve", b.id, what)
	main.want("ok", "open kept "+what)
	b.decides("1 connections were cut", "revoke", b.id, what)
	main.want("ECONNRESET", "hear kept")
	refused()

	// Never: what a deny rule, the never-list or the check of addresses refuses.
	for host, reason := range map[string]string{"local.example": "forbidden-address", "metadata.example": "forbidden-address", "rebound.example": "private-address"} {
		b.decides(host+":7000", "approve", b.id, host+":7000")
		main.want("ECONNRESET", "dial "+host+":7000")
		b.await(reason, func(l line) bool { return l.Dst.Hostname == host && l.More.Reason == reason })
	}

	// All of it is in the log, with who decided, and the chain holds.
	b.await("the revocation", func(l line) bool { return l.More.Kind == "decision" && strings.HasPrefix(l.Message, "revoke "+what) })
	b.decides("as they were written", "audit", "verify", b.auditFile())
	e.explain(b)
}

// A denial for good is in the file, and cuts what is open.
func TestDenyPermanently(t *testing.T) {
	e := publicEcho(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), "public.example 7000", "echo.good.example 7000"))
	main := b.up()
	for _, name := range []string{"public", "echo.good"} {
		main.want("ok", "open "+name+" "+name+".example:7000")
		main.want("ok", "say "+name+" hello")
	}
	if got := b.ctl("deny", "--permanent", b.id, "public.example:7000"); got.code != 0 || !strings.Contains(got.stdout, "a deny rule for public.example:7000 was added") {
		t.Fatalf("deny: %s", got)
	}
	b.await("the end of what was open", func(l line) bool {
		return l.More.Verdict == "cut" && l.More.Reason == "revoked" && l.Dst.Hostname == "public.example"
	})
	main.want("ECONNRESET", "dial public.example:7000 hello")
	main.want("ok", "say echo.good still")
	if got := b.ctl("approve", b.id, "public.example:7000"); !strings.Contains(got.stdout, "a deny rule beats every approval") {
		t.Errorf("approve: %s", got)
	}
	main.want("ECONNRESET", "dial public.example:7000 hello")
	b.await("who decided", func(l line) bool {
		return l.More.Kind == "decision" && strings.HasPrefix(l.Message, "permanent-deny public.example:7000")
	})
}

// Whoever goes away while his connection waits, makes room at once and is shown so.
func TestHoldCancelled(t *testing.T) {
	e := publicEcho(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), "echo.good.example 7000") + "  defaults: {on_unlisted: hold, hold: 5m}\n")
	main := b.up()
	second := b.exec()
	for _, k := range []*talk{main, second} {
		k.want("ok", "open live public.example:7000")
		b.await("a connection that waits", func(l line) bool { return l.More.Verdict == "hold" })
	}
	second.want("ok", "say live hello")
	waitFor(t, func() bool { _, waiting := b.request("public.example"); return waiting == 2 })
	second.end() // the process ends, and its socket with it
	b.await("its end", func(l line) bool { return l.More.Verdict == "refuse" && l.More.Reason == "cancelled" })
	if _, waiting := b.request("public.example"); waiting != 1 {
		t.Errorf("%d connections wait, want 1", waiting)
	}
	b.decides("is allowed until the sandbox ends", "approve", b.id, "public.example:7000") // the other has waited all the time
	main.want("ok", "say live hello")

	third := b.exec()
	third.want("ok", "open live other.example:7000")
	b.await("a connection that waits", func(l line) bool { return l.More.Verdict == "hold" && l.Dst.Hostname == "other.example" })
	third.end()
	b.await("its end", func(l line) bool { return l.More.Reason == "cancelled" && l.Dst.Hostname == "other.example" })
	if got := b.ctl("pending"); !strings.Contains(got.stdout, "cancelled") {
		t.Errorf("pending does not say that it was cancelled: %s", got)
	}
}

// With on_unlisted: hold, a program waits for the operator and is never told no
// if he says yes.
func TestHold(t *testing.T) {
	e := publicEcho(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), "echo.good.example 7000") + "  defaults: {on_unlisted: hold, hold: 1m}\n")
	main := b.up()
	second := b.exec()
	const dial, what = "dial public.example:7000 hello", "public.example:7000"
	holds := func(n int) line {
		t.Helper()
		seen := 0
		return b.await("a connection that waits", func(l line) bool {
			if l.More.Verdict == "hold" {
				seen++
			}
			return seen == n
		})
	}
	main.send(dial)
	holds(1)
	second.send(dial)
	holds(2)
	request, waiting := b.request("public.example")
	if waiting != 2 {
		t.Errorf("%d connections wait, want 2", waiting)
	}

	// The one that was shown, and it alone: it is the second's.
	b.decides("is allowed once, for request "+request, "approve", "--once", b.id, request)
	if got := second.answer(); got != "ok hello" {
		t.Errorf("the one that was approved: %s", got)
	}
	b.decides("is denied", "deny", b.id, what)
	if got := main.answer(); !strings.HasPrefix(got, "ECONNRESET") {
		t.Errorf("the one that was denied: %s", got)
	}

	// A rule that is saved lets those that wait through as well.
	b.decides("is no longer decided", "revoke", b.id, what)
	main.send(dial)
	holds(3)
	b.policy(e.policy(e.Uplink(), "public.example 7000"))
	if got := main.answer(); got != "ok hello" {
		t.Errorf("after a rule for it was saved: %s", got)
	}
	e.explain(b)
}

// A rule with binaries is for those programs alone, whatever they are called by.
func TestBinaries(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	only := func(binary string) {
		t.Helper()
		b.policy(e.policy(e.Uplink(), "other.good.example 7000") +
			"    - {host: echo.good.example, port: 7000, allow_private: [203.0.113.0/24], binaries: [" + binary + "]}\n")
	}
	only("/bin/probe")
	probe, err := os.ReadFile(filepath.Join(b.rootfs(), "bin/probe"))
	b.must(err)
	b.must(os.WriteFile(filepath.Join(b.rootfs(), "bin/other"), probe, 0o755))
	b.must(os.Symlink("probe", filepath.Join(b.rootfs(), "bin/alias")))
	main := b.up()
	main.want("ok hello", "dial echo.good.example:7000 hello")
	for program, want := range map[string]string{"/bin/probe": "ok hello", "/bin/alias": "ok hello", "/bin/other": "ECONNRESET"} {
		if got := b.execute(b.id, program, "dial", "echo.good.example:7000", "hello"); !strings.HasPrefix(got.stdout, want) {
			t.Errorf("%s: %s, want %s", program, got, want)
		}
	}
	b.await("the refusal", func(l line) bool { return l.More.Reason == "wrong-program" })

	// A reload that names another program cuts the connections of this one.
	main.want("ok", "open kept echo.good.example:7000")
	only("/bin/other")
	main.want("ECONNRESET", "hear kept")
	e.explain(b)
}

// enforce: audit lets pass what it records as refused, and policy test then says
// what a policy would have made of that day.
func TestEnforceAudit(t *testing.T) {
	e := publicEcho(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), "echo.good.example 7000") + "  enforce: audit\n  deny: [{host: echo.evil.example}]\n")
	main := b.up()
	main.want("ok hello", "dial echo.good.example:7000 hello")
	main.want("ok hello", "dial public.example:7000 hello")
	main.want("ECONNRESET", "dial echo.evil.example:7000 hello")
	main.want("ECONNRESET", "dial metadata.example:80 hello")
	b.await("what would be refused", func(l line) bool {
		return l.More.Verdict == "allow" && l.More.Would == "not-listed" && l.Dst.Hostname == "public.example"
	})
	if request, _ := b.request("public.example"); request == "" {
		t.Error("what would be refused is not pending")
	}
	b.write("strict.yaml", "egress: {rules: [{host: echo.evil.example, port: 7000}]}\n")
	if got := b.ctl("policy", "test", b.path("strict.yaml"), b.auditFile()); got.code != 1 || !strings.Contains(got.stdout, "echo.good.example:7000") {
		t.Errorf("a policy without what was allowed: %s", got)
	}
	b.write("wide.yaml", "egress: {rules: [{host: echo.good.example, port: 7000}, {host: public.example, port: 7000}]}\n")
	if got := b.ctl("policy", "test", b.path("wide.yaml"), b.auditFile()); got.code != 0 || !strings.Contains(got.stdout, "1 refused that would be allowed") {
		t.Errorf("a policy with it: %s", got)
	}
	e.explain(b)
}

// reloads is how many saves a sandbox goes through under load; NEMOCLAW_RELOADS
// asks for more.
func reloads(t *testing.T) int {
	text := os.Getenv("NEMOCLAW_RELOADS")
	if text == "" {
		return 40
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Save after save, no connection that is allowed by what was and by what comes
// is refused or cut, and each save is in force before the next.
func TestReloadsLoseNothing(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	main.want("ok", "open kept echo.good.example:7000")
	// By its address: a name server answers so many questions a second.
	addr := strings.TrimPrefix(main.ask("resolve echo.good.example"), "ok ")
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 3 {
		k := b.exec()
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := k.ask("dial " + addr + ":7000 hello"); got != "ok hello" {
					t.Errorf("connection %d under reloads: %s", n, got)
					return
				}
			}
		})
	}
	before := b.status().Generation
	for i := range reloads(t) {
		b.policy(e.policy(e.Uplink(), append(allowed, fmt.Sprintf("h%d.example 443", i))...))
		b.ctl("reload", b.id) // or it was quicker itself
		if got := b.status().Generation; got != before+i+1 {
			t.Errorf("save %d is generation %d, want %d", i, got, before+i+1)
			break
		}
	}
	close(stop)
	load.Wait()
	main.want("ok", "say kept still")
	main.want("ok still", "hear kept")
}
