package hooks

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Return undoes Fence, Plug and Seal in a namespace that outlives its sandbox,
// as those of network plugins do, whose owner will look there for what he put
// in. It is called when the last init has exited. The links go back under their
// names with their addresses, and down: nothing answers for the addresses any
// more, and routes, which need a link that is up, do not come back. Routing rules
// have never left. If a process is left in the namespace the fence and the steering stay.
func Return(inner, uplink *os.File) error {
	if err := giveLinksBack(inner, uplink); err != nil {
		return fmt.Errorf("cannot give the engine's interfaces back: %w", err)
	}
	if pid, err := Inhabitant(inner); err != nil || pid != 0 {
		return err
	}
	if err := unfence(inner); err != nil {
		return fmt.Errorf("cannot take the fence down: %w", err)
	}
	return nil
}

func giveLinksBack(innerNS, uplinkNS *os.File) error {
	if err := notOurs(innerNS); err != nil {
		return err
	}
	unlock, err := lockNetns(uplinkNS)
	if err != nil {
		return err
	}
	defer unlock()
	inner, err := openSide(innerNS)
	if err != nil {
		return err
	}
	defer inner.Close()
	uplink, err := uplinkSide(uplinkNS)
	if err != nil {
		return err
	}
	defer uplink.Close()
	for _, l := range uplink.links {
		if isOuter(l) { // the stand-in leaves its name to the link
			if err := uplink.remove(l); err != nil {
				return err
			}
		}
	}
	for _, l := range uplink.real() {
		if err := giveBackLink(inner, uplink, l); err != nil {
			return err
		}
	}
	return nil
}

func giveBackLink(inner, uplink *side, l netlink.Link) error {
	name := l.Attrs().Name
	addrs, err := uplink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("cannot list the addresses of %s: %w", name, err)
	}
	if err := uplink.LinkSetDown(l); err != nil {
		return fmt.Errorf("cannot bring %s down: %w", name, err)
	}
	if err := uplink.LinkSetNsFd(l, int(inner.ns.Fd())); err != nil {
		return fmt.Errorf("cannot move %s: %w", name, err)
	}
	back, err := inner.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s after it was moved: %w", name, err)
	}
	for _, a := range addrs {
		if addrOf(a.IP).IsLinkLocalUnicast() {
			continue // the kernel makes it when the link comes up
		}
		if err := inner.AddrReplace(back, movedAddr(a)); err != nil && !errors.Is(err, unix.EACCES) { // IPv6 is off there
			return fmt.Errorf("cannot give %s the address %s: %w", name, a.IPNet, err)
		}
	}
	return nil
}

// unfence removes the fence's table, the steering and lo's addresses.
func unfence(innerNS *os.File) error {
	v6, err := hasIPv6()
	if err != nil {
		return err
	}
	inner, err := openSide(innerNS)
	if err != nil {
		return err
	}
	defer inner.Close()
	gone := func(err error) error {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	}
	for _, r := range steeringRoutes(v6) {
		if err := gone(inner.RouteDel(&r)); err != nil {
			return fmt.Errorf("cannot remove the route that steers %s: %w", r.Dst, err)
		}
	}
	for _, family := range families(v6) {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = family, steeringTable, steeringTable
		if err := gone(inner.RuleDel(r)); err != nil {
			return fmt.Errorf("cannot remove the routing rule that steers: %w", err)
		}
	}
	for _, a := range loopbackAddrs(v6) {
		if err := gone(inner.AddrDel(at(1), &netlink.Addr{IPNet: host(a)})); err != nil {
			return fmt.Errorf("cannot take the address %s from lo: %w", a, err)
		}
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(innerNS.Fd())))
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	c.DelTable(table())
	return gone(c.Flush())
}
