package hooks

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the engine configured arrives in the uplink as it was.
func TestPlugMovesEverythingThatBelongsToALink(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	neighbour := net.HardwareAddr{2, 0, 0, 0, 0, 99}
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		index := l.Attrs().Index
		for _, r := range []netlink.Route{
			{LinkIndex: index, Dst: prefix("10.1.0.0/16"), Gw: net.ParseIP("172.31.1.7"), MTU: 1300},
			{LinkIndex: index, Dst: prefix("10.2.0.0/16"), Scope: netlink.SCOPE_LINK},
			{LinkIndex: index, Dst: prefix("10.3.0.0/16"), Gw: net.ParseIP("10.2.0.1"), Table: 100},
			{LinkIndex: index, Dst: prefix("2001:db8:1::/48"), Gw: net.ParseIP("fd31:1::7")},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("%s: %w", r, err)
			}
		}
		rule := netlink.NewRule()
		rule.Src, rule.Table, rule.Priority = prefix("172.31.1.5/32"), 100, 1000
		if err := netlink.RuleAdd(rule); err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: index, IP: net.ParseIP("172.31.1.7"), HardwareAddr: neighbour, State: netlink.NUD_PERMANENT}
		if err := netlink.NeighAdd(n); err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(l, 1350); err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, address("172.31.1.6/24")); err != nil {
			return err
		}
		return writeSysctl("ipv4/conf/eth0/arp_announce", "2")
	})

	links, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	if want := []string{"eth0"}; !slices.Equal(links, want) {
		t.Fatalf("the uplink has %q; want %q", links, want)
	}
	w.must(Seal(w.inner, w.uplink))

	w.in(w.uplink, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if got := l.Attrs().MTU; got != 1350 {
			t.Errorf("the MTU is %d", got)
		}
		if got, _ := readSysctl(unix.AT_FDCWD, "/proc/sys/net/ipv4/conf/eth0/arp_announce"); got != "2" {
			t.Errorf("arp_announce is %s", got)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, want := range []string{"172.31.1.5/24", "172.31.1.6/24", "fd31:1::5/64"} {
			if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == want && a.Flags&unix.IFA_F_TENTATIVE == 0 }) {
				t.Errorf("%s is missing, or not yet usable", want)
			}
		}
		for _, want := range []struct{ dst, gw string }{
			{"10.1.2.3", "172.31.1.7"}, {"10.2.2.3", ""}, {"10.3.2.3", "10.2.0.1"},
			{"2001:db8:1::3", "fd31:1::7"}, {"203.0.113.9", "172.31.1.1"}, {"2001:db8::9", "fd31:1::1"},
		} {
			src := net.ParseIP("172.31.1.5")
			if strings.Contains(want.dst, ":") {
				src = net.ParseIP("fd31:1::5")
			}
			routes, err := netlink.RouteGetWithOptions(net.ParseIP(want.dst), &netlink.RouteGetOptions{SrcAddr: src})
			if err != nil {
				t.Errorf("route to %s: %v", want.dst, err)
				continue
			}
			if gw := net.ParseIP(want.gw); !routes[0].Gw.Equal(gw) {
				t.Errorf("%s goes by %s; want %s", want.dst, routes[0].Gw, gw)
			}
		}
		neighs, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(neighs, func(n netlink.Neigh) bool { return n.HardwareAddr.String() == neighbour.String() }) {
			t.Errorf("the permanent neighbour is missing")
		}
		return nil
	})
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if got := l.Attrs().MTU; got != 1350 {
			t.Errorf("the stand-in's MTU is %d", got)
		}
		return nil
	})
}

