package worker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/dns"
	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// Worker serves one sandbox. The zero value is ready; the fields are for
// tests and for whoever embeds it.
type Worker struct {
	// Logf, if not nil, is told what an operator may want to know and no
	// record says.
	Logf func(format string, args ...any)
	// Dial, if not nil, connects to an address that was resolved and checked,
	// in place of a net.Dialer.
	Dial func(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error)
	// Resolve, if not nil, returns the addresses of a name in place of the
	// nameservers.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dialed, if not nil, tells where a program meant to go; otherwise that
	// is the local address of the accepted connection (TPROXY).
	Dialed func(c *net.TCPConn) netip.AddrPort
}

// server is a Worker at work.
type server struct {
	*Worker
	conn   *control.Conn
	ctx    context.Context // ends with the conversation
	id     string          // the sandbox's
	boot   string          // begins request ids: they are unique over restarts
	serial atomic.Uint64

	rules   atomic.Pointer[rules] // nil until the first
	pool    *dns.Pool
	dns     *dns.Server
	records *recorder
	asked   *asker
	spender spender
	waiting waiting
	answers counts
	names   *resolver
	proxy   *proxy
	guard   *guard
	hosts   *hosts
	dialer  *net.Dialer

	listeners []*net.TCPListener // steered 4, steered 6, DNS 4, DNS 6
	packets   []*net.UDPConn     // DNS 4, DNS 6
	reports   *os.File           // of what the fence refuses
	serving   bool

	flows     flows
	room      int // how many of them there are files for
	refusals  slots
	dnsConns  slots
	expiryMu  sync.Mutex
	expiry    *time.Timer    // when the next rule expires
	accepting sync.WaitGroup // what makes flows
	wg        sync.WaitGroup // everything else
}

// Run serves until the conversation with the monitor ends, which is no error,
// and leaves nothing behind: no listener, no connection, no goroutine.
func (w *Worker) Run(conn *control.Conn) error {
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{Worker: w, conn: conn, ctx: ctx, boot: bootID()}
	s.records = newRecorder(ctx, conn)
	s.asked = newAsker(conn)
	s.spender.s = s
	s.refusals.free.Store(maxRefusals)
	s.dnsConns.free.Store(maxDNSConns)
	s.room = maxFlows
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		s.room = roomFor(files.Cur)
	}
	err := s.converse()
	cancel()
	s.close()
	s.wg.Wait()
	// A monitor that dies with unread messages resets the conversation.
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

func bootID() string {
	b := make([]byte, 4)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}

// converse obeys the monitor until it is gone.
func (s *server) converse() error {
	for {
		var m control.ToWorker
		files, err := s.conn.Recv(&m)
		if err != nil {
			return err
		}
		if err := s.obey(&m, files); err != nil {
			control.CloseAll(files)
			return err
		}
	}
}

func (s *server) obey(m *control.ToWorker, files []*os.File) error {
	if m.Setup == nil && m.Dialed == nil && len(files) > 0 {
		return errors.New("cannot obey the monitor: a message brought descriptors unasked")
	}
	switch {
	case m.Setup != nil:
		return s.setup(m.Setup, files)
	case m.Rules != nil:
		return s.apply(m.Rules)
	case m.Process != nil:
		s.asked.answer(m.Process)
	case m.Used != nil:
		s.spender.answer(m.Used)
	case m.Dialed != nil && s.names != nil && s.names.engine != nil:
		s.names.engine.dialed(m.Dialed, files)
	case m.Count != nil:
		return s.conn.Send(control.ToMonitorFromWorker{Counted: &control.Counted{DNS: s.answers.all()}})
	case m.Written != nil:
		s.records.written(m.Written)
	default:
		return errors.New("cannot obey the monitor: an empty message")
	}
	return nil
}

// setup takes over the descriptors. Files are closed here also on success: the
// net package duplicates them.
func (s *server) setup(m *control.Setup, files []*os.File) error {
	if s.pool != nil {
		return errors.New("cannot set up twice")
	}
	if len(files) != control.SetupFiles {
		return fmt.Errorf("cannot set up: %d descriptors came instead of %d", len(files), control.SetupFiles)
	}
	pool, err := dns.OpenPool(files[control.SetupFiles-1]) // stays open: the journal is appended to
	if err != nil {
		return err
	}
	defer control.CloseAll(files[:control.SetupFiles-1])
	for _, i := range []int{0, 1, 4, 5} {
		l, err := listener(files[i])
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, l)
	}
	for _, f := range files[2:4] {
		c, err := packetConn(f)
		if err != nil {
			return err
		}
		s.packets = append(s.packets, c)
	}
	if s.reports, err = pollable(files[control.ReportsFile]); err != nil {
		return err
	}
	nameservers, err := addresses(m.Nameservers)
	if err != nil {
		return err
	}
	s.id = m.ID
	s.names = newResolver(s.ctx, nameservers)
	if m.EngineDNS {
		s.names.engine = newEngine(s.conn)
	}
	s.hosts = newHosts(m.Hosts)
	s.names.hosts = s.hosts
	s.proxy = newProxy(m.Proxy)
	s.guard = newGuard(m.Never)
	s.dialer = s.guard.dialer()
	s.dns = dns.NewServer(pool)
	s.dns.Listed = func(host string) bool { return s.rules.Load().listed(host) }
	s.dns.Beyond = s.beyond
	s.dns.Refused = s.questionRefused
	s.dns.Answered = s.answers.add
	for _, d := range m.Search {
		if d, err := policy.NormalHost(strings.TrimPrefix(d, ".")); err == nil {
			s.dns.Search = append(s.dns.Search, d)
		}
	}
	s.pool = pool
	return nil
}

