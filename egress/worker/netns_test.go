package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// asWorker, in the environment, makes this program a worker instead of a test.
const asWorker = "NEMOCLAW_TEST_WORKER_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(asWorker); root != "" {
		if err := runAsWorker(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runAsWorker runs a worker as the gateway does: without files, as nobody.
func runAsWorker(root string) error {
	conn, err := control.FromFile(os.NewFile(3, "monitor"))
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return unix.Chroot(root) },
		func() error { return unix.Chdir("/") },
		func() error { return syscall.Setgid(65534) },
		func() error { return syscall.Setuid(65534) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return new(Worker).Run(conn)
}

// netns is a network namespace that ends with the test.
type netns struct {
	t *testing.T
	f *os.File
	h *netlink.Handle
}

func newNetns(t *testing.T) *netns {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	n := &netns{t: t}
	made := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with this function
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.f, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	check(t, <-made)
	t.Cleanup(func() { n.f.Close() })
	h, err := netlink.NewHandleAt(vnetns.NsHandle(n.f.Fd()))
	check(t, err)
	t.Cleanup(h.Close)
	n.h = h
	n.up("lo")
	return n
}

// do runs f on a thread inside the namespace.
func (n *netns) do(f func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	check(n.t, <-done)
}

func (n *netns) up(link string) {
	n.t.Helper()
	l, err := n.h.LinkByName(link)
	check(n.t, err)
	check(n.t, n.h.LinkSetUp(l))
}

func (n *netns) addr(link, cidr string) {
	n.t.Helper()
	l, err := n.h.LinkByName(link)
	check(n.t, err)
	a, err := netlink.ParseAddr(cidr)
	check(n.t, err)
	check(n.t, n.h.AddrAdd(l, a))
}

// packetsIn returns how many TCP segments and UDP datagrams have come.
func (n *netns) packetsIn() (tcp, udp string) {
	n.t.Helper()
	n.do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == "Tcp:" {
				tcp = f[10] // InSegs
			} else if f[0] == "Udp:" {
				udp = f[1] // InDatagrams
			}
		}
		return err
	})
	return tcp, udp
}

// The whole half in a world of its own: a program in one namespace, the worker
// as an unprivileged process without files in the uplink's, servers and a
// nameserver behind it. No question leaves for a name that is only looked up
// (law 5), and nothing at all before the decision is written (law 7).
func TestWorkerInItsNamespace(t *testing.T) {
	inner, uplink, world := newNetns(t), newNetns(t), newNetns(t)
	join(t, uplink, world)
	lo, err := inner.h.LinkByName("lo")
	check(t, err)
	_, fake, _ := net.ParseCIDR("198.18.0.0/15")
	check(t, inner.h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: fake, Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}))

	zone := &nameserver{}
	for _, line := range []string{
		"db.example.com. 60 A 93.184.216.34", "db.example.com. 60 AAAA 2606:2800::1",
		`txt.example.com. 60 TXT "v=1"`, `db.example.com. 60 TXT "secret"`,
		"in.example.com. 60 A 10.77.0.1", "own.example.com. 60 A 10.77.0.2", "meta.example.com. 60 A 169.254.169.254",
	} {
		rr, err := wire.NewRR(line)
		check(t, err)
		zone.zone = append(zone.zone, rr)
	}
	world.do(func() error {
		u, err := net.ListenPacket("udp4", "10.77.0.1:53")
		if err != nil {
			return err
		}
		go (&wire.Server{PacketConn: u, Handler: zone}).ActivateAndServe()
		l, err := net.Listen("tcp4", "0.0.0.0:5432")
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close(); l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.WriteString(c, addrPort(c.RemoteAddr()).Addr().String()+" ")
					io.Copy(c, c)
				}()
			}
		}()
		return nil
	})
	sb := workerIn(t, inner, uplink)
	sb.apply(`egress:
  rules:
    - {host: db.example.com, port: 5432}
    - {host: in.example.com, port: 5432, allow_private: [10.0.0.0/8]}
    - {host: own.example.com, port: 5432, allow_private: [10.0.0.0/8]}
    - {host: meta.example.com, port: 5432}
    - {host: txt.example.com, port: 5432, dns: [TXT]}
`)
	dial := func(host string) *net.TCPConn {
		t.Helper()
		var c net.Conn
		inner.do(func() (err error) {
			c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(lookupIn(t, inner, sb.udp, host), 5432).String(), patience)
			return err
		})
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c.(*net.TCPConn)
	}

	// A reset may come before connect(2) is seen to have worked.
	resets := func(host string) {
		t.Helper()
		to := netip.AddrPortFrom(lookupIn(t, inner, sb.udp, host), 5432).String()
		var c net.Conn
		var err error
		inner.do(func() error { c, err = net.DialTimeout("tcp4", to, patience); return nil })
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			wantReset(t, c.(*net.TCPConn))
		} else if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v", host, err)
		}
	}

	lookupIn(t, inner, sb.udp, "db.example.com")
	lookupIn(t, inner, sb.udp, "secret-in-a-name.evil.example")
	held := make(chan struct{})
	sb.set(func() { sb.held = held })
	c := dial("db.example.com")
	sb.wantRecords("allow tcp db.example.com:5432")
	if tcp, udp := world.packetsIn(); tcp != "0" || udp != "0" {
		t.Errorf("before the decision was written %s segments and %s datagrams had left", tcp, udp)
	}
	close(held)
	sb.set(func() { sb.held = nil })
	if got := exchange(t, c, "hello"); got != "10.77.0.2 hello" {
		t.Errorf("the server answered %q", got)
	}
	sb.wantRecords("end tcp db.example.com:5432")
	if n := zone.asked.Load(); n != 2 {
		t.Errorf("%d questions left the host, want 2: A and AAAA of the one name that was connected to", n)
	}

	if got := exchange(t, dial("in.example.com"), "hello"); got != "10.77.0.2 hello" {
		t.Errorf("the private server answered %q", got)
	}
	sb.wantRecords("allow tcp in.example.com:5432", "end tcp in.example.com:5432")
	for _, host := range []string{"own.example.com", "meta.example.com"} {
		resets(host)
		sb.wantRecords("allow tcp "+host+":5432", "refuse tcp "+host+":5432 forbidden-address")
	}
	resets("evil.example")
	sb.wantRecords("refuse tcp evil.example:5432 not-listed")

	// Another type leaves for the very name whose rule says so, once that is
	// written; for no other.
	before := zone.asked.Load()
	for _, q := range []struct{ host, want string }{
		{"txt.example.com", "allow dns txt.example.com:53, end dns txt.example.com:53"},
		{"db.example.com", "refuse dns db.example.com:53 unsupported-type"},
		{"secret.txt.example.com", "refuse dns secret.txt.example.com:53 unsupported-type"},
	} {
		if got := len(questionIn(t, inner, sb.udp, q.host, wire.TypeTXT).Answer); got > 1 || (got == 1) != (q.host == "txt.example.com") {
			t.Errorf("%s has %d records", q.host, got)
		}
		sb.wantRecords(strings.Split(q.want, ", ")...)
	}
	if n := zone.asked.Load() - before; n != 1 {
		t.Errorf("%d questions left the host, want the one that is allowed", n)
	}
}

