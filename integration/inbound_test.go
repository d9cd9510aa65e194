package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// ends are the two ends that a line names.
func (l *line) ends() (from, to netip.AddrPort) {
	src, _ := netip.ParseAddr(l.Src.IP)
	dst, _ := netip.ParseAddr(l.Dst.IP)
	return netip.AddrPortFrom(src, uint16(l.Src.Port)), netip.AddrPortFrom(dst, uint16(l.Dst.Port))
}

// port is one of the container's, as the world reaches it.
func port(n uint16) netip.AddrPort { return netip.AddrPortFrom(world.PluggedAddr, n) }

// called makes a sandbox that the world can call, with more lines of its policy.
func (e *earth) called(network string) (*box, *talk) {
	e.t.Helper()
	b := newBox(e.t)
	text := e.policy("auto", allowed...)
	if strings.Contains(network, "uplink: ") {
		text = strings.Replace(text, "uplink: auto, ", "", 1)
	}
	b.policy(strings.Replace(text, "network: {", "network: {"+network, 1))
	main, created := b.create()
	if created.code != 0 {
		e.t.Fatalf("create: %s", created)
	}
	e.must(e.PlugInto(fmt.Sprintf("/proc/%d/ns/net", b.initPID())))
	if got := b.start(); got.code != 0 {
		e.t.Fatalf("start: %s", got)
	}
	return b, main
}

// chat is a conversation with an echo in the container.
func (e *earth) chat(network string, to netip.AddrPort) net.Conn {
	e.t.Helper()
	c, err := e.DialBy(network, to)
	e.must(err)
	e.t.Cleanup(func() { c.Close() })
	e.say(c, "ping")
	return c
}

// say says something and hears it.
func (e *earth) say(c net.Conn, text string) {
	e.t.Helper()
	_, err := io.WriteString(c, text)
	e.must(err)
	heard := make([]byte, len(text))
	if _, err := io.ReadFull(c, heard); err != nil || string(heard) != text {
		e.t.Fatalf("%s: said %q and heard %q, %v", c.RemoteAddr(), text, heard, err)
	}
}

// about awaits the line with a verdict about a call that the world made.
func (b *box) about(c net.Conn, verdict string) line {
	b.t.Helper()
	return b.await(verdict+" of "+c.LocalAddr().String(), func(l line) bool {
		from, to := l.ends()
		return l.More.Verdict == verdict && l.Connection.Direction == inbound && from.String() == c.LocalAddr().String() && to.String() == c.RemoteAddr().String()
	})
}

// calls are the lines about calls, also after the sandbox has ended.
func (b *box) calls() (lines []line) {
	b.t.Helper()
	for _, l := range b.audit() {
		if l.Connection.Direction == inbound {
			lines = append(lines, l)
		}
	}
	return lines
}

// Law 4's exception is in the audit log: who called, whom, when, and how much
// went either way. A connection is there as soon as it is open, also if it stays
// so, and at the sandbox's end whatever is open is closed there, too.
func TestLaw4InboundConnectionsAreRecorded(t *testing.T) {
	e := newEarth(t)
	b, main := e.called("")
	main.want("ok", "echo tcp4 0.0.0.0:8080")
	b.exec().want("ok", "echo udp4 0.0.0.0:8081")

	for _, c := range []net.Conn{e.chat("tcp", port(8080)), e.chat("udp", port(8081))} {
		begin := b.about(c, "allow")
		proto := c.LocalAddr().Network()
		if begin.Rule.Name != "network.ingress: all" || begin.Connection.Name != proto || begin.Metadata.UID == "" {
			t.Errorf("%s: the first line: %+v", proto, begin)
		}
	}
	short := e.chat("tcp", port(8080))
	begin := b.about(short, "allow")
	short.Close()
	end := b.about(short, "end")
	if end.Metadata.UID != begin.Metadata.UID || end.Traffic.In < 4+3*40 || end.Traffic.Out < 4+3*40 || end.Traffic.PacketsIn < 4 || end.Traffic.PacketsOut < 3 {
		t.Errorf("the last line: %+v", end)
	}

	if _, err := e.Dial(port(9)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}
	b.await("a call that nobody took", func(l line) bool {
		return l.More.Verdict == "fail" && l.More.Reason == "port-closed" && l.Dst.Port == 9 && l.Src.IP != ""
	})

	if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
		t.Fatalf("delete: %s", got)
	}
	ended := map[string]int{}
	for _, l := range b.calls() {
		if l.More.Verdict == "end" && l.Traffic.In > 0 && l.Traffic.Out > 0 {
			ended[l.Connection.Name]++
		}
	}
	lines := b.audit()
	if ended["tcp"] != 2 || ended["udp"] != 1 || lines[len(lines)-1].More.Kind != "end" {
		t.Errorf("at the sandbox's end the log tells of %v, and last of %+v", ended, lines[len(lines)-1])
	}
}

