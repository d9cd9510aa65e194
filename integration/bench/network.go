package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"nemoclaw/integration/world"
)

// The world's hosts, and how long one measurement of them takes.
const (
	webHost    = "web.example"    // port 80: a short answer to each connection
	streamHost = "stream.example" // port 5001: an endless answer
	echoHost   = "echo.example"   // port 7000: every byte back
	lateHost   = "late.example"   // port 7000 too, allowed only by a reload
	holdHost   = "hold.example"   // port 7100: the head of an answer, and no more

	shortTime  = 1500 // milliseconds
	streamTime = 1500
	clients    = 16 // connecting at once
	manyTime   = 1500
	many       = 100  // streams at once
	latencies  = 1000 // connections of a lone client in one round
)

const shortAnswer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"

// path is a way from a client to the world's servers.
type path struct {
	name   string
	client *remote
	web    string // host:port of the short answers
	stream string // host:port of the endless one
	hold   string // host:port of the one that stops after its head
	via    string // the proxy that makes tunnels to them, or empty
	most   int    // connections that it is asked to hold, or 0 for as many as all
	pids   []int  // the processes in between
}

// site is the world with servers in it and clients around it.
//
//	nemoclaw's sandbox ┄ gateway ┄ ┐
//	direct client ──────────────── uplink 203.0.113.2 ══ internet: the servers
//	clients ══ 192.0.2.1 the proxies ──── ┘
type site struct {
	*world.World
	uplink, clients *os.File
	web, streams    netip.Addr
	holds           netip.Addr
	policy          string // the sandbox's policy file
	further         int    // rules in it beside those that are used
	closers         []func() error
}

func (s *site) Close() (err error) {
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	return err
}

// newSite makes the world.
func (b *bench) newSite() (_ *site, err error) {
	s := &site{policy: filepath.Join(b.scratch, "policy.yaml")}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.World, err = world.New(); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.World.Close)
	if s.uplink, err = os.Open(s.Uplink()); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, s.uplink.Close)
	// Ports of ended connections rest for a minute, and each way makes thousands.
	if err := within(s.uplink, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("10000 65535"), 0o644)
	}); err != nil {
		return nil, err
	}
	if s.web, err = s.ServeTCP(webHost, 80, answerShortly); err != nil {
		return nil, err
	}
	if s.streams, err = s.ServeTCP(streamHost, 5001, answerEndlessly); err != nil {
		return nil, err
	}
	if s.holds, err = s.ServeTCP(holdHost, 7100, answerHalf); err != nil {
		return nil, err
	}
	for _, name := range []string{echoHost, lateHost} {
		if _, err := s.ServeTCP(name, 7000, func(c net.Conn) { io.Copy(c, c) }); err != nil {
			return nil, err
		}
	}
	return s, s.write(false)
}

// write replaces the policy file, by a rename as editors do.
func (s *site) write(late bool) error {
	_, err := s.save(late)
	return err
}

// save is write, and returns when the rename began by the clock that the client
// reads.
func (s *site) save(late bool) (at int64, err error) {
	rules := [][2]string{{webHost, "80"}, {streamHost, "5001"}, {echoHost, "7000"}, {holdHost, "7100"}}
	if late {
		rules = append(rules, [2]string{lateHost, "7000"})
	}
	text := fmt.Sprintf("version: 1\nnetwork: {uplink: %s, dns: [%s]}\negress:\n  rules:\n", s.Uplink(), world.Nameserver)
	for _, r := range rules {
		text += fmt.Sprintf("    - {host: %s, port: %s, allow_private: [%s]}\n", r[0], r[1], world.Net)
	}
	var b strings.Builder
	b.WriteString(text)
	for n := range s.further {
		fmt.Fprintf(&b, "    - {host: host-%d.further.example, port: 443}\n", n)
	}
	if err := os.WriteFile(s.policy+".new", []byte(b.String()), 0o600); err != nil {
		return 0, err
	}
	at = monotonic()
	return at, os.Rename(s.policy+".new", s.policy)
}

func answerShortly(c net.Conn) {
	if readHead(c) == nil {
		_, _ = io.WriteString(c, shortAnswer)
	}
}