func prefix(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Plug is called at the end of create and again at start; and later, when the
// container is connected to one more network.
func TestPlugMayBeCalledAgain(t *testing.T) {
	w := newWorld(t)
	w.gateway()
	if links, err := Plug(w.inner, w.uplink, "all"); err != nil || len(links) > 0 {
		t.Fatalf("nothing to plug: %q, %v", links, err)
	}
	w.plugIn("eth0", 1)
	w.start("all")
	w.start("all")
	w.serve(w.inner, "tcp", ":8080", "mine")

	// A link that comes later is fenced from its first moment ...
	w.plugInLater("eth1", 2)
	cable := w.capture("h2-eth1")
	if got := w.ask(w.inner, "tcp", "203.0.113.9:80"); !strings.HasPrefix(got, "gateway ") {
		t.Errorf("with a second cable inside: %s; want the gateway", got)
	}
	if err := Verify(w.inner, w.uplink); err == nil || !strings.Contains(err.Error(), "eth1 (veth) leads out") {
		t.Errorf("Verify says: %v", err)
	}
	// ... and both networks work when it was moved.
	links, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	if want := []string{"eth0", "eth1"}; !slices.Equal(links, want) {
		t.Fatalf("the uplink has %q; want %q", links, want)
	}
	w.must(Verify(w.inner, w.uplink))
	for n, want := range map[int]string{
		1: "mine 172.31.1.5:8080 from 169.254.77.1",
		2: "mine 172.31.2.5:8080 from 169.254.77.2",
	} {
		if got := w.ask(w.host, "tcp", fmt.Sprintf("172.31.%d.5:8080", n)); got != want {
			t.Errorf("inbound by network %d: %s; want: %s", n, got, want)
		}
		if got := w.ask(w.inner, "tcp", fmt.Sprintf("172.31.%d.5:8080", n)); !strings.HasPrefix(got, "mine") {
			t.Errorf("its own address on network %d: %s", n, got)
		}
	}
	for _, frame := range cable.leaked(w.uplink, "172.31.2.1:1") {
		if !strings.Contains(frame, "ac1f0205ac1f0201") { // answers to the host's question
			t.Errorf("a frame left the sandbox: %s", frame)
		}
	}
}

// plugInLater is `docker network connect` to a network whose gateway becomes
// the default: the engine names the gateway alone, and with the steering in
// force the kernel finds it on lo.
func (w *world) plugInLater(name string, n int) {
	w.Helper()
	w.in(w.host, func() error {
		veth := netlink.NewVeth(netlink.NewLinkAttrs())
		veth.Name, veth.PeerName, veth.PeerNamespace = fmt.Sprintf("h%d-%s", n, name), name, netlink.NsFd(w.inner.Fd())
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := netlink.AddrAdd(veth, address(fmt.Sprintf("172.31.%d.1/24", n))); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, address(fmt.Sprintf("172.31.%d.5/24", n))); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(fmt.Sprintf("172.31.%d.1", n))})
	})
}

// The default route that landed on lo is the engine's choice of gateway.
func TestPlugAdoptsTheEnginesGateway(t *testing.T) {
	w := newWorld(t)
	w.gateway()
	w.plugIn("eth0", 1)
	w.start("all")
	w.plugInLater("eth1", 2)
	_, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	w.in(w.uplink, func() error {
		routes, err := netlink.RouteGet(net.ParseIP("203.0.113.9"))
		if err == nil && !routes[0].Gw.Equal(net.ParseIP("172.31.2.1")) {
			t.Errorf("the uplink's gateway is %s", routes[0].Gw)
		}
		return err
	})
	w.in(w.inner, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Gw != nil {
				t.Errorf("a gateway is left inside: %s", r)
			}
		}
		return err
	})
}

func attrs(name string, parent int) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.ParentIndex = name, parent
	return a
}

