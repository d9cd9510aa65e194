package hooks

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// A world is a machine in miniature: a host with servers, a container's
// namespace and, once it was plugged, an uplink. All of it ends with the test.
type world struct {
	testing.TB
	host, inner, uplink *os.File
}

// needRoot skips where namespaces cannot be made, and fails if CI promised root.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("network namespaces take root")
	}
	t.Skip("network namespaces take root")
}

// newWorld makes a host that is reachable as 203.0.113.9 and 2001:db8::9, a
// fenced inner namespace, and an empty uplink.
func newWorld(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	w := &world{TB: t, host: mustNetns(t), inner: mustNetns(t)}
	w.in(w.host, func() error {
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
		for _, a := range []string{"203.0.113.9", "2001:db8::9"} {
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: host(netip.MustParseAddr(a)), Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(lo)
	})
	if err := Fence(w.inner); err != nil {
		t.Fatal(err)
	}
	up, err := NewUplink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { up.Close() })
	w.uplink = up
	return w
}

func mustNetns(t testing.TB) *os.File {
	t.Helper()
	ns, err := NewNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs f in ns and fails the test with its error.
func (w *world) in(ns *os.File, f func() error) {
	w.Helper()
	if err := In(ns, f); err != nil {
		w.Fatal(err)
	}
}

// plugIn is the engine: it puts a cable named name into the inner namespace,
// with addresses .5 and ::5 of the network n and default routes to .1 and ::1,
// which are the host's.
func (w *world) plugIn(name string, n int) {
	w.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(w.host.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		w.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "h-"+name, 1400
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(w.inner.Fd())
	if err := h.LinkAdd(veth); err != nil {
		w.Fatal(err)
	}
	ours, err := h.LinkByName(attrs.Name)
	if err != nil {
		w.Fatal(err)
	}
	for _, a := range []string{fmt.Sprintf("172.31.%d.1/24", n), fmt.Sprintf("fd31:%d::1/64", n)} {
		w.must(h.AddrAdd(ours, address(a)))
	}
	w.must(h.LinkSetUp(ours))
	w.in(w.inner, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range []string{fmt.Sprintf("172.31.%d.5/24", n), fmt.Sprintf("fd31:%d::5/64", n)} {
			if err := netlink.AddrAdd(l, address(a)); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, gw := range []string{fmt.Sprintf("172.31.%d.1", n), fmt.Sprintf("fd31:%d::1", n)} {
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw), Priority: 10 * n}
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("default route via %s: %w", gw, err)
			}
		}
		return nil
	})
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// address parses a prefix for an interface, without duplicate detection.
func address(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	a.Flags = unix.IFA_F_NODAD
	return a
}

// start plugs and seals, as the runtime does.
func (w *world) start(ingress string) {
	w.Helper()
	if _, err := Plug(w.inner, w.uplink, ingress); err != nil {
		w.Fatal(err)
	}
	if err := Seal(w.inner, w.uplink); err != nil {
		w.Fatal(err)
	}
}

// gateway serves Listen's sockets until the test ends or stop is called. Each
// answer tells who answered, the address that was asked and who asked.
func (w *world) gateway() (stop func()) {
	w.Helper()
	files, err := Listen(w.inner)
	if err != nil {
		w.Fatal(err)
	}
	var closers []func() error
	for i, f := range files[:len(listeners)] {
		if listeners[i].udp {
			pc, err := net.FilePacketConn(f)
			w.must(err)
			closers = append(closers, pc.Close)
			go answerPackets(pc, "dns")
			continue
		}
		l, err := net.FileListener(f)
		w.must(err)
		closers = append(closers, l.Close)
		tag := "gateway"
		if listeners[i].at.Port() == dnsPort {
			tag = "dns"
		}
		go answer(l, tag)
	}
	control.CloseAll(files)
	var once sync.Once
	stop = func() {
		once.Do(func() {
			for _, c := range closers {
				c()
			}
		})
	}
	w.Cleanup(stop)
	return stop
}

func answer(l net.Listener, tag string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %s from %s\n", tag, c.LocalAddr(), c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		c.Close()
	}
}