func answerEndlessly(c net.Conn) {
	if readHead(c) != nil {
		return
	}
	_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n")
	for chunk := make([]byte, 256<<10); err == nil; {
		_, err = c.Write(chunk)
	}
}

// answerHalf sends the head of an answer, and holds the connection until the
// client ends it.
func answerHalf(c net.Conn) {
	if readHead(c) == nil {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n")
		_, _ = c.Read(make([]byte, 1))
	}
}

// readHead reads a request, all of it that there is.
func readHead(c net.Conn) error {
	r := bufio.NewReaderSize(c, 1024)
	for {
		line, err := r.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			return err
		}
	}
}

// plugClients makes the namespace of the proxies' clients, with a cable to the
// uplink's, where the proxies run.
func (s *site) plugClients() error {
	made := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		ns, err := netns.New()
		if err == nil {
			s.clients = os.NewFile(uintptr(ns), "clients")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("cannot make a network namespace: %w", err)
	}
	s.closers = append(s.closers, s.clients.Close)
	return errors.Join(
		inHandle(s.uplink, func(h *netlink.Handle) error {
			cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "clients0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(s.clients.Fd()))}
			if err := h.LinkAdd(cable); err != nil {
				return err
			}
			return address(h, "clients0", "192.0.2.1/24")
		}),
		inHandle(s.clients, func(h *netlink.Handle) error {
			return errors.Join(address(h, "lo", ""), address(h, "eth0", "192.0.2.2/24"))
		}))
}

func inHandle(ns *os.File, f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

func address(h *netlink.Handle, link, cidr string) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return err
	}
	if cidr != "" {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := h.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return h.LinkSetUp(l)
}

// The names of ways, in tables.
const (
	directPath  = "direct veth"
	gatewayPath = "nemoclaw's gateway"
)