// join connects the uplink to the world by a cable.
func join(t *testing.T, uplink, world *netns) {
	t.Helper()
	check(t, uplink.h.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "w0", PeerNamespace: netlink.NsFd(int(world.f.Fd())),
	}))
	uplink.addr("eth0", "10.77.0.2/24")
	uplink.up("eth0")
	world.addr("w0", "10.77.0.1/24")
	world.addr("lo", "93.184.216.34/32")
	world.up("w0")
	eth0, err := uplink.h.LinkByName("eth0")
	check(t, err)
	check(t, uplink.h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IPv4(10, 77, 0, 1)}))
}

// workerIn starts a worker as a process in uplink, with listeners in inner.
func workerIn(t *testing.T, inner, uplink *netns) *sandbox {
	t.Helper()
	sb := &sandbox{t: t, records: make(chan control.Record, 100), applied: make(chan control.Applied, 10)}
	conn, theirs, err := control.Pair()
	check(t, err)
	sb.conn = conn
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{asWorker + "=" + t.TempDir()}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	uplink.do(cmd.Start)
	theirs.Close()
	t.Cleanup(func() {
		conn.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the worker ended with: %v", err)
		}
	})
	go sb.obey(conn)
	var files []*os.File
	keep := func(f *os.File, err error) error {
		files = append(files, f)
		return err
	}
	inner.do(func() error {
		steered, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: 5432})
		if err != nil {
			return err
		}
		defer steered.Close()
		other, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		defer other.Close()
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
		if err != nil {
			return err
		}
		defer u.Close()
		sb.udp = u.LocalAddr()
		reports, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		defer reports.Close()
		for _, f := range []func() (*os.File, error){steered.File, other.File, u.File, u.File, other.File, other.File, reports.File} {
			if err := keep(f()); err != nil {
				return err
			}
		}
		return nil
	})
	check(t, keep(os.OpenFile(filepath.Join(t.TempDir(), "names"), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)))
	check(t, conn.Send(control.ToWorker{Setup: &control.Setup{ID: "box", Nameservers: []string{"10.77.0.1"}}}, files...))
	control.CloseAll(files)
	return sb
}

// lookupIn asks the worker's DNS from inside the namespace.
func lookupIn(t *testing.T, inner *netns, server net.Addr, host string) netip.Addr {
	t.Helper()
	addr, _ := netip.AddrFromSlice(questionIn(t, inner, server, host, wire.TypeA).Answer[0].(*wire.A).A.To4())
	return addr
}

func questionIn(t *testing.T, inner *netns, server net.Addr, host string, qtype uint16) (m *wire.Msg) {
	t.Helper()
	inner.do(func() (err error) {
		q := new(wire.Msg)
		q.SetQuestion(host+".", qtype)
		m, _, err = (&wire.Client{Timeout: patience}).Exchange(q, server.String())
		return err
	})
	return m
}

// More connections than local ports: each port leads to every server.
func TestPortsAreSharedBetweenServers(t *testing.T) {
	ns := newNetns(t)
	const ports, servers = 2, 5
	s := &server{Worker: new(Worker), dialer: new(net.Dialer)}
	ns.do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "40000 %d", 40000+ports-1), 0o644); err != nil {
			return err
		}
		for n := range servers {
			l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.2:%d", 7000+n))
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			c, fail := s.dial(t.Context(), netip.MustParseAddrPort(l.Addr().String()))
			if fail != nil {
				return fmt.Errorf("connection %d over %d ports: %s", n+1, ports, fail.detail)
			}
			t.Cleanup(func() { c.Close() })
		}
		return nil
	})
}
