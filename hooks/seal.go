package hooks

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Seal steers what the sandbox sends to the listeners and then verifies that
// there is no way out (Verify). It is called after Plug, when the engine is done
// and before a program runs; calling it again changes nothing.
//
// uplink is nil where the policy names another uplink than the engine's. There must be no stand-ins then, and an interface that the engine
// plugged in is an error: it stays where it is, behind the fence.
func Seal(inner, uplink *os.File) error {
	v6, err := hasIPv6()
	if err == nil {
		err = seal(inner, uplink, v6)
	}
	if err != nil {
		return fmt.Errorf("cannot seal the network namespace: %w", err)
	}
	return nil
}

func seal(inner, uplink *os.File, v6 bool) error {
	if err := notOurs(inner); err != nil {
		return err
	}
	compared := comparing(inner, v6)
	defer compared()
	err := In(inner, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("cannot open a netlink socket: %w", err)
		}
		defer h.Close()
		if err := addressLoopback(h, v6); err != nil {
			return err
		}
		return steer(h, v6)
	})
	if err != nil {
		return err
	}
	return verify(inner, uplink, v6, compared)
}

// comparing compares the fence beside what else is done and looked at, none of
// which changes its rules. The result waits for that.
func comparing(inner *os.File, v6 bool) (result func() error) {
	done := make(chan error, 1)
	go func() { done <- compareIn(inner, innerChains(v6)) }()
	return sync.OnceValue(func() error { return <-done })
}

// steer makes every address one of this machine's, so that what a program
// sends comes back in over lo, where the fence turns it to the listeners.
//
// A rule before the local table's, even for an empty table, makes the kernel
// look at local and main apart; it takes them for one otherwise, and the
// longer prefix of a network in main would win.
func steer(h *netlink.Handle, v6 bool) error {
	for _, family := range families(v6) {
		if err := addRule(h, family, steeringTable, steeringTable, 0); err != nil {
			return err
		}
	}
	for _, r := range steeringRoutes(v6) {
		if err := h.RouteReplace(&r); err != nil {
			return fmt.Errorf("cannot steer %s: %w", r.Dst, err)
		}
	}
	return nil
}

// steeringRoutes: the IPv4 one stands in the local table, because only from an
// address of that table the kernel sends ICMP errors, by which UDP is refused.
func steeringRoutes(v6 bool) []netlink.Route {
	routes := []netlink.Route{{LinkIndex: 1, Type: unix.RTN_LOCAL, Dst: everywhere(self4), Src: self4.AsSlice(), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}}
	if v6 {
		routes = append(routes, netlink.Route{LinkIndex: 1, Type: unix.RTN_LOCAL, Dst: everywhere(self6), Src: self6.AsSlice(), Table: steeringTable})
	}
	return routes
}

// Verify says what is wrong with the seal of inner; nil if it holds. It
// changes nothing. The cause is the first of these that is found:
//
//   - an interface that is neither loopback nor a stand-in;
//   - a route over such an interface;
//   - a fence that is not as Fence made it;
//   - an address of loopback, a rule or a route of the steering that is gone.
//
// uplink is nil if there is none of ours; then there are no stand-ins.
func Verify(inner, uplink *os.File) error {
	v6, err := hasIPv6()
	if err == nil {
		compared := comparing(inner, v6)
		err = verify(inner, uplink, v6, compared)
		_ = compared() // it has been heard, or comes behind another fault
	}
	if err != nil {
		return fmt.Errorf("cannot trust the network namespace: %w", err)
	}
	return nil
}

func verify(innerNS, uplinkNS *os.File, v6 bool, compared func() error) error {
	inner, err := openSide(innerNS)
	if err != nil {
		return err
	}
	defer inner.Close()
	var allowed []netlink.Link
	if uplinkNS != nil {
		uplink, err := uplinkSide(uplinkNS)
		if err != nil {
			return err
		}
		defer uplink.Close()
		if allowed, err = standins(inner, uplink); err != nil {
			return err
		}
	}
	if err := noWayOut(inner, allowed, uplinkNS != nil); err != nil {
		return err
	}
	if err := compared(); err != nil {
		return err
	}
	return steered(inner, v6)
}

// noWayOut looks at every interface, and at every route for one that it does
// not know.
func noWayOut(inner *side, allowed []netlink.Link, uplink bool) error {
	if left := cables(inner, allowed); len(left) > 0 {
		a := left[0].Attrs()
		if !uplink {
			return fmt.Errorf("the engine plugged in %s (%s), but the policy's network.uplink is another way out: start it without a network (--network none)", a.Name, left[0].Type())
		}
		return fmt.Errorf("%s (%s) leads out of the sandbox", a.Name, left[0].Type())
	}
	for _, l := range allowed {
		if l.Attrs().RawFlags&unix.IFF_NOARP == 0 {
			return fmt.Errorf("the stand-in %s asks for neighbours", l.Attrs().Name)
		}
	}
	routes, err := inner.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	known := func(index int) bool {
		return index <= 1 || slices.ContainsFunc(allowed, func(l netlink.Link) bool { return l.Attrs().Index == index })
	}
	for _, r := range routes {
		for _, h := range append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: r.LinkIndex}) {
			if !known(h.LinkIndex) {
				return fmt.Errorf("the route %s leads out of the sandbox", r)
			}
		}
	}
	return nil
}

// steered checks what steer and addressLoopback did.
func steered(inner *side, v6 bool) error {
	if lo := inner.byIndex(1); lo == nil || lo.Attrs().Flags&net.FlagUp == 0 {
		return errors.New("lo is down")
	}
	addrs, err := inner.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list addresses: %w", err)
	}
	for _, want := range loopbackAddrs(v6) {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.LinkIndex == 1 && addrOf(a.IP) == want }) {
			return fmt.Errorf("lo has lost the address %s", want)
		}
	}
	for _, family := range families(v6) {
		rules, err := inner.RuleList(family)
		if err != nil {
			return fmt.Errorf("cannot list routing rules: %w", err)
		}
		if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Priority == steeringTable && r.Table == steeringTable }) {
			return errors.New("the routing rule that steers is gone")
		}
	}
	routes, err := inner.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	for _, want := range steeringRoutes(v6) {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.LinkIndex == 1 && r.Type == want.Type && r.Table == want.Table && r.Dst.String() == want.Dst.String()
		}) {
			return fmt.Errorf("the route that steers %s is gone", want.Dst)
		}
	}
	return nil
}
