package worker

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/specs/policy"
)

// rule is a policy of one rule for db.example.com with options.
func rule(options string) string {
	return "egress:\n  rules:\n    - {host: db.example.com, port: 5432, " + options + "}\n"
}

// A rule with binaries allows the programs that it names, once the monitor says
// for certain that it is one of them.
func TestBinaries(t *testing.T) {
	const git = "binaries: [/usr/bin/psql]"
	for _, c := range []struct {
		owner control.Process
		rule  string
		want  string
	}{
		{control.Process{Exe: "/usr/bin/psql"}, git, "allow tcp db.example.com:5432"},
		{control.Process{Exe: "/usr/bin/nc"}, git, "refuse tcp db.example.com:5432 wrong-program"},
		{control.Process{}, git, "refuse tcp db.example.com:5432 wrong-program"},
		{control.Process{Exe: "/usr/bin/psql", Unsure: "another holds it too"}, git, "refuse tcp db.example.com:5432 wrong-program"},
		{control.Process{Exe: "/usr/bin/nc"}, git + ", enforce: audit", "refuse tcp db.example.com:5432 wrong-program"},
		{control.Process{}, "enforce: audit", "allow tcp db.example.com:5432 would be not-listed"},
	} {
		t.Run(c.want+" to "+c.owner.Exe, func(t *testing.T) {
			want := c.want
			if strings.Contains(c.rule, "audit") && c.owner.Exe != "" {
				want = "refuse tcp db.example.com:5432 not-listed" // nothing firm names it
			}
			sb := newSandbox(t, rule(c.rule))
			sb.serve("db.example.com", "93.184.216.34:5432", echo)
			sb.set(func() { sb.owner = c.owner })
			exchangeAny(sb.dial("db.example.com", 5432), "hello")
			r := sb.record()
			got := told(r)
			if r.Would != "" {
				got += " would be " + r.Would
			}
			if got != want {
				t.Errorf("recorded %q, want %q", got, want)
			}
		})
	}
}

// exchangeAny is exchange that may be refused.
func exchangeAny(c *net.TCPConn, send string) string {
	io.WriteString(c, send)
	c.CloseWrite()
	b, _ := io.ReadAll(c)
	return string(b)
}

// A reload that narrows a rule to programs asks whose the open connections are,
// and cuts those of others.
func TestBinariesOfOpenConnections(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	sb.wantRecords("allow tcp db.example.com:5432")
	sb.set(func() { sb.owner.Exe = "/usr/bin/psql" })
	sb.apply(rule("binaries: [/usr/bin/psql]"))
	wantEcho(t, c, "still")
	sb.apply(rule("binaries: [/usr/bin/git]"))
	wantReset(t, c)
	sb.wantRecords("cut tcp db.example.com:5432 revoked")
}

// wantEcho sends and waits for the same.
func wantEcho(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	_, err := io.WriteString(c, text)
	check(t, err)
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("sent %q, got %q, %v", text, b, err)
	}
}

// max_upload bytes reach the server and not one more, whatever carries them;
// the connection then ends, and the log says why.
func TestMaxUpload(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: db.example.com\r\n"
	for _, c := range []struct {
		name string
		port uint16
		send string
	}{
		{"any protocol", 5432, strings.Repeat("x", 2000)},
		{"after PostgreSQL's question", 5432, string(sslRequest) + strings.Repeat("x", 2000)},
		{"a body", 80, head + "Content-Length: 2000\r\n\r\n" + strings.Repeat("x", 2000)},
		{"a chunked body", 80, head + "Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x", 2000) + "\r\n0\r\n\r\n"},
		{"a head", 80, head + "X: " + strings.Repeat("x", 2000) + "\r\n\r\n"},
		{"requests", 80, strings.Repeat(head+"\r\n", 40)},
	} {
		t.Run(c.name, func(t *testing.T) {
			sb := newSandbox(t, fmt.Sprintf("egress: {rules: [{host: db.example.com, ports: [%d], max_upload: 1000}]}", c.port))
			got := make(chan int, 1)
			sb.serve("db.example.com", fmt.Sprintf("93.184.216.34:%d", c.port), func(c *net.TCPConn) {
				n, _ := io.Copy(io.Discard, c)
				got <- int(n)
			})
			conn := sb.dial("db.example.com", c.port)
			io.WriteString(conn, c.send)
			io.ReadAll(conn)
			if n := <-got; n > 1000 {
				t.Errorf("%d bytes reached the server", n)
			}
			sb.record() // allowed
			end := sb.record()
			if end.Verdict != control.Cut || end.Reason != string(policy.UploadLimit) || end.Sent > 1000 || end.Detail != "max_upload: 1000 bytes" {
				t.Errorf("the end is %+v", end)
			}
		})
	}
}

