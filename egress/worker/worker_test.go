package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"nemoclaw/egress/control"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// sandbox is a worker at work, with the test as its monitor. Programs reach it
// by dial, which says where they mean to go as TPROXY would; what it dials
// reaches the test's servers.
type sandbox struct {
	t       testing.TB
	conn    *control.Conn // to the worker
	steered net.Addr
	udp     net.Addr
	reports net.Addr
	tcp     net.Addr // DNS
	journal string
	proxy   *control.Proxy

	records chan control.Record
	applied chan control.Applied
	dialed  chan netip.AddrPort // what the worker dialed

	mu      sync.Mutex
	fault   string                              // given to Written
	owner   control.Process                     // of every connection
	asked   int                                 // how often the worker asked for it
	gone    bool                                // nobody holds the program's end
	uses    map[uint64]int                      // left of counted grants
	held    chan struct{}                       // if not nil, Written waits for it
	far     chan struct{}                       // if not nil, what is dialed answers only then
	dst     map[netip.AddrPort]netip.AddrPort   // of a program's connections
	meant   *sync.Cond                          // dst has changed
	names   map[string][]netip.Addr             // what nameservers would say
	servers map[netip.AddrPort]*net.TCPListener // by the address in the world
	gen     uint64
}

// newSandbox starts a worker with a policy.
func newSandbox(t testing.TB, policy string) *sandbox {
	t.Helper()
	return newSandboxBy(t, policy, nil)
}

// newSandboxBy starts one whose connections go by a proxy.
func newSandboxBy(t testing.TB, policy string, proxy *control.Proxy) *sandbox {
	t.Helper()
	sb := &sandbox{
		t:       t,
		proxy:   proxy,
		journal: filepath.Join(t.TempDir(), "names"),
		records: make(chan control.Record, 10000),
		applied: make(chan control.Applied, 10),
		dialed:  make(chan netip.AddrPort, 10000),
		owner:   control.Process{PID: 42, Name: "agent"},
		uses:    map[uint64]int{},
		dst:     map[netip.AddrPort]netip.AddrPort{},
		names:   map[string][]netip.Addr{},
		servers: map[netip.AddrPort]*net.TCPListener{},
	}
	sb.meant = sync.NewCond(&sb.mu)
	sb.start()
	sb.apply(policy)
	return sb
}

// start starts the worker; it ends with the test.
func (sb *sandbox) start() {
	t := sb.t
	conn, theirs, err := control.Pair()
	check(t, err)
	end, err := control.FromFile(theirs)
	check(t, err)
	sb.conn = conn
	w := &Worker{Logf: t.Logf, Dial: sb.connect, Resolve: sb.resolve, Dialed: sb.meansOf}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(end) }()
	go sb.obey(conn)
	t.Cleanup(func() {
		conn.Close()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the worker ended with: %v", err)
			}
		case <-time.After(patience):
			t.Error("the worker does not end with its conversation")
		}
	})
	var files []*os.File
	keep := func(f *os.File, err error) {
		check(t, err)
		files = append(files, f)
	}
	tcp := func() *net.TCPListener {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		check(t, err)
		t.Cleanup(func() { l.Close() })
		return l
	}
	udp := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	steered, packets, stream := tcp(), udp(), tcp()
	sb.steered, sb.udp, sb.tcp = steered.Addr(), packets.LocalAddr(), stream.Addr()
	keep(steered.File())
	keep(tcp().File())
	keep(packets.File())
	keep(udp().File())
	keep(stream.File())
	keep(tcp().File())
	reports := udp() // in place of the kernel
	sb.reports = reports.LocalAddr()
	keep(reports.File())
	keep(os.OpenFile(sb.journal, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600))
	check(t, conn.Send(control.ToWorker{Setup: &control.Setup{ID: "box", Search: []string{"corp.example"}, Proxy: sb.proxy}}, files...))
	control.CloseAll(files)
}

// obey is the monitor: it knows every process and writes every record.
func (sb *sandbox) obey(conn *control.Conn) {
	for {
		var m control.ToMonitorFromWorker
		if _, err := conn.Recv(&m); err != nil {
			return
		}
		switch {
		case m.Applied != nil:
			sb.applied <- *m.Applied
		case m.Who != nil:
			sb.mu.Lock()
			gone := sb.gone
			sb.asked++
			sb.mu.Unlock()
			conn.Send(control.ToWorker{Process: &control.Whois{N: m.Who.N, Process: sb.whose(), Gone: gone}})
		case m.Use != nil:
			conn.Send(control.ToWorker{Used: sb.use(m.Use)})
		case m.Records != nil:
			sb.mu.Lock()
			held, fault := sb.held, sb.fault
			sb.mu.Unlock()
			for _, r := range m.Records.List {
				sb.records <- r
			}
			answer := control.ToWorker{Written: &control.Written{N: m.Records.N, Fault: fault}}
			if held == nil {
				conn.Send(answer)
				continue
			}
			go func() {
				<-held
				conn.Send(answer)
			}()
		}
	}
}

