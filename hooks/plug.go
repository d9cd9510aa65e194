package hooks

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A cable is one interface of the engine's on its way to the uplink.
type cable struct {
	plugged
	link     netlink.Link // as it was in the inner namespace
	addrs    []netlink.Addr
	neighs   []netlink.Neigh
	tunables map[string]string

	// Indexes after the move: the interface itself and its stand-in's ends.
	moved, outer, inner int
}

// Plug moves every interface that an engine plugged into inner to the uplink,
// with its addresses, routes, permanent neighbours, MTU and settings, puts a
// stand-in of the same name in its place, and returns the names of all
// interfaces that the uplink then has. An interface that cannot be moved, or
// that arrives other than it was, is an error, and then the sandbox must not
// run.
//
// ingress is "all", "none" or a list of ports, "80,8000-8100": what passes from
// the uplink to the stand-in. Plug may be called again at any time, for interfaces that came
// later; it removes those whose stand-in is gone (Prune). It deletes in the
// uplink, so that must be one of NewUplink's.
func Plug(inner, uplink *os.File, ingress string) ([]string, error) {
	found, err := plug(inner, uplink, ingress)
	if err != nil {
		return nil, fmt.Errorf("cannot move the engine's interfaces: %w", err)
	}
	return found, nil
}

func plug(innerNS, uplinkNS *os.File, ingress string) ([]string, error) {
	if _, err := ingressPorts(ingress); err != nil {
		return nil, err
	}
	if err := notOurs(innerNS); err != nil {
		return nil, err
	}
	unlock, err := lockNetns(uplinkNS)
	if err != nil {
		return nil, err
	}
	defer unlock()
	inner, err := openSide(innerNS)
	if err != nil {
		return nil, err
	}
	defer inner.Close()
	uplink, err := uplinkSide(uplinkNS)
	if err != nil {
		return nil, err
	}
	defer uplink.Close()
	gone, err := uplink.prune()
	if err != nil {
		return nil, err
	}

	old, err := standins(inner, uplink)
	if err != nil {
		return nil, err
	}
	m := &move{inner: inner, uplink: uplink, old: old, fewer: len(gone) > 0}
	if err := m.read(); err != nil {
		return nil, err
	}
	if len(m.cables) > 0 || m.fewer {
		if err := m.run(ingress); err != nil {
			return nil, err
		}
	}
	if err := m.adoptGateways(); err != nil {
		return nil, err
	}
	return names(uplink.real()), nil
}

// A move is one call of Plug.
type move struct {
	inner, uplink *side
	old           []netlink.Link // stand-ins of earlier calls
	fewer         bool           // there were more: rules and sets are to forget them
	oldAddrs      []netip.Addr   // theirs
	cables        []*cable
	routes        []netlink.Route // of the inner namespace, all tables
	rules         []rule
}

// run does everything, in the order that loses least: nothing is up before the
// rules are there, and addresses are there before routes that use them.
func (m *move) run(ingress string) error {
	for _, step := range []func() error{
		m.pull,
		m.makeStandins,
		func() error { return m.loadRules(ingress) },
		m.tune,
		m.address,
		m.raise,
		m.route,
		m.verify,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// read looks at what there is to move.
func (m *move) read() (err error) {
	if m.routes, err = m.inner.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE); err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	links := cables(m.inner, m.old)
	if len(links) == 0 && !m.fewer {
		return nil
	}
	addrs, err := m.inner.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list addresses: %w", err)
	}
	neighs, err := m.inner.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list neighbours: %w", err)
	}
	if m.rules, err = engineRules(m.inner.ns); err != nil {
		return err
	}
	for _, a := range addrs {
		if slices.ContainsFunc(m.old, func(l netlink.Link) bool { return l.Attrs().Index == a.LinkIndex }) {
			m.oldAddrs = append(m.oldAddrs, addrOf(a.IP))
		}
	}
	numbers := m.freeNumbers()
	for i, l := range links {
		if i >= len(numbers) {
			return fmt.Errorf("cannot have more than %d interfaces", maxLinks)
		}
		c := &cable{link: l, plugged: plugged{name: l.Attrs().Name, n: numbers[i]}}
		for _, a := range addrs {
			if a.LinkIndex == l.Attrs().Index {
				c.addrs = append(c.addrs, a)
			}
		}
		for _, n := range neighs {
			if n.LinkIndex == l.Attrs().Index && n.State&netlink.NUD_PERMANENT != 0 {
				c.neighs = append(c.neighs, n)
			}
		}
		m.cables = append(m.cables, c)
	}
	return In(m.inner.ns, func() (err error) {
		for _, c := range m.cables {
			if c.tunables, err = readTunables(c.name); err != nil {
				return err
			}
		}
		return nil
	})
}

