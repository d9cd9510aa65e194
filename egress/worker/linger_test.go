package worker

import (
	"context"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nemoclaw/specs/policy"
)

// A program that has said all and is gone leaves no connection behind, though the
// server never ends it; what it said arrives to the last byte.
func TestProgramThatLeft(t *testing.T) {
	const size = 64 << 10
	for _, c := range []struct{ name, policy, begin string }{
		{"any protocol", postgres, ""},
		{"HTTP", "egress: {rules: [{host: db.example.com, port: 80}]}", "POST / HTTP/1.1\r\nHost: db.example.com\r\nContent-Length: 65536\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port, said := uint16(5432), size
			if c.begin != "" {
				port, said = 80, size+len(c.begin)
			}
			sb := newSandbox(t, c.policy)
			ended, read, got := make(chan struct{}), make(chan struct{}), make(chan int, 1)
			sb.serve("db.example.com", netip.AddrPortFrom(netip.MustParseAddr("93.184.216.34"), port).String(), func(c *net.TCPConn) {
				for raw, _ := c.SyscallConn(); ; {
					end := false
					raw.Control(func(fd uintptr) { end = hasEnd(fd) })
					if end {
						break
					}
				}
				close(ended) // all is under way to it
				<-read
				all, _ := io.ReadAll(c)
				got <- len(all)
			})
			conn := sb.dial("db.example.com", port)
			io.WriteString(conn, c.begin)
			conn.Write(make([]byte, size))
			conn.CloseWrite()
			<-ended
			sb.record() // allowed
			reset(conn) // what the kernel answers in its place in the end
			if r := sb.record(); r.Verdict != "end" || r.Sent != int64(said) {
				t.Errorf("the end is %+v", r)
			}
			close(read)
			if n := <-got; n != said {
				t.Errorf("%d of %d bytes arrived", n, said)
			}
		})
	}
}

// The kernel probes both ends of a silent connection; the program's, as package
// net has it.
func TestSilentPeersAreProbed(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	defer l.Close()
	unpaced(l)
	program, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	check(t, err)
	defer program.Close()
	accepted, err := l.AcceptTCP()
	check(t, err)
	defer accepted.Close()
	dialed, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // a socket for the dialer's last word
	check(t, err)
	defer dialed.Close()
	raw, err := dialed.SyscallConn()
	check(t, err)
	allowed := context.WithValue(t.Context(), allowance{}, func() verdict { return verdict{rules: &rules{policy: new(policy.Policy)}} })
	check(t, newGuard(nil).dialer().ControlContext(allowed, "tcp4", "93.184.216.34:443", raw))
	for end, c := range map[string]struct {
		syscall.Conn
		idle, again, probes int
	}{"the program's": {accepted, 15, 15, 9}, "the server's": {dialed, 60, 15, 4}} {
		raw, err := c.SyscallConn()
		check(t, err)
		raw.Control(func(fd uintptr) {
			for option, want := range map[int]int{unix.TCP_KEEPIDLE: c.idle, unix.TCP_KEEPINTVL: c.again, unix.TCP_KEEPCNT: c.probes} {
				if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); got != want || err != nil {
					t.Errorf("%s end: option %d is %d, %v; want %d", end, option, got, err, want)
				}
			}
			if on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE); on != 1 || err != nil {
				t.Errorf("%s end is not probed: %v", end, err)
			}
		})
	}
}
