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
	"time"

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

	shortTime  = 1500 // milliseconds
	streamTime = 1500
	clients    = 16   // connecting at once
	latencies  = 1000 // connections of a lone client in one round
)

const shortAnswer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"

// path is a way from a client to the world's servers.
type path struct {
	name   string
	client *remote
	web    string // host:port of the short answers
	stream string // host:port of the endless one
	pids   []int  // the processes in between
}

// site is the world with servers in it and clients around it.
//
//	nemoclaw's sandbox ┄ gateway ┄ ┐
//	direct client ──────────────── uplink 203.0.113.2 ══ internet: the servers
//	clients ══ 192.0.2.1 haproxy, nginx ┘
type site struct {
	*world.World
	uplink, clients *os.File
	web, streams    netip.Addr
	policy          string // the sandbox's policy file
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
	if s.web, err = s.ServeTCP(webHost, 80, answerShortly); err != nil {
		return nil, err
	}
	if s.streams, err = s.ServeTCP(streamHost, 5001, answerEndlessly); err != nil {
		return nil, err
	}
	for _, name := range []string{echoHost, lateHost} {
		if _, err := s.ServeTCP(name, 7000, func(c net.Conn) { io.Copy(c, c) }); err != nil {
			return nil, err
		}
	}
	return s, s.write(false)
}

// write replaces the policy file, by a rename as editors do, and returns
// when that was done by the clock that the client reads.
func (s *site) write(late bool) error {
	rules := [][2]string{{webHost, "80"}, {streamHost, "5001"}, {echoHost, "7000"}}
	if late {
		rules = append(rules, [2]string{lateHost, "7000"})
	}
	text := fmt.Sprintf("version: 1\nnetwork: {uplink: %s, dns: [%s]}\negress:\n  rules:\n", s.Uplink(), world.Nameserver)
	for _, r := range rules {
		text += fmt.Sprintf("    - {host: %s, port: %s, allow_private: [%s]}\n", r[0], r[1], world.Net)
	}
	if err := os.WriteFile(s.policy+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(s.policy+".new", s.policy)
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

// proxy is a program that stands between the clients and the servers.
type proxy struct {
	name    string
	program string
	web     int // ports that it listens on
	stream  int
	config  string // %[1]s, %[2]d: web server, its port here; %[3]s, %[4]d: the stream's
	args    func(config string) []string
}

var proxies = []proxy{
	{"haproxy, TCP mode", "haproxy", 8001, 8002, `defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen web
  bind 192.0.2.1:%[2]d
  server web %[1]s:80
listen stream
  bind 192.0.2.1:%[4]d
  server stream %[3]s:5001
`, func(config string) []string { return []string{"-db", "-q", "-f", config} }},
	{"nginx, HTTP proxy", "nginx", 8003, 8004, `daemon off;
worker_processes auto;
pid /run/nginx.pid;
error_log /dev/null;
events { worker_connections 4096; }
http {
  access_log off;
  proxy_max_temp_file_size 0;
  client_body_temp_path /run/nginx-body;
  proxy_temp_path /run/nginx-proxy;
  fastcgi_temp_path /run/nginx-fastcgi;
  uwsgi_temp_path /run/nginx-uwsgi;
  scgi_temp_path /run/nginx-scgi;
  server { listen 192.0.2.1:%[2]d; location / { proxy_pass http://%[1]s:80; } }
  server { listen 192.0.2.1:%[4]d; location / { proxy_pass http://%[3]s:5001; } }
}
`, func(config string) []string { return []string{"-e", "/dev/null", "-c", config} }},
}

// start starts the proxy in the uplink's namespace and waits until it listens.
func (p proxy) start(b *bench, s *site) (pid int, err error) {
	file := filepath.Join(b.scratch, p.program+".conf")
	text := fmt.Sprintf(p.config, s.web, p.web, s.streams, p.stream)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return 0, err
	}
	cmd := exec.Command(p.program, p.args(file)...)
	cmd.Stderr = b.stderr
	if err := within(s.uplink, cmd.Start); err != nil {
		return 0, err
	}
	s.closers = append(s.closers, func() error {
		err := cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was interrupted
		return err
	})
	return cmd.Process.Pid, within(s.clients, func() error {
		addr := net.JoinHostPort("192.0.2.1", fmt.Sprint(p.stream))
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			c, err := net.Dial("tcp4", addr)
			if err == nil {
				return c.Close()
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s does not listen: %w", p.program, err)
			}
		}
	})
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
	add(path{directPath, direct, web, streams, nil})

	sandbox, find, err := b.sandbox(s)
	if err != nil {
		return nil, nil, err
	}
	g, err := awake(sandbox, find)
	if err != nil {
		return nil, nil, errors.Join(err, sandbox.Close())
	}
	add(path{gatewayPath, sandbox, webHost + ":80", streamHost + ":5001", g})

	if err := s.plugClients(); err != nil {
		return nil, nil, err
	}
	for _, p := range proxies {
		if _, err := exec.LookPath(p.program); err != nil {
			missing = append(missing, p.name)
			continue
		}
		pid, err := p.start(b, s)
		if err != nil {
			return nil, nil, err
		}
		client, err := startClient(exec.Command("/proc/self/exe", clientArg), s.clients)
		if err != nil {
			return nil, nil, err
		}
		add(path{p.name, client, fmt.Sprintf("192.0.2.1:%d", p.web), fmt.Sprintf("192.0.2.1:%d", p.stream), append(children(pid), pid)})
	}
	return paths, missing, nil
}