// An engine disconnects a network by removing the interface that it knows, our
// stand-in. Then the real one goes too.
func TestPruneFollowsADisconnect(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.plugInLater("eth1", 2)
	w.start("all")
	w.in(w.inner, func() error { return delLink("eth1") })
	gone, err := Prune(w.uplink)
	w.must(err)
	if want := []string{"eth1"}; !slices.Equal(gone, want) {
		t.Errorf("pruned %q; want %q", gone, want)
	}
	w.must(Verify(w.inner, w.uplink))
	w.in(w.host, func() error {
		if _, err := net.InterfaceByName("h2-eth1"); err == nil {
			t.Error("the engine's end of the cable is left over")
		}
		return nil
	})
	// The name may come again, and its number too. Plug prunes by itself.
	w.plugInLater("eth1", 4)
	_, err = Plug(w.inner, w.uplink, "all")
	w.must(err)
	w.in(w.inner, func() error { return delLink("eth1") })
	w.plugInLater("eth1", 3)
	links, err := Plug(w.inner, w.uplink, "all")
	w.must(err)
	if want := []string{"eth0", "eth1"}; !slices.Equal(links, want) {
		t.Fatalf("the uplink has %q; want %q", links, want)
	}
	w.serve(w.inner, "tcp", ":8080", "mine")
	if got := w.ask(w.host, "tcp", "172.31.3.5:8080"); !strings.HasPrefix(got, "mine") {
		t.Errorf("inbound by the network that came again: %s", got)
	}
}

func delLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// When init has exited the address must be free at once.
func TestUnplugLeavesNothingToAnswer(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	w.must(Unplug(w.uplink))
	w.must(Unplug(w.uplink))
	for ns, f := range map[string]*os.File{"uplink": w.uplink, "sandbox": w.inner, "host": w.host} {
		w.in(f, func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Attrs().Name != "lo" {
					t.Errorf("%s still has %s", ns, l.Attrs().Name)
				}
			}
			return err
		})
	}
}

// A pin keeps the uplink and what is in it while no process is there; Unpin
// ends both and may be called again.
func TestPinKeepsTheUplink(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	pin := filepath.Join(t.TempDir(), "uplink")
	w.must(PinUplink(w.uplink, pin))
	t.Cleanup(func() { Unpin(pin) })
	if err := PinUplink(w.uplink, pin); err == nil {
		t.Error("a pin was put over another")
	}

	again, err := OpenNetns(pin)
	w.must(err)
	defer again.Close()
	if same, err := SameNetns(again, w.uplink); err != nil || !same {
		t.Errorf("the pin is another namespace (%v)", err)
	}
	w.must(Verify(w.inner, again))

	w.must(Unpin(pin))
	w.must(Unpin(pin))
	if _, err := os.Lstat(pin); !os.IsNotExist(err) {
		t.Errorf("the file is left over: %v", err)
	}
}

// A symlink in the way is neither followed by the mount nor by its undoing.
func TestPinFollowsNoSymlink(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	victim, link := filepath.Join(dir, "victim"), filepath.Join(dir, "uplink")
	w.must(PinUplink(w.uplink, victim))
	t.Cleanup(func() { Unpin(victim) })
	w.must(os.Symlink(victim, link))
	if err := PinUplink(w.uplink, link); err == nil {
		t.Error("the pin followed a symlink")
	}
	w.must(Unpin(link))
	ns, err := OpenNetns(victim)
	if err != nil {
		t.Fatalf("Unpin followed a symlink: %v", err)
	}
	ns.Close()
}