// freeNumbers are the stand-in numbers that are not in use, lowest first.
func (m *move) freeNumbers() []int {
	used := map[int]bool{}
	for _, p := range m.uplink.plugged() {
		used[p.n] = true
	}
	var free []int
	for n := 1; n <= maxLinks; n++ {
		if !used[n] {
			free = append(free, n)
		}
	}
	return free
}

// pull moves the links themselves. The kernel takes addresses, routes and
// settings from them, and keeps MAC, MTU and name.
func (m *move) pull() error {
	for _, c := range m.cables {
		err := m.inner.LinkSetNsFd(c.link, int(m.uplink.ns.Fd()))
		if errors.Is(err, unix.EINVAL) {
			// NETIF_F_NETNS_LOCAL, since Linux 6.15 netns_immutable.
			return fmt.Errorf("cannot move %s (%s): the kernel does not let an interface of this kind leave its namespace", c.name, c.link.Type())
		}
		if err != nil {
			return fmt.Errorf("cannot move %s (%s): %w", c.name, c.link.Type(), err)
		}
	}
	return nil
}

// makeStandins puts a veth where each link was, and learns the new indexes.
func (m *move) makeStandins() error {
	for _, c := range m.cables {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = c.plugged.outer(), c.link.Attrs().MTU, c.mac()
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = c.name, c.mac(), netlink.NsFd(m.inner.ns.Fd())
		if err := m.uplink.LinkAdd(veth); err != nil {
			return fmt.Errorf("cannot make the stand-in of %s: %w", c.name, err)
		}
	}
	if err := m.uplink.list(); err != nil {
		return err
	}
	if err := m.inner.list(); err != nil {
		return err
	}
	for _, c := range m.cables {
		moved, outer, inner := m.uplink.byName(c.name), m.uplink.byName(c.plugged.outer()), m.inner.byName(c.name)
		if moved == nil || outer == nil || inner == nil {
			return fmt.Errorf("cannot find %s after it was moved", c.name)
		}
		// The kernel takes no alias for a link that it is still to make.
		if err := m.uplink.LinkSetAlias(outer, c.name); err != nil {
			return fmt.Errorf("cannot name the stand-in of %s: %w", c.name, err)
		}
		outer.Attrs().Alias = c.name
		if got, want := moved.Attrs().MTU, c.link.Attrs().MTU; got != want {
			return fmt.Errorf("cannot move %s: its MTU is %d and was %d", c.name, got, want)
		}
		c.moved, c.outer, c.inner = moved.Attrs().Index, outer.Attrs().Index, inner.Attrs().Index
	}
	return nil
}

