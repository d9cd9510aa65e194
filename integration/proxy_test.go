package integration

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/integration/world"
)

// squidPackages are squid and the libraries that a Debian without it may lack.
const squidPackages = "squid-openssl squid-common squid-langpack libecap3 libltdl7 libtdb1 libnetfilter-conntrack3 libnfnetlink0 libmnl0"

// unpackSquid is run in an empty directory.
const unpackSquid = `
apt-cache show squid-openssl >/dev/null 2>&1 || apt-get update
apt-get download -o APT::Sandbox::User=root $PACKAGES
mkdir done
for deb in *.deb; do dpkg-deb -x "$deb" done; done
`

// squidRoot is where Debian's squid lies unpacked, in the cache.
var squidRoot = sync.OnceValues(func() (string, error) {
	return unpacked("squid", squidPackages, unpackSquid, "PACKAGES="+squidPackages)
})

// squid runs a company's proxy in the world, which wants agent:secret and makes
// tunnels to the ports of allowed, and returns its address.
func (e *earth) squid() netip.Addr {
	e.t.Helper()
	root, err := squidRoot()
	if err != nil {
		lacking(e.t, "%v", err)
	}
	addr, err := e.Host("proxy.corp.example")
	e.must(err)
	dir := e.t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		e.must(os.WriteFile(file, []byte(text), mode))
		return file
	}
	auth := write("auth", "#!/bin/sh\nwhile read -r who; do [ \"$who\" = 'agent secret' ] && echo OK || echo ERR; done\n", 0o755)
	share := filepath.Join(root, "usr/share/squid")
	conf := write("squid.conf", fmt.Sprintf(`http_port %s:3128
dns_nameservers %s
visible_hostname proxy.corp.example
pid_filename none
access_log none
cache_log %s/cache.log
cache deny all
memory_cache_shared off
coredump_dir %[3]s
error_directory %[4]s-langpack/en
mime_table %[4]s/mime.conf
icon_directory %[4]s/icons
unlinkd_program %[5]s
pinger_enable off
shutdown_lifetime 0 seconds
auth_param basic program %[6]s
acl users proxy_auth REQUIRED
acl known port 80 443 7000
http_access deny !users
http_access deny !known
http_access allow CONNECT
http_access deny all
`, addr, world.Nameserver, dir, share, filepath.Join(root, "usr/lib/squid/unlinkd"), auth), 0o644)
	name := fmt.Sprint("nemoclaw", os.Getpid())
	cmd := exec.Command(filepath.Join(root, "usr/sbin/squid"), "-N", "-n", name, "-f", conf)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib/x86_64-linux-gnu"))
	said, err := os.Create(filepath.Join(dir, "said"))
	e.must(err)
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	// It insists on being nobody special; what it reads may lie where only root goes.
	const nobody = 65534
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH}}
	e.must(os.Chown(dir, nobody, nobody))
	ended := make(chan error, 1)
	e.must(e.Start(cmd))
	go func() { ended <- cmd.Wait() }()
	e.t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // and what checks the passwords
		<-ended
		left, _ := filepath.Glob("/dev/shm/" + name + "-*")
		for _, file := range left {
			os.Remove(file)
		}
	})
	for deadline := time.Now().Add(patience); ; {
		c, err := e.Dial(netip.AddrPortFrom(addr, 3128))
		if err == nil {
			c.Close()
			return addr
		}
		select {
		case why := <-ended:
			ended <- why
			log, _ := os.ReadFile(filepath.Join(dir, "cache.log"))
			e.t.Fatalf("squid ended: %v\n%s", why, log)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("squid does not listen: %v", err)
		}
	}
}

// In a company without another way out every connection is a tunnel through the
// proxy, which resolves the names. What no rule allows does not reach it, what
// it refuses is said, and its password stands in no log.
func TestCompanyProxy(t *testing.T) {
	e := newEarth(t)
	b := newBox(t)
	proxy := e.squid()
	auth := filepath.Join(t.TempDir(), "proxy-auth")
	b.must(os.WriteFile(auth, []byte("agent:secret\n"), 0o600))
	b.policy(fmt.Sprintf(`network: {uplink: %s, dns: [%s], proxy: "http://%s:3128", proxy_auth_file: %s}
egress:
  rules:
    - {host: api.good.example, port: 443}
    - {host: web.good.example, port: 80}
    - {host: echo.good.example, ports: [7000, 7001]}
    - {host: gone.good.example, port: 7000}
`, e.Uplink(), world.Nameserver, proxy, auth))
	main := b.up()

	for _, k := range []*talk{main, b.exec()} {
		k.want("ok hello", "dial echo.good.example:7000 hello")
		if got := k.ask("tls api.good.example:443 api.good.example"); !strings.HasPrefix(got, "ok") {
			t.Errorf("%s: TLS answers %s", k.name, got)
		}
		for _, verb := range []string{
			"http web.good.example:80 evil.example", "dial echo.evil.example:7000 hello", "dial " + proxy.String() + ":3128 hello",
			"dial gone.good.example:7000 hello", "dial echo.good.example:7001 hello",
		} {
			if got := k.ask(verb); strings.HasPrefix(got, "ok hello") || got == "TIMEOUT" {
				t.Errorf("%s: %s answers %s", k.name, verb, got)
			}
		}
	}
	for want, port := range map[string]int{"it cannot reach the host (50": 7000, "it refuses (403)": 7001} {
		b.await(want, func(l line) bool {
			return l.More.Verdict == "fail" && l.Dst.Port == port && strings.Contains(l.More.Detail, want)
		})
	}
	for _, p := range e.sent() {
		if p.to != netip.AddrPortFrom(proxy, 3128) {
			t.Errorf("%s went past the proxy", p)
		}
	}
	if notes := strings.Join(b.status().Notes, "\n"); !strings.Contains(notes, "goes by the proxy "+proxy.String()+":3128") {
		t.Errorf("the status does not tell of the proxy: %s", notes)
	}
	log, err := os.ReadFile(b.auditFile())
	b.must(err)
	for _, secret := range []string{"secret", "YWdlbnQ6c2VjcmV0"} {
		if strings.Contains(string(log), secret) {
			t.Errorf("the audit log holds %q", secret)
		}
	}
}

// Credentials that others may read are refused, and nothing runs.
func TestProxyCredentialsAreSecret(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	auth := filepath.Join(t.TempDir(), "proxy-auth")
	b.must(os.WriteFile(auth, []byte("agent:secret\n"), 0o644))
	b.policy(fmt.Sprintf("network: {proxy: \"http://192.0.2.1:3128\", proxy_auth_file: %s}\negress: {rules: []}\n", auth))
	if _, r := b.create(); r.code == 0 || !strings.Contains(r.String(), "chmod 600") || strings.Contains(r.String(), "secret") {
		t.Errorf("create: %s", r)
	}
}
