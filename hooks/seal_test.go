package hooks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Whatever a program dials, it meets the gateway, which sees what was dialed.
func TestSealSteersEverythingToTheListeners(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	w.serve(w.inner, "tcp", "0.0.0.0:8080", "mine")
	w.serve(w.inner, "tcp", "[fd31:1::5]:8081", "mine")
	w.serve(w.inner, "tcp", "[::1]:8082", "mine")
	w.serve(w.inner, "udp", "172.31.1.5:8083", "mine")
	w.serve(w.host, "tcp", "203.0.113.9:80", "host")
	w.serve(w.host, "udp", "203.0.113.9:80", "host")

	for _, c := range []struct{ proto, addr, outcome string }{
		// TCP: to synthetic, foreign, neighbouring and forbidden addresses.
		{"tcp", "198.18.3.7:443", "gateway 198.18.3.7:443 from 198.18.0.2"},
		{"tcp", "203.0.113.9:80", "gateway 203.0.113.9:80 from 198.18.0.2"},
		{"tcp", "172.31.1.1:81", "gateway 172.31.1.1:81 from 198.18.0.2"},
		{"tcp", "169.254.169.254:80", "gateway 169.254.169.254:80 from 198.18.0.2"},
		{"tcp", "198.18.0.1:22", "gateway 198.18.0.1:22 from 198.18.0.1"},
		{"tcp", "198.18.0.1:15001", "gateway 198.18.0.1:15001 from 198.18.0.1"},
		{"tcp", "8.8.8.8:53", "gateway 8.8.8.8:53 from 198.18.0.2"},
		{"tcp", "[2001:db8::9]:80", "gateway [2001:db8::9]:80 from fd6e:656d:6f::2"},
		{"tcp", "[fd31:1::1]:81", "gateway [fd31:1::1]:81 from fd6e:656d:6f::2"},

		// DNS: whoever is asked, ours answers.
		{"udp", "8.8.8.8:53", "dns from 198.18.0.2"},
		{"udp", "172.31.1.1:53", "dns from 198.18.0.2"},
		{"udp", "198.18.0.1:53", "dns from 198.18.0.1"},
		{"udp", "127.0.0.11:53", "dns from 127.0.0.1"},
		{"udp", "[2001:4860:4860::8888]:53", "dns from fd6e:656d:6f::2"},
		{"tcp", "198.18.0.1:53", "dns 198.18.0.1:53 from 198.18.0.1"},
		{"tcp", "127.0.0.11:53", "dns 198.18.0.1:53 from 127.0.0.1"},

		// Other datagrams are refused at once, not lost.
		{"udp", "203.0.113.9:80", "refused"},
		{"udp", "172.31.1.1:123", "refused"},
		{"udp", "[2001:db8::9]:443", "refused"},
		{"udp", "127.0.0.11:40000", "not permitted"},
		{"tcp", "127.0.0.11:40000", "refused"},

		// So is everything else.
		{"ip4:icmp", "8.8.8.8", "unreachable"},
		{"ip6:ipv6-icmp", "2001:db8::9", "unreachable"},

		// The container's own servers are its own affair.
		{"tcp", "127.0.0.1:8080", "mine 127.0.0.1:8080 from 127.0.0.1"},
		{"tcp", "172.31.1.5:8080", "mine 172.31.1.5:8080 from 172.31.1.5"},
		{"tcp", "[fd31:1::5]:8081", "mine [fd31:1::5]:8081 from fd31:1::5"},
		{"tcp", "[::1]:8082", "mine [::1]:8082 from ::1"},
		{"udp", "172.31.1.5:8083", "mine from 172.31.1.5"},
		{"tcp", "172.31.1.5:9", "refused"},
		{"udp", "172.31.1.5:9", "refused"},
	} {
		if got := w.ask(w.inner, c.proto, c.addr); got != c.outcome {
			t.Errorf("%s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
		}
	}
}

// The world reaches the container as the engine promised: on its own address,
// in both families, whatever address a program listens on. What the program
// sees as its caller is the stand-in's.
func TestInbound(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	w.serve(w.inner, "tcp", ":8080", "any")
	w.serve(w.inner, "tcp", "172.31.1.5:8081", "own")
	w.serve(w.inner, "tcp", "[fd31:1::5]:8081", "own")
	w.serve(w.inner, "tcp", "127.0.0.1:8082", "private")
	w.serve(w.inner, "udp", "0.0.0.0:8080", "any")
	w.serve(w.inner, "udp", "[fd31:1::5]:8081", "own")
	w.serve(w.uplink, "tcp", "0.0.0.0:9090", "gateway's own")
	w.serve(w.uplink, "udp", "0.0.0.0:9090", "gateway's own")

	for _, c := range []struct{ proto, addr, outcome string }{
		{"tcp", "172.31.1.5:8080", "any 172.31.1.5:8080 from 169.254.77.1"},
		{"tcp", "172.31.1.5:8081", "own 172.31.1.5:8081 from 169.254.77.1"},
		{"tcp", "[fd31:1::5]:8080", "any [fd31:1::5]:8080 from fd6e:656d:6f:1::1"},
		{"tcp", "[fd31:1::5]:8081", "own [fd31:1::5]:8081 from fd6e:656d:6f:1::1"},
		{"udp", "172.31.1.5:8080", "any from 169.254.77.1"},
		{"udp", "[fd31:1::5]:8081", "own from fd6e:656d:6f:1::1"},
		// Closed ports refuse, and so does what was not meant for the world.
		{"tcp", "172.31.1.5:9", "refused"},
		{"udp", "172.31.1.5:9", "refused"},
		{"tcp", "[fd31:1::5]:9", "refused"},
		{"tcp", "172.31.1.5:8082", "refused"},
		{"tcp", "172.31.1.5:9090", "refused"},
		{"udp", "172.31.1.5:9090", "refused"},
		{"tcp", "172.31.1.5:15001", "refused"},
	} {
		if got := w.ask(w.host, c.proto, c.addr); got != c.outcome {
			t.Errorf("%s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
		}
	}
}

// With ingress "none" nobody gets in, and is told so.
func TestIngressNone(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("none")
	w.serve(w.inner, "tcp", ":8080", "any")
	for _, addr := range []string{"172.31.1.5:8080", "[fd31:1::5]:8080"} {
		if got := w.ask(w.host, "tcp", addr); got != "refused" {
			t.Errorf("%s: %s; want: refused", addr, got)
		}
	}
}

// With ports only those pass; the others refuse, and so do the gateway's own.
func TestIngressPorts(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("80,8000-8100,65535")
	for _, port := range []string{"80", "81", "8000", "8050", "8100", "8101", "65535"} {
		for _, proto := range []string{"tcp", "udp"} {
			w.serve(w.inner, proto, ":"+port, "any")
		}
	}
	check := func() {
		t.Helper()
		for port, open := range map[string]bool{"80": true, "81": false, "8000": true, "8050": true, "8100": true, "8101": false, "65535": true, "8001": false} {
			for _, c := range []struct{ proto, addr string }{{"tcp", "172.31.1.5"}, {"tcp", "fd31:1::5"}, {"udp", "172.31.1.5"}} {
				if c.proto == "udp" && open {
					continue // UDP on every address of two families answers in TestInbound
				}
				got := w.ask(w.host, c.proto, net.JoinHostPort(c.addr, port))
				if strings.HasPrefix(got, "any") != open || !open && got != "refused" {
					t.Errorf("%s %s port %s: %s; open: %v", c.proto, c.addr, port, got, open)
				}
			}
		}
	}
	check()
	// The rules are loaded anew with each link that comes.
	w.plugInLater("eth1", 2)
	w.start("80,8000-8100,65535")
	check()
	for ingress := range map[string]bool{"": true, "some": true, "0": true, "80,": true, "9-8": true, "70000": true} {
		if _, err := Plug(w.inner, w.uplink, ingress); err == nil || !strings.Contains(err.Error(), "cannot read ingress") {
			t.Errorf("ingress %q: %v", ingress, err)
		}
	}
}

// The gateway dials with the container's identity.
func TestTheUplinkDialsAsTheContainer(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	for _, c := range []struct{ proto, addr, outcome string }{
		{"tcp", "203.0.113.9:80", "host 203.0.113.9:80 from 172.31.1.5"},
		{"udp", "203.0.113.9:80", "host from 172.31.1.5"},
		{"tcp", "[2001:db8::9]:80", "host [2001:db8::9]:80 from fd31:1::5"},
	} {
		w.serve(w.host, c.proto, c.addr, "host")
		if got := w.ask(w.uplink, c.proto, c.addr); got != c.outcome {
			t.Errorf("%s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
		}
	}
}

// A stand-in takes nothing but replies, also from a program that names it.
func TestTheStandInTakesRepliesOnly(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	cable := w.capture("h-eth0")
	bound := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "eth0") })
		return errors.Join(err, cerr)
	}}
	for _, c := range []struct{ proto, addr, outcome string }{
		{"tcp", "203.0.113.9:80", "refused"},
		{"tcp", "169.254.77.1:80", "refused"},
		{"tcp", "[fd6e:656d:6f:1::1]:80", "refused"},
		{"udp", "203.0.113.9:80", "not permitted"},
		{"udp", "8.8.8.8:53", "not permitted"},
		{"udp", "[fd6e:656d:6f:1::1]:80", "not permitted"},
		{"udp", "[2001:db8::9]:80", "unreachable"},
	} {
		w.in(w.inner, func() error {
			if got := probeBy(bound, c.proto, c.addr, time.Second); got != c.outcome {
				t.Errorf("%s %s: %s; want: %s", c.proto, c.addr, got, c.outcome)
			}
			return nil
		})
	}
	if leaked := cable.leaked(w.uplink, "172.31.1.1:1"); len(leaked) > 0 {
		t.Errorf("frames left the sandbox: %q", leaked)
	}
}