// whose is the monitor's answer to whose a connection is.
func (sb *sandbox) whose() *control.Process {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	p := sb.owner
	return &p
}

// use is the monitor's answer to who wants a use of a grant.
func (sb *sandbox) use(u *control.Use) *control.Used {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.uses[u.Grant] == 0 {
		return &control.Used{N: u.N, Fault: "it is used up"}
	}
	sb.uses[u.Grant]--
	return &control.Used{N: u.N}
}

// set changes how the monitor behaves.
func (sb *sandbox) set(change func()) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	change()
}

// apply puts a policy in force and returns what the worker said.
func (sb *sandbox) apply(policy string, grants ...control.Grant) control.Applied {
	sb.t.Helper()
	return sb.rules(control.Rules{File: "/etc/nemoclaw/policy.yaml", Policy: []byte(policy), Grants: grants})
}

func (sb *sandbox) rules(r control.Rules) control.Applied {
	sb.t.Helper()
	sb.gen++
	r.Generation = sb.gen
	check(sb.t, sb.conn.Send(control.ToWorker{Rules: &r}))
	select {
	case a := <-sb.applied:
		if a.Generation != r.Generation {
			sb.t.Fatalf("applied generation %d, want %d", a.Generation, r.Generation)
		}
		return a
	case <-time.After(patience):
		sb.t.Fatal("the rules are not applied")
	}
	panic("unreachable")
}

// listen opens an address of the world, under a name if given.
func (sb *sandbox) listen(name, addr string) *net.TCPListener {
	sb.t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(sb.t, err)
	sb.t.Cleanup(func() { l.Close() })
	world := netip.MustParseAddrPort(addr)
	sb.mu.Lock()
	sb.servers[world] = l
	if name != "" {
		sb.names[name] = append(sb.names[name], world.Addr())
	}
	sb.mu.Unlock()
	return l
}

// serve runs a server there.
func (sb *sandbox) serve(name, addr string, handle func(*net.TCPConn)) {
	sb.t.Helper()
	l := sb.listen(name, addr)
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				handle(c)
			}()
		}
	}()
}

func (sb *sandbox) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if addrs, ok := sb.names[host]; ok {
		return addrs, nil
	}
	return nil, errors.New("no such name")
}

