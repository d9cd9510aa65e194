package integration

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// A program tries what the network stack lets it: every address of the sandbox
// is local, so it may take any; it may ask for routes, groups, fragments and
// other protocols. Nothing leaves, and nothing comes between it and the gateway.
func TestNetAttackFence(t *testing.T) {
	for _, uplink := range []string{"path", "auto"} {
		t.Run(uplink, func(t *testing.T) { testFence(t, uplink) })
	}
}

func testFence(t *testing.T, uplink string) {
	e := newEarth(t)
	b := newBox(t)
	if uplink == "path" {
		b.policy(e.policy(e.Uplink(), allowed...))
	} else {
		b.policy(e.policy(uplink, allowed...))
	}
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
	main.want("ok hello", "dial echo.good.example:7000 hello") // positive controls
	main.want("ok", "bind tcp4 0.0.0.0:8080")
	main.want("ok", "bind udp4 0.0.0.0:8080")
	evil := e.addr["echo.evil.example"].String()
	for _, tc := range []struct{ name, verb, want string }{
		{"the listener's address", "bind tcp4 198.18.0.1:15001", "EADDRINUSE"},
		{"the listener's port everywhere", "bind tcp4 0.0.0.0:15001", "EADDRINUSE"},
		{"the nameserver's address", "bind udp4 198.18.0.1:53", "EADDRINUSE"},
		{"the nameserver's port everywhere", "bind udp4 0.0.0.0:53", "EADDRINUSE"},
		{"the nameserver's stream", "bind tcp4 198.18.0.1:53", "EADDRINUSE"},
		{"a forbidden host's address", "hijack " + evil + ":7000 " + evil + ":7000", "ECONNRESET"},
		{"an allowed host's address", "hijack 198.19.0.0:7000 echo.good.example:7000 hello", "ok hello"},
		{"to be transparent", "option 0 19 1", "EPERM"},
		{"the gateway's mark", "option 1 36 0x6e63", "EPERM"},
		{"a forged source", "dial-from 203.0.113.9 " + evil + ":7000", "ECONNREFUSED"},
		{"a loose source route", "routed " + evil + ":7000 830704cb00710100", ""},
		{"a strict source route", "routed " + evil + ":7000 890704cb00710100", ""},
		{"fragments", "big " + evil + ":7000 5000", "ECONNREFUSED"},
		{"fragments to a name server", "big 203.0.113.53:53 5000", ""},
		{"a group on lo", "group lo 224.0.0.251", ""},
		{"UDP-Lite", "socket 2 2 136", "EPROTONOSUPPORT"},
		{"SCTP", "sctp " + evil + " 7000", "EPROTONOSUPPORT"},
		{"SCTP by its type", "socket 2 5 0", "ESOCKTNOSUPPORT"},
		{"MPTCP", "socket 2 1 262", "EPROTONOSUPPORT"},
		{"MPTCP, as Go falls back from it", "dial-mptcp " + evil + ":7000", "ECONNRESET"},
		{"data with the SYN", "dial-fast " + evil + ":7000", ""},
		{"the steering port", "dial 198.18.0.1:15001", "ECONNRESET"},
		{"the steering port over loopback", "dial 127.0.0.1:15001", "ECONNREFUSED"},
		{"an address that stands for nothing", "dial 198.19.255.255:7000", "ECONNRESET"},
		{"an address of the gateway's", "dial 198.18.0.2:7000", "ECONNREFUSED"},
		{"an address mapped into IPv6", "dial [::ffff:" + evil + "]:7000", "ECONNRESET"},
		{"an address behind a translator", "dial [64:ff9b::" + evil + "]:7000", "ECONNRESET"},
		// The stand-in of the engine's cable, where there is one, passes replies.
		{"who calls in, over UDP", "big 169.254.77.1:7000 100", ""},
		{"who calls in", "dial 169.254.77.1:7000", ""},
		{"who calls in, by the stand-in", "dial-over eth0 169.254.77.1:7000", ""},
		{"who calls in, over IPv6", "dial [fd6e:656d:6f:1::1]:7000", ""},
		{"a group on the stand-in", "group eth0 224.0.0.251", ""},
		{"the router on the stand-in", "dial-over eth0 203.0.113.1:7000", ""},
		{"its own address", "dial 203.0.113.2:7000", ""},
		{"a group over TCP", "dial 224.0.0.1:7000", ""},
		{"broadcast", "big 255.255.255.255:7000 100", ""}, // the kernel answers no broadcast
	} {
		got := main.ask(tc.verb)
		if tc.want != "" && !strings.HasPrefix(got, tc.want) || tc.want == "" && strings.HasPrefix(got, "ok hello") || strings.Contains(got, "hijacked") || got == "TIMEOUT" && !strings.HasPrefix(tc.verb, "big") {
			t.Errorf("%s: %s: %s, want %q", tc.name, tc.verb, got, tc.want)
		}
	}
	main.want("ok hello", "dial echo.good.example:7000 hello")
	e.explain(b)
	for _, name := range e.serving() {
		if name != "echo.good.example" {
			t.Errorf("%s was reached", name)
		}
	}
}

