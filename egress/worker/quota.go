package worker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"nemoclaw/specs/policy"
)

// tally is what goes by one rule that bounds it.
type tally struct {
	open int
	rate *rate.Limiter // nil: as many as come
}

// maxTallies is how many rules with bounds are counted; at the limit those
// without open connections are counted anew.
const maxTallies = 1024

// count enters a flow with the rule that allows it, or says why there is no
// room. remove takes it out again.
func (fs *flows) count(f *flow, r *policy.Rule, now time.Time) (policy.Reason, string) {
	if r == nil || r.MaxConnections == 0 && r.Rate.Count == 0 {
		return "", ""
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	t := fs.tally(r)
	if r.MaxConnections > 0 && t.open >= r.MaxConnections {
		return policy.TooMany, fmt.Sprintf("max_connections: %d", r.MaxConnections)
	}
	if t.rate != nil && !t.rate.AllowN(now, 1) {
		return policy.TooOften, "rate: " + r.Rate.String()
	}
	t.open++
	f.tally = t
	return "", ""
}

// tally returns what is counted for a rule. fs.mu is held.
func (fs *flows) tally(r *policy.Rule) *tally {
	key := r.Key()
	if t := fs.tallies[key]; t != nil {
		return t
	}
	if fs.tallies == nil {
		fs.tallies = map[string]*tally{}
	}
	if len(fs.tallies) >= maxTallies {
		for key, t := range fs.tallies {
			if t.open == 0 {
				delete(fs.tallies, key)
			}
		}
	}
	t := new(tally)
	if r.Rate.Count > 0 {
		t.rate = rate.NewLimiter(rate.Every(r.Rate.Per/time.Duration(r.Rate.Count)), r.Rate.Count)
	}
	fs.tallies[key] = t
	return t
}

// meter is the way to the server of a program that may send so much.
type meter struct {
	f    *flow
	to   *net.TCPConn
	left int64
}

var errUploadLimit = errors.New("the program has sent all that it may")

// Write passes what is left of the allowance; at the first byte beyond it the
// connection ends.
func (m *meter) Write(b []byte) (int, error) {
	over := int64(len(b)) > m.left
	n, err := m.to.Write(b[:min(int64(len(b)), m.left)])
	m.left -= int64(n)
	if err == nil && over {
		m.f.end(policy.UploadLimit, fmt.Sprintf("max_upload: %d bytes", m.f.inForce().uploads()))
		err = errUploadLimit
	}
	return n, err
}

// way returns what carries bytes to dst: a meter to a server if the rule has
// max_upload.
func (f *flow) way(dst *net.TCPConn) io.Writer {
	if f.meter != nil && dst == f.up {
		return f.meter
	}
	return dst
}

// watchIdle ends the flow once nothing has come from either side for as long as
// the verdict lets it. The kernel knows when something came last, also where it
// moves the bytes itself (tcp(7), TCP_INFO).
func (f *flow) watchIdle() (stop func()) {
	limit := f.inForce().idles()
	if limit == 0 {
		return func() {}
	}
	var timer *time.Timer
	ready := make(chan struct{})
	timer = time.AfterFunc(limit, func() {
		<-ready
		f.mu.Lock()
		up, gone := f.up, f.gone
		f.mu.Unlock()
		idle := sinceReceived(f.c)
		if up != nil {
			idle = min(idle, sinceReceived(up))
		}
		switch {
		case gone:
		case idle >= limit:
			f.end(policy.Idle, "idle_timeout: "+limit.String())
		default:
			timer.Reset(limit - idle)
		}
	})
	close(ready)
	return func() { timer.Stop() }
}

// sinceReceived returns how long ago a connection's peer sent something, or
// connected. A connection that is gone has been silent for ever.
func sinceReceived(c *net.TCPConn) time.Duration {
	const ever = 1 << 62
	raw, err := c.SyscallConn()
	if err != nil {
		return ever
	}
	since := time.Duration(ever)
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			since = time.Duration(info.Last_data_recv) * time.Millisecond
		}
	})
	return since
}