func (sb *sandbox) connect(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	sb.dialed <- to
	sb.mu.Lock()
	l, far := sb.servers[to], sb.far
	sb.mu.Unlock()
	if far != nil {
		select {
		case <-far:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// meansOf waits to hear from dial where a program goes.
func (sb *sandbox) meansOf(c *net.TCPConn) netip.AddrPort {
	src := addrPort(c.RemoteAddr())
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for {
		if dst, ok := sb.dst[src]; ok {
			return dst
		}
		sb.meant.Wait()
	}
}

// dial connects as a program in the sandbox would, to a name or an address.
func (sb *sandbox) dial(host string, port uint16) *net.TCPConn {
	sb.t.Helper()
	addr, err := netip.ParseAddr(host)
	if err != nil {
		addr = sb.lookup(host)
	}
	return sb.dialTo(netip.AddrPortFrom(addr, port))
}

func (sb *sandbox) dialTo(dst netip.AddrPort) *net.TCPConn {
	sb.t.Helper()
	c, err := net.DialTCP("tcp4", nil, sb.steered.(*net.TCPAddr))
	check(sb.t, err)
	sb.t.Cleanup(func() { c.Close() })
	sb.mu.Lock()
	sb.dst[addrPort(c.LocalAddr())] = dst
	sb.mu.Unlock()
	sb.meant.Broadcast()
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// lookup asks the worker's DNS for a name's address.
func (sb *sandbox) lookup(host string) netip.Addr {
	sb.t.Helper()
	q := new(wire.Msg)
	q.SetQuestion(host+".", wire.TypeA)
	m, err := wire.Exchange(q, sb.udp.String())
	check(sb.t, err)
	if len(m.Answer) != 1 {
		sb.t.Fatalf("no address for %s: %v", host, m)
	}
	a, _ := netip.AddrFromSlice(m.Answer[0].(*wire.A).A.To4())
	return a
}

// record returns the next record.
func (sb *sandbox) record() control.Record {
	sb.t.Helper()
	select {
	case r := <-sb.records:
		return r
	case <-time.After(patience):
		sb.t.Fatal("nothing is recorded")
	}
	panic("unreachable")
}

// told writes a record as the tests compare it.
func told(r control.Record) string {
	s := fmt.Sprintf("%s %s %s:%d", r.Verdict, r.Proto, r.Host, r.Port)
	if r.Reason != "" {
		s += " " + r.Reason
	}
	return s
}

// wantRecords compares the records that come next.
func (sb *sandbox) wantRecords(want ...string) (last control.Record) {
	sb.t.Helper()
	for _, w := range want {
		last = sb.record()
		if got := told(last); got != w {
			sb.t.Errorf("recorded %q (detail %q), want %q", got, last.Detail, w)
		}
	}
	return last
}

// wantNoDial fails if the worker dialed.
func (sb *sandbox) wantNoDial() {
	sb.t.Helper()
	select {
	case to := <-sb.dialed:
		sb.t.Errorf("dialed %s", to)
	default:
	}
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exchange sends and returns all that comes back.
func exchange(t *testing.T, c *net.TCPConn, send string) string {
	t.Helper()
	_, err := io.WriteString(c, send)
	check(t, err)
	check(t, c.CloseWrite())
	b, _ := io.ReadAll(c)
	return string(b)
}

// wantReset fails unless the connection was reset.
func wantReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
}

const postgres = "egress:\n  rules:\n    - host: db.example.com\n      port: 5432\n"

// An allowed connection reaches the server that its name leads to, and leaves
// two lines: the decision, and the end with what passed.
func TestAllowedConnection(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	if got := exchange(t, c, "hello"); got != "hello" {
		t.Errorf("the server answered %q", got)
	}
	if to := <-sb.dialed; to.String() != "93.184.216.34:5432" {
		t.Errorf("dialed %s", to)
	}
	r := sb.wantRecords("allow tcp db.example.com:5432")
	if r.Rule != "policy.yaml:3" || r.Dst.Port() != 5432 || r.Generation != 1 {
		t.Errorf("the record lacks its rule, what was dialed or its generation: %+v", r)
	}
	end := sb.wantRecords("end tcp db.example.com:5432")
	if end.Sent != 5 || end.Got != 5 || end.Request != r.Request || end.Addr.String() != "93.184.216.34:5432" {
		t.Errorf("the end is recorded as %+v", end)
	}
}

// Law 7: until the decision is in the log, no byte and no SYN leaves.
func TestNothingPassesBeforeItIsWritten(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	held := make(chan struct{})
	sb.set(func() { sb.held = held })
	c := sb.dial("db.example.com", 5432)
	_, err := io.WriteString(c, "hello")
	check(t, err)
	sb.wantRecords("allow tcp db.example.com:5432")
	// A second decision shows that time has passed: the worker had every
	// chance to dial.
	sb.apply(postgres)
	sb.wantNoDial()
	close(held)
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("after it was written: %q, %v", b, err)
	}
}

// What cannot be recorded is refused.
func TestUnwritableLogRefuses(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	sb.set(func() { sb.fault = "cannot write the audit log: no space left on device" })
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantNoDial()
}

// Whoever speaks first, bytes flow: here the server does, and the program
// stops sending before it reads the answer.
func TestServerSpeaksFirst(t *testing.T) {
	sb := newSandbox(t, "egress:\n  rules:\n    - host: git.example.com\n      port: 22\n")
	sb.serve("git.example.com", "93.184.216.34:22", func(c *net.TCPConn) {
		io.WriteString(c, "SSH-2.0-server\r\n")
		b, _ := io.ReadAll(c) // until the program has said all
		fmt.Fprintf(c, "got %d", len(b))
	})
	c := sb.dial("git.example.com", 22)
	br := bufio.NewReader(c)
	if line, err := br.ReadString('\n'); err != nil || line != "SSH-2.0-server\r\n" {
		t.Fatalf("the banner is %q, %v", line, err)
	}
	io.WriteString(c, strings.Repeat("x", 1<<20)) // far enough to be spliced
	c.CloseWrite()
	if b, err := io.ReadAll(br); err != nil || string(b) != "got 1048576" {
		t.Errorf("the answer is %q, %v", b, err)
	}
	sb.wantRecords("allow tcp git.example.com:22")
	if end := sb.wantRecords("end tcp git.example.com:22"); end.Sent != 1<<20 {
		t.Errorf("%d bytes are recorded", end.Sent)
	}
}

// A reset travels through: the program learns of the server's, the server of
// the program's.
func TestResetsPassBothWays(t *testing.T) {
	sb := newSandbox(t, postgres)
	ends := make(chan error, 1)
	greeted := make(chan struct{})
	sb.serve("db.example.com", "93.184.216.34:5432", func(c *net.TCPConn) {
		b := make([]byte, 1)
		io.ReadFull(c, b)
		if b[0] == 'r' {
			reset(c)
			return
		}
		close(greeted)
		_, err := io.ReadAll(c)
		ends <- err
	})
	c := sb.dial("db.example.com", 5432)
	io.WriteString(c, "r")
	wantReset(t, c)

	c = sb.dial("db.example.com", 5432)
	io.WriteString(c, "w")
	<-greeted
	reset(c)
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

// A program that goes where no rule leads is told so in its own language.
func TestRefusals(t *testing.T) {
	const rules = "egress:\n  rules:\n    - host: ok.example.com\n      port: 443\n  deny:\n    - host: bad.example.com\n"
	for _, tc := range []struct {
		name   string
		host   string
		port   uint16
		send   string
		answer string // its beginning; "": a reset
		record string
	}{
		{"HTTP", "no.example.com", 80, "GET / HTTP/1.1\r\nHost: no.example.com\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n", "refuse http no.example.com:80 not-listed"},
		{"HTTP on any port", "no.example.com", 8080, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n", "refuse http no.example.com:8080 not-listed"},
		{"TLS", "no.example.com", 443, string(helloFor("no.example.com")), string(alertAccessDenied), "refuse tls no.example.com:443 not-listed"},
		{"another port", "ok.example.com", 444, string(helloFor("ok.example.com")), string(alertAccessDenied), "refuse tls ok.example.com:444 not-listed"},
		{"another protocol", "no.example.com", 22, "SSH-2.0-x\r\n", "", "refuse tcp no.example.com:22 not-listed"},
		{"silence", "no.example.com", 22, "", "", "refuse tcp no.example.com:22 not-listed"},
		{"denied", "bad.example.com", 443, "", "", "refuse tcp bad.example.com:443 denied"},
		{"address", "93.184.216.34", 443, string(helloFor("ok.example.com")), string(alertAccessDenied), "refuse tls 93.184.216.34:443 direct-address"},
		{"synthetic address without a name", "198.19.7.7", 443, "", "", "refuse tcp 198.19.7.7:443 direct-address"},
		{"the gateway itself", "198.18.0.1", 15001, "", "", "refuse tcp 198.18.0.1:15001 direct-address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandbox(t, rules)
			c := sb.dial(tc.host, tc.port)
			_, err := io.WriteString(c, tc.send)
			check(t, err)
			if tc.answer == "" {
				wantReset(t, c)
			} else if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), tc.answer) {
				t.Errorf("the answer is %q, %v", b, err)
			}
			sb.wantRecords(tc.record)
			sb.wantNoDial()
		})
	}
}

// A refusal over HTTP says what was refused, why, and how to ask for it.
func TestRefusalSaysHowToAsk(t *testing.T) {
	sb := newSandbox(t, postgres)
	got := exchange(t, sb.dial("new.example.com", 80), "GET / HTTP/1.1\r\nHost: new.example.com\r\n\r\n")
	request := sb.record().Request
	for _, want := range []string{
		`"host":"new.example.com","port":80,"reason":"not-listed"`,
		`"request":"` + request + `"`,
		"nemoclawctl approve box new.example.com:80",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
}

// The SNI or Host of a connection to a bare address is a hint for whoever
// reads the log, and no more.
func TestDirectAddressHint(t *testing.T) {
	sb := newSandbox(t, postgres)
	exchange(t, sb.dial("93.184.216.34", 443), string(helloFor("db.example.com")))
	if r := sb.record(); r.Detail != `SNI "db.example.com"` || r.Host != "93.184.216.34" {
		t.Errorf("recorded %+v", r)
	}
	exchange(t, sb.dial("93.184.216.34", 80), "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
	if r := sb.record(); r.Detail != `Host "evil.example"` {
		t.Errorf("recorded %+v", r)
	}
}

// A name leads only to addresses that its rule may reach.
func TestAddressesOfAllowedNames(t *testing.T) {
	const rules = `egress:
  rules:
    - host: db.example.com
      port: 5432
    - host: in.example.com
      port: 5432
      allow_private: [10.0.0.0/8]
  deny:
    - cidr: 93.184.216.0/24
`
	for _, tc := range []struct {
		host, addr string
		record     string
	}{
		{"db.example.com", "8.8.8.8", "fail tcp db.example.com:5432"}, // dialed; nobody is there
		{"db.example.com", "10.1.2.3", "refuse tcp db.example.com:5432 private-address"},
		{"in.example.com", "10.1.2.3", "fail tcp in.example.com:5432"},
		{"in.example.com", "192.168.1.1", "refuse tcp in.example.com:5432 private-address"},
		{"in.example.com", "127.0.0.1", "refuse tcp in.example.com:5432 forbidden-address"},
		{"in.example.com", "169.254.169.254", "refuse tcp in.example.com:5432 forbidden-address"},
		{"db.example.com", "64:ff9b::7f00:1", "refuse tcp db.example.com:5432 forbidden-address"},
		{"db.example.com", "93.184.216.34", "refuse tcp db.example.com:5432 denied"},
		{"db.example.com", "", "refuse tcp db.example.com:5432 unresolvable"},
	} {
		t.Run(tc.host+" at "+tc.addr, func(t *testing.T) {
			sb := newSandbox(t, rules)
			if tc.addr != "" {
				sb.names[tc.host] = []netip.Addr{netip.MustParseAddr(tc.addr)}
			}
			wantReset(t, sb.dial(tc.host, 5432))
			sb.wantRecords("allow tcp "+tc.host+":5432", tc.record)
		})
	}
}

// The first address that answers is used; those that do not cost nothing but
// their attempt.
func TestNextAddressIsTried(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.names["db.example.com"] = []netip.Addr{netip.MustParseAddr("2606:2800::1"), netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("10.0.0.1")}
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	if got := exchange(t, sb.dial("db.example.com", 5432), "hello"); got != "hello" {
		t.Errorf("the server answered %q", got)
	}
	for _, want := range []string{"[2606:2800::1]:5432", "8.8.8.8:5432", "93.184.216.34:5432"} {
		if to := <-sb.dialed; to.String() != want {
			t.Errorf("dialed %s, want %s", to, want)
		}
	}
}

// New rules cut what they do not allow, at both ends, and leave the rest.
func TestReloadCutsWhatIsNoLongerAllowed(t *testing.T) {
	const two = postgres + "    - host: git.example.com\n      port: 22\n"
	sb := newSandbox(t, two)
	ended := make(chan error, 2)
	server := func(c *net.TCPConn) {
		io.WriteString(c, "hello")
		_, err := io.Copy(c, c)
		ended <- err
	}
	sb.serve("db.example.com", "93.184.216.34:5432", server)
	sb.serve("git.example.com", "93.184.216.35:22", server)
	greet := func(host string, port uint16) *net.TCPConn {
		c := sb.dial(host, port)
		_, err := io.ReadFull(c, make([]byte, 5))
		check(t, err)
		return c
	}
	db, git := greet("db.example.com", 5432), greet("git.example.com", 22)
	sb.record()
	sb.record()
	if a := sb.apply(postgres); a.Cut != 1 || a.Fault != "" {
		t.Errorf("applied %+v, want one connection cut", a)
	}
	wantReset(t, git)
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
	r := sb.wantRecords("cut tcp git.example.com:22 revoked")
	if r.Generation != 2 || r.Got != 5 {
		t.Errorf("the cut is recorded as %+v", r)
	}
	if got := exchange(t, db, "still here"); got != "still here" {
		t.Errorf("the other connection answered %q", got)
	}
}

// Law 8: rules that do not parse change nothing and are said aloud.
func TestRulesThatDoNotParseChangeNothing(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	if a := sb.apply("egress: [\n"); a.Fault == "" || a.Cut != 0 {
		t.Errorf("applied %+v, want a fault", a)
	}
	if got := exchange(t, sb.dial("db.example.com", 5432), "hello"); got != "hello" {
		t.Errorf("the server answered %q", got)
	}
}

// A rule that expires takes its connections with it.
func TestExpiryCuts(t *testing.T) {
	until := time.Now().Add(300 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	sb := newSandbox(t, postgres+"      expires: "+until+"\n")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	wantReset(t, sb.dial("db.example.com", 5432))
}

// Grants add to the policy; they never beat a denial, and never open a
// private address.
func TestGrants(t *testing.T) {
	const rules = postgres + "  deny:\n    - host: bad.example.com\n"
	allow := func(host string, port uint16) control.Grant {
		return control.Grant{Host: host, Port: port, Allow: true}
	}
	deny := func(host string, port uint16) control.Grant { return control.Grant{Host: host, Port: port} }
	for _, tc := range []struct {
		name   string
		grants []control.Grant
		host   string
		record string
	}{
		{"a name", []control.Grant{allow("new.example.com", 5432)}, "new.example.com", "allow tcp new.example.com:5432"},
		{"for its port only", []control.Grant{allow("new.example.com", 5433)}, "new.example.com", "refuse tcp new.example.com:5432 not-listed"},
		{"an address", []control.Grant{allow("93.184.216.34", 5432)}, "93.184.216.34", "allow tcp 93.184.216.34:5432"},
		{"a private address", []control.Grant{allow("10.0.0.1", 5432)}, "10.0.0.1", "refuse tcp 10.0.0.1:5432 private-address"},
		{"a forbidden address", []control.Grant{allow("169.254.169.254", 5432)}, "169.254.169.254", "refuse tcp 169.254.169.254:5432 forbidden-address"},
		{"a denied name", []control.Grant{allow("bad.example.com", 5432)}, "bad.example.com", "refuse tcp bad.example.com:5432 denied"},
		{"denial of a listed name", []control.Grant{deny("db.example.com", 5432)}, "db.example.com", "refuse tcp db.example.com:5432 denied"},
		{"both", []control.Grant{allow("new.example.com", 5432), deny("new.example.com", 5432)}, "new.example.com", "refuse tcp new.example.com:5432 denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandbox(t, rules)
			sb.apply(rules, tc.grants...)
			sb.dial(tc.host, 5432)
			sb.wantRecords(tc.record)
		})
	}
}

// Without an uplink everything is refused for that reason.
func TestNoUplink(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.rules(control.Rules{Policy: []byte(postgres), NoUplink: true})
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantRecords("refuse tcp db.example.com:5432 no-uplink")
}

// DNS over TCP to a resolver of the program's own choice is answered by us.
func TestForeignResolverOverTCP(t *testing.T) {
	sb := newSandbox(t, postgres)
	c := &wire.Conn{Conn: sb.dial("8.8.8.8", 53)}
	q := new(wire.Msg)
	q.SetQuestion("db.example.com.", wire.TypeA)
	check(t, c.WriteMsg(q))
	m, err := c.ReadMsg()
	check(t, err)
	if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "198.19.0.0") {
		t.Errorf("the answer is %v", m)
	}
	sb.wantNoDial()
}

// A flood of refusals becomes few lines, and their sum is right.
func TestFloodIsFolded(t *testing.T) {
	sb := newSandbox(t, postgres)
	const flood = 200
	for range flood {
		sb.dial("no.example.com", 22).Close()
	}
	lines, sum := 0, 0
	for sum < flood {
		r := sb.record()
		lines++
		sum += max(r.Count, 1)
	}
	if sum != flood || lines >= flood {
		t.Errorf("%d refusals in %d lines tell of %d", flood, lines, sum)
	}
}

// Connections beyond the limit are reset; when one ends, there is room again.
func TestTooManyConnections(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	addr := sb.lookup("db.example.com").String()
	var first *net.TCPConn
	for range maxFlows {
		c := sb.dial(addr, 5432)
		if first == nil {
			first = c
		}
	}
	for range maxFlows {
		sb.record()
	}
	wantReset(t, sb.dial(addr, 5432))
	sb.wantRecords("refuse tcp db.example.com:5432 too-many")
	first.Close()
	sb.wantRecords("end tcp db.example.com:5432")
	if got := exchange(t, sb.dial(addr, 5432), "hello"); got != "hello" {
		t.Errorf("with room again the server answered %q", got)
	}
}

// A worker that starts again knows the names that the last one gave.
func TestNamesOutliveTheWorker(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	was := sb.lookup("db.example.com")
	sb.conn.Close()
	sb.start()
	sb.gen = 0
	sb.apply(postgres)
	if got := exchange(t, sb.dial(was.String(), 5432), "hello"); got != "hello" {
		t.Errorf("the old address answers %q", got)
	}
}

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }
