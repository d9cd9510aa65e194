package worker

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// Law 6 has no gap between the decision and the connection: rules that change
// while the far end is being dialed decide about its address too.
func TestRulesChangeWhileDialing(t *testing.T) {
	const rules = "egress:\n  rules:\n    - host: db.example.com\n      port: 5432\n"
	for _, tc := range []struct {
		name, before, after, record string
	}{
		{"nothing that matters", rules + "      allow_private: [10.0.0.0/8]\n", rules + "      allow_private: [10.1.0.0/16]\n", "end tcp db.example.com:5432"},
		{"the rule is gone", rules + "      allow_private: [10.0.0.0/8]\n", "egress: {rules: []}\n", "cut tcp db.example.com:5432 revoked"},
		{"allow_private is gone", rules + "      allow_private: [10.0.0.0/8]\n", rules, "cut tcp db.example.com:5432 revoked"},
		{"the address is denied", rules + "      allow_private: [10.0.0.0/8]\n",
			rules + "      allow_private: [10.0.0.0/8]\n  deny:\n    - cidr: 10.1.0.0/16\n", "cut tcp db.example.com:5432 revoked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := newSandbox(t, tc.before)
			heard := make(chan string, 1)
			sb.serve("db.example.com", "10.1.2.3:5432", func(c *net.TCPConn) {
				b, _ := io.ReadAll(c)
				heard <- string(b)
			})
			far := make(chan struct{})
			sb.set(func() { sb.far = far })
			c := sb.dial("db.example.com", 5432)
			_, err := io.WriteString(c, "secret")
			check(t, err)
			check(t, c.CloseWrite())
			sb.wantRecords("allow tcp db.example.com:5432")
			<-sb.dialed // it is under way
			sb.apply(tc.after)
			close(far)
			io.ReadAll(c)
			last := sb.wantRecords(tc.record)
			if last.Verdict == control.Cut {
				select {
				case got := <-heard:
					if got != "" {
						t.Errorf("the server heard %q", got)
					}
				default:
				}
			} else if got := <-heard; got != "secret" {
				t.Errorf("the server heard %q", got)
			}
		})
	}
}

// A connection that is revoked before it said what it speaks is recorded as
// revoked: what the gateway did is not the program's fault.
func TestRevokedWhileClassifying(t *testing.T) {
	for _, port := range []uint16{80, 443} {
		sb := newSandbox(t, "egress:\n  rules:\n    - host: api.example.com\n      ports: [80, 443]\n")
		c := sb.dial("api.example.com", port)
		_, err := io.WriteString(c, map[uint16]string{80: "GET / HT", 443: "\x16\x03"}[port])
		check(t, err)
		for a := (control.Applied{}); a.Cut == 0; { // it may not be accepted yet
			if a = sb.apply("egress: {rules: []}\n"); a.Cut == 0 {
				sb.apply("egress:\n  rules:\n    - host: api.example.com\n      ports: [80, 443]\n")
			}
			if len(sb.records) > 0 {
				t.Skip("it was accepted between two rules")
			}
		}
		wantReset(t, c)
		if r := sb.record(); r.Reason != string(policy.Revoked) {
			t.Errorf("port %d: recorded %q", port, told(r))
		}
		sb.wantNoDial()
	}
}

// The dialer asks for the verdict when it dials, not when the name was allowed.
func TestLastWordIsInForce(t *testing.T) {
	denied, err := policy.Parse("policy.yaml", []byte("egress:\n  rules: []\n  deny:\n    - cidr: 192.0.2.0/24\n"))
	check(t, err)
	rule := &policy.Rule{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	for _, tc := range []struct {
		name  string
		now   verdict
		dials bool
	}{
		{"as it was decided", verdict{rule: rule, rules: &rules{policy: new(policy.Policy)}}, true},
		{"no longer private", verdict{rules: &rules{policy: new(policy.Policy)}}, false},
		{"denied since", verdict{rule: rule, rules: &rules{policy: denied}}, false},
	} {
		last := newGuard(nil).dialer().ControlContext
		allowed := context.WithValue(t.Context(), allowance{}, func() verdict { return tc.now })
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) // a socket to be looked at
		check(t, err)
		raw, err := l.SyscallConn()
		check(t, err)
		err = last(allowed, "tcp4", "192.0.2.1:443", raw)
		l.Close()
		if got := err == nil; got != tc.dials {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// A connection that was recorded as allowed and then refused for its address is
// taken back line by line, however many there are.
func TestAllowedThenRefusedIsNotFolded(t *testing.T) {
	sb := newSandbox(t, "egress:\n  rules:\n    - host: db.example.com\n      port: 5432\n")
	sb.names["db.example.com"] = []netip.Addr{addrOf("10.1.2.3")}
	const many = 3 * foldKey
	for range many {
		wantReset(t, sb.dial("db.example.com", 5432))
	}
	allowed, refused := map[string]bool{}, 0
	for range 2 * many {
		switch r := sb.record(); r.Verdict {
		case control.Allow:
			allowed[r.Request] = true
		case control.Refuse:
			if !allowed[r.Request] || r.Count != 0 {
				t.Errorf("%s of request %q, %d times", told(r), r.Request, r.Count)
			}
			refused++
		}
	}
	if len(allowed) != many || refused != many {
		t.Errorf("%d were allowed and %d refused, want %d", len(allowed), refused, many)
	}
}

// Two bytes and an end, from the program or from a server that is asked for a
// WebSocket, end that connection and not the worker.
func TestEmptyLineAndNothing(t *testing.T) {
	sb := newSandbox(t, "egress:\n  rules:\n    - host: web.example.com\n      port: 80\n")
	sb.serve("web.example.com", "93.184.216.34:80", func(c *net.TCPConn) {
		c.Read(make([]byte, 1024))
		io.WriteString(c, "\r\n")
	})
	if got := exchange(t, sb.dial("web.example.com", 80), "\r\n"); got != "" {
		t.Errorf("the answer to nothing is %q", got)
	}
	sb.wantRecords("refuse tcp web.example.com:80 not-http")
	exchangeAny(sb.dial("web.example.com", 80), "GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	sb.wantRecords("allow http web.example.com:80", "end http web.example.com:80")
}
