package worker

import (
	"bufio"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"nemoclaw/egress/control"
)

// corporate is a proxy as companies have one: it wants credentials, makes
// tunnels, and resolves names by itself.
type corporate struct {
	sb    *sandbox
	hosts map[string]string // what it resolves to, as an address of the world
	asked chan string
}

func (p *corporate) serve(c *net.TCPConn) {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	p.asked <- req.Method + " " + req.RequestURI
	say := func(status string) { io.WriteString(c, "HTTP/1.1 "+status+"\r\nVia: proxy\r\n\r\n") }
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("agent:secret"))
	to, known := p.hosts[req.RequestURI]
	switch {
	case req.Header.Get("Proxy-Authorization") != want:
		say("407 Proxy Authentication Required")
		return
	case to == "403", to == "302 Found":
		say(to)
		return
	case to == "cut":
		return
	case !known:
		say("502 Bad Gateway")
		return
	}
	p.sb.mu.Lock()
	var far net.Listener
	for addr, l := range p.sb.servers {
		if addr.String() == to {
			far = l
		}
	}
	p.sb.mu.Unlock()
	up, err := net.Dial("tcp", far.Addr().String())
	if err != nil {
		return
	}
	defer up.Close()
	io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
	say("200 Connection established")
	go func() {
		io.Copy(up, c)
		up.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(c, up)
}

