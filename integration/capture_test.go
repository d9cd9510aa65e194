package integration

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// segment is what matters of a packet, to the byte.
type segment struct {
	proto    byte
	from, to netip.AddrPort
	flags    byte // of TCP
	sequence uint32
	payload  []byte
	size     int // of the packet, with its heads
}

const syn = 2 // the flag

func (s segment) String() string {
	return fmt.Sprintf("protocol %d from %s to %s, %d bytes", s.proto, s.from, s.to, len(s.payload))
}

// dissect reads a packet from its IP header on; what is no IP, or what the
// kernel itself says on a new link (neighbours and groups, ICMPv6 130 to 143), is
// none of ours.
func dissect(p []byte) (s segment, ours bool) {
	switch {
	case len(p) >= 24 && p[0]>>4 == 4:
		h, end := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		s.proto, s.payload, s.size = p[9], p[h:min(end, len(p))], end
		s.from, s.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), 0), netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), 0)
		if s.proto == unix.IPPROTO_IGMP {
			return s, false
		}
	case len(p) >= 41 && p[0]>>4 == 6:
		s.proto, s.payload = p[6], p[40:]
		s.from, s.to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[8:24])), 0), netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[24:40])), 0)
		if s.proto == 0 || s.proto == unix.IPPROTO_ICMPV6 && p[40] >= 130 && p[40] <= 143 {
			return s, false
		}
	default:
		return s, false
	}
	if (s.proto == unix.IPPROTO_TCP || s.proto == unix.IPPROTO_UDP) && len(s.payload) >= 8 {
		l4 := s.payload
		s.from, s.to = netip.AddrPortFrom(s.from.Addr(), binary.BigEndian.Uint16(l4)), netip.AddrPortFrom(s.to.Addr(), binary.BigEndian.Uint16(l4[2:]))
		s.payload = l4[8:]
		if s.proto == unix.IPPROTO_TCP && len(l4) >= 20 {
			s.flags, s.sequence, s.payload = l4[13], binary.BigEndian.Uint32(l4[4:]), l4[int(l4[12]>>4)*4:]
		}
	}
	return s, true
}

// tap is a capture that goes on.
type tap struct {
	mu   sync.Mutex
	list []segment
}

func (c *tap) saw(p []byte) {
	if s, ours := dissect(p); ours {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.list = append(c.list, s)
	}
}

func (c *tap) segments() []segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

// Law 4, packet by packet: what is on the wire, in the uplink and on every
// interface of the container's own is what the audit log tells of, connection by
// connection and byte by byte: what went out, and what came in, both ways. Beside
// it are questions for listed names.
func TestEveryPacketIsExplained(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	b.policy(e.policy("auto", allowed...))
	main, created := b.create()
	if created.code != 0 {
		t.Fatalf("create: %s", created)
	}
	inner := fmt.Sprintf("/proc/%d/ns/net", b.initPID())
	e.must(e.PlugInto(inner))
	if got := b.start(); got.code != 0 {
		t.Fatalf("start: %s", got)
	}
	var wire, uplink, inside, came tap
	out := func(c *tap) func(bool, []byte) {
		return func(outgoing bool, p []byte) {
			if outgoing {
				c.saw(p)
			}
		}
	}
	e.must(e.Capture(wire.saw))
	e.must(e.CaptureAt(e.Internet(), out(&came)))
	e.must(e.CaptureAt(filepath.Join(b.gatewayDir(), "uplink"), out(&uplink)))
	e.must(e.CaptureAt(inner, out(&inside)))

	const each = 5
	for i := range each {
		main.want("ok hello", "dial echo.good.example:7000 hello"+strings.Repeat("o", i))
		main.want("ok 200", "tls api.good.example:443 api.good.example")
		main.want("ok 200", "http web.good.example:80 web.good.example")
	}
	for _, verb := range append(waysOut(e), shouts...) {
		main.ask(verb)
	}
	main.want("ok", "hold tcp4 0.0.0.0:8080")
	called := netip.AddrPortFrom(world.PluggedAddr, 8080)
	c, err := e.Dial(called)
	e.must(err)
	if said, err := bufio.NewReader(c).ReadString('\n'); said != "hello\n" {
		t.Errorf("who calls in hears %q, %v", said, err)
	}
	c.Close()
	if _, err := e.Dial(netip.AddrPortFrom(world.PluggedAddr, 81)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens, and whoever calls hears %v", err)
	}
	ends, failed := 0, 0
	b.await("the end of all connections", func(l line) bool {
		switch {
		case l.Connection.Direction == inbound && l.More.Verdict == "fail":
			failed++
		case l.More.Verdict == "end":
			ends++
		}
		return ends == 3*each+1 && failed == 1
	})

	told, calls := b.told(e)
	for name, c := range map[string]*tap{"the wire": &wire, "the uplink": &uplink} {
		carried, strange := map[netip.AddrPort]counted(nil), []segment(nil)
		soon(func() bool { // a capture comes a little later than what it shows
			carried, strange = c.count(told, calls)
			return maps.Equal(carried, told)
		})
		for _, s := range strange {
			t.Errorf("a packet on %s that no line explains: %s", name, s)
		}
		if !maps.Equal(carried, told) {
			t.Errorf("%s carries %v, and the log tells of %v", name, carried, told)
		}
	}
	var exchanged map[call]exchange
	soon(func() bool {
		exchanged = map[call]exchange{}
		for at := range calls {
			exchanged[at] = exchange{came.between(at.from, at.to), wire.between(at.to, at.from)}
		}
		return maps.Equal(exchanged, calls)
	})
	if len(calls) != 2 || !maps.Equal(exchanged, calls) {
		t.Errorf("the wire carries of what called in %v, and the log tells of %v", exchanged, calls)
	}
	for _, s := range inside.segments() {
		if s.proto != unix.IPPROTO_TCP || s.from != called && s.from.Port() != 81 {
			t.Errorf("a packet that the container itself sent outward: %s", s)
		}
	}
	if len(inside.segments()) == 0 {
		t.Error("the capture inside saw no reply: it proves nothing")
	}
}

