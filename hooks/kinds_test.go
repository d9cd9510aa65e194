package hooks

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kinds are the interfaces that engines and network plugins put into a
// container. parent is an interface of the host's.
var kinds = []struct {
	kind string
	link func(a netlink.LinkAttrs) netlink.Link
}{
	{"veth", func(a netlink.LinkAttrs) netlink.Link {
		a.ParentIndex = 0
		return &netlink.Veth{LinkAttrs: a, PeerName: "h-" + a.Name}
	}},
	{"macvlan", func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}
	}},
	{"ipvlan", func(a netlink.LinkAttrs) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: a, Mode: netlink.IPVLAN_MODE_L2}
	}},
	{"vlan", func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vlan{LinkAttrs: a, VlanId: 7} }},
	{"dummy", func(a netlink.LinkAttrs) netlink.Link { a.ParentIndex = 0; return &netlink.Dummy{LinkAttrs: a} }},
	{"tun", func(a netlink.LinkAttrs) netlink.Link {
		a.ParentIndex = 0
		return &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TUN, Flags: netlink.TUNTAP_NO_PI, Queues: 1}
	}},
	{"tap", func(a netlink.LinkAttrs) netlink.Link {
		a.ParentIndex = 0
		return &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI, Queues: 1}
	}},
}

// plugKind is an engine that puts a link of a kind into the inner namespace
// under the name net9, with an address, a route of its own and a setting.
func (w *world) plugKind(t *testing.T, link func(netlink.LinkAttrs) netlink.Link) {
	t.Helper()
	lacking := ""
	w.in(w.host, func() error {
		parent, err := netlink.LinkByName("h-eth0")
		if err != nil {
			return err
		}
		l := link(attrs("net9", parent.Attrs().Index))
		err = netlink.LinkAdd(l)
		if errors.Is(err, unix.EOPNOTSUPP) {
			lacking = l.Type()
			return nil
		}
		if tun, ok := l.(*netlink.Tuntap); ok {
			for _, f := range tun.Fds {
				f.Close()
			}
		}
		if err != nil {
			return err
		}
		if l, err = netlink.LinkByName("net9"); err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(w.inner.Fd()))
	})
	if lacking != "" {
		t.Skipf("this kernel has no %s", lacking)
	}
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName("net9")
		if err != nil {
			return err
		}
		if err := writeSysctl("ipv4/conf/net9/arp_announce", "2"); err != nil {
			return err
		}
		for _, a := range []string{"172.31.9.5/24", "fd31:9::5/64"} {
			if err := netlink.AddrAdd(l, address(a)); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: prefix("10.9.0.0/16"), Gw: net.ParseIP("172.31.9.1")})
	})
}

// hasKind checks that net9 arrived in the uplink as it was, and that its
// stand-in inside has its addresses.
func (w *world) hasKind(t *testing.T, kind string) {
	t.Helper()
	has := func(ns *os.File, want ...string) {
		t.Helper()
		w.in(ns, func() error {
			l, err := netlink.LinkByName("net9")
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			for _, a := range want {
				if !slices.ContainsFunc(addrs, func(b netlink.Addr) bool { return b.IPNet.String() == a }) {
					t.Errorf("%s lacks the address %s: %v", kind, a, addrs)
				}
			}
			return err
		})
	}
	has(w.uplink, "172.31.9.5/24", "fd31:9::5/64")
	has(w.inner, "172.31.9.5/32", "fd31:9::5/128")
	w.in(w.uplink, func() error {
		l, err := netlink.LinkByName("net9")
		if err != nil {
			return err
		}
		if got, _ := readSysctl(unix.AT_FDCWD, "/proc/sys/net/ipv4/conf/net9/arp_announce"); got != "2" {
			t.Errorf("%s: arp_announce is %s", kind, got)
		}
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst.String() == "10.9.0.0/16" && r.Gw.String() == "172.31.9.1" }) {
			t.Errorf("%s: its route was lost; there are %v", kind, routes)
		}
		return err
	})
	w.must(Verify(w.inner, w.uplink))
}

// Whatever kind of interface it is: it is moved, beside another, before the
// program runs and while it does.
func TestPlugMovesEveryKind(t *testing.T) {
	for _, c := range kinds {
		t.Run(c.kind, func(t *testing.T) {
			w := newWorld(t)
			w.plugIn("eth0", 1)
			w.plugKind(t, c.link)
			links, err := Plug(w.inner, w.uplink, "all")
			w.must(err)
			if len(links) != 2 || !slices.Contains(links, "eth0") || !slices.Contains(links, "net9") {
				t.Errorf("the uplink has %q", links)
			}
			w.must(Seal(w.inner, w.uplink))
			w.hasKind(t, c.kind)
		})
	}
}

func TestFollowMovesEveryKind(t *testing.T) {
	for _, c := range kinds {
		t.Run(c.kind, func(t *testing.T) {
			w := newWorld(t)
			w.plugIn("eth0", 1)
			w.start("all")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended, seen := make(chan error, 1), make(chan []string, 8)
			go func() {
				ended <- Follow(ctx, w.inner, w.uplink, "all", func(links []string, err error) {
					if err != nil {
						t.Error(err)
					}
					seen <- links
				})
			}()
			w.plugKind(t, c.link)
			if links := <-seen; !slices.Contains(links, "net9") {
				t.Errorf("the uplink has %q", links)
			}
			cancel()
			w.must(<-ended)
			w.hasKind(t, c.kind)
		})
	}
}

// What the kernel keeps where it is makes the sandbox impossible, and the error
// says why.
func TestPlugRefusesWhatCannotBeMoved(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.in(w.inner, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("br0", 0)}) })
	if _, err := Plug(w.inner, w.uplink, "all"); err == nil || !strings.Contains(err.Error(), "cannot move br0 (bridge): the kernel does not let") {
		t.Errorf("Plug says: %v", err)
	}
	if err := Seal(w.inner, w.uplink); err == nil {
		t.Error("Seal accepts what Plug could not move")
	}
}
