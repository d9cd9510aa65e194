package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

const web = "egress:\n  rules:\n    - host: web.example.com\n      port: 80\n    - cidr: 93.184.216.35/32\n      port: 80\n"

// recorded serves HTTP at web.example.com and hands out the requests it got,
// each as "METHOD target Host: body".
func recorded(sb *sandbox) <-chan string {
	got := make(chan string, 100)
	handle := func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				close(got)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				close(got)
				return
			}
			got <- fmt.Sprintf("%s %s %s: %s", r.Method, r.RequestURI, r.Host, body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}
	sb.serve("web.example.com", "93.184.216.34:80", handle)
	sb.serve("", "93.184.216.35:80", handle)
	return got
}

// Every request of a connection is checked, and only what was understood
// reaches the server. The rows are the attacks that this stops.
func TestHTTPRequests(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	get := func(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	for _, tc := range []struct {
		name    string
		send    string
		reaches []string // the server
		answer  string   // up to the end of its first line that is not 200
		record  string   // the last
	}{
		{"plain", get("web.example.com"), []string{"GET / web.example.com: "}, ok, "end http web.example.com:80"},
		{"two", get("web.example.com") + get("web.example.com"), []string{"GET / web.example.com: ", "GET / web.example.com: "}, ok + ok, "end http web.example.com:80"},
		{"capitals, dot and port", get("WEB.example.com.:80"), []string{"GET / web.example.com: "}, ok, "end http web.example.com:80"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: web.example.com\r\n\r\n", []string{"GET / web.example.com: "}, ok, "end http web.example.com:80"},
		{"a body", "POST /a HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 3\r\n\r\nabc" + get("web.example.com"), []string{"POST /a web.example.com: abc", "GET / web.example.com: "}, ok + ok, "end http web.example.com:80"},
		{"a chunked body", "POST /a HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nHost: evil.example\r\n\r\n" + get("web.example.com"), []string{"POST /a web.example.com: abc", "GET / web.example.com: "}, ok + ok, "end http web.example.com:80"},
		{"absolute form", "GET http://web.example.com/x?y HTTP/1.1\r\nHost: web.example.com\r\n\r\n", []string{"GET /x?y web.example.com: "}, ok, "end http web.example.com:80"},
		{"empty lines first", "\r\n\r\n" + get("web.example.com"), []string{"GET / web.example.com: "}, ok, "end http web.example.com:80"},
		{"another method", "PROPFIND / HTTP/1.1\r\nHost: web.example.com\r\n\r\n", []string{"PROPFIND / web.example.com: "}, ok, "end http web.example.com:80"},
		{"server options", "OPTIONS * HTTP/1.1\r\nHost: web.example.com\r\n\r\n", []string{"OPTIONS * web.example.com: "}, ok, "end http web.example.com:80"},

		{"another Host", get("evil.example"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"another port", get("web.example.com:8080"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"a name below", get("x.web.example.com"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"brackets", get("[web.example.com]"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"userinfo", get("evil.example@web.example.com"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"no Host", "GET / HTTP/1.0\r\n\r\n", nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 no-name"},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: web.example.com\r\nHost: evil.example\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"absolute form of another", "GET http://evil.example/ HTTP/1.1\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"the second is for another", get("web.example.com") + get("evil.example"), []string{"GET / web.example.com: "}, ok + "HTTP/1.1 403 Forbidden", "cut http web.example.com:80 name-mismatch"},
		{"smuggled behind both lengths", "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("evil.example"), nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 5\r\ncontent-length: 6\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a signed length", "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: +5\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"an unknown coding", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a space before the colon", "GET / HTTP/1.1\r\nHost : evil.example\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a folded field", "GET / HTTP/1.1\r\nHost: web.example.com\r\nX: y\r\n Host: evil.example\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"lines without CR", "GET / HTTP/1.1\nHost: web.example.com\n\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a CR within a line", "GET / HTTP/1.1\r\nHost: web.example.com\r\nX: a\rHost: evil.example\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a NUL", "GET / HTTP/1.1\r\nHost: web.example.com\r\nX: \x00\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"Connection drops Host", "GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close, Host\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a head without end", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead) + "\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"CONNECT", "CONNECT web.example.com:80 HTTP/1.1\r\nHost: web.example.com:80\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"upgrade to HTTP/2", "GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, "", "refuse tcp web.example.com:80 not-http"},
		{"TLS", string(helloFor("web.example.com")), nil, "", "refuse tcp web.example.com:80 not-http"},
		{"SSH", "SSH-2.0-x\r\n", nil, "", "refuse tcp web.example.com:80 not-http"},
		{"nothing", "", nil, "", "refuse tcp web.example.com:80 not-http"},
		{"pipelined behind a refused one", get("evil.example") + get("web.example.com"), nil, "HTTP/1.1 403 Forbidden", "refuse http web.example.com:80 name-mismatch"},
		{"pipelined behind one that ends wrongly", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n" + get("web.example.com"), nil, "HTTP/1.1 400 Bad Request", "cut http web.example.com:80 malformed"},
		{"a folded first field", "GET / HTTP/1.1\r\n Host: evil.example\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a folded Host", "GET / HTTP/1.1\r\nHost:\r\n web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a list of lengths", "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 5, 5\r\n\r\nabcde", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a length that is too long", "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 18446744073709551621\r\n\r\nabcde", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"two codings", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a list of codings", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"a coding behind a vertical tab", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"HTTP/0.9", "GET /\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"absolute form of another scheme", "GET https://web.example.com/ HTTP/1.1\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"absolute form with userinfo", "GET http://web.example.com@evil.example/ HTTP/1.1\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"authority form", "GET evil.example:80 HTTP/1.1\r\nHost: web.example.com\r\n\r\n", nil, "HTTP/1.1 400 Bad Request", "refuse http web.example.com:80 malformed"},
		{"extensions and trailers of chunks", "POST /a HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: Chunked\r\nTrailer: Host\r\n\r\n2;x=\"a;b\"\r\nab\r\n0;y\r\nContent-Length: 9\r\nHost: evil.example\r\n\r\n", []string{"POST /a web.example.com: ab"}, ok, "end http web.example.com:80"},
		{"a chunk of unknown length", "POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", nil, "HTTP/1.1 400 Bad Request", "cut http web.example.com:80 malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandbox(t, web)
			got := recorded(sb)
			c := sb.dial("web.example.com", 80)
			io.WriteString(c, tc.send)
			c.CloseWrite()
			b, _ := io.ReadAll(c)
			answer := string(b)
			if i := strings.Index(answer, "\r\nContent-Type: application/json"); i >= 0 {
				answer = answer[:i]
			}
			if answer != tc.answer {
				t.Errorf("the answer is %q, want %q", answer, tc.answer)
			}
			r := sb.record()
			if r.Verdict == "allow" {
				r = sb.record()
			}
			if told(r) != tc.record {
				t.Errorf("recorded %q (detail %q), want %q", told(r), r.Detail, tc.record)
			}
			for _, want := range tc.reaches {
				if req := <-got; req != want {
					t.Errorf("%q reached the server, want %q", req, want)
				}
			}
			if len(sb.dialed) > 0 {
				for req := range got {
					t.Errorf("%q reached the server too", req)
				}
			}
		})
	}
}

// A rule that names an address allows what is served there.
func TestHTTPToAnAddress(t *testing.T) {
	for _, host := range []string{"93.184.216.35", "any.example"} {
		sb := newSandbox(t, web)
		got := recorded(sb)
		exchange(t, sb.dial("93.184.216.35", 80), "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
		if req := <-got; req != "GET / "+host+": " {
			t.Errorf("%q reached the server", req)
		}
	}
}

// A client that waits for the server's word before it sends a body gets it.
func TestHTTPExpectsContinue(t *testing.T) {
	sb := newSandbox(t, web)
	sb.serve("web.example.com", "93.184.216.34:80", func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		if err != nil || r.Header.Get("Expect") != "100-continue" {
			return
		}
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(b), b)
	})
	c := sb.dial("web.example.com", 80)
	io.WriteString(c, "PUT / HTTP/1.1\r\nHost: web.example.com\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	br := bufio.NewReader(c)
	for _, want := range []string{"HTTP/1.1 100 Continue\r\n", "\r\n"} {
		if got, err := br.ReadString('\n'); got != want {
			t.Fatalf("before the body %q, %v", got, err)
		}
	}
	if got := exchange(t, c, "hello"); !strings.HasSuffix(got, "\r\n\r\nhello") {
		t.Errorf("the answer is %q", got)
	}
	sb.wantRecords("allow http web.example.com:80", "end http web.example.com:80")
}

// A WebSocket is anything once the server has agreed, and HTTP if it has not.
func TestWebSocket(t *testing.T) {
	const ask = "GET /chat HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	t.Run("agreed", func(t *testing.T) {
		sb := newSandbox(t, web)
		sb.serve("web.example.com", "93.184.216.34:80", func(c *net.TCPConn) {
			br := bufio.NewReader(c)
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nwelcome ")
			io.Copy(c, br)
		})
		got := exchange(t, sb.dial("web.example.com", 80), ask+"\x81\x00anything\r\n\r\n")
		if !strings.HasSuffix(got, "\r\n\r\nwelcome \x81\x00anything\r\n\r\n") {
			t.Errorf("the answer is %q", got)
		}
		sb.wantRecords("allow http web.example.com:80", "end http web.example.com:80")
	})
	t.Run("not agreed", func(t *testing.T) {
		sb := newSandbox(t, web)
		got := recorded(sb)
		answer := exchange(t, sb.dial("web.example.com", 80), ask+"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
		if !strings.Contains(answer, " 403 ") {
			t.Errorf("the answer is %q", answer)
		}
		for req := range got {
			if req != "GET /chat web.example.com: " {
				t.Errorf("%q reached the server", req)
			}
		}
		sb.wantRecords("allow http web.example.com:80", "cut http web.example.com:80 name-mismatch")
	})
}

// The real client and the real server understand each other across us: many
// requests over kept connections, large bodies both ways.
func TestHTTPClientAndServer(t *testing.T) {
	sb := newSandbox(t, web)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d %v %s", r.Host, n, err, strings.Repeat("y", 1<<20))
	})}
	go server.Serve(sb.listen("web.example.com", "93.184.216.34:80"))
	t.Cleanup(func() { server.Close() })
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return sb.dial("web.example.com", 80), nil
	}}}
	t.Cleanup(client.CloseIdleConnections)
	for i, body := range []io.Reader{
		nil,
		strings.NewReader(strings.Repeat("x", 1<<20)),
		io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), strings.NewReader("chunked")),
	} {
		r, err := client.Post("http://web.example.com/", "text/plain", body)
		check(t, err)
		b, err := io.ReadAll(r.Body)
		check(t, err)
		r.Body.Close()
		want := fmt.Sprintf("web.example.com %d <nil> y", []int{0, 1 << 20, 1<<20 + 7}[i])
		if !strings.HasPrefix(string(b), want) || len(b) != len(want)-1+1<<20 {
			t.Errorf("request %d: %.60q and %d bytes in all", i, b, len(b))
		}
	}
	if n := len(sb.dialed); n != 1 {
		t.Errorf("%d connections were made for three requests", n)
	}
}

