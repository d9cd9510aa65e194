package hooks

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Fenced says what is wrong with the fence of inner, which is all that there is
// before Seal; nil if it is as Fence made it. It changes nothing.
func Fenced(inner *os.File) error {
	v6, err := hasIPv6()
	if err == nil {
		err = compareIn(inner, innerChains(v6))
	}
	if err != nil {
		return fmt.Errorf("cannot trust the network namespace: %w", err)
	}
	return nil
}

// compareIn is compare in a namespace.
func compareIn(ns *os.File, chains []chain) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	defer c.CloseLasting()
	return compare(c, chains)
}

// hasTable tells whether a namespace has rules of ours: as a fence, or as an
// uplink that links were moved to.
func hasTable(ns *os.File) (bool, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return false, fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	_, err = c.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// VerifyUplink says what is wrong with the rules of an uplink that NewUplink
// made; nil if nothing but what ingress ("all" or "none") lets in passes between
// it and the stand-ins. It changes nothing. Before Plug moved a link there are
// neither rules nor stand-ins.
func VerifyUplink(uplink *os.File, ingress string) error {
	s, err := uplinkSide(uplink)
	if err == nil {
		defer s.Close()
		if links := s.plugged(); len(links) > 0 {
			err = compareIn(uplink, lasting(uplinkChains(links, ingress), ingress))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot trust the uplink: %w", err)
	}
	return nil
}

// lasting leaves out the rules that name links: they may still name one that
// the engine has taken away.
func lasting(chains []chain, ingress string) []chain {
	for i := range chains {
		c := &chains[i]
		c.anyRules = c.name == "post" || c.name == "pre" && ingress != "none"
	}
	return chains
}

// Way is an interface by which an uplink leads out.
type Way struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"` // with their networks
	Gateways  []string `json:"gateways"`  // of its default routes
}

// Ways returns the interfaces of an uplink, whoever made it.
func Ways(uplink *os.File) ([]Way, error) {
	s, err := openSide(uplink)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	routes, err := s.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("cannot list routes: %w", err)
	}
	var ways []Way
	for _, l := range s.real() {
		if isFallback(l) {
			continue
		}
		w := Way{Name: l.Attrs().Name, Addresses: []string{}, Gateways: []string{}}
		addrs, err := s.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("cannot list the addresses of %s: %w", w.Name, err)
		}
		for _, a := range addrs {
			w.Addresses = append(w.Addresses, a.IPNet.String())
		}
		for _, r := range routes {
			if r.LinkIndex == l.Attrs().Index && r.Gw != nil && isDefault(r) && !slices.Contains(w.Gateways, r.Gw.String()) {
				w.Gateways = append(w.Gateways, r.Gw.String())
			}
		}
		ways = append(ways, w)
	}
	return ways, nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}
