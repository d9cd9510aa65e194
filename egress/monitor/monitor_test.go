package monitor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// patience is how long a test waits for an event that must come.
const patience = 20 * time.Second

// The first thread, whose namespace /proc shows as the process's, never enters
// a sandbox's.
func init() { goruntime.LockOSThread() }

// TestMain lets this binary be the processes that a sandbox consists of.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "worker" {
		puppet(os.Args[2])
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "init" {
		io.Copy(io.Discard, os.Stdin) // until the test ends it
		return
	}
	if len(os.Args) == 3 && (os.Args[1] == "connect" || os.Args[1] == "share") {
		connect(os.Args[2], os.Args[1] == "share")
		return
	}
	if len(os.Args) == 3 && slices.Contains([]string{"send", "sendto", "sendto6", "sendclose", "bind", "bindsend", "crowd"}, os.Args[1]) {
		send(os.Args[1], netip.MustParseAddrPort(os.Args[2]))
		return
	}
	os.Exit(m.Run())
}

// puppet is a worker without a will: it tells the test what the monitor says,
// and says what the test tells it.
func puppet(socket string) {
	conn, err := control.FromFile(os.NewFile(3, "monitor"))
	if err != nil {
		panic(err)
	}
	strings, err := net.Dial("unix", socket)
	if err != nil {
		panic(err)
	}
	go func() {
		for dec := json.NewDecoder(strings); ; {
			var msg control.ToMonitorFromWorker
			if dec.Decode(&msg) != nil {
				os.Exit(1) // the test wants it dead
			}
			conn.Send(msg)
		}
	}()
	for enc := json.NewEncoder(strings); ; {
		var msg control.ToWorker
		files, err := conn.Recv(&msg)
		if err != nil {
			return
		}
		enc.Encode(heard{msg, len(files), netns()})
		control.CloseAll(files)
	}
}

// heard is a message as the puppet passes it on.
type heard struct {
	control.ToWorker
	Files int
	Netns string
}

func netns() string {
	ns, _ := os.Readlink("/proc/thread-self/ns/net")
	return ns
}

// connect is a program of the sandbox: it opens a connection and keeps it, and
// may have another process keep it too.
func connect(to string, share bool) {
	c, err := net.Dial("tcp", to)
	if err != nil {
		panic(err)
	}
	if share {
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			panic(err)
		}
		heir := exec.Command("/proc/self/exe", "init")
		heir.Stdin, heir.ExtraFiles = os.Stdin, []*os.File{f}
		if err := heir.Start(); err != nil {
			panic(err)
		}
		defer heir.Wait()
	}
	fmt.Println(c.LocalAddr())
	io.Copy(io.Discard, os.Stdin)
}

// takePort binds a socket, and lets others have its port too.
func takePort(fd int, sa unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.Bind(fd, sa)
}

// send is a program of the sandbox: it sends a datagram from a socket that is
// connected ("send", "sendclose") or not, of IPv6 for an address of IPv4
// ("sendto6"), or only takes a port ("bind"), with more sockets than anybody
// needs ("crowd") or to send elsewhere from it ("bindsend"); and it says from where.
func send(how string, to netip.AddrPort) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() && how != "sendto6" {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		switch how {
		case "send", "sendclose":
			if err = unix.Connect(fd, sa); err == nil {
				_, err = unix.Write(fd, []byte("hello"))
			}
		case "sendto", "sendto6":
			err = unix.Sendto(fd, []byte("hello"), 0, sa)
		case "bind":
			err = takePort(fd, sa)
		case "bindsend":
			if err = takePort(fd, sa); err == nil {
				err = unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
			}
		case "crowd":
			err = takePort(fd, sa)
			for i := 0; i < 16*maxSockets && err == nil; i++ {
				if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
					err = takePort(fd, sa)
				}
			}
		}
	}
	if err != nil {
		panic(err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		panic(err)
	}
	var port int
	switch own := own.(type) {
	case *unix.SockaddrInet4:
		port = own.Port
	case *unix.SockaddrInet6:
		port = own.Port
	}
	if how == "sendclose" {
		unix.Close(fd)
	}
	fmt.Println(netip.AddrPortFrom(to.Addr(), uint16(port)))
	io.Copy(io.Discard, os.Stdin)
}