// tune writes the settings of connection tracking, of the moved links and of the
// stand-ins' ends.
func (m *move) tune() error {
	err := In(m.uplink.ns, func() error {
		for _, s := range tracking { // the rules have loaded it
			if err := writeSysctl(s.name, s.value); err != nil && !errors.Is(err, os.ErrNotExist) { // built without
				return err
			}
		}
		for _, c := range m.cables {
			if err := writeTunables(c.name, c.tunables); err != nil {
				return err
			}
			// Replies carry the container's address, which is local here.
			if err := writeSysctl("ipv4/conf/"+c.plugged.outer()+"/accept_local", "1"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return In(m.inner.ns, func() error {
		for _, c := range m.cables {
			if err := writeSysctl("ipv4/conf/"+c.name+"/rp_filter", "0"); err != nil {
				return err
			}
			if c.tunables["ipv6/conf/disable_ipv6"] == "" {
				continue // no IPv6
			}
			off := "1"
			if _, a := c.firstAddrs(); a.IsValid() {
				off = "0"
			}
			if err := writeSysctl("ipv6/conf/"+c.name+"/addr_gen_mode", "1"); err != nil {
				return err
			}
			if err := writeSysctl("ipv6/conf/"+c.name+"/disable_ipv6", off); err != nil {
				return err
			}
		}
		return nil
	})
}

// own are the addresses that the stand-in carries: those of more than one link.
func (c *cable) own() []netip.Addr {
	var found []netip.Addr
	for _, a := range c.addrs {
		if addr := addrOf(a.IP); !addr.IsLinkLocalUnicast() {
			found = append(found, addr)
		}
	}
	return found
}

// firstAddrs are the addresses that answer inbound connections; either may be
// invalid.
func (c *cable) firstAddrs() (v4, v6 netip.Addr) {
	for _, a := range c.own() {
		if a.Is4() && !v4.IsValid() {
			v4 = a
		}
		if a.Is6() && !v6.IsValid() {
			v6 = a
		}
	}
	return v4, v6
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// loadRules makes both namespaces' rules know the stand-ins.
func (m *move) loadRules(ingress string) error {
	first, err := loadUplink(m.uplink.ns, m.uplink.plugged(), ingress)
	if err != nil {
		return err
	}
	return m.fillSets(!first)
}

// fillSets tells the fence which links are stand-ins and what the container
// answers for itself, in one batch. Except for the first time, what the sets
// held before is thrown away: a stand-in may be gone.
func (m *move) fillSets(flush bool) error {
	var links []nftables.SetElement
	addrs := m.oldAddrs
	for _, l := range m.old {
		links = append(links, nftables.SetElement{Key: native(uint32(l.Attrs().Index))})
	}
	for _, c := range m.cables {
		links = append(links, nftables.SetElement{Key: native(uint32(c.inner))})
		addrs = append(addrs, c.own()...)
	}
	own4, own6 := own(addrs)
	c, err := newBatch()
	if err != nil {
		return fmt.Errorf("cannot write the fence's sets: %w", err)
	}
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{{own4Set(), own4}, {own6Set(), own6}, {linksSet(), links}} {
		if flush {
			c.FlushSet(s.set)
		}
		if err := c.SetAddElements(s.set, s.elements); err != nil {
			return fmt.Errorf("cannot write the fence's sets: %w", err)
		}
	}
	if err := c.commit(m.inner.ns); err != nil {
		return fmt.Errorf("cannot write the fence's sets: %w", err)
	}
	return nil
}

// address gives the moved links their addresses back, and the stand-ins the
// same ones without their networks.
func (m *move) address() error {
	for _, c := range m.cables {
		for _, a := range c.addrs {
			// Replace: the kernel may have made the link-local one already.
			if err := m.uplink.AddrReplace(at(c.moved), movedAddr(a)); err != nil {
				return fmt.Errorf("cannot give %s the address %s: %w", c.name, a.IPNet, err)
			}
		}
		for _, a := range c.own() {
			if err := m.inner.AddrAdd(at(c.inner), &netlink.Addr{IPNet: host(a), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("cannot give the stand-in of %s the address %s: %w", c.name, a, err)
			}
		}
	}
	return nil
}

// movedAddr is a as it is to be added again: without what the kernel says of
// it, and without a second search for duplicates.
func movedAddr(a netlink.Addr) *netlink.Addr {
	a.Flags &= unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN
	a.Flags |= unix.IFA_F_NODAD
	if a.Broadcast == nil {
		a.Broadcast = net.IPv4zero // else the library makes one up
	}
	return &a
}

func at(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// raise brings everything up, the moved links last.
func (m *move) raise() error {
	for _, c := range m.cables {
		for _, end := range []struct {
			*side
			index int
		}{{m.inner, c.inner}, {m.uplink, c.outer}} {
			if err := end.LinkSetARPOff(at(end.index)); err != nil {
				return fmt.Errorf("cannot set up the stand-in of %s: %w", c.name, err)
			}
			if err := end.LinkSetUp(at(end.index)); err != nil {
				return fmt.Errorf("cannot set up the stand-in of %s: %w", c.name, err)
			}
		}
	}
	for _, c := range m.cables {
		if c.link.Attrs().Flags&net.FlagUp == 0 {
			continue // the engine left it down
		}
		if err := m.uplink.LinkSetUp(at(c.moved)); err != nil {
			return fmt.Errorf("cannot bring %s up: %w", c.name, err)
		}
	}
	return nil
}

// route leads marked flows to the stand-ins and their replies back, and gives
// the moved links their routes, rules and neighbours.
func (m *move) route() error {
	for _, c := range m.cables {
		if err := m.routeInbound(c); err != nil {
			return fmt.Errorf("cannot route to the stand-in of %s: %w", c.name, err)
		}
	}
	for _, r := range m.movedRoutes() {
		if err := m.uplink.RouteAdd(&r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot add the route %s: %w", r, err)
		}
	}
	if err := addRules(m.uplink.ns, m.rules); err != nil {
		return err
	}
	for _, c := range m.cables {
		for _, n := range c.neighs {
			n.LinkIndex = c.moved
			if err := m.uplink.NeighSet(&n); err != nil {
				return fmt.Errorf("cannot add the neighbour %s of %s: %w", n.IP, c.name, err)
			}
		}
	}
	return nil
}

// routeInbound adds a stand-in's four routes and two rules. The source of the
// reply routes is what makes a UDP server on 0.0.0.0 answer from the address
// that it was asked at.
func (m *move) routeInbound(c *cable) error {
	v4, v6 := c.firstAddrs()
	if v4.IsValid() {
		if err := addRule(m.uplink.Handle, netlink.FAMILY_V4, 5, int(c.mark()), c.mark()); err != nil {
			return err
		}
		in := &netlink.Route{LinkIndex: c.outer, Dst: everywhere(v4), Table: int(c.mark()), Scope: netlink.SCOPE_LINK}
		if err := m.uplink.RouteReplace(in); err != nil {
			return err
		}
		reply := &netlink.Route{LinkIndex: c.inner, Dst: host(c.caller4()), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_LINK, Src: v4.AsSlice()}
		if err := m.inner.RouteReplace(reply); err != nil {
			return err
		}
	}
	if v6.IsValid() {
		if err := addRule(m.uplink.Handle, netlink.FAMILY_V6, 5, int(c.mark()), c.mark()); err != nil {
			return err
		}
		in := &netlink.Route{LinkIndex: c.outer, Dst: everywhere(v6), Table: int(c.mark())}
		if err := m.uplink.RouteReplace(in); err != nil {
			return err
		}
		reply := &netlink.Route{LinkIndex: c.inner, Dst: host(c.caller6()), Table: steeringTable, Src: v6.AsSlice()}
		if err := m.inner.RouteReplace(reply); err != nil {
			return err
		}
	}
	return nil
}

// everywhere is the default network of a's family.
func everywhere(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

// movedRoutes are the routes over the moved links, as they are to be added:
// those without a gateway first, which others need to reach theirs.
func (m *move) movedRoutes() []netlink.Route {
	index := map[int]int{}
	for _, c := range m.cables {
		index[c.link.Attrs().Index] = c.moved
	}
	var found []netlink.Route
	for _, r := range m.routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Table == unix.RT_TABLE_LOCAL {
			continue // made by the kernel from the addresses
		}
		if moved, ok := movedRoute(r, index); ok {
			found = append(found, moved)
		}
	}
	slices.SortStableFunc(found, func(a, b netlink.Route) int { return cmp.Compare(viaGateway(a), viaGateway(b)) })
	return found
}

func viaGateway(r netlink.Route) int {
	if r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0 {
		return 0
	}
	return 1
}

// plain is r without what the kernel says of it, such as that a link is down, and
// without the link that it makes up for a barrier.
func plain(r netlink.Route) netlink.Route {
	const keep = int(netlink.FLAG_ONLINK)
	r.Flags &= keep
	if isBarrier(r.Type) {
		r.LinkIndex = 0
	}
	var hops []*netlink.NexthopInfo
	for _, h := range r.MultiPath {
		hop := *h
		hop.Flags &= keep
		hops = append(hops, &hop)
	}
	r.MultiPath = hops
	return r
}

// movedRoute is r with the new indexes; not ok if it leads over other links.
func movedRoute(r netlink.Route, index map[int]int) (netlink.Route, bool) {
	r = plain(r)
	if isBarrier(r.Type) {
		return r, true
	}
	if len(r.MultiPath) == 0 {
		moved, ok := index[r.LinkIndex]
		r.LinkIndex = moved
		return r, ok
	}
	var hops []*netlink.NexthopInfo
	for _, h := range r.MultiPath {
		moved, ok := index[h.LinkIndex]
		if !ok {
			return r, false
		}
		hop := *h
		hop.LinkIndex = moved
		hops = append(hops, &hop)
	}
	r.MultiPath = hops
	return r, true
}

// verify reads the uplink back: everything that was taken must be there.
func (m *move) verify() error {
	addrs, err := m.uplink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list addresses: %w", err)
	}
	routes, err := m.uplink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	neighs, err := m.uplink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list neighbours: %w", err)
	}
	for _, c := range m.cables {
		for _, a := range c.addrs {
			if !slices.ContainsFunc(addrs, func(b netlink.Addr) bool {
				return b.LinkIndex == c.moved && b.IPNet.String() == a.IPNet.String() && b.Peer.String() == a.Peer.String()
			}) {
				return fmt.Errorf("cannot move %s: its address %s was lost", c.name, a.IPNet)
			}
		}
		for _, n := range c.neighs {
			if !slices.ContainsFunc(neighs, func(b netlink.Neigh) bool {
				return b.LinkIndex == c.moved && b.IP.Equal(n.IP) && b.HardwareAddr.String() == n.HardwareAddr.String()
			}) {
				return fmt.Errorf("cannot move %s: its neighbour %s was lost", c.name, n.IP)
			}
		}
	}
	for _, want := range m.movedRoutes() {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return reflect.DeepEqual(plain(r), want) }) {
			return fmt.Errorf("the route %s was lost", want)
		}
	}
	return compareRules(m.uplink.ns, m.rules)
}

// adoptGateways reads a route with a gateway over lo for what it is. An engine
// names only the gateway, which the steering routes make the kernel find on lo:
// the route belongs to the interface whose network holds that gateway.
func (m *move) adoptGateways() error {
	for _, r := range m.routes {
		if r.LinkIndex != 1 || r.Gw == nil {
			continue
		}
		index, err := m.uplink.holding(r.Gw)
		if err != nil {
			return err
		}
		if index != 0 {
			adopted := netlink.Route{LinkIndex: index, Dst: r.Dst, Gw: r.Gw, Table: r.Table, Priority: r.Priority, Protocol: r.Protocol}
			if err := m.uplink.RouteReplace(&adopted); err != nil {
				return fmt.Errorf("cannot use the gateway %s: %w", r.Gw, err)
			}
		}
		if err := m.inner.RouteDel(&r); err != nil {
			return fmt.Errorf("cannot take the gateway %s out of the sandbox: %w", r.Gw, err)
		}
	}
	return nil
}

// holding is the index of the interface whose network holds ip; 0 if none does:
// the gateway of a network that is gone.
func (s *side) holding(ip net.IP) (int, error) {
	addrs, err := s.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("cannot list addresses: %w", err)
	}
	for _, a := range addrs {
		if a.LinkIndex != 1 && a.IPNet.Contains(ip) {
			return a.LinkIndex, nil
		}
	}
	return 0, nil
}