// serving are the servers that were reached so far.
func (e *earth) serving() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.served)
}

// opened are the TCP connections and DNS questions that came from the uplink,
// counted by where they went; several tries of one count as one.
func (e *earth) opened() map[netip.AddrPort]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen, count := map[string]bool{}, map[netip.AddrPort]int{}
	for _, p := range e.packets {
		if len(p) < 34 || p[0]>>4 != 4 {
			continue
		}
		h := int(p[0]&15) * 4
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), binary.BigEndian.Uint16(p[h+2:]))
		if p[9] == unix.IPPROTO_TCP && p[h+13]&0x12 != 2 {
			continue // no SYN: what goes on was begun
		}
		key := fmt.Sprint(p[9], to, binary.BigEndian.Uint16(p[h:]))
		if !seen[key] {
			seen[key] = true
			count[to]++
		}
	}
	return count
}

// Law 4 and law 7 while things break: the gateway's processes are killed at any
// moment of a storm of connections. Each connection that left was written down
// before, and none goes anywhere but to the hosts of the policy.
func TestNetAttackWhileTheGatewayDies(t *testing.T) {
	e := newEarth(t)
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("NEMOCLAW_ROUNDS")); err == nil {
		rounds = n
	}
	evil := e.addr["echo.evil.example"].String()
	victims := []string{"worker", "monitor", "both"}
	written, heard := 0, 0
	for i := range rounds {
		victim := victims[i%len(victims)]
		b := newBox(t)
		b.policy(e.policy(e.Uplink(), allowed...))
		main := b.up()
		monitor, worker := b.monitor(), b.worker()
		main.send("storm 8 echo.good.example:7000 echo.good.example:7000 echo.good.example:7000 echo.evil.example:7000 " + evil + ":7000 10.77.0.1:7000")
		// Somewhere in the storm: when so many of its connections have arrived.
		at := heard + rand.IntN(16)
		waitFor(t, func() bool { return len(e.serving()) >= at })
		switch victim {
		case "worker":
			kill(t, worker)
		case "monitor":
			kill(t, monitor)
		case "both":
			kill(t, monitor, worker)
		}
		if got := main.answer(); !strings.HasPrefix(got, "ok ") {
			t.Fatalf("round %d: %s", i, got)
		}
		if victim == "worker" {
			main.want("ok hello", "dial echo.good.example:7000 hello") // the next one decides
		} else {
			for _, to := range []string{"echo.good.example:7000", "203.0.113.53:53", evil + ":7000"} {
				if got := main.ask("dial " + to); isOK(got) {
					t.Errorf("round %d: without a gateway %s answers %s", i, to, got)
				}
			}
		}
		for _, l := range b.audit() {
			if l.More.Verdict == "allow" {
				if l.Dst.Hostname != "echo.good.example" {
					t.Errorf("round %d: %+v was allowed", i, l)
				}
				written++
			}
		}
		heard = len(e.serving())
		if got := e.opened()[netip.AddrPortFrom(e.addr["echo.good.example"], 7000)]; got > written {
			t.Errorf("round %d (%s dies): %d connections left, and %d were written down", i, victim, got, written)
		}
		if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
			t.Errorf("round %d: delete: %s", i, got)
		}
	}
	for to, n := range e.opened() {
		if to.Addr() != world.Nameserver && to.Addr() != e.addr["echo.good.example"] {
			t.Errorf("%d connections or datagrams went to %s", n, to)
		}
	}
	for _, q := range e.Questions() {
		if q != "echo.good.example" {
			t.Errorf("the question for %s left", q)
		}
	}
	if heard == 0 {
		t.Error("nothing ever arrived: the storm proves nothing")
	}
}

