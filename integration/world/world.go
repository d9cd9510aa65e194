// Package world makes test hosts: an "internet" in a network namespace of its
// own, with names, certificates and servers, one link away from a second
// namespace that a sandbox's policy names as its uplink. It uses nothing of
// nemoclaw's own, sends nothing outside the namespaces that it made, and
// everything in it ends with Close, or with the process.
//
//	sandbox ┄ gateway ┄ uplink 203.0.113.2 ══veth══ internet 203.0.113.1, .53, hosts
//	                                                  10.77.0.1  a neighbour on the LAN
//
// The addresses are TEST-NET-3 (RFC 5737), which the gateway refuses like every
// other address that is not globally reachable: rules must say
// allow_private: [203.0.113.0/24].
package world

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Net is the prefix that every host of the world lies in, but for Neighbour.
const Net = "203.0.113.0/24"

// Fixed addresses.
var (
	Router     = netip.MustParseAddr("203.0.113.1")
	UplinkAddr = netip.MustParseAddr("203.0.113.2")
	Nameserver = netip.MustParseAddr("203.0.113.53")
	Neighbour  = netip.MustParseAddr("10.77.0.1") // on the uplink's LAN, reachable for whoever gets out
)

// World is an internet for one test.
type World struct {
	internet, uplink netns.NsHandle
	ca               *x509.Certificate
	caKey            *ecdsa.PrivateKey
	next             netip.Addr

	mu        sync.Mutex
	names     map[string]netip.Addr
	questions []string
	closers   []io.Closer
}

// New makes the namespaces, the link between them and the name server. It needs
// root.
func New() (*World, error) {
	uplink, err := newNetns()
	if err != nil {
		return nil, err
	}
	return newWorld(uplink)
}

// NewHere is New with the caller's own network namespace as the uplink, which
// gets an eth0 and a default route: only for a process that was given a
// namespace of its own.
func NewHere() (*World, error) {
	uplink, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("cannot open the network namespace: %w", err)
	}
	return newWorld(uplink)
}

func newWorld(uplink netns.NsHandle) (_ *World, err error) {
	w := &World{internet: -1, uplink: uplink, names: map[string]netip.Addr{}, next: netip.MustParseAddr("203.0.113.10")}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.internet, err = newNetns(); err != nil {
		return nil, err
	}
	if err = w.plug(); err != nil {
		return nil, fmt.Errorf("cannot connect the test hosts: %w", err)
	}
	if err = w.makeCA(); err != nil {
		return nil, err
	}
	return w, w.serveDNS()
}

// Close ends every server and namespace.
func (w *World) Close() error {
	w.mu.Lock()
	closers := w.closers
	w.closers = nil
	w.mu.Unlock()
	for _, c := range closers {
		c.Close()
	}
	for _, ns := range []*netns.NsHandle{&w.internet, &w.uplink} {
		if ns.IsOpen() {
			ns.Close()
		}
	}
	return nil
}

// Uplink is the path by which a policy's network.uplink names the uplink. It is
// good as long as this process lives.
func (w *World) Uplink() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(w.uplink)) }

// Internet is the path by which a program that is no Go code of the test's may be
// started among the hosts. It is good as long as this process lives.
func (w *World) Internet() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(w.internet)) }

// CA is the certificate, in PEM, that vouches for the world's TLS servers.
func (w *World) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Raw})
}

// Questions returns the names that the world's name server was asked for, lower
// case and without the last dot.
func (w *World) Questions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.questions...)
}

// Name makes name resolve to addr.
func (w *World) Name(name string, addr netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[strings.ToLower(name)] = addr
}

// Lookup returns where name lies.
func (w *World) Lookup(name string) (netip.Addr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	addr, ok := w.names[strings.ToLower(name)]
	return addr, ok
}

// Host adds a host called name, with an address of its own, and returns that.
func (w *World) Host(name string) (netip.Addr, error) {
	addr := w.next
	w.next = w.next.Next()
	return addr, w.HostAt(name, addr)
}

// HostAt adds a host called name at addr, an IPv4 address that no other host
// has. Outside of Net it is reached by way of Router.
func (w *World) HostAt(name string, addr netip.Addr) error {
	h, err := netlink.NewHandleAt(w.internet)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	w.Name(name, addr)
	return addAddr(h, lo, addr.String()+"/32")
}

