package worker

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"nemoclaw/specs/policy"
)

// class is how reachable an address may be. The greater is the stricter.
type class int

const (
	global  class = iota // by any allowed name
	private              // where a rule says allow_private
	never                // not at all
)

// special are the ranges that are not simply global: those that IANA's
// special-purpose registries (RFC 6890, as of 2025) call not globally
// reachable, and the addresses at which clouds tell secrets to whoever asks.
var special = []struct {
	prefix netip.Prefix
	class  class
}{
	{netip.MustParsePrefix("0.0.0.0/8"), never},              // this network, RFC 791
	{netip.MustParsePrefix("10.0.0.0/8"), private},           // RFC 1918
	{netip.MustParsePrefix("100.64.0.0/10"), private},        // shared by carriers, RFC 6598
	{netip.MustParsePrefix("100.100.100.200/32"), never},     // metadata, Alibaba
	{netip.MustParsePrefix("127.0.0.0/8"), never},            // loopback, RFC 1122
	{netip.MustParsePrefix("168.63.129.16/32"), never},       // metadata and agent, Azure
	{netip.MustParsePrefix("169.254.0.0/16"), never},         // link-local, RFC 3927; metadata of most clouds
	{netip.MustParsePrefix("172.16.0.0/12"), private},        // RFC 1918
	{netip.MustParsePrefix("192.0.0.0/24"), private},         // protocol assignments, RFC 6890
	{netip.MustParsePrefix("192.0.0.192/32"), never},         // metadata, Oracle
	{netip.MustParsePrefix("192.0.2.0/24"), private},         // documentation, RFC 5737
	{netip.MustParsePrefix("192.88.99.0/24"), private},       // 6to4 relays, RFC 7526
	{netip.MustParsePrefix("192.168.0.0/16"), private},       // RFC 1918
	{netip.MustParsePrefix("198.18.0.0/15"), private},        // benchmarks, RFC 2544
	{netip.MustParsePrefix("198.18.0.0/24"), never},          // ours: the gateway and the sandbox
	{netip.MustParsePrefix("198.51.100.0/24"), private},      // documentation, RFC 5737
	{netip.MustParsePrefix("203.0.113.0/24"), private},       // documentation, RFC 5737
	{netip.MustParsePrefix("224.0.0.0/4"), never},            // multicast, RFC 5771
	{netip.MustParsePrefix("240.0.0.0/4"), private},          // reserved, RFC 1112
	{netip.MustParsePrefix("255.255.255.255/32"), never},     // broadcast, RFC 919
	{netip.MustParsePrefix("::/96"), never},                  // unspecified, loopback, IPv4-compatible, RFC 4291
	{netip.MustParsePrefix("::ffff:0:0/96"), never},          // IPv4-mapped, RFC 4291
	{netip.MustParsePrefix("64:ff9b::/96"), private},         // NAT64, RFC 6052
	{netip.MustParsePrefix("64:ff9b:1::/48"), private},       // NAT64, RFC 8215
	{netip.MustParsePrefix("2001::/23"), private},            // protocol assignments, Teredo too, RFC 2928
	{netip.MustParsePrefix("2001:db8::/32"), private},        // documentation, RFC 3849
	{netip.MustParsePrefix("2002::/16"), private},            // 6to4, RFC 3056
	{netip.MustParsePrefix("3fff::/20"), private},            // documentation, RFC 9637
	{netip.MustParsePrefix("fd00:ec2::/32"), never},          // metadata and DNS, AWS
	{netip.MustParsePrefix("fd20:ce::254/128"), never},       // metadata, Google
	{netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), never}, // metadata, Oracle
	{netip.MustParsePrefix("fd6e:656d:6f::/48"), never},      // ours
	{netip.MustParsePrefix("fe80::/10"), never},              // link-local, RFC 4291
	{netip.MustParsePrefix("ff00::/8"), never},               // multicast, RFC 4291
}

// unicast6 is all of IPv6 that is given out; what lies outside is private at
// the least, ULA (RFC 4193) included.
var unicast6 = netip.MustParsePrefix("2000::/3")

