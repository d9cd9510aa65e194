package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/specs/policy"
)

// allowance is the key by which a dial carries to its last check what tells the
// verdict in force at that moment: a func() verdict.
type allowance struct{}

// bytesInHand is the key by which a dial is told that the program has spoken
// already, and what it said follows at once.
type bytesInHand struct{}

// dialer returns a dialer whose last word, just before connect(2), is the
// guard's. The kernel probes silent servers; the options of the net package
// cost a few system calls more for every connection.
func (g *guard) dialer() *net.Dialer {
	d := &net.Dialer{KeepAlive: -1, ControlContext: g.lastWord}
	d.SetMultipathTCP(false)
	return d
}

func (g *guard) lastWord(ctx context.Context, _, address string, c syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	inForce, ok := ctx.Value(allowance{}).(func() verdict)
	if !ok {
		return errors.New("cannot dial: nothing allows it")
	}
	v := inForce()
	if v.denies(to.Addr(), to.Port(), time.Now()) {
		return fmt.Errorf("cannot dial: %s", policy.Denied)
	}
	if reason, err := g.judge(to.Addr(), v.private); reason != "" {
		return errors.Join(fmt.Errorf("cannot dial: %s", reason), err)
	}
	var serr error
	if err := c.Control(func(fd uintptr) {
		if serr = keepAlive(int(fd)); ctx.Value(bytesInHand{}) != nil {
			// The first of them answer the server's SYN, and no packet before.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
		}
	}); err != nil {
		return err
	}
	return serr
}

// dialed is a connection, and the address that was checked and dialed for it;
// by a proxy there is none for a name.
type dialed struct {
	*net.TCPConn
	to netip.AddrPort
}

// failure is why a connection could not be made: a refusal if Reason is set,
// otherwise the network's fault.
type failure struct {
	reason policy.Reason
	detail string
	addr   netip.AddrPort
}

// connect finds an address of t that the verdict in force allows, and connects
// to it. Resolving may take long: each step asks for the verdict anew.
func (s *server) connect(ctx context.Context, t target, inForce func() verdict) (*dialed, *failure) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	if s.proxy != nil && len(s.hosts.addrs(t.host)) == 0 { // a proxy does not know the hosts file
		return s.tunnel(ctx, t, inForce)
	}
	return s.straight(ctx, t, inForce)
}

// straight is connect without a proxy in between.
func (s *server) straight(ctx context.Context, t target, inForce func() verdict) (*dialed, *failure) {
	addrs := []netip.Addr{t.addr}
	if t.host != "" {
		var err error
		if addrs, err = s.resolve(ctx, t.host); err != nil {
			return nil, &failure{reason: policy.Unresolvable, detail: err.Error()}
		}
	}
	addrs, fail := s.permitted(addrs, t.port, inForce())
	if fail != nil {
		return nil, fail
	}
	return s.race(context.WithValue(ctx, allowance{}, inForce), addrs, t.port)
}

func (s *server) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if s.Resolve != nil {
		return s.Resolve(ctx, host)
	}
	return s.names.lookup(ctx, host)
}

// permitted leaves the addresses that may be dialed; if there is none, it says
// why the first may not.
func (s *server) permitted(addrs []netip.Addr, port uint16, v verdict) ([]netip.Addr, *failure) {
	var ok []netip.Addr
	var fail *failure
	now := time.Now()
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		reason, err := s.guard.judge(a, v.private)
		if reason == "" && v.denies(a, port, now) {
			reason = policy.Denied
		}
		if reason == "" {
			ok = append(ok, a)
			continue
		}
		if fail == nil {
			fail = &failure{reason: reason, addr: netip.AddrPortFrom(a, port)}
			if err != nil {
				fail.detail = err.Error()
			}
		}
	}
	if len(ok) > 0 {
		return ok, nil
	}
	if fail == nil {
		fail = &failure{reason: policy.Unresolvable, detail: "the name has no address"}
	}
	return nil, fail
}

// race connects to the first address that answers. The next is tried when one
// fails, or beside it when it is slow (RFC 8305).
func (s *server) race(ctx context.Context, addrs []netip.Addr, port uint16) (*dialed, *failure) {
	if len(addrs) == 1 {
		return s.dial(ctx, netip.AddrPortFrom(addrs[0], port))
	}
	type result struct {
		c    *dialed
		fail *failure
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(addrs))
	running := 0
	next := func() {
		to := netip.AddrPortFrom(addrs[0], port)
		addrs = addrs[1:]
		running++
		s.wg.Go(func() {
			c, fail := s.dial(ctx, to)
			results <- result{c, fail}
		})
	}
	next()
	timer := time.NewTimer(staggerTime)
	defer timer.Stop()
	var first *failure
	for {
		select {
		case <-timer.C:
			if len(addrs) > 0 {
				next()
				timer.Reset(staggerTime)
			}
		case r := <-results:
			running--
			if r.c != nil {
				late := running
				s.wg.Go(func() { // those that lose are closed as they come
					for range late {
						if r := <-results; r.c != nil {
							r.c.Close()
						}
					}
				})
				return r.c, nil
			}
			if first == nil {
				first = r.fail
			}
			if len(addrs) > 0 {
				next()
				timer.Reset(staggerTime)
			} else if running == 0 {
				return nil, first
			}
		}
	}
}

func (s *server) dial(ctx context.Context, to netip.AddrPort) (*dialed, *failure) {
	dial := s.Dial
	if dial == nil {
		dial = s.dialTCP
	}
	c, err := dial(ctx, to)
	if err != nil {
		return nil, &failure{detail: cause(err), addr: to}
	}
	// An address that became ours after the list was read: the kernel then
	// takes it as the source too.
	if addrPort(c.LocalAddr()).Addr() == to.Addr() {
		c.SetLinger(0)
		c.Close()
		return nil, &failure{reason: policy.Forbidden, addr: to}
	}
	return &dialed{c, to}, nil
}

// dialTCP leaves the choice of a port to connect(2), which gives the same one to
// connections that lead to different servers. The net package's own DialTCP
// binds first and so has no more connections in all than there are ports.
func (s *server) dialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := s.dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil // what "tcp" dials (net.Dial)
}

// cause is the kernel's word about a failed dial, without the addresses that
// the record already has.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return err.Error()
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