// awake returns the gateway after a first connection, which starts its worker.
func awake(client *remote, find func() (gateway, error)) (gateway, error) {
	if _, err := client.ask(order{Op: "hold", Addr: echoHost + ":7000", Count: 1}); err != nil {
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
	c, err := b.contestant(nemoclaw)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := b.bundle("client", dockerProfile, b.rootfs(), clientProgram, clientArg)
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
	short := table{Title: fmt.Sprintf("Short HTTP connections, %d clients", clients), Unit: "connections/s", More: true}
	short99 := table{Title: "Their latency under this load", Unit: "p99: ms"}
	cost := table{Title: "What they cost the processes in between", Unit: "processor time of one connection: µs"}
	p50, p99 := alone("p50"), alone("p99")
	for _, p := range paths {
		r := series{Name: p.name, Against: directPath}
		for _, t := range []*table{&streams, &short, &short99, &cost, &p50, &p99} {
			t.Rows = append(t.Rows, r)
		}
	}
	rounds := max(b.rounds/3, 1)
	err = interleave(rounds, len(paths), func(who int, counted bool) error {
		p := paths[who]
		bulk, err := p.client.ask(order{Op: "stream", Addr: p.stream, Millis: streamTime})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		before, err := busy(p.pids)
		if err != nil {
			return err
		}
		many, err := p.client.ask(order{Op: "http", Addr: p.web, Clients: clients, Millis: shortTime})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		after, err := busy(p.pids)
		if err != nil {
			return err
		}
		one, err := p.client.ask(order{Op: "http", Addr: p.web, Clients: 1, Count: latencies})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if many.Failed+one.Failed > 0 {
			return fmt.Errorf("%s: %d of %d connections failed", p.name, many.Failed+one.Failed, many.Count+one.Count)
		}
		if !counted {
			return nil
		}
		for t, v := range map[*table]float64{
			&streams: float64(bulk.Bytes) * 8 / float64(bulk.Nanos), &short: float64(many.Count) * 1e9 / float64(many.Nanos),
			&short99: float64(many.P99) / 1e6, &cost: (after - before).Seconds() * 1e6 / float64(many.Count), &p50: float64(one.P50) / 1e6, &p99: float64(one.P99) / 1e6,
		} {
			t.add(who, v)
		}
		return nil
	})
	if err != nil {
		return err
	}
	promise(&streams, directPath, "", 0.65, 0.9)
	for _, p := range proxies {
		promise(&streams, p.name, "gateway against "+p.name, 1, 0)
	}
	promise(&short, proxies[0].name, "gateway against "+proxies[0].name, 0.9, 1.2)
	for i := range cost.Rows {
		cost.Rows[i].Against = proxies[0].name
	}
	for _, t := range []table{streams, short, short99, cost, p50, p99} {
		for _, name := range missing {
			t.Rows = append(t.Rows, series{Name: name, Note: "not installed"})
		}
		if err := b.print(t); err != nil {
			return err
		}
	}
	return nil
}

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