// It holds as well where the kernel would move the bytes by itself.
func TestMaxUploadOfMuch(t *testing.T) {
	const size = 2 * spliceAfter
	sb := newSandbox(t, rule(fmt.Sprintf("max_upload: %d", size)))
	got := make(chan int64, 1)
	sb.serve("db.example.com", "93.184.216.34:5432", func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	c := sb.dial("db.example.com", 5432)
	c.Write(make([]byte, 2*size))
	if n := <-got; n > size {
		t.Errorf("%d bytes reached the server, %d may", n, size)
	}
}

// What a program may send it can send to the last byte, in both directions at
// once and far beyond the size of a buffer.
func TestMaxUploadIsReached(t *testing.T) {
	const size = 3 * spliceAfter
	sb := newSandbox(t, rule(fmt.Sprintf("max_upload: %d", size)))
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back: %v", len(got), size, err)
	}
	sb.record()
	if end := sb.record(); end.Verdict != control.End || end.Sent != size {
		t.Errorf("the end is %+v", end)
	}
}

// idle_timeout ends a connection on which nothing passes, before and after its
// first byte.
func TestIdleTimeout(t *testing.T) {
	sb := newSandbox(t, rule("idle_timeout: 1s"))
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	wantReset(t, c)
	sb.record()
	if end := sb.record(); end.Verdict != control.Cut || end.Reason != string(policy.Idle) || end.Lasted < time.Second {
		t.Errorf("the end is %+v", end)
	}
}

// max_connections and rate are counted by rule, and places come back.
func TestMaxConnections(t *testing.T) {
	sb := newSandbox(t, rule("max_connections: 2")+"    - {host: b.example.com, port: 5432}\n")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	sb.serve("b.example.com", "93.184.216.35:5432", echo)
	first := sb.dial("db.example.com", 5432)
	wantEcho(t, first, "1")
	wantEcho(t, sb.dial("db.example.com", 5432), "2")
	sb.wantRecords("allow tcp db.example.com:5432", "allow tcp db.example.com:5432")
	exchangeAny(sb.dial("db.example.com", 5432), "3")
	if r := sb.wantRecords("refuse tcp db.example.com:5432 too-many"); r.Rule != "policy.yaml:3" || r.Detail != "max_connections: 2" {
		t.Errorf("the refusal says %+v", r)
	}
	wantEcho(t, sb.dial("b.example.com", 5432), "another rule")
	sb.wantRecords("allow tcp b.example.com:5432")
	first.Close()
	sb.wantRecords("end tcp db.example.com:5432")
	wantEcho(t, sb.dial("db.example.com", 5432), "4")
}

func TestRate(t *testing.T) {
	sb := newSandbox(t, rule("rate: 2/h"))
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	for range 2 {
		wantEcho(t, sb.dial("db.example.com", 5432), "hello")
		sb.wantRecords("allow tcp db.example.com:5432")
	}
	sb.apply("# moved by a line, which counts nothing anew\n" + rule("rate: 2/h"))
	exchangeAny(sb.dial("db.example.com", 5432), "hello")
	if r := sb.wantRecords("refuse tcp db.example.com:5432 too-often"); r.Detail != "rate: 2/h" {
		t.Errorf("the refusal says %+v", r)
	}
}

// The whole sandbox has a bound of its own, if the policy says so.
func TestMaxConnectionsOfAll(t *testing.T) {
	sb := newSandbox(t, "egress: {defaults: {max_connections: 1}, rules: [{host: db.example.com, port: 5432}]}")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	wantEcho(t, sb.dial("db.example.com", 5432), "1")
	sb.wantRecords("allow tcp db.example.com:5432")
	wantReset(t, sb.dial("db.example.com", 5432))
	sb.wantRecords("refuse tcp db.example.com:5432 too-many")
}

// A rule with a ttl ends its connections when its time is over, counted from
// when it came into force first.
func TestTimeToLiveEnds(t *testing.T) {
	sb := newSandbox(t, "egress: {rules: []}")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	src := rule("ttl: 1h")
	p, err := policy.Parse("p", []byte(src))
	check(t, err)
	sb.rules(control.Rules{Policy: []byte(src)})
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	began := control.Now() - control.Uptime(time.Hour-1500*time.Millisecond)
	sb.rules(control.Rules{Policy: []byte(src), Began: map[string]control.Uptime{p.Egress.Rules[0].Key(): began}})
	wantEcho(t, c, "still")
	wantReset(t, c)
	sb.wantRecords("allow tcp db.example.com:5432", "cut tcp db.example.com:5432 revoked")
}

// The document of the limits and the policy's own checks agree.
func TestDocumentedBounds(t *testing.T) {
	if limits.Hold != policy.MaxHold {
		t.Errorf("a hold is documented as %s at most, and %s is read", limits.Hold, policy.MaxHold)
	}
	if _, err := policy.Parse("p", []byte(rule(fmt.Sprintf("max_connections: %d", limits.Flows+1)))); err == nil {
		t.Error("a rule may have more connections than the gateway")
	}
}

// Who may open few files has few connections, and some files left for what comes
// and goes.
func TestRoomForConnections(t *testing.T) {
	for files, want := range map[uint64]int{0: 16, 120: 16, 1024: 384, 4096: 1920, math.MaxUint64: 1<<19 - 128} {
		if got := roomFor(files); got != want {
			t.Errorf("with %d files there is room for %d connections, want %d", files, got, want)
		}
	}
}
