package hooks

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// datagramFrom sends text from a socket of the thread's namespace that is bound to
// at, with another source if that is valid: any that the namespace takes for its
// own, and of IPv6 any at all. None of it takes a capability (ip(7), IP_PKTINFO;
// ipv6(7), IPV6_FREEBIND).
func datagramFrom(at netip.AddrPort, source netip.Addr, to netip.AddrPort, text string) error {
	family, oob := unix.AF_INET6, []byte(nil)
	if at.Addr().Is4() {
		family = unix.AF_INET
	}
	if source.IsValid() && source.Is4() {
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: source.As4()})
	} else if source.IsValid() {
		oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: source.As16()})
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("sendmsg", unix.Sendmsg(fd, []byte(text), oob, sockaddr(to), 0))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// A program that makes itself up a caller, whom it then answers, sends nothing
// over the stand-in all the same.
func TestNobodyCallsFromInside(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	caller := netip.AddrPortFrom(plugged{n: 1}.caller6(), 7001)
	server := netip.MustParseAddrPort("[fd31:1::5]:7000")
	w.in(w.inner, func() error {
		if err := datagramFrom(caller, netip.Addr{}, server, "hello"); !errors.Is(err, unix.EPERM) {
			t.Errorf("the call: %v", err)
		}
		if err := datagramFrom(server, netip.Addr{}, caller, "the secret"); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			t.Errorf("the answer: %v", err)
		}
		return nil
	})
}

// Nor does one connect in the name of somebody outside: whom it connects to, in
// the sandbox, would take it for a caller.
func TestNobodyConnectsFromInsideInAnothersName(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	freely := func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(cerr, err)
	}
	for _, c := range []struct{ from, server string }{
		{"203.0.113.9", "127.0.0.1:8080"},
		{"203.0.113.9", "172.31.1.5:8081"},
		{"2001:db8::9", "[::1]:8080"},
		{"2001:db8::9", "[fd31:1::5]:8081"},
	} {
		w.serve(w.inner, "tcp", c.server, "mine")
		w.in(w.inner, func() error {
			d := net.Dialer{Control: freely}
			if conn, err := d.Dial("tcp", c.server); err != nil {
				t.Errorf("to %s in its own name: %v", c.server, err)
			} else {
				conn.Close()
			}
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.from)}
			conn, err := d.Dial("tcp", c.server)
			if err == nil {
				conn.Close()
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("to %s in the name of %s: %v; want: refused", c.server, c.from, err)
			}
			return nil
		})
	}
}

// Answers of the gateway's are its own: a neighbour in the pod, or another user
// of the container, cannot say in its name where a host is.
func TestAnswersAreTheGateways(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	for _, c := range []struct{ server, from, source string }{
		{"8.8.8.8:53", "198.18.0.2:53", "198.18.0.1"},
		{"8.8.8.8:53", "172.31.1.5:53", "198.18.0.1"},
		{"127.0.0.11:53", "198.18.0.2:53", "198.18.0.1"},
		{"[2001:4860:4860::8888]:53", "[fd6e:656d:6f::2]:53", "fd6e:656d:6f::1"},
		{"[2001:4860:4860::8888]:53", "[::1]:53", "fd6e:656d:6f::1"},
		{"8.8.8.8:53", "8.8.8.8:53", "8.8.8.8"},
		{"127.0.0.11:53", "127.0.0.11:53", "127.0.0.11"},
		{"[2001:4860:4860::8888]:53", "[2001:4860:4860::8888]:53", "2001:4860:4860::8888"},
	} {
		w.in(w.inner, func() error {
			victim, err := net.Dial("udp", c.server)
			if err != nil {
				return err
			}
			defer victim.Close()
			victim.SetDeadline(time.Now().Add(5 * time.Second))
			hear := func() string {
				if _, err := victim.Write([]byte("where is it?")); err != nil {
					return err.Error()
				}
				b := make([]byte, 100)
				n, err := victim.Read(b)
				if err != nil {
					return err.Error()
				}
				return string(b[:n])
			}
			honest := hear()
			to := victim.LocalAddr().(*net.UDPAddr).AddrPort()
			if err := datagramFrom(netip.MustParseAddrPort(c.from), netip.MustParseAddr(c.source), to, "it is with me"); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s from %s: %v", c.server, c.from, err)
			}
			if got := hear(); got != honest {
				t.Errorf("%s from %s answers %q, after %q", c.server, c.from, got, honest)
			}
			return nil
		})
	}
}