// Listen opens a TCP listener on the internet.
func (w *World) Listen(addr netip.Addr, port uint16) (net.Listener, error) {
	var l net.Listener
	err := in(w.internet, func() (err error) {
		lc := net.ListenConfig{}
		l, err = lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, port).String())
		return err
	})
	if err == nil {
		w.closeLater(l)
	}
	return l, err
}

// ServeHTTPS answers https://name/ by handler, on a new host.
func (w *World) ServeHTTPS(name string, handler http.Handler) (netip.Addr, error) {
	addr, err := w.Host(name)
	if err != nil {
		return addr, err
	}
	l, err := w.Listen(addr, 443)
	if err != nil {
		return addr, err
	}
	cert, err := w.Certificate(name)
	if err != nil {
		return addr, err
	}
	s := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	w.closeLater(s)
	go s.ServeTLS(l, "", "")
	return addr, nil
}

// ServeHTTP answers http://name/ by handler, on a new host.
func (w *World) ServeHTTP(name string, handler http.Handler) (netip.Addr, error) {
	addr, err := w.Host(name)
	if err != nil {
		return addr, err
	}
	l, err := w.Listen(addr, 80)
	if err != nil {
		return addr, err
	}
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	w.closeLater(s)
	go s.Serve(l)
	return addr, nil
}

// ServeTCP serves each connection to name:port by serve, on a new host.
func (w *World) ServeTCP(name string, port uint16, serve func(net.Conn)) (netip.Addr, error) {
	addr, err := w.Host(name)
	if err != nil {
		return addr, err
	}
	return addr, w.ServeAddr(addr, port, serve)
}

// ServeAddr serves each connection to addr:port by serve.
func (w *World) ServeAddr(addr netip.Addr, port uint16, serve func(net.Conn)) error {
	l, err := w.Listen(addr, port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return nil
}

// Start starts a program on the internet. It is the caller's to end.
func (w *World) Start(cmd *exec.Cmd) error { return in(w.internet, cmd.Start) }

// Dial connects from the internet to addr, as a stranger would.
func (w *World) Dial(addr netip.AddrPort) (net.Conn, error) { return w.DialBy("tcp", addr) }

// DialBy is Dial by another protocol.
func (w *World) DialBy(network string, addr netip.AddrPort) (c net.Conn, err error) {
	err = in(w.internet, func() error {
		c, err = net.Dial(network, addr.String())
		return err
	})
	return c, err
}

// Capture calls saw with every packet, from its IP header on, that enters the
// internet from the uplink. It returns when the capture has begun.
func (w *World) Capture(saw func(packet []byte)) error {
	return w.capture(w.internet, func(outgoing bool, packet []byte) {
		if !outgoing {
			saw(packet)
		}
	})
}

// CaptureAt calls saw with every packet, from its IP header on, on each interface
// but lo of the network namespace at path, and whether it goes out there. It
// returns when the capture has begun, which ends with the world.
func (w *World) CaptureAt(path string, saw func(outgoing bool, packet []byte)) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("cannot open the namespace: %w", err)
	}
	defer ns.Close()
	return w.capture(ns, saw)
}

func (w *World) capture(ns netns.NsHandle, saw func(outgoing bool, packet []byte)) error {
	var fd int
	err := in(ns, func() (err error) {
		proto := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto})
	})
	if err != nil {
		return fmt.Errorf("cannot capture: %w", err)
	}
	f := os.NewFile(uintptr(fd), "capture")
	w.closeLater(f)
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			var n int
			var from unix.Sockaddr
			var rerr error
			err := raw.Read(func(fd uintptr) bool {
				n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
				return rerr != unix.EAGAIN
			})
			if err != nil || rerr != nil {
				return
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Ifindex != loopback {
				saw(ll.Pkttype == unix.PACKET_OUTGOING, append([]byte(nil), buf[:n]...))
			}
		}
	}()
	return nil
}

// loopback is the index of lo in every network namespace.
const loopback = 1

// Cut takes the cable between uplink and internet out, and plugs it in again.
func (w *World) Cut(out bool) error {
	h, err := netlink.NewHandleAt(w.internet)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName("world0")
	if err != nil {
		return err
	}
	if out {
		return h.LinkSetDown(link)
	}
	return h.LinkSetUp(link)
}

// PlugInto connects the namespace at path to the internet as a container engine
// does: an eth0 with PluggedAddr and a default route. It can be done once.
func (w *World) PlugInto(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("cannot open the namespace: %w", err)
	}
	defer ns.Close()
	return w.cable("world1", pluggedRouter, ns, PluggedAddr)
}