// sandbox is one with a real monitor, real namespaces and a puppet.
type sandbox struct {
	t       *testing.T
	dir     string
	log     string
	policy  string
	inner   *os.File
	uplink  *os.File
	creator *control.Conn
	init    *exec.Cmd
	stdin   io.Closer
	workers chan *puppeteer
	program []string // the worker's, if it is no puppet
	unplugs chan string
	hangup  chan os.Signal
	links   chan []string // what the engine has left plugged in
	stop    context.CancelFunc
	ended   chan error
}

const onlyExample = "egress:\n  rules:\n    - host: api.example.org\n      port: 443\n"

// newSandbox brings a sandbox up to the monitor's start.
func newSandbox(t *testing.T, program ...string) *sandbox {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	s := &sandbox{
		t:       t,
		program: program,
		dir:     dir,
		log:     filepath.Join(dir, "log", "web.jsonl"),
		policy:  filepath.Join(dir, "policy", "policy.yaml"),
		inner:   newNetns(t),
		uplink:  newNetns(t),
		workers: make(chan *puppeteer, 8),
		unplugs: make(chan string, 8),
		links:   make(chan []string),
		hangup:  make(chan os.Signal, 1),
	}
	os.Mkdir(filepath.Dir(s.policy), 0o755)
	s.save(onlyExample)
	t.Cleanup(s.checkLines) // once the monitor has ended
	s.begin()
	return s
}

// begin starts a monitor for the sandbox.
func (s *sandbox) begin() {
	s.t.Helper()
	strings := filepath.Join(s.dir, "strings")
	os.Remove(strings)
	l, err := net.Listen("unix", strings)
	s.must(err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.workers <- newPuppeteer(s.t, c)
		}
	}()
	ours, theirs, err := control.Pair()
	s.must(err)
	s.creator = ours
	conn, err := control.FromFile(theirs)
	s.must(err)
	m := &Monitor{
		Dir:    s.dir,
		Worker: []string{"/proc/self/exe", "worker", strings},
		Listen: listenIn,
		Unplug: func(ns *os.File) error { s.unplugs <- inodeOf(ns); return nil },
		Follow: func(ctx context.Context, _, _ *os.File, _ string, moved func([]string, error)) error {
			for {
				select {
				case links := <-s.links:
					moved(links, nil)
				case <-ctx.Done():
					return nil
				}
			}
		},
	}
	if s.program != nil {
		m.Worker = s.program
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	ended := make(chan error, 1)
	s.ended = ended
	go func() { ended <- m.Run(ctx, conn, s.hangup) }()
	s.t.Cleanup(func() {
		stop()
		ours.Close()
		<-ended
		l.Close()
	})
}

func (s *sandbox) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// save writes the policy as an editor does: a new file in the old one's place.
func (s *sandbox) save(src string) {
	s.t.Helper()
	s.must(os.WriteFile(s.policy+".new", []byte(src), 0o644))
	s.must(os.Rename(s.policy+".new", s.policy))
}

func (s *sandbox) attach() control.FromMonitor {
	s.t.Helper()
	src, err := os.ReadFile(s.policy)
	s.must(err)
	return s.ask(control.ToMonitor{Attach: &control.Attach{
		ID: "web", Root: "/run/engine", PolicyName: "default", PolicyFile: s.policy, Policy: src,
		AuditLog: s.log, OwnUplink: true, Notes: []string{"capability NET_RAW was cut"},
	}}, s.inner, s.uplink)
}