// Without a gateway everything is refused at once.
func TestDeadGatewayRefuses(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	stop := w.gateway()
	w.start("all")
	w.serve(w.host, "tcp", "203.0.113.9:80", "host")
	// Every address is local to the sandbox now: a server of its own must not
	// be taken for a foreign one.
	cable := w.capture("h-eth0")
	stop()
	w.serve(w.inner, "tcp", ":80", "mine")
	w.serve(w.inner, "udp", ":443", "mine")
	for _, c := range []struct{ proto, addr string }{
		{"tcp", "203.0.113.9:80"},
		{"tcp", "[2001:db8::9]:80"},
		{"udp", "203.0.113.9:443"},
		{"udp", "[2001:db8::9]:443"},
		{"udp", "8.8.8.8:53"},
		{"udp", "[2001:4860:4860::8888]:53"},
		{"tcp", "198.18.0.1:53"},
	} {
		if got := w.ask(w.inner, c.proto, c.addr); got != "refused" {
			t.Errorf("%s %s: %s; want: refused", c.proto, c.addr, got)
		}
	}
	if leaked := cable.leaked(w.uplink, "172.31.1.1:1"); len(leaked) > 0 {
		t.Errorf("frames left the sandbox: %q", leaked)
	}
}

// Law 4: whoever owns the inner namespace, and may rewrite every rule, route
// and setting of it, still gets not one frame onto the engine's cable. He only
// cuts himself off.
func TestTheNamespacesOwnerGetsNothingOut(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.gateway()
	w.start("all")
	w.serve(w.host, "tcp", "172.31.1.1:80", "host")
	w.serve(w.uplink, "tcp", "0.0.0.0:9090", "gateway's own")
	w.serve(w.inner, "tcp", ":8080", "mine")
	// A live inbound flow gives forged replies the best chance they can have.
	if got := w.ask(w.host, "tcp", "172.31.1.5:8080"); !strings.HasPrefix(got, "mine") {
		t.Fatalf("inbound: %s", got)
	}
	cable := w.capture("h-eth0")
	w.in(w.withoutFence(), func() error { return rebel() })

	for _, c := range []struct{ proto, addr string }{
		{"tcp", "172.31.1.1:80"},
		{"tcp", "203.0.113.9:80"},
		{"tcp", "169.254.77.1:9090"},
		{"tcp", "[fd31:1::1]:80"},
		{"tcp", "[fd6e:656d:6f:1::1]:9090"},
		{"udp", "172.31.1.1:53"},
		{"udp", "[fd31:1::1]:53"},
	} {
		w.in(w.inner, func() error {
			got := probe(c.proto, c.addr, 50*time.Millisecond)
			if got != "silence" && got != "refused" && got != "unreachable" {
				t.Errorf("%s %s: %s", c.proto, c.addr, got)
			}
			return nil
		})
	}
	w.in(w.inner, forge)
	if leaked := cable.leaked(w.uplink, "172.31.1.1:1"); len(leaked) > 0 {
		t.Errorf("%d frames left the sandbox, the first: %s", len(leaked), leaked[0])
	}
}