// With a proxy in the policy every connection is a tunnel through it, by the
// name that was allowed; no name is resolved here, and what a rule says about
// protocols still holds.
func TestProxy(t *testing.T) {
	const policy = `network: {proxy: "http://10.9.9.9:3128"}
egress:
  rules:
    - {host: "**.good.example", ports: [22, 80, 443, 5432]}
    - {cidr: 192.88.0.0/24, port: 5432}
  deny:
    - {cidr: 10.0.0.0/8}
`
	for _, tc := range []struct {
		name       string
		host       string
		port       uint16
		proxy      string // what it resolves the target to, or answers
		auth       string
		say, hear  string
		records    []string
		wantsAsked string
	}{
		{"a server that speaks first", "ssh.good.example", 22, "93.184.216.34:22", "agent:secret", "", "SSH-2.0-server\n",
			[]string{"allow tcp ssh.good.example:22", "end tcp ssh.good.example:22"}, "CONNECT ssh.good.example:22"},
		{"HTTP", "web.good.example", 80, "93.184.216.34:80", "agent:secret", "GET / HTTP/1.1\r\nHost: web.good.example\r\n\r\n", "GET / HTTP/1.1\r\nHost: web.good.example\r\n\r\n",
			[]string{"allow http web.good.example:80", "end http web.good.example:80"}, "CONNECT web.good.example:80"},
		{"an address", "192.88.0.7", 5432, "93.184.216.34:80", "agent:secret", "hello\r\n\r\n", "hello\r\n\r\n",
			[]string{"allow tcp 192.88.0.7:5432", "end tcp 192.88.0.7:5432"}, "CONNECT 192.88.0.7:5432"},
		{"what the proxy cannot reach", "none.good.example", 5432, "", "agent:secret", "", "",
			[]string{"allow tcp none.good.example:5432", "fail tcp none.good.example:5432"}, "CONNECT none.good.example:5432"},
		{"what the proxy refuses", "no.good.example", 5432, "403", "agent:secret", "", "",
			[]string{"allow tcp no.good.example:5432", "fail tcp no.good.example:5432"}, "CONNECT no.good.example:5432"},
		{"a captive portal", "no.good.example", 5432, "302 Found", "agent:secret", "", "",
			[]string{"allow tcp no.good.example:5432", "fail tcp no.good.example:5432"}, "CONNECT no.good.example:5432"},
		{"no answer", "no.good.example", 5432, "cut", "agent:secret", "", "",
			[]string{"allow tcp no.good.example:5432", "fail tcp no.good.example:5432"}, "CONNECT no.good.example:5432"},
		{"wrong credentials", "ssh.good.example", 22, "93.184.216.34:22", "agent:mellon", "", "",
			[]string{"allow tcp ssh.good.example:22", "fail tcp ssh.good.example:22"}, "CONNECT ssh.good.example:22"},
		{"another Host", "web.good.example", 80, "93.184.216.34:80", "agent:secret", "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n",
			[]string{"refuse http web.good.example:80 name-mismatch"}, ""},
		{"an unlisted host", "evil.example", 5432, "93.184.216.34:80", "agent:secret", "", "",
			[]string{"refuse tcp evil.example:5432 not-listed"}, ""},
		{"an address that is denied", "10.1.2.3", 5432, "93.184.216.34:80", "agent:secret", "", "",
			[]string{"refuse tcp 10.1.2.3:5432 denied"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandboxBy(t, policy, &control.Proxy{Host: "10.9.9.9", Port: 3128, Auth: tc.auth})
			p := &corporate{sb: sb, hosts: map[string]string{}, asked: make(chan string, 10)}
			if tc.proxy != "" {
				p.hosts[net.JoinHostPort(tc.host, strconv.Itoa(int(tc.port)))] = tc.proxy
			}
			sb.serve("", "10.9.9.9:3128", p.serve)
			sb.serve("", "93.184.216.34:22", func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-server\n") })
			sb.serve("", "93.184.216.34:80", func(c *net.TCPConn) { // says what it hears, once
				b := make([]byte, 4096)
				n, _ := c.Read(b)
				c.Write(b[:n])
			})
			c := sb.dial(tc.host, tc.port)
			io.WriteString(c, tc.say)
			b := make([]byte, len(tc.hear))
			if _, err := io.ReadFull(c, b); string(b) != tc.hear {
				t.Errorf("heard %q (%v), want %q", b, err, tc.hear)
			}
			c.CloseWrite()
			for _, want := range tc.records {
				r := sb.record()
				if got := told(r); got != want {
					t.Errorf("recorded %q (%s), want %q", got, r.Detail, want)
				}
				if strings.Contains(r.Detail, "secret") || strings.Contains(r.Detail, "mellon") {
					t.Errorf("the record has the password: %s", r.Detail)
				}
				if r.Verdict == control.Fail && !strings.HasPrefix(r.Detail, "proxy 10.9.9.9: it ") {
					t.Errorf("the failure is recorded as %q", r.Detail)
				}
			}
			got := ""
			if len(p.asked) > 0 {
				got = <-p.asked
			}
			if got != tc.wantsAsked {
				t.Errorf("the proxy was asked %q, want %q", got, tc.wantsAsked)
			}
			for len(sb.dialed) > 0 {
				if to := <-sb.dialed; to.String() != "10.9.9.9:3128" {
					t.Errorf("%s was dialed past the proxy", to)
				}
			}
		})
	}
}

// Whatever a proxy answers, of any length and at any pace, it is understood as
// HTTP/1 or refused, and not a byte behind the head of its answer is read.
func FuzzProxyAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\nSSH-2.0", "HTTP/1.0 200\r\nA: b\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 No\r\n\r\n",
		"HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 +20 OK\r\n\r\n", "HTTP/1.1 2000\r\n\r\n", "SSH-2.0-x\r\n\r\n", "\r\n\r\n", "HTTP/1.1 099 \r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		c := &conversation{Reader: strings.NewReader(said)}
		err := new(proxy).ask(c, target{host: "good.example", port: 22})
		rest, _ := io.ReadAll(c)
		heads := strings.TrimSuffix(said, string(rest))
		if err != nil {
			return
		}
		if !strings.HasSuffix(heads, "\r\n\r\n") || len(heads) > maxHead {
			t.Fatalf("taken as a tunnel after %q", heads)
		}
		last := strings.Split(strings.TrimSuffix(heads, "\r\n\r\n"), "\r\n\r\n")
		if line := last[len(last)-1]; !strings.HasPrefix(line, "HTTP/1.") || line[9] != '2' {
			t.Fatalf("taken as a tunnel at %q", line)
		}
	})
}

// conversation reads what one side says, and forgets what it is told.
type conversation struct{ io.Reader }

func (conversation) Write(b []byte) (int, error) { return len(b), nil }