// Every way in which a seal can be broken is told.
func TestVerifyNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		broken string
		how    func(w *world) error // in the inner namespace
		fault  string
	}{
		{"a cable came in", func(w *world) error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("x0", 0), PeerName: "x1"})
		}, "leads out of the sandbox"},
		{"the rules were flushed", func(*world) error { return nft(func(c *nftables.Conn) { c.FlushRuleset() }) },
			"the fence's table is missing"},
		{"a rule was replaced", func(*world) error {
			return nft(func(c *nftables.Conn) {
				in := &nftables.Chain{Table: table(), Name: "raw_out"}
				c.FlushChain(in)
				c.AddRule(&nftables.Rule{Table: table(), Chain: in, Exprs: accept})
				c.AddRule(&nftables.Rule{Table: table(), Chain: in, Exprs: accept})
			})
		}, "rule 1 of the fence's chain raw_out is another one"},
		{"a rule says another network", func(*world) error {
			return nft(func(c *nftables.Conn) {
				raw := innerChains(true)[0]
				kc := &nftables.Chain{Table: table(), Name: raw.name}
				c.FlushChain(kc)
				for _, exprs := range raw.rules {
					for i, e := range exprs {
						if cmp, ok := e.(*expr.Cmp); ok && slices.Equal(cmp.Data, []byte{127}) {
							exprs[i] = is(cmp.Op, []byte{10})
						}
					}
					c.AddRule(&nftables.Rule{Table: table(), Chain: kc, Exprs: exprs})
				}
			})
		}, "rule 1 of the fence's chain raw_out is another one"},
		{"a rule was added", func(*world) error {
			return nft(func(c *nftables.Conn) {
				c.AddRule(&nftables.Rule{Table: table(), Chain: &nftables.Chain{Table: table(), Name: "forw"}, Exprs: accept})
			})
		}, "the fence's chain forw has 1 rules and not 0"},
		{"a chain was added", func(*world) error {
			return nft(func(c *nftables.Conn) {
				c.AddChain(&nftables.Chain{Table: table(), Name: "first", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
			})
		}, "the fence has a chain first that is none of its own"},
		{"the table was put to sleep", func(*world) error { return sleep() }, "the fence's table sleeps"},
		{"a chain was emptied", func(*world) error {
			return nft(func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Table: table(), Name: "out"}) })
		}, "the fence's chain out has 0 rules"},
		{"a policy was changed", func(*world) error {
			yes := nftables.ChainPolicyAccept
			return nft(func(c *nftables.Conn) {
				c.AddChain(&nftables.Chain{Table: table(), Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &yes})
			})
		}, "the fence's chain in has another policy"},
		{"lo went down", func(*world) error { return netlink.LinkSetDown(&netlink.Device{LinkAttrs: attrs("lo", 0)}) }, "lo is down"},
		{"an address is gone", func(*world) error {
			return netlink.AddrDel(&netlink.Device{LinkAttrs: attrs("lo", 0)}, &netlink.Addr{IPNet: host(gate6)})
		}, "lo has lost the address fd6e:656d:6f::1"},
		{"the rule is gone", func(*world) error {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = netlink.FAMILY_V4, steeringTable, steeringTable
			return netlink.RuleDel(r)
		}, "the routing rule that steers is gone"},
		{"the route is gone", func(*world) error { return netlink.RouteDel(&steeringRoutes(true)[0]) }, "the route that steers 0.0.0.0/0 is gone"},
		{"the stand-in asks", func(*world) error { return netlink.LinkSetARPOn(&netlink.Device{LinkAttrs: attrs("eth0", 0)}) },
			"the stand-in eth0 asks for neighbours"},
	} {
		t.Run(c.broken, func(t *testing.T) {
			w := newWorld(t)
			w.plugIn("eth0", 1)
			w.start("all")
			w.must(Verify(w.inner, w.uplink))
			w.in(w.inner, func() error { return c.how(w) })
			if err := Verify(w.inner, w.uplink); err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("Verify says: %v; want: %s", err, c.fault)
			}
		})
	}
}

// sleep sets the flag of the fence's table that keeps it from being asked; the
// library writes no flags.
func sleep() error {
	c, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	attrs, err := nl.MarshalAttributes([]nl.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(tableName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, unix.NFT_TABLE_F_DORMANT}},
	})
	if err != nil {
		return err
	}
	batch := func(kind nl.HeaderType) nl.Message {
		return nl.Message{Header: nl.Header{Type: kind, Flags: nl.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	sent, err := c.SendMessages([]nl.Message{
		batch(unix.NFNL_MSG_BATCH_BEGIN),
		{Header: nl.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: nl.Request | nl.Acknowledge},
			Data: append([]byte{byte(nftables.TableFamilyINet), unix.NFNETLINK_V0, 0, 0}, attrs...)},
		batch(unix.NFNL_MSG_BATCH_END),
	})
	if err != nil {
		return err
	}
	answers, err := c.Receive()
	if err == nil {
		err = nl.Validate(sent[1], answers)
	}
	return err
}

// nft makes one change to the thread's namespace.
func nft(change func(*nftables.Conn)) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	change(c)
	return c.Flush()
}

