package hooks

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Mark is the SO_MARK of the gateway's own sockets in the inner namespace:
// with it the engine's resolver can be asked (Engine). Setting it
// takes CAP_NET_ADMIN or CAP_NET_RAW over that namespace (socket(7)), which no
// program of a sandbox has.
const Mark = 0x6e63

// answerMark is that of the sockets by which the gateway answers questions: what
// has its address and not this is forged.
const answerMark = Mark + 1

// Where the listeners of the inner namespace stand, and the address that the
// sandbox has for itself: a program that finds none but loopback's would not
// ask for IPv4 addresses at all (AI_ADDRCONFIG, getaddrinfo(3)).
var (
	gate4 = netip.MustParseAddr("198.18.0.1")
	self4 = netip.MustParseAddr("198.18.0.2")
	gate6 = netip.MustParseAddr("fd6e:656d:6f::1")
	self6 = netip.MustParseAddr("fd6e:656d:6f::2")
)

const (
	tcpPort = 15001
	dnsPort = 53
)

// ErrFenced is Fence's error for a namespace that has a fence already.
var ErrFenced = errors.New("it is fenced already")

// Fence shuts the namespace: from now on nothing passes in or out of it, by any
// protocol, over any interface but loopback, be it there now or plugged in
// later. The rules take effect together or not at all. A namespace that has a
// fence is left as it is, and the error is ErrFenced.
//
// Nothing is steered yet. Routes that did it would mislead an engine: it names
// only a gateway for its default route, and the kernel would find that gateway
// on lo. Seal adds them.
func Fence(inner *os.File) error {
	v6, err := hasIPv6()
	if err == nil {
		err = fence(inner, v6)
	}
	if err != nil {
		return fmt.Errorf("cannot fence the network namespace: %w", err)
	}
	return nil
}

func fence(inner *os.File, v6 bool) error {
	if err := notOurs(inner); err != nil {
		return err
	}
	return In(inner, func() error {
		if err := loadFence(v6); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("cannot open a netlink socket: %w", err)
		}
		defer h.Close()
		return addressLoopback(h, v6)
	})
}

// hasIPv6 asks the kernel by trying; only its plain no is a no.
func hasIPv6() (bool, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot tell whether the kernel has IPv6: %w", err)
	}
	unix.Close(fd)
	return true, nil
}

// loadFence loads the whole table into the thread's namespace, in one batch.
func loadFence(v6 bool) error {
	c, err := newBatch()
	if err != nil {
		return fmt.Errorf("cannot write the fence's rules: %w", err)
	}
	t := c.CreateTable(table()) // the kernel's EEXIST fails the batch
	own4, own6 := own(nil)
	for _, s := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{{own4Set(), own4}, {own6Set(), own6}, {linksSet(), nil}} {
		if err := c.AddSet(s.set, s.elements); err != nil {
			return fmt.Errorf("cannot write the fence's rules: %w", err)
		}
	}
	load(c, t, innerChains(v6))
	if err := c.commit(nil); errors.Is(err, unix.EEXIST) {
		return ErrFenced
	} else if err != nil {
		return fmt.Errorf("cannot load the fence's rules: %w", err)
	}
	return nil
}

// addressLoopback brings lo up with its addresses, in the thread's namespace.
// Doing it again repairs what an engine changed: Docker 20.10 turns IPv6 off
// on every interface, which takes lo's addresses away.
func addressLoopback(h *netlink.Handle, v6 bool) error {
	if v6 {
		if err := writeSysctl("ipv6/conf/lo/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("cannot bring lo up: %w", err)
	}
	for _, a := range loopbackAddrs(v6) {
		if err := h.AddrReplace(lo, &netlink.Addr{IPNet: host(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("cannot give lo the address %s: %w", a, err)
		}
	}
	return nil
}

func loopbackAddrs(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{gate4, self4, gate6, self6}
	}
	return []netip.Addr{gate4, self4}
}

// host is a alone, as a network.
func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// writeSysctl writes one value below /proc/sys/net of the thread's namespace.
func writeSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("cannot set %s: %w", name, err)
	}
	return nil
}
