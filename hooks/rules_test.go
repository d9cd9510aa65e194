package hooks

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bySource is what CNI's plugin sbr makes of a link: a table of its own, which
// whatever has the link's address uses.
func (w *world) bySource(name string, n int) {
	w.Helper()
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, family := range []struct{ src, network, gateway string }{
			{fmt.Sprintf("172.31.%d.5/32", n), fmt.Sprintf("172.31.%d.0/24", n), fmt.Sprintf("172.31.%d.1", n)},
			{fmt.Sprintf("fd31:%d::5/128", n), fmt.Sprintf("fd31:%d::/64", n), fmt.Sprintf("fd31:%d::1", n)},
		} {
			for _, r := range []netlink.Route{
				{LinkIndex: l.Attrs().Index, Table: 100 + n, Dst: prefix(family.network), Scope: netlink.SCOPE_LINK},
				{LinkIndex: l.Attrs().Index, Table: 100 + n, Gw: net.ParseIP(family.gateway)},
			} {
				if err := netlink.RouteAdd(&r); err != nil {
					return fmt.Errorf("%s: %w", r, err)
				}
			}
			rule := netlink.NewRule()
			rule.Src, rule.Table = prefix(family.src), 100+n
			if err := netlink.RuleAdd(rule); err != nil {
				return err
			}
		}
		return nil
	})
}

// Network plugins make tables and rules for several links, in both families.
// They arrive as they were: what has a link's address leaves by that link, and
// what was blocked is blocked.
func TestPlugKeepsPolicyRoutes(t *testing.T) {
	w := newWorld(t)
	for n, name := range []string{"eth0", "net1", "net2"} {
		w.plugIn(name, n+1)
		w.bySource(name, n+1)
	}
	w.in(w.inner, func() error {
		for _, dst := range []string{"10.66.0.0/16", "2001:db8:66::/48"} {
			if err := netlink.RouteAdd(&netlink.Route{Dst: prefix(dst), Type: unix.RTN_PROHIBIT}); err != nil {
				return err
			}
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: prefix("10.67.0.0/16"), Type: unix.RTN_BLACKHOLE, Table: 120}); err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			for i, edit := range []func(*netlink.Rule){
				func(r *netlink.Rule) { r.IifName = "lo" },
				func(r *netlink.Rule) { r.OifName = "net1" },
				func(r *netlink.Rule) { mask := uint32(0xff00); r.Mark, r.Mask = 0x100, &mask },
				func(r *netlink.Rule) { r.SuppressPrefixlen = 0 },
				func(r *netlink.Rule) { r.Dport = netlink.NewRulePortRange(1, 80) },
				func(r *netlink.Rule) { r.UIDRange = netlink.NewRuleUIDRange(7, 9) },
				func(r *netlink.Rule) { r.IPProto = unix.IPPROTO_SCTP },
				func(r *netlink.Rule) { r.Invert, r.Tos = true, 16 },
				func(r *netlink.Rule) { r.Type = unix.FR_ACT_PROHIBIT; r.Mark = 7 },
			} {
				r := netlink.NewRule()
				r.Family, r.Priority, r.Table = family, 2000+i, 120
				edit(r)
				if err := netlink.RuleAdd(r); err != nil {
					return fmt.Errorf("%s: %w", r, err)
				}
			}
		}
		return nil
	})
	before := w.rules(w.inner)
	if len(before) != 2*(3+9) {
		t.Fatalf("the engine has the rules %q", before)
	}
	w.start("all")
	w.start("all") // nothing twice
	if after := w.rules(w.uplink); !slices.Equal(before, after) {
		t.Errorf("the rules were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}

	w.in(w.uplink, func() error {
		for n, name := range []string{"eth0", "net1", "net2"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			for src, dst := range map[string]string{fmt.Sprintf("172.31.%d.5", n+1): "203.0.113.9", fmt.Sprintf("fd31:%d::5", n+1): "2001:db8::9"} {
				routes, err := netlink.RouteGetWithOptions(net.ParseIP(dst), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(src)})
				if err != nil {
					return err
				}
				if routes[0].LinkIndex != l.Attrs().Index {
					t.Errorf("from %s to %s: %s, want over %s", src, dst, routes[0], name)
				}
			}
		}
		return nil
	})
	for _, addr := range []string{"10.66.0.1:80", "[2001:db8:66::1]:80"} {
		if got := w.ask(w.uplink, "tcp", addr); got != "unreachable" {
			t.Errorf("%s was prohibited to the container, and is to the gateway: %s", addr, got)
		}
	}

	// Who comes in by a link from afar is answered over that link.
	w.serve(w.inner, "tcp", ":8080", "mine")
	for n, name := range []string{"eth0", "net1", "net2"} {
		others := map[int]*capture{}
		for i, other := range []string{"eth0", "net1", "net2"} {
			if other != name {
				others[i+1] = w.capture("h-" + other)
			}
		}
		for from, to := range map[string]string{"203.0.113.9": fmt.Sprintf("172.31.%d.5:8080", n+1), "2001:db8::9": fmt.Sprintf("[fd31:%d::5]:8080", n+1)} {
			w.in(w.host, func() error {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
				if got := probeBy(d, "tcp", to, 5*time.Second); !strings.HasPrefix(got, "mine") {
					t.Errorf("inbound from %s to %s: %s", from, to, got)
				}
				return nil
			})
		}
		for other, c := range others {
			for _, frame := range c.leaked(w.uplink, fmt.Sprintf("172.31.%d.1:1", other)) {
				t.Errorf("an answer for %s left by network %d: %s", name, other, frame)
			}
		}
	}
}

