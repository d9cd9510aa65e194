package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// proxy is a program that stands between the clients and the servers. It passes
// what comes to three ports on to the three servers, or makes tunnels at one.
type proxy struct {
	name    string
	program string
	debian  bool // out of the cache, in a root of its own; else this machine's
	tunnels bool
	port    int // the first of those that it listens on
	most    int // connections that it is asked to hold, or 0 for as many as all
	// config has %[1]s to %[3]s for the servers, %[4]d to %[6]d for the ports,
	// %[7]d for the connections and %[8]d for the descriptors that it may have.
	config string
	args   func(config string) []string
}

// errNotInstalled is the fault of a proxy that is not there.
var errNotInstalled = errors.New("not installed")

var proxies = []proxy{
	{"haproxy, TCP mode", "haproxy", false, false, 8001, 0, `global
  maxconn %[7]d
defaults
  mode tcp
  maxconn %[7]d
  timeout connect 5s
  timeout client 300s
  timeout server 300s
listen web
  bind 192.0.2.1:%[4]d
  server web %[1]s:80
listen stream
  bind 192.0.2.1:%[5]d
  server stream %[2]s:5001
listen hold
  bind 192.0.2.1:%[6]d
  server hold %[3]s:7100
`, func(config string) []string { return []string{"-db", "-q", "-f", config} }},
	{"nginx, HTTP proxy", "nginx", false, false, 8011, 0, `daemon off;
worker_processes auto;
worker_rlimit_nofile %[8]d;
pid /run/nginx.pid;
error_log /dev/null;
events { worker_connections %[8]d; }
http {
  access_log off;
  proxy_max_temp_file_size 0;
  proxy_read_timeout 300s;
  client_body_temp_path /run/nginx-body;
  proxy_temp_path /run/nginx-proxy;
  fastcgi_temp_path /run/nginx-fastcgi;
  uwsgi_temp_path /run/nginx-uwsgi;
  scgi_temp_path /run/nginx-scgi;
  server { listen 192.0.2.1:%[4]d; location / { proxy_pass http://%[1]s:80; } }
  server { listen 192.0.2.1:%[5]d; location / { proxy_pass http://%[2]s:5001; } }
  server { listen 192.0.2.1:%[6]d; location / { proxy_buffering off; proxy_pass http://%[3]s:7100; } }
}
`, func(config string) []string { return []string{"-e", "/dev/null", "-c", config} }},
	{"squid, tunnels", "/usr/sbin/squid", true, true, 8021, 0, `http_port 192.0.2.1:%[4]d
http_access allow all
visible_hostname proxy.example
cache_effective_user nobody
cache_effective_group nogroup
pid_filename none
access_log none
cache_log /dev/null
cache deny all
memory_cache_shared off
coredump_dir /tmp
pinger_enable off
max_filedescriptors %[8]d
shutdown_lifetime 0 seconds
`, func(config string) []string { return []string{"-N", "-n", "nemoclawbench", "-f", config} }},
	// For reference: it reads the HTTP inside of a tunnel, in Python, and would
	// take minutes and gigabytes for ten thousand connections.
	{"mitmproxy, tunnels", "/usr/bin/mitmdump", true, true, 8031, 1000, `listen_host: 192.0.2.1
listen_port: %[4]d
stream_large_bodies: "1"
flow_detail: 0
`, func(config string) []string { return []string{"-q", "--set", "confdir=" + filepath.Dir(config)} }},
}

// through starts the proxy p and a client of it.
func (b *bench) through(p proxy, s *site) (path, error) {
	pid, err := p.start(b, s)
	if err != nil {
		return path{}, err
	}
	client, err := startClient(exec.Command("/proc/self/exe", clientArg), s.clients)
	if err != nil {
		return path{}, err
	}
	at := func(n int) string { return fmt.Sprintf("192.0.2.1:%d", p.port+n) }
	way := path{name: p.name, client: client, web: at(0), stream: at(1), hold: at(2), most: p.most, pids: append(children(pid), pid)}
	if p.tunnels {
		way.via, way.web, way.stream, way.hold = at(0), s.web.String()+":80", s.streams.String()+":5001", s.holds.String()+":7100"
	}
	return way, nil
}

// start starts the proxy in the uplink's namespace and waits until it listens.
func (p proxy) start(b *bench, s *site) (pid int, err error) {
	root := ""
	if p.debian {
		if root, err = b.debianRoot(); err != nil {
			return 0, err
		}
	} else if _, err := exec.LookPath(p.program); err != nil {
		return 0, errNotInstalled
	}
	dir := filepath.Join(b.scratch, filepath.Base(p.program))
	if root != "" {
		dir = filepath.Join("/tmp", filepath.Base(p.program))
	}
	file := filepath.Join(dir, "config.yaml") // mitmproxy's name for it
	text := fmt.Sprintf(p.config, s.web, s.streams, s.holds, p.port, p.port+1, p.port+2, b.many()+someConnections/4, b.descriptors)
	if err := errors.Join(os.MkdirAll(root+dir, 0o755), os.WriteFile(root+file, []byte(text), 0o644)); err != nil {
		return 0, err
	}
	cmd := exec.Command(p.program, p.args(file)...)
	cmd.Stderr = b.stderr
	if root != "" {
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	}
	if err := within(s.uplink, cmd.Start); err != nil {
		return 0, err
	}
	s.closers = append(s.closers, func() error {
		err := cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was interrupted
		return err
	})
	last := p.port + 2
	if p.tunnels {
		last = p.port
	}
	return cmd.Process.Pid, within(s.clients, func() error {
		addr := net.JoinHostPort("192.0.2.1", fmt.Sprint(last))
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
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
