package integration

import (
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is no TCP is refused by the fence, and is in the log all the same: to
// which host and port, by which process of which container; as is a question
// that gets no answer.
func TestWhatIsNoTCPIsInTheLog(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "0 2147483647"} // as Docker does
	b.saveSpec()
	first := e.up(b, allowed...)
	c := b.mate()
	second := c.up()
	evil := e.addr["evil.example"].String()

	// logged waits for the line about a refusal, and tells whose it is.
	logged := func(proto string, number int, host string, port int) line {
		t.Helper()
		return b.await(fmt.Sprintf("%s to %s:%d", proto, host, port), func(l line) bool {
			return l.Connection.Name == proto && l.Connection.Number == number && l.Dst.Port == port &&
				(l.Dst.Hostname == host || l.Dst.IP == host && l.Dst.Hostname == "") &&
				l.More.Verdict == "refuse" && l.More.Reason == "unsupported-type"
		})
	}
	for i, k := range []struct {
		*talk
		box *box
	}{{first, b}, {second, c}, {b.exec(), b}, {c.exec(), c}} {
		whose := func(l line) {
			t.Helper()
			if p := l.Actor.Process; p.Container.UID != k.box.id || path.Base(p.File.Path) != "probe" || p.PID == 0 {
				t.Errorf("%s to %s:%d is said to be of %+v, want a process of %s", l.Connection.Name, l.Dst.Hostname, l.Dst.Port, p, k.box.id)
			}
		}
		for _, host := range []string{"quic.evil.example", evil, "2001:db8::1"} {
			to := fmt.Sprintf("%s:%d", host, 9000+i)
			if strings.Contains(host, "::") {
				to = fmt.Sprintf("[%s]:%d", host, 9000+i)
			}
			k.want("ok", "open it "+to+" udp")
			k.want("ok", "say it hello")
			whose(logged("udp", 17, host, 9000+i))
			k.want("ok", "close it")
		}
		for j, server := range []string{"198.18.0.1:53", "127.0.0.11:53", "8.8.8.8:53"} {
			for network, number := range map[string]int{"udp": 17, "tcp": 6} {
				name := fmt.Sprintf("%s%d.secret%d.evil.example", network, j, i)
				_ = k.ask("text " + name + " " + network + " " + server)
				whose(logged("dns", number, name, 53))
			}
		}
	}
	_ = first.ask("ping " + evil)
	logged("icmp", 1, evil, 0)
	if got := b.ctl("pending", "--json"); strings.Contains(got.stdout, "quic") || strings.Contains(got.stdout, "secret") {
		t.Errorf("nobody can approve what is no TCP: %s", got)
	}
	e.explain(b)
}

// However fast packets are refused, allowed connections go on, and the log counts
// each: those that nobody could look at by a number.
func TestRefusedPacketsAreCounted(t *testing.T) {
	e := newEarth(t)
	b, main := e.sandbox(allowed...)
	other := b.exec()
	const dialGood = "dial echo.good.example:7000 hello"
	other.want("ok hello", dialGood)
	evil := e.addr["evil.example"].String() + ":443"
	sent := 0
	flood := func(n int) {
		t.Helper()
		var took int
		if _, err := fmt.Sscanf(main.ask(fmt.Sprintf("packets %d %s", n, evil)), "ok %d", &took); err != nil {
			t.Fatal(err)
		}
		sent += took
	}
	counted, lost := 0, 0
	count := func() bool {
		counted, lost = 0, 0
		for _, l := range b.audit() {
			switch n := max(l.Count, 1); {
			case l.Connection.Name == "udp" && l.More.Verdict == "refuse":
				counted += n
			case l.Connection.Name == "ip":
				counted += n
				lost += n
			}
		}
		return counted == sent
	}
	for _, asleep := range []bool{false, true, false} {
		if asleep { // whoever is to look at them
			b.must(unix.Kill(b.worker(), unix.SIGSTOP))
		}
		before, began := sent, time.Now()
		flood(20_000 * asked(t, "NEMOCLAW_FLOOD", 1))
		took := time.Since(began)
		if asleep {
			b.must(unix.Kill(b.worker(), unix.SIGCONT))
		}
		waitFor(t, func() bool { return other.ask(dialGood) == "ok hello" })
		flood(1) // its number tells what was lost before it
		waitFor(t, count)
		t.Logf("%d were sent, %.0f a second; %d of all were seen by nobody; the log has %d lines", sent-before, float64(sent-before)/took.Seconds(), lost, len(b.audit()))
		if asleep && lost == 0 {
			t.Error("nothing was lost while nobody looked")
		}
	}
	if counted != sent {
		t.Errorf("%d packets were refused, and the log tells of %d", sent, counted)
	}
	if n := len(b.audit()); n > 1000 {
		t.Errorf("they take %d lines", n)
	}
	e.explain(b)
}