// A stand-in of somebody else is a way out like any other, and so is a cable
// where the policy names an uplink of its own.
func TestSealTrustsNoOtherUplink(t *testing.T) {
	w := newWorld(t)
	w.must(Seal(w.inner, nil)) // no cable at all
	w.plugIn("eth0", 1)
	if err := Seal(w.inner, nil); err == nil || !strings.Contains(err.Error(), "the engine plugged in eth0 (veth)") {
		t.Errorf("a cable beside another uplink: %v", err)
	}
	w.start("all")
	other, err := NewUplink()
	w.must(err)
	defer other.Close()
	if err := Verify(w.inner, other); err == nil || !strings.Contains(err.Error(), "eth0 (veth) leads out") {
		t.Errorf("another sandbox's uplink: %v", err)
	}
}

// The namespaces that In enters stay with the thread that entered them.
func TestInLeavesNoTrace(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		ns := mustNetns(t)
		if err := In(ns, func() error {
			inside, err := OpenNetns("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer inside.Close()
			if same, err := SameNetns(inside, ns); err != nil || !same {
				t.Errorf("In runs elsewhere (%v)", err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
			t.Fatalf("the process is in %s and was in %s (%v)", after, before, err)
		}
	}
}

// Only network namespaces pass for network namespaces.
func TestOpenNetnsRefusesEverythingElse(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, fault := range map[string]string{
		"/proc/self/ns/mnt":          "it is a namespace of another kind",
		"/dev/null":                  "it is not a namespace",
		dir:                          "it is not a namespace",
		fifo:                         "it is not a namespace",
		filepath.Join(dir, "absent"): "no such file or directory",
	} {
		f, err := OpenNetns(path)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v; want: %s", path, err, fault)
		}
	}
}

// What start waits for if the engine plugged in late: most of it is the
// kernel's, for the move itself.
func BenchmarkPlugAndSeal(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		w.plugIn("eth0", 1)
		b.StartTimer()
		w.start("all")
	}
}

// What start waits for if create has moved everything already.
func BenchmarkPlugAndSealAgain(b *testing.B) {
	w := newWorld(b)
	w.plugIn("eth0", 1)
	w.start("all")
	for b.Loop() {
		w.start("all")
	}
}

// Networks that an engine connects and disconnects for months leave nothing in
// either namespace: no route, no rule, no address, nothing in the sets.
func TestNetworksComeAndGo(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	before := w.contents(w.inner) + w.contents(w.uplink)
	for round := range 8 {
		w.plugInLater("eth1", 2+round)
		_, err := Plug(w.inner, w.uplink, "all")
		w.must(err)
		w.in(w.inner, func() error { return delLink("eth1") })
		_, err = Plug(w.inner, w.uplink, "all")
		w.must(err)
		w.must(Verify(w.inner, w.uplink))
		if now := w.contents(w.inner) + w.contents(w.uplink); now != before {
			t.Fatalf("after %d networks there is\n%s\nand was\n%s", round+1, now, before)
		}
	}
}

// contents is what a namespace holds, but for the numbers of interfaces.
func (w *world) contents(ns *os.File) string {
	w.Helper()
	var lines []string
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	w.in(ns, func() error {
		links, err := netlink.LinkList()
		w.must(err)
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		w.must(err)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				say("address %s on %s", a.IPNet, names[a.LinkIndex])
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		w.must(err)
		for _, r := range routes {
			if r.Table == unix.RT_TABLE_LOCAL && r.Protocol == unix.RTPROT_KERNEL {
				continue // one comes with each address, of IPv6 a moment later
			}
			if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
				say("route %s via %s on %s, table %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table)
			}
		}
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		w.must(err)
		for _, r := range rules {
			say("rule %s", r)
		}
		c, err := nftables.New()
		w.must(err)
		chains, err := c.ListChains()
		w.must(err)
		for _, chain := range chains {
			rules, err := c.GetRules(chain.Table, chain)
			w.must(err)
			say("chain %s of %d rules", chain.Name, len(rules))
		}
		sets, err := c.GetSets(table())
		w.must(err)
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			w.must(err)
			say("set %s of %d", s.Name, len(elements))
		}
		return nil
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}