// A rule that would come before the gateway's own cannot be kept, and the
// sandbox not be made: its connections would go where the engine does not mean.
func TestPlugRefusesRulesInItsOwnPlace(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(*netlink.Rule)
		fault string
	}{
		{"before the stand-ins", func(r *netlink.Rule) { r.Priority = 3 }, "3: lookup 120 (IPv4): preferences below 11 are the gateway's"},
		{"in the steering's place", func(r *netlink.Rule) { r.Priority = 1 }, "1: lookup 120 (IPv4): preferences below 11 are the gateway's"},
		{"before all", func(r *netlink.Rule) { r.Priority = 0 }, "0: lookup 120 (IPv4): preferences below 11 are the gateway's"},
		{"to a stand-in's table", func(r *netlink.Rule) { r.Family, r.Table = netlink.FAMILY_V6, markBase+1 }, "(IPv6): the tables 28161 to 28414 are the gateway's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.plugIn("eth0", 1)
			w.in(w.inner, func() error {
				r := netlink.NewRule()
				r.Family, r.Table, r.Priority = netlink.FAMILY_V4, 120, 2000
				c.edit(r)
				return netlink.RuleAdd(r)
			})
			if _, err := Plug(w.inner, w.uplink, "all"); err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("Plug says: %v", err)
			}
			if err := Seal(w.inner, w.uplink); err == nil {
				t.Error("Seal accepts what Plug did not move")
			}
		})
	}
}

// What a network plugin looks for when it deletes is there: the links by name
// with their addresses in both families, and its rules.
func TestReturnGivesPluginsWhatTheyLookFor(t *testing.T) {
	w := newWorld(t)
	for n, name := range []string{"eth0", "net1"} {
		w.plugIn(name, n+1)
		w.bySource(name, n+1)
	}
	before := w.rules(w.inner)
	w.start("all")
	w.must(Return(w.inner, w.uplink))
	if after := w.rules(w.inner); !slices.Equal(before, after) {
		t.Errorf("the rules were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	w.in(w.inner, func() error {
		for n, name := range []string{"eth0", "net1"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, want := range []string{fmt.Sprintf("172.31.%d.5/24", n+1), fmt.Sprintf("fd31:%d::5/64", n+1)} {
				if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want }) {
					t.Errorf("%s came back without %s: %v", name, want, addrs)
				}
			}
		}
		return nil
	})
}

// With the steering in force an engine that names only a gateway gets a route
// over lo, for whatever network.
func TestPlugAdoptsRoutesByTheirGateway(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	w.plugInLater("eth1", 2)
	w.in(w.inner, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: prefix("10.9.0.0/16"), Gw: net.ParseIP("172.31.2.1"), Table: 150})
	})
	_, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	w.must(Verify(w.inner, w.uplink))
	w.in(w.uplink, func() error {
		l, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: 150}, netlink.RT_FILTER_TABLE)
		if len(routes) != 1 || routes[0].LinkIndex != l.Attrs().Index || routes[0].Dst.String() != "10.9.0.0/16" {
			t.Errorf("table 150 of the uplink has %v", routes)
		}
		return err
	})
}

// rules are those of a namespace that are neither the kernel's nor ours, as the
// library understands them.
func (w *world) rules(ns *os.File) (words []string) {
	w.Helper()
	w.in(ns, func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Priority >= firstPreference && r.Priority < 32766 {
					mask, dport, uid := "", "", ""
					if r.Mask != nil {
						mask = fmt.Sprint(*r.Mask)
					}
					if r.Dport != nil {
						dport = fmt.Sprint(*r.Dport)
					}
					if r.UIDRange != nil {
						uid = fmt.Sprint(*r.UIDRange)
					}
					words = append(words, fmt.Sprint(family, r.Priority, " ", r.Table, r.Src, r.Dst, r.Mark, mask, r.Tos, r.IifName, r.OifName, r.SuppressPrefixlen, dport, uid, r.IPProto, r.Invert, r.Type))
				}
			}
		}
		return nil
	})
	return words
}