// Nor does he reach what stands in the uplink, where the gateway lives: not
// even by the address that he gave away.
func TestTheNamespacesOwnerReachesNothingInTheUplink(t *testing.T) {
	w := newWorld(t)
	w.plugIn("eth0", 1)
	w.start("all")
	var server net.PacketConn
	w.in(w.uplink, func() (err error) {
		server, err = net.ListenPacket("udp4", "0.0.0.0:9090")
		return err
	})
	defer server.Close()
	w.in(w.withoutFence(), func() error {
		if err := rebel(); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrReplace(eth0, address("10.9.9.9/32")); err != nil {
			return err
		}
		return netlink.AddrDel(eth0, address("172.31.1.5/32"))
	})
	const last = "the last word"
	for _, s := range []struct {
		from *os.File
		text string
	}{{w.inner, "escaped"}, {w.uplink, last}} {
		w.in(s.from, func() error {
			c, err := net.Dial("udp", "172.31.1.5:9090")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(s.text))
			return err
		})
	}
	w.must(server.SetReadDeadline(time.Now().Add(10 * time.Second)))
	b := make([]byte, 100)
	n, from, err := server.ReadFrom(b)
	w.must(err)
	if got := string(b[:n]); got != last {
		t.Errorf("%s sent: %s", from, got)
	}
}