func (s *sandbox) ask(msg control.ToMonitor, files ...*os.File) (answer control.FromMonitor) {
	s.t.Helper()
	s.must(s.creator.Send(msg, files...))
	got, err := s.creator.Recv(&answer)
	s.must(err)
	control.CloseAll(got)
	return answer
}

// commit starts an init and makes the sandbox its.
func (s *sandbox) commit(files ...*os.File) {
	s.t.Helper()
	s.init = exec.Command("/proc/self/exe", "init")
	stdin, err := s.init.StdinPipe()
	s.must(err)
	s.stdin = stdin
	s.must(startIn(s.inner, s.init))
	s.t.Cleanup(func() { stdin.Close(); s.init.Wait() })
	pidfd, err := unix.PidfdOpen(s.init.Process.Pid, 0)
	s.must(err)
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	if a := s.ask(control.ToMonitor{Commit: &control.Commit{InitPID: s.init.Process.Pid}}, append([]*os.File{f}, files...)...); a.Fault != "" {
		s.t.Fatal(a.Fault)
	}
}

// up is a sandbox whose program runs, and its worker, which has the rules.
func up(t *testing.T) (*sandbox, *puppeteer) {
	t.Helper()
	s := newSandbox(t)
	if a := s.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	s.knock("tcp", queues[0].addr)
	w := s.worker()
	w.apply()
	s.commit()
	return s, w
}

// worker waits for the next worker to be started.
func (s *sandbox) worker() *puppeteer {
	s.t.Helper()
	select {
	case w := <-s.workers:
		if m := w.next(); m.Setup == nil || m.Files != control.SetupFiles {
			s.t.Fatalf("a worker's first message is %+v, want a setup with %d files", m, control.SetupFiles)
		} else if m.Netns != "net:["+inodeOf(s.uplink)+"]" {
			s.t.Fatalf("the worker is in %s, not in the uplink", m.Netns)
		}
		return w
	case <-time.After(patience):
		s.t.Fatal("no worker was started")
		return nil
	}
}

// waitEnd waits for the monitor to end and returns why.
func (s *sandbox) waitEnd() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(patience):
		s.t.Fatal("the monitor does not end")
		return nil
	}
}

// operator calls the control socket.
func (s *sandbox) operator(method, path, body string, answer any) int {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return control.Dial("unix", s.dir, control.ControlSocket)
		},
	}}
	req, err := http.NewRequest(method, "http://gateway"+path, strings.NewReader(body))
	s.must(err)
	resp, err := client.Do(req)
	s.must(err)
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		s.t.Errorf("%s %s: %s: %v", method, path, resp.Status, err)
	}
	return resp.StatusCode
}

func (s *sandbox) status() (st control.Status) {
	s.t.Helper()
	s.operator("GET", "/v1/status", "", &st)
	return st
}

// awaitLine follows the audit log until a line contains every word, and
// returns it.
func (s *sandbox) awaitLine(words ...string) string {
	s.t.Helper()
	c, err := control.Dial("unix", s.dir, control.ControlSocket)
	s.must(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "GET /v1/events HTTP/1.0\r\n\r\n")
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			s.t.Fatalf("no audit line with %q came: %v", words, err)
		}
		if hasAll(line, words) {
			return line
		}
	}
}

func hasAll(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

// puppeteer holds the strings of one worker.
type puppeteer struct {
	t    *testing.T
	conn net.Conn
	dec  *json.Decoder
	enc  *json.Encoder
	n    uint64
}

func newPuppeteer(t *testing.T, c net.Conn) *puppeteer {
	t.Cleanup(func() { c.Close() })
	return &puppeteer{t: t, conn: c, dec: json.NewDecoder(c), enc: json.NewEncoder(c)}
}

func (p *puppeteer) next() (m heard) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	if err := p.dec.Decode(&m); err != nil {
		p.t.Fatalf("the monitor said nothing: %v", err)
	}
	return m
}

func (p *puppeteer) say(m control.ToMonitorFromWorker) {
	p.t.Helper()
	if err := p.enc.Encode(m); err != nil {
		p.t.Fatal(err)
	}
}