// What network.ingress refuses is in the log, too: some one by one, all in the
// sum.
func TestInboundRefusalsAreRecorded(t *testing.T) {
	e := newEarth(t)
	b, main := e.called("ingress: {ports: [8080]}, ")
	main.want("ok", "echo tcp4 0.0.0.0:8080")
	e.chat("tcp", port(8080))
	const many = 100
	for range many {
		if _, err := e.Dial(port(8081)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("it is not refused: %v", err)
		}
	}
	sum, named := 0, 0
	b.await("every refusal", func(l line) bool {
		if l.Connection.Direction == inbound && l.More.Verdict == "refuse" {
			if l.Rule.Name != "network.ingress: 8080" || l.More.Reason != "ingress" || l.Count == 0 && (l.Src.IP == "" || l.Dst.Port != 8081) {
				t.Errorf("a refusal: %+v", l)
			}
			sum += max(l.Count, 1)
			if l.Count == 0 {
				named++
			}
		}
		return sum >= many
	})
	if sum != many || named == 0 || named == many {
		t.Errorf("%d refusals in the log, %d by name; want %d, some by name", sum, named, many)
	}
	if text := b.ctl("metrics", b.id).stdout; !strings.Contains(text, fmt.Sprintf(`verdict="refuse",reason="ingress"} %d`, many)) || !strings.Contains(text, `verdict="allow",reason=""} 1`) {
		t.Errorf("metrics: %s", text)
	}
}

// Faster than lines may be, connections are counted; and where the kernel had to
// drop what it would have told, the log says so. At the end all bytes are there.
func TestInboundFlood(t *testing.T) {
	e := newEarth(t)
	var wire tap
	e.must(e.Capture(wire.saw))
	b, main := e.called("")
	main.want("ok", "hold tcp4 0.0.0.0:8080")
	flood := func(n int) {
		t.Helper()
		for range n {
			c, err := e.Dial(port(8080))
			e.must(err)
			if said, err := bufio.NewReader(c).ReadString('\n'); said != "hello\n" {
				t.Fatalf("heard %q, %v", said, err)
			}
			c.Close()
		}
	}
	const some, many = 300, 2000
	flood(some)
	sum := 0
	b.await("as many as there were", func(l line) bool {
		if l.Connection.Direction == inbound && l.More.Verdict == "allow" {
			sum += max(l.Count, 1)
		}
		return sum >= some
	})
	if lines := len(b.calls()); sum != some || lines >= 2*some {
		t.Errorf("%d connections in %d lines", sum, lines)
	}

	pid, err := os.FindProcess(b.monitor())
	e.must(err)
	e.must(pid.Signal(unix.SIGSTOP))
	flood(many)
	e.must(pid.Signal(unix.SIGCONT))
	if missed := b.await("what was lost", func(l line) bool { return l.More.Kind == "missed" }); missed.More.Count == 0 {
		t.Errorf("it does not say how much: %+v", missed)
	}
	// It goes on, and once it has caught up knows whoever calls by name.
	named, callers := false, map[string]bool{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !named && time.Now().Before(deadline); <-tick.C {
		c, err := e.Dial(port(8080))
		e.must(err)
		_, err = io.ReadAll(c)
		e.must(errors.Join(err, c.Close()))
		callers[c.LocalAddr().String()] = true
		for _, l := range b.calls() {
			from, _ := l.ends()
			named = named || callers[from.String()]
		}
	}
	if !named {
		t.Error("no caller is known by name any more")
	}

	if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
		t.Fatalf("delete: %s", got)
	}
	bytes := 0
	ends := 0
	for _, l := range b.calls() {
		if l.More.Verdict == "end" {
			bytes += l.Traffic.Out
			ends += max(l.Count, 1)
		}
	}
	carried, begun := 0, 0
	for _, s := range wire.segments() {
		if s.from == port(8080) {
			carried += s.size
			begun += int(s.flags&syn) / syn
		}
	}
	if ends != begun || bytes != carried {
		t.Errorf("the log tells of the end of %d connections that carried %d bytes; there were %d, with %d", ends, bytes, begun, carried)
	}
}

// Who may be called and call nobody is called in the log.
func TestInboundWithoutUplink(t *testing.T) {
	e := newEarth(t)
	b, main := e.called("uplink: none, ")
	main.want("ok", "echo tcp4 0.0.0.0:8080")
	c := e.chat("tcp", port(8080))
	b.about(c, "allow")
}

// Whichever container of a pod is called, the pod's log tells.
func TestInboundToAPod(t *testing.T) {
	e := newEarth(t)
	b, _ := e.called("")
	b.mate().up().want("ok", "echo tcp4 0.0.0.0:8080")
	c := e.chat("tcp", port(8080))
	b.about(c, "allow")
	c.Close()
	if end := b.about(c, "end"); end.Traffic.In == 0 || end.Traffic.Out == 0 {
		t.Errorf("its end: %+v", end)
	}
}

// A gateway that takes the place of a lost one finds what is open, under the same
// name, with all of its bytes.
func TestInboundAfterRepair(t *testing.T) {
	e := newEarth(t)
	b, main := e.called("")
	main.want("ok", "echo tcp4 0.0.0.0:8080")
	c := e.chat("tcp", port(8080))
	begin := b.about(c, "allow")
	kill(t, b.monitor())
	e.say(c, strings.Repeat("while nobody listens ", 50))
	if got := b.nemoclaw(nil, "repair", b.id); got.code != 0 {
		t.Fatalf("repair: %s", got)
	}
	b.await("what was missed", func(l line) bool {
		return l.More.Kind == "missed" && strings.Contains(l.Message, "while the gateway was lost")
	})
	again := b.await("it again", func(l line) bool { return l.Metadata.UID == begin.Metadata.UID && l.More.Detail != "" })
	if again.More.Verdict != "allow" || !strings.Contains(again.More.Detail, "open when the gateway began") {
		t.Errorf("found again: %+v", again)
	}
	c.Close()
	if end := b.about(c, "end"); end.Traffic.In < 1000 || end.Traffic.Out < 1000 || end.Metadata.UID != begin.Metadata.UID {
		t.Errorf("its end: %+v", end)
	}
}
