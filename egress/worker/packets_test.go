package worker

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/specs/policy"
)

// tcpPair returns the two ends of a connection.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	defer l.Close()
	near, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	check(t, err)
	t.Cleanup(func() { near.Close() })
	far, err = l.AcceptTCP()
	check(t, err)
	t.Cleanup(func() { far.Close() })
	return near, far
}

// segmentsIn is how many TCP segments have come over c.
func segmentsIn(t *testing.T, c *net.TCPConn) uint32 {
	t.Helper()
	return infoOf(t, c).Segs_in
}

func infoOf(t *testing.T, c *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
	check(t, err)
	return info
}

// An answer that has come whole reaches the program with its end in one packet.
func TestAnswerAndEndAreOnePacket(t *testing.T) {
	program, c := tcpPair(t)
	up, server := tcpPair(t)
	f := &flow{c: c, up: up}
	io.WriteString(server, shortAnswer)
	server.CloseWrite()
	for raw, _ := up.SyscallConn(); ; {
		whole := false
		raw.Control(func(fd uintptr) { whole = hasEnd(fd) })
		if whole {
			break
		}
	}
	back, err := newSource(up)
	check(t, err)
	before := segmentsIn(t, program)
	if n := f.pass(c, back); n != int64(len(shortAnswer)) {
		t.Errorf("%d of %d bytes passed", n, len(shortAnswer))
	}
	got, err := io.ReadAll(program)
	if string(got) != shortAnswer || err != nil {
		t.Errorf("the program got %q, %v", got, err)
	}
	if n := segmentsIn(t, program) - before; n != 1 {
		t.Errorf("they came in %d packets", n)
	}
}

const shortAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

// What a program has said goes with the packet that opens the connection to the
// server; where the server may speak first it is opened at once.
func TestOpeningPackets(t *testing.T) {
	uplink, world := newNetns(t), newNetns(t)
	join(t, uplink, world)
	var l *net.TCPListener
	world.do(func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(93, 184, 216, 34), Port: 80})
		return err
	})
	defer l.Close()
	inForce := func() verdict { return verdict{allow: true, rules: &rules{policy: new(policy.Policy)}} }
	ctx := context.WithValue(t.Context(), allowance{}, inForce)
	s := &server{Worker: new(Worker)}
	// opened is how many packets a server has got when it reads the first byte.
	opened := func(ctx context.Context) (n uint32) {
		uplink.do(func() error {
			g := newGuard(nil)
			s.dialer = g.dialer()
			c, fail := s.dial(ctx, netip.MustParseAddrPort("93.184.216.34:80"))
			if fail != nil {
				t.Fatal(fail)
			}
			defer c.Close()
			if _, err := c.Write([]byte("GET")); err != nil {
				return err
			}
			accepted, err := l.AcceptTCP()
			if err != nil {
				return err
			}
			defer accepted.Close()
			_, err = accepted.Read(make([]byte, 3))
			n = segmentsIn(t, accepted)
			return err
		})
		return n
	}
	if n := opened(ctx); n != 3 { // SYN, ACK, bytes
		t.Errorf("a connection over which the server may speak first was opened by %d packets", n)
	}
	// The kernel waits 200 ms for the program's bytes: a machine may stand still
	// for so long, but not every time.
	for try := 0; opened(context.WithValue(ctx, bytesInHand{}, true)) != 2; try++ { // SYN, bytes
		if try == 20 {
			t.Fatal("the program's bytes follow the packet that opens the connection")
		}
	}
}