// apply receives rules and says that they are in force.
func (p *puppeteer) apply() control.Rules {
	p.t.Helper()
	m := p.next()
	if m.Rules == nil {
		p.t.Errorf("the monitor said %+v, not rules", m.ToWorker)
		return control.Rules{}
	}
	p.say(control.ToMonitorFromWorker{Applied: &control.Applied{Generation: m.Rules.Generation, Cut: 1}})
	return *m.Rules
}

// record has records written and returns the monitor's answer.
func (p *puppeteer) record(list ...control.Record) control.Written {
	p.t.Helper()
	p.n += uint64(len(list))
	p.say(control.ToMonitorFromWorker{Records: &control.Records{N: p.n, List: list}})
	m := p.next()
	if m.Written == nil || m.Written.N != p.n {
		p.t.Fatalf("the monitor said %+v, not that %d records are written", m.ToWorker, p.n)
	}
	return *m.Written
}

func (p *puppeteer) kill() { p.conn.Close() }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("root is needed to make network namespaces")
		}
		t.Skip("root is needed to make network namespaces")
	}
}

// newNetns makes a network namespace that ends with the test.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	c := make(chan made)
	go func() {
		goruntime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = loopbackUp()
		}
		c <- made{f, err}
	}()
	m := <-c
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.f.Close() })
	return m.f
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func inodeOf(f *os.File) string {
	ino, _ := inode(f)
	return fmt.Sprint(ino)
}

// queues are the sockets of control.Setup, in a namespace that is the test's.
var queues = []struct{ network, addr string }{
	{"tcp", "127.0.0.1:7001"}, {"tcp", "127.0.0.1:7002"},
	{"udp", "127.0.0.1:7003"}, {"udp", "127.0.0.1:7004"},
	{"tcp", "127.0.0.1:7005"}, {"tcp", "127.0.0.1:7006"},
	{"udp", "127.0.0.1:7007"}, // in place of the kernel's reports
}