// paths opens every way there is. The missing ones are told in the second
// result.
func (b *bench) paths(s *site) (paths []path, missing []string, err error) {
	add := func(p path) {
		paths = append(paths, p)
		s.closers = append(s.closers, p.client.Close)
	}
	direct, err := startClient(exec.Command("/proc/self/exe", clientArg), s.uplink)
	if err != nil {
		return nil, nil, err
	}
	web, streams := net.JoinHostPort(s.web.String(), "80"), net.JoinHostPort(s.streams.String(), "5001")
	add(path{name: directPath, client: direct, web: web, stream: streams})

	sandbox, find, err := b.sandbox(s)
	if err != nil {
		return nil, nil, err
	}
	g, err := awake(sandbox, find)
	if err != nil {
		return nil, nil, errors.Join(err, sandbox.Close())
	}
	add(path{name: gatewayPath, client: sandbox, web: webHost + ":80", stream: streamHost + ":5001", hold: holdHost + ":7100", pids: g})

	if err := s.plugClients(); err != nil {
		return nil, nil, err
	}
	for _, p := range proxies {
		way, err := b.through(p, s)
		if errors.Is(err, errNotInstalled) {
			missing = append(missing, p.name)
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		add(way)
	}
	return paths, missing, nil
}

// awake returns the gateway after a first connection, which starts its worker.
func awake(client *remote, find func() (gateway, error)) (gateway, error) {
	if _, err := client.ask(order{Op: "hold", Addr: holdHost + ":7100", Count: 1}); err != nil {
		return nil, err
	}
	if _, err := client.ask(order{Op: "drop"}); err != nil {
		return nil, err
	}
	return find()
}

// sandbox starts a client in a sandbox whose gateway leads to s, and returns how
// to find that gateway's processes.
func (b *bench) sandbox(s *site) (*remote, func() (gateway, error), error) {
	return b.sandboxCalled("client", s)
}

// sandboxCalled is sandbox, with a bundle of its own name.
func (b *bench) sandboxCalled(name string, s *site) (*remote, func() (gateway, error), error) {
	c, err := b.contestant(nemoclaw)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := b.bundle(name, dockerProfile, b.rootfs(), clientProgram, clientArg)
	if err != nil {
		return nil, nil, err
	}
	client, id, err := b.startIn(c, bundle, "--policy", s.policy)
	if err != nil {
		return nil, nil, err
	}
	return client, func() (gateway, error) { return gatewayOf(c, id) }, nil
}

// network measures a long stream, many short connections, and a lone client's
// new connections.
func (b *bench) network() (err error) {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	paths, missing, err := b.paths(s)
	if err != nil {
		return err
	}
	paths = slices.DeleteFunc(paths, func(p path) bool {
		return !slices.ContainsFunc(b.ways, func(way string) bool { return strings.Contains(p.name, way) })
	})
	alone := func(q string) table {
		return table{Title: "Latency of new connections, one client: " + q, Unit: q + ", connect to end of a short HTTP answer: ms"}
	}
	streams := table{Title: "One TCP stream", Unit: "Gbit/s", More: true}
	manyStreams := table{Title: fmt.Sprintf("%d TCP streams at once", many), Unit: "Gbit/s, together", More: true}
	short := table{Title: fmt.Sprintf("Short HTTP connections, %d clients", clients), Unit: "connections/s", More: true}
	short99 := table{Title: "Their latency under this load", Unit: "p99: ms"}
	cost := table{Title: "What they cost the processes in between", Unit: "processor time of one connection: µs"}
	p50, p99 := alone("p50"), alone("p99")
	for _, p := range paths {
		r := series{Name: p.name, Against: directPath}
		for _, t := range []*table{&streams, &manyStreams, &short, &short99, &cost, &p50, &p99} {
			t.Rows = append(t.Rows, r)
		}
	}
	rounds := max(b.rounds/3, 1)
	err = interleave(rounds, len(paths), func(who int, counted bool) error {
		p := paths[who]
		bulk, err := p.client.ask(order{Op: "stream", Addr: p.stream, Via: p.via, Millis: streamTime})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		hundred, err := p.client.ask(order{Op: "stream", Addr: p.stream, Via: p.via, Clients: many, Millis: manyTime})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		before, err := busy(p.pids)
		if err != nil {
			return err
		}
		load, err := p.client.ask(order{Op: "http", Addr: p.web, Via: p.via, Clients: clients, Millis: shortTime})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		after, err := busy(p.pids)
		if err != nil {
			return err
		}
		one, err := p.client.ask(order{Op: "http", Addr: p.web, Via: p.via, Clients: 1, Count: latencies})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if load.Failed+one.Failed > 0 {
			return fmt.Errorf("%s: %d of %d connections failed", p.name, load.Failed+one.Failed, load.Count+one.Count)
		}
		if !counted {
			return nil
		}
		for t, v := range map[*table]float64{
			&streams: gigabits(bulk), &manyStreams: gigabits(hundred), &short: float64(load.Count) * 1e9 / float64(load.Nanos),
			&short99: float64(load.P99) / 1e6, &cost: (after - before).Seconds() * 1e6 / float64(load.Count), &p50: float64(one.P50) / 1e6, &p99: float64(one.P99) / 1e6,
		} {
			t.add(who, v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	promise(&streams, directPath, "", 0.65, 0.9)
	for _, p := range proxies[:2] { // haproxy and nginx: see the budgets
		promise(&streams, p.name, "gateway against "+p.name, 1, 0)
	}
	promise(&short, proxies[0].name, "gateway against "+proxies[0].name, 0.9, 1.2)
	for i := range cost.Rows {
		cost.Rows[i].Against = proxies[0].name
	}
	for _, t := range []table{streams, manyStreams, short, short99, cost, p50, p99} {
		for _, name := range missing {
			t.Rows = append(t.Rows, series{Name: name, Note: "not installed"})
		}
		if err := b.print(t); err != nil {
			return err
		}
	}
	return nil
}

// gigabits is the rate of streams in Gbit/s.
func gigabits(a answer) float64 { return float64(a.Bytes) * 8 / float64(a.Nanos) }

// promise bounds the gateway's ratio to another way: in its own row, or in a
// further one called name.
func promise(t *table, against, name string, bar, aim float64) {
	for i := range t.Rows {
		r := &t.Rows[i]
		if r.Name != gatewayPath {
			continue
		}
		if name == "" {
			r.Against, r.Bar, r.Aim = against, bar, aim
			return
		}
		t.Rows = append(t.Rows, series{Name: name, Samples: r.Samples, Against: against, Bar: bar, Aim: aim})
		return
	}
}
