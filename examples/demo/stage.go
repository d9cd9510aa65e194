package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"nemoclaw/examples/demo/attempt"
	"nemoclaw/integration/world"
)

// The hosts of the demo's internet. An approval never opens an address that is
// not globally reachable, so these have such addresses: of the range that
// RFC 7534 gives to black holes. Here they lead to a namespace of our own.
const (
	allowed  = "allowed.example"
	unlisted = "unlisted.example"
	saved    = "saved.example"
)

var addresses = map[string]netip.Addr{
	allowed:  netip.MustParseAddr("192.175.48.10"),
	unlisted: netip.MustParseAddr("192.175.48.11"),
	saved:    netip.MustParseAddr("192.175.48.12"),
}

// secret is what /root holds.
const secret = "not for agents"

// stage is everything that the demo makes: a directory with a bundle, settings
// and a policy, and an internet.
type stage struct {
	bin     string // the programs that are shown
	dir     string
	id      string // of the container
	world   *world.World
	packets map[netip.Addr]*atomic.Int64 // those that arrived from the uplink, by destination
	running *exec.Cmd                    // nemoclaw run
	box     *box
	marked  int // bytes of the audit log, see mark
}

// newStage returns what it has made also with an error; close takes it away.
func newStage(bin string) (*stage, error) {
	s := &stage{bin: bin, id: fmt.Sprintf("demo-%d", os.Getpid()), packets: map[netip.Addr]*atomic.Int64{}}
	var err error
	if s.dir, err = os.MkdirTemp("", "nemoclaw-demo-"); err != nil {
		return s, err
	}
	if s.world, err = world.New(); err != nil {
		return s, err
	}
	if err := s.count(addresses[unlisted], world.Neighbour); err != nil {
		return s, err
	}
	for host, addr := range addresses {
		if err := s.serve(host, addr); err != nil {
			return s, err
		}
	}
	if err := s.world.ServeAddr(world.Neighbour, 80, func(c net.Conn) { io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhello from the LAN\n") }); err != nil {
		return s, err
	}
	if err := s.makeRoot(); err != nil {
		return s, fmt.Errorf("the root filesystem cannot be made: %w", err)
	}
	if err := s.writePolicy(); err != nil {
		return s, err
	}
	if err := s.writeSettings(); err != nil {
		return s, err
	}
	return s, s.writeSpec()
}

// count counts the packets that arrive for these addresses from now on.
func (s *stage) count(addrs ...netip.Addr) error {
	for _, a := range addrs {
		s.packets[a] = new(atomic.Int64)
	}
	return s.world.Capture(func(packet []byte) {
		const destination, header = 16, 20 // in a packet of IPv4: RFC 791, 3.1
		if len(packet) < header || packet[0]>>4 != 4 {
			return
		}
		if n := s.packets[netip.AddrFrom4([4]byte(packet[destination:header]))]; n != nil {
			n.Add(1)
		}
	})
}

// serve answers https://host/ with a greeting, and https://host/stream with one
// that has no end.
func (s *stage) serve(host string, addr netip.Addr) error {
	if err := s.world.HostAt(host, addr); err != nil {
		return err
	}
	l, err := s.world.Listen(addr, 443)
	if err != nil {
		return err
	}
	cert, err := s.world.Certificate(host)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello from %s\n", host) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", host)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	server := &http.Server{
		Handler:   mux,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ErrorLog:  log.New(io.Discard, "", 0), // of connections that the gateway cut
	}
	go server.ServeTLS(l, "", "") // until the world's end closes l
	return nil
}