// count is what went to each address that the log tells of, each packet counted
// once however often it was sent, and what went elsewhere.
func (c *tap) count(told map[netip.AddrPort]counted, calls map[call]exchange) (carried map[netip.AddrPort]counted, strange []segment) {
	carried = map[netip.AddrPort]counted{}
	seen := map[string]bool{}
	for _, s := range c.segments() {
		switch {
		case s.proto == unix.IPPROTO_TCP && ofACall(s, calls):
		case s.proto == unix.IPPROTO_UDP && s.to == netip.AddrPortFrom(world.Nameserver, 53) && asksForListed(s.payload):
		case s.proto == unix.IPPROTO_TCP && told[s.to].connections > 0:
			key := fmt.Sprint(s.from, s.to, s.sequence, s.flags&syn, len(s.payload))
			if !seen[key] {
				so := carried[s.to]
				carried[s.to] = counted{so.connections + int(s.flags&syn)/syn, so.bytes + len(s.payload)}
			}
			seen[key] = true
		default:
			strange = append(strange, s)
		}
	}
	return carried, strange
}

// soon polls what only another thread of control changes, until it is so or it
// took too long.
func soon(is func() bool) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is() && time.Now().Before(deadline); <-tick.C {
	}
}

// counted is what went to one address.
type counted struct{ connections, bytes int }

// call is a connection from outside.
type call struct{ from, to netip.AddrPort }

// exchange is what went both ways of it.
type exchange struct{ in, out volume }

// volume is that of whole IP packets.
type volume struct{ packets, bytes int }

// callerInside is who calls of the first link seem to come from, inside.
var callerInside = netip.MustParseAddr("169.254.77.1")

// ofACall tells whether a packet that leaves the uplink belongs to a call: to the
// caller, or onward to the container.
func ofACall(s segment, calls map[call]exchange) bool {
	for c := range calls {
		if s.from == c.to && s.to == c.from || s.to == c.to && s.from == netip.AddrPortFrom(callerInside, c.from.Port()) {
			return true
		}
	}
	return false
}

// between is what went from one end to the other.
func (c *tap) between(from, to netip.AddrPort) (v volume) {
	for _, s := range c.segments() {
		if s.from == from && s.to == to {
			v = volume{v.packets + 1, v.bytes + s.size}
		}
	}
	return v
}

// told is what the audit log says was sent, by its lines of ends, and what calls
// it tells of.
func (b *box) told(e *earth) (map[netip.AddrPort]counted, map[call]exchange) {
	b.t.Helper()
	sent, calls := map[netip.AddrPort]counted{}, map[call]exchange{}
	b.awaitLine("its last line", func(text json.RawMessage) bool {
		var l line
		b.must(json.Unmarshal(text, &l))
		switch {
		case l.Connection.Direction == inbound && (l.More.Verdict == "end" || l.More.Verdict == "fail"):
			from, to := l.ends()
			calls[call{from, to}] = exchange{volume{l.Traffic.PacketsIn, l.Traffic.In}, volume{l.Traffic.PacketsOut, l.Traffic.Out}}
		case l.More.Verdict == "end":
			to := netip.AddrPortFrom(e.addr[l.Dst.Hostname], uint16(l.Dst.Port))
			sent[to] = counted{sent[to].connections + 1, sent[to].bytes + l.Traffic.Out}
		}
		lines := b.audit()
		return l.Metadata.Sequence == lines[len(lines)-1].Metadata.Sequence
	})
	return sent, calls
}

// asksForListed tells whether a packet is a question for a name of the policy.
func asksForListed(packet []byte) bool {
	q := new(dns.Msg)
	if q.Unpack(packet) != nil || len(q.Question) != 1 {
		return false
	}
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	return slices.ContainsFunc(allowed, func(rule string) bool { return strings.HasPrefix(rule, name+" ") })
}