func listenIn(ns *os.File) (files []*os.File, err error) {
	err = in(ns, func() error {
		for _, q := range queues {
			f, err := listenOn(q.network, q.addr)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		return nil
	})
	return files, err
}

func listenOn(network, addr string) (*os.File, error) {
	if network == "udp" {
		c, err := net.ListenPacket(network, addr)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.UDPConn).File()
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// in calls f on a thread of its own in a network namespace.
func in(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// knock puts something into one of the queues: a connection, or a datagram. No
// puppet takes it out.
func (s *sandbox) knock(network, addr string) {
	s.t.Helper()
	s.must(in(s.inner, func() error {
		c, err := net.Dial(network, addr)
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("knock"))
		return errors.Join(err, c.Close())
	}))
}

// checkLines compares every line of the audit log with what OCSF says of it.
func (s *sandbox) checkLines() {
	text, _ := os.ReadFile(s.log) // a test may have taken it away
	for line := range strings.Lines(string(text)) {
		for _, fault := range audit.Conforms([]byte(line)) {
			s.t.Errorf("%s in the line %s", fault, line)
		}
	}
}

// checkLog verifies the whole audit log.
func (s *sandbox) checkLog() *audit.Report {
	s.t.Helper()
	rep, err := audit.VerifyFile(s.log)
	s.must(err)
	if len(rep.Faults) > 0 {
		s.t.Fatalf("the audit log does not hold: %v", rep.Faults)
	}
	return rep
}

func TestLife(t *testing.T) {
	s, w := up(t)

	// The monitor can be found and signalled, and its sockets answer.
	m, err := control.ReadMonitor(s.dir)
	s.must(err)
	if m.PID != os.Getpid() {
		t.Errorf("monitor.json names process %d", m.PID)
	}

	// start: the worker learns that there is a way out before the answer.
	started := make(chan error)
	go func() {
		c, err := control.DialRuntime(s.dir)
		if err == nil {
			defer c.Close()
			err = c.Send(control.ToMonitor{Started: &control.Started{Links: []string{"eth0"}}})
		}
		var a control.FromMonitor
		if err == nil {
			_, err = c.Recv(&a)
		}
		if err == nil && a.Fault != "" {
			err = errors.New(a.Fault)
		}
		started <- err
	}()
	if r := w.apply(); r.NoUplink {
		t.Error("after start the worker still believes that there is no way out")
	}
	s.must(<-started)
	if st := s.status(); len(st.Links) != 1 || st.Links[0] != "eth0" || st.Generation != 2 {
		t.Errorf("status: links %v, generation %d", st.Links, st.Generation)
	}

	// The engine plugs another link in, and then takes all away.
	s.links <- []string{"eth0", "eth1"}
	if r := w.apply(); r.NoUplink {
		t.Error("with two links the worker believes that there is no way out")
	}
	s.awaitLine("the engine's links are now: eth0 eth1")
	s.links <- nil
	if r := w.apply(); !r.NoUplink {
		t.Error("without a link the worker believes that there is a way out")
	}

	// A decision is in the log when the worker hears that it is.
	w.record(control.Record{Verdict: control.Allow, Proto: "tls", Host: "api.example.org", Port: 443, Request: "r1"})
	s.awaitLine(`"uid":"r1"`, `"verdict":"allow"`)
	w.record(control.Record{Verdict: control.End, Proto: "tls", Host: "api.example.org", Port: 443, Request: "r1", Sent: 3, Got: 5})

	// The end of init is the end of the sandbox: links, sockets, chain.
	s.stdin.Close()
	s.init.Wait()
	s.must(s.waitEnd())
	if got := <-s.unplugs; got != inodeOf(s.uplink) {
		t.Errorf("namespace %s was unplugged, not the uplink", got)
	}
	for _, name := range []string{control.RuntimeSocket, control.ControlSocket} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); err == nil {
			t.Errorf("%s is left behind", name)
		}
	}
	if rep := s.checkLog(); rep.Open || rep.Segments != 1 {
		t.Errorf("the log's chain is not closed: %+v", rep)
	}
}

// Whatever goes wrong before commit ends the monitor, and nothing of it stays.
func TestNoCommit(t *testing.T) {
	for _, c := range []struct {
		wrong string
		do    func(s *sandbox) string // returns the fault that the creator is told
		fault string
	}{
		{"the creator goes away at once", func(s *sandbox) string { s.creator.Close(); return "" }, ""},
		{"it goes away after attach", func(s *sandbox) string { f := s.attach().Fault; s.creator.Close(); return f }, ""},
		{"it is told to end", func(s *sandbox) string { f := s.attach().Fault; s.stop(); return f }, ""},
		{"it commits first", func(s *sandbox) string {
			return s.ask(control.ToMonitor{Commit: new(control.Commit)}, s.inner).Fault
		}, "cannot attach: the creator did not hand in two namespaces"},
		{"it commits without an init", func(s *sandbox) string {
			s.attach()
			return s.ask(control.ToMonitor{Commit: new(control.Commit)}).Fault
		}, "cannot commit: the creator did not hand in init"},
		{"the policy is none", func(s *sandbox) string { s.save("egress: 1\n"); return s.attach().Fault }, "policy.yaml:1:"},
		{"the log cannot be opened", func(s *sandbox) string {
			s.must(os.MkdirAll(s.log, 0o700))
			return s.attach().Fault
		}, "cannot open the audit log"},
		{"another gateway writes the log", func(s *sandbox) string {
			l, err := audit.Open(s.log)
			s.must(err)
			defer l.Close()
			return s.attach().Fault
		}, "another gateway writes it"},
	} {
		t.Run(c.wrong, func(t *testing.T) {
			s := newSandbox(t)
			if got := c.do(s); !strings.Contains(got, c.fault) || c.fault == "" && got != "" {
				t.Errorf("the creator is told %q, want %q", got, c.fault)
			}
			s.waitEnd()
			for _, name := range []string{control.MonitorFile, control.RuntimeSocket, control.ControlSocket} {
				if _, err := os.Lstat(filepath.Join(s.dir, name)); err == nil {
					t.Errorf("%s is left behind", name)
				}
			}
		})
	}
}