func listener(f *os.File) (*net.TCPListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot use an inherited listener: %w", err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, errors.New("cannot use an inherited listener: it is not a TCP socket")
	}
	unpaced(t)
	return t, nil
}

// unpaced takes the connections that l accepts, which inherit the choice
// (tcp(7), TCP_CONGESTION), off the host's congestion control. Between a program
// and its gateway lies a loopback: nothing is lost there, and one that paces
// itself, as BBR does, costs a stream a third of its rate. Reno is part of every
// kernel. Where it cannot be had all works as well, and slower.
func unpaced(l *net.TCPListener) {
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
	})
}

// keepAlive has the kernel probe the server of a silent connection: the program's
// own probes end at the gateway. Package net sees to the program's end: one that
// said all and ended leaves a socket that answers for a minute (tcp(7),
// tcp_fin_timeout), and then no more.
func keepAlive(fd int) error {
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(limits.KeepIdle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(limits.KeepAgain / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, limits.KeepProbes},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("cannot have silent connections probed: %w", err)
		}
	}
	return nil
}

func packetConn(f *os.File) (*net.UDPConn, error) {
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot use an inherited socket: %w", err)
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("cannot use an inherited socket: it is not a UDP socket")
	}
	return u, nil
}

// pollable returns another descriptor of f whose reading ends with its Close.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use an inherited socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "reports"), nil
}

func addresses(texts []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, fmt.Errorf("cannot use a nameserver: %w", err)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// apply makes new rules the ones in force, or keeps the old ones and says why.
func (s *server) apply(m *control.Rules) error {
	if s.pool == nil {
		return errors.New("cannot apply rules before the setup")
	}
	applied := control.Applied{Generation: m.Generation}
	r, err := newRules(m)
	if err != nil {
		applied.Fault = err.Error()
	} else {
		s.rules.Store(r)
		s.guard.refresh() // links may have come or gone
		applied.Cut = s.recheck()
		s.waiting.wake()
		s.serve()
	}
	return s.conn.Send(control.ToMonitorFromWorker{Applied: &applied})
}

// recheck ends the connections that the rules in force no longer allow, and
// returns how many. It comes again by itself when a rule expires.
func (s *server) recheck() int {
	r, now := s.rules.Load(), time.Now()
	cut, kept := 0, 0
	for _, f := range s.flows.all() { // the oldest first: they keep their places
		switch {
		case f.recheck(r, now):
			cut++
		case !f.isOpen():
		case kept >= r.flows():
			f.end(policy.TooMany, fmt.Sprintf("egress.defaults.max_connections: %d", r.flows()))
			cut++
		default:
			kept++
		}
	}
	s.expiryMu.Lock()
	defer s.expiryMu.Unlock()
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	if next := r.untilNext(now); next > 0 && s.ctx.Err() == nil {
		s.expiry = time.AfterFunc(next, func() { s.recheck() })
	}
	return cut
}

// serve starts to accept, with the first rules.
func (s *server) serve() {
	if s.serving {
		return
	}
	s.serving = true
	for _, l := range s.listeners[:2] {
		s.accepting.Go(func() { s.acceptAll(l, s.admit) })
	}
	for _, l := range s.listeners[2:] {
		s.accepting.Go(func() { s.acceptAll(l, s.admitDNS) })
	}
	for _, c := range s.packets {
		s.wg.Go(func() {
			if err := s.dns.ServeUDP(c); err != nil {
				s.logf("%v", err)
			}
		})
	}
	s.wg.Go(func() { s.hearReports(s.reports) })
}

// acceptAll hands each connection on; handle must not block.
func (s *server) acceptAll(l *net.TCPListener, handle func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if err == nil {
			handle(c)
			continue
		}
		if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if !passing(err) {
			s.logf("cannot accept connections: %v", err)
			return
		}
		select { // out of descriptors or memory: connections queue meanwhile
		case <-s.ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// close ends what blocks the goroutines.
func (s *server) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	for _, c := range s.packets {
		c.Close()
	}
	if s.reports != nil {
		s.reports.Close()
	}
	s.accepting.Wait() // from here on there are no new ones
	for _, f := range s.flows.all() {
		f.abort()
	}
	s.expiryMu.Lock()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.expiryMu.Unlock()
	if s.pool != nil {
		s.pool.CloseJournal()
	}
}

func (s *server) logf(format string, args ...any) {
	if s.Logf != nil {
		s.Logf(format, args...)
	}
}