// FuzzParseHead holds the law of the relay: whatever comes in, what goes out
// is one request in net/http's eyes too, for the one host, with the method and
// the length of body that we think it has.
func FuzzParseHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nhost:web.example.com:80\r\nContent-Length: 3\r\nX: y\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: web.example.com\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n",
		"GET http://web.example.com/x HTTP/1.0\r\nHost: web.example.com\r\nConnection: keep-alive\r\n\r\n",
		"GET /c HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: web.example.com\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: evil.example\r\nX: y\r\n z\r\n\r\n",
		"\r\n", // the end behind an empty line
	} {
		f.Add([]byte(s))
	}
	to := target{host: "web.example.com", port: 80}
	f.Fuzz(func(t *testing.T, b []byte) {
		block, err := readBlock(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		h, err := parseHead(block)
		if err != nil || to.compareHost(h) != nil {
			return
		}
		out := h.appendTo(nil, to)
		if n := strings.Count(strings.ToLower(string(out)), "\r\nhost:"); n != 1 {
			t.Fatalf("%d Hosts in %q", n, out)
		}
		br := bufio.NewReader(bytes.NewReader(out))
		r, err := http.ReadRequest(br)
		if err != nil {
			// net/http refuses some paths and fields that RFC 9112 allows; it
			// must not be the framing.
			if errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("net/http reads on behind %q: %v", out, err)
			}
			return
		}
		if br.Buffered() != 0 && r.ContentLength == 0 {
			t.Fatalf("net/http sees more than one request in %q", out)
		}
		length := h.length
		if r.Host != to.host || r.Method != h.method || r.ContentLength != length {
			t.Fatalf("net/http reads %s for %q with %d bytes in %q", r.Method, r.Host, r.ContentLength, out)
		}
		again, err := parseHead(out)
		if err != nil || string(again.appendTo(nil, to)) != string(out) {
			t.Fatalf("what we write, we read differently: %q, %v", out, err)
		}
	})
}
