package hooks

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// backlog is how many connections wait for a worker that is being started.
const backlog = 4096

// A listener is one socket of the gateway in the inner namespace.
type listener struct {
	at          netip.AddrPort
	udp         bool
	transparent bool // accepts connections to any address: they are steered to it
}

var listeners = []listener{
	{at: netip.AddrPortFrom(gate4, tcpPort), transparent: true},
	{at: netip.AddrPortFrom(gate6, tcpPort), transparent: true},
	{at: netip.AddrPortFrom(gate4, dnsPort), udp: true},
	{at: netip.AddrPortFrom(gate6, dnsPort), udp: true},
	{at: netip.AddrPortFrom(gate4, dnsPort)},
	{at: netip.AddrPortFrom(gate6, dnsPort)},
}

// Listen opens the gateway's sockets in a fenced namespace, in the order of
// control.Setup: six that listen, and the one that hears of refused packets. They are non-blocking, and stay of use when an engine turns
// IPv6 off for a while. The local address of a connection that was accepted by
// one of the first two is what the program dialed.
//
// On a kernel without IPv6 each IPv6 socket is replaced by an IPv4 one in an
// empty namespace of its own: nothing ever arrives there.
func Listen(inner *os.File) ([]*os.File, error) {
	v6, err := hasIPv6()
	if err != nil {
		return nil, fmt.Errorf("cannot listen in the sandbox: %w", err)
	}
	files, err := listen(inner, v6)
	if err != nil {
		control.CloseAll(files)
		return nil, fmt.Errorf("cannot listen in the sandbox: %w", err)
	}
	return files, nil
}

func listen(inner *os.File, v6 bool) ([]*os.File, error) {
	files := make([]*os.File, len(listeners)+1)
	err := In(inner, func() (err error) {
		if err := raiseBacklog(); err != nil {
			return err
		}
		for i, l := range listeners {
			if l.at.Addr().Is6() && !v6 {
				continue
			}
			if files[i], err = l.open(); err != nil {
				return err
			}
		}
		files[len(listeners)], err = openReports()
		return err
	})
	if err != nil || v6 {
		return files, err
	}
	return files, placeholders(files)
}

// placeholders fills the gaps in files with sockets that nothing reaches.
func placeholders(files []*os.File) error {
	nowhere, err := NewNetns()
	if err != nil {
		return err
	}
	defer nowhere.Close()
	return In(nowhere, func() (err error) {
		for i, l := range listeners {
			if files[i] == nil {
				l.at, l.transparent = netip.AddrPortFrom(netip.IPv4Unspecified(), 0), false
				if files[i], err = l.open(); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// raiseBacklog lifts the thread's namespace's limit on listen(2); since Linux
// 5.4 it is high enough unless somebody lowered it.
func raiseBacklog() error {
	const name = "core/somaxconn"
	b, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", name, err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= backlog {
		return nil
	}
	return writeSysctl(name, strconv.Itoa(backlog))
}

// open makes the socket in the thread's namespace. It does so without package
// net, which would make TCP listeners MPTCP ones and look addresses up.
func (l listener) open() (*os.File, error) {
	family, level := unix.AF_INET, unix.SOL_IP
	transparent, freebind := unix.IP_TRANSPARENT, unix.IP_FREEBIND
	var sa unix.Sockaddr
	if l.at.Addr().Is6() {
		family, level = unix.AF_INET6, unix.SOL_IPV6
		transparent, freebind = unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND
		sa = &unix.SockaddrInet6{Port: int(l.at.Port()), Addr: l.at.Addr().As16()}
	} else {
		sa = &unix.SockaddrInet4{Port: int(l.at.Port()), Addr: l.at.Addr().As4()}
	}
	kind, proto, name := unix.SOCK_STREAM, unix.IPPROTO_TCP, "tcp "+l.at.String()
	if l.udp {
		kind, proto, name = unix.SOCK_DGRAM, unix.IPPROTO_UDP, "udp "+l.at.String()
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	set := func(option, value int) {
		if err == nil {
			err = unix.SetsockoptInt(fd, level, option, value)
		}
	}
	if l.at.Addr().Is6() {
		set(unix.IPV6_V6ONLY, 1)
	}
	set(freebind, 1)
	if l.transparent {
		set(transparent, 1)
	}
	if err == nil && l.udp {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, answerMark)
	}
	if err == nil && !l.udp {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil && !l.udp {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot open %s: %w", name, err)
	}
	return f, nil
}
