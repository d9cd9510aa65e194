package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// asked is how much of something a test does: as much as the environment says,
// or what every run can afford.
func asked(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// crowd is a sandbox that may have many connections.
func (e *earth) crowd() (*box, *talk) {
	e.t.Helper()
	b := newBox(e.t)
	b.spec.Process.Rlimits = nil
	b.policy(e.policy(e.Uplink(), allowed...))
	return b, b.up()
}

// descriptors is how many of them a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// sockets is how many sockets a process has open. Pipes are left out: Go keeps
// those that it copied through until it next collects garbage.
func sockets(pid int) (n int) {
	list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, file := range list {
		if to, _ := os.Readlink(file); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// A worker that is killed again and again takes its connections with it and
// nothing else: the next one serves, the monitor holds no more than before, and
// what passed is written.
func TestWorkerDiesAgainAndAgain(t *testing.T) {
	e := newEarth(t)
	b, main := e.crowd()
	main.want("ok hello", "dial echo.good.example:7000 hello")
	monitor := b.monitor()
	held := descriptors(t, monitor)
	for round := range asked(t, "NEMOCLAW_KILLS", 7) {
		name := fmt.Sprint("k", round)
		main.want("ok 20", "keep "+name+" 20 echo.good.example:7000")
		kill(t, b.worker())
		main.want("ok 20 0", "over "+name)
		main.want("ok", "release "+name)
		// It waits in the listener's queue until there is another.
		waitFor(t, func() bool { return main.ask("dial echo.good.example:7000 hello") == "ok hello" })
		main.want("ECONNRESET", "dial echo.evil.example:7000 hello")
		if t.Failed() {
			return
		}
	}
	if b.monitor() != monitor {
		t.Error("the monitor is another")
	}
	if now := descriptors(t, monitor); now > held+2 { // an operator's that just asked
		t.Errorf("the monitor holds %d descriptors, %d before", now, held)
	}
	e.explain(b)
	if got := b.ctl("audit", "verify", b.auditFile()); got.code != 0 {
		t.Errorf("the chain: %s", got)
	}
	for _, name := range e.servedNow() {
		if name != "echo.good.example" {
			t.Errorf("%s was reached", name)
		}
	}
}

// Law 4 under load: with the monitor gone a thousand connections end, none goes
// on and no packet begins another; repaired, the sandbox is as it was.
func TestMonitorDiesUnderConnections(t *testing.T) {
	const many = 1000
	e := newEarth(t)
	b, main := e.crowd()
	main.want(fmt.Sprint("ok ", many), fmt.Sprintf("keep a %d echo.good.example:7000", many))
	main.want(fmt.Sprint("ok ", many), "still a")
	worker := b.worker()
	kill(t, b.monitor())
	main.want(fmt.Sprintf("ok %d 0", many), "over a")
	waitFor(t, func() bool { return !runs(worker, "worker") })
	before := len(e.sent())
	for _, verb := range []string{"dial echo.good.example:7000 hello", "keep b 10 198.19.0.0:7000", "resolve echo.good.example", "dial " + e.addr["echo.good.example"].String() + ":7000"} {
		if got := main.ask(verb); isOK(got) {
			t.Errorf("without a gateway: %s: %s", verb, got)
		}
	}
	for _, p := range e.sent()[before:] {
		if p.syn || p.proto != unix.IPPROTO_TCP {
			t.Errorf("without a gateway a packet left: %s", p)
		}
	}
	main.want("ok", "release a")
	if got := b.nemoclaw(nil, "repair", b.id); got.code != 0 {
		t.Fatalf("repair: %s", got)
	}
	main.want("ok 100", "keep c 100 echo.good.example:7000")
	main.want("ok 100", "still c")
	e.explain(b)
}

// What a server or the wire does to connections, it does to those connections:
// a wire that is cut and mended is a pause, a server that is gone is an end that
// is recorded, and others are served meanwhile.
func TestUpstreamVanishes(t *testing.T) {
	e := newEarth(t)
	gone := make(chan struct{})
	addr, err := e.ServeTCP("frail.good.example", 7000, func(c net.Conn) {
		line := make([]byte, 6)
		_, _ = c.Read(line)
		_, _ = c.Write(line)
		<-gone
		_ = c.(*net.TCPConn).SetLinger(0) // as a machine that loses its memory
	})
	e.must(err)
	e.addr["frail.good.example"] = addr
	b := newBox(t)
	b.spec.Process.Rlimits = nil
	b.policy(e.policy(e.Uplink(), append(allowed, "frail.good.example 7000")...))
	main := b.up()
	main.want("ok 50", "keep frail 50 frail.good.example:7000")
	main.want("ok 50", "keep firm 50 echo.good.example:7000")

	e.must(e.Cut(true))
	if got := main.ask("dial echo.good.example:7000 hello"); isOK(got) {
		t.Errorf("over a wire that is cut: %s", got)
	}
	e.must(e.Cut(false))
	waitFor(t, func() bool { return main.ask("dial echo.good.example:7000 hello") == "ok hello" })
	main.want("ok 50", "still firm")

	close(gone)
	main.want("ok 50 0", "over frail")
	main.want("ok 50", "still firm")
	ends := 0
	b.await("the ends of 50 connections", func(l line) bool {
		if l.Dst.Hostname == "frail.good.example" && l.More.Verdict == "end" {
			ends++
		}
		return ends == 50
	})
	e.explain(b)
}

// Steering accepts before anything is decided: connect succeeds for a host that
// is refused, and the reset comes after. Nothing was sent to that host.
func TestConnectSucceedsBeforeTheReset(t *testing.T) {
	e := newEarth(t)
	_, main := e.sandbox(allowed...)
	for _, to := range []string{"echo.evil.example:7000", e.addr["echo.evil.example"].String() + ":7000", "echo.good.example:7001"} {
		main.want("ok", "open refused "+to)
		main.want("ECONNRESET", "hear refused")
	}
	if served, questions := e.servedNow(), e.Questions(); len(served)+len(questions) != 0 {
		t.Errorf("servers saw %q, the name server %q", served, questions)
	}
	for _, p := range e.sent() {
		t.Errorf("a packet left: %s", p)
	}
}

// A program's connections take no place in the kernel's table of connections,
// which all containers of a machine share.
func TestConnectionsAreNotTracked(t *testing.T) {
	e := newEarth(t)
	b, main := e.crowd()
	main.want("ok 100", "keep a 100 echo.good.example:7000")
	if got := b.tracked(); got > 10 { // questions are tracked
		t.Errorf("100 connections take %d entries", got)
	}
}

// tracked is how many connections the kernel tracks in the container's network
// namespace. It is asked there by a thread that ends with the question.
func (b *box) tracked() int {
	b.t.Helper()
	text, err := world.ReadIn(fmt.Sprintf("/proc/%d/ns/net", b.initPID()), "/proc/sys/net/netfilter/nf_conntrack_count")
	b.must(err)
	n, err := strconv.Atoi(strings.TrimSpace(text))
	b.must(err)
	return n
}

// A gateway that may open few files, because whoever started it may, refuses what
// it has none for and says so, loses nothing that is open, and serves again.
func TestFewDescriptors(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.spec.Process.Rlimits = nil
	b.policy(e.policy(e.Uplink(), allowed...))
	b.mkdir("bin")
	b.must(os.WriteFile(b.path("bin/nemoclaw"), []byte("#!/bin/sh\nulimit -n 120 && exec "+b.bin+"/nemoclaw \"$@\"\n"), 0o755))
	b.must(os.Symlink(b.bin+"/nemoclawctl", b.path("bin/nemoclawctl")))
	b.bin = b.path("bin")
	main := b.up()
	other := b.exec()
	other.want("ok hello", "dial echo.good.example:7000 hello")
	monitor, worker := b.monitor(), b.worker()

	held := main.ask("keep a 300 echo.good.example:7000")
	if held == "ok 0" || held == "ok 300" {
		t.Errorf("of 300 connections there are: %s", held)
	}
	b.await("the reason", func(l line) bool { return l.More.Reason == "too-many" })
	main.want(held, "still a")
	if got := b.ctl("approve", b.id, "public.example:443"); got.code != 0 {
		t.Errorf("an operator is not heard: %s", got)
	}
	main.want("ok", "release a")
	waitFor(t, func() bool { return other.ask("dial echo.good.example:7000 hello") == "ok hello" })
	if b.monitor() != monitor || b.worker() != worker {
		t.Error("a process of the gateway is another")
	}
	e.explain(b)
}

// Whatever a program does too much of, the gateway's memory and descriptors
// stay within bounds, an allowed connection is served beside it, and afterwards
// everything is as before.
func TestFloods(t *testing.T) {
	e := newEarth(t)
	sink := make(chan struct{})
	for name, serve := range map[string]func(net.Conn){
		"sink.good.example": func(net.Conn) { <-sink }, // reads nothing, and hangs up in the end
		"tap.good.example": func(c net.Conn) { // never stops
			for block := make([]byte, 64<<10); ; {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		},
	} {
		addr, err := e.ServeTCP(name, 7000, serve)
		e.must(err)
		e.addr[name] = addr
	}
	b := newBox(t)
	b.spec.Process.Rlimits = nil
	b.policy(e.policy(e.Uplink(), append(allowed, "sink.good.example 7000", "tap.good.example 7000")...))
	main := b.up()
	other := b.exec() // who wants to be served
	const dialGood = "dial echo.good.example:7000 hello"
	other.want("ok hello", dialGood)
	monitor, worker := b.monitor(), b.worker()
	idle := sockets(worker)
	size := asked(t, "NEMOCLAW_FLOOD", 1)

	for _, c := range []struct {
		name, verb string
		served     bool // beside it
	}{
		{"half-open clients", "hoard h 900 api.good.example:443 8", true},
		{"half-open clients, more than there is room for", fmt.Sprintf("hoard h %d api.good.example:443 8", 1500*size), false},
		{"slow readers", "mute h 200 tap.good.example:7000", true},
		{"slow writers", "stuff h 100 sink.good.example:7000", true},
		{"questions for new names", fmt.Sprintf("questions %d flood.evil.example", 5000*size), true},
		{"refused hosts", "mute h 1000 echo.evil.example:7000", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := main.ask(c.verb); !isOK(got) {
				t.Errorf("%s: %s", c.verb, got)
			}
			if c.served {
				waitFor(t, func() bool { return other.ask(dialGood) == "ok hello" })
			}
			for _, p := range []struct {
				name             string
				pid, mib, opened int
			}{{"monitor", monitor, 64, 200}, {"worker", worker, 200, 3 * 2 * 1024}} {
				mib, open := resident(t, p.pid), descriptors(t, p.pid)
				t.Logf("the %s: %d MiB, %d descriptors", p.name, mib, open)
				if mib > p.mib || open > p.opened {
					t.Errorf("the %s takes %d MiB and %d descriptors, want at most %d and %d", p.name, mib, open, p.mib, p.opened)
				}
			}
			main.ask("release h")
			if strings.Contains(c.verb, "sink") {
				close(sink) // what was sent before a program's end is for the server to take or refuse
			}
			waitFor(t, func() bool { return other.ask(dialGood) == "ok hello" })
			waitFor(t, func() bool { return sockets(worker) <= idle+8 })
		})
	}
	if b.worker() != worker || b.monitor() != monitor {
		t.Error("a process of the gateway is another")
	}
	for _, q := range e.Questions() {
		if strings.HasSuffix(q, "evil.example") {
			t.Errorf("the name server was asked for %s", q)
			break
		}
	}
	e.explain(b)
}