// makeRoot makes a small image: a shell, the agent, a certificate to trust and
// something to steal.
func (s *stage) makeRoot() error {
	for _, dir := range []string{"bin", "usr/bin", "etc/ssl/certs", "proc", "sys", "dev", "sandbox", "tmp", "root/.ssh"} {
		if err := os.MkdirAll(s.path("rootfs", dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	for from, to := range map[string]string{busybox: "bin/busybox", filepath.Join(s.bin, "demo-agent"): "usr/bin/agent"} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.path("rootfs", to), b, 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		attempt.Marker:                      "made by the demo of nemoclaw\n",
		"root/.ssh/id_ed25519":              secret,
		"etc/passwd":                        "root:x:0:0:root:/root:/bin/sh\n",
		"etc/ssl/certs/ca-certificates.crt": string(s.world.CA()),
	} {
		if err := os.WriteFile(s.path("rootfs", name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.Symlink("busybox", s.path("rootfs", "bin/sh"))
}

// writePolicy saves the policy with rules for hosts, the way an editor does:
// aside, then renamed into place.
func (s *stage) writePolicy(more ...string) error {
	text := fmt.Sprintf(`# What the demo's agent may do. Files and system calls: the defaults.
version: 1

# The way out leads into the demo's own internet.
network:
  uplink: %s
  dns: [%s]

# Who may be talked to; in force as soon as the file is saved.
egress:
  rules:
    - host: %s
      port: 443
`, s.world.Uplink(), world.Nameserver, allowed)
	for _, host := range more {
		text += fmt.Sprintf("    - host: %s\n      port: 443\n", host)
	}
	if err := os.WriteFile(s.path("policy.yaml.new"), []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(s.path("policy.yaml.new"), s.path("policy.yaml"))
}

// writeSettings keeps everything that nemoclaw writes below s.dir.
func (s *stage) writeSettings() error {
	text := fmt.Sprintf("run_dir: %s\nlog_dir: %s\npolicy_dir: %s\npolicy: %s\n",
		s.path("run"), s.path("log"), s.path("policies"), s.path("policy.yaml"))
	return os.WriteFile(s.path("config.yaml"), []byte(text), 0o600)
}

// writeSpec has nemoclaw write a bundle's config.json, and puts the agent into
// it. The root stays writable: what refuses to write is not the mount.
func (s *stage) writeSpec() error {
	if out, err := s.nemoclaw("spec", "--bundle", s.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%s", bytes.TrimSpace(out))
	}
	b, err := os.ReadFile(s.path("config.json"))
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	for key, values := range map[string]map[string]any{
		"process": {"terminal": false, "args": []string{"/usr/bin/agent"}, "cwd": "/sandbox"},
		"root":    {"readonly": false},
		"linux":   {"cgroupsPath": "/" + s.id},
	} {
		part, ok := spec[key].(map[string]any)
		if !ok {
			return fmt.Errorf("config.json has no %s", key)
		}
		for k, v := range values {
			part[k] = v
		}
	}
	if b, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(s.path("config.json"), b, 0o600)
}

func (s *stage) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

// nemoclaw is a command of the runtime.
func (s *stage) nemoclaw(args ...string) *exec.Cmd {
	return s.command("nemoclaw", append([]string{"--root", s.path("containers")}, args...)...)
}

// ctl is a command of the operator's console.
func (s *stage) ctl(args ...string) *exec.Cmd { return s.command("nemoclawctl", args...) }

// command does not share our process group: a signal typed at the terminal is
// ours to handle.
func (s *stage) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.bin, name), args...)
	c.Env = append(os.Environ(), "NEMOCLAW_CONFIG="+s.path("config.yaml"))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// box is the agent in its sandbox, seen from outside.
type box struct {
	requests *json.Encoder
	stdin    io.Closer
	answers  chan attempt.Outcome // closed when the agent has ended
	said     *bytes.Buffer        // what it wrote to stderr; nemoclaw's errors too
}

// start runs the agent in a sandbox.
func (s *stage) start() (*box, error) {
	b := &box{answers: make(chan attempt.Outcome), said: new(bytes.Buffer)}
	run := s.nemoclaw("run", "--bundle", s.dir, s.id)
	stdin, err := run.StdinPipe()
	if err != nil {
		return nil, err
	}
	b.stdin, b.requests = stdin, json.NewEncoder(stdin)
	stdout, err := run.StdoutPipe()
	if err != nil {
		return nil, err
	}
	run.Stderr = b.said
	if err := run.Start(); err != nil {
		return nil, err
	}
	s.running = run
	go func() {
		defer close(b.answers)
		for dec := json.NewDecoder(stdout); ; {
			var o attempt.Outcome
			if dec.Decode(&o) != nil {
				return
			}
			b.answers <- o
		}
	}()
	return b, nil
}

// patience is how long the demo waits for anything before it gives up.
const patience = 30 * time.Second

// try has the agent try something.
func (b *box) try(ctx context.Context, do, what string) (attempt.Outcome, error) {
	if err := b.ask(do, what); err != nil {
		return attempt.Outcome{}, err
	}
	return b.answer(ctx)
}

// ask is the first half of try.
func (b *box) ask(do, what string) error {
	return b.requests.Encode(attempt.Request{Do: do, What: what})
}

// answer is the other half.
func (b *box) answer(ctx context.Context) (attempt.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case o, ok := <-b.answers:
		if ok {
			return o, nil
		}
		return o, errors.New("the sandbox has ended")
	case <-ctx.Done():
		return attempt.Outcome{}, errors.New("the agent does not answer")
	}
}

// close takes away what was made. It waits for the sandbox's end, for nothing
// of it may be left when its directory goes.
func (s *stage) close() error {
	err := s.stop()
	if s.world != nil {
		err = errors.Join(err, s.world.Close())
	}
	if s.dir == "" {
		return err
	}
	if mounts := s.mounts(); len(mounts) > 0 {
		return errors.Join(err, fmt.Errorf("%s cannot be removed, these are mounted: %s", s.dir, strings.Join(mounts, " ")))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// stop ends the agent, which reads on until there is nothing more to read; with
// a signal if it does not read, and by force if that does not help either.
func (s *stage) stop() error {
	if s.running == nil {
		return nil
	}
	run := s.running
	s.running = nil
	s.box.stdin.Close()
	ask := time.AfterFunc(patience/10, func() { run.Process.Signal(syscall.SIGTERM) })
	defer ask.Stop()
	force := time.AfterFunc(patience, func() {
		s.nemoclaw("delete", "--force", s.id).Run()
		run.Process.Kill()
	})
	defer force.Stop()
	for range s.box.answers { // Wait may close the pipe only when it is read out
	}
	if err := run.Wait(); err != nil {
		return fmt.Errorf("nemoclaw run: %w: %s", err, bytes.TrimSpace(s.box.said.Bytes()))
	}
	return nil
}