// A gateway that dies between create and start is another one by then, and
// without any there is no start.
func TestNetAttackBeforeTheStart(t *testing.T) {
	e := newEarth(t)
	for _, tc := range []struct {
		dies   string
		starts bool
	}{{"worker", true}, {"monitor", true}, {"both, for good", false}} {
		t.Run(tc.dies, func(t *testing.T) {
			b := newBox(t)
			b.policy(e.policy(e.Uplink(), allowed...))
			main, created := b.create()
			if created.code != 0 {
				t.Fatalf("create: %s", created)
			}
			switch tc.dies {
			case "worker":
				kill(t, b.worker())
			case "monitor":
				kill(t, b.monitor())
			default:
				b.loseGateway()
			}
			started := b.start()
			if (started.code == 0) != tc.starts {
				t.Errorf("start: %s", started)
			}
			if tc.starts {
				main.want("ok hello", "dial echo.good.example:7000 hello")
				return
			}
			if got := b.nemoclaw(nil, "kill", b.id, "KILL"); got.code != 0 {
				t.Errorf("kill: %s", got)
			}
			if !main.silent() {
				t.Error("the program ran")
			}
		})
	}
}

func isOK(answer string) bool { return strings.HasPrefix(answer, "ok") }

// waitFor polls what only another process changes.
func waitFor(t *testing.T, what func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !what(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it never comes to that")
		}
	}
}

// A program hoards connections of the costliest kind, unfinished ClientHellos
// of 60 KiB. The gateway stays within bounds, says no to the rest, and serves
// again once they are let go.
func TestNetAttackHoarding(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.spec.Process.Rlimits = nil
	b.policy(e.policy(e.Uplink(), allowed...))
	main := b.up()
	main.want("ok hello", "dial echo.good.example:7000 hello")
	got := main.ask("hoard a 400 api.good.example:443 60000")
	if !isOK(got) {
		t.Fatalf("hoard: %s", got)
	}
	main.want("ok hello", "dial echo.good.example:7000 hello") // there is room beside them
	main.want("ok", "hoard b 1100 api.good.example:443 8")
	if st := b.status(); st.Open != 0 {
		t.Errorf("%d connections are open that never said where to", st.Open)
	}
	if got := main.ask("dial echo.good.example:7000"); isOK(got) {
		t.Errorf("more than 1024 connections: %s", got)
	}
	for name, pid := range map[string]int{"monitor": b.monitor(), "worker": b.worker()} {
		limit := map[string]int{"monitor": 64, "worker": 200}[name]
		if mib := resident(t, pid); mib > limit {
			t.Errorf("the %s takes %d MiB", name, mib)
		} else {
			t.Logf("the %s takes %d MiB", name, mib)
		}
	}
	// Names and refusals beside them: bounded too, and each is in the log.
	for i := range 100 {
		main.ask(fmt.Sprintf("resolve n%d.evil.example", i))
	}
	main.want("ok", "release a")
	main.want("ok", "release b")
	waitFor(t, func() bool { return isOK(main.ask("dial echo.good.example:7000 hello")) })
	if st := b.status(); st.Worker == 0 {
		t.Error("the worker is gone")
	}
}

// resident is a process's memory, in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); f[0] == "VmRSS:" {
			kib, _ := strconv.Atoi(f[1])
			return kib >> 10
		}
	}
	t.Fatal("the kernel does not say")
	return 0
}
