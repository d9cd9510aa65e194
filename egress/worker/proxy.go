package worker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// proxy is by which every connection leaves. The nil proxy is none.
type proxy struct {
	target
	auth string // of the field Proxy-Authorization; empty: none
}

func newProxy(p *control.Proxy) *proxy {
	if p == nil {
		return nil
	}
	way := &proxy{target: target{host: p.Host, port: p.Port}}
	if addr, err := netip.ParseAddr(p.Host); err == nil {
		way.target = target{addr: addr, port: p.Port}
	}
	if p.Auth != "" {
		way.auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(p.Auth)) // RFC 7617
	}
	return way
}

// toProxy is the verdict about the proxy itself: it may be private, by the word
// of whoever wrote the policy, but is never what is never reachable.
var toProxy = verdict{
	allow: true,
	rules: &rules{policy: new(policy.Policy)},
	rule:  &policy.Rule{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
}

// tunnel connects to t by the proxy. A name is resolved there: what is known of
// the far end is the name alone.
func (s *server) tunnel(ctx context.Context, t target, inForce func() verdict) (*dialed, *failure) {
	var far netip.AddrPort
	if t.host == "" {
		if _, fail := s.permitted([]netip.Addr{t.addr}, t.port, inForce()); fail != nil {
			return nil, fail
		}
		far = netip.AddrPortFrom(t.addr, t.port)
	}
	c, fail := s.straight(ctx, s.proxy.target, func() verdict { return toProxy })
	if fail != nil {
		return nil, &failure{detail: "proxy " + s.proxy.name() + ": " + cmp.Or(fail.detail, string(fail.reason))}
	}
	stop := context.AfterFunc(ctx, func() { reset(c.TCPConn) })
	err := s.proxy.ask(c, t)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		reset(c.TCPConn)
		return nil, &failure{detail: "proxy " + s.proxy.name() + ": " + cause(err), addr: far}
	}
	c.to = far
	return c, nil
}

// ask asks for a tunnel to t (RFC 9110, 9.3.6). It reads nothing of what comes
// through it: the far end may speak first.
func (p *proxy) ask(c io.ReadWriter, t target) error {
	authority := net.JoinHostPort(t.name(), strconv.Itoa(int(t.port)))
	b := []byte("CONNECT " + authority + " HTTP/1.1\r\n")
	b = appendField(b, "Host", authority)
	if p.auth != "" {
		b = appendField(b, "Proxy-Authorization", p.auth)
	}
	if _, err := c.Write(append(b, "\r\n"...)); err != nil {
		return err
	}
	for read := 0; ; {
		status, n, err := readAnswer(c, maxHead-read)
		if read += n; err != nil {
			return err
		}
		switch {
		case status/100 == 2:
			return nil
		case status/100 == 1 && status != 101:
		case status == 407:
			return errors.New("it asks for other credentials (407)")
		case status == 403:
			return errors.New("it refuses (403)")
		case status/100 == 5: // squid says 500 of a name that does not exist
			return fmt.Errorf("it cannot reach the host (%d)", status)
		default:
			return fmt.Errorf("it answered %d", status)
		}
	}
}

// readAnswer reads the head of an answer, of at most limit bytes and no byte
// more than it has, and returns the status and the length.
func readAnswer(r io.Reader, limit int) (status, length int, err error) {
	var head []byte
	var one [1]byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) >= limit {
			return 0, len(head), errLongHead
		}
		if _, err := io.ReadFull(r, one[:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended without an answer")
			}
			return 0, len(head), err
		}
		head = append(head, one[0])
	}
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return 0, len(head), errors.New("it does not answer in HTTP/1")
	}
	n, err := strconv.ParseUint(string(line[9:12]), 10, 16)
	if err != nil || n < 100 {
		return 0, len(head), errors.New("it does not answer in HTTP/1")
	}
	return int(n), len(head), nil
}