// PluggedAddr is the address of what PlugInto plugs in (TEST-NET-2, RFC 5737).
var (
	PluggedAddr   = netip.MustParseAddr("198.51.100.2")
	pluggedRouter = netip.MustParseAddr("198.51.100.1")
)

// Certificate makes a certificate for name, signed by the world's CA.
func (w *World) Certificate(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca, key.Public(), w.caKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, w.ca.Raw}, PrivateKey: key}, nil
}

// CertificatePEM is Certificate for a server that is not written in Go: the chain,
// and the key.
func (w *World) CertificatePEM(name string) (chain, key []byte, err error) {
	cert, err := w.Certificate(name)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (w *World) makeCA() (err error) {
	if w.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nemoclaw test world"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, w.caKey.Public(), w.caKey)
	if err != nil {
		return err
	}
	w.ca, err = x509.ParseCertificate(der)
	return err
}

func (w *World) serveDNS() error {
	var packets net.PacketConn
	err := in(w.internet, func() (err error) {
		packets, err = net.ListenPacket("udp", netip.AddrPortFrom(Nameserver, 53).String())
		return err
	})
	if err != nil {
		return err
	}
	stream, err := w.Listen(Nameserver, 53)
	if err != nil {
		return err
	}
	w.closeLater(packets)
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: dns.HandlerFunc(w.answer)}, {Listener: stream, Handler: dns.HandlerFunc(w.answer)}} {
		go s.ActivateAndServe()
	}
	return nil
}

func (w *World) answer(out dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) == 1 {
		name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
		w.mu.Lock()
		w.questions = append(w.questions, name)
		addr, ok := w.names[name]
		w.mu.Unlock()
		switch {
		case !ok:
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA && addr.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: addr.AsSlice()})
		case q.Question[0].Qtype == dns.TypeAAAA && addr.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: 1}, AAAA: addr.AsSlice()})
		}
	}
	_ = out.WriteMsg(m)
}

func (w *World) closeLater(c io.Closer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closers = append(w.closers, c)
}

// plug lays the cable: world0 on the internet's side, eth0 on the uplink's.
func (w *World) plug() error {
	net0, err := netlink.NewHandleAt(w.internet)
	if err != nil {
		return err
	}
	defer net0.Close()
	if err := equip(net0, "lo", Nameserver.String()+"/32", Neighbour.String()+"/32"); err != nil {
		return err
	}
	return w.cable("world0", Router, w.uplink, UplinkAddr)
}

// cable lays a cable from the internet, where it is called name and has the
// address near, to eth0 in ns, which gets far and a default route.
func (w *World) cable(name string, near netip.Addr, ns netns.NsHandle, far netip.Addr) error {
	net0, err := netlink.NewHandleAt(w.internet)
	if err != nil {
		return err
	}
	defer net0.Close()
	up, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := net0.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}); err != nil {
		return err
	}
	if err := equip(net0, name, near.String()+"/24"); err != nil {
		return err
	}
	if err := equip(up, "lo"); err != nil {
		return err
	}
	if err := equip(up, "eth0", far.String()+"/24"); err != nil {
		return err
	}
	eth0, err := up.LinkByName("eth0")
	if err != nil {
		return err
	}
	return up.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: near.AsSlice()})
}

// equip brings a link up and gives it addresses.
func equip(h *netlink.Handle, link string, addrs ...string) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := addAddr(h, l, a); err != nil {
			return err
		}
	}
	return nil
}

func addAddr(h *netlink.Handle, l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return h.AddrAdd(l, a)
}

func newNetns() (netns.NsHandle, error) {
	ns := netns.None()
	err := thread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("cannot make a network namespace: %w", err)
		}
		ns, err = netns.GetFromPath("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

func in(ns netns.NsHandle, f func() error) error {
	if !ns.IsOpen() {
		return errors.New("cannot enter a namespace that is closed")
	}
	return thread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// thread runs f on a thread that ends with it, so that no other goroutine meets
// the namespace that f leaves behind. It is never the process's first thread,
// which does not end and by which /proc/PID/ns shows the process.
func thread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- thread(f)
			goruntime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// ReadIn reads a file as a process in the network namespace at path would:
// /proc/sys/net is another in each.
func ReadIn(path, file string) (text string, err error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return "", fmt.Errorf("cannot open the namespace: %w", err)
	}
	defer ns.Close()
	err = in(ns, func() error {
		b, err := os.ReadFile(file)
		text = string(b)
		return err
	})
	return text, err
}