func answerPackets(pc net.PacketConn, tag string) {
	b := make([]byte, 2048)
	for {
		_, peer, err := pc.ReadFrom(b)
		var op *net.OpError
		if errors.As(err, &op) && errors.Is(op.Err, unix.ECONNREFUSED) {
			continue // somebody did not wait for his answer
		}
		if err != nil {
			return
		}
		pc.WriteTo(fmt.Appendf(nil, "%s from %s\n", tag, peer.(*net.UDPAddr).AddrPort().Addr().Unmap()), peer)
	}
}

// serve starts a server in ns that answers with tag.
func (w *world) serve(ns *os.File, proto, addr, tag string) {
	w.Helper()
	w.in(ns, func() error {
		if strings.HasPrefix(proto, "udp") {
			pc, err := net.ListenPacket(proto, addr)
			if err == nil {
				w.Cleanup(func() { pc.Close() })
				go answerPackets(pc, tag)
			}
			return err
		}
		l, err := net.Listen(proto, addr)
		if err == nil {
			w.Cleanup(func() { l.Close() })
			go answer(l, tag)
		}
		return err
	})
}

// ask opens a connection, or sends a datagram, from ns and tells what came of
// it in a few words: an answer, "refused", "unreachable", "not permitted" or,
// if nothing came, "silence".
func (w *world) ask(ns *os.File, proto, addr string) string {
	w.Helper()
	var outcome string
	w.in(ns, func() error {
		// Long enough for a neighbour that does not answer the first time,
		// because the link was only just brought up.
		outcome = probe(proto, addr, 5*time.Second)
		return nil
	})
	return outcome
}

func probe(proto, addr string, patience time.Duration) string {
	return probeBy(net.Dialer{}, proto, addr, patience)
}

// probeBy asks by way of d. proto may be "ip4:icmp" or "ip6:ipv6-icmp", for an
// echo request.
func probeBy(d net.Dialer, proto, addr string, patience time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, proto, addr)
	if err != nil {
		return outcomeOf(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	question := map[string]string{
		"udp":           "hello?",
		"ip4:icmp":      "\x08\x00\xf7\xfd\x00\x01\x00\x01", // RFC 792
		"ip6:ipv6-icmp": "\x80\x00\x00\x00\x00\x01\x00\x01", // RFC 4443; the kernel sums it
	}[proto]
	if _, err := c.Write([]byte(question)); err != nil && question != "" {
		return outcomeOf(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return outcomeOf(err)
	}
	return strings.TrimSpace(line)
}

func outcomeOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return "refused"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES):
		return "unreachable"
	case errors.Is(err, unix.EPERM):
		return "not permitted"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "silence"
	}
	return err.Error()
}

// capture counts the frames that come out of the cable at the host's end.
type capture struct {
	*world
	fd int
}

func (w *world) capture(name string) *capture {
	w.Helper()
	c := &capture{world: w}
	w.in(w.host, func() (err error) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL))); err != nil {
			return err
		}
		w.Cleanup(func() { unix.Close(c.fd) })
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index})
	})
	return c
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

// leaked returns the frames that came out of the cable so far, but those by
// which any interface finds its neighbours. The end is marked by a datagram
// that from sends over the same cable; from must be able to.
func (c *capture) leaked(from *os.File, to string) []string {
	c.Helper()
	const mark = "the last word"
	c.in(from, func() error {
		conn, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte(mark))
		return err
	})
	var frames []string
	b := make([]byte, 1<<16)
	for {
		n, sa, err := unix.Recvfrom(c.fd, b, 0)
		if err != nil {
			c.Fatalf("the last word never came out of the cable: %v", err)
		}
		if sa.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		f := b[:n]
		if strings.Contains(string(f), mark) {
			return frames
		}
		if !findsNeighbours(f) {
			frames = append(frames, fmt.Sprintf("%x", f))
		}
	}
}

// findsNeighbours recognises ARP, and neighbour and listener discovery in
// IPv6 (RFC 4861, RFC 3810), whose messages may follow a hop-by-hop header.
func findsNeighbours(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		next, rest := f[14+6], f[14+40:]
		if next == 0 {
			next, rest = rest[0], rest[8+8*int(rest[1]):]
		}
		return next == unix.IPPROTO_ICMPV6 && (rest[0] >= 133 && rest[0] <= 136 || rest[0] == 143)
	}
	return false
}