// Nor is he asked in the gateway's place, by having spoken to the victim first in
// a name server's name: connection tracking would take the question for an answer
// to that, and leave it alone.
func TestQuestionsAreTheGateways(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	for _, c := range []struct{ server, victim string }{
		{"8.8.8.8:53", "198.18.0.2:40001"},
		{"8.8.8.8:123", "198.18.0.2:40002"},
		{"127.0.0.11:53", "127.0.0.1:40003"},
		{"[2001:4860:4860::8888]:53", "[fd6e:656d:6f::2]:40004"},
		{"[2001:4860:4860::8888]:123", "[fd6e:656d:6f::2]:40005"},
	} {
		w.in(w.inner, func() error {
			server := netip.MustParseAddrPort(c.server)
			thief := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
				if server.Addr().Is6() {
					cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) })
					return errors.Join(err, cerr)
				}
				return nil
			}}
			stolen, err := thief.ListenPacket(context.Background(), "udp", c.server)
			if err != nil {
				return err
			}
			defer stolen.Close()
			if _, err := stolen.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.victim))); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s to %s: %v", c.server, c.victim, err)
			}
			go answerPackets(stolen, "thief")
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.victim))}
			got := probeBy(d, "udp", c.server, 5*time.Second)
			want := "dns from " + netip.MustParseAddrPort(c.victim).Addr().String()
			if server.Port() != 53 {
				want = "refused"
			}
			if got != want {
				t.Errorf("%s answers %q; want: %q", c.server, got, want)
			}
			return nil
		})
	}
}

// A packet that carries its own route has another destination when it has arrived
// than when it was steered. The engine's resolver, which asks from the host, is not
// reached by one, even where the host takes such packets, and connection tracking
// was made to take them for answers. Newer kernels ask who sends one for
// CAP_NET_RAW, which the test has and no program of a sandbox.
func TestSourceRoutes(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	for _, setting := range []string{"accept_source_route", "route_localnet", "accept_local"} {
		w.in(w.inner, func() error { return writeSysctl("ipv4/conf/all/"+setting, "1") })
	}
	w.start("all")
	engine := netip.MustParseAddrPort("127.0.0.11:37001")
	var udp net.PacketConn
	var tcp net.Listener
	w.in(w.inner, func() (err error) {
		if udp, err = net.ListenPacket("udp", engine.String()); err == nil {
			tcp, err = net.Listen("tcp", engine.String())
		}
		return err
	})
	defer udp.Close()
	defer tcp.Close()
	for _, kind := range []string{"\x83", "\x89"} { // loose and strict: RFC 791, 3.1
		for _, first := range []string{"198.18.0.2", "172.31.1.5", "127.0.0.1", "198.18.0.1", "8.8.8.8"} {
			hop := netip.MustParseAddr(first)
			four := hop.As4()
			routed := func(_, _ string, c syscall.RawConn) (err error) {
				cerr := c.Control(func(fd uintptr) {
					err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, kind+"\x07\x04"+string(four[:])+"\x00")
				})
				return errors.Join(err, cerr)
			}
			w.in(w.inner, func() error {
				for _, source := range []string{"198.18.0.2", "127.0.0.1"} {
					own := netip.AddrPortFrom(netip.MustParseAddr(source), 40006)
					_ = datagramFrom(netip.AddrPortFrom(hop, engine.Port()), netip.Addr{}, own, "hello") // so that the next is an answer
					d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(own), Control: routed}
					c, err := d.Dial("udp", engine.String())
					if err != nil {
						return err
					}
					_, _ = c.Write([]byte("by " + first)) // the fence may refuse it at once
					c.Close()
					d = net.Dialer{LocalAddr: &net.TCPAddr{IP: own.Addr().AsSlice()}, Control: routed, Timeout: 20 * time.Millisecond}
					if c, err := d.Dial("tcp", engine.String()); err == nil {
						t.Errorf("a connection by %s was accepted", first)
						c.Close()
					}
				}
				return nil
			})
		}
	}
	const last = "the last word"
	w.in(w.inner, func() error {
		marked := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark) })
			return errors.Join(err, cerr)
		}}
		c, err := marked.Dial("udp", engine.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(last))
		return err
	})
	for got := ""; got != last; {
		b := make([]byte, 100)
		udp.SetDeadline(time.Now().Add(5 * time.Second))
		n, from, err := udp.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if got = string(b[:n]); got != last {
			t.Errorf("%s from %s has reached the engine's resolver", got, from)
		}
	}
	tcp.(*net.TCPListener).SetDeadline(time.Now())
	if c, err := tcp.Accept(); err == nil {
		t.Errorf("the engine's resolver has a connection from %s", c.RemoteAddr())
		c.Close()
	}
}