// start needs no worker: the first begins with rules that know the uplink.
func TestStartWithoutWorker(t *testing.T) {
	s := newSandbox(t)
	s.attach()
	s.commit()
	if fault := s.started(); fault != "" {
		t.Errorf("start without a worker is answered %q", fault)
	}
	s.knock("udp", queues[2].addr)
	if r := s.worker().apply(); r.NoUplink {
		t.Error("the first worker is told that there is no uplink")
	}
}

// started is what the runtime is told when it starts the program.
func (s *sandbox) started() string {
	s.t.Helper()
	c, err := control.DialRuntime(s.dir)
	s.must(err)
	defer c.Close()
	s.must(c.Send(control.ToMonitor{Started: &control.Started{Links: []string{"eth0"}}}))
	var a control.FromMonitor
	_, err = c.Recv(&a)
	s.must(err)
	return a.Fault
}

// A monitor after one that was killed finds the decisions, and continues the log.
func TestSecondMonitor(t *testing.T) {
	s, w := up(t)
	go w.apply()
	s.operator("POST", "/v1/decisions", `{"verb":"approve","host":"x.example.org","port":22}`, new(control.Decided))
	s.stop()
	s.must(s.waitEnd())
	s.begin()
	if a := s.attach(); a.Fault != "" {
		t.Fatal(a.Fault)
	}
	s.knock("tcp", queues[0].addr)
	if r := s.worker().apply(); len(r.Grants) != 1 || r.Grants[0].Host != "x.example.org" {
		t.Errorf("the decisions are %v", r.Grants)
	}
	s.stop()
	s.must(s.waitEnd())
	if rep := s.checkLog(); rep.Segments != 2 {
		t.Errorf("%d segments", rep.Segments)
	}
}

// The gateway has a cgroup of its own in every hierarchy, and takes it away.
func TestCgroup(t *testing.T) {
	needRoot(t)
	const root = "/sys/fs/cgroup"
	child := exec.Command("/proc/self/exe", "init")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", os.Getpid())
	c, err := newCgroup(root, "", name)
	defer func() {
		stdin.Close()
		child.Wait()
		for _, p := range c.places {
			os.Remove(p.dir)
			os.Remove(filepath.Dir(p.dir))
		}
	}()
	if err != nil || len(c.places) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cgroups are needed: %v", err)
		}
		t.Skipf("cgroups are needed: %v", err)
	}
	if err := c.join(child.Process.Pid); err != nil {
		t.Fatal(err)
	}
	limits := map[string]string{"memory.max": "268435456", "memory.limit_in_bytes": "268435456", "pids.max": "256", "cpu.max": "200000 100000", "cpu.cfs_quota_us": "200000"}
	set := map[string]bool{}
	for _, p := range c.places {
		for file, want := range limits {
			if got, err := os.ReadFile(filepath.Join(p.dir, file)); err == nil && strings.TrimSpace(string(got)) == want {
				set[strings.FieldsFunc(file, func(r rune) bool { return r == '.' })[0]] = true
			}
		}
	}
	if len(set) != 3 {
		t.Errorf("only these are bounded: %v", set)
	}
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", child.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(in), "/nemoclaw/"+name+"\n"); got != len(c.places) {
		t.Errorf("the process is in %d of %d:\n%s", got, len(c.places), in)
	}
	stdin.Close()
	child.Wait()
	for _, p := range c.places { // as leave does, without moving this test
		if err := os.Remove(p.dir); err != nil {
			t.Errorf("%s cannot be removed: %v", p.dir, err)
		}
	}
}