// classify returns the class of an address, the strictest of all that it may
// be taken for.
func classify(a netip.Addr) class {
	if !a.IsValid() || a.Zone() != "" {
		return never
	}
	c := global
	if a.Is6() && !unicast6.Contains(a) {
		c = private
	}
	for i := range special {
		if special[i].class > c && special[i].prefix.Contains(a) {
			c = special[i].class
		}
	}
	if a.Is6() {
		for _, inner := range embedded(a) {
			c = max(c, classify(inner))
		}
	}
	return c
}

// The ranges with an IPv4 address inside.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
)

// embedded returns the IPv4 addresses that a translator or a tunnel would
// find in an IPv6 address.
func embedded(a netip.Addr) []netip.Addr {
	b := a.As16()
	four := func(w, x, y, z byte) netip.Addr { return netip.AddrFrom4([4]byte{w, x, y, z}) }
	last := four(b[12], b[13], b[14], b[15])
	switch {
	case nat64.Contains(a):
		return []netip.Addr{last}
	case nat64Local.Contains(a): // any length below /48 may be in use: RFC 6052, 2.2
		return []netip.Addr{last, four(b[6], b[7], b[9], b[10]), four(b[7], b[9], b[10], b[11]), four(b[9], b[10], b[11], b[12])}
	case sixToFour.Contains(a):
		return []netip.Addr{four(b[2], b[3], b[4], b[5])}
	case teredo.Contains(a): // Teredo: server, and client inverted, RFC 4380, 4
		return []netip.Addr{four(b[4], b[5], b[6], b[7]), four(^b[12], ^b[13], ^b[14], ^b[15])}
	}
	// ISATAP (RFC 5214, 6.1) may stand below any prefix.
	if id := binary.BigEndian.Uint32(b[8:12]); id == 0x00005efe || id == 0x02005efe {
		return []netip.Addr{last}
	}
	return nil
}

// guard knows which addresses are never reachable from this namespace.
type guard struct {
	more []netip.Prefix

	mu   sync.Mutex
	own  map[netip.Addr]bool // the namespace's own addresses
	at   time.Time           // when they were read
	err  error               // why they could not be
	list func() ([]net.Addr, error)
}

// ownAge is how old the list of our own addresses may be when it is used.
const ownAge = time.Second

func newGuard(more []netip.Prefix) *guard {
	return &guard{more: more, list: net.InterfaceAddrs}
}

// refresh has the addresses read again at the next use.
func (g *guard) refresh() {
	g.mu.Lock()
	g.at = time.Time{}
	g.mu.Unlock()
}

// judge returns why no connection may go to addr, or "". private tells whether
// a rule opens it although it is not globally reachable.
func (g *guard) judge(addr netip.Addr, private func(netip.Addr) bool) (policy.Reason, error) {
	c := classify(addr)
	for _, p := range g.more {
		if p.Contains(addr.Unmap()) {
			c = never
		}
	}
	if c != never {
		mine, err := g.isOwn(addr)
		if err != nil {
			return policy.Forbidden, err
		}
		if mine {
			c = never
		}
	}
	switch {
	case c == never:
		return policy.Forbidden, nil
	case c != global && !private(addr):
		return policy.Private, nil
	}
	return "", nil
}

// permits tells whether v lets a connection go to an address.
func (g *guard) permits(v verdict, to netip.AddrPort, now time.Time) bool {
	reason, _ := g.judge(to.Addr(), v.private)
	return reason == "" && !v.denies(to.Addr(), to.Port(), now)
}

func (g *guard) isOwn(addr netip.Addr) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.at) > ownAge {
		g.read()
	}
	return g.own[addr], g.err
}

func (g *guard) read() {
	addrs, err := g.list()
	if err != nil {
		g.err = fmt.Errorf("cannot list our own addresses: %w", err)
		return
	}
	g.own, g.at, g.err = make(map[netip.Addr]bool, len(addrs)), time.Now(), nil
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				g.own[addr.Unmap()] = true
			}
		}
	}
}
