package worker

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// A reload that lowers max_upload counts what open connections have sent before
// it, also where the kernel moves their bytes, and ends those that have sent more.
func TestReloadBoundsUploads(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: db.example.com\r\nContent-Length: 4000000\r\n\r\n"
	for _, c := range []struct {
		name   string
		port   int
		begin  string
		before int // bytes that were sent before
		bound  int // by the new rule, from the first byte on
	}{
		{"little was sent", 5432, "", 1000, 2000},
		{"the kernel moves the bytes", 5432, "", 2 * spliceAfter, 2*spliceAfter + 1000},
		{"in the body of a request", 80, head, 2 * spliceAfter, 2*spliceAfter + 1000},
		{"more was sent than may be", 5432, "", 1000, 999},
		{"the kernel moved more than may be", 5432, "", 2 * spliceAfter, spliceAfter},
		{"more of a body", 80, head, 2 * spliceAfter, spliceAfter},
	} {
		t.Run(c.name, func(t *testing.T) {
			policy := func(options string) string {
				return fmt.Sprintf("egress: {rules: [{host: db.example.com, port: %d%s}]}", c.port, options)
			}
			sb := newSandbox(t, policy(""))
			arrived, ended := make(chan int64, 1), make(chan int64, 1)
			want := int64(len(c.begin) + c.before)
			sb.serve("db.example.com", fmt.Sprintf("93.184.216.34:%d", c.port), func(c *net.TCPConn) {
				n, _ := io.CopyN(io.Discard, c, want)
				arrived <- n
				more, _ := io.Copy(io.Discard, c)
				ended <- n + more
			})
			conn := sb.dial("db.example.com", uint16(c.port))
			io.WriteString(conn, c.begin)
			conn.Write(make([]byte, c.before))
			if n := <-arrived; n != want {
				t.Fatalf("%d bytes arrived, want %d", n, want)
			}
			bound := c.bound + len(c.begin)
			sb.apply(policy(fmt.Sprintf(", max_upload: %d", bound)))
			if c.bound > c.before {
				conn.Write(make([]byte, 2*(c.bound-c.before)))
			}
			io.ReadAll(conn) // until it ends
			if n := <-ended; n > int64(max(bound, int(want))) {
				t.Errorf("%d bytes reached the server, %d may", n, bound)
			}
			sb.record() // allowed
			end := sb.record()
			if end.Verdict != control.Cut || end.Reason != "upload-limit" || end.Detail != fmt.Sprintf("max_upload: %d bytes", bound) {
				t.Errorf("the end is %+v", end)
			}
		})
	}
}

// A reload that takes a bound away lets the open connections go on.
func TestReloadLiftsBounds(t *testing.T) {
	sb := newSandbox(t, rule("max_upload: 100, idle_timeout: 1s")+"    - {host: b.example.com, port: 5432, idle_timeout: 1s}\n")
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	sb.serve("b.example.com", "93.184.216.35:5432", echo)
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	sb.apply(postgres + "    - {host: b.example.com, port: 5432, idle_timeout: 1s}\n")
	wantReset(t, sb.dial("b.example.com", 5432)) // a second has passed
	sent := bytes.Repeat([]byte("0123456789abcdef"), spliceAfter/8)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
}

// A reload with an idle_timeout ends what has been silent for longer.
func TestReloadEndsTheIdle(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	c := sb.dial("db.example.com", 5432)
	wantEcho(t, c, "hello")
	sb.apply(rule("idle_timeout: 1s"))
	wantReset(t, c)
	sb.record()
	if end := sb.record(); end.Verdict != control.Cut || end.Reason != string(policy.Idle) || end.Detail != "idle_timeout: 1s" {
		t.Errorf("the end is %+v", end)
	}
}

// A reload that lowers how many connections there may be keeps the oldest, and
// counts them.
func TestReloadBoundsConnections(t *testing.T) {
	for _, c := range []struct{ name, policy, detail string }{
		{"of the rule", rule("max_connections: 2"), "max_connections: 2"},
		{"of the rule, lowered", rule("max_connections: 2, rate: 100/s"), "max_connections: 2"},
		{"of all", "egress: {defaults: {max_connections: 2}, rules: [{host: db.example.com, port: 5432}]}", "egress.defaults.max_connections: 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sb := newSandbox(t, rule("max_connections: 9"))
			sb.serve("db.example.com", "93.184.216.34:5432", echo)
			var conns []*net.TCPConn
			for range 4 {
				conn := sb.dial("db.example.com", 5432)
				wantEcho(t, conn, "hello")
				sb.wantRecords("allow tcp db.example.com:5432")
				conns = append(conns, conn)
			}
			if a := sb.apply(c.policy); a.Cut != 2 {
				t.Errorf("%d connections are cut, want 2", a.Cut)
			}
			for _, conn := range conns[2:] {
				wantReset(t, conn)
				if r := sb.wantRecords("cut tcp db.example.com:5432 too-many"); r.Detail != c.detail {
					t.Errorf("the end is %+v", r)
				}
			}
			exchangeAny(sb.dial("db.example.com", 5432), "hello")
			sb.wantRecords("refuse tcp db.example.com:5432 too-many")
			wantEcho(t, conns[0], "still")
			conns[1].Close()
			sb.wantRecords("end tcp db.example.com:5432")
			wantEcho(t, sb.dial("db.example.com", 5432), "a place came back")
		})
	}
}

// A reload with a rate counts the connections that were opened within its time.
func TestReloadBoundsTheRate(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	open := []*net.TCPConn{sb.dial("db.example.com", 5432), sb.dial("db.example.com", 5432), sb.dial("db.example.com", 5432)}
	for _, c := range open {
		wantEcho(t, c, "hello")
		sb.wantRecords("allow tcp db.example.com:5432")
	}
	if a := sb.apply(rule("rate: 2/h")); a.Cut != 0 {
		t.Errorf("%d connections were cut by a bound on those that begin", a.Cut)
	}
	exchangeAny(sb.dial("db.example.com", 5432), "hello")
	sb.wantRecords("refuse tcp db.example.com:5432 too-often")
	for _, c := range open {
		wantEcho(t, c, "still")
	}
}

// Reloads in the middle of everything lose no byte of what may pass.
func TestReloadsWhileBytesPass(t *testing.T) {
	sb := newSandbox(t, postgres)
	sb.serve("db.example.com", "93.184.216.34:5432", echo)
	sent := bytes.Repeat([]byte("0123456789abcdef"), spliceAfter)
	var streams sync.WaitGroup
	for range 4 {
		c := sb.dial("db.example.com", 5432)
		go func() {
			c.Write(sent)
			c.CloseWrite()
		}()
		streams.Go(func() {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		streams.Wait()
	}()
	bounds := []string{postgres, rule("max_upload: 1000000000"), rule("max_upload: 900000000, idle_timeout: 1h"), rule("rate: 100/s, max_connections: 4")}
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		default:
			sb.apply(bounds[i%len(bounds)])
		}
	}
}