// rebel turns the thread's namespace into one that routes over the stand-in.
func rebel() error {
	for _, name := range []string{"all", "eth0", "lo"} {
		for _, setting := range []string{"accept_local", "route_localnet", "forwarding"} {
			if err := writeSysctl("ipv4/conf/"+name+"/"+setting, "1"); err != nil {
				return err
			}
		}
	}
	for _, r := range steeringRoutes(true) {
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range []string{"0.0.0.0/0", "::/0"} {
		r := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: everywhere(netip.MustParsePrefix(a).Addr())}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	return nil
}

// forge sends packets that no socket of a program could: with every source that
// might pass for an answer, with the mark of inbound flows, and whole frames of
// several kinds, to the other end of the stand-in and to all.
func forge() error {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(raw)
	for _, option := range []struct{ name, value int }{{unix.SO_MARK, markBase + 1}, {unix.SO_BROADCAST, 1}} {
		if err := unix.SetsockoptInt(raw, unix.SOL_SOCKET, option.name, option.value); err != nil {
			return err
		}
	}
	for _, src := range []string{"172.31.1.5", "172.31.1.1", "169.254.77.1", "8.8.8.8"} {
		for _, dst := range []string{"172.31.1.1", "172.31.1.5", "169.254.77.1", "224.0.0.1", "255.255.255.255"} {
			for _, flags := range []byte{0x02, 0x12, 0x10, 0x04} { // SYN, SYN+ACK, ACK, RST
				to := netip.MustParseAddr(dst).As4()
				// Some of these the kernel refuses to send; the others count.
				unix.Sendto(raw, segment(src, dst, flags), 0, &unix.SockaddrInet4{Addr: to})
			}
		}
	}
	frames, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(frames)
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	at := &unix.SockaddrLinklayer{Ifindex: eth0.Index}
	for _, kind := range []uint16{unix.ETH_P_IP, unix.ETH_P_ARP, unix.ETH_P_LLDP, unix.ETH_P_8021Q, unix.ETH_P_IPV6} {
		for _, dst := range []net.HardwareAddr{eth0.HardwareAddr, {255, 255, 255, 255, 255, 255}} {
			f := slices.Concat(dst, eth0.HardwareAddr, binary.BigEndian.AppendUint16(nil, kind), segment("172.31.1.5", "172.31.1.1", 0x02), make([]byte, 20))
			if err := unix.Sendto(frames, f, 0, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// segment is an IPv4 packet with a bare TCP header (RFC 791, RFC 9293).
func segment(src, dst string, flags byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	ip := append([]byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}, append(s[:], d[:]...)...)
	tcp := []byte{0x1f, 0x90, 0x15, 0xb3, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 3, 232, 0, 0, 0, 0}
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16)) // RFC 1071; one carry is all there is
	return append(ip, tcp...)
}
